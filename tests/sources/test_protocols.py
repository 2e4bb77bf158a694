from pathlib import Path

import numpy as np
import pytest

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.protocols import (
    VerificationPairs,
    read_calfw_pairs,
    read_cfp_pairs,
    read_cplfw_pairs,
    read_lfw_pairs,
    read_pairs_table,
)


def as_tuples(pairs: VerificationPairs) -> list[tuple[str, str, bool, int]]:
    assert pairs.mated.dtype == np.bool_
    assert pairs.fold.dtype == np.int64
    assert len(pairs) == len(pairs.image_id_a) == len(pairs.image_id_b) == len(pairs.fold)
    return list(zip(pairs.image_id_a, pairs.image_id_b, pairs.mated.tolist(), pairs.fold.tolist(), strict=True))


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


def fault(read: object, *args: object) -> str:
    with pytest.raises(FiqaRayError) as info:
        read(*args)  # type: ignore[operator]
    return str(info.value)


# --- LFW --------------------------------------------------------------------------------------------------------------

LFW = "2\t2\nAnn_Lee\t1\t4\nBo\t10\t2\nAnn_Lee\t2\tBo\t1\nBo\t3\tAl-Q\t0007\n"
LFW += "Cy\t1\t2\nCy\t1\t3\nCy\t1\tDi\t1\nDi\t2\tCy\t9\n"
LFW_PAIRS = [
    ("Ann_Lee/Ann_Lee_0001.jpg", "Ann_Lee/Ann_Lee_0004.jpg", True, 0),
    ("Bo/Bo_0010.jpg", "Bo/Bo_0002.jpg", True, 0),
    ("Ann_Lee/Ann_Lee_0002.jpg", "Bo/Bo_0001.jpg", False, 0),
    ("Bo/Bo_0003.jpg", "Al-Q/Al-Q_0007.jpg", False, 0),
    ("Cy/Cy_0001.jpg", "Cy/Cy_0002.jpg", True, 1),
    ("Cy/Cy_0001.jpg", "Cy/Cy_0003.jpg", True, 1),
    ("Cy/Cy_0001.jpg", "Di/Di_0001.jpg", False, 1),
    ("Di/Di_0002.jpg", "Cy/Cy_0009.jpg", False, 1),
]


@pytest.mark.parametrize(
    "text", [LFW, LFW.replace("\t", "  "), LFW.replace("\n", "\r\n"), "\ufeff" + LFW + "\n\n"], ids=range(4)
)
def test_lfw_grammar_in_its_spellings(tmp_path: Path, text: str) -> None:
    assert as_tuples(read_lfw_pairs(write(tmp_path / "pairs.txt", text))) == LFW_PAIRS


def test_lfw_view_1_and_extension(tmp_path: Path) -> None:
    uri = write(tmp_path / "pairsDevTest.txt", "1\nAnn 1 4\nAnn 2 Bo 1\n")
    assert as_tuples(read_lfw_pairs(uri, extension=".png")) == [
        ("Ann/Ann_0001.png", "Ann/Ann_0004.png", True, 0),
        ("Ann/Ann_0002.png", "Bo/Bo_0001.png", False, 0),
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("2\t2\n", "", "line 1: 'Ann_Lee\\t1\\t4': the first line must be"),
        ("2\t2\n", "10\t300\n", "8 pairs, but its first line '10\\t300' announces 6000"),
        ("Cy\t1\t2\n", "", "7 pairs"),
        ("Bo\t10\t2", "Bo\t10", "line 3: 'Bo\\t10': a pair is"),
        ("Bo\t10\t2", "Bo\tten\t2", "line 3: 'Bo\\tten\\t2'"),
        ("Bo\t10\t2", "Bo\t10\tCy\t2", "line 3: 'Bo\\t10\\tCy\\t2': each fold has 2 lines 'name i j', then 2"),
        ("Bo\t10\t2", "../Bo\t10\t2", "line 3: '../Bo\\t10\\t2': '../Bo' is not a plain name"),
    ],
)
def test_lfw_faults_are_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    uri = write(tmp_path / "pairs.txt", LFW.replace(old, new))
    message = fault(read_lfw_pairs, uri)
    assert words in message
    assert uri in message


def test_missing_empty_and_binary_lists_are_named(tmp_path: Path) -> None:
    assert "not found" in fault(read_lfw_pairs, str(tmp_path / "none.txt"))
    assert "is empty" in fault(read_cplfw_pairs, write(tmp_path / "empty.txt", "\n \n"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in fault(read_calfw_pairs, str(tmp_path / "binary.txt"))


# --- CPLFW, CALFW -----------------------------------------------------------------------------------------------------


def two_lines(labels: list[int]) -> str:
    return "".join(f"A_{i}.jpg {label}\nB_{i}.jpg {label}\n" for i, label in enumerate(labels))


@pytest.mark.parametrize("header", ["", "name same_person\n", "name\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cplfw_folds_are_tenths_of_each_kind(tmp_path: Path, header: str, end: str) -> None:
    text = (header + two_lines([1] * 30 + [0] * 20)).replace("\n", end)
    pairs = read_cplfw_pairs(write(tmp_path / "pairs_CPLFW.txt", text))
    expected = [(f"A_{i}.jpg", f"B_{i}.jpg", i < 30, i // 3 if i < 30 else (i - 30) // 2) for i in range(50)]
    assert as_tuples(pairs) == expected


def test_calfw_tokens_are_the_folds_of_mated_pairs(tmp_path: Path) -> None:
    tokens = [fold for fold in range(1, 11) for _ in range(3)]
    pairs = read_calfw_pairs(write(tmp_path / "pairs_CALFW.txt", two_lines(tokens + [0] * 30)))
    assert pairs.mated.sum() == 30  # not only those of token 1
    assert pairs.fold.tolist() == [i // 3 for i in range(30)] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (two_lines([1, 0]) + "C_1.jpg 0\n", "5 image lines"),
        ("name same\n", "0 image lines"),
        ("A_1.jpg 1\nA_2.jpg 0\n", "line 2: 'A_2.jpg 0': its label differs from the line above ('A_1.jpg 1')"),
        ("A_1.jpg 1\nA_2.jpg one\n", "line 2: 'A_2.jpg one'"),
        ("A_1.jpg 2\nA_2.jpg 2\n", "line 1: 'A_1.jpg 2': a line is '<image> <label>' with a label from 0 to 1"),
        ("A_1.jpg 1\n../A_2.jpg 1\n", "not a plain name"),
    ],
)
def test_cplfw_faults_are_named(tmp_path: Path, text: str, words: str) -> None:
    assert words in fault(read_cplfw_pairs, write(tmp_path / "pairs.txt", text))


# --- CFP --------------------------------------------------------------------------------------------------------------


def make_cfp(root: Path, people: int = 3) -> str:
    """People with ten frontal and four profile images, as in CFP; folds 1, 2 and 10 in folders 01, 02, 10."""
    for kind, name, count in (("F", "frontal", 10), ("P", "profile", 4)):
        files = [
            f"../Data/Images/{p:03d}/{name}/{n:02d}.jpg" for p in range(1, people + 1) for n in range(1, count + 1)
        ]
        write(root / f"Protocol/Pair_list_{kind}.txt", "".join(f"{i} {f}\n" for i, f in enumerate(files, 1)))
    for fold, folder in enumerate(("01", "02", "10")):
        first_f, first_p = fold * 10, fold * 4
        other_f, other_p = (fold + 1) % 3 * 10, (fold + 1) % 3 * 4
        split = root / "Protocol/Split"
        write(split / "FP" / folder / "same.txt", f"{first_f + 1},{first_p + 4}\n{first_f + 10},{first_p + 1}\n")
        write(split / "FP" / folder / "diff.txt", f"{first_f + 2},{other_p + 1}\n")
        write(split / "FF" / folder / "same.txt", f"{first_f + 3},{first_f + 4}\n")
        write(split / "FF" / folder / "diff.txt", f"{first_f + 5},{other_f + 6}\n")
    return str(root)


def test_cfp_frontal_profile(tmp_path: Path) -> None:
    expected = []
    for fold, (person, other) in enumerate([("001", "002"), ("002", "003"), ("003", "001")]):
        expected += [
            (f"{person}/frontal/01.jpg", f"{person}/profile/04.jpg", True, fold),
            (f"{person}/frontal/10.jpg", f"{person}/profile/01.jpg", True, fold),
            (f"{person}/frontal/02.jpg", f"{other}/profile/01.jpg", False, fold),
        ]
    assert as_tuples(read_cfp_pairs(make_cfp(tmp_path))) == expected


def test_cfp_frontal_frontal(tmp_path: Path) -> None:
    pairs = as_tuples(read_cfp_pairs(make_cfp(tmp_path), "FF"))
    assert pairs[:3] == [
        ("001/frontal/03.jpg", "001/frontal/04.jpg", True, 0),
        ("001/frontal/05.jpg", "002/frontal/06.jpg", False, 0),
        ("002/frontal/03.jpg", "002/frontal/04.jpg", True, 1),
    ]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("Split/FP/02/same.txt", "1,2\n0,1\n", "same.txt, line 2: '0,1': image 0 is not in the list of 30 images"),
        ("Split/FP/02/same.txt", "1,13\n", "image 13 is not in the list of 12 images"),
        ("Split/FP/02/diff.txt", "1 2\n", "diff.txt, line 1: '1 2': a pair is two image numbers with a comma"),
        ("Pair_list_F.txt", "1 ../Data/Images/../../x.jpg\n", "Pair_list_F.txt, line 1"),
        ("Pair_list_P.txt", "001/profile/01.jpg\n", "an image is '<number> ../Data/Images/<path>'"),
    ],
)
def test_cfp_faults_are_named(tmp_path: Path, file: str, text: str, words: str) -> None:
    root = make_cfp(tmp_path)
    write(tmp_path / "Protocol" / file, text)
    assert words in fault(read_cfp_pairs, root)


def test_cfp_that_is_elsewhere_or_another_part_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/Protocol/Pair_list_F.txt: not found" in fault(read_cfp_pairs, str(tmp_path))
    assert "use 'FP'" in fault(read_cfp_pairs, make_cfp(tmp_path), "PP")


# --- tables -----------------------------------------------------------------------------------------------------------


def test_pairs_table_with_and_without_folds(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.csv", 'mated,image_id_b,image_id_a,note\n1,"p, q/2.jpg",001,x\nFalse,c,NA,y\n')
    assert as_tuples(read_pairs_table(uri)) == [("001", "p, q/2.jpg", True, -1), ("NA", "c", False, -1)]
    uri = write(tmp_path / "b.csv", "image_id_a,image_id_b,mated,fold\na,b,true,3\na,c,0,0\n")
    assert as_tuples(read_pairs_table(uri)) == [("a", "b", True, 3), ("a", "c", False, 0)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,mated\nx,y,1\n", "no column image_id_a, image_id_b (found: a, b, mated)"),
        ("image_id_a,image_id_b,mated\n", "no pairs"),
        ("image_id_a,image_id_b,mated\na,b,1\na,b,maybe\n", "line 3: 'maybe': the column mated must be 1 or 0"),
        ("image_id_a,image_id_b,mated\na,,1\n", "line 2: '': the column image_id_b must be an image id"),
        ("image_id_a,image_id_b,mated,fold\na,b,1,-2\n", "line 2: '-2': the column fold must be an integer from 0"),
        ("image_id_a,image_id_b,mated\na,b,1\na,b\n", "Row #3: Expected 3 columns, got 2"),
        ("", "Empty CSV file"),
    ],
)
def test_faulty_pairs_tables_are_named(tmp_path: Path, text: str, words: str) -> None:
    uri = write(tmp_path / "pairs.csv", text)
    message = fault(read_pairs_table, uri)
    assert words in message
    assert uri in message
