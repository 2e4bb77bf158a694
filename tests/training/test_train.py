"""Training: what is learnt, what is left alone, and that an interrupted trainer ends with the same weights."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import smoke
from fiqa_ray.config import MethodSettings, load_settings
from fiqa_ray.engine.local import local_map
from fiqa_ray.engine.ray import RayMapper
from fiqa_ray.engine.ray_train import TrainHost
from fiqa_ray.engine.run_steps import run_steps
from fiqa_ray.errors import FiqaRayError, IncompleteError
from fiqa_ray.images import decode_faces
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.models.regressor import load_regressor
from fiqa_ray.stages import stage_steps
from fiqa_ray.stages import train as module
from fiqa_ray.storage import read_bytes
from fiqa_ray.tools.run_job import run_job
from fiqa_ray.training import finetune, head, leaving, loop

LABEL_STAGES = ["pack", "embed", "score", "pair", "rank", "optimize"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A job up to its labels; tests train into folders of their own settings."""
    tmp = tmp_path_factory.mktemp("labelled")
    faces = smoke.make_faces(tmp / "faces", benchmark=False, per_identity=12)
    job = smoke.write_job(
        tmp / "job.yaml", faces, str(tmp / "run"), benchmarks=[], methods=[{"name": "embedding_norm"}]
    )
    run_job(load_settings(job), LABEL_STAGES)
    return job


def train(job_path, *overrides):
    job = Job(load_settings(job_path, overrides))
    for steps in stage_steps("train", job):
        run_steps(steps, local_map)
    return job


def label_set(job, theta=None):
    return LabelSet(job.settings.methods[0], theta)


def state_of(job, theta=None):
    uri = job.regressor(label_set(job, theta)).uri
    return torch.load(io.BytesIO(read_bytes(f"{uri}/weights.pt")), weights_only=True), json.loads(
        read_bytes(f"{uri}/card.json")
    )


def good_faces(job):
    return decode_faces(job.faces("train").read_all()["face"].to_pylist())[0]


def check_validation_scores(job, card):
    """The card's quantiles are those of what the saved regressor says of the validation faces."""
    task = module.training_task(job, label_set(job))
    (rows,) = np.nonzero(loop.load_targets(task)[1])
    faces = job.faces("train").read_all()["face"].take(rows).to_pylist()
    scores = load_scorer(task.regressor.uri, allow_import=True)(decode_faces(faces)[0])
    table = card["validation_scores"]
    assert table["n_images"] == len(rows) == 5
    assert len(table["quantiles"]) == 1001
    # of five numbers in order, the quantiles at 0, 1/4, 1/2, 3/4 and 1
    assert table["quantiles"][::250] == pytest.approx(sorted(scores.tolist()), rel=1e-5, abs=1e-5)


def test_head_learns_and_leaves_the_recogniser_alone(labelled):
    job = train(labelled, "train.n_epochs=60", "train.batch_size=32")
    state, card = state_of(job)
    before = load_recognizer("smoke:tiny").backbone.state_dict()
    assert all(torch.equal(state[f"base_model.{k}"], v) for k, v in before.items())
    label, validation = loop.load_targets(module.training_task(job, label_set(job)))
    constant = np.abs(label[validation] - np.median(label)).mean()
    assert card["metrics"]["validation_l1"] < 0.6 * constant  # far better than the best constant
    model, _ = load_regressor(job.regressor(label_set(job)).uri, allow_import=True)
    embeddings = job.embeddings("train").read_all()
    x = np.stack([np.frombuffer(e, "<f4") for e in embeddings["embedding"].to_pylist()])
    x = np.hstack([x, np.linalg.norm(x, axis=1, keepdims=True)])  # the embedding and its length
    weight, bias = model.regressor.weight.numpy(), model.regressor.bias.numpy()
    assert weight.shape == (5, 33)  # a row per training seed
    by_seed = x @ weight.T + bias
    assert by_seed.std(axis=1).max() > 0
    predicted = by_seed.mean(axis=1)
    # the saved head works on raw embeddings: standardisation is folded in
    assert np.abs(by_seed[validation] - label[validation, None]).mean() == pytest.approx(
        card["metrics"]["validation_l1"], rel=1e-3
    )
    history = job.regressor(label_set(job)).read_all().to_pylist()
    assert card["metrics"]["validation_l1"] == history[-1]["validation_loss"]  # the last weights are saved
    assert np.abs(predicted - model.score_and_embedding(torch.from_numpy(good_faces(job)))[0].numpy()).max() < 1e-4
    assert (card["fiqa_method"], card["labels"], card["n_clusters"], card["n_repeats"], card["seed"]) == (
        "embedding_norm", "prior", 4, 3, 3,
    )  # fmt: skip
    assert card["recognizer_sha256"]
    check_validation_scores(job, card)


def test_validation_rule():
    """Every 20th of the ascending order, starting with the worst; labels from 0 to 1; unknown scores in neither set."""
    score = np.random.default_rng(0).permutation(101).astype(float)
    score[7] = np.nan

    class Labels:
        def read_all(self, columns):
            import pyarrow as pa

            return pa.table({columns[0]: pa.array(score, mask=np.isnan(score))})

    label, validation = loop.load_targets(loop.Task(None, Labels(), LabelSet(MethodSettings(name="q")), {}))
    order = [i for i in np.argsort(score) if not np.isnan(score[i])]
    assert sorted(np.flatnonzero(validation)) == sorted(order[::20])
    assert np.nanmin(label) == 0
    assert np.nanmax(label) == 1
    assert np.isnan(label[7])


def test_heads_trained_together_equal_heads_trained_alone(labelled):
    job = train(labelled, "train.n_epochs=7")
    together = [state_of(job, t)[0]["regressor.weight"] for t in (None, 0.05)]
    for theta, weight in zip((None, 0.05), together, strict=True):
        task = module.training_task(job, label_set(job, theta))
        alone = head.HeadTraining(replace(module.training_plan(job), tasks=[task]), "cpu", 0, 1)
        per_epoch = alone.n_train // alone.batch_size
        for epoch in range(7):
            for i, batch in enumerate(alone.batches(epoch, per_epoch, 0), start=epoch * per_epoch):
                alone.train_step(batch, rate=1 - i / (7 * per_epoch))
        assert torch.equal(alone.weights(0)["weight"], weight)


@pytest.mark.slow
def test_a_head_is_the_least_absolute_deviation_of_its_inputs(labelled):
    """Against a linear program: no linear map of embedding and norm fits the training labels much better."""
    job = train(labelled, "train.n_epochs=300", "train.batch_size=96", "train.seeds=1")
    label, validation = loop.load_targets(module.training_task(job, label_set(job)))
    x = np.stack([np.frombuffer(e, "<f4") for e in job.embeddings("train").read_all()["embedding"].to_pylist()])
    x = np.hstack([x, np.linalg.norm(x, axis=1, keepdims=True), np.ones((len(x), 1))])[~validation]
    y = label[~validation]
    n, d = x.shape  # minimise the sum of t with -t <= x w - y <= t
    rows = np.block([[x, -np.eye(n)], [-x, -np.eye(n)]])
    best = linprog(np.r_[np.zeros(d), np.ones(n)], rows, np.r_[y, -y], bounds=[(None, None)] * d + [(0, None)] * n).fun
    state = state_of(job)[0]
    error = x[:, :-1] @ state["regressor.weight"][0].numpy() + state["regressor.bias"].item() - y
    constant = np.abs(y - np.median(y)).sum()
    assert best <= np.abs(error).sum() < best + 0.1 * (constant - best)


def test_the_rate_falls_to_zero_in_finetune_but_not_as_published(labelled, monkeypatch):
    rates = []
    step = finetune.FinetuneTraining.train_step

    def watched(self, batch, rate):
        loss = step(self, batch, rate)
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        return loss

    monkeypatch.setattr(finetune.FinetuneTraining, "train_step", watched)
    options = ["train.mode=finetune", "train.n_epochs=2", "train.batch_size=24"]
    train(labelled, *options)
    n = len(rates) // 2  # of the two label sets
    assert np.array(rates[:n]) == pytest.approx(np.outer(1 - np.arange(n) / n, rates[0]))
    assert rates[0][0] == 1e-3
    rates.clear()
    train(labelled, *options, "train.gradients=published")
    assert all(r == rates[0] for r in rates)


@pytest.mark.parametrize(("mode", "is_leaving"), [("head", False), ("finetune", False), ("finetune", True)])
def test_interrupted_training_ends_with_the_same_weights(labelled, tmp_path, monkeypatch, mode, is_leaving):
    """A machine that is about to be taken away saves after each step, and then no step is made twice."""
    options = [f"train.mode={mode}", "train.n_epochs=3", "train.batch_size=16", "train.validations_per_epoch=2"]
    whole = train(labelled, *options, "train.learning_rate=0.01")
    expected = [(state_of(whole, t)[0], whole.regressor(label_set(whole, t)).read_all()) for t in (None, 0.05)]
    # the same training under another fingerprint (a seed would change it; a label would not): copy of the run
    source = whole.settings.run_uri
    copy = str(tmp_path / "copy")
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("regressor", "_training", "_lock"))
    kind = head.HeadTraining if mode == "head" else finetune.FinetuneTraining
    step = kind.train_step
    calls = []

    def dies(self, batch, rate):
        calls.append(1)
        if len(calls) in (4, 9, 14):
            raise OSError("the machine is gone")
        return step(self, batch, rate)

    monkeypatch.setattr(kind, "train_step", dies)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 1e9 if is_leaving else 0.0)
    monkeypatch.setattr(leaving, "ASK_EVERY_S", 0.0)
    host = TrainHost(is_machine_leaving=lambda: is_leaving)
    monkeypatch.setattr(module, "train_loop", partial(module.train_loop, host=host))
    failures = 0
    for _ in range(5):
        try:
            again = train(labelled, *options, "train.learning_rate=0.01", f"run_uri={copy}")
            break
        except IncompleteError:
            failures += 1
    assert failures >= 2
    n_steps = sum(history["step"][-1].as_py() for _, history in expected)
    assert not is_leaving or len(calls) == n_steps + failures
    for theta, (state, history) in zip((None, 0.05), expected, strict=True):
        got = state_of(again, theta)[0]
        assert all(torch.equal(got[k], state[k]) for k in state)
        assert again.regressor(label_set(again, theta)).read_all() == history


def test_finetune_moves_the_last_layers(labelled):
    job = train(labelled, "train.mode=finetune", "train.n_epochs=4", "train.batch_size=16", "train.learning_rate=0.1")
    state, card = state_of(job)
    before = load_recognizer("smoke:tiny").backbone.state_dict()
    assert not torch.equal(state["base_model.linear.weight"], before["linear.weight"])
    history = job.regressor(label_set(job)).read_all().to_pylist()
    assert card["metrics"]["validation_l1"] == min(r["validation_loss"] for r in history)
    assert card["metrics"]["validation_l1"] < history[0]["validation_loss"] or len(history) == 1
    check_validation_scores(job, card)


@pytest.mark.slow
def test_only_the_last_hundred_tensors_are_trained(labelled, tmp_path):
    """With 120 tensors the first 20 keep their values, also where their gradients count in the clipping norm."""
    values = load_settings(labelled)
    job_path = smoke.write_job(
        tmp_path / "job.yaml", "unused", values.run_uri, benchmarks=[], methods=[{"name": "embedding_norm"}],
        source=values.source.model_dump(mode="json"), recognizer={"name": "smoke:deep"},
    )  # fmt: skip
    common = ["train.mode=finetune", "train.n_epochs=1", "train.batch_size=16"]
    run_job(load_settings(job_path, common), LABEL_STAGES, new_settings=True)
    before = load_recognizer("smoke:deep").backbone.state_dict()
    names = list(before)
    clean = state_of(train(job_path, *common))[0]
    published = state_of(train(job_path, *common, "train.gradients=published"))[0]
    for state in (clean, published):
        moved = [not torch.equal(state[f"base_model.{n}"], before[n]) for n in names]
        assert moved == [False] * 20 + [True] * 100
    # Adam is nearly blind to the clip factor, so the published steps differ, but little
    gaps = [(clean[f"base_model.{n}"] - published[f"base_model.{n}"]).abs().max().item() for n in names[20:]]
    assert 0 < max(gaps) < 1e-2


@pytest.mark.slow
def test_ray_train_with_two_workers_goes_on_after_a_killed_one(labelled, tmp_path, ray_cluster, bucket):
    """In a bucket, which keeps the state."""
    marker = tmp_path / "died"
    values = load_settings(labelled)
    job_path = smoke.write_job(
        tmp_path / "job.yaml",
        "unused",
        f"{bucket}/run",
        benchmarks=[],
        methods=[{"name": "embedding_norm"}],
        source=values.source.model_dump(mode="json"),
        recognizer={"name": "smoke:mortal", "options": {"marker": str(marker)}},
        train={"mode": "finetune", "batch_size": 8, "n_epochs": 2},
    )
    run_job(load_settings(job_path), LABEL_STAGES)
    settings = load_settings(job_path, ["compute.engine=ray", "compute.train_workers=2"])
    for steps in stage_steps("train", Job(settings)):
        run_steps(steps, RayMapper(settings.compute))
    assert marker.exists()  # one worker died in the middle
    state, card = state_of(Job(settings))
    assert card["metrics"]["n_steps"] > 8
    assert np.isfinite(card["metrics"]["validation_l1"])
    assert all(torch.isfinite(v).all() for v in state.values())
    check_validation_scores(Job(settings), card)


@pytest.mark.parametrize("lost", [("weights.pt",), ("card.json",), ("part-00000.parquet", "weights.pt")])
def test_some_of_four_lost_heads_are_made_again_with_the_same_bytes(labelled, tmp_path, lost):
    """The other heads keep their files."""
    copy = str(tmp_path / "copy")
    shutil.copytree(
        load_settings(labelled).run_uri, copy, ignore=shutil.ignore_patterns("_lock", "_training", "regressor")
    )
    options = ["optimize.theta=[0.05,0.02,0.01]", "train.n_epochs=2", f"run_uri={copy}"]
    for steps in stage_steps("optimize", Job(load_settings(labelled, options))):
        run_steps(steps, local_map)
    job = train(labelled, *options)
    folders = [Path(job.regressor(label_set(job, theta)).uri) for theta in (None, 0.05, 0.02, 0.01)]
    before = {p: p.read_bytes() for folder in folders for p in folder.iterdir()}
    for folder, name in zip(folders[1:], lost, strict=False):
        (folder / name).unlink()
    shutil.rmtree(Path(copy) / "_training")
    train(labelled, *options)
    assert {p: p.read_bytes() for folder in folders for p in folder.iterdir()} == before


def test_a_changed_state_is_refused(labelled, tmp_path):
    """One bit of it, or another one over it; without it training starts again and ends with the same weights."""
    copy = str(tmp_path / "copy")
    shutil.copytree(
        load_settings(labelled).run_uri, copy, ignore=shutil.ignore_patterns("_lock", "_training", "regressor")
    )
    options = ["train.n_epochs=2", "train.batch_size=16", f"run_uri={copy}"]
    job = train(labelled, *options)
    weights = Path(job.regressor(label_set(job)).at("weights.pt"))
    (state,) = (Path(copy) / "_training").rglob("state-*.pt")
    before, trained = state.read_bytes(), weights.read_bytes()
    weights.unlink()
    for place in (100, len(before) // 2, len(before) - 10):
        state.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        with pytest.raises(FiqaRayError, match=r"state-.*\.pt is damaged.*remove this file and run again"):
            loop.load_training_state(str(state))
    other = state.with_name("state-0123.pt")
    other.write_bytes(before)
    with pytest.raises(FiqaRayError, match=r"state-0123\.pt is damaged"):
        loop.load_training_state(str(other))
    state.unlink()
    train(labelled, *options)
    assert weights.read_bytes() == trained


def test_a_lost_regressor_is_trained_again(labelled, tmp_path):
    """Its record alone does not count: the file must be there, with the size it had."""
    copy = str(tmp_path / "copy")
    shutil.copytree(load_settings(labelled).run_uri, copy, ignore=shutil.ignore_patterns("_lock"))
    options = ["train.mode=finetune", "train.n_epochs=1", "train.batch_size=16", f"run_uri={copy}"]
    job = train(labelled, *options)
    weights = Path(job.regressor(label_set(job, 0.05)).at("weights.pt"))
    before = weights.read_bytes()
    weights.unlink()
    shutil.rmtree(Path(copy) / "_training")
    train(labelled, *options)
    assert weights.read_bytes() == before


def test_a_restart_between_two_regressors_changes_nothing(labelled, tmp_path):
    """Every network starts from the same head, whether it is the first of its process or not."""
    options = ["train.mode=finetune", "train.n_epochs=2", "train.batch_size=16", "train.learning_rate=0.5"]
    whole = train(labelled, *options)
    copy = str(tmp_path / "copy")
    shutil.copytree(whole.settings.run_uri, copy, ignore=shutil.ignore_patterns("_lock", "_training"))
    shutil.rmtree(whole.regressor(label_set(whole, 0.05)).uri.replace(whole.settings.run_uri, copy))
    again = train(labelled, *options, f"run_uri={copy}")
    state, expected = state_of(again, 0.05)[0], state_of(whole, 0.05)[0]
    assert all(torch.equal(state[k], expected[k]) for k in state)


TWO_WORKERS = """
import sys, torch, torch.distributed as dist
from fiqa_ray.training import finetune
from fiqa_ray.config import load_settings
from fiqa_ray.job import Job, LabelSet
from fiqa_ray.stages.train import training_plan
rank, port, job, out = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
for gradients in ("clean", "published"):
    plan = training_plan(Job(load_settings(job, [*sys.argv[5:], f"train.gradients={gradients}"])))
    torch.manual_seed(rank)
    training = finetune.FinetuneTraining(plan, plan.tasks[0], "cpu", rank, 2)
    assert training.batch_size == plan.recipe.batch_size // 2
    for batch in training.batches(0, 2, 0):
        training.train_step(batch, 1.0)
    torch.save([p.detach().clone() for p in training.model.parameters()], f"{out}/{gradients}-{rank}.pt")
    dist.barrier()
"""


@pytest.mark.slow
def test_workers_hold_the_same_weights_after_every_step(labelled, tmp_path):
    """Two processes with unequal shares of the rows; gradients are averaged before they are clipped."""
    options = ["train.mode=finetune", "train.batch_size=16"]
    port = str(smoke.free_port())
    command = [sys.executable, "-c", TWO_WORKERS]
    workers = [
        subprocess.Popen(
            [*command, str(rank), port, labelled, str(tmp_path), *options], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=400)
        assert worker.returncode == 0, errors
    for gradients in ("clean", "published"):
        first, second = (torch.load(tmp_path / f"{gradients}-{rank}.pt", weights_only=True) for rank in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
