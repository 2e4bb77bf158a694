"""`fiqa-ray submit` against a job server: the id, the exit code, the log once over, and no secret in the open."""

import asyncio
import json

import pytest
import requests
from ray.exceptions import AuthenticationError

from fiqa_ray.engine import submit
from fiqa_ray.engine.submit import Submission, submit_job
from fiqa_ray.errors import FiqaRayError, IncompleteError


class Status:
    def __init__(self, value):
        self.value = value

    def is_terminal(self):
        return self.value in ("SUCCEEDED", "FAILED", "STOPPED")


class Job:
    def __init__(self, name, status, code=None):
        self.submission_id, self.status, self.driver_exit_code, self.message = name, Status(status), code, "no room"


class Client:
    """A job server; `script` is what each look at the job finds: log lines, then a state, or an exception."""

    def __init__(self, jobs=(), script=()):
        self.jobs, self.script, self.sent = list(jobs), list(script), []

    def list_jobs(self):
        return self.jobs

    def submit_job(self, **values):
        self.sent.append({**values, "files": self.read(values["runtime_env"]["py_modules"][1])})

    @staticmethod
    def read(folder):
        from pathlib import Path

        return {p.name: p.read_text() for p in Path(folder).iterdir()}

    async def tail_job_logs(self, _):
        self.now = self.script.pop(0)
        if isinstance(self.now, Exception):
            raise self.now
        for text in self.now[0]:
            await asyncio.sleep(0)
            yield text

    def get_job_info(self, name):
        return Job(name, *self.now[1:])


@pytest.fixture
def server(monkeypatch):
    client = Client()
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", lambda _: client)
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    return client


SETTINGS = "run_uri: s3://b/run\nsource: {uri: 's3://AKIAIOSFODNN7EXAMPLE:secret@faces'}\n"
SUBMISSION = Submission(SETTINGS, "s3://b/run", ".")


def send(**options):
    lines = []
    code = submit_job("http://head:8265", SUBMISSION, say=lines.append, **{"wait": True, **options})
    return code, "".join(lines)


def test_settings_travel_as_a_file(server):
    assert send(wait=False)[0] == 0
    (sent,) = server.sent
    assert sent["files"]["job.yaml"] == SETTINGS
    shown = json.dumps({k: v for k, v in sent.items() if k != "files"})  # what the dashboard shows
    assert "secret" not in shown
    assert sent["runtime_env"]["py_modules"][0].endswith("fiqa_ray")
    assert "pip" not in sent["runtime_env"]


def test_dependencies_are_those_of_the_package(server):
    names = {r.split(">")[0].split("[")[0] for r in submit.dependencies()}
    assert {"numpy", "torch", "pyarrow", "s3fs"} <= names
    assert not names & {"ray", "pytest", "faiss-cpu"}


@pytest.mark.parametrize(
    ("status", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("FAILED", 2), ("FAILED", 3)], ids=lambda v: str(v)
)
def test_the_exit_code_is_that_of_the_job(server, status, code):
    server.script = [(["hello ", "world\n"], "RUNNING"), (["hello ", "world\nend\n"], status, code)]
    assert send()[0] == code


def test_the_log_is_printed_once_though_the_server_restarts(server):
    server.script = [
        (["one\n", "two\n"], "RUNNING"),
        ConnectionError("down"),
        RuntimeError("starting"),
        (["one\n", "two\nthree\n"], "SUCCEEDED", 0),
    ]
    code, text = send()
    assert (code, text.split("\n", 1)[1]) == (0, "one\ntwo\nthree\n")


def test_a_server_that_stays_away_says_how_to_go_on(server, monkeypatch):
    monkeypatch.setattr(submit, "RECONNECT_S", -1.0)
    server.script = [ConnectionError("down")] * 3
    with pytest.raises(IncompleteError, match=r"http://head:8265 does not answer.*submit the same command again"):
        send()


def test_a_connection_that_breaks_is_tried_again(server, monkeypatch):
    """A lost answer does not submit twice."""
    faults = iter([requests.exceptions.ConnectionError("closed"), ConnectionResetError()])

    def lose_answer(**values):
        fault = next(faults, None)
        if isinstance(fault, ConnectionResetError):  # the job arrived
            server.jobs.append(Job(values["submission_id"], "RUNNING"))
        if fault:
            raise fault

    server.submit_job = lose_answer
    code, text = send(wait=False)
    assert (code, text) == (0, f"job: {SUBMISSION.job_id} (at work already)\n")
    monkeypatch.setattr(submit, "RECONNECT_S", -1.0)
    server.jobs, faults = [], iter([requests.exceptions.ConnectionError("closed")])
    with pytest.raises(FiqaRayError, match=r"did not take the job: closed"):
        send(wait=False)


def test_submitting_again_follows_or_continues(server):
    name = SUBMISSION.job_id
    server.jobs = [Job(name, "FAILED", 3), Job(f"{name}-2", "RUNNING")]
    server.script = [([], "SUCCEEDED", 0)]
    assert "at work already" in send()[1]
    assert not server.sent
    server.jobs[1] = Job(f"{name}-2", "STOPPED")
    server.script = [([], "STOPPED")]
    with pytest.raises(IncompleteError, match="was stopped; submit the same command again"):
        send()
    assert server.sent[0]["submission_id"] == f"{name}-3"
    assert Submission(SETTINGS, "s3://b/other", ".").job_id != name


def test_a_job_that_never_began_and_a_token(server):
    server.script = [([], "FAILED", None)]
    with pytest.raises(FiqaRayError, match="failed before it began: no room"):
        send()
    missing = AuthenticationError("Authentication required: Unauthorized: Missing authentication token")
    server.list_jobs = lambda: (_ for _ in ()).throw(missing)
    with pytest.raises(FiqaRayError, match=r"wants a token.*RAY_AUTH_MODE=token"):
        send()
