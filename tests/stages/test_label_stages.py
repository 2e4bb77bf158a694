"""pair, rank and optimize as a job, against the in-memory function: shards, engines and failed images change nothing."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from fiqa_ray.core import theta as core_theta
from fiqa_ray.core.candidates import CANDIDATES
from fiqa_ray.core.labels import optimize_labels
from fiqa_ray.core.pairs import mated_pairs
from fiqa_ray.core.theta import ThetaCurve
from fiqa_ray.engine.local import LocalMapper, local_map
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.stages import optimize, rank
from fiqa_ray.stages import optimize_labels as optimize_labels_stage
from fiqa_ray.storage import read_bytes
from fiqa_ray.tools.open_run import open_run
from fiqa_ray.tools.results_record import record_results
from label_inputs import ONE_SHARD, SHARDS, SIZES, data, run_stages, settings, write_inputs


def label_bytes(job):
    """The label files of all methods and thetas."""
    return {
        (m.label, t): read_bytes(job.optimized_labels(m, t).at("part-00000.parquet"))
        for m in job.settings.methods
        for t in job.settings.optimize.theta
    }


@pytest.mark.parametrize("engine", ["counting", "sort"])
@pytest.mark.parametrize("bounds", [ONE_SHARD, SHARDS], ids=["one shard", "a shard per identity"])
@pytest.mark.parametrize("index_scale", ["raw", "normalized"])
def test_job_equals_in_memory(tmp_path, engine, bounds, index_scale):
    identity, embeddings, scores = data()
    s = settings(
        str(tmp_path),
        rank={"engine": engine, "n_ranges": 3},
        optimize={"theta": [0.001, 0.2], "index_scale": index_scale},
    )
    job = Job(s)
    write_inputs(job, identity, embeddings, scores, bounds)
    run_stages(job)
    for method in s.methods:
        for theta in s.optimize.theta:
            got = job.optimized_labels(method, theta).read_all()
            expected = optimize_labels(
                embeddings,
                identity,
                scores[method.label],
                n_clusters=6,
                n_repeats=3,
                seed=11,
                theta=theta,
                index_scale=index_scale,
            )
            assert got["optimized_score"].to_numpy().tolist() == expected.score.tolist()
            assert got["label"].to_numpy().tolist() == expected.label.tolist()
            assert got["optimized_index"].to_numpy().tolist() == expected.optimized_index.tolist()
            assert got["n_owned_pairs"].to_numpy().tolist() == expected.n_owned_pairs.tolist()
            means = got["mean_similarity_rank"].to_numpy(zero_copy_only=False)
            np.testing.assert_array_equal(means, expected.mean_similarity_rank)


def test_rank_tables_beyond_those_that_are_kept_are_read_for_every_part(tmp_path, monkeypatch):
    """A cache of the last ten tables would miss every one of them, repeat after repeat and part after part."""
    identity, embeddings, scores = data()
    job = Job(settings(str(tmp_path), pair={"n_clusters": 6, "n_repeats": 5}, optimize={"theta": [0.2]}))
    write_inputs(job, identity, embeddings, scores, SHARDS)
    monkeypatch.setattr(optimize, "N_KEPT_TABLES", 3)
    run_stages(job, stages=("pair", "rank"))
    n_reads = Counter()
    read_histogram = optimize.read_histogram

    def counted(table):
        n_reads[str(table.slice(0, 50).to_pydict())] += 1
        return read_histogram(table)

    monkeypatch.setattr(optimize, "read_histogram", counted)
    run_stages(job, stages=("optimize",))
    n_parts = len(job.optimized_index().require().parts)
    assert n_parts > 1
    assert sorted(n_reads.values()) == [1, 1, 1, n_parts, n_parts]


def test_heldout_theta_gives_the_labels_of_the_chosen_candidate(tmp_path, monkeypatch):
    """The candidates are compared by the labels that optimize_labels gives, of the images with an embedding and a score."""
    identity, embeddings, scores = data(2)
    seen = {}

    def choose(values, person, targets, seed):
        seen.update(values=values, person=person, targets=targets, seed=seed)
        nan = (np.nan,) * len(CANDIDATES)
        return ThetaCurve(CANDIDATES, nan, nan, nan, nan, 0.3, "", 5, len(person), 6, 7, 0.001, 0.5)

    monkeypatch.setattr(core_theta, "compare_thetas", choose)
    monkeypatch.setattr(ThetaCurve, "sentence", lambda self, method: f"{method} gains")
    job = Job(settings(str(tmp_path), optimize={"theta": ["heldout", 0.2, 0.3]}, methods=[{"name": "one"}]))
    assert job.settings.optimize.index_scale == "normalized"
    write_inputs(job, identity, embeddings, scores, SHARDS)
    run_stages(job)
    (method,) = job.settings.methods
    expected = optimize_labels(
        embeddings,
        identity,
        scores["one"],
        n_clusters=6,
        n_repeats=3,
        seed=11,
        theta=[0.0, 0.1, 0.2, 0.3],
        index_scale="normalized",
    )
    for theta, number in (("heldout", 0.3), (0.2, 0.2)):
        dataset = job.optimized_labels(method, theta)
        assert dataset.read_all()["label"].to_numpy().tolist() == expected[number].label.tolist()
        assert dataset.require().stats["theta"] == number
    record_results(job)
    told = open_run(job.settings.run_uri).labels().to_pandas().groupby(["theta", "chosen"]).size().to_dict()
    assert told == {(0.2, False): len(identity), (0.3, True): len(identity)}  # 0.3 is given too: one set of labels
    rows = np.lexsort((np.arange(len(seen["person"])), seen["person"]))  # parts come in a random order
    assert seen["person"][rows].tolist() == identity.tolist()
    assert seen["values"][rows].tolist() == embeddings.tolist()
    for theta in (0.0, 0.1, 0.3):  # other orders of equal scores only
        assert np.sort(seen["targets"][theta]).tolist() == np.sort(expected[theta].label).tolist()
        assert np.abs(seen["targets"][theta][rows] - expected[theta].label).mean() < 0.02
    table = job.theta_choice(method).read_all().to_pylist()
    assert [r["theta"] for r in table if r["is_chosen"]] == [0.3]
    assert {r["summary"] for r in table} == {"one gains"}
    assert [job.theta_of(s) for s in job.label_sets()[1:]] == [0.3, 0.2, 0.3]


@pytest.mark.slow
@pytest.mark.parametrize("recluster", [False, True])
def test_bytes_do_not_depend_on_shards_runs_engine_storage_or_keeping(tmp_path, monkeypatch, recluster):
    identity, embeddings, scores = data(1)
    found = []
    for i, (engine, bounds, root, keep, run_pairs) in enumerate(
        [
            ("counting", ONE_SHARD, str(tmp_path / "a"), True, 10**6),
            ("sort", SHARDS, str(tmp_path / "b"), True, 120),
            ("sort", [0, 34, sum(SIZES)], "memory://labels", False, 120),
            ("counting", SHARDS, str(tmp_path / "c"), False, 120),
        ]
    ):
        monkeypatch.setattr(rank, "GROUP_PAIRS", run_pairs)
        monkeypatch.setattr(rank, "GROUP_PAIRS_NOT_KEPT", run_pairs)
        pair = {"n_clusters": 6, "n_repeats": 3, "keep": keep, "recluster": recluster}
        job = Job(settings(root, pair=pair, rank={"engine": engine, "n_ranges": 2 + i}))
        write_inputs(job, identity, embeddings, scores, bounds, bad={40})
        run_stages(job)
        n_files = len(job.pairs().require().parts[0].files)
        assert n_files == (3 if recluster else 1) + 3 * keep
        ranks = [read_bytes(job.similarity_ranks().at(f"part-{r:05d}.parquet")) for r in range(3)]
        found.append((label_bytes(job), ranks))
    assert found[0] == found[1] == found[2] == found[3]


def test_images_without_embedding_or_score_keep_a_row(tmp_path):
    identity, embeddings, scores = data(2)
    bad = {0, 7, 50}
    job = Job(settings(str(tmp_path)))
    write_inputs(job, identity, embeddings, scores, SHARDS, bad)
    run_stages(job)
    kept = [i for i in range(len(identity)) if i not in bad]
    got = job.optimized_labels(job.settings.methods[1], 0.2).read_all()
    assert np.flatnonzero(got["label"].is_null().to_numpy()).tolist() == sorted(bad)
    assert sorted(got["optimized_score"].drop_null().to_pylist()) == sorted(scores["two"][kept].tolist())
    assert job.pairs().require().stats["n_images_without_embedding"] == 3


def test_a_damaged_part_is_named_and_a_lost_one_made_again(tmp_path):
    identity, embeddings, scores = data(3)
    job = Job(settings(str(tmp_path)))
    write_inputs(job, identity, embeddings, scores, SHARDS)
    run_stages(job)
    before = label_bytes(job)
    labels = tmp_path / job.optimized_labels(job.settings.methods[0], 0.001).uri.removeprefix(str(tmp_path) + "/")
    (labels / "part-00000.parquet").unlink()  # lost
    pairs = job.pairs().at("part-00002.repeat-01.parquet")
    whole = read_bytes(pairs)
    with open(pairs, "wb") as f:
        f.write(whole[: len(whole) // 2])  # cut: the size tells
    run_stages(job)
    assert label_bytes(job) == before
    assert read_bytes(pairs) == whole
    with open(pairs, "wb") as f:
        f.write(whole[:-20] + b"x" * 20)  # same size: the checksum tells, to whoever reads it
    with pytest.raises(FiqaRayError, match=r"part-00002.repeat-01.parquet is damaged.*remove this file"):
        job.pairs().read(job.pairs().require().parts[2], suffix=".repeat-01.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["counting", "sort"])
@pytest.mark.parametrize("run_pairs", [120, 10**6])
def test_lost_ranks_are_made_again_by_either_engine(tmp_path, monkeypatch, engine, run_pairs):
    identity, embeddings, scores = data(5)
    job = Job(settings(str(tmp_path)))
    write_inputs(job, identity, embeddings, scores, SHARDS)
    run_stages(job)
    monkeypatch.setattr(rank, "GROUP_PAIRS", run_pairs)
    lost = Path(job.similarity_ranks().at("part-00001.parquet"))
    before = lost.read_bytes()
    again = Job(settings(str(tmp_path), rank={"engine": engine}))
    run_stages(again, stages=["rank"])  # nothing to do, and nothing done
    assert not list(tmp_path.glob("sorted_keys/**/*.parquet"))
    lost.unlink()
    run_stages(again, stages=["rank"])
    assert lost.read_bytes() == before


def test_only_missing_parts_are_computed(tmp_path):
    identity, embeddings, scores = data(4)
    job = Job(settings(str(tmp_path)))
    write_inputs(job, identity, embeddings, scores, SHARDS)
    ran = []

    def stops_after(n):
        class Stops(LocalMapper):
            def __call__(self, items):
                for i, (item, outcome) in enumerate(local_map(items)):
                    ran.append((item[0].dataset.uri, item[1].index))
                    yield item, outcome
                    if i + 1 == n:
                        yield None, OSError("the machine is gone")

        return Stops()

    with pytest.raises(FiqaRayError, match="run the same command again to continue"):
        run_stages(job, stops_after(3), ["pair"])
    assert job.pairs().manifest() is None
    run_stages(job, stops_after(10**9), ["pair"])
    assert len(ran) == len(set(ran)) == len(SIZES)


@pytest.mark.slow
def test_fused_methods_go_on_like_others(tmp_path):
    """Rank average and fitted weights: scores worked out from the priors, images without score, any shards, any order."""
    identity, embeddings, scores = data(6)
    methods = [
        {"name": "mean", "fuse": {"of": ["one", "two"]}},
        {"name": "one"},
        {"name": "two"},
        {"name": "fit", "fuse": {"of": ["two", "one"], "weights": "fitted"}},
        {"name": "given", "fuse": {"of": ["one", "two"], "weights": {"two": 3, "one": 1}}},
    ]
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    worst = units @ units.mean(axis=0)
    scores["two"] = worst + 0.1 * scores["two"]  # so that it says something about similarity
    found = []
    for name, bounds in (("a", ONE_SHARD), ("b", SHARDS)):
        job = Job(settings(str(tmp_path / name), methods=methods))
        given = Job(settings(str(tmp_path / name), methods=[{"name": "one"}, {"name": "two"}]))
        write_inputs(given, identity, embeddings, scores, bounds, bad={7})
        run_stages(job, stages=("score", "pair", "fuse", "rank", "optimize"))
        fused = {m["name"]: job.prior_scores("train", job.method(m["name"])).read_all() for m in methods}
        found.append((label_bytes(job), {k: v.to_pydict() for k, v in fused.items()}))
    assert found[0] == found[1]
    kept = np.delete(np.arange(len(identity)), 7)
    place = {k: (rankdata(scores[k][kept]) - 0.5) / len(kept) for k in ("one", "two")}
    tables = found[0][1]
    assert tables["mean"]["score"][7] is None
    assert tables["mean"]["status"][7] == "unreadable"
    mean, given = (np.array(tables[k]["score"], float)[kept] for k in ("mean", "given"))
    assert np.allclose(mean, (place["one"] + place["two"]) / 2)
    assert np.allclose(given, (place["one"] + 3 * place["two"]) / 4)
    # the fit: one free weight remains, so the fused score lies on the line between the two places
    fit = np.array(tables["fit"]["score"], float)[kept]
    share = job.prior_scores("train", job.method("fit")).require().stats["weights"]
    assert share["one"] + share["two"] == pytest.approx(1)
    assert np.allclose(fit, share["one"] * place["one"] + share["two"] * place["two"])
    assert share["two"] > share["one"]


def test_fusion_of_unknown_methods_is_refused(tmp_path):
    with pytest.raises(FiqaRayError, match=r"fused of 'twoo', which is no method of the job \(did you mean 'two'"):
        settings(str(tmp_path), methods=[{"name": "two"}, {"name": "f", "fuse": {"of": ["two", "twoo"]}}])
    fuse = {"of": ["one", "two"], "weights": {"one": 1}}
    with pytest.raises(FiqaRayError, match="weights must name each of one, two once"):
        settings(str(tmp_path), methods=[{"name": "one"}, {"name": "two"}, {"name": "f", "fuse": fuse}])


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_pairs_of_a_device_give_the_labels_of_the_processor(tmp_path, keep):
    """On torch's processor device, with embeddings whose products are exact, so that not one bit may differ."""
    identity, _, scores = data(7)
    embeddings = np.random.default_rng(7).choice([-1.0, 1.0], size=(len(identity), 16)).astype(np.float32)
    labels = []
    for device in ("cpu", "cpu:0"):
        pair = {"n_clusters": 6, "n_repeats": 3, "keep": keep, "device": device}
        job = Job(settings(str(tmp_path / device), pair=pair))
        write_inputs(job, identity, embeddings, scores, SHARDS, bad={40})
        run_stages(job)
        labels.append(label_bytes(job))
    assert labels[0] == labels[1]


@pytest.mark.parametrize("engine", ["counting", "sort"])
@pytest.mark.parametrize("keep", [True, False])
def test_every_task_that_makes_pairs_on_a_gpu_asks_for_one(tmp_path, monkeypatch, keep, engine):
    steps, makes_pairs = {}, set()

    class Watching(LocalMapper):
        def __call__(self, items):
            for item in items:
                steps[item[0].dataset.name] = item[0].needs_gpu
                current.append(item[0].dataset.name)
                yield from local_map([item])

    def on_the_processor(*arrays, device, **options):
        assert device == "cuda"
        makes_pairs.add(current[-1])
        return mated_pairs(*arrays, device="cpu", **options)

    current = []
    monkeypatch.setattr("fiqa_ray.datasets.pairs.mated_pairs", on_the_processor)
    identity, embeddings, scores = data(7)
    pair = {"n_clusters": 6, "n_repeats": 3, "keep": keep, "device": "cuda"}
    job = Job(settings(str(tmp_path), pair=pair, rank={"engine": engine}))
    write_inputs(job, identity, embeddings, scores, SHARDS)
    run_stages(job, Watching())
    assert {name for name, needs_gpu in steps.items() if needs_gpu} == makes_pairs
    ranks = "sorted_keys" if engine == "sort" else "key_counts"
    assert makes_pairs == ({"pairs"} if keep else {"pairs", ranks, "optimized_index"})


def test_a_missing_gpu_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    identity, embeddings, scores = data(7)
    job = Job(settings(str(tmp_path), pair={"device": "cuda"}))
    write_inputs(job, identity, embeddings, scores, SHARDS)
    with pytest.raises(FiqaRayError, match=r"device='cuda': torch sees no GPU on .*; .* set pair.device: cpu"):
        run_stages(job, stages=["pair"])


def test_scores_of_the_wrong_sign_are_doubted_in_a_job_too(tmp_path, monkeypatch):
    """A score that falls where similarity rises; one that rises with it, and one with few images, are let be."""
    rng = np.random.default_rng(4)
    identity = np.repeat(np.arange(30), 10)
    quality = rng.uniform(0.2, 1, len(identity))
    embeddings = rng.normal(size=(30, 24))[identity] + (1.2 - quality)[:, None] * rng.normal(size=(len(identity), 24))
    job = Job(settings(str(tmp_path), optimize={"theta": [0.1, 0.2]}))
    write_inputs(job, identity, embeddings.astype(np.float32), {"one": -quality, "two": quality}, [0, len(identity)])
    lines = []
    monkeypatch.setattr(optimize_labels_stage, "note", lines.append)
    run_stages(job)
    assert len(lines) == 1
    assert "one: images with larger scores have less similar pairs" in lines[0]
