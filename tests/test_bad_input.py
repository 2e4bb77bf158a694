"""What a user can get wrong, through the command line: one message with value, place and remedy, an exit code, nothing
half-written; and where the cause can be mended, the same command then goes on to the end."""

import csv
import errno
import http.server
import json
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import bad_networks
import smoke
from fiqa_ray import storage
from fiqa_ray.cli import main
from fiqa_ray.config import load_settings
from fiqa_ray.engine.lock import RunLock
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.job import Job
from fiqa_ray.models.networks.iresnet import IResNet
from fiqa_ray.models.networks.mobilefacenet import arcface_torch_mobilefacenet
from fiqa_ray.storage import content_hash, patience, put_if_absent, read_bytes

LABELS = "--stages=pack,embed,score,pair,rank,optimize"
REGRESSORS = LABELS + ",train"


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """30 training faces of 6 people, a benchmark of 36."""
    return smoke.make_faces(tmp_path_factory.mktemp("faces") / "faces", n_identities=6, per_identity=5)


@pytest.fixture
def own(faces, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(faces, tmp_path / "own")


@pytest.fixture
def cli(capsys):
    """Runs a command as in a process of its own and returns exit code, output and message."""

    def call(*argv):
        content_hash.cache_clear()
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert err.count("error: ") <= 1
        message = err.partition("error: ")[2]
        assert bool(message) == (end.value.code == 1) or end.value.code in (2, 3)
        return end.value.code, out, message or err

    return call


def job(tmp_path, faces, **changes):
    """The smoke job at its smallest, in tmp_path/run."""
    small = {
        "methods": [{"name": "embedding_norm"}],
        "benchmarks": [],
        "pair": {"n_clusters": 3, "n_repeats": 2},
        "train": {"n_epochs": 1},
        "evaluate": {"fmr": 0.1, "draws": 0},
    }
    return smoke.write_job(tmp_path / "job.yaml", faces, str(tmp_path / "run"), **{**small, **changes})


def benchmark(faces, **changes):
    source = {"kind": "folder", "uri": f"{faces}/bench"}
    return {"name": "bench", "source": source, "pairs": {"kind": "lfw", "uri": f"{faces}/pairs.txt"}, **changes}


def refused(result, code, *words):
    """One message with these words."""
    assert result[0] == code, result
    for word in words:
        assert str(word) in result[2]


def nothing_of(run, dataset):
    """The failed dataset has neither part nor manifest, and no temporary file is left."""
    assert not [
        p for p in (run / dataset).rglob("*") if p.name.startswith(("part-", "_part-")) or p.name == "_manifest.json"
    ]
    assert not list(run.rglob("*.tmp"))


def stamps(folder):
    """Which files stand there, and that they are still the same ones."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*part-*")}


def read(job_yaml, dataset, *overrides):
    """A dataset of the job as a table."""
    return dataset(Job(load_settings(job_yaml, overrides))).read_all()


def rewrite(path, rows):
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows(rows)


# --- sources ---


@pytest.mark.parametrize(("place", "word"), [("nowhere", "not found"), ("empty", "no images found")])
def test_source_without_images(cli, faces, tmp_path, place, word):
    (tmp_path / "empty").mkdir()
    path = job(tmp_path, faces, source={"kind": "folder", "uri": str(tmp_path / place)})
    refused(cli("run", path), 1, f"source: {tmp_path / place}: {word}", "check the path")
    nothing_of(tmp_path / "run", "faces")
    shutil.copytree(faces / "train", tmp_path / place, dirs_exist_ok=True)
    code, out, _ = cli("run", path)
    assert code == 0
    assert "report.html" in out


def test_benchmark_without_source(cli, faces, tmp_path):
    source = {"kind": "folder", "uri": str(tmp_path / "nowhere")}
    path = job(tmp_path, faces, benchmarks=[benchmark(faces, source=source)])
    refused(cli("run", path), 1, "source of bench: ", tmp_path / "nowhere", "not found", "check the path")
    nothing_of(tmp_path / "run", "faces")


def test_identity_with_one_image(cli, own, tmp_path):
    for image in sorted((own / "train" / "p03").iterdir())[1:]:
        image.unlink()
    path = job(tmp_path, own)
    assert cli("run", path)[0] == 0
    settings = load_settings(path)
    stats = Job(settings).pairs().require().stats
    assert (stats["n_identities"], stats["n_identities_of_one_image"]) == (6, 1)
    assert "1 identities have one usable image" in read_bytes(Job(settings).report().at("report.html")).decode()
    labels = read(path, lambda j: j.optimized_labels(settings.methods[0], 0.05))
    owned = np.array(labels["n_owned_pairs"])
    assert owned[15] == 0  # p00, p01, p02 have five images each
    assert owned.sum() == 2 * 5 * 5 * 2  # five people, five images, a mate in each of two other clusters, two repeats


def test_only_identities_with_one_image(cli, own, tmp_path):
    for image in (own / "train").rglob("*.jpg"):
        if image.name != "000.jpg":
            image.unlink()
    path = job(tmp_path, own)
    words = ["6 of 6 people have one image each", "mated pairs", "allow_single_images: true"]
    refused(cli("run", path, LABELS), 1, *words)
    nothing_of(tmp_path / "run", "embeddings")
    path = job(tmp_path, own, source={"kind": "folder", "uri": f"{own}/train", "allow_single_images": True})
    code, _, text = cli("run", path, LABELS)
    assert code == 0
    assert "no mated pairs and labels are the prior's" in text
    settings = load_settings(path)
    labels = read(path, lambda j: j.optimized_labels(settings.methods[0], 0.05))
    assert labels["optimized_score"] == labels["prior_score"]
    assert sum(labels["n_owned_pairs"].to_pylist()) == 0


def test_corrupt_images(cli, tmp_path):
    """3 of 100: counted, named, kept as rows; allowed by a higher max_bad_fraction without packing again."""
    own = smoke.make_faces(tmp_path / "own", n_identities=20, per_identity=5, benchmark=False)
    bad = {"p01/001.jpg": "truncated", "p07/000.jpg": "empty", "p19/004.jpg": "unreadable"}
    whole = (own / "train" / "p01/001.jpg").read_bytes()
    for (name, _), content in zip(bad.items(), (whole[: len(whole) // 2], b"", b"no image at all"), strict=True):
        (own / "train" / name).write_bytes(content)
    path = job(tmp_path, own)
    counts = ("pack: 3 of 100 images are bad", "empty 1", "truncated 1", "unreadable 1", "max_bad_fraction=0.01")
    refused(cli("run", path), 1, *counts, "set=train", "mend the source", "raise max_bad_fraction")
    refused(cli("run", path), 1, *counts)  # it stays refused
    packed = stamps(tmp_path / "run" / "faces")
    assert cli("run", path, LABELS, "max_bad_fraction=0.05")[0] == 0
    assert packed == stamps(tmp_path / "run" / "faces")

    settings = load_settings(path)
    for dataset in (
        lambda j: j.faces("train"),
        lambda j: j.embeddings("train"),
        lambda j: j.prior_scores("train", settings.methods[0]),
    ):
        table = read(path, dataset)
        rows = [r for r in table.to_pylist() if r["status"] != "ok"]
        assert [r["image_row"] for r in rows] == [6, 35, 99]
        assert [r["status"] for r in rows] == list(bad.values())
        assert all(r["error"] for r in rows)
    labels = read(path, lambda j: j.optimized_labels(settings.methods[0], 0.05))["label"]
    assert [i for i, x in enumerate(labels.to_pylist()) if x is None] == [6, 35, 99]

    code, out, _ = cli("status", tmp_path / "run", "--json")
    assert code == 0
    records = json.loads(out)["datasets"]
    expected = {"empty": 1, "truncated": 1, "unreadable": 1}
    assert {r["stage"]: r["failed"] for r in records if r["failed"]} == dict.fromkeys(
        ["pack", "embed", "score"], expected
    )
    assert all(r["n_rows_done"] == r["n_rows"] for r in records)


@pytest.mark.slow
def test_parts_without_any_good_image(cli, own, tmp_path):
    """Whole shards are bad: their tables still fit to the others'."""
    for image in [*(own / "train/p02").iterdir(), *(own / "bench/Name_1").iterdir()]:
        image.write_bytes(b"")
    compute = {"engine": "local", "rows_per_part": 5, "train_workers": 0}
    path = job(tmp_path, own, benchmarks=[benchmark(own)], compute=compute)
    refused(cli("run", path, "--stages=pack"), 1, "5 of 30 images are bad (empty 5)")
    assert cli("run", path, "max_bad_fraction=0.2")[0] == 0
    embeddings = read(path, lambda j: j.embeddings("train"))["embedding"]
    assert embeddings.type == pa.binary(4 * 32)
    assert [i for i, e in enumerate(embeddings.to_pylist()) if e is None] == [10, 11, 12, 13, 14]


def test_no_good_image_at_all(cli, own, tmp_path):
    for image in own.rglob("*.jpg"):
        image.write_bytes(b"")
    path = job(tmp_path, own)
    refused(cli("run", path, "max_bad_fraction=1"), 1, "quality_scores/set=train", "holds no score at all", "'error'")
    nothing_of(tmp_path / "run", "quality_index")


# --- models ---


HERE = "bad_networks"


@pytest.mark.parametrize(
    ("value", "status", "words"),
    [
        ("nan", "non_finite", "the model returned NaN or infinity"),
        ("zero", "no_direction", "the embedding is zeros alone"),
    ],
)
def test_network_with_nan_or_zeros_for_some_faces(cli, faces, tmp_path, value, status, words):
    path = job(tmp_path, faces, recognizer={"name": f"smoke:sometimes_{value}"})
    result = cli("run", path)
    refused(result, 1, "embed: ", f" of 30 images are bad ({status} ", "max_bad_fraction=0.01", "embeddings/set=train")
    assert cli("run", path, LABELS, "max_bad_fraction=0.9")[0] == 0
    table = read(path, lambda j: j.embeddings("train"))
    bad = [r for r in table.to_pylist() if r["status"] != "ok"]
    assert 0 < len(bad) < 30
    assert {r["status"] for r in bad} == {status}
    assert all(r["error"].startswith(words) for r in bad)
    assert all((r["embedding"] is None) == (r["status"] != "ok") for r in table.to_pylist())
    assert f"({status} {len(bad)})" in result[2]
    records = json.loads(cli("status", tmp_path / "run", "--json")[1])["datasets"]
    assert next(r for r in records if r["stage"] == "embed")["failed"] == {status: len(bad)}


def test_network_with_nan_for_all_faces(cli, faces, tmp_path):
    path = job(tmp_path, faces, recognizer={"name": f"{HERE}:all_nan"})
    refused(cli("run", path), 1, "embed: 30 of 30 images are bad (non_finite 30)", "mend the source or the model")
    refused(cli("run", path, "max_bad_fraction=1"), 1, "embedding_norm", "holds no score at all")


def test_method_with_nan(cli, faces, tmp_path):
    path = job(tmp_path, faces, methods=[{"name": f"{HERE}:score_nan"}])
    refused(cli("run", path), 1, "score: 30 of 30 images are bad (non_finite 30)", "scorer=bad_networks.score_nan")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (
            {"recognizer": {"name": "smoke:wrong_shape"}},
            1,
            ["smoke:wrong_shape", "shape (2, 4, 8)", "wanted (2, dim) floats"],
        ),
        ({"recognizer": {"name": "smoke:tinny"}}, 1, ["smoke has no function 'tinny'", "did you mean 'tiny'?"]),
        ({"recognizer": {"name": "smokey:tiny"}}, 1, ["there is no module 'smokey'", "PYTHONPATH"]),
        ({"recognizer": {"name": "arcface_r55"}}, 2, ["'arcface_r55' is unknown", "did you mean 'arcface_r50'?"]),
        ({"recognizer": {"name": f"{HERE}:raises_at_once"}}, 1, ["raises_at_once", "KeyError: 'layer9'"]),
        ({"methods": [{"name": "faceqam"}]}, 2, ["'faceqam' is no FIQA method", "did you mean 'faceqan'?"]),
        (
            {"methods": [{"name": "faceqan", "options": {"n_sampels": 3}}]},
            2,
            ["no option 'n_sampels'", "did you mean 'n_samples'?"],
        ),
        (
            {"methods": [{"name": f"{HERE}:score_matrix"}]},
            1,
            ["score_matrix", "scores of shape (4, 2)", "4 faces", "wanted (4,)"],
        ),
        ({"methods": [{"name": f"{HERE}:score_raises"}]}, 1, ["score_raises", "AttributeError", "no_such_thing"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_unfit_models(cli, faces, tmp_path, changes, code, words):
    refused(cli("run", job(tmp_path, faces, **changes), LABELS, "compute.batch_size=4"), code, *words)
    nothing_of(tmp_path / "run", "embeddings" if "recognizer" in changes else "quality_scores")


def test_network_that_raises(cli, faces, tmp_path, monkeypatch):
    path = job(tmp_path, faces, recognizer={"name": f"{HERE}:raises"})
    words = ["embed: 2 shard(s) of ", "RuntimeError: shapes cannot be multiplied", "bad_networks.py:"]
    refused(cli("run", path, LABELS), 3, *words, "run the same command again to continue")
    nothing_of(tmp_path / "run", "embeddings")
    refused(cli("plan", path), 1, f"{HERE}:raises", "shapes cannot be multiplied")
    monkeypatch.setattr(bad_networks.Raises, "fault", KeyboardInterrupt())
    refused(cli("run", path, LABELS), 3, "stopped; run the same command again to continue")
    monkeypatch.setattr(bad_networks.Raises, "fault", None)
    assert cli("run", path, LABELS)[0] == 0


# --- checkpoints ---


def thin(network):
    """A state dict of the right names and shapes that takes no room."""
    return {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in network.state_dict().items()}


def test_checkpoint_of_another_architecture(cli, faces, tmp_path):
    weights = tmp_path / "backbone.pth"
    torch.save(thin(IResNet(18)), weights)
    path = job(tmp_path, faces, recognizer={"name": "arcface_r50", "weights": str(weights)})
    words = ["does not fit the network", "288 missing", "layer1.2.bn1.weight", "this looks like iresnet18"]
    refused(cli("run", path, LABELS), 1, weights, *words, "Choose the model that the file belongs to")
    nothing_of(tmp_path / "run", "embeddings")


@pytest.mark.slow
def test_checkpoint_that_is_cut_off_or_missing(cli, faces, tmp_path):
    weights = tmp_path / "model.pt"
    source = {"kind": "folder", "uri": f"{faces}/train", "limit": 1}
    path = job(
        tmp_path, faces, source=source, recognizer={"name": "arcface_torch_mobilefacenet", "weights": str(weights)}
    )
    refused(cli("run", path, LABELS), 1, weights, "not found", "check the path")
    network = arcface_torch_mobilefacenet()
    torch.save(network.state_dict(), weights)
    whole = weights.read_bytes()
    half = whole[: len(whole) // 2]
    for content, words in (
        (half, ["not a readable torch checkpoint", f"{len(half):,} bytes", "cut off", "fetch it again"]),
        (b"<html>Quota exceeded</html>", ["an HTML page, not the file", "fetch the file itself"]),
    ):
        weights.write_bytes(content)
        refused(cli("run", path, LABELS), 1, weights, *words)
        nothing_of(tmp_path / "run", "embeddings")
    weights.write_bytes(whole)
    assert cli("run", path, "--stages=pack,embed")[0] == 0


def test_no_weights(cli, faces, tmp_path):
    path = job(tmp_path, faces, recognizer={"name": "arcface_r50"})
    refused(cli("run", path, LABELS), 2, "arcface_r50: weights are missing", "insightface", "random:0")
    nothing_of(tmp_path / "run", "embeddings")


# --- a user's own scores ---


def without_last(rows):
    return rows[:-1]


def with_unknown(rows):
    return [*rows, ["p99/000.jpg", "1"]]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_last, ["1 image(s) have no score, such as p05/004.jpg", "add their rows"]),
        (lambda rows: [*rows, rows[-1]], ["stand more than once", "p05/004.jpg", "keep one row"]),
        (lambda rows: [*rows[:-1], [rows[-1][0], "nan"]], ["not finite", "nan of p05/004.jpg", "must be a number"]),
        (lambda rows: [*rows[:-1], [rows[-1][0], ""]], ["not finite", "p05/004.jpg", "must be a number"]),
        (lambda rows: [*rows[:-1], [rows[-1][0], "good"]], ["'good'", "'score' numbers"]),
        (with_unknown, ["1 image_id(s) are not in the data set, such as p99/000.jpg", "remove their rows"]),
        (lambda rows: [["image_id", "quality"], *rows[1:]], ["no column 'score'", "image_id, quality", "needs"]),
        (lambda rows: [], ["cannot be read as a table", "Empty CSV file", "image_id and score"]),
    ],
    ids=["missing", "duplicate", "nan", "empty", "text", "unknown", "column", "no-table"],
)
def test_score_file(cli, faces, tmp_path, spoil, words):
    with open(faces / "scores.csv", newline="") as f:
        rows = list(csv.reader(f))
    scores = tmp_path / "mine.csv"
    path = job(tmp_path, faces, methods=[{"name": "mine", "scores": str(scores)}])
    rewrite(scores, spoil(rows))
    refused(cli("run", path, LABELS), 1, scores, *words)
    nothing_of(tmp_path / "run", "embeddings")  # said before the first model runs
    rewrite(scores, rows)
    assert cli("run", path, LABELS)[0] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PAR1 but no more", ["cannot be read as a table", "give a CSV or Parquet"]),
        (pa.table({"image_id": ["a"], "score": [[1.0]]}), ["'score' numbers"]),
        (pa.table({"image_id": [1, 2], "score": [1.0, 2.0]}), ["30 image(s) have no score", "p00/000.jpg"]),
        (None, ["not found", "check the path"]),
    ],
    ids=["garbage", "lists", "numbers", "missing"],
)
def test_score_file_in_parquet(cli, faces, tmp_path, content, words):
    scores = tmp_path / "mine.parquet"
    if isinstance(content, bytes):
        scores.write_bytes(content)
    elif content is not None:
        pq.write_table(content, scores)
    path = job(tmp_path, faces, methods=[{"name": "mine", "scores": str(scores)}])
    refused(cli("run", path, LABELS), 1, scores, *words)
    nothing_of(tmp_path / "run", "quality_scores")


# --- settings and command line ---


def test_every_wrong_setting_at_once(cli, faces, tmp_path):
    path = tmp_path / "job.yaml"
    job(tmp_path, faces)
    path.write_text(path.read_text().replace("seed: 3", "sede: 3") + "1: 2\n")
    result = cli(
        "run", path, "pair.n_cluster=5", "rank.engine=quick", "optimize.theta=[0.1, 1.5]", "max_bad_fraction=-1"
    )
    words = ["job.yaml: 6 wrong setting(s)", "sede: unknown key (did you mean 'seed'?)", "1: Keys should be strings"]
    words += [
        "pair.n_cluster: unknown key (did you mean 'n_clusters'?)",
        "(found 'quick')",
        "(found 1.5)",
        "(found -1)",
    ]
    refused(result, 2, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1.001", ["less than or equal to 1 (found 1.001)"]),
        ("-1e-3", ["greater than or equal to 0 (found -0.001)"]),
        (".nan", ["(found nan)"]),
        ("small", ["valid number", "(found 'small')"]),
        ("true", ["true is no number"]),
        ("[0.1, true]", ["true] is no number"]),
        ("[]", ["at least 1 item"]),
        ("[0.1, 0.10]", ["0.1 is given twice", "give each theta once"]),
    ],
)
def test_theta(cli, faces, tmp_path, value, words):
    refused(cli("run", job(tmp_path, faces), f"optimize.theta={value}"), 2, "optimize.theta", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--stages=pack,pak"], 2, ["unknown stage(s) pak", "choose from pack, embed"]),
        (["--stage=pack"], 2, ["No such option: --stage"]),
        (["--limit=few"], 2, ["--limit", "valid integer"]),
        (["--limit=-1"], 2, ["source.limit", "(found -1)"]),
        (["theta"], 2, ["'theta'", "key=value"]),
        (["compute.engine=ray", "run_uri=memory://x"], 2, ["memory://x", "compute.engine=local"]),
        (["compute.engine=ray", "compute.address=127.0.0.1:9"], 1, ["'127.0.0.1:9'", "correct compute.address"]),
        (["run_uri=nas://x"], 1, ["nas://x", "Protocol not known", "use a local path"]),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_command_line(cli, faces, tmp_path, argv, code, words):
    refused(cli("run", job(tmp_path, faces), *argv), code, *words)
    assert not stamps(tmp_path / "run")
    assert code == 1 or not (tmp_path / "run").exists()


def test_unreadable_jobs(cli, tmp_path):
    refused(cli("run", tmp_path / "none.yaml"), 1, tmp_path / "none.yaml", "not found", "check the path")
    refused(cli("run", tmp_path), 1, tmp_path, "is a folder; give a file")
    refused(cli("rum", tmp_path), 2, "No such command 'rum'")
    (tmp_path / "job.yaml").write_text("a: [1")
    refused(cli("run", tmp_path / "job.yaml"), 2, "job.yaml is not valid YAML", "line 1")


@pytest.mark.parametrize(
    ("stage", "dataset", "maker"),
    [
        ("rank", "pairs", "pair"),
        ("embed", "faces", "pack"),
        ("train", "embeddings", "embed"),
        ("report", "faces", "pack"),
    ],
)
def test_stage_before_its_inputs(cli, faces, tmp_path, stage, dataset, maker):
    path = job(tmp_path, faces)
    refused(
        cli("run", path, f"--stages={stage}"), 3, f"the dataset {dataset} of stage {maker} is not finished", "run that"
    )
    assert not stamps(tmp_path / "run")


def test_run_folder_of_other_settings(cli, faces, tmp_path):
    path = job(tmp_path, faces)
    assert cli("run", path, LABELS)[0] == 0
    made = stamps(tmp_path / "run")
    changed = ["pair.n_clusters=2", "optimize.theta=[0.1, 0.2]"]
    words = ["optimize.theta was 0.05 and is now 0.1, 0.2", "pair.n_clusters was 3 and is now 2"]
    refused(cli("run", path, LABELS, *changed), 2, tmp_path / "run", *words, "another run_uri", "--new-settings")
    assert stamps(tmp_path / "run") == made
    assert cli("run", path, LABELS, "--new-settings", *changed)[0] == 0
    now = stamps(tmp_path / "run")
    assert made.items() < now.items()
    new = {p.relative_to(tmp_path / "run").parts[0] for p in now.keys() - made.keys()}
    assert new == {"pairs", "similarity_ranks", "optimized_index", "optimized_labels"}
    assert cli("run", path, LABELS)[0] == 0  # both are known from now on
    assert stamps(tmp_path / "run") == now


# --- storage ---


def test_second_run(cli, faces, tmp_path):
    path = job(tmp_path, faces)
    with RunLock(str(tmp_path / "run")):
        result = cli("run", path)
    refused(
        result, 1, f"another run is at work in {tmp_path / 'run'} (process ", "wait for it, stop it", "another run_uri"
    )
    nothing_of(tmp_path / "run", "faces")
    assert cli("run", path, "--stages=pack")[0] == 0


def test_run_folder_is_a_file(cli, faces, tmp_path):
    (tmp_path / "run").write_text("x")
    refused(cli("run", job(tmp_path, faces)), 1, tmp_path / "run", "is a file, not a folder", "choose another path")


class FullDisk:
    """A file on a disk that has room for half of what is written to it."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("name", "nth"),
    [
        ("_plan.json", 2),
        ("part-00001.parquet", 2),
        ("_part-00001.json", 3),
        ("_manifest.json", 2),
        ("part-00000.repeat-01.parquet", 1),
        ("weights.pt", 1),
    ],
)
def test_full_disk(cli, faces, tmp_path, monkeypatch, name, nth):
    """In the middle of a file: it vanishes, what was finished before stays, and the run goes on."""
    n_opened, really_open = 0, open

    def open_until_full(path, *args, **kwargs):
        nonlocal n_opened
        file = really_open(path, *args, **kwargs)
        n_opened += f"/{name}." in str(path)
        return FullDisk(file) if n_opened >= nth and f"/{name}." in str(path) else file

    path = job(tmp_path, faces)
    with monkeypatch.context() as m:
        m.setattr(storage.files, "open", open_until_full, raising=False)
        result = cli("run", path, REGRESSORS)
    assert n_opened == nth
    refused(result, 1, name, "the disk is full", "free some space", "run the same command again")
    assert not list(tmp_path.rglob("*.tmp"))
    made = stamps(tmp_path / "run")
    assert cli("status", tmp_path / "run")[0] == 3  # also where only the plan of a dataset lacks
    assert cli("run", path, REGRESSORS)[0] == 0
    after = stamps(tmp_path / "run")
    for part, stamp in made.items():
        if part.with_name(part.name.split(".")[0] + ".json") in made:  # a part counts from its record on
            assert after[part] == stamp
    assert cli("status", tmp_path / "run")[0] == 0


def test_damaged_files(cli, faces, tmp_path):
    """Cut or lost files are made anew; one with other content of the same size is named."""
    path = job(tmp_path, faces)
    assert cli("run", path, LABELS)[0] == 0
    (embeddings,) = (tmp_path / "run" / "embeddings").rglob("part-00001.parquet")
    (ranks,) = (tmp_path / "run" / "similarity_ranks").rglob("part-00000.parquet")
    before = {p: p.read_bytes() for p in (embeddings, ranks)}
    embeddings.write_bytes(before[embeddings][:100])
    ranks.unlink()
    ranks.with_suffix(".json").write_text("{")
    assert cli("run", path, LABELS)[0] == 0
    assert {p: p.read_bytes() for p in before} == before

    spoilt = bytearray(before[embeddings])
    spoilt[len(spoilt) // 2] ^= 1  # among the embeddings
    embeddings.write_bytes(spoilt)
    argv = ["run", path, LABELS, "--new-settings", "pair.n_clusters=2"]
    refused(cli(*argv), 1, embeddings, "is damaged", "checksum", "remove this file and run again")
    embeddings.unlink()
    assert cli(*argv)[0] == 0
    assert embeddings.read_bytes() == before[embeddings]


@pytest.fixture
def s3(monkeypatch):
    """Sets the S3 endpoint; clients are made anew before and after."""
    import s3fs

    def endpoint(url):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3fs.S3FileSystem.clear_instance_cache()

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield endpoint
    s3fs.S3FileSystem.clear_instance_cache()


def test_unreachable_bucket(cli, faces, tmp_path, s3, monkeypatch):
    s3("http://127.0.0.1:9")
    monkeypatch.setattr(patience, "FIRST_ANSWER_S", 0.3)
    monkeypatch.setattr(patience, "_answered", set())
    path = job(tmp_path, faces)
    # a run may go on when the store comes back
    for argv, code in ((["run", path, "run_uri=s3://faces/run"], 3), (["status", "s3://faces/run"], 1)):
        refused(
            cli(*argv),
            code,
            "s3://faces/run",
            "cannot be reached",
            "127.0.0.1:9",
            "check the network and AWS_ENDPOINT_URL",
        )
    refused(cli("run", path, "source.uri=s3://faces/all"), 1, "source: s3://faces/all", "cannot be reached")
    nothing_of(tmp_path / "run", "faces")


def test_missing_bucket(cli, faces, tmp_path, s3, s3_server):
    s3(s3_server)
    path = job(tmp_path, faces)
    refused(
        cli("run", path, "run_uri=s3://no-such/run"),
        1,
        "s3://no-such/run",
        "the bucket no-such does not exist",
        "create it",
    )
    refused(
        cli("run", path, "source.uri=s3://no-such/f"), 1, "source: s3://no-such/f", "the bucket no-such does not exist"
    )
    refused(cli("status", "s3://no-such/run"), 1, "s3://no-such/run holds no run")
    refused(cli("run", path, "run_uri=s3://no_such!/run"), 1, "no_such!", "not a valid bucket", "correct the name")


class Denies(http.server.BaseHTTPRequestHandler):
    """An S3 server that refuses everybody."""

    code = "AccessDenied"

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        self.send_response(403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = answer  # noqa: N815

    def log_message(self, *_):
        """Silent."""


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_denied_credentials(cli, faces, tmp_path, s3, monkeypatch, code):
    monkeypatch.setattr(Denies, "code", code)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    s3(f"http://127.0.0.1:{server.server_port}")
    path = job(tmp_path, faces)
    words = ["access denied", code, "check the credentials and the rights"]
    refused(cli("run", path, "run_uri=s3://faces/run"), 1, "s3://faces/run", *words)
    refused(cli("run", path, "source.uri=s3://faces/all"), 1, "source: s3://faces/all", *words)
    nothing_of(tmp_path / "run", "faces")
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_no_credentials(cli, faces, tmp_path, s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3("http://127.0.0.1:9")
    result = cli("run", job(tmp_path, faces), "run_uri=s3://faces/run")
    refused(result, 1, "s3://faces/run", "no credentials found", "set AWS_ACCESS_KEY_ID")


# --- benchmarks ---

HEADER = "image_id_a,image_id_b,mated\n"
MATED = "Name_0/Name_0_0001.jpg,Name_0/Name_0_0002.jpg,1\nName_1/Name_1_0001.jpg,Name_1/Name_1_0002.jpg,1\n"
OTHERS = "Name_0/Name_0_0001.jpg,Name_1/Name_1_0002.jpg,0\nName_2/Name_2_0001.jpg,Name_1/Name_1_0002.jpg,0\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            HEADER + MATED + OTHERS.replace("Name_2_0001", "Name_2_0077"),
            ["1 image(s) of the pair list are not in", "Name_2/Name_2_0077.jpg", "correct source.uri"],
        ),
        (HEADER + MATED + OTHERS.replace(",0", ",maybe"), ["line 4", "'maybe'", "must be 1 or 0"]),
        (HEADER + MATED, ["benchmark bench: 2 mated and 0 non-mated pairs", "both kinds are needed"]),
        ("a,b\n1,2\n", ["no column image_id_a, image_id_b, mated", "found: a, b"]),
        ("", ["Empty CSV file", "mend the file"]),
    ],
    ids=["unknown-images", "malformed", "mated-only", "columns", "empty"],
)
def test_pair_list(cli, faces, tmp_path, text, words):
    pairs = tmp_path / "pairs.csv"
    evaluate = {"fmr": 0.1, "draws": 20, "allow_rare_fmr": True}
    bench = benchmark(faces, pairs={"kind": "table", "uri": str(pairs)})
    path = job(tmp_path, faces, benchmarks=[bench], evaluate=evaluate)
    pairs.write_text(text)
    refused(cli("run", path), 1, pairs, *words)
    nothing_of(tmp_path / "run", "evaluation")
    if "both kinds are needed" not in words:  # said before the first model runs
        nothing_of(tmp_path / "run", "embeddings")
    made = stamps(tmp_path / "run")
    pairs.write_text(HEADER + MATED + OTHERS)
    assert cli("run", path, REGRESSORS + ",evaluate")[0] == 0
    assert made.items() <= stamps(tmp_path / "run").items()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,kind\nName_0/Name_0_0001.jpg,blur\n", ["no column 'quality'", "need image_id, kind and quality"]),
        ("image_id,kind,quality\nName_0/Name_0_0001.jpg,blur,good\n", ["good", "quality, a number"]),
        ("", ["Empty CSV file", "need image_id, kind and quality"]),
    ],
    ids=["column", "text", "empty"],
)
def test_degradations(cli, faces, tmp_path, text, words):
    file = tmp_path / "degradations.csv"
    file.write_text(text)
    path = job(tmp_path, faces, benchmarks=[benchmark(faces, degradations=str(file))])
    refused(cli("run", path), 1, file, *words)
    nothing_of(tmp_path / "run", "evaluation")


def test_failed_writes_leave_no_temporary_file(tmp_path, monkeypatch):
    """Of the file that only one may create, too."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.files.os, "link", full)
    with pytest.raises(FiqaRayError, match="the disk is full"):
        put_if_absent(str(tmp_path / "x.json"), b"1")
    assert list(tmp_path.iterdir()) == []
