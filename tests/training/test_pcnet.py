"""PCNet's training: noisier faces of new people become less certain; interrupted, it ends with the same head."""

import json
import os

import numpy as np
import pyarrow.csv as pacsv
import pytest
import torch
from scipy.stats import spearmanr

import smoke
from fiqa_ray.config import load_settings
from fiqa_ray.engine import ray_train
from fiqa_ray.errors import FiqaRayError, IncompleteError, UsageError
from fiqa_ray.images import decode_faces
from fiqa_ray.job import Job
from fiqa_ray.models.quality import load_scorer
from fiqa_ray.models.recognition import load_recognizer
from fiqa_ray.tools.run_job import run_job
from fiqa_ray.training import pcnet
from fiqa_ray.training.pcnet import train_pcnet


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Packed faces of 22 people, of whom the first and the 21st are held out."""
    tmp = tmp_path_factory.mktemp("pcnet")
    faces = smoke.make_faces(tmp / "faces", n_identities=22, per_identity=6, benchmark=False)
    recognizer = {"name": "smoke:split"}
    methods = [{"name": "embedding_norm"}]
    path = smoke.write_job(
        tmp / "job.yaml", faces, str(tmp / "run"), recognizer=recognizer, methods=methods, benchmarks=[]
    )
    job = run_job(load_settings(path, ["compute.rows_per_part=40"]), ["pack"])
    return job, faces


def card_of(output):
    return json.loads((output.parent / f"{output.name}.json").read_text())


@pytest.mark.slow
def test_noise_makes_it_less_certain(packed, tmp_path):
    job, faces = packed
    output = tmp_path / "head.pt"
    card = train_pcnet(job, str(output), n_steps=70)
    assert card["recognizer_sha256"] == load_recognizer("smoke:split").weights_sha256
    assert card["history"][-1][0] == 70
    scorer = load_scorer("pcnet", recognizer=load_recognizer("smoke:split"), weights=str(output))
    table = job.faces("train").read_all()
    score = scorer(decode_faces(table["face"].to_pylist())[0])
    assert 0 < score.min() < score.max() < 1
    with pytest.raises(FiqaRayError, match="was trained on a recogniser with the SHA-256"):
        load_scorer("pcnet", recognizer=load_recognizer("arcface_r18", "random:0"), weights=str(output))
    given = pacsv.read_csv(faces / "scores.csv").to_pydict()
    quality = np.array(
        [dict(zip(given["image_id"], given["score"], strict=True))[i] for i in table["image_id"].to_pylist()]
    )
    held_out = table["identity_row"].to_numpy() % pcnet.VALIDATION_EVERY == 0
    assert held_out.sum() == 12
    assert spearmanr(score[held_out], quality[held_out]).statistic > 0.6  # of people it has never seen
    untrained = tmp_path / "first.pt"
    assert card["validation_loss"] < 0.8 * train_pcnet(job, str(untrained), n_steps=1)["validation_loss"]


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_head(packed, tmp_path, monkeypatch):
    job, _ = packed
    monkeypatch.setattr(pcnet, "SAVE_EVERY_S", 0.0)
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    train_pcnet(job, str(whole), n_steps=9)
    real, n = pcnet.pc_loss, 0

    def dying(*arguments):
        nonlocal n
        n += 1
        if n == 6:
            raise ConnectionError("the machine is gone")
        return real(*arguments)

    monkeypatch.setattr(pcnet, "pc_loss", dying)
    with pytest.raises(ConnectionError):
        train_pcnet(job, str(cut), n_steps=9)
    assert not cut.exists()
    train_pcnet(job, str(cut), n_steps=9)
    assert n == 6 + 4 + 1  # five steps were done and saved; four more, and the held-out people
    first, second = (torch.load(p, weights_only=True) for p in (whole, cut))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.ray
def test_two_workers_of_ray_train_by_relative_paths(tmp_path, ray_cluster, cli):
    """Run folder, faces and result are named from where the command is run; Ray Train moves its workers elsewhere."""
    smoke.make_faces(tmp_path / "faces", n_identities=5, per_identity=4, benchmark=False)
    job, faces, run, head = (os.path.relpath(tmp_path / name) for name in ("job.yaml", "faces", "run", "head.pt"))
    smoke.write_job(tmp_path / "job.yaml", faces, run, recognizer={"name": "smoke:split"}, benchmarks=[])
    parts = ["compute.rows_per_part=12"]  # the second has two people, the first three, of whom one is held out
    run_job(load_settings(job, parts), ["pack"])
    code, _, messages = cli(
        "train-pcnet", job, head, "compute.engine=ray", "compute.train_workers=2", *parts, "--steps", "4"
    )
    assert code == 0, messages
    card = card_of(tmp_path / "head.pt")
    assert card["n_steps"] == 4
    assert np.isfinite(card["validation_loss"])
    weights = torch.load(tmp_path / "head.pt", weights_only=True)
    assert int(weights["layers.2.num_batches_tracked"]) == 4


def test_a_worker_without_people_stops_all(tmp_path, ray_cluster, monkeypatch):
    """The second part holds one person, who is held out: the first worker must not wait for the second."""
    monkeypatch.setattr(ray_train, "MAX_FAILURES", 0)
    faces = smoke.make_faces(tmp_path / "faces", n_identities=21, per_identity=3, benchmark=False)
    path = smoke.write_job(
        tmp_path / "job.yaml", faces, str(tmp_path / "run"), recognizer={"name": "smoke:split"}, benchmarks=[]
    )
    job = run_job(load_settings(path, ["compute.rows_per_part=60"]), ["pack"])
    assert [p.n_rows for p in job.faces("train").require().parts] == [60, 3]
    compute = job.settings.compute.model_copy(update={"engine": "ray", "train_workers": 2})
    wide = Job(job.settings.model_copy(update={"compute": compute}))
    with pytest.raises(FiqaRayError, match="no person to train on with two good images"):
        train_pcnet(wide, str(tmp_path / "head.pt"), n_steps=2)


def test_mistakes_have_one_clear_message(packed, tmp_path):
    job, faces = packed
    with pytest.raises(UsageError, match="n_steps=0 must be at least 1"):
        train_pcnet(job, str(tmp_path / "a.pt"), n_steps=0)
    tiny = load_settings(smoke.write_job(tmp_path / "tiny.yaml", faces, str(tmp_path / "run"), benchmarks=[]))
    with pytest.raises(IncompleteError, match="run that stage first"):
        train_pcnet(Job(tiny), str(tmp_path / "a.pt"))
    with pytest.raises(UsageError, match="pcnet starts from the layer before a recogniser's dropout"):
        train_pcnet(run_job(tiny, ["pack"]), str(tmp_path / "a.pt"))
    alone = smoke.make_faces(tmp_path / "alone", n_identities=4, per_identity=1, benchmark=False)
    split = {"name": "smoke:split"}
    source = {"kind": "folder", "uri": f"{alone}/train", "allow_single_images": True}
    path = smoke.write_job(
        tmp_path / "alone.yaml", alone, str(tmp_path / "run2"), source=source, recognizer=split, benchmarks=[]
    )
    with pytest.raises(FiqaRayError, match="no person to train on with two good images"):
        train_pcnet(run_job(load_settings(path), ["pack"]), str(tmp_path / "a.pt"))
    assert not list(tmp_path.glob("a.pt*"))
