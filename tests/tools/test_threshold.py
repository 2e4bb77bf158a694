"""`fiqa-ray threshold`: tables in, a threshold and its check out."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

N_PERSONS = 200


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Pairs of 200 persons with five images each; a mated pair fails where its worse image is below -0.5."""
    folder = tmp_path_factory.mktemp("threshold")
    rng = np.random.default_rng(0)
    quality = rng.normal(size=5 * N_PERSONS)
    scores = {f"p{i // 5}/{i}.jpg": float(q) for i, q in enumerate(quality)}
    with open(folder / "scores.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "score"), *scores.items()])
    names, rows = list(scores), []
    for i in range(5 * N_PERSONS):
        j = i // 5 * 5 + (i + 1) % 5
        similarity = 0.9 if min(quality[i], quality[j]) >= -0.5 else 0.05
        rows.append((names[i], names[j], "true", similarity, quality[i], quality[j]))
        k = (i + 5 * int(rng.integers(1, N_PERSONS))) % len(names)
        rows.append((names[i], names[k], "False", 0.1 + 0.0001 * i, quality[i], quality[k]))
    columns = ("image_id_a", "image_id_b", "mated", "similarity", "quality_a", "quality_b")
    table = pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, folder / "pairs.parquet")
    with open(folder / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder, quality


def test_a_threshold_of_a_target_rate(tables, cli) -> None:
    folder, quality = tables
    code, out, _ = cli(
        "threshold", folder / "pairs.csv", "--scores", folder / "scores.csv", "--fnmr", 0.02, "--fmr", 0.01, "--json"
    )
    assert code == 0
    report = json.loads(out)
    i = np.arange(len(quality))
    mated = np.minimum(quality, quality[i // 5 * 5 + (i + 1) % 5])
    expected = min(q for q in mated if np.mean(mated[mated >= q] < -0.5) <= 0.02)
    assert report["choice"]["threshold"] == expected
    assert report["choice"]["fnmr_before"] == pytest.approx(np.mean(mated < -0.5))
    assert report["choice"]["reject_rate"] == pytest.approx(np.mean(quality < expected))
    assert report["choice"]["n_persons"] == N_PERSONS
    assert report["fmr"] == pytest.approx(0.01)
    assert report["similarity_threshold"] == pytest.approx(0.1 + 0.0001 * 989)
    low, high = report["half"]["fnmr_interval"]
    assert low <= report["held_out_fnmr"] <= high
    plain = cli("threshold", folder / "pairs.parquet", "--fnmr", 0.02, "--fmr", 0.01)  # qualities in the table
    assert plain[0] == 0
    assert f"below {expected:.6g} " in plain[1]
    assert "on the other half" in plain[1]


def test_a_threshold_of_a_reject_rate(tables, cli) -> None:
    folder, quality = tables
    pairs = folder / "pairs.parquet"
    report = json.loads(
        cli("threshold", pairs, "--reject", 0.3, "--similarity-threshold", 0.5, "--draws", 50, "--json")[1]
    )
    assert report["choice"]["threshold"] == np.sort(quality)[300]
    assert report["choice"]["reject_rate"] == 0.3
    assert report["fmr"] == 0


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("image_id_a,image_id_b,mated\na,b,1\n", (), "no column similarity, quality_a"),
        ("image_id_a,image_id_b,mated,similarity\na,b,1,0.5\n", (), "no column quality_a, quality_b"),
        ("image_id_a,image_id_b,mated,similarity,quality_a,quality_b\na,b,yes,0.5,1,2\n", (), "line 2: mated is 'yes'"),
        ("image_id_a,image_id_b,mated,similarity,quality_a,quality_b\na,b,1,,1,2\n", (), "line 2: similarity is empty"),
        (
            "image_id_a,image_id_b,mated,similarity,quality_a,quality_b\na,b,1,0.5,1,2\na,c,0,0.4,3,2\n", (),
            "line 2: a has two qualities",
        ),
        ("image_id_a,image_id_b,mated,similarity,quality_a,quality_b\na,b,1,0.5,1,2\n", (), "both kinds are needed"),
        ("image_id_a,image_id_b,mated,similarity,quality_a,quality_b\na,b,1,0.5,1,2\n", ("--reject", 0.1), "give either"),
    ],
)  # fmt: skip
def test_faulty_tables_are_named(tmp_path, cli, text, options, words) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    code, _, err = cli("threshold", tmp_path / "pairs.csv", "--fnmr", 0.01, *options)
    assert code in (1, 2)
    assert words in err
