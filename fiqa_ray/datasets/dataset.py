"""A dataset on storage: a folder named by its fingerprint, with parts, their records, the plan and the manifest.

    _plan.json            what the dataset will hold (number of parts and rows), written before the first part
    part-00000.parquet    a part: written whole by one atomic act under its final name
    _part-00000.json      its record (files with bytes and CRC-32, rows, addable stats): a part counts from here on
    _manifest.json        the parts, once all are there: a dataset counts from here on

Readers of Parquet folders (pandas, pyarrow) leave out names that begin with "_", so they read a folder of parts as a table.
No part is deleted; it is only ever written again with the bytes it had, to mend a lost or damaged file. A shard is the work
that makes one part; a group of parts is what one task reads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from fiqa_ray.datasets.folders import in_parallel
from fiqa_ray.datasets.parquet import table_bytes
from fiqa_ray.datasets.records import add_stats as add_stats
from fiqa_ray.datasets.records import fault_of_manifest, fault_of_part, fault_of_plan
from fiqa_ray.datasets.records import is_record as is_record
from fiqa_ray.datasets.records import part_name as part_name
from fiqa_ray.datasets.records import record_name as record_name
from fiqa_ray.datasets.sums import Choose, file_sums, read_table
from fiqa_ray.documents import (
    create_document,
    damaged,
    parse_document,
    read_document,
    read_written,
    write_document,
)
from fiqa_ray.errors import FiqaRayError, IncompleteError
from fiqa_ray.storage import (
    SLASH,
    filesystem,
    is_local,
    join,
    list_files,
    read_if_there,
    read_shown,
    regular,
    storage_errors,
    write_atomic,
)
from fiqa_ray.storage.patience import take_retries

_Wanted = TypeVar("_Wanted")
_last_manifest: dict[tuple[str, int], Manifest] = {}
"""The manifest that `write_part` read last, by URI and content: it needs one for each lost part of a finished dataset."""
_REMEDIES = {
    "_plan.json": "remove this file and run again: it is written again",
    "_manifest.json": "remove this file and run again: it is written again from the records of the parts",
}
_PART_REMEDY = "remove this file and run again: its part is then computed again"


@dataclass(frozen=True, slots=True)
class Part:
    """The record of one finished part.

    Attributes:
        index: Number of the part in its dataset, from 0.
        n_rows: Rows of the part; what a row is depends on the dataset.
        files: File name to its sums, see `fiqa_ray.datasets.sums`.
        stats: Numbers, or nested dicts of numbers, that are added over the parts.
        duration_s: Seconds of work.
    """

    index: int
    n_rows: int
    files: dict[str, dict[str, Any]]
    stats: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0

    def entries(self) -> dict[str, Any]:
        """Return the record's entries; unlike `asdict`, which takes long for many parts, without copies."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Manifest:
    """A finished dataset: its parts in order and the sum of their stats."""

    uri: str
    plan: dict[str, Any]
    parts: list[Part]
    stats: dict[str, Any]
    n_rows: int

    @property
    def first_rows(self) -> list[int]:
        """First row of each part, followed by the number of rows of the dataset."""
        first = [0]
        for part in self.parts:
            first.append(first[-1] + part.n_rows)
        return first


FileContent: TypeAlias = pa.Table | pa.Buffer | bytes | Callable[[], pa.Buffer]
"""A table, bytes, or a function that returns the bytes."""


def _is_stored(part: Part, sizes: Mapping[str, int]) -> bool:
    """Return whether the record of a part and its files are there, the files with the right sizes."""
    return record_name(part.index) in sizes and all(sizes.get(n) == sums["n_bytes"] for n, sums in part.files.items())


MADE_BY = {
    "faces": "pack",
    "embeddings": "embed",
    "quality_scores": "score (fuse for a fused method, evaluate for a regressor)",
    "fusion_fit": "fuse",
    "pairs": "pair",
    "key_counts": "rank",
    "sorted_keys": "rank",
    "similarity_ranks": "rank",
    "score_runs": "rank",
    "sorted_scores": "rank",
    "quality_index": "rank",
    "optimized_index": "optimize",
    "theta_choice": "optimize",
    "index_runs": "optimize",
    "sorted_indices": "optimize",
    "optimized_labels": "optimize",
    "ediff_threshold": "optimize",
    "ediff_distances": "optimize",
    "ediff_labels": "optimize",
    "regressor": "train",
    "comparisons": "evaluate",
    "cells": "evaluate",
    "evaluation": "evaluate",
    "results": "evaluate",
    "report": "report",
}
"""Dataset name -> the stage that writes it, for error messages."""


@dataclass(frozen=True)
class Dataset:
    """A folder of parts on storage. Picklable: it holds no connection.

    Attributes:
        uri: The folder; ends in `v=<fingerprint>`.
        name: Kind of dataset, a key of `MADE_BY`.
        inputs: Folders, relative to the run, of the datasets that it is made from.
    """

    uri: str
    name: str
    inputs: tuple[str, ...] = field(default=(), compare=False)

    @property
    def fingerprint(self) -> str:
        """Hash of the settings and inputs: the end of the URI."""
        return self.uri.rsplit("v=", 1)[1]

    def at(self, name: str) -> str:
        """Return the URI of a file of the dataset."""
        return join(self.uri, name)

    # writing

    def write_plan(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Store what the dataset will hold, unless a plan is stored already; return the stored plan."""
        values = {**plan, "inputs": list(self.inputs)}
        create_document(self.at("_plan.json"), values, self._place("_plan.json"))
        return self._checked_plan(
            read_written(self.at("_plan.json"), _REMEDIES["_plan.json"], self._place("_plan.json"))
        )

    def _place(self, name: str) -> str:
        """Return the name that a document is bound to: the folder may be moved, its documents not exchanged."""
        return join(self.uri.rsplit(SLASH, 1)[-1], name)

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_document(self.at(name), _REMEDIES[name], self._place(name))

    def write_part(
        self,
        index: int,
        files: Mapping[str, FileContent],
        *,
        n_rows: int,
        stats: dict[str, Any] | None = None,
        duration_s: float = 0.0,
        **parquet: Any,
    ) -> Part:
        """Write the files of a part, each atomically, then the record.

        Args:
            index: Number of the part.
            files: Suffix (".parquet", appended to the part's name) or whole file name ("report.html") -> content.
            n_rows: Rows of the part.
            stats: See `Part`.
            duration_s: Seconds of work so far.
            **parquet: Options of `table_bytes` for the tables among `files`.

        Returns:
            The record of the part.

        Raises:
            FiqaRayError: A finished dataset is repaired and the new bytes differ from the recorded ones.

        Memory: one file at a time.
        """
        name = part_name(index)
        contents = {name + suffix if suffix.startswith(".") else suffix: content for suffix, content in files.items()}
        manifest = self._manifest_of_lost_part()
        record = None if manifest is None else manifest.parts[index].files
        if record is not None and record.keys() != contents.keys():
            raise self._differs_from_record(name)
        written = {
            file_name: self._write_file(name, file_name, content, record and record[file_name], parquet)
            for file_name, content in contents.items()
        }
        n_retries = take_retries()
        stats = {**(stats or {}), **({"storage_retries": n_retries} if n_retries else {})}
        part = Part(index, n_rows, written, stats, round(duration_s, 3))
        if manifest is not None:  # the same bytes again, also of the record
            part = manifest.parts[index]
        document = record_name(index)
        write_document(self.at(document), part.entries(), self._place(document))
        return part

    def _manifest_of_lost_part(self) -> Manifest | None:
        """Return the manifest if the dataset was finished before; it is parsed once for all lost parts."""
        content = read_if_there(self.at("_manifest.json"))
        if content is None:
            return None
        key = (self.uri, hash(content))
        manifest = _last_manifest.get(key)
        if manifest is None and (manifest := self.manifest()) is not None:
            _last_manifest.clear()
            _last_manifest[key] = manifest
        return manifest

    def _write_file(
        self, part: str, name: str, content: FileContent, record: Mapping[str, Any] | None, parquet: dict[str, Any]
    ) -> dict[str, Any]:
        if isinstance(content, pa.Table):
            data: bytes | pa.Buffer = table_bytes(content, **parquet)
        else:
            data = content() if callable(content) else content
        sums = file_sums(name, data)
        if record is not None and record != sums:
            raise self._differs_from_record(part)
        write_atomic(self.at(name), data)
        return sums

    def _differs_from_record(self, name: str) -> FiqaRayError:
        return FiqaRayError(
            f"{self.uri}: {name} was lost and made again, but with other bytes than before (another batch size, device, "
            "library or fiqa_ray version?), so datasets made from it no longer fit; remove this folder and run again, or "
            "choose another run_uri"
        )

    def commit(self, n_parts: int) -> Manifest:
        """Write the manifest. Raise `IncompleteError` with the names of missing parts if there are any."""
        done = self.finished_parts()
        missing = [i for i in range(n_parts) if i not in done]
        if missing:
            names = ", ".join(part_name(i) for i in missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise IncompleteError(
                f"{self.name}: {len(missing)} of {n_parts} parts are missing in {self.uri} ({names}); "
                "run the same command again to continue"
            )
        parts = [done[i].entries() for i in range(n_parts)]
        values = {"dataset": self.name, "parts": parts}
        name = "_manifest.json"
        create_document(self.at(name), values, self._place(name))
        return self._checked_manifest(
            read_written(self.at(name), _REMEDIES[name], self._place(name)), self.plan() or {}
        )

    # reading

    def plan(self) -> dict[str, Any] | None:
        """Return the stored plan, or None. Raise `FiqaRayError` if it is damaged."""
        plan = self._read("_plan.json")
        return None if plan is None else self._checked_plan(plan)

    def _checked_plan(self, plan: dict[str, Any]) -> dict[str, Any]:
        fault = fault_of_plan(plan)
        if fault:
            raise damaged(self.at("_plan.json"), fault, _REMEDIES["_plan.json"])
        return plan

    def finished_parts(self, verify: bool = False) -> dict[int, Part]:
        """Return the records of the finished parts by number; a part with a damaged record counts as unfinished.

        The records of a finished dataset come from its manifest alone.

        Args:
            verify: Leave out parts of which a file or the record is missing, or a file has another size than its record
                says.
        """
        manifest = self.manifest()
        if verify:
            return self.stored_parts(manifest)
        if manifest is not None:
            return {part.index: part for part in manifest.parts}
        return self.recorded_parts(list_files(self.uri))

    def stored_parts(self, manifest: Manifest | None) -> dict[int, Part]:
        """Return what `finished_parts(verify=True)` does, where the manifest, or that there is none, is known."""
        sizes = list_files(self.uri)
        parts = self.recorded_parts(sizes) if manifest is None else {part.index: part for part in manifest.parts}
        return {i: part for i, part in parts.items() if _is_stored(part, sizes)}

    def recorded_parts(self, names: Iterable[str]) -> dict[int, Part]:
        """Return the parts by number whose records are among these names, there and sound."""
        parts = {}
        for name, content in self._records(names):
            try:
                part = self.parse_record(name, content)
            except FiqaRayError as exc:
                logging.getLogger("fiqa_ray").warning("%s", exc)
                continue
            parts[part.index] = part
        return parts

    def _records(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the names and contents of the parts' records."""
        records = [n for n in names if is_record(n)]
        with storage_errors(self.uri):
            fs, folder = filesystem(self.uri)
            if is_local(fs):
                for name in records:
                    with open(regular(os.path.join(folder, name)), "rb") as file:
                        yield name, file.read()
                return
        contents = in_parallel(lambda name: read_shown(self.at(name)), records, fs)
        yield from ((name, content) for name, content in zip(records, contents, strict=True) if content is not None)

    def recorded_part(self, index: int) -> Part | None:
        """Return the record of a part if it is there and sound."""
        content = read_if_there(self.at(record_name(index)))
        try:
            return None if content is None else self.parse_record(record_name(index), content)
        except FiqaRayError:
            return None

    def parse_record(self, name: str, content: bytes) -> Part:
        """Return the record of a part from the content of its file `name`. Raise `FiqaRayError` if it is damaged."""
        values = parse_document(content, self.at(name), _PART_REMEDY, self._place(name))
        fault = fault_of_part(values, int(name.removeprefix("_part-").removesuffix(".json")))
        if fault:
            raise damaged(self.at(name), fault, _PART_REMEDY)
        return Part(**values)

    def manifest(self) -> Manifest | None:
        """Return the manifest, or None while the dataset is unfinished. Raise `FiqaRayError` if it is damaged."""
        return self.manifest_beside(self.plan() or {})

    def manifest_beside(self, plan: dict[str, Any]) -> Manifest | None:
        """Return the manifest, checked against this plan, or None; raise `FiqaRayError` if it is damaged."""
        content = self._read("_manifest.json")
        return None if content is None else self._checked_manifest(content, plan)

    def _checked_manifest(self, content: dict[str, Any], plan: dict[str, Any]) -> Manifest:
        fault = fault_of_manifest(content, self.name, plan)
        if fault:
            raise damaged(self.at("_manifest.json"), fault, _REMEDIES["_manifest.json"])
        parts = content["parts"]
        for i, record in enumerate(parts):  # in the same list: a dataset may have 100,000
            parts[i] = Part(**record)
        return Manifest(self.uri, plan, parts, add_stats([p.stats for p in parts]), sum(p.n_rows for p in parts))

    def is_incomplete(self) -> bool:
        """Return whether the dataset was begun and lacks its plan, its manifest or a part."""
        plan, manifest = self.plan(), self.manifest()
        if plan is None or manifest is None:
            return plan is not None or manifest is not None
        return len(self.finished_parts(verify=True)) < len(manifest.parts)

    def require(self) -> Manifest:
        """Return the manifest of an input. Raise `IncompleteError` if the stage that writes it has not finished."""
        manifest = self.manifest()
        if manifest is None:
            stage = MADE_BY.get(self.name, "")
            raise IncompleteError(
                f"the dataset {self.name} of stage {stage} is not finished in {self.uri}; run that stage first, "
                "or the job without --stages"
            )
        return manifest

    def read(self, part: Part, columns: list[str] | None = None, suffix: str = ".parquet") -> pa.Table:
        """Read a part, or some of its columns, after a check of the bytes; of a large local file only the wanted ones.

        Raises:
            FiqaRayError: The file is missing or damaged.
        """
        return self._table(part, suffix, columns)

    def read_all(self, columns: list[str] | None = None, suffix: str = ".parquet") -> pa.Table:
        """Read all parts in order as one table. Memory: the table, so use it for small results and per-image vectors."""
        return pa.concat_tables(self.read_each(self.require().parts, lambda p: self.read(p, columns, suffix)))

    def read_each(self, wanted: Iterable[_Wanted], read: Callable[[_Wanted], pa.Table]) -> list[pa.Table]:
        """Return what `read` returns for each item, in order; reads from a bucket run side by side."""
        return in_parallel(read, list(wanted), filesystem(self.uri)[0])

    def read_rows(
        self, part: Part, first: int, last: int, columns: list[str] | None, suffix: str = ".parquet"
    ) -> pa.Table:
        """Return the rows first:last of a large part; only the row groups that hold them are read and checked."""
        skip = 0

        def choose(metadata: pq.FileMetaData) -> list[int]:
            nonlocal skip
            groups: list[int] = []
            start = 0
            for g in range(metadata.num_row_groups):
                n = metadata.row_group(g).num_rows
                if start < last and start + n > first:
                    skip = first - start if not groups else skip
                    groups.append(g)
                start += n
            return groups

        table = self._table(part, suffix, columns, choose)
        return table.slice(skip, last - first)

    def read_range(self, part: Part, low: int, high: int, suffix: str, columns: list[str] | None = None) -> pa.Table:
        """Read the row groups of a table whose first column, of whole numbers, has some in [low, high) or no statistics."""

        def choose(metadata: pq.FileMetaData) -> list[int]:
            extents = [metadata.row_group(g).column(0).statistics for g in range(metadata.num_row_groups)]
            is_known = [e is not None and e.has_min_max for e in extents]
            return [g for g, e in enumerate(extents) if not is_known[g] or (e.min < high and e.max >= low)]

        return self._table(part, suffix, columns, choose)

    def _table(
        self, part: Part, suffix: str, columns: list[str] | None = None, choose: Choose | None = None
    ) -> pa.Table:
        name = part_name(part.index) + suffix
        if name not in part.files:
            remedy = "remove this folder and run again, or choose another run_uri"
            raise damaged(self.at(record_name(part.index)), f"it names no file {name}", remedy)
        return read_table(self.at(name), part.files[name], columns, choose)
