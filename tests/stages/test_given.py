"""A job on embeddings without images gives the labels that `optimize_labels` gives for the same arrays."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fiqa_ray
from fiqa_ray.config import make_settings
from fiqa_ray.core.labels import optimize_labels
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.job import Job
from fiqa_ray.sources.stored_embeddings import list_embeddings, read_stored_embeddings
from fiqa_ray.tools.plan import plan_job
from fiqa_ray.tools.run_job import run_job

N, DIM = 60, 16


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    people = np.repeat([f"p{k}" for k in range(6)], 10)
    embeddings = rng.normal(size=(6, DIM)).repeat(10, axis=0) + rng.normal(size=(N, DIM))
    names = [f"{p}/{i:02d}" for i, p in enumerate(people)]
    return embeddings.astype(np.float32), people, names, rng.random(N)


@pytest.fixture(scope="module")
def folder(arrays, tmp_path_factory):
    """Two files of embeddings in mixed order, of small row groups: one of lists, one of bytes; and scores."""
    embeddings, people, names, scores = arrays
    folder = tmp_path_factory.mktemp("given")
    (folder / "parts").mkdir()
    order = np.random.default_rng(1).permutation(N)
    for name, rows in (("a", order[:25]), ("b", order[25:])):
        column = (
            pa.array(list(embeddings[rows]))
            if name == "a"
            else pa.array([e.tobytes() for e in embeddings[rows]], pa.binary(4 * DIM))
        )
        table = pa.table({"image_id": np.array(names)[rows], "identity": people[rows], "embedding": column})
        pq.write_table(table, folder / "parts" / f"{name}.parquet", row_group_size=7)
    with open(folder / "q.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "score"), *zip(names, scores, strict=True)])
    return folder


def settings(folder, **changes):
    values = {
        "name": "given",
        "run_uri": str(folder / "run"),
        "source": {"kind": "embeddings", "uri": str(folder / "parts")},
        "methods": [{"name": "mine", "scores": str(folder / "q.csv")}, {"name": "embedding_norm"}],
        "pair": {"n_clusters": 4, "n_repeats": 3},
        "optimize": {"theta": [0.1], "index_scale": "normalized"},
        "compute": {"engine": "local", "rows_per_part": 20, "train_workers": 0},
    }
    return make_settings({**values, **changes})


@pytest.mark.slow
def test_the_jobs_labels_are_those_of_the_arrays(arrays, folder):
    embeddings, people, names, scores = arrays
    job = run_job(settings(folder))
    priors = {"mine": scores, "embedding_norm": np.linalg.norm(embeddings, axis=1)}
    expected = optimize_labels(
        embeddings, people, priors, n_clusters=4, n_repeats=3, theta=0.1, index_scale="normalized"
    )
    run = fiqa_ray.open_run(str(folder / "run"))
    labels = run.labels().to_pandas().set_index(["method", "image_id"])["label"]
    for method, result in expected.items():
        np.testing.assert_allclose(labels[method].loc[names], result.label, atol=1e-6)  # norms round in another order
    stored = run.embeddings().to_pandas().set_index("image_id")["embedding"]
    np.testing.assert_array_equal(np.stack(stored.loc[names]), embeddings)
    assert "<html" in Path(job.report().at("report.html")).read_text()
    other = settings(folder, optimize={"theta": [0.5], "index_scale": "normalized"})
    assert Job(other).report().uri != job.report().uri  # the page shows labels, though there is no regressor
    assert {row["work_s"] for row in plan_job(job) if row["stage"] == "embed"} == {0.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"name": "faceqan"}]}, "faceqan needs images, and the source holds embeddings alone"),
        ({"recognizer": {"name": "arcface_r18"}}, "leave out recognizer"),
        (
            {"source": {"kind": "folder", "uri": "faces"}, "recognizer": {"name": "arcface_r18"}, "benchmarks": [
                {"name": "b", "source": {"kind": "embeddings", "uri": "e"}, "pairs": {"kind": "table", "uri": "p.csv"}}
            ]},
            "source has images and others have embeddings alone",
        ),
    ],
)  # fmt: skip
def test_what_needs_images_is_refused(folder, changes, message):
    with pytest.raises(UsageError, match=message):
        settings(folder, **changes)


def test_files_that_are_no_embeddings_are_named(tmp_path):
    def list_of(**columns):
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        return list_embeddings(str(tmp_path / "x.parquet"))

    with pytest.raises(FiqaRayError, match=r"no column identity \(found: image_id, embedding\)"):
        list_of(image_id=["a"], embedding=[[1.0]])
    with pytest.raises(FiqaRayError, match="must hold lists of numbers"):
        list_of(image_id=["a"], identity=["p"], embedding=["text"])
    for name in ("image_id", "identity", "embedding"):
        table = pa.table({"image_id": ["a"], "identity": ["p"], "embedding": [[1.0]]})
        pq.write_table(table.append_column(name, table[name]), tmp_path / "x.parquet")
        with pytest.raises(FiqaRayError, match=f"the column '{name}' stands 2 times"):
            list_embeddings(str(tmp_path / "x.parquet"))
    with pytest.raises(FiqaRayError, match="'a' occurs more than once"):
        list_of(image_id=["a", "a"], identity=["p", "p"], embedding=[[1.0], [2.0]])
    listed = list_of(image_id=["a", "b"], identity=["p", "p"], embedding=[[1.0], [2.0, 3.0]])
    with pytest.raises(FiqaRayError, match="embeddings of 1 to 2 numbers"):
        read_stored_embeddings(str(tmp_path / "x.parquet"), listed)
    listed = list_of(image_id=["a", "b"], identity=["p", "p"], embedding=[[1.0], None])
    np.testing.assert_array_equal(read_stored_embeddings(str(tmp_path / "x.parquet"), listed), [[1.0], [np.nan]])


def test_embeddings_without_direction_are_marked(tmp_path):
    """Missing, not finite, or zeros alone; a short one has a direction."""
    values = [[1.0, 2.0], None, [np.inf, 0.0], [0.0, -0.0], [1e-30, 0.0]]
    table = {"image_id": list("abcde"), "identity": ["p"] * 5, "embedding": values}
    (tmp_path / "parts").mkdir()
    pq.write_table(pa.table(table), tmp_path / "parts" / "x.parquet")
    changed = settings(tmp_path, methods=[{"name": "embedding_norm"}], max_bad_fraction=1.0)
    run_job(changed, ["pack", "embed"])
    rows = Job(changed).embeddings("train").read_all(["status", "embedding"]).to_pylist()
    assert [r["status"] for r in rows] == ["ok", "non_finite", "non_finite", "no_direction", "ok"]
    assert [r["embedding"] is not None for r in rows] == [True, False, False, False, True]
