"""A dataset on storage: parts with their records, the plan and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from isal.isal_zlib import crc32

from fiqa_ray.datasets.parquet import table_bytes
from fiqa_ray.errors import FiqaRayError, IncompleteError
from fiqa_ray.storage import (
    _SLASH,
    _is_local,
    _json,
    filesystem,
    join,
    list_files,
    put_if_absent,
    read_json,
    storage_errors,
    write_atomic,
)

_READS_AT_ONCE = 8
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """The record of one finished part. ``stats`` are numbers (or nested dicts of them) that add up over parts."""

    index: int
    n_rows: int
    files: dict[str, dict[str, Any]]
    stats: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0


@dataclass(frozen=True)
class Manifest:
    """A finished dataset: its parts in order and their added stats."""

    uri: str
    plan: dict[str, Any]
    parts: list[Part]
    stats: dict[str, Any]
    n_rows: int

    @property
    def first_rows(self) -> list[int]:
        """First row of each part and, last, the number of rows."""
        first = [0]
        for part in self.parts:
            first.append(first[-1] + part.n_rows)
        return first


FileContent: TypeAlias = pa.Table | pa.Buffer | bytes | Callable[[], pa.Buffer]
"""A table, bytes, or what makes the bytes."""


def part_name(index: int) -> str:
    """Parts sort by name as by number up to 100,000 of them."""
    return f"part-{index:05d}"


def add_stats(all_stats: Iterator[Mapping[str, Any]] | list[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds numbers key by key, into nested dicts."""
    total: dict[str, Any] = {}
    for stats in all_stats:
        for key, value in stats.items():
            if isinstance(value, Mapping):
                total[key] = add_stats([total.get(key, {}), value])
            else:
                total[key] = total.get(key, 0) + value
    return dict(sorted(total.items()))


MADE_BY = {
    "faces": "pack",
    "embeddings": "embed",
    "quality_scores": "score (fuse, for a fused method)",
    "fusion_fit": "fuse",
    "pairs": "pair",
    "key_counts": "rank",
    "sorted_keys": "rank",
    "similarity_ranks": "rank",
    "quality_index": "rank",
    "optimized_index": "optimize",
    "optimized_labels": "optimize",
    "regressor": "train",
    "evaluation": "evaluate",
}
"""Which stage to run for a dataset that is missing, by the dataset's name."""


@dataclass(frozen=True)
class Dataset:
    """A place for parts: ``uri`` ends in ``v=<fingerprint>``; picklable, holds no connection."""

    uri: str
    name: str

    @property
    def fingerprint(self) -> str:
        """The part of the URI that stands for settings and inputs."""
        return self.uri.rsplit("v=", 1)[1]

    def at(self, name: str) -> str:
        """URI of a file of the dataset."""
        return join(self.uri, name)

    # writing

    def write_plan(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Stores what the dataset will hold; where a plan stands already, that one is returned and counts."""
        put_if_absent(self.at("_plan.json"), _json(plan))
        stored = read_json(self.at("_plan.json"))
        assert isinstance(stored, dict)
        return stored

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
        """Writes the part's files, each by one atomic act, then its record.

        ``files``: suffix (".parquet", appended to the part's name) or a whole name ("report.html") -> content. Each is
        made, summed and written before the next: while it is in the processor's cache, and one at a time in memory.
        """
        name = part_name(index)
        contents = {name + suffix if suffix.startswith(".") else suffix: content for suffix, content in files.items()}
        manifest = self.manifest()
        record = None if manifest is None else manifest.parts[index].files
        if record is not None and record.keys() != contents.keys():
            raise self._made_otherwise(name)
        written = {
            file_name: self._write_file(name, file_name, content, record and record[file_name], parquet)
            for file_name, content in contents.items()
        }
        part = Part(index, n_rows, written, stats or {}, round(duration_s, 3))
        write_atomic(self.at(name + ".json"), _json(asdict(part)))
        return part

    def _write_file(
        self, part: str, name: str, content: FileContent, known: Mapping[str, Any] | None, parquet: dict[str, Any]
    ) -> dict[str, Any]:
        if isinstance(content, pa.Table):
            data: bytes | pa.Buffer = table_bytes(content, **parquet)
        else:
            data = content() if callable(content) else content
        sums = _sums(data)
        if known is not None and not _is_same(known, sums, data):
            raise self._made_otherwise(part)
        write_atomic(self.at(name), data)
        return sums

    def _made_otherwise(self, name: str) -> FiqaRayError:
        return FiqaRayError(
            f"{self.uri}: {name} was lost and made again, but with other bytes than before (another batch size, device, "
            "library or fiqa_ray version?), so what was made from it no longer fits; remove this folder and run again, "
            "or choose another run_uri"
        )

    def commit(self, n_parts: int) -> Manifest:
        """Writes the manifest once all parts are there; `IncompleteError` names those that are missing."""
        done = self.finished_parts()
        missing = [i for i in range(n_parts) if i not in done]
        if missing:
            names = ", ".join(part_name(i) for i in missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise IncompleteError(
                f"{self.name}: {len(missing)} of {n_parts} parts are missing in {self.uri} ({names}); "
                "run the same command again to continue"
            )
        parts = [asdict(done[i]) for i in range(n_parts)]
        put_if_absent(self.at("_manifest.json"), _json({"dataset": self.name, "parts": parts}))
        manifest = self.manifest()
        assert manifest is not None
        return manifest

    # reading

    def plan(self) -> dict[str, Any] | None:
        """The stored plan, or None."""
        return read_json(self.at("_plan.json"))

    def finished_parts(self, verify: bool = False) -> dict[int, Part]:
        """Records of the parts that are there, by number. ``verify``: leave out parts whose files have other sizes."""
        sizes = list_files(self.uri)
        names = [n for n in sizes if n.startswith("part-") and n.endswith(".json")]
        with storage_errors(self.uri):
            fs, path = filesystem(self.uri)
            contents = fs.cat([path.rstrip(_SLASH) + _SLASH + n for n in names]) if names else {}
        if isinstance(contents, bytes):
            contents = {"": contents}
        parts = {}
        for content in contents.values():
            try:
                part = Part(**json.loads(content))
            except (ValueError, TypeError):
                continue  # a damaged record: its part is made anew
            if not verify or all(sizes.get(name) == f["n_bytes"] for name, f in part.files.items()):
                parts[part.index] = part
        return parts

    def manifest(self) -> Manifest | None:
        """The manifest, or None while the dataset is unfinished."""
        found = read_json(self.at("_manifest.json"))
        if found is None:
            return None
        parts = [Part(**p) for p in found["parts"]]
        stats = add_stats([p.stats for p in parts])
        return Manifest(self.uri, self.plan() or {}, parts, stats, sum(p.n_rows for p in parts))

    def require(self) -> Manifest:
        """The manifest of an input; `IncompleteError` where the stage that makes it has not finished."""
        manifest = self.manifest()
        if manifest is None:
            stage = MADE_BY.get(self.name, "")
            raise IncompleteError(
                f"the dataset {self.name} of stage {stage} is not finished in {self.uri}; run that stage first, "
                "or the job without --stages"
            )
        return manifest

    def read(self, part: Part, columns: list[str] | None = None, suffix: str = ".parquet") -> pa.Table:
        """A part's table or some columns of it, checked: all of the file where most of it is wanted, else page by page.

        From a local disk only the wanted columns of a large file are read.
        """
        with self._table(part, suffix, columns) as file:
            return file.read(columns, use_threads=False)

    def read_all(self, columns: list[str] | None = None, suffix: str = ".parquet") -> pa.Table:
        """All parts in order as one table: for per-image vectors and small results."""
        parts = self.require().parts
        if _is_local(filesystem(self.uri)[0]):  # where threads would wait for one another
            tables = [self.read(p, columns, suffix) for p in parts]
        else:  # many small parts: a store answers them side by side
            with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
                tables = list(pool.map(lambda p: self.read(p, columns, suffix), parts))
        return pa.concat_tables(tables, promote_options="default")  # parts of earlier versions may have room for nulls

    def read_rows(self, part: Part, first: int, last: int, columns: list[str]) -> pa.Table:
        """Rows first:last of a large part; reads only the row groups that hold them."""
        with self._table(part, ".parquet", whole=False) as file:
            groups: list[int] = []
            skip = at = 0
            for g in range(file.num_row_groups):
                n = file.metadata.row_group(g).num_rows
                if at < last and at + n > first:
                    skip = first - at if not groups else skip
                    groups.append(g)
                at += n
            return file.read_row_groups(groups, columns=columns).slice(skip, last - first)

    def read_range(self, part: Part, low: int | None, high: int | None, suffix: str) -> pa.Table:
        """The row groups of a sorted table whose first column meets [low, high); None is open."""
        with self._table(part, suffix, whole=False) as file:
            groups = []
            for g in range(file.num_row_groups):
                found = file.metadata.row_group(g).column(0).statistics
                if (high is None or found.min < high) and (low is None or found.max >= low):
                    groups.append(g)
            return file.read_row_groups(groups)

    @contextmanager
    def _table(
        self, part: Part, suffix: str, columns: list[str] | None = None, whole: bool = True
    ) -> Iterator[pq.ParquetFile]:
        """Opens a part's table; what proves damaged while it is open is reported with the remedy."""
        name = part_name(part.index) + suffix
        uri = self.at(name)
        with storage_errors(uri):
            fs, path = filesystem(uri)
            if _is_local(fs):
                source: Any = pa.memory_map(path)
            else:  # one request, unless only a little is wanted
                source = pa.BufferReader(fs.cat_file(path)) if whole else fs.open(path, "rb")
        try:
            with source:
                known = part.files.get(name, {}).get("crc32")  # records of earlier versions have none
                at_hand = whole and (not _is_local(fs) or source.size() <= _SMALL_BYTES or _is_most(columns, source))
                sum_it = at_hand and known is not None
                if sum_it:
                    source.seek(0)
                    if f"{crc32(source.read_buffer()):08x}" != known:
                        raise self._damaged(part, name, "its checksum differs from")
                with pq.ParquetFile(source, page_checksum_verification=not sum_it) as file:
                    yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
            raise self._damaged(part, name, f"{' '.join(str(exc).split())[:120]}; see its record") from exc

    def _damaged(self, part: Part, name: str, how: str) -> FiqaRayError:
        return FiqaRayError(
            f"{self.at(name)} is damaged: {how} {part_name(part.index)}.json; remove this file and run again, and its part "
            "is made anew"
        )


def _is_most(columns: list[str] | None, source: pa.NativeFile) -> bool:
    """Whether some columns, or all, make more than half of a Parquet file."""
    if columns is None:
        return True
    metadata = pq.read_metadata(source)
    wanted = total = 0
    for g in range(metadata.num_row_groups):
        for c in range(metadata.num_columns):
            chunk = metadata.row_group(g).column(c)
            wanted += chunk.total_compressed_size * (chunk.path_in_schema.split(".")[0] in columns)
            total += chunk.total_compressed_size
    return 2 * wanted > total


def _is_same(known: Mapping[str, Any], sums: Mapping[str, Any], data: bytes | pa.Buffer) -> bool:
    """Whether a file is the one of a record; records of earlier versions hold SHA-256."""
    if "sha256" in known:
        return bool(known["sha256"] == hashlib.sha256(data).hexdigest())
    return bool(known == sums)


def _sums(data: bytes | pa.Buffer) -> dict[str, Any]:
    # CRC-32, as stores and Parquet's own pages have it: SHA-256 took longer than writing the file, and zlib's CRC as long
    return {"n_bytes": len(data), "crc32": f"{crc32(data):08x}"}
