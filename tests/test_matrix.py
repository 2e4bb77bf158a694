"""The matrix of the paper, in its tiniest form: one job, cells that are made once, scores that are added later."""

import csv
import os
from pathlib import Path

import pytest
import yaml

from fiqa_ray.config import make_settings
from fiqa_ray.job import Job
from fiqa_ray.stages import STAGES, cells
from fiqa_ray.stages.evaluate import scorer_names
from fiqa_ray.storage import read_bytes
from fiqa_ray.synthetic.layouts import SETS, write_layouts
from fiqa_ray.tools.evaluate import evaluate_job
from fiqa_ray.tools.figures import write_figures
from fiqa_ray.tools.open_run import open_run
from fiqa_ray.tools.paper_tables import choose_point, read_results
from fiqa_ray.tools.run_job import run_job

JOB = Path(__file__).parents[1] / "fiqa_ray" / "jobs" / "paper_matrix.yaml"
BEFORE_REPORT = [stage for stage in STAGES if stage != "report"]
"""A page of this matrix has many figures; it is drawn once, at the end."""
TINY = {"name": "smoke:tiny", "label": "arcface"}


def tiny_matrix(root: Path) -> dict:
    """The shipped job with two small networks in place of three large ones, two methods of six, three sets of five."""
    write_layouts(root / "faces", n_people=5, n_views=4, n_pairs=60, train=(5, 4))
    values = yaml.safe_load(JOB.read_text().replace("runs/paper_matrix", str(root)))
    values["recognizer"] = TINY
    values["evaluate"]["recognizers"] = [TINY, {"name": "smoke:split", "label": "other"}]
    values["benchmarks"] = [b for b in values["benchmarks"] if b["name"] in ("lfw", "cplfw", "xqlfw")]
    values["evaluate"] |= {"draws": 4, "conventions": ["paper", "dasec"]}
    values["methods"] = [{"name": "embedding_norm", "label": "serfiq"}, {"name": "embedding_norm", "label": "magface"}]
    values["train"] = {"n_epochs": 1, "seeds": 2}
    values["compute"] = {"engine": "local", "train_workers": 0}
    return values


def made(root: Path, *kinds: str) -> dict[str, int]:
    """Every finished part of some kinds of datasets, with the time it was written."""
    parts = [p for kind in kinds for p in (root / "run" / kind).rglob("_part-*.json")]
    return {str(p): p.stat().st_mtime_ns for p in parts}


def _point(run_uri: str):
    results = read_results([run_uri])
    return results, choose_point(results, None, None, None)


@pytest.mark.slow
def test_a_killed_matrix_makes_only_what_lacks(tmp_path, monkeypatch, cli):
    values, n_written = tiny_matrix(tmp_path), 0
    write = cells.write_cell

    def killed(*arguments):
        nonlocal n_written
        n_written += 1
        if n_written > 31:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(cells, "write_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        run_job(make_settings(values), BEFORE_REPORT)
    first = made(tmp_path, "cells")
    assert len(first) == 31
    monkeypatch.setattr(cells, "write_cell", write)
    job = run_job(make_settings(values), BEFORE_REPORT)
    # three sets, two recognisers, two conventions; two methods with a prior and an optimized regressor, and random
    # numbers: 7 scores, of which xqlfw leaves out serfiq's three
    n_cells = 2 * 2 * (2 * 7 + 4)
    everything = made(tmp_path, "cells", "optimized_labels", "regressor", "comparisons", "quality_scores")
    assert len(made(tmp_path, "cells")) == n_cells
    assert {k: everything[k] for k in first} == first  # none of them was written again

    for benchmark in job.settings.benchmarks:  # known before there are results
        assert scorer_names(job, benchmark) == {s.key.scorer for s in job.scorers(benchmark)}

    rows = job.results().read_all(suffix=".auc.parquet").to_pylist()
    keys = {(r["benchmark"], r["recognizer"], r["scorer"], r["convention"], r["fmr"]) for r in rows}
    assert len(keys) == n_cells
    assert {r["variant"] for r in rows} == {"baseline", "unoptimized", "optimized", "random"}
    assert {(r["theta"], r["seed"]) for r in rows if r["variant"] == "optimized"} == {(0.1, 0)}
    excluded = job.results().read_all(suffix=".exclusions.parquet").to_pylist()
    assert [(r["benchmark"], r["method"]) for r in excluded] == [("xqlfw", "serfiq")]
    trained = [
        r for r in job.results().read_all(suffix=".differences.parquet").to_pylist() if r["family"] == "unoptimized"
    ]
    assert {r["n_seeds"] for r in trained} == {2}
    assert all(r["training_sd"] is not None for r in trained)

    names = write_figures(open_run(values["run_uri"]), *_point(values["run_uri"]), str(tmp_path / "figures"))
    # a figure of curves per set and recogniser, four further ones per set, Fig. 4, mean ranks
    assert len(names) == 3 * 2 + 3 * 4 + 1 + 1
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {f"{n}.{e}" for n in names for e in ("svg", "pdf")}

    # one score file more: its cells alone, two recognisers by two conventions
    names = job.faces("lfw").read_all(["image_id"])["image_id"].to_pylist()
    with open(tmp_path / "more.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "score"), *((name, i) for i, name in enumerate(names))])
    values["benchmarks"][0]["scores"] = {"more": str(tmp_path / "more.csv")}
    job = run_job(make_settings(values), BEFORE_REPORT, new_settings=True)
    after = made(tmp_path, "cells", "optimized_labels", "regressor", "comparisons", "quality_scores")
    assert {k: after[k] for k in everything} == everything
    assert len(after) == len(everything) + 4
    agreement = job.results().read_all(suffix=".rankings.parquet").to_pylist()
    assert len(agreement) == 3 * 2  # paper with dasec
    assert {r["n_scorers"] for r in agreement if r["benchmark"] == "lfw"} == {7}
    assert all(-1 <= r["tau"] <= 1 for r in agreement if r["tau"] is not None)

    # a further rate and a further method: theirs alone; the regressors and labels of the others stay
    values["evaluate"]["fmr"] = [0.1, 0.2]
    run_job(make_settings(values), BEFORE_REPORT, new_settings=True)
    assert len(made(tmp_path, "cells")) == 2 * (n_cells + 4)
    labels = made(tmp_path, "optimized_labels", "regressor")
    values["methods"].append({"name": "embedding_norm", "label": "third"})
    run_job(make_settings(values), ["pack", "embed", "score", "pair", "rank", "optimize", "train"], new_settings=True)
    after = made(tmp_path, "optimized_labels", "regressor")
    assert {k: after[k] for k in labels} == labels
    assert len(after) > len(labels)

    # judged again without training: the cells of methods and files are there
    n_before = len(made(tmp_path, "cells"))
    del values["methods"][2]
    untrained = make_settings({k: v for k, v in values.items() if k != "source"}, with_training=False)
    judged, _ = evaluate_job(untrained, new_settings=True)
    assert "magface" in read_bytes(judged.report().at("report.html")).decode()
    assert len(made(tmp_path, "cells")) == n_before
    scorers = {r["scorer"] for r in judged.results().read_all(suffix=".auc.parquet").to_pylist()}
    assert scorers == {"serfiq", "magface", "more", "random"}


def test_the_shipped_matrix_has_the_papers_shape(tmp_path):
    text = JOB.read_text()
    assert len(text.splitlines()) <= 45
    settings = make_settings(yaml.safe_load(text))
    job = Job(settings)
    assert (len(settings.methods), len(job.judges), [b.name for b in settings.benchmarks]) == (
        6, 3, ["lfw", "cfp_fp", "cplfw", "calfw", "xqlfw"],
    )  # fmt: skip
    # Tables I to III: baseline, unoptimized and optimized scores of each cell; serfiq is not judged on xqlfw
    n_cells = sum(
        len([s for s in job.scorers(b) if s.key.variant in ("baseline", "optimized")]) for b in settings.benchmarks
    )
    assert n_cells == 2 * (5 * 6 - 1)
    write_layouts(tmp_path / "faces", n_people=3, n_views=2, n_pairs=10, train=(3, 2))
    assert {p.name for p in (tmp_path / "faces").iterdir()} == {"train", *SETS}


@pytest.mark.slow
def test_evaluate_needs_scores_and_says_so(tmp_path, cli):
    write_layouts(tmp_path / "faces", n_people=3, n_views=2, n_pairs=10, train=(3, 2))
    job = {
        "name": "judged",
        "run_uri": str(tmp_path / "run"),
        "recognizer": TINY,
        "benchmarks": [
            {
                "name": "lfw",
                "source": {"kind": "folder", "uri": str(tmp_path / "faces" / "lfw")},
                "pairs": {"kind": "lfw", "uri": str(tmp_path / "faces" / "lfw" / "pairs.txt"), "extension": ".png"},
            }
        ],
        "evaluate": {"fmr": 0.1, "draws": 0, "conventions": ["paper", "nist", {"name": "mine", "pool": "images"}]},
        "compute": {"engine": "local"},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    code, _, err = cli("evaluate", path)
    assert (code, "lfw has no score to judge; give methods, or files in its scores" in err) == (2, True)
    code, _, err = cli("run", path)
    assert (code, "source: is missing" in err, "methods: is missing" in err) == (2, True, True)
    # scores as XQLFW's authors write them, of which smaller ones are better
    lines = ["ID Num Score"]
    for image in sorted((tmp_path / "faces" / "lfw").rglob("*.png")):
        person, number = image.stem.rsplit("_", 1)
        lines.append(f"{person} {int(number)} {int(number) / 10}")
    (tmp_path / "scores.txt").write_text("\n".join(lines) + "\n")
    scores = {"uri": str(tmp_path / "scores.txt"), "higher_is_better": False, "key_rule": ["ending"]}
    job["benchmarks"][0]["scores"] = {"mine": scores}
    path.write_text(yaml.safe_dump(job))
    code, _, err = cli("evaluate", path)
    assert (code, "3 / 10, the number of non-mated pairs" in err) == (2, True)
    code, out, err = cli("evaluate", path, "evaluate.allow_rare_fmr=true")
    assert code == 0, err
    assert "arcface, convention paper, FMR 0.1" in out
    assert "arcface, convention nist" in out
    assert "evaluate: 6 of 6 cells to make" in err
    assert os.path.exists(out.split("report: ")[1].strip())
