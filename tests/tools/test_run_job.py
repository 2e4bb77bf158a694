"""Runs of other versions are refused before anything is read or written."""

import json
from functools import partial

import pytest

import smoke
from fiqa_ray.datasets.schemas import SCHEMA_VERSION
from fiqa_ray.errors import FiqaRayError, UsageError
from fiqa_ray.storage import list_files
from fiqa_ray.tools.open_run import open_run
from fiqa_ray.tools.run_job import run_job
from fiqa_ray.tools.status import run_status


@pytest.mark.parametrize(
    ("record", "version"),
    [
        ({"code_version": "0.1.0"}, r"an earlier version of fiqa_ray \(0\.1\.0, schema before 3; "),
        ({"code_version": "9.0", "schema_version": 99}, r"a newer version of fiqa_ray \(9\.0, schema 99; "),
    ],
)
@pytest.mark.parametrize("new_settings", [False, True])
def test_a_run_of_another_version_is_refused(tmp_path, record, version, new_settings):
    run = tmp_path / "run"
    settings = smoke.settings(tmp_path, smoke.make_faces(tmp_path / "faces"), str(run))
    (run / "_settings").mkdir(parents=True)
    (run / "_settings" / "0123.json").write_text(json.dumps(record))
    readers = [partial(f, str(run)) for f in (run_status, open_run)]
    for command in [partial(run_job, settings, ["pack"], new_settings=new_settings), *readers]:
        with pytest.raises(UsageError, match=rf"run was made by {version}.*choose another run_uri"):
            command()
    assert {name.split("/")[0] for name in list_files(str(run))} == {"_lock", "_settings"}


def test_the_record_holds_the_version(tmp_path):
    run = tmp_path / "run"
    settings = smoke.settings(tmp_path, smoke.make_faces(tmp_path / "faces"), str(run))
    run_job(settings, ["pack"])
    (record,) = (run / "_settings").glob("*.json")
    content = json.loads(record.read_text())
    assert content["schema_version"] == SCHEMA_VERSION
    before = record.read_text()
    record.write_text(before.replace(f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION - 1}'))
    with pytest.raises(FiqaRayError, match=rf"{record.name} is damaged.*does not fit its sum.*remove this file"):
        run_job(settings, ["pack"])
    record.unlink()
    run_job(settings, ["pack"])
    record.write_text(json.dumps({k: v for k, v in content.items() if k not in ("schema_version", "document_sha256")}))
    with pytest.raises(UsageError, match="an earlier version"):
        run_job(settings, ["pack"])


def test_changed_settings_are_told_in_words(tmp_path):
    run = str(tmp_path / "run")
    faces = smoke.make_faces(tmp_path / "faces")
    run_job(smoke.settings(tmp_path, faces, run, methods=[{"name": "embedding_norm"}]), ["pack"])
    methods = [{"name": "embedding_norm", "label": "norm"}, {"name": "crfiqa", "weights": "w.pth"}]
    changed = smoke.settings(tmp_path, faces, run, methods=methods, benchmarks=[], seed=7)
    with pytest.raises(UsageError) as info:
        run_job(changed, ["pack"])
    text = str(info.value)
    for words in (
        "seed was 3 and is now 7", "methods: embedding_norm is no longer there", "methods: norm is new",
        "methods: crfiqa is new", "benchmarks: bench is no longer there", "add --new-settings",
    ):  # fmt: skip
        assert words in text
    assert "{" not in text
    assert '"' not in text
