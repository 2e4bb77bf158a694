"""Images sorted by tasks over ranges: the columns of one task for any sizes, and the same bytes after a lost worker."""

from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_ray.config import make_settings
from fiqa_ray.core import paper
from fiqa_ray.core.labels import reassign_scores
from fiqa_ray.datasets import image_rows, schemas
from fiqa_ray.engine.local import LocalMapper, local_map
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.errors import FiqaRayError, IncompleteError
from fiqa_ray.job import Job
from fiqa_ray.stages import optimize_labels, rank_scores
from fiqa_ray.storage import list_files, read_bytes

THETA = 0.125
SORTS = ("score_runs", "sorted_scores", "quality_index", "index_runs", "sorted_indices", "optimized_labels")


@contextmanager
def images_per_range(n):
    shipped = image_rows.IMAGES_PER_RANGE
    image_rows.IMAGES_PER_RANGE = n
    try:
        yield
    finally:
        image_rows.IMAGES_PER_RANGE = shipped


def make_job(run_uri):
    return Job(
        make_settings(
            {
                "name": "t",
                "run_uri": str(run_uri),
                "source": {"kind": "folder", "uri": "nowhere"},
                "recognizer": {"name": "none"},
                "methods": [{"name": "one"}],
                "optimize": {"theta": [THETA], "index_scale": "raw"},
            }
        )
    )


def write(dataset, tables):
    for i, (table, n_rows) in enumerate(tables):
        files = table if isinstance(table, dict) else {".parquet": table}
        dataset.write_part(i, files, n_rows=n_rows, stats={"status": {"ok": n_rows}})
    dataset.write_plan({"stage": "given"})
    dataset.commit(len(tables))


def write_inputs(job, score, optimized, part_rows):
    """Write what pack, score and the first step of optimize leave, in parts of so many images; NaN is no score."""
    n = len(score)
    faces, priors, indices = [], [], []
    for first in range(0, n, part_rows):
        row = np.arange(first, min(first + part_rows, n))
        size = len(row)
        names = {"image_id": [f"{i:04d}" for i in row], "identity": ["a"] * size, "face": [b""] * size}
        common = {"status": ["ok"] * size, "error": [None] * size}
        faces.append(
            (pa.table({"image_row": row, "identity_row": [0] * size, **names, **common}, schema=schemas.FACES), size)
        )
        prior = {"image_row": row, "score": pa.array(score[row], from_pandas=True), **common}
        priors.append((pa.table(prior, schema=schemas.QUALITY_SCORES), size))
        scored = row[~np.isnan(score[row])]
        columns = [scored, optimized[scored], pa.nulls(len(scored), pa.float64()), scored % 3]
        file = {schemas.index_suffix("one", THETA): pa.table(columns, schema=schemas.OPTIMIZED_INDEX)}
        indices.append((file, size))
    write(job.faces("train"), faces)
    write(job.prior_scores("train", job.settings.methods[0]), priors)
    write(job.optimized_index(), indices)
    histogram = pa.table([[], []], schema=schemas.key_counts(1))
    write(job.similarity_ranks(), [(histogram, 40)])


def sort_images(job, mapper=local_map):
    for steps in rank_scores.index_steps(job):
        run_steps(steps, mapper)
    for steps in optimize_labels.label_steps(job):
        run_steps(steps, mapper)


def results(job):
    """Return the labels, the quality index, and the stats of the labels."""
    method = job.settings.methods[0]
    labels = job.optimized_labels(method, THETA)
    return labels.read_all(), job.quality_index(method).read_all(), labels.require().stats


def same_bits(column, expected):
    values = column.to_numpy(zero_copy_only=False)
    return values.dtype == expected.dtype and values.tobytes() == expected.tobytes()


SCORES = st.sampled_from(
    [0.0, -0.0, 0.5, 0.5, -3.0, 1e-300, -1e-300, 1e300, -1e300, np.nan]
)  # NaN stands for an image without a score


@settings(max_examples=15)
@given(st.lists(SCORES, min_size=3, max_size=30), st.integers(1, 12), st.integers(1, 50), st.integers(0, 2**32))
def test_ranges_equal_the_specification(tmp_path_factory, scores, range_rows, part_rows, seed):
    """Ties, zeros of both signs, extremes, images without a score, ranges without a row, more ranges than rows."""
    score = np.array(scores)
    scored = np.flatnonzero(~np.isnan(score))
    index = np.full(len(score), -1)
    if len(scored):
        index[scored] = paper.quality_index(score[scored])
    optimized = index + np.random.default_rng(seed).integers(-6, 7, len(score)) / 2.0  # with ties
    job = make_job(tmp_path_factory.mktemp("run"))
    write_inputs(job, score, optimized, part_rows)
    with images_per_range(range_rows):
        if not len(scored):
            with pytest.raises(FiqaRayError, match="holds no score at all"):
                sort_images(job)
            return
        sort_images(job)
    labels, indices, stats = results(job)
    expected = paper.reassign_scores(score[scored], index[scored], optimized[scored])
    assert indices["quality_index"].to_pylist() == index.tolist()
    assert labels["image_row"].to_pylist() == list(range(len(score)))
    assert labels["image_id"].to_pylist() == [f"{i:04d}" for i in range(len(score))]
    assert np.flatnonzero(labels["label"].is_valid()).tolist() == scored.tolist()
    assert same_bits(labels["prior_score"].drop_null(), score[scored])
    assert same_bits(labels["optimized_index"].drop_null(), optimized[scored])
    new, label, _ = reassign_scores(score[scored], index[scored], optimized[scored])
    assert np.array_equal(new, expected)
    assert same_bits(labels["optimized_score"].drop_null(), new)  # zeros keep their signs
    assert same_bits(labels["label"].drop_null(), label)
    order = np.lexsort((index[scored], optimized[scored]))
    moved = np.abs(np.arange(len(scored)) - index[scored][order]).sum()
    assert stats["mean_move_fraction"] == moved / len(scored) / len(scored)
    assert stats["n_scored"] == len(scored)
    assert stats["n_without_pairs"] == sum(scored % 3 == 0)
    assert stats["n_pairs_per_repeat"] == 40
    assert stats["theta_effective"] == THETA * 40 / len(scored)


def random_inputs(n=200):
    rng = np.random.default_rng(5)
    score = rng.integers(0, 30, n) / 7
    score[rng.integers(0, n, 12)] = np.nan
    return score, rng.permutation(n) + rng.integers(0, 2, n) / 2.0


def file_bytes(job):
    method = job.settings.methods[0]
    datasets = [getattr(job, name) for name in SORTS]
    made = [d(method) if name in SORTS[:3] else d(method, THETA) for name, d in zip(SORTS, datasets, strict=True)]
    return {
        (d.name, name): read_bytes(d.at(name)) for d in made for name in list_files(d.uri) if name.endswith(".parquet")
    }


@pytest.mark.slow
def test_bytes_do_not_depend_on_parts_of_images_or_storage(tmp_path):
    """Spans are cut by image, so parts of faces of another size, or in a bucket, give the same files."""
    inputs = random_inputs()
    files = []
    for uri, part_rows in ((tmp_path / "a", 7), (tmp_path / "b", 64), ("memory://ranges", 200)):
        job = make_job(uri)
        write_inputs(job, *inputs, part_rows)
        with images_per_range(30):
            sort_images(job)
        files.append(file_bytes(job))
    assert len(files[0]) == 7 * (2 + 2 + 1 + 2 + 1 + 1)  # 200 images in spans and ranges of 30
    assert files[0] == files[1] == files[2]


@pytest.mark.slow
@pytest.mark.parametrize("where", SORTS)
def test_a_worker_lost_in_any_step_changes_no_byte(tmp_path, where):
    class Dies(LocalMapper):
        def __call__(self, items):
            for item, outcome in local_map(items):
                if item[0].dataset.name == where and len(finished := item[0].dataset.finished_parts()) > 2:
                    lost = item[0].dataset.at(max(finished[2].files))  # a file without the record that tells of it
                    (tmp_path / "run" / lost.removeprefix(str(tmp_path / "run") + "/")).write_bytes(b"cut")
                    yield None, OSError("the machine is gone")
                    return
                yield item, outcome

    job, whole = make_job(tmp_path / "run"), make_job(tmp_path / "whole")
    for j in (job, whole):
        write_inputs(j, *random_inputs(), 64)
    with images_per_range(30):
        sort_images(whole)
        with pytest.raises(IncompleteError, match="run the same command again to continue"):
            sort_images(job, Dies())
        sort_images(job)
    assert file_bytes(job) == file_bytes(whole)


def test_ranges_are_of_one_size_where_all_scores_are_equal(tmp_path, capsys):
    n = 4000
    job = make_job(tmp_path / "run")
    write_inputs(job, np.full(n, 0.5), np.zeros(n), 1000)
    with images_per_range(512):
        sort_images(job)
    sizes = [p.n_rows for p in job.sorted_scores(job.settings.methods[0]).require().parts]
    assert len(sizes) == 8
    assert max(sizes) - min(sizes) < 0.05 * n / 8
    assert "all 4,000 prior scores are equal" in capsys.readouterr().err


def test_up_to_two_ranges_one_task_sorts_all(tmp_path):
    job = make_job(tmp_path / "run")
    write_inputs(job, *random_inputs(), 64)
    with images_per_range(100):
        sort_images(job)
        assert len(image_rows.image_spans(201)) == 3
    assert {name for name, _ in file_bytes(job)} == {"quality_index", "optimized_labels"}
