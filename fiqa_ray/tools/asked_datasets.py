"""Which datasets the settings of a run ask for, as a record in the run: `status` tells them from those of earlier settings.

The record of some settings holds the datasets of each stage, by their folders. It grows with each group of steps, before the
group runs; so whatever these settings have begun is in it. When a stage ends, what it no longer asks for leaves the record.
"""

from __future__ import annotations

from collections.abc import Sequence

from fiqa_ray.config import Settings
from fiqa_ray.documents import read_document, write_document
from fiqa_ray.engine.step import Step
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.storage import fingerprint, join
from fiqa_ray.tools.results_record import read_results_record

ASKED = "_asked"
"""Folder of the records, one per settings."""


class AskedDatasets:
    """The record of a job's settings while the job runs, under the run's lock."""

    def __init__(self, settings: Settings) -> None:
        self._run_uri = settings.run_uri
        self._name = f"{fingerprint(settings.identity())}.json"
        try:
            self._stored = read_asked(self._run_uri, self._name) or {}
        except FiqaRayError:  # damaged: it is written again as the stages are planned
            self._stored = {}
        self._now: dict[str, list[str]] = {}

    def add(self, stage: str, steps: Sequence[Step]) -> None:
        """Record the datasets of a group of steps, before they run."""
        root = self._run_uri.rstrip("/") + "/"
        folders = [dataset.uri.removeprefix(root) for step in steps for dataset in step.datasets]
        self._now[stage] = list(dict.fromkeys([*self._now.get(stage, []), *folders]))
        self._write({**self._stored, stage: list(dict.fromkeys([*self._stored.get(stage, []), *folders]))})

    def end(self, stage: str) -> None:
        """Leave out what a stage, all of which has run, no longer asks for."""
        self._write({**self._stored, stage: self._now.get(stage, [])})

    def _write(self, stages: dict[str, list[str]]) -> None:
        if stages != self._stored:
            bound_name = join(ASKED, self._name)
            write_document(join(self._run_uri, bound_name), {"stages": stages}, bound_name)
            self._stored = stages


def read_asked(run_uri: str, name: str) -> dict[str, list[str]] | None:
    """Return the folders of the datasets that some settings ask for, by stage, or None where there is no record.

    Raises:
        FiqaRayError: the record is damaged.
    """
    bound_name = join(ASKED, name)
    record = read_document(join(run_uri, bound_name), "remove this file and run again: it is written again", bound_name)
    return None if record is None else record["stages"]


def stage_of_asked(run_uri: str) -> dict[str, str] | None:
    """Return the stage of each dataset that the run's last settings ask for; None where that is not known."""
    try:
        results = read_results_record(run_uri)
        name = None if results is None else results.get("settings")
        asked = None if name is None else read_asked(run_uri, f"{name}.json")
    except FiqaRayError:  # damaged: `verify` says so, and every dataset counts
        return None
    return None if asked is None else {folder: stage for stage, folders in asked.items() for folder in folders}
