"""AgeDB's lists, lists of one line per pair, and what is known of published sets."""

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.io import savemat

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.agedb import read_agedb_pairs
from fiqa_ray.sources.insightface_bin import read_bin_pairs
from fiqa_ray.sources.known_sets import check_expected
from fiqa_ray.sources.pair_lines import read_pair_lines
from fiqa_ray.sources.protocols import (
    VerificationPairs,
    pair_rows,
    read_calfw_pairs,
    read_cplfw_pairs,
    read_lfw_pairs,
)


def fault(read: object, *args: object, **options: object) -> str:
    with pytest.raises(FiqaRayError) as info:
        read(*args, **options)  # type: ignore[operator]
    return str(info.value)


# --- AgeDB ------------------------------------------------------------------------------------------------------------

FOLDS = [  # name of both images and the label of AgeDB
    [("1_MariaCallas_35_f", "1_MariaCallas_5_f", 1), ("1_MariaCallas_40_f", "7_JohnWayne_9_m", -1)],
    [("7_JohnWayne_70_m", "9_AnnLee_20_f", -1), ("9_AnnLee_21_f", "9_AnnLee_61_f", 1)],
]


def write_agedb(path: Path, folds: list[list[tuple[str, str, int]]]) -> str:
    """Write a file as AgeDB's: a cell of structs, each with a 2 x n cell of structs (name, age) and 1 x n labels."""
    splits = np.empty((len(folds), 1), object)
    for f, fold in enumerate(folds):
        cells = np.empty((2, len(fold)), object)
        for k, pair in enumerate(fold):
            for side in range(2):
                cells[side, k] = {"name": pair[side], "age": int(pair[side].split("_")[-2])}
        splits[f, 0] = {"pairs": cells, "labels": np.array([[label for _, _, label in fold]])}
    savemat(path, {"splits": splits})
    return str(path)


def test_agedb_splits_are_folds(tmp_path: Path) -> None:
    pairs = read_agedb_pairs(write_agedb(tmp_path / "30.mat", FOLDS))
    rows = zip(pairs.image_id_a, pairs.image_id_b, pairs.mated.tolist(), pairs.fold.tolist(), strict=True)
    assert list(rows) == [
        ("1_MariaCallas_35_f.jpg", "1_MariaCallas_5_f.jpg", True, 0),
        ("1_MariaCallas_40_f.jpg", "7_JohnWayne_9_m.jpg", False, 0),
        ("7_JohnWayne_70_m.jpg", "9_AnnLee_20_f.jpg", False, 1),
        ("9_AnnLee_21_f.jpg", "9_AnnLee_61_f.jpg", True, 1),
    ]
    assert read_agedb_pairs(str(tmp_path / "30.mat"), extension=".png").image_id_b[1] == "7_JohnWayne_9_m.png"


def test_faulty_agedb_lists_are_named(tmp_path: Path) -> None:
    uri = str(tmp_path / "x.mat")
    savemat(uri, {"other": np.arange(3)})
    assert f"{uri}: not AgeDB's list of pairs (KeyError" in fault(read_agedb_pairs, uri)
    savemat(uri, {"splits": np.arange(3)})
    assert "not AgeDB's list of pairs" in fault(read_agedb_pairs, uri)
    (tmp_path / "x.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    assert "save it with -v7" in fault(read_agedb_pairs, uri)
    (tmp_path / "x.mat").write_bytes(b"no matrix at all")
    assert "not AgeDB's list of pairs" in fault(read_agedb_pairs, uri)
    assert "has the label 0; 1 or -1" in fault(
        read_agedb_pairs, write_agedb(tmp_path / "x.mat", [[("a_1_f", "b_2_m", 0)]])
    )
    assert "'../a_1_f' is not a plain name" in fault(
        read_agedb_pairs, write_agedb(tmp_path / "x.mat", [[("../a_1_f", "b_2_m", 1)]])
    )


# --- a line per pair --------------------------------------------------------------------------------------------------


def test_the_label_stands_last_or_first(tmp_path: Path) -> None:
    last, first = tmp_path / "agedb_30_pair.txt", tmp_path / "agedb_30_ann.txt"
    last.write_text("".join(f"{2 * i + 1:05d}.jpg {2 * i + 2:05d}.jpg {1 if i % 2 else -1}\n" for i in range(20)))
    first.write_text("".join(f"{i % 2} a/{2 * i + 1:05d}.jpg a/{2 * i + 2:05d}.jpg\n" for i in range(20)))
    for path, folder in ((last, ""), (first, "a/")):
        pairs = read_pair_lines(str(path))
        assert pairs.image_id_a.tolist() == [f"{folder}{2 * i + 1:05d}.jpg" for i in range(20)]
        assert pairs.image_id_b.tolist() == [f"{folder}{2 * i + 2:05d}.jpg" for i in range(20)]
        assert pairs.mated.tolist() == [i % 2 == 1 for i in range(20)]
        assert pairs.fold.tolist() == [i // 2 for i in range(20)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b 1\nc d\n", "line 2: 'c d': a line is '<image> <image> <label>'"),
        ("a b 1\nc d 2\n", "line 2: 'c d 2'"),
        ("a b yes\n", "line 1: 'a b yes'"),
        ("1 a b\n1 ../a b\n", "line 2: '1 ../a b': '../a' leads out of the folder"),
    ],
)
def test_faulty_lines_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "pairs.txt").write_text(text)
    assert words in fault(read_pair_lines, str(tmp_path / "pairs.txt"))


# --- what is known of published sets ----------------------------------------------------------------------------------


def lfw_list(n_each: int) -> str:
    """Return a list in LFW's grammar whose pairs name 7,701 images, as LFW's does."""
    lines = [f"10\t{n_each}"]
    image = 0
    for _ in range(10):
        for is_mated in (True, False):
            for _ in range(n_each):
                i, j = image % 7701 + 1, (image + 1) % 7701 + 1
                image += 2
                lines.append(f"A\t{i}\t{j}" if is_mated else f"A\t{i}\tA\t{j}")
    return "\n".join(lines) + "\n"


def test_expected_counts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(lfw_list(300))
    pairs = read_lfw_pairs(str(path))
    check_expected("lfw", pairs, str(path), are_images_merged=False)
    message = fault(check_expected, "xqlfw", pairs, str(path), are_images_merged=False)
    assert f"{path}: 7,701 distinct images, but xqlfw has 7,263 (pairs.expect: xqlfw)" in message
    check_expected("xqlfw", pairs, str(path), are_images_merged=True)
    assert "3,000 mated pairs, but cfp_fp has 3,500" in fault(
        check_expected, "cfp_fp", pairs, str(path), are_images_merged=True
    )
    path.write_text(lfw_list(299))
    assert "2,990 mated pairs, but lfw has 3,000" in fault(
        check_expected, "lfw", read_lfw_pairs(str(path)), str(path), are_images_merged=False
    )


def test_a_cplfw_list_is_no_calfw_list(tmp_path: Path) -> None:
    path = tmp_path / "pairs_CPLFW.txt"
    path.write_text("".join(f"A_{i}.jpg {int(i < 30)}\nB_{i}.jpg {int(i < 30)}\n" for i in range(60)))
    assert read_cplfw_pairs(str(path)).mated.sum() == 30
    assert "as in CPLFW's list" in fault(read_calfw_pairs, str(path))


@pytest.mark.skipif("FIQA_RAY_DATA" not in os.environ, reason="FIQA_RAY_DATA names a folder with published lists")
def test_the_real_lists_have_the_expected_counts() -> None:
    folder = f"{os.environ['FIQA_RAY_DATA']}/protocols"
    for name, file, read in (("lfw", "lfw_pairs.txt", read_lfw_pairs), ("cplfw", "pairs_CPLFW.txt", read_cplfw_pairs)):
        check_expected(name, read(f"{folder}/{file}"), file, are_images_merged=False)


def test_partial_copies_are_allowed_only_when_asked() -> None:
    a, b = (np.array(names, object) for names in (["x", "y", "z"], ["y", "gone", "x"]))
    pairs = VerificationPairs(a, b, np.array([True, False, True]), np.zeros(3, np.int64))
    where = {"list_uri": "pairs.txt", "source_uri": "faces"}
    ids = pa.array(["x", "y", "z"])
    assert "set pairs.allow_partial: true" in fault(pair_rows, pairs, ids, (), **where)
    rows = pair_rows(pairs, ids, (), **where, allow_partial=True)
    assert [r.tolist() for r in rows] == [[0, 1, 2], [1, -1, 0]]
    assert "image(s) of the pair list are not in faces" in fault(
        pair_rows, pairs, pa.array(["other"]), (), **where, allow_partial=True
    )


def test_bin_of_agedb_has_ten_folds(tmp_path: Path) -> None:
    images = [bytes([0xFF, 0xD8, i]) for i in range(40)]
    (tmp_path / "agedb_30.bin").write_bytes(pickle.dumps((images, [i % 2 == 0 for i in range(20)]), protocol=2))
    pairs = read_bin_pairs(str(tmp_path / "agedb_30.bin"))
    assert pairs.fold.tolist() == [i // 2 for i in range(20)]
