"""Verification protocols: lists of image pairs that are to be compared, and whether they show the same person.

LFW and XQLFW (grammar of the LFW page, View 1 and 2; davidsandberg/facenet `data/pairs.txt`), CPLFW and CALFW (two
lines per pair; JDAI-CV/FaceX-Zoo `test_protocol/lfw/pairs_parser.py`), CFP (`Readme.txt` of the data set) and a
table. A list is taken whole or refused: a pair left out would change the false match rate in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.keys import remedy_of, rows_of_keys
from fiqa_ray.sources.read_table import TEXT, read_table, refuse_foreign
from fiqa_ray.storage import filesystem, join, read_bytes, storage_errors


@dataclass(frozen=True)
class VerificationPairs:
    """Pairs in the order of their list.

    Attributes:
        image_id_a: `(L,)` str objects, image ids relative to the folder of the images.
        image_id_b: the same for the second images.
        mated: `(L,) bool`, same person.
        fold: `(L,) int64` from 0; -1 if the list has no folds.
        group: `(L,)` str objects, the group of people; None if the list has no groups.
    """

    image_id_a: NDArray[np.object_]
    image_id_b: NDArray[np.object_]
    mated: NDArray[np.bool_]
    fold: NDArray[np.int64]
    group: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.mated)


def read_lfw_pairs(uri: str, *, extension: str = ".jpg") -> VerificationPairs:
    """Read a list in LFW's grammar: LFW's `pairs.txt`, XQLFW's, or a View 1 list (one number in the header).

    After the header `F P` come F folds of P mated lines `name i j` and P non-mated ones `name i name j`, in any
    white space. Image ids are `Name/Name_0001<extension>`.

    Raises:
        FiqaRayError: names line and text of a fault.
    """
    lines = list_lines(uri)
    header = lines[0][1].split()
    if not 1 <= len(header) <= 2 or not all(h.isdecimal() and int(h) > 0 for h in header):
        raise line_fault(uri, *lines[0], "the first line must be '<folds> <pairs>' such as '10 300'")
    n_folds, n_each = (int(header[0]), int(header[1])) if len(header) == 2 else (1, int(header[0]))
    if len(lines) - 1 != 2 * n_folds * n_each:
        raise FiqaRayError(
            f"{uri}: {len(lines) - 1} pairs, but its first line {lines[0][1].strip()!r} announces {2 * n_folds * n_each}; "
            "the file is incomplete or the header is wrong"
        )
    a: list[str] = []
    b: list[str] = []
    mated: list[bool] = []
    for at, (number, line) in enumerate(lines[1:]):
        fields = line.split()
        if len(fields) not in (3, 4) or not (fields[1] + fields[-1]).isdecimal():
            raise line_fault(uri, number, line, "a pair is 'name i j' or 'name i name j'")
        same = len(fields) == 3
        if same != (at % (2 * n_each) < n_each):
            raise line_fault(
                uri, number, line, f"each fold has {n_each} lines 'name i j', then {n_each} 'name i name j'"
            )
        for names, name, index in ((a, fields[0], fields[1]), (b, fields[0 if same else 2], fields[-1])):
            _check_name(name, uri, number, line)
            names.append(f"{name}/{name}_{int(index):04d}{extension}")
        mated.append(same)
    return _pairs(a, b, mated, np.arange(len(mated)) // (2 * n_each))


def read_cplfw_pairs(uri: str) -> VerificationPairs:
    """Read `pairs_CPLFW.txt`: two lines `<image> <label>` per pair, label 1 mated, 0 not.

    Image ids are the file names. The list has no folds: the ten intended ones are tenths of the mated and of the
    non-mated pairs, in order. A leading header line is skipped.

    Raises:
        FiqaRayError: names line and text of a fault.
    """
    return _read_two_line_pairs(uri, last_token=1)


def read_calfw_pairs(uri: str) -> VerificationPairs:
    """Read `pairs_CALFW.txt`: two lines `<image> <token>` per pair, token 1..10 (the fold) mated, 0 not.

    Image ids are the file names; the folds of non-mated pairs are tenths of them, in order. A leading header line is
    skipped.

    Raises:
        FiqaRayError: names line and text of a fault, or that the file is CPLFW's.
    """
    pairs = _read_two_line_pairs(uri, last_token=10)
    if pairs.mated.any() and not pairs.fold[pairs.mated].any():
        raise FiqaRayError(
            f"{uri}: all mated pairs have the label 1, as in CPLFW's list; in CALFW's the label is the fold, 1 to 10. Set "
            "pairs.kind: cplfw"
        )
    return pairs


def _read_two_line_pairs(uri: str, last_token: int) -> VerificationPairs:
    lines = [(number, line, line.rsplit(None, 1)) for number, line in list_lines(uri)]
    if not _is_image_line(lines[0][2]):
        lines = lines[1:]
    for number, line, fields in lines:
        if not _is_image_line(fields) or int(fields[1]) > last_token:
            raise line_fault(uri, number, line, f"a line is '<image> <label>' with a label from 0 to {last_token}")
        _check_name(fields[0], uri, number, line)
    if len(lines) % 2 or not lines:
        raise FiqaRayError(f"{uri}: {len(lines)} image lines; two make a pair, so the file is incomplete")
    first, second = lines[::2], lines[1::2]
    for (_, _, fields), (number, line, others) in zip(first, second, strict=True):
        if fields[1] != others[1]:
            raise line_fault(uri, number, line, f"its label differs from the line above ({' '.join(fields)!r})")
    token = np.array([int(fields[1]) for _, _, fields in first])
    mated = token > 0
    fold = np.empty(len(token), np.int64)
    for kind in (True, False):
        of_kind = mated == kind
        n = int(of_kind.sum())
        fold[of_kind] = token[of_kind] - 1 if kind and last_token > 1 else np.arange(n) * 10 // max(n, 1)
    return _pairs([fields[0] for _, _, fields in first], [fields[0] for _, _, fields in second], mated, fold)


def _is_image_line(fields: list[str]) -> bool:
    return len(fields) == 2 and fields[1].isdecimal()


def read_cfp_pairs(root_uri: str, part: Literal["FP", "FF"] = "FP") -> VerificationPairs:
    """Read CFP's protocol from the data set's root (the folder that holds `Protocol`).

    Image ids are relative to `Data/Images`, such as `001/frontal/01.jpg`. Part "FP" pairs a frontal image (a) with
    a profile one (b), "FF" two frontal ones. Folds are the numbered folders of `Protocol/Split/<part>`, in each first
    `same.txt`, then `diff.txt`.

    Raises:
        FiqaRayError: names file, line and text of a fault.
    """
    if part not in ("FP", "FF"):
        raise FiqaRayError(f"part {part!r} of CFP: use 'FP' (frontal-profile) or 'FF' (frontal-frontal)")
    protocol = join(root_uri, "Protocol")
    list_a, list_b = (_read_cfp_images(join(protocol, f"Pair_list_{kind}.txt")) for kind in part)
    split_uri = join(protocol, "Split", part)
    with storage_errors(split_uri):
        fs, path = filesystem(split_uri)
        names = sorted(p.rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(path, detail=False))
    folds = sorted((n for n in names if n.isdecimal()), key=int)
    if not folds:
        raise FiqaRayError(f"{split_uri}: no numbered fold folders such as 01")
    a: list[str] = []
    b: list[str] = []
    mated: list[bool] = []
    fold: list[int] = []
    for i, folder in enumerate(folds):
        for file, same in (("same.txt", True), ("diff.txt", False)):
            uri = join(split_uri, folder, file)
            for number, line in list_lines(uri):
                match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", line)
                if match is None:
                    raise line_fault(uri, number, line, "a pair is two image numbers with a comma, such as '1,7'")
                for images, index, names_of in ((list_a, match[1], a), (list_b, match[2], b)):
                    if int(index) not in images:
                        raise line_fault(uri, number, line, f"image {index} is not in the list of {len(images)} images")
                    names_of.append(images[int(index)])
                mated.append(same)
                fold.append(i)
    return _pairs(a, b, mated, fold)


def _read_cfp_images(uri: str) -> dict[int, str]:
    """Return lines `1 ../Data/Images/001/frontal/01.jpg` as number -> image id."""
    images = {}
    for number, line in list_lines(uri):
        match = re.fullmatch(r"\s*(\d+)\s+\S*Data/Images/(\S+)\s*", line)
        if match is None or ".." in match[2].split("/"):
            raise line_fault(uri, number, line, "an image is '<number> ../Data/Images/<path>'")
        images[int(match[1])] = match[2]
    return images


def read_pairs_table(uri: str) -> VerificationPairs:
    """Read a CSV or Parquet with the columns `image_id_a,image_id_b,mated` and optionally `fold` and `group`.

    `mated` is 1/0 or true/false; `fold` an integer from 0; an empty `group` means none.

    Raises:
        FiqaRayError: names line and text of a fault.
    """
    names = ("image_id_a", "image_id_b", "mated", "fold", "group")
    what = "a list of pairs needs image_id_a,image_id_b,mated and may have fold and group"
    table = read_table(uri, dict.fromkeys(names, TEXT), names[:3], what)
    if table.num_rows == 0:
        raise FiqaRayError(f"{uri}: the table has no pairs")

    def parsed(column: str, parse: Callable[[str], Any], wanted: str) -> list[Any]:
        values = []
        for row, text in enumerate(table[column].to_pylist()):
            try:
                values.append(parse((text or "").strip()))
            except (ValueError, KeyError) as exc:
                raise line_fault(uri, row + 2, text or "", f"the column {column} must be {wanted}") from exc
        return values

    truth = {"1": True, "0": False, "true": True, "false": False}
    a, b = (parsed(c, _not_empty, "an image id") for c in names[:2])
    mated = parsed("mated", lambda text: truth[text.lower()], "1 or 0, or true or false")
    fold = parsed("fold", _count, "an integer from 0") if "fold" in table.column_names else np.full(len(mated), -1)
    pairs = _pairs(a, b, mated, fold)
    if "group" not in table.column_names:
        return pairs
    return replace(pairs, group=np.array([text or "" for text in table["group"].to_pylist()], dtype=object))


def pair_rows(
    pairs: VerificationPairs,
    image_id: pa.Array,
    key_rule: Sequence[str],
    *,
    list_uri: str,
    source_uri: str,
    allow_partial: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the images of each pair.

    Args:
        pairs: of a list.
        image_id: names of the benchmark's images.
        key_rule: rules of `fiqa_ray.sources.keys.KEY_RULES` by which names are compared.
        list_uri: the list, for errors.
        source_uri: the images, for errors.
        allow_partial: an image of the list may be absent, but not all of them.

    Returns:
        `(L,) int64` rows of the first and of the second images; -1 for an absent one.

    Raises:
        FiqaRayError: an image of the list is not there; the message shows one name of each side.
    """
    names = pa.array(np.concatenate([pairs.image_id_a, pairs.image_id_b]).tolist(), TEXT)
    setting = "pairs.key_rule"
    rows = rows_of_keys(names, image_id, key_rule)
    missing = names.filter(pa.array(rows < 0))
    if len(missing) and not (allow_partial and len(missing) < len(names)):
        raise FiqaRayError(
            f"{list_uri}: {len(missing.unique()):,} image(s) of the pair list are not in {source_uri}, such as {missing[0]} "
            f"(the data set has {image_id[0]} and others){remedy_of(names, image_id, key_rule, setting)}; correct "
            "source.uri, pairs.extension or the list, or set pairs.allow_partial: true to leave out their pairs"
        )
    return rows[: len(pairs)], rows[len(pairs) :]


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError
    return int(text)


# --- helpers ----------------------------------------------------------------------------------------------------------


def list_lines(uri: str, what: str = "a list of pairs") -> list[tuple[int, str]]:
    """Return the lines of a list that are not blank, with their numbers from 1; `FiqaRayError` if there is none."""
    data = read_bytes(uri)
    refuse_foreign(uri, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise FiqaRayError(f"{uri}: not a UTF-8 text file ({exc.reason} at byte {exc.start})") from exc
    lines = [(number, line) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]
    if not lines:
        raise FiqaRayError(f"{uri}: the file is empty; {what} was expected")
    return lines


def line_fault(uri: str, number: int, line: str, remedy: str) -> FiqaRayError:
    """Return the error about a line of a list."""
    return FiqaRayError(f"{uri}, line {number}: {line.strip()[:100]!r}: {remedy}")


def is_plain_name(name: str) -> bool:
    """Say whether a name is that of a file or folder and leads nowhere else."""
    return not (name.startswith(".") or "/" in name or "\\" in name)


def _check_name(name: str, uri: str, number: int, line: str) -> None:
    if not is_plain_name(name):
        raise line_fault(uri, number, line, f"{name!r} is not a plain name")


def _pairs(a: list[str], b: list[str], mated: Any, fold: Any) -> VerificationPairs:
    return VerificationPairs(
        np.array(a, dtype=object), np.array(b, dtype=object), np.asarray(mated, np.bool_), np.asarray(fold, np.int64)
    )
