"""Seeded faults are found on synthetic faces, by a recogniser that learned such faces; nothing is found on a sound model."""

import os
import re

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fiqa_ray.cli import main
from fiqa_ray.core.align import TEMPLATE
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.models.preprocessing import UNIT_PIXELS
from fiqa_ray.models.quality import METHODS, load_scorer
from fiqa_ray.models.recognizer import Recognizer
from fiqa_ray.models.scorer import Scorer
from fiqa_ray.models.user_code import FunctionNetwork
from fiqa_ray.synthetic.compact import build
from fiqa_ray.synthetic.dataset import aligned_faces
from fiqa_ray.synthetic.recognizer import train_recognizer
from fiqa_ray.tools.doctor import _sign, check_file, check_landmarks, check_recognizer, check_scorer
from fiqa_ray.tools.input_checks import Finding
from fiqa_ray.tools.show import findings_total
from fiqa_ray.tools.trial_faces import load_trial_faces

pytestmark = pytest.mark.slow  # its first test trains a small recogniser


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.pt"
    train_recognizer(path, n_identities=80, views_per_identity=4, n_epochs=8, n_threads=1)
    return path


@pytest.fixture(scope="module")
def network(weights):
    return build(weights).eval()


@pytest.fixture(scope="module")
def trial():
    return load_trial_faces()


class Fed(torch.nn.Module):
    """The network behind some step of preprocessing."""

    def __init__(self, network, step):
        super().__init__()
        self.network, self.step = network, step

    def forward(self, x):
        return self.network(self.step(x))


def recognizer(network, step=lambda x: x):
    return Recognizer("fed", Fed(network, step), UNIT_PIXELS, 128, "0" * 64)


def states(found):
    return {f.check: f.state for f in found}


def faults(found):
    return {f.check: f.message for f in found if f.state == "fault"}


def test_a_sound_recognizer_and_method_pass(network, trial):
    sound = recognizer(network)
    found = check_scorer(load_scorer("faceqan", recognizer=sound, n_iterations=2, n_samples=2), trial)
    assert set(states(found)) == {
        "people", "colour order", "scaling", "crop", "mirror", "length", "batches", "float16", "bfloat16", "sign",
        "score's batches",
    }  # fmt: skip
    assert set(states(found).values()) == {"ok"}


@pytest.mark.parametrize(
    ("check", "step", "words"),
    [
        ("colour order", lambda x: x.flip(1), "network gets RGB.*BGR instead.*which is better"),
        ("colour order", lambda x: x[:, [1, 2, 0]], "network gets RGB.*BRG instead.*which is better"),
        (
            "scaling",
            lambda x: x * 0.5 + 0.5,
            r"mean=127.5, scale=127.5\): .* which is better",
        ),  # wants -1..1, gets 0..1
        (
            "scaling",
            lambda x: x / 255 if x.dtype == torch.float32 else None,
            r"your code gets v / 255: .* v, 0..255 in its place: .* which is better .* your code scales its input wrongly",
        ),
        ("crop", lambda x: torch.roll(x, 8, 3), "moved 8 px left: .* which is better.*align them to the template"),
    ],
)
def test_seeded_faults_of_feeding(network, trial, check, step, words):
    fed = recognizer(network, step)
    fed.name = "my_network.py:build" if "your code" in words else fed.name
    checks = check_recognizer(fed, trial)
    found = faults(checks)
    assert list(found) == [check]
    assert re.search(words, found[check])
    is_own_code = "your code" in words  # which may fail in half precision without a word, since nobody asked
    assert ("float16" in states(checks)) != is_own_code


def test_what_the_mirror_image_and_the_length_of_embeddings_say(network, trial):
    def messages(fed):
        return {f.check: f.message for f in check_recognizer(fed, trial) if f.check in ("mirror", "length")}

    raw = messages(recognizer(network))
    assert re.search(r"added, d' \d+\.\d\d in place of \d+\.\d\d", raw["mirror"])
    assert re.fullmatch(r"embeddings are raw, of length [\d.]+ to [\d.]+", raw["length"])

    class Unit(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.normalize(network(x), dim=1)

    assert "embeddings have length 1" in messages(Recognizer("unit", Unit(), UNIT_PIXELS, 128, "0" * 64))["length"]


def test_crops_that_lie_8_px_off(network, tmp_path, trial):
    move = np.array([[1, 0, 8], [0, 1, 0]], np.float32)
    for i, face in enumerate(trial.faces.permute(0, 2, 3, 1).numpy()):
        folder = tmp_path / f"person{trial.person[i]:02d}"
        folder.mkdir(exist_ok=True)
        moved = cv2.warpAffine(face[..., ::-1], move, (112, 112), borderMode=cv2.BORDER_REPLICATE)
        cv2.imwrite(str(folder / f"{i}.png"), moved)
    found = faults(check_recognizer(recognizer(network), load_trial_faces(str(tmp_path))))
    assert list(found) == ["crop"]
    assert "moved 8 px left" in found["crop"]


def test_a_negated_score(network, trial):
    norm = load_scorer("embedding_norm", recognizer=recognizer(network))
    assert faults(check_scorer(norm, trial)) == {}
    negated = Scorer("negated", lambda clean, rows: -norm.score_faces(clean, rows), norm.device, network=norm.network)
    found = faults(check_scorer(negated, trial))
    assert list(found) == ["sign"]
    assert "larger scores mean worse images" in found["sign"]
    alone = Scorer("alone", lambda clean, rows: -norm(clean.faces), norm.device)  # says nothing of a network
    assert list(faults(check_scorer(alone, trial))) == ["sign"]
    judged = {f.check: f.message for f in check_scorer(alone, trial, recognizer(network))}
    assert "similarity of mated pairs against the lower score: Spearman -" in judged["sign"]


def test_a_sign_against_which_most_damaged_copies_speak_stays_open(network, trial):
    clean = np.ones(len(trial.person))
    damaged = clean + 1e-6
    damaged[np.unique(trial.person, return_index=True)[1]] = 0.0  # one copy of each person is much worse
    for judge in (None, recognizer(network)):  # whose similarities rise with these scores a little
        finding = _sign(judge, trial, clean, damaged)
        assert finding.state == "open"
        assert "the sign may be wrong" in finding.message


def test_outputs_that_depend_on_the_batch_or_say_nothing(network, trial):
    class Training(torch.nn.Module):
        def forward(self, x):
            y = network(x)
            return y - y.mean(dim=0)

    found = faults(check_recognizer(Recognizer("t", Training(), UNIT_PIXELS, 128, "0" * 64), trial))
    assert "evaluation mode" in found["batches"]
    device = torch.device("cpu")
    constant = Scorer("c", lambda clean, rows: np.full(len(clean.faces), 0.5), device)
    assert faults(check_scorer(constant, trial)) == {"output": "every face gets the same score, 0.5"}
    broken = Scorer("n", lambda clean, rows: np.full(len(clean.faces), np.nan), device)
    assert "NaN or infinite" in faults(check_scorer(broken, trial))["output"]

    def by_deviation(clean, rows):  # one face has none
        brightness = clean.faces.float().mean(dim=(1, 2, 3))
        return ((brightness - brightness.mean()) / brightness.std()).numpy()

    assert (
        "NaN or infinite in batches of 1"
        in faults(check_scorer(Scorer("d", by_deviation, device), trial))["score's batches"]
    )


def test_a_model_that_knows_no_such_faces_is_neither_good_nor_bad(trial):
    torch.manual_seed(0)
    untrained = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 112 * 112, 16))
    found = check_recognizer(Recognizer("u", torch.nn.Sequential(untrained), UNIT_PIXELS, 16, "0" * 64), trial)
    assert faults(found) == {}


def test_too_few_people(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((112, 112, 3), 60 * i, np.uint8))
    with pytest.raises(FiqaRayError, match="1 people with two or more 112x112 crops; at least three"):
        load_trial_faces(str(tmp_path))


def test_the_files_hash(network):
    row = METHODS["crfiqa_s"].network
    released = Recognizer("r", network, UNIT_PIXELS, 128, row.sha256)
    assert check_file(released, row).state == "ok"
    assert "that of the released 32572backbone.pth" in check_file(released, row).message
    assert check_file(recognizer(network), row).state == "open"
    assert "none is published" in check_file(recognizer(network), None).message
    own_code = Recognizer("f", FunctionNetwork(len), UNIT_PIXELS, 128, "0" * 64)
    assert "your code holds its weights itself" in check_file(own_code, None).message
    assert "your code got weights=w.pt, which only it reads" in check_file(own_code, None, "w.pt").message


def swapped(weights=None):
    """As a user's own code that reads images by OpenCV's order."""
    return Fed(build(weights), lambda x: x.flip(1))


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--recognizer", "fiqa_ray.synthetic.compact:build", "--recognizer-weights"], 0, "nothing wrong was found"),
        (
            ["embedding_norm", "--recognizer", "fiqa_ray.synthetic.compact:build", "--recognizer-weights"],
            0,
            "nothing wrong was found",
        ),
        (["--recognizer", "test_doctor:swapped", "--recognizer-weights"], 1, "1 (colour order) wrong, "),
    ],
)
def test_the_command(weights, capsys, monkeypatch, argv, code, words):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *argv, str(weights)])
    out = capsys.readouterr().out
    assert (ended.value.code, words in out) == (code, True), out


def test_the_last_line_counts_what_is_wrong_and_what_is_open():
    def total(*states):
        return findings_total([Finding(check, state, "") for check, state in zip("abcd", states, strict=False)])

    assert total("ok", "ok") == "nothing wrong was found in 2 checks"
    assert total("ok", "open", "ok") == "0 wrong, 1 (b) open, 2 ok"
    assert total("fault", "ok") == "1 (a) wrong, 0 open, 1 ok"
    assert total("fault", "open", "ok", "fault") == "2 (a, d) wrong, 1 (b) open, 1 ok"


def raw_faces(folder, order):
    """Drawn faces of 4 people in larger pictures, moved and turned; a table with their landmarks in some order."""
    rows = []
    for person in range(4):
        for i, face in enumerate(aligned_faces((0, 0, person, 2))[:3]):
            turn = cv2.getRotationMatrix2D((56, 56), 10.0 * i, 1.2) + np.array([[0, 0, 30 + 5 * i], [0, 0, 25]])
            picture = cv2.warpAffine(np.ascontiguousarray(face[:, :, ::-1]), turn, (180, 180))
            cv2.imwrite(str(folder / f"{person}_{i}.png"), picture)
            points = TEMPLATE @ turn[:, :2].T + turn[:, 2]
            rows.append((f"{person}_{i}.png", f"p{person}", *points[order].ravel()))
    names = ["uri", "identity", *(f"{axis}{n}" for n in range(1, 6) for axis in "xy")]
    pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}), folder / "faces.parquet")
    return str(folder / "faces.parquet")


def test_landmarks_are_shown_with_their_order_and_residual(tmp_path):
    right = raw_faces(tmp_path, [0, 1, 2, 3, 4])
    found = check_landmarks(load_trial_faces(right, 4))
    assert [(f.check, f.state) for f in found] == [("landmarks", "ok")]
    assert re.match(r"landmarks of 12 images, read as standard, lie 0\.\d px from the template", found[0].message)
    aligned = load_trial_faces(right, 4)
    original = torch.from_numpy(aligned_faces((0, 0, 0, 2))[:1].transpose(0, 3, 1, 2).copy())
    assert (aligned.faces[:1].float() - original.float())[:, :, 16:96, 16:96].abs().mean() < 12  # upright, in place
    mouth = raw_faces(tmp_path, [0, 1, 2, 4, 3])
    with pytest.raises(FiqaRayError, match="mouth_exchanged"):
        load_trial_faces(mouth, 4)
    found = check_landmarks(load_trial_faces(mouth, 4, landmark_order="mouth_exchanged"))
    assert found[0].message.startswith("landmarks of 12 images, read as mouth_exchanged, lie 0.")
    with pytest.raises(UsageError, match="holds its own landmarks"):
        load_trial_faces(mouth, 4, "landmarks.csv")
