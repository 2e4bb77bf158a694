import csv
import itertools
import shutil

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import smoke
from fiqa_ray.config import make_settings
from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.datasets import columns
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.images import face_picture
from fiqa_ray.job import Job
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.stages import infer_parts
from fiqa_ray.stages.pack import identity_rows, part_bounds
from fiqa_ray.tools.run_job import run_job


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30), rows=st.integers(1, 120))
def test_parts_cover_all_rows_and_never_split_an_identity(sizes, rows):
    identity = np.repeat(np.arange(len(sizes)), sizes)
    bounds = part_bounds(identity, rows)
    assert bounds[0] == 0
    assert bounds[-1] == len(identity)
    assert all(a < b for a, b in itertools.pairwise(bounds))
    for a, b in itertools.pairwise(bounds):
        whole = [n for k, n in enumerate(sizes) if a <= identity.searchsorted(k) < b]
        assert sum(whole) == b - a
        assert b - a <= max(rows, max(whole)) or len(whole) == 1
    names = pa.chunked_array([pa.array([f"p{k:03d}" for k in identity])])
    assert identity_rows(names).tolist() == identity.tolist()


def test_faces_as_vggface2_distributes_them(tmp_path):
    """Loose crops are aligned by their landmarks; a crop of 112x112 without landmarks keeps its bytes; rows are dense."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.uniform(0, 255, (12, 12, 3)), (112, 112), interpolation=cv2.INTER_CUBIC)
    face = smooth.clip(0, 255).astype(np.uint8)
    rows = []
    for k, turn in ((2, 0.0), (3, 0.4)):
        folder = tmp_path / "train" / f"n{k:06d}"
        folder.mkdir(parents=True)
        # the same face, scaled by 2, turned and moved: alignment must undo it
        c, s = 2 * np.cos(turn), 2 * np.sin(turn)
        move = np.array([[c, -s, 60.0], [s, c, 40.0]])
        loose = cv2.warpAffine(face, move, (330, 330), flags=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / "0001_01.jpg"), loose, [cv2.IMWRITE_JPEG_QUALITY, 100])
        points = TEMPLATE @ move[:, :2].T + move[:, 2]
        rows.append([f"n{k:06d}/0001_01", *points.ravel()])
    assert cv2.imwrite(str(tmp_path / "train" / "n000002" / "0002_01.jpg"), face)
    assert cv2.imwrite(str(tmp_path / "train" / "n000002" / "0003_01.jpg"), cv2.resize(face, (90, 80)))
    (tmp_path / "train" / "n000003" / "0002_01.jpg").write_bytes(b"")
    (tmp_path / "bb_landmark").mkdir()
    with open(tmp_path / "bb_landmark" / "loose_landmark_train.csv", "w", newline="") as f:
        f.write("NAME_ID," + ",".join(f"P{i}{a}" for i in range(1, 6) for a in "XY") + "\n")
        csv.writer(f, quoting=csv.QUOTE_NONNUMERIC).writerows(rows)
    settings = smoke.settings(
        tmp_path, tmp_path, str(tmp_path / "run"), "max_bad_fraction=0.5", benchmarks=[],
        source={"kind": "vggface2", "uri": str(tmp_path), "splits": ["train"]},
    )  # fmt: skip
    with pytest.raises(FiqaRayError, match=r"several ways \(taken as they are 1, by given landmarks 2\)"):
        run_job(settings, ["pack"])
    settings = make_settings(
        settings.model_dump() | {"source": {**settings.source.model_dump(), "allow_mixed_crops": True}}
    )
    run_job(settings, ["pack"])  # the parts stand, and so does the run's folder
    table = Job(settings).faces("train").read_all()
    got = {r["image_id"]: r for r in table.to_pylist()}
    assert table["image_row"].to_pylist() == list(range(5))
    assert table["identity_row"].to_pylist() == [0, 0, 0, 1, 1]
    assert {k: r["status"] for k, r in got.items()} == {
        "train/n000002/0001_01.jpg": "ok",
        "train/n000002/0002_01.jpg": "ok",
        "train/n000002/0003_01.jpg": "no_landmarks",
        "train/n000003/0001_01.jpg": "ok",
        "train/n000003/0002_01.jpg": "empty",
    }
    kept = got["train/n000002/0002_01.jpg"]["face"]
    assert kept == (tmp_path / "train" / "n000002" / "0002_01.jpg").read_bytes()
    for name in ("train/n000002/0001_01.jpg", "train/n000003/0001_01.jpg"):
        aligned = cv2.imdecode(np.frombuffer(face_picture(got[name]["face"]), np.uint8), cv2.IMREAD_COLOR)
        inner = np.s_[8:-8, 8:-8]
        assert np.abs(aligned[inner].astype(int) - face[inner]).mean() < 3
    stats = Job(settings).faces("train").require().stats
    stats.pop("storage_retries", None)  # of this process, whatever ran in it before
    assert stats == {"status": {"ok": 3, "no_landmarks": 1, "empty": 1}, "alignment": {"landmarks": 2, "as_is": 1}}


@pytest.mark.slow
def test_batches_have_one_shape_and_padding_changes_nothing(tmp_path):
    """An embedding's bits do not depend on the part, the batch or the padding around it."""
    faces = smoke.make_faces(tmp_path / "faces", n_identities=3, per_identity=7, benchmark=False)
    seen = []

    def spy(x, rows):
        seen.append((tuple(x.shape), int((rows < 0).sum())))
        with torch.inference_mode():
            return [model(x, rows)]

    call = infer_parts.ModelCall(None, None, None, {}, 0, "cpu")
    results = []
    for i, rows_per_part in enumerate((1000, 7)):
        settings = smoke.settings(
            tmp_path, faces, str(tmp_path / f"run{i}"), f"compute.rows_per_part={rows_per_part}", benchmarks=[],
            recognizer={"name": "curricularface_mobilefacenet", "weights": "random:0"},
        )  # fmt: skip
        run_job(settings, ["pack"])
        job = Job(settings)
        call = infer_parts.ModelCall(settings.recognizer, None, None, {}, 0, "cpu")
        model = call.load()
        dataset, source = job.embeddings("train"), job.faces("train")
        torch.set_num_threads(1)
        for part in source.require().parts:
            infer_parts.model_worker([dataset], source, spy, "embedding", 16)(part)
        dataset.write_plan({})
        dataset.commit(len(source.require().parts))
        results.append(columns.embedding_values(dataset.read_all())[0])
    assert {shape for shape, _ in seen} == {(16, 3, 112, 112)}
    assert [n for _, n in seen] == [0, 11, 9, 9, 9]
    assert np.array_equal(results[0].view(np.uint32), results[1].view(np.uint32))


def test_a_method_with_its_own_network_is_scored_without_the_recogniser(tmp_path, monkeypatch):
    """The job's recogniser is neither loaded nor part of the scores' fingerprint."""
    faces = smoke.make_faces(tmp_path / "faces", n_identities=2, per_identity=4, benchmark=False)
    own = {"name": "sddfiqa_mobilefacenet", "weights": "random:1", "label": "sdd"}
    on_recogniser = {"name": "serfiq", "options": {"n_passes": 4}}
    jobs = []
    for seed in (0, 5):
        settings = smoke.settings(
            tmp_path, faces, str(tmp_path / "run"), benchmarks=[], methods=[own, on_recogniser],
            recognizer={"name": "arcface_r18", "weights": f"random:{seed}"},
        )  # fmt: skip
        jobs.append(Job(settings))
    one, other = ([job.prior_scores("train", m).uri for m in job.settings.methods] for job in jobs)
    assert one[0] == other[0]
    assert one[1] != other[1]
    settings = jobs[0].settings.model_copy(update={"methods": jobs[0].settings.methods[:1]})
    monkeypatch.setattr(infer_parts, "load_recognizer", None)
    run_job(settings, ["pack", "score"])
    scores = Job(settings).prior_scores("train", settings.methods[0]).read_all()["score"].to_pylist()
    assert len(set(scores)) == 8


def test_drawn_scores_count_the_version_of_the_draws(tmp_path, monkeypatch):
    methods = [{"name": "serfiq"}, {"name": "embedding_norm"}]
    job = Job(smoke.settings(tmp_path, tmp_path, str(tmp_path / "run"), benchmarks=[], methods=methods))
    before = [job.prior_scores("train", m).fingerprint for m in job.settings.methods]
    monkeypatch.setattr("fiqa_ray.job.DRAWS_VERSION", 1000)
    drawn, fixed = [job.prior_scores("train", m).fingerprint for m in job.settings.methods]
    assert drawn != before[0]
    assert fixed == before[1]


@pytest.mark.slow
def test_methods_on_one_trunk_run_it_once_and_score_as_alone(tmp_path, monkeypatch):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=2, per_identity=4, benchmark=False)
    recognizer = {"name": "arcface_r18", "weights": "random:0"}
    methods = [
        {"name": "serfiq", "options": {"n_passes": 5, "stretched": False}},
        {"name": "pcnet", "weights": "random:2"},
        {"name": "serfiq", "label": "stretched", "options": {"n_passes": 5, "alpha": 10}},
    ]
    seen = []
    trunk = IResNet.trunk
    monkeypatch.setattr(IResNet, "trunk", lambda self, x: seen.append(len(x)) or trunk(self, x))

    def run(n_methods, folder):
        settings = smoke.settings(
            tmp_path, faces, str(tmp_path / folder), "compute.batch_size=4", benchmarks=[], recognizer=recognizer,
            methods=methods[:n_methods],
        )  # fmt: skip
        run_job(settings, ["pack"], new_settings=True)
        seen.clear()
        job = run_job(settings, ["score"], new_settings=True)
        return [job.prior_scores("train", m).read_all()["score"].to_pylist() for m in settings.methods]

    two = run(2, "together")
    assert seen == [4, 4]
    (alone,) = run(1, "alone")
    assert alone == two[0]
    assert len(set(two[1])) == 8
    three = run(3, "together")  # what is there stays, the new method comes by itself
    assert seen == [4, 4]
    assert three[:2] == two
    wanted = 1 / (1 + np.exp(-10 * (np.array(two[0]) - 0.88)))
    np.testing.assert_allclose(three[2], wanted, rtol=1e-5)


def test_a_method_may_work_on_another_recogniser_than_the_jobs(tmp_path):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=2, per_identity=4, benchmark=False)
    released_with = {"name": "curricularface_mobilefacenet", "weights": "random:3"}
    methods = [{"name": "embedding_norm"}, {"name": "embedding_norm", "label": "other", "recognizer": released_with}]

    def run(folder, **changes):
        settings = smoke.settings(tmp_path, faces, str(tmp_path / folder), benchmarks=[], **changes)
        job = run_job(settings, ["pack", "embed", "score"], new_settings=True)
        return [job.prior_scores("train", m).read_all()["score"].to_pylist() for m in settings.methods]

    plain, other = run("both", methods=methods)
    (alone,) = run("alone", methods=methods[:1], recognizer=released_with)
    assert other == alone
    assert plain != other
    own = {"name": "sddfiqa_mobilefacenet", "weights": "random:1", "recognizer": released_with}
    with pytest.raises(UsageError, match="sddfiqa_mobilefacenet works on no FR model; leave out its recognizer curric"):
        run("both", methods=[own])


@pytest.mark.parametrize("flip", ["sum", "concat"])
def test_embeddings_of_faces_and_their_mirror_images(tmp_path, flip):
    """The job's embeddings are made of two that the bare network gives: of the pixels, and from right to left."""
    faces = smoke.make_faces(tmp_path / "faces", n_identities=3, per_identity=4, benchmark=False)
    changes = {"benchmarks": [], "methods": [{"name": "embedding_norm"}], "train": {"mode": "finetune"}}
    plain = smoke.settings(tmp_path, faces, str(tmp_path / "run"), **changes)
    flipped = smoke.settings(tmp_path, faces, str(tmp_path / "run"), f"recognizer.flip={flip}", **changes)
    run_job(plain, ["pack", "embed", "score"])
    job = run_job(flipped, ["pack", "embed", "score"], new_settings=True)
    assert job.embeddings("train").uri != Job(plain).embeddings("train").uri

    table = job.faces("train").read_all(["face"])
    pixels = np.stack([cv2.imdecode(np.frombuffer(f, np.uint8), 1)[..., ::-1] for f in table["face"].to_pylist()])
    with torch.inference_mode():
        own, mirrored = (
            smoke.Tiny()(torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float() / 255).numpy()
            for x in (pixels, pixels[:, :, ::-1])
        )
    values, _ = columns.embedding_values(job.embeddings("train").read_all(["embedding"]))
    wanted = own + mirrored if flip == "sum" else np.concatenate([own, mirrored], axis=1)
    np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-4)
    # methods score faces as they are
    scores = [
        j.prior_scores("train", j.settings.methods[0]).read_all(["score"])["score"].to_numpy()
        for j in (Job(plain), job)
    ]
    np.testing.assert_allclose(scores[0], np.linalg.norm(own, axis=1), rtol=1e-5)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)


def test_a_head_does_not_learn_from_flipped_embeddings(tmp_path):
    with pytest.raises(UsageError, match=r"with recognizer.flip set train.mode: finetune"):
        smoke.settings(tmp_path, tmp_path, str(tmp_path / "run"), "recognizer.flip=sum")


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_own_scores_reach_the_rows_they_name(tmp_path, kind):
    faces = smoke.make_faces(tmp_path / "faces", n_identities=3, per_identity=4, benchmark=False)
    with open(faces / "scores.csv", newline="") as f:
        rows = list(csv.DictReader(f))[::-1]  # another order than the faces'
    place = tmp_path / f"own.{kind}"
    table = pa.table(
        {"image_id": [r["image_id"] for r in rows], "score": [float(r["score"]) for r in rows], "more": [1] * 12}
    )
    if kind == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, place)
    else:
        import pyarrow.csv as pacsv

        pacsv.write_csv(table, place)
    settings = smoke.settings(
        tmp_path, faces, str(tmp_path / "run"), benchmarks=[], methods=[{"name": "mine", "scores": str(place)}]
    )
    run_job(settings, ["pack", "score"])
    job = Job(settings)
    ids = job.faces("train").read_all(["image_id"])["image_id"].to_pylist()
    scores = job.prior_scores("train", settings.methods[0]).read_all()["score"].to_pylist()
    expected = {r["image_id"]: float(r["score"]) for r in rows}
    assert dict(zip(ids, scores, strict=True)) == expected


def test_scores_do_not_depend_on_batches_or_workers(tmp_path, ray_cluster):
    """All kinds of methods, stochastic ones too: batches of 1, 7 and 64 faces in one process, and two of Ray's workers."""
    faces = smoke.make_faces(tmp_path / "faces", n_identities=4, per_identity=9, benchmark=False)
    methods = [
        {"name": "faceqan", "options": {"n_samples": 2, "n_iterations": 2}},
        {"name": "serfiq", "options": {"n_passes": 6, "alpha": 10}},
        {"name": "pcnet", "weights": "random:1"},
        {"name": "sddfiqa_mobilefacenet", "weights": "random:2"},
        {"name": "embedding_norm"},
    ]

    def run(folder, *overrides):
        settings = smoke.settings(
            tmp_path, faces, str(tmp_path / folder), "compute.rows_per_part=9", *overrides,
            benchmarks=[], recognizer={"name": "smoke:split"}, methods=methods,
        )  # fmt: skip
        job = run_job(settings, ["pack", "embed", "score"])
        return [job.prior_scores("train", m).read_all()["score"].to_numpy() for m in settings.methods]

    expected = run("here", "compute.batch_size=16")
    assert all(len(np.unique(score)) > 18 for score in expected)
    for batch_size in (1, 7, 64):
        found = run(f"batch-{batch_size}", f"compute.batch_size={batch_size}")
        for method, a, b in zip(methods, found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.ptp(b), err_msg=str(method))
    for made in ("faces", "embeddings", "_settings"):  # the workers' are looked at by their labels, in test_job.py
        shutil.copytree(tmp_path / "here" / made, tmp_path / "workers" / made)
    wide = run("workers", "compute.batch_size=16", "compute.n_workers=2", "compute.engine=ray")
    for method, a, b in zip(methods, wide, expected, strict=True):
        assert a.tolist() == b.tolist(), method
