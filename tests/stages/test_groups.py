"""Groups of people: each figure from the pairs of the group alone, which a job on those pairs gives too."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from fiqa_ray.errors import UsageError
from fiqa_ray.synthetic.layouts import write_layouts
from fiqa_ray.tools.open_run import open_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("groups")
    write_layouts(root / "faces", n_people=12, n_views=2, n_pairs=40, train=(2, 1))
    return root


def judge(root, name: str, pairs: str, **benchmark) -> dict:
    images = sorted(p.relative_to(root / "faces" / "lfw").as_posix() for p in (root / "faces" / "lfw").rglob("*.png"))
    rng = np.random.default_rng(0)
    with open(root / "scores.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "score"), *((image, rng.uniform()) for image in images)])
    job = {
        "name": name,
        "run_uri": str(root / name),
        "recognizer": {"name": "smoke:tiny", "label": "tiny"},
        "benchmarks": [
            {
                "name": "lfw",
                "source": {"kind": "folder", "uri": str(root / "faces" / "lfw")},
                "pairs": {"kind": "table", "uri": str(root / pairs)},
                "scores": {"mine": str(root / "scores.csv")},
                **benchmark,
            }
        ],
        "evaluate": {"fmr": 0.3, "draws": 20, "conventions": ["paper"]},
        "compute": {"engine": "local"},
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(job))
    return job


def write_pairs(root, name: str, rows: list[tuple], columns: tuple[str, ...]) -> None:
    with open(root / name, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.mark.slow
def test_a_group_equals_a_job_on_its_pairs_alone(root, cli) -> None:
    people = sorted(p.name for p in (root / "faces" / "lfw").iterdir() if p.is_dir())
    group_of = {person: "east" if i < 6 else "west" for i, person in enumerate(people)}
    images = {p: sorted(i.relative_to(root / "faces" / "lfw").as_posix() for i in (root / "faces" / "lfw" / p).iterdir())
              for p in people}  # fmt: skip
    rows = []
    for i, person in enumerate(people):
        rows += [(images[person][a], images[person][b], 1) for a, b in ((0, 1), (0, 2), (1, 3))]
        for step in (1, 2, 3, 7):
            rows.append((images[person][0], images[people[(i + step) % 12]][1], 0))
    groups = [{group_of[name.split("/")[0]] for name in row[:2]} for row in rows]
    columns = ("image_id_a", "image_id_b", "mated")
    write_pairs(root, "all.csv", rows, columns)
    east = [row for row, group in zip(rows, groups, strict=True) if group == {"east"}]
    write_pairs(root, "east.csv", east, columns)
    named = [(*row, group.pop() if len(group) == 1 else "") for row, group in zip(rows, groups, strict=True)]
    write_pairs(root, "named.csv", named, (*columns, "group"))
    write_pairs(root, "groups.csv", [(i, group_of[p]) for p in people for i in images[p]], ("image_id", "group"))

    judge(root, "by_faces", "all.csv", groups=str(root / "groups.csv"))
    judge(root, "by_pairs", "named.csv")
    judge(root, "alone", "east.csv")
    for name in ("by_faces", "by_pairs", "alone"):
        code, _, err = cli("evaluate", root / f"{name}.yaml")
        assert code == 0, err
    runs = {name: open_run(str(root / name)) for name in ("by_faces", "by_pairs", "alone")}
    for table in ("auc", "edc", "differences", "verification"):
        of_groups = runs["by_faces"].result_table(f"group_{table}").to_pylist()
        assert of_groups == runs["by_pairs"].result_table(f"group_{table}").to_pylist()
        expected = runs["alone"].result_table(table).to_pylist()
        assert [r for r in of_groups if r["benchmark"] == "lfw: east"] == [
            {**r, "benchmark": "lfw: east"} for r in expected
        ]
    # one threshold for all: the errors of both groups and of the pairs between them are all errors
    rates = {r["group"]: r for r in runs["by_faces"].result_table("group_rates").to_pylist()}
    pairs = runs["by_faces"].comparisons("lfw", "tiny")
    similarity, mated = pairs["similarity"].to_numpy(), pairs["mated"].to_numpy(zero_copy_only=False)
    threshold = rates["east"]["threshold"]
    assert threshold == rates["west"]["threshold"]
    for group, rate in rates.items():
        of_group = np.array(pairs["group"].to_pylist()) == group
        assert rate["fnmr"] == np.mean(similarity[of_group & mated] <= threshold)
        assert rate["fmr"] == np.mean(similarity[of_group & ~mated] > threshold)
        assert rate["fmr_low"] <= rate["fmr"] <= rate["fmr_high"]
    # a run of all pairs is the same with and without groups
    with pytest.raises(UsageError, match=r"the results have no such table; choose one of .*auc.*group_rates"):
        runs["by_faces"].result_table("thetas")
    whole = runs["by_faces"].result_table("auc").to_pylist()
    assert {r["benchmark"] for r in whole} == {"lfw"}
    assert {r["n_mated"] for r in whole} == {36}
    code, out, err = cli("tables", root / "by_faces", "-o", root / "tables")
    assert (code, "groups-1" in out, "group-rates" in out) == (0, True, True), err
    assert "lfw: east" in (root / "tables" / "groups-1.md").read_text()
    assert "within a group" in (root / "tables" / "group-rates.md").read_text()
    code, out, err = cli("figures", root / "by_faces", "-o", root / "figures")
    assert (code, "edc-lfw-east-tiny" in out) == (0, True), err
    assert "Groups of people" in Path(runs["by_faces"].report).read_text()


@pytest.mark.slow
def test_groups_that_cannot_be_judged_are_refused(root, cli) -> None:
    people = sorted(p.name for p in (root / "faces" / "lfw").iterdir() if p.is_dir())
    names = [f"{p}/{p}_{k:04d}.png" for p in people for k in (1, 2)]
    rows = [(names[2 * i], names[2 * i + 1], 1, "a") for i in range(12)]
    rows += [(names[2 * i], names[(2 * i + 3) % 24], 0, "a" if i else "b") for i in range(12)]
    write_pairs(root, "poor.csv", rows, ("image_id_a", "image_id_b", "mated", "group"))
    judge(root, "poor", "poor.csv")
    code, _, err = cli("evaluate", root / "poor.yaml")
    assert (code, "lfw, group b: 0 mated and 1 non-mated pairs" in err) == (2, True), err
    write_pairs(root, "foreign.csv", [("x.png", "a")], ("image_id", "group"))
    judge(root, "foreign", "poor.csv", groups=str(root / "foreign.csv"))
    code, _, err = cli("evaluate", root / "foreign.yaml")
    assert (code, "none of its images is in the benchmark" in err) == (1, True), err
