"""The results of a run as tables and files: what they hold, and that other programs read them."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

import smoke
from fiqa_ray.cli import main
from fiqa_ray.config import load_settings
from fiqa_ray.datasets.results import ThetaRow, table_of
from fiqa_ray.documents import write_document
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.job import Job
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.sources.command_line import list_images
from fiqa_ray.tools.explain import explain_image
from fiqa_ray.tools.figures import _labels
from fiqa_ray.tools.open_run import Run, open_run
from fiqa_ray.tools.run_job import run_job
from fiqa_ray.tools.score import read_crops

THETAS = (0.05, 0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished job of 20 faces, one of them no image; its score file is gone since."""
    folder = tmp_path_factory.mktemp("run")
    faces = smoke.make_faces(folder / "faces", n_identities=4, per_identity=5)
    (faces / "train" / "p01" / "002.jpg").write_bytes(b"no image")
    shutil.copy(faces / "scores.csv", folder / "truth.csv")
    changes = {
        "methods": [{"name": "embedding_norm"}, {"name": "truth", "scores": {"uri": f"{folder}/truth.csv"}}],
        "pair": {"n_clusters": 3, "n_repeats": 2},
        "optimize": {"theta": list(THETAS), "index_scale": "normalized"},
        "train": {"n_epochs": 1},
        "evaluate": {"fmr": 0.1, "draws": 0},
        "max_bad_fraction": 0.2,
        "compute": {"engine": "local", "rows_per_part": 8, "train_workers": 0},
    }
    path = smoke.write_job(folder / "job.yaml", faces, str(folder / "run"), **changes)
    run_job(load_settings(path))
    return folder


@pytest.mark.slow
def test_labels_name_their_images(run):
    (run / "truth.csv").rename(run / "elsewhere.csv")  # what a run was made from need not be there
    labels = open_run(str(run / "run")).labels()
    (run / "elsewhere.csv").rename(run / "truth.csv")
    assert labels.column_names == ["image_id", "identity", "method", "variant", "theta", "chosen", "prior", "label"]
    names = sorted(str(p.relative_to(run / "faces" / "train")) for p in (run / "faces" / "train").rglob("*.jpg"))
    with open(run / "truth.csv", newline="") as file:
        truth = {row["image_id"]: float(row["score"]) for row in csv.DictReader(file)}
    for theta in THETAS:
        rows = [r for r in labels.to_pylist() if (r["method"], r["theta"]) == ("truth", theta)]
        assert [r["image_id"] for r in rows] == names
        assert all(r["identity"] == r["image_id"][:3] for r in rows)
        good = [r for r in rows if r["image_id"] != "p01/002.jpg"]
        assert {r["image_id"]: r["prior"] for r in good} == {n: truth[n] for n in names if n != "p01/002.jpg"}
        assert [(r["prior"], r["label"]) for r in rows if r not in good] == [(None, None)]
        # labels are the prior scores, scaled to [0, 1], in another order
        prior = np.sort([r["prior"] for r in good])
        expected = (prior - prior[0]) / (prior[-1] - prior[0])
        np.testing.assert_allclose(np.sort([r["label"] for r in good]), expected, rtol=1e-6)
    assert len(labels) == 2 * 2 * 20
    assert set(open_run(str(run / "run")).labels([THETAS[1]])["theta"].to_pylist()) == {THETAS[1]}
    with pytest.raises(UsageError, match=r"has no labels of theta heldout; choose from 0.05, 0.3"):
        open_run(str(run / "run")).labels(["heldout"])


def test_pairs_are_those_of_the_arrays(run):
    from fiqa_ray.core.pairs import mated_pairs

    results = open_run(str(run / "run"))
    table = results.embeddings("train").to_pandas()
    good = table[table["status"] == "ok"]
    sizes = good["identity"].value_counts(sort=False)
    expected = mated_pairs(
        np.stack(good["embedding"]), np.concatenate([[0], np.cumsum(sizes)]), np.arange(4),
        n_clusters=3, n_repeats=2, seed=3,
    )  # fmt: skip
    names = good["image_id"].to_numpy()
    for repeat, pairs in enumerate(expected):
        stored = results.pairs(repeat).to_pandas()
        assert stored["image_id"].tolist() == names[pairs.image].tolist()
        assert stored["mate_id"].tolist() == names[pairs.mate].tolist()
        np.testing.assert_array_equal(stored["similarity"], pairs.similarity)
        assert (stored["image_id"].str[:3] == stored["mate_id"].str[:3]).all()
    with pytest.raises(UsageError, match=r"repeat=2: .* has repeats 0 to 1"):
        results.pairs(2)


def test_a_run_names_its_regressors_and_its_report(run, cli, tmp_path):
    uri = str(run / "run")
    names = open_run(uri).regressors()
    assert len(names) == 2 * 3
    assert all((Path(folder) / "card.json").is_file() for folder in names.values())
    code, _, err = cli("score", run / "faces" / "train", "--model", uri)
    assert code == 2
    assert f"{uri} is a run with 6 regressors" in err
    assert all(f"{folder}   {name}" in err for name, folder in names.items())
    code, _, _ = cli("report", uri, "-o", tmp_path / "page.html")
    assert code == 0
    assert (tmp_path / "page.html").read_bytes() == Path(open_run(uri).report).read_bytes()
    assert cli("report", uri, "evaluate.fmr=0.2")[0] == 2


def test_scores_and_embeddings(run):
    results = open_run(str(run / "run"))
    scores = results.scores("train").to_pandas()
    assert set(scores["method"]) == {"embedding_norm", "truth"}
    bench = results.scores("bench").to_pandas()
    assert set(bench["method"]) == {
        "embedding_norm",
        *(f"{m}, regressor on prior labels" for m in ("embedding_norm", "truth")),
        *(f"{m}, regressor on optimized labels (theta {t})" for m in ("embedding_norm", "truth") for t in THETAS),
    }
    assert len(results.scores()) == len(scores) + len(bench)

    table = results.embeddings()
    names = table["image_id"].to_pylist()
    good = [n for n in names if n != "p01/002.jpg"]
    crops = read_crops(list_images([str(run / "faces" / "train" / n) for n in good]))
    expected = dict(zip(good, load_recognizer("smoke:tiny")(crops_tensor(crops)).numpy(), strict=True))
    norms = {r.image_id: r.score for r in scores[scores["method"] == "embedding_norm"].itertuples()}
    for name, identity, embedding, status in zip(*(c.to_pylist() for c in table.columns), strict=True):
        assert identity == name[:3]
        if name == "p01/002.jpg":
            assert (embedding, status) == (None, "unreadable")
        else:
            np.testing.assert_allclose(embedding, expected[name], rtol=1e-4, atol=1e-5)
            assert norms[name] == pytest.approx(np.linalg.norm(embedding), rel=1e-5)
    assert len(results.embeddings("bench")) == 36
    areas = results.areas().to_pandas()
    assert set(areas["benchmark"]) == {"bench"}
    assert areas["auc"].between(0, 1).any()
    assert repr(results) == (f"<Run {run / 'run'}: methods embedding_norm, truth; theta 0.05, 0.3; sets train, bench>")


def crops_tensor(crops):
    import torch

    return torch.from_numpy(crops)


def test_other_programs_read_the_stored_tables_in_one_call(run):
    """The records beside the parts are in nobody's way."""
    labels = open_run(str(run / "run")).labels().to_pandas()
    wanted = sorted(zip(labels["image_id"], labels["label"].fillna(-1), strict=True))
    folder = run / "run" / "optimized_labels"
    by_pandas = pd.read_parquet(folder)
    by_duckdb = duckdb.sql(f"SELECT * FROM '{folder}/**/*.parquet'").df()
    by_polars = pl.read_parquet(f"{folder}/**/*.parquet").to_pandas()
    for frame in (by_pandas, by_duckdb, by_polars):
        assert sorted(zip(frame["image_id"], frame["label"].fillna(-1), strict=True)) == wanted
    assert sorted({float(t) for t in by_pandas["theta"]}) == sorted({float(t) for t in by_duckdb["theta"]}) == [*THETAS]

    table = open_run(str(run / "run")).embeddings()
    wanted = sorted(np.array(e, "<f4").tobytes() for e in table["embedding"].to_pylist() if e is not None)
    folder = run / "run" / "embeddings" / "set=train"
    by_pandas = pd.read_parquet(folder)["embedding"]
    by_duckdb = duckdb.sql(f"SELECT embedding FROM '{folder}/**/*.parquet'").df()["embedding"]
    by_polars = pl.read_parquet(f"{folder}/**/*.parquet")["embedding"]
    for column in (by_pandas, by_duckdb, by_polars):
        assert sorted(bytes(v) for v in column.to_list() if isinstance(v, bytes | bytearray)) == wanted


def test_commands_write_files(run, tmp_path, capsys):
    uri = str(run / "run")
    for argv in (
        ["labels", uri, "-o", f"{tmp_path}/labels.csv"],
        ["labels", uri, "-o", f"{tmp_path}/labels.parquet"],
        ["scores", uri, "-o", f"{tmp_path}/scores.csv", "--set", "train"],
        ["embeddings", uri, "-o", f"{tmp_path}/e.parquet"],
        ["embeddings", uri, "-o", f"{tmp_path}/e.npz", "--set", "bench"],
    ):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 0, capsys.readouterr().err
    results = open_run(uri)
    assert "80 labels written" in capsys.readouterr().out
    labels = pd.read_csv(tmp_path / "labels.csv")
    assert labels["label"].tolist() == pytest.approx(results.labels()["label"].to_pandas().tolist(), nan_ok=True)
    assert pq.read_table(tmp_path / "labels.parquet") == results.labels()
    assert len(pd.read_csv(tmp_path / "scores.csv")) == len(results.scores("train"))
    assert pq.read_table(tmp_path / "e.parquet")["embedding"] == results.embeddings()["embedding"]
    arrays = np.load(tmp_path / "e.npz")
    bench = results.embeddings("bench")
    assert arrays["image_id"].tolist() == bench["image_id"].to_pylist()
    assert arrays["embedding"].tolist() == bench["embedding"].to_pylist()
    with pytest.raises(SystemExit) as end:
        main(["labels", uri, "-o", "labels.xlsx"])
    assert end.value.code == 2
    assert "'labels.xlsx' must end in .parquet or .csv" in capsys.readouterr().err


@pytest.mark.slow
def test_labels_are_there_once_they_are_made_and_errors_name_the_results_of_earlier_settings(run, tmp_path, capsys):
    part = shutil.copytree(run / "run", tmp_path / "part")
    other = load_settings(str(run / "job.yaml"), [f"run_uri={part}", "optimize.theta=[0.2]"])
    run_job(other, ["pack", "embed", "score", "pair", "rank", "optimize"], new_settings=True)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["labels", str(part), "-o", str(tmp_path / "labels.csv")])
    assert end.value.code == 0, capsys.readouterr().err
    with open(tmp_path / "labels.csv", newline="") as file:
        assert {row["theta"] for row in csv.DictReader(file)} == {"0.2"}
    ((earlier,),) = [list((part / "report").glob("v=*"))]
    with pytest.raises(
        FiqaRayError, match=f"report has not finished.*earlier settings lie in {re.escape(str(earlier))}:"
    ):
        open_run(str(part)).report  # noqa: B018


def test_faults_are_said(run, tmp_path):
    with pytest.raises(FiqaRayError, match="holds no run"):
        open_run(str(tmp_path))
    results = open_run(str(run / "run"))
    with pytest.raises(UsageError, match="no set 'lfw'; choose from train, bench"):
        results.scores("lfw")
    part = Path(shutil.copytree(run / "run", tmp_path / "part"))
    for manifest in (part / "optimized_labels").rglob("_manifest.json"):
        manifest.unlink()
    with pytest.raises(FiqaRayError, match="no optimized labels; stage optimize has not finished"):
        open_run(str(part)).labels()
    record = json.loads((part / "_results.json").read_text())
    write_document(str(part / "_results.json"), {**record, "schema_version": 4}, "_results.json")
    with pytest.raises(FiqaRayError, match="schema 4"):
        open_run(str(part))
    (part / "_results.json").unlink()
    with pytest.raises(FiqaRayError, match="run the job again"):
        open_run(str(part))


@pytest.mark.slow
def test_a_job_of_both_modes_compares_its_label_sets(run, tmp_path, cli):
    """Regressors, areas, differences, a table of the paper and the page; the labels leave out whole people."""
    copy = str(shutil.copytree(run / "run", tmp_path / "copy"))
    methods = f"methods=[{{name: truth, scores: {{uri: {run}/truth.csv}}}}]"
    changes = ["optimize.mode=[rank, ediff]", "optimize.theta=0.3", "optimize.ediff={best: 0.5, least: 3}", methods]
    job = run_job(load_settings(str(run / "job.yaml"), [f"run_uri={copy}", *changes]), new_settings=True)
    opened = open_run(copy)
    assert "methods truth; theta 0.3; eDifFIQA labels; sets" in repr(opened)
    labels = opened.labels().to_pandas()
    assert labels.groupby(["method", "variant"]).size().to_dict() == {
        ("truth", "optimized"): 20,
        ("truth", "ediff"): 20,
    }
    by_rule = labels[labels["variant"] == "ediff"]
    people = set(by_rule["identity"]) - set(by_rule.dropna(subset="label")["identity"])
    assert people
    assert set(by_rule[by_rule["label"].isna()]["identity"]) - people <= {"p01"}  # one of its files is no image
    assert set(_labels(opened)) == {"theta-0.3", "ediff"}
    areas = opened.areas().to_pandas()
    assert set(areas["variant"]) >= {"unoptimized", "optimized", "ediff"}
    assert areas[areas["variant"] == "ediff"]["theta"].isna().all()
    family = opened.result_table("differences").to_pandas().query("family == 'ediff'")
    names = {f"truth, regressor on {kind} labels" for kind in ("optimized", "eDifFIQA")}
    assert {*family["scorer_a"], *family["scorer_b"]} == names
    assert "Do labels by eDifFIQA's rule help?" in "\n".join(opened.answer())
    assert "Labels by eDifFIQA’s rule" in Path(opened.report).read_text()
    card = json.loads(Path(job.regressor(job.label_sets()[2]).at("card.json")).read_text())
    assert (card["labels"], card["theta"]) == ("ediff", None)
    code, _, err = cli("tables", copy, "-o", tmp_path / "tables")
    assert code == 0, err
    assert "| ediff" in (tmp_path / "tables" / "table-1.md").read_text()
    alone = Job(load_settings(str(run / "job.yaml"), ["optimize.mode=ediff"]))
    with pytest.raises(UsageError, match=r"optimize\.mode is ediff alone"):
        explain_image(alone, "p00/000.jpg")


def test_the_results_are_those_of_the_last_settings(run, tmp_path):
    """Also where the settings before had other datasets beside them, and for a folder that was moved."""
    copy = str(shutil.copytree(run / "run", tmp_path / "copy"))
    overrides = [f"run_uri={copy}", "optimize.theta=0.2"]
    job = run_job(load_settings(str(run / "job.yaml"), overrides), ["optimize"], new_settings=True)
    assert set(open_run(copy).labels()["theta"].to_pylist()) == {0.2}
    assert open_run(copy).embeddings() == open_run(str(run / "run")).embeddings()
    method = Job(job.settings).method("truth")
    stored = job.optimized_labels(method, 0.2).read_all()["label"]
    table = open_run(copy).labels().to_pandas()
    assert table[table["method"] == "truth"]["label"].tolist() == pytest.approx(
        stored.to_pandas().tolist(), nan_ok=True
    )
    run_job(load_settings(str(run / "job.yaml"), [f"run_uri={copy}"]), ["report"])
    assert set(open_run(copy).labels()["theta"].to_pylist()) == set(THETAS)


def test_a_method_whose_scores_stay_is_told_in_words():
    """Three choices: theta 0 since nothing was clearly better, 0.1, and none since nothing could be compared."""

    def choice(method, chosen, gain):
        table = table_of(
            ThetaRow,
            [
                ThetaRow(method, theta, 0.1, gain[i], -0.1, 0.1, theta == chosen, "", 9, 99, 999, 999, 0.01, 0.1)
                for i, theta in enumerate((0.0, 0.1))
            ],
        )
        return SimpleNamespace(manifest=lambda: True, read_all=lambda: table)

    nan = float("nan")
    choices = [choice("a", 0.0, (0.0, 0.01)), choice("b", 0.1, (0.0, -0.02)), choice("c", 0.0, (nan, nan))]
    run = SimpleNamespace(_of=lambda name: choices, _dataset=lambda entry: entry)
    assert Run.unchanged(run) == [
        "The labels of a are its scores unchanged: no candidate theta did clearly better on held-out people.",
        "The labels of c are its scores unchanged: no candidate theta could be compared on held-out people.",
    ]
