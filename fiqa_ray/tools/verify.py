"""Read everything that a run has stored once, and name what is damaged or lost and what was made from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from fiqa_ray.datasets.dataset import MADE_BY, Dataset, Manifest, Part, is_record, record_name
from fiqa_ray.datasets.sums import fault_of_file
from fiqa_ray.documents import read_document, read_sealed, write_document
from fiqa_ray.engine.lock import RunLock
from fiqa_ray.errors import FiqaRayError, StorageError, UsageError
from fiqa_ray.storage import join, list_files, read_bytes, remove_file
from fiqa_ray.tools.asked_datasets import ASKED, read_asked
from fiqa_ray.tools.results_record import RESULTS, read_results_record
from fiqa_ray.tools.settings_record import SETTINGS, read_settings_record
from fiqa_ray.tools.status import VERIFIED

SOURCE_LIST = "_source.parquet"


@dataclass(frozen=True)
class Damage:
    """A damaged or lost file.

    Attributes:
        file: Its name, relative to the run.
        fault: What is wrong, with the file's location.
        made_from_it: Folders of the datasets that were made from it, directly or through others. They hold what the
            sound file gave, because no damaged file is read.
        is_there: Whether the file is there, so that it can be removed.
    """

    file: str
    fault: str
    made_from_it: tuple[str, ...]
    is_there: bool


@dataclass(frozen=True)
class Verification:
    """What a look at all files of a run gave: the damages, and how many files and bytes were read."""

    damages: list[Damage]
    n_files: int
    n_bytes: int


def verify_run(run_uri: str) -> Verification:
    """Check every file of a run against its sums.

    Raises:
        FiqaRayError: There is no run.
        UsageError: Another version of fiqa_ray made the run.
    """
    if not run_uri:
        raise UsageError("the run_uri is empty; give that of a job that was started")
    sizes = {name: size for name, size in list_files(run_uri).items() if name != VERIFIED}
    folders = sorted({name.rpartition("/")[0] for name in sizes if _is_of_dataset(name)})
    if not folders or not {folder.split("/")[0] for folder in folders} <= MADE_BY.keys():
        raise FiqaRayError(f"{run_uri} holds no run; give the run_uri of a job that was started")
    faults = dict(_faults_beside(run_uri, sizes))
    inputs: dict[str, list[str]] = {}
    for folder in folders:
        names = {name[len(folder) + 1 :] for name in sizes if name.startswith(folder + "/")}
        check = _DatasetCheck(Dataset(join(run_uri, folder), folder.split("/")[0]), names)
        faults |= {f"{folder}/{name}": fault for name, fault in check.faults()}
        inputs[folder] = check.plan.get("inputs", [])
    damages = [Damage(f, fault, _made_from(f.rpartition("/")[0], inputs), f in sizes) for f, fault in faults.items()]
    with suppress(StorageError):  # a run that cannot be written can be verified all the same
        write_document(join(run_uri, VERIFIED), {"time_s": time.time(), "n_damaged": len(damages)}, VERIFIED)
    return Verification(damages, len(sizes), sum(sizes.values()))


def repair_run(run_uri: str) -> Verification:
    """Verify a run and remove its damaged files, and no others; the next run makes them again.

    Raises:
        FiqaRayError: A run is at work there; otherwise as `verify_run`.
    """
    with RunLock(run_uri):
        verification = verify_run(run_uri)
        for damage in verification.damages:
            if damage.is_there:
                remove_file(join(run_uri, damage.file))
    return verification


def _is_of_dataset(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return "/v=" in f"/{folder}" and (file in ("_plan.json", "_manifest.json") or is_record(file))


def _faults_beside(run_uri: str, names: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the damaged files outside datasets: settings records and what training continues from."""
    for name in names:
        file = name.rpartition("/")[2]
        uri = join(run_uri, name)
        call: Callable[[], Any] | None = None
        if name.startswith(f"{SETTINGS}/") and name.endswith(".json"):
            call = partial(read_settings_record, run_uri, file)
        elif name.startswith(f"{ASKED}/"):
            call = partial(read_asked, run_uri, file)
        elif name == RESULTS:
            call = partial(read_results_record, run_uri)
        elif name.startswith("_training/") and file.endswith(".pt"):
            call = partial(read_sealed, uri, "remove this file and run again", file)
        elif name.startswith("_training/") and file.endswith(".json"):
            call = partial(read_document, uri, "remove this file and run again")
        fault = _fault_of(call) if call is not None else ""
        if fault:
            yield name, fault


def _fault_of(call: Callable[[], Any]) -> str:
    """Return the text of the error that a call raises, or an empty text."""
    try:
        call()
    except UsageError:
        raise
    except FiqaRayError as exc:
        return str(exc)
    return ""


def _made_from(folder: str, inputs: dict[str, list[str]]) -> tuple[str, ...]:
    """Return the folders that were made from a folder, directly or through others."""
    reached: list[str] = []
    waiting = [folder]
    while waiting:
        source = waiting.pop()
        following = [f for f, of in inputs.items() if source in of and f not in reached]
        reached += following
        waiting += following
    return tuple(sorted(reached))


class _DatasetCheck:
    """The check of one dataset's folder, which holds the files `names`."""

    def __init__(self, dataset: Dataset, names: set[str]) -> None:
        self.dataset, self.names = dataset, names
        self.plan: dict[str, Any] = {}
        self.manifest: Manifest | None = None

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield each damaged or lost file with what is wrong."""
        yield from self._documents()
        yield from self._parts()
        sums = self.plan.get("source_list")
        if sums is not None:
            yield from self._file(SOURCE_LIST, sums)

    def _documents(self) -> Iterator[tuple[str, str]]:
        try:
            self.plan = self.dataset.plan() or {}
            if not self.plan:
                yield "_plan.json", f"{self.dataset.at('_plan.json')} is missing"
        except FiqaRayError as exc:
            yield "_plan.json", str(exc)
        try:
            self.manifest = self.dataset.manifest_beside(self.plan)
        except FiqaRayError as exc:
            yield "_manifest.json", str(exc)

    def _parts(self) -> Iterator[tuple[str, str]]:
        parts: dict[int, Part] = dict(enumerate(self.manifest.parts)) if self.manifest is not None else {}
        for name in sorted(filter(is_record, self.names)):
            uri = self.dataset.at(name)
            try:
                part = self.dataset.parse_record(name, read_bytes(uri))
            except FiqaRayError as exc:
                yield name, str(exc)
                continue
            if self.manifest is not None and parts.get(part.index) != part:
                yield name, f"{uri} is damaged: it differs from the manifest"
            parts.setdefault(part.index, part)
        for index, part in sorted(parts.items()):
            if record_name(index) not in self.names:
                yield record_name(index), f"{self.dataset.at(record_name(index))} is missing"
            for name, sums in part.files.items():
                yield from self._file(name, sums)

    def _file(self, name: str, sums: dict[str, Any]) -> Iterator[tuple[str, str]]:
        fault = fault_of_file(self.dataset.at(name), sums) if name in self.names else "it is missing"
        if fault:
            yield name, f"{self.dataset.at(name)} is damaged: {fault}"
