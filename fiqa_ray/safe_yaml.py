"""YAML of bounded size, whose values mean the same in each version of YAML.

A few lines can stand for more values than there is memory, and long ones take long to parse. YAML 1.1, which PyYAML reads,
takes 010 for 8, 1:30 for 90 and no for false; YAML 1.2 takes them for 10 and two texts. Such values are refused.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import yaml

from fiqa_ray.errors import UsageError

MAX_YAML_VALUES = 10_000
"""Settings of a job with a hundred methods and benchmarks have some thousand values."""
MAX_DEPTH = 100
"""Brackets within brackets; settings have some five."""
MAX_BYTES = 200_000
"""Settings of a job with a hundred methods and benchmarks have some 20,000 bytes; a million take the parser seconds."""
MAX_BITS = 64
"""Of a whole number."""

_TAG = "tag:yaml.org,2002:"
_YAML_1_2 = {
    "null": re.compile("~|null|Null|NULL|"),
    "bool": re.compile("true|True|TRUE|false|False|FALSE"),
    "int": re.compile("[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|\.[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))"
        r"|\.(nan|NaN|NAN)"
    ),
}
"""Values without quotes that are no text, by kind, as chapter 10.3.2 of the specification lists them. Octal numbers and
those with leading zeros are left out: version 1.1 reads them as other numbers, or as text."""
_LEADING_ZERO = re.compile("[-+]?0o?[0-9]+$")
_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses what it would read otherwise than most people mean, without a word.

    These are a key that stands twice, of which the last one would win, and values that the versions of YAML read otherwise.
    """

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Refuse a value without quotes that is of another kind, or another number, in YAML 1.2."""
        is_plain = self.peek_event().implicit[0]  # neither quotes nor a kind of its own, such as !!str
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if is_plain and node.tag not in (f"{_TAG}merge", f"{_TAG}value"):
            kind = next((kind for kind, text in _YAML_1_2.items() if text.fullmatch(node.value)), "str")
            if node.tag != _TAG + kind or _LEADING_ZERO.fullmatch(node.value):
                raise yaml.YAMLError(
                    f"versions of YAML do not agree on {_shown(node.value)} (line {node.start_mark.line + 1}); write a "
                    "number in plain decimals, true or false in full, and a text or date in quotes"
                )
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse repeated keys before merges (`<<`) add those that the mapping may override."""
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in keys:
                    raise yaml.YAMLError(
                        f"the key {key.value!r} stands twice (line {key.start_mark.line + 1}); keep one"
                    )
                keys.add(key.value)
        super().flatten_mapping(node)


class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper; quotes texts that the loader would refuse without quotes."""


# YAML 1.1 takes 1e-3 for text, which nobody means; and a lone equals sign has a kind of its own there.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}float", _EXPONENT, [*"-+.0123456789"])
_Loader.add_constructor(f"{_TAG}value", lambda _, node: str(node.value))
_Dumper.add_implicit_resolver(f"{_TAG}int", _LEADING_ZERO, [*"-+0"])


def yaml_text(values: Any) -> str:
    """Return nested dicts and lists as YAML that `parse_yaml` reads back."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML of at most `MAX_BYTES` and `MAX_YAML_VALUES` values, with those that its aliases stand for.

    Raises:
        UsageError: no valid YAML, nested too deeply, or too large.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{name} holds {len(text):,} characters; settings may have {MAX_BYTES:,}: check the file")
    steps = (1 if c in "[{" else -1 for c in text if c in "[]{}")
    if max(accumulate(steps), default=0) > MAX_DEPTH:  # which the parser would take long for
        raise UsageError(f"{name} is not valid YAML: it is nested too deeply for settings; remove brackets")
    try:
        values = yaml.load(text, _Loader)
        n_values = _count_values(values, {})
    except (yaml.YAMLError, ValueError) as exc:  # ValueError: a date that does not exist, a number of too many digits
        raise UsageError(f"{name} is not valid YAML: {exc}") from exc
    except RecursionError as exc:
        raise UsageError(f"{name} is not valid YAML: it is nested too deeply for settings; remove brackets") from exc
    if n_values > MAX_YAML_VALUES:
        raise UsageError(
            f"{name} holds {n_values:,} values, counting those that its aliases (*name) stand for; settings may have "
            f"{MAX_YAML_VALUES:,}: write out what an alias stands for, or remove it"
        )
    return values


def _count_values(value: Any, counts: dict[int, int]) -> int:
    """Return the values below a value; each object is looked at once, however many aliases lead to it."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError(f"a whole number has {value.bit_length():,} bits; {MAX_BITS} are allowed")
    if not isinstance(value, dict | list | str | int | float | None):
        raise ValueError(
            f"it holds {value!r}, of the kind {type(value).__name__}; settings are texts, numbers and lists"
        )
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counts:
        counts[id(value)] = MAX_YAML_VALUES + 1  # of an object that holds itself
        below = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        counts[id(value)] = 1 + sum(_count_values(v, counts) for v in below)
    return counts[id(value)]


def parse_options(options: list[str]) -> dict[str, Any]:
    """Return the options of a model or method that are given as `key=value` texts with YAML values.

    Raises:
        UsageError: a text has another form.
    """
    values: dict[str, Any] = {}
    for option in options:
        override(values, option)
    return values


def override(values: dict[str, Any], assignment: str) -> None:
    """Change the value that a `key=value` text names in nested dicts and lists."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UsageError(f"{_shown(assignment)} is not of the form key=value, such as optimize.theta=0.01")
    value = parse_yaml(text, f"{_shown(assignment)}: the value")
    *path, last = key.split(".")
    section: Any = values
    for i, step in enumerate(path):
        if isinstance(section, list) and step.isdigit() and int(step) < len(section):
            section = section[int(step)]
        elif isinstance(section, dict):
            section = section.setdefault(step, {})
        else:
            raise UsageError(f"{_shown(assignment)}: {'.'.join(path[:i])} has no key {step!r}")
    if isinstance(section, list) and last.isdigit() and int(last) < len(section):
        section[int(last)] = value
    elif isinstance(section, dict):
        section[last] = value
    else:
        raise UsageError(f"{_shown(assignment)}: {'.'.join(path)} has no key {last!r}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")
