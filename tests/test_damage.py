"""Damage at rest: after each fault of each kind of file of a run, an error that names the file, or an undisturbed result."""

import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import smoke
from fiqa_ray.config import load_settings
from fiqa_ray.documents import SUM_KEY, document_bytes
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.tools.run_job import run_job
from fiqa_ray.tools.verify import repair_run, verify_run

N_FLIPS = 40
N_WAYS = int(os.environ.get("FIQA_RAY_TEST_DAMAGES", "2"))
"""Ways of damage per kind of file, by lot; set it to 9999 for all of them, an hour of work: 40 flips of each file, 5 changes
of each number of a document, a copy of another file and an exchange with it, cut, empty, lost."""
STAGES = ["pack", "embed", "score", "pair", "rank", "optimize", "train"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished job of several parts per dataset."""
    tmp = tmp_path_factory.mktemp("damage")
    faces = smoke.make_faces(tmp / "faces", n_identities=5, per_identity=5, benchmark=False)
    path = smoke.write_job(
        tmp / "job.yaml",
        faces,
        str(tmp / "run"),
        methods=[{"name": "embedding_norm"}],
        benchmarks=[],
        pair={"n_clusters": 2, "n_repeats": 2},
        train={"mode": "head", "n_epochs": 1},
        compute={"engine": "local", "rows_per_part": 10, "train_workers": 0},
    )
    run_job(load_settings(path), STAGES)
    return Run(path, tmp / "run")


@dataclass
class Run:
    """A job and its run's folder, whose files tests change and put back."""

    job: str
    root: Path

    def content(self) -> dict[str, bytes]:
        """The files by name, but for the lock and what only training needs; of a plan not when it was made."""
        return {n: _timeless(n, p.read_bytes()) for n, p in self.files().items() if not n.startswith("_training/")}

    def files(self) -> dict[str, Path]:
        left_out = {"_lock", "_verified.json"}  # when the run was last verified is no result
        paths = [p for p in sorted(self.root.rglob("*")) if p.is_file() and not left_out & set(p.parts)]
        return {str(p.relative_to(self.root)): p for p in paths}

    def run(self) -> str:
        """Run the job again and return its error, or an empty text. Anything but a `FiqaRayError` fails the test."""
        shutil.rmtree(self.root / "_lock", ignore_errors=True)
        try:
            run_job(load_settings(self.job), STAGES)
        except FiqaRayError as exc:
            return str(exc)
        return ""

    def without_what_follows(self, name: str) -> None:
        """Remove the datasets made from the one of a file, so that the next run reads it."""
        (damage,) = [d for d in verify_run(str(self.root)).damages if d.file == name] or [None]
        for folder in damage.made_from_it if damage else ():
            shutil.rmtree(self.root / folder)
        if name.startswith("_training/"):
            shutil.rmtree(self.root / "regressor")


def _timeless(name: str, data: bytes) -> bytes:
    """The part of a file that does not tell when and how fast it was made."""
    if not name.endswith(".json"):
        return data
    try:
        values = json.loads(data)
        values.pop(SUM_KEY, None)
    except (ValueError, RecursionError, AttributeError):
        return data
    return re.sub(rb'"(created_s|duration_s)": [0-9.e+-]+', b"", json.dumps(values, sort_keys=True).encode())


def kind_of(name: str) -> str:
    """The dataset and file of a name without numbers and fingerprints."""
    return re.sub(r"[0-9a-f]{16}|\d+", "N", name.split("/")[0] + "/" + name.rsplit("/", 1)[-1])


def kinds(run: Run) -> dict[str, str]:
    """One file of each kind."""
    return {kind_of(name): name for name in run.files()}


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


@pytest.mark.slow
def test_verify_finds_every_flip_of_every_kind_of_file(finished, tmp_path):
    """One-bit flips in each kind of file; each is named, alone, unless it changes white space of a document only."""
    rng = random.Random(16)
    for kind, name in kinds(finished).items():
        root = tmp_path / kind.replace("/", "-")  # a run of this dataset alone: all of it is read for every flip
        folder = name.rpartition("/")[0]
        for part in {folder, str(next((finished.root / "quality_index").rglob("v=*")).relative_to(finished.root))} - {
            ""
        }:
            shutil.copytree(finished.root / part, root / part)
        if not folder:
            shutil.copy(finished.root / name, root / name)
        path, data = root / name, (root / name).read_bytes()
        assert verify_run(str(root)).damages == []
        for _ in range(N_FLIPS if N_WAYS > 10 else 10):
            path.write_bytes(flip(data, rng))
            damages = verify_run(str(root)).damages
            if not damages:
                assert name.endswith(".json"), kind
                assert json.loads(path.read_bytes()) == json.loads(data), kind
            else:
                assert [d.file for d in damages] == [name], kind
                assert name in damages[0].fault


Damage = Callable[[Path, Path | None], object]
"""Damages a file; the second path is another file of its kind, if there is one."""


def faults(data: bytes, twin: bytes | None, name: str, rng: random.Random) -> dict[str, Damage]:
    """Ways to damage a file: flips, cut, lost, a copy of another, an exchange with it; of a document also other digits."""
    ways: dict[str, Damage] = {f"flip {i}": _writes(flip(data, rng)) for i in range(N_FLIPS)}
    ways |= {"cut": _writes(data[: len(data) // 2]), "empty": _writes(b""), "lost": lambda path, _: path.unlink()}
    if twin is not None and twin != data:
        ways |= {"copy of another": _writes(twin), "exchanged": _exchange}
    if name.endswith(".json"):
        for number in re.finditer(rb"(?<=[ \-])\d[\d.]*", data):
            for i in range(5):
                at = rng.choice([k for k in range(*number.span()) if data[k : k + 1].isdigit()])
                digit = b"%d" % ((data[at] - 48 + rng.randrange(1, 10)) % 10)
                ways[f"digit {number.start()} {i}"] = _writes(data[:at] + digit + data[at + 1 :])
        ways["nested"] = _writes(b"[" * 20000)
    return ways


def _writes(content: bytes) -> Damage:
    return lambda path, _: path.write_bytes(content)


def _exchange(path: Path, twin: Path | None) -> None:
    assert twin is not None
    own = path.read_bytes()
    path.write_bytes(twin.read_bytes())
    twin.write_bytes(own)


@pytest.mark.slow
@pytest.mark.timeout(0 if N_WAYS > 10 else 1800)
def test_every_damage_is_named_or_does_not_matter_and_the_remedy_works(finished):
    """What follows from the file is removed and made again: the bytes are those of the undisturbed run in the end."""
    rng = random.Random(4)
    before = finished.content()
    originals = {n: p.read_bytes() for n, p in finished.files().items()}
    failures: list[tuple[str, str, str]] = []
    counts: Counter[str] = Counter()
    for kind, name in kinds(finished).items():
        path = finished.root / name
        twin = next((n for n in before if kind_of(n) == kind and n != name), None)
        ways = list(faults(originals[name], originals[twin] if twin else None, name, rng).items())
        for way, damage in rng.sample(ways, min(N_WAYS, len(ways))):
            damage(path, finished.root / twin if twin else None)
            try:
                outcome = _outcome(finished, name, path, before)
            except Exception as exc:
                failures.append((kind, way, f"{type(exc).__name__}: {exc}"))
                outcome = "failed"
            counts[outcome] += 1
            for n, content in originals.items():
                (finished.root / n).parent.mkdir(parents=True, exist_ok=True)
                (finished.root / n).write_bytes(content)
        print(kind, len(ways), dict(counts), failures[-3:], flush=True)
    assert failures == []


def _outcome(run: Run, name: str, path: Path, before: dict[str, bytes]) -> str:
    """Return how a run deals with a damaged file; raise AssertionError unless its bytes are those of before in the end."""
    run.without_what_follows(name)
    error, outcome = run.run(), "made again or of no matter"
    for _ in range(2):  # an exchange damages two files
        if not error:
            break
        outcome = "named"
        blamed = next((p for p in run.files().values() if f"{p} " in error or f"{p}:" in error), path)
        assert blamed == path or kind_of(str(blamed.relative_to(run.root))) == kind_of(name), error
        assert str(blamed) in error, error
        assert "remove this file" in error or "run again" in error, error
        blamed.unlink()  # the remedy
        error = run.run()
    assert error == "", error
    if run.content() != before:  # what no run read
        outcome = "found by verify"
        repair_run(str(run.root))
        assert run.run() == ""
    after = run.content()
    changed = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)}
    assert changed == set()
    return outcome


@pytest.mark.parametrize(
    ("kind", "change", "fault"),
    [
        ("_plan.json", {"bounds": [0, 20, 10, 25]}, "bounds do not rise from 0 to n_rows=25"),
        ("_plan.json", {"bounds": [0, 10, 20, 24]}, "bounds do not rise"),
        ("_plan.json", {"bounds": [0, 10, 25]}, "bounds do not rise"),
        ("_plan.json", {"n_rows": "25"}, "n_rows is '25'"),
        ("_manifest.json", lambda v: v["parts"][0].update(index=1), "the index is 1 where part 0 stands"),
        ("_manifest.json", lambda v: v["parts"].reverse(), "where part 0 stands"),
        ("_manifest.json", lambda v: v["parts"][1].update(files=v["parts"][0]["files"]), "a file is named twice"),
        ("_manifest.json", lambda v: v["parts"].pop(), "n_parts is 2, and the plan beside it says 3"),
        ("_manifest.json", lambda v: v["parts"][1].update(n_rows=11), "n_rows is 26, and the plan"),
        ("_manifest.json", lambda v: v["parts"][1].update(files=[]), r"files of part 1 is \[\]"),
        ("_manifest.json", lambda v: v.update(parts=7), "it is no manifest of faces"),
    ],
)
def test_documents_must_make_sense_even_if_their_sum_fits(finished, kind, change, fault):
    (path,) = (finished.root / "faces").rglob(kind)
    data = path.read_bytes()
    values = json.loads(data)
    if callable(change):
        change(values)
    else:
        values |= change
    path.write_bytes(document_bytes(values, f"{path.parent.name}/{kind}"))
    error = finished.run()
    path.write_bytes(data)
    assert re.search(rf"{re.escape(str(path))} is damaged: .*{fault}.*remove this file and run again", error), error
