"""Names of images in two files that should be the same: where they do not meet, the rule under which they would.

A list made on another machine has another folder in front, backslashes, no endings, or letters with accents composed
otherwise. Nothing of that is put right unasked, because two names may become one.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError

KEY_RULES = {
    "dot_slash": "a leading './' does not count",
    "slash": "backslashes count as slashes",
    "unicode": "accents count alike, composed or not",
    "ending": "the file name's ending does not count",
    "prefix": "the folders that one side has in front do not count",
}
"""Rules of a setting `key_rule`, and what each means."""

_SAMPLE = 500


def rows_of_keys(keys: pa.Array, image_id: pa.Array, rules: Sequence[str] = ()) -> NDArray[np.int64]:
    """Return the row of each key's image.

    Args:
        keys: names in the user's file.
        image_id: names of the images.
        rules: of `KEY_RULES`; how names are compared.

    Returns:
        `(len(keys),) int64`; -1 for a key that no image has.

    Raises:
        FiqaRayError: a rule makes two images one.
    """
    left, right = _normal(keys.cast(pa.large_string()), image_id.cast(pa.large_string()), rules)
    if rules and pc.count_distinct(right).as_py() < len(right):
        raise FiqaRayError(
            f"key_rule: with {', '.join(rules)} two images of the data set have one name; leave a rule out"
        )
    return np.asarray(pc.fill_null(pc.index_in(left, value_set=right), -1).to_numpy(), np.int64)


def alike_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return each name that equals an earlier one but for case, surrounding spaces or Unicode form, after that one."""
    first: dict[str, str] = {}
    alike = []
    for name in names:
        plain = unicodedata.normalize("NFC", name.strip()).casefold()
        if first.setdefault(plain, name) != name:
            alike.append((first[plain], name))
    return alike


def remedy_of(keys: pa.Array, image_id: pa.Array, rules: Sequence[str], setting: str) -> str:
    """Return the end of an error: the rules under which the names would meet, as a setting, or what to correct."""
    better = find_rules(keys, image_id)
    if better is None or set(better) <= set(rules):
        return "; the names must be the same"
    meaning = " and ".join(KEY_RULES[rule] for rule in better)
    remedy = f"set {setting}: [{', '.join(better)}]" if setting else "write them alike"
    return f"; they would meet if {meaning}: {remedy}"


def find_rules(keys: pa.Array, image_id: pa.Array) -> tuple[str, ...] | None:
    """Return the fewest rules under which (a sample of) the keys meet images, or None."""
    keys, ids = keys.cast(pa.large_string()), image_id.cast(pa.large_string())
    missing = keys.filter(pc.invert(pc.is_in(keys, value_set=ids)))
    sample = missing.take(pa.array(np.linspace(0, len(missing) - 1, min(len(missing), _SAMPLE)).astype(np.int64)))
    for n in range(1, 4):
        for rules in itertools.combinations(KEY_RULES, n):
            left, right = _normal(sample, ids, rules)
            if len(sample) and pc.all(pc.is_in(left, value_set=right)).as_py():
                return rules
    return None


def _normal(keys: pa.Array, ids: pa.Array, rules: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    for rule in KEY_RULES:
        if rule in rules and rule != "prefix":
            keys, ids = _simplified(keys, rule), _simplified(ids, rule)
    return _without_prefix(keys, ids) if "prefix" in rules else (keys, ids)


def _simplified(names: pa.Array, rule: str) -> pa.Array:
    if rule == "dot_slash":
        return pc.replace_substring_regex(names, r"^(\.[/\\])+", "")
    if rule == "slash":
        return pc.replace_substring(names, "\\", "/")
    if rule == "unicode":
        return pc.utf8_normalize(names, form="NFC")
    return pc.replace_substring_regex(names, r"\.[A-Za-z0-9]{1,5}$", "")


def _without_prefix(keys: pa.Array, ids: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return both lists without the folders that one of them has in front of the other's names."""
    for first, second, is_swapped in ((keys, ids, False), (ids, keys, True)):
        prefix = _extra_prefix(first, second)
        if prefix:
            pattern = "^" + "".join(f"\\x{{{ord(c):x}}}" for c in prefix)
            shorter = pc.replace_substring_regex(first, pattern, "")
            return (second, shorter) if is_swapped else (shorter, second)
    return keys, ids


def _extra_prefix(long: pa.Array, short: pa.Array) -> str:
    """Return the folders, with the slash, that all long names share and without which the first is a short name."""
    if not len(long):
        return ""
    least, most = pc.min_max(long).as_py().values()
    wanted = set(short.to_pylist())
    prefix = ""
    for part, other in zip(least.split("/")[:-1], most.split("/")[:-1], strict=False):
        prefix += part + "/"
        if part != other:
            break
        if least.removeprefix(prefix) in wanted:
            return prefix
    return ""
