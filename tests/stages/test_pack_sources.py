"""What people have, packed: every kind of source gives the shards of the folder with the same images."""

import csv
import hashlib
import io
import os
import struct
import tarfile

import numpy as np
import pytest

import containers
import smoke
from fiqa_ray.cli import main
from fiqa_ray.config import SourceSettings, load_settings
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.images import STATUSES, decode_image
from fiqa_ray.job import Job
from fiqa_ray.models.detector import FaceDetector
from fiqa_ray.sources.comparisons import read_pairs
from fiqa_ray.sources.kinds import SOURCES
from fiqa_ray.sources.vggface2 import list_vggface2
from fiqa_ray.stages.pack import list_faces
from fiqa_ray.storage import read_bytes
from fiqa_ray.synthetic.dataset import write_synthetic_faces
from fiqa_ray.tools.run_job import run_job

N_DAMAGES = 150  # 3,000 of each kind were tried once


@pytest.fixture(scope="module")
def samples():
    return containers.synthetic_crops(4, 9)


def packed(tmp_path, name, source, *overrides):
    settings = smoke.settings(
        tmp_path, tmp_path, str(tmp_path / name), "compute.rows_per_part=12", *overrides, benchmarks=[], source=source
    )
    run_job(settings, ["pack"])
    faces = Job(settings).faces("train")
    return faces.read_all(), faces.require()


@pytest.mark.parametrize("kind", containers.WRITERS)
def test_every_source_gives_the_folders_shards(tmp_path, root, samples, kind):
    expected, by_folder = packed(tmp_path, "folder", containers.write_folder(str(tmp_path / "images"), samples))
    table, manifest = packed(tmp_path, "other", containers.WRITERS[kind](f"{root}/set", samples))
    assert expected["face"].to_pylist() == [image for _, image in samples]
    alike = ["image_row", "identity_row", "face", "status", "error"]
    alike += {"recordio": ["identity"], "im2rec": ["identity"], "bin": []}.get(kind, ["identity", "image_id"])
    assert table.select(alike).equals(expected.select(alike))
    assert [p.n_rows for p in manifest.parts] == [p.n_rows for p in by_folder.parts]
    assert manifest.stats == {"status": {"ok": 36}, "alignment": {"as_is": 36}}
    if kind in ("recordio", "im2rec"):
        assert table["image_id"].to_pylist() == [f"{key:08d}" for key in range(1, 37)]
    if kind == "bin":  # first occurrences in the list of pairs, and an identity is called after its first
        assert table["image_id"].to_pylist()[:4] == ["00000", "00001", "00003", "00005"]
        assert table["identity"].to_pylist()[:10] == ["00000"] * 9 + ["00016"]


@pytest.mark.parametrize("kind", ["webdataset", "parquet_images"])
def test_landmarks_inside_containers_align_as_vggface2s(tmp_path, kind):
    faces = tmp_path / "faces"
    write_synthetic_faces(
        faces, n_identities=2, images_per_identity=3, n_heldout_identities=2, heldout_images_per_identity=3, n_folds=1,
        pairs_per_fold=2, n_workers=1,
    )  # fmt: skip
    expected, _ = packed(tmp_path, "vgg", {"kind": "vggface2", "uri": str(faces), "splits": ["train"]})
    with open(faces / "bb_landmark" / "loose_landmark_train.csv", newline="") as f:
        rows = [(r[0], [float(v) for v in r[1:]]) for r in list(csv.reader(f))[1:]]
    images = [(faces / "train" / f"{name}.jpg").read_bytes() for name, _ in rows]
    people = [name.partition("/")[0] for name, _ in rows]
    if kind == "webdataset":
        members = []
        for (name, points), image, person in zip(rows, images, people, strict=True):
            pairs = [points[i : i + 2] for i in range(0, 10, 2)]
            note = containers.json.dumps({"identity": person, "landmarks": pairs}).encode()
            members += [(f"./train/{name}.json", note), (f"./train/{name}.jpg", image)]
        uri = containers.put(f"{tmp_path}/a.tar", containers.tar_bytes(members))
    else:
        columns = {
            "picture": images,
            "who": people,
            "image_id": [f"train/{name}.jpg" for name, _ in rows],
            "landmarks": [points for _, points in rows],
        }
        uri = containers.put_parquet(f"{tmp_path}/a.parquet", columns)
    source = {"kind": kind, "uri": uri} | ({"identity_key": "who"} if kind == "parquet_images" else {})
    table, manifest = packed(tmp_path, "other", source)
    assert table.equals(expected)
    assert manifest.stats["alignment"] == {"landmarks": len(rows)}


@pytest.mark.parametrize("kind", containers.WRITERS)
def test_corrupt_entries_are_counted_listed_and_end_the_run(tmp_path, capsys, kind):
    """3 of 100 are bad: refused at 1 %, with counts and a list; at 3 % the same run goes on."""
    samples = containers.synthetic_crops(5, 20)
    cut, odd = samples[30][1], samples[70][1]
    bomb = containers.png(np.zeros((8, 8, 3), np.uint8))
    bomb = bomb[:16] + struct.pack(">II", 60_000, 60_000) + bomb[24:]
    bad = {
        30: (cut[: len(cut) // 2], "truncated"),
        70: (b"no image at all" + odd[15:], "unreadable"),
        90: (bomb, "too_large"),
    }
    spoiled = [(p, bad[i][0] if i in bad else image) for i, (p, image) in enumerate(samples)]
    source = containers.WRITERS[kind](f"{tmp_path}/set", spoiled)
    if kind == "recordio":  # damage of the record itself
        place = tmp_path / "set" / "train.rec"
        data = place.read_bytes()
        at = data.index(spoiled[70][1][:200]) - 40
        place.write_bytes(data[:at] + b"\0\0\0\0" + data[at + 4 :])
        bad[70] = (b"", "bad_record")
    path = smoke.write_job(tmp_path / "job.yaml", tmp_path, str(tmp_path / "run"), benchmarks=[], source=source)

    def cli(*argv):
        with pytest.raises(SystemExit) as end:
            main([*map(str, argv)])
        return end.value.code, *capsys.readouterr()

    code, _, err = cli("run", path, "--stages=pack")
    assert code == 1
    assert "pack: 3 of 100 images are bad" in err
    for _, status in bad.values():
        assert f"{status} 1" in err
    code, out, _ = cli("rejects", tmp_path / "run")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [r["status"] for r in rows] == [status for _, status in bad.values()]
    assert all(r["error"] and r["dataset"].startswith("faces/set=train") for r in rows)
    if kind == "recordio":
        assert [(r["image_id"], r["identity"]) for r in rows] == [
            ("00000031", "1"),
            ("00000071", "3"),
            ("00000091", "4"),
        ]
    assert cli("rejects", tmp_path / "run", "-o", tmp_path / "bad.csv")[1].startswith("3 image(s) rejected")
    assert (tmp_path / "bad.csv").read_text() == out
    assert cli("run", path, "--stages=pack", "max_bad_fraction=0.03")[0] == 0
    assert Job(load_settings(path)).faces("train").require().n_rows == 100


@pytest.mark.slow
def test_bin_is_a_benchmark(tmp_path, samples):
    """Faces and pairs of one file through the whole job."""
    rng = np.random.default_rng(0)
    images, same = [], []
    for i in range(60):
        mated = i % 6 < 3
        a = rng.integers(len(samples))
        others = [j for j in range(len(samples)) if (samples[j][0] == samples[a][0]) == mated and j != a]
        images += [samples[a][1], samples[rng.choice(others)][1]]
        same.append(mated)
    uri = containers.put_bin(f"{tmp_path}/own.bin", images, same)
    source = containers.write_recordio(str(tmp_path / "rec"), samples)
    benchmark = {"name": "own", "source": {"kind": "bin", "uri": uri}, "pairs": {"kind": "bin", "uri": uri}}
    settings = smoke.settings(
        tmp_path, tmp_path, str(tmp_path / "run"), source=source, methods=[{"name": "embedding_norm"}],
        benchmarks=[benchmark], train={"n_epochs": 1}, evaluate={"fmr": 0.1, "draws": 0},
    )  # fmt: skip
    run_job(settings)
    job = Job(settings)
    found = job.comparisons(settings.benchmarks[0], settings.recognizer).read_all()
    assert found["mated"].to_pylist() == same
    assert found["fold"].to_pylist() == [i // 6 for i in range(60)]
    faces = job.faces("own").read_all()
    assert len(faces) == len(set(images))
    row_of = {face: row for row, face in enumerate(faces["face"].to_pylist())}
    assert found["image_row_a"].to_pylist() == [row_of[image] for image in images[0::2]]
    assert found["image_row_b"].to_pylist() == [row_of[image] for image in images[1::2]]
    assert len(read_pairs(settings.benchmarks[0].pairs)) == 60


@pytest.mark.skipif("FIQA_RAY_DATA" not in os.environ, reason="FIQA_RAY_DATA names a folder with YuNet and raw faces")
def test_detector_on_raw_faces(tmp_path):
    """YuNet's landmarks agree with those of the data set's list; what has no face says so; both ways do not mix."""
    data = os.environ["FIQA_RAY_DATA"]
    with tarfile.open(f"{data}/vggface2_like_sample.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    root, detector = tmp_path / "raw_sample", f"{data}/face_detection_yunet.onnx"
    by_list, _ = packed(tmp_path, "list", {"kind": "vggface2", "uri": str(root), "splits": ["train"]})
    containers.put(f"{root}/train/zzz/flat.png", containers.png(np.full((90, 90, 3), 60, np.uint8)))
    raw = {"kind": "folder", "uri": str(root / "train"), "detector": detector}
    found, manifest = packed(tmp_path, "found", raw)
    mark = "detector " + hashlib.sha256(read_bytes(detector)).hexdigest()
    assert manifest.stats == {"status": {"ok": len(by_list), "no_face": 1}, "alignment": {mark: len(by_list)}}
    assert found["status"][-1].as_py() == "no_face"
    find = FaceDetector(detector)
    errors = []
    for row in list_vggface2(str(root), splits=["train"]).to_pylist()[: len(by_list)]:
        points, expected = find(decode_image(read_bytes(row["uri"]))[0]), np.reshape(row["landmarks"], (5, 2))
        errors.append(np.linalg.norm(points - expected, axis=1).mean() / np.linalg.norm(np.ptp(expected, axis=0)))
    assert np.median(errors) < 0.05  # of the landmarks' own extent; exchanged sides give 0.4
    assert np.mean(np.array(errors) < 0.15) > 0.95

    landmarks = (root / "bb_landmark" / "loose_landmark_train.csv").read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join(landmarks[:11]) + "\n")
    some = raw | {"landmarks_uri": str(tmp_path / "some.csv")}
    with pytest.raises(FiqaRayError, match=f"by given landmarks 10.*{mark} {len(by_list) - 10}|{mark}.*landmarks 10"):
        packed(tmp_path, "some", some)
    assert len(packed(tmp_path, "some", some | {"allow_mixed_crops": True})[0]) == len(by_list) + 1
    with pytest.raises(FiqaRayError, match="not a readable ONNX file"):
        packed(tmp_path, "wrong", raw | {"detector": str(tmp_path / "some.csv")})


@pytest.mark.slow
@pytest.mark.parametrize("kind", containers.WRITERS)
def test_random_damage_is_refused_or_kept_as_rows(tmp_path, samples, kind):
    """Bytes changed, cut out or repeated anywhere: one clear error, or every listed image has its content or a reason."""
    rng = np.random.default_rng(0)
    settings = SourceSettings(**containers.WRITERS[kind](f"{tmp_path}/set", samples[:12]))
    files = sorted(p for p in (tmp_path / "set").iterdir())
    whole = {p: p.read_bytes() for p in files}
    refusals, n_kept = [], 0
    for _ in range(N_DAMAGES):
        place = files[rng.integers(len(files))]
        data = bytearray(whole[place])
        # mostly where the structure is: at the ends, and around what is no image
        at = int(
            rng.choice([rng.integers(len(data)), rng.integers(min(600, len(data))), len(data) - 1 - rng.integers(600)])
        )
        n = int(rng.choice([1, 4, 64]))
        data[max(at, 0) : at + n] = [rng.bytes(n), b"", b"\xff" * n, data[at : at + n] * 2][rng.integers(4)]
        place.write_bytes(data)
        try:
            faces, _ = list_faces("bench", settings)
            found = dict(SOURCES[settings.kind].read_images(faces))
            assert sorted(found) == list(range(len(faces)))
            assert all(isinstance(c, bytes) or (c.status in STATUSES and c.error) for c in found.values())
            n_kept += 1
        except FiqaRayError as exc:
            refusals.append(str(exc))
        place.write_bytes(whole[place])
    assert all(str(tmp_path / "set") in message and len(message) < 1000 for message in refusals)
    assert min(len(refusals), n_kept) > N_DAMAGES // 50
