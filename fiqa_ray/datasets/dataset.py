"""A dataset on storage: a folder named by its fingerprint, with parts, their records, the plan and the manifest.

    _plan.json            what the dataset will hold (number of parts and rows), written before the first part
    part-00000.parquet    a part: written whole by one atomic act under its final name
    part-00000.json       its record (files with bytes and CRC-32, rows, addable stats): a part counts from here on
    _manifest.json        the parts, once all are there: a dataset counts from here on

Nothing is deleted; a part is only ever written again with the bytes it had, to mend a lost or damaged file. A shard is the
work that makes one part; a group is several parts that one task reads.
"""

from __future__ import annotations

import glob
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
    filesystem,
    join,
    json_bytes,
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
    """The record of one finished part.

    Attributes:
        index: Number of the part in its dataset, from 0.
        n_rows: Rows of the part; what a row is depends on the dataset.
        files: File name to `n_bytes` and `crc32` (8 hex digits).
        stats: Numbers, or nested dicts of numbers, that are added over the parts.
        duration_s: Seconds of work.
    """

    index: int
    n_rows: int
    files: dict[str, dict[str, Any]]
    stats: dict[str, Any] = field(default_factory=dict)
    duration_s: float = 0.0


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


def part_name(index: int) -> str:
    """Return the name of a part; names sort like the numbers for up to 100,000 parts."""
    return f"part-{index:05d}"


def add_stats(all_stats: Iterator[Mapping[str, Any]] | list[Mapping[str, Any]]) -> dict[str, Any]:
    """Add numbers key by key, also in nested dicts."""
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
"""Dataset name -> the stage that writes it, for error messages."""


@dataclass(frozen=True)
class Dataset:
    """A folder of parts on storage. Picklable: it holds no connection.

    Attributes:
        uri: The folder; ends in `v=<fingerprint>`.
        name: Kind of dataset, a key of `MADE_BY`.
    """

    uri: str
    name: str

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
        put_if_absent(self.at("_plan.json"), json_bytes(plan))
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
        manifest = self.manifest()
        record = None if manifest is None else manifest.parts[index].files
        if record is not None and record.keys() != contents.keys():
            raise self._differs_from_record(name)
        written = {
            file_name: self._write_file(name, file_name, content, record and record[file_name], parquet)
            for file_name, content in contents.items()
        }
        part = Part(index, n_rows, written, stats or {}, round(duration_s, 3))
        write_atomic(self.at(name + ".json"), json_bytes(asdict(part)))
        return part

    def _write_file(
        self, part: str, name: str, content: FileContent, record: Mapping[str, Any] | None, parquet: dict[str, Any]
    ) -> dict[str, Any]:
        if isinstance(content, pa.Table):
            data: bytes | pa.Buffer = table_bytes(content, **parquet)
        else:
            data = content() if callable(content) else content
        sums = _sums(data)
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
        parts = [asdict(done[i]) for i in range(n_parts)]
        put_if_absent(self.at("_manifest.json"), json_bytes({"dataset": self.name, "parts": parts}))
        manifest = self.manifest()
        assert manifest is not None
        return manifest

    # reading

    def plan(self) -> dict[str, Any] | None:
        """Return the stored plan, or None."""
        return read_json(self.at("_plan.json"))

    def finished_parts(self, verify: bool = False) -> dict[int, Part]:
        """Return the records of the finished parts by number.

        Args:
            verify: Leave out parts with a file that is missing or has another size than its record says.
        """
        sizes = list_files(self.uri)
        names = [n for n in sizes if n.startswith("part-") and n.endswith(".json")]
        with storage_errors(self.uri):
            fs, path = filesystem(self.uri)
            folder = glob.escape(path.rstrip(_SLASH))  # cat reads patterns, and a run's folder may hold brackets
            contents = fs.cat([folder + _SLASH + n for n in names]) if names else {}
        if isinstance(contents, bytes):
            contents = {"": contents}
        parts = {}
        for content in contents.values():
            try:
                part = Part(**json.loads(content))
            except (ValueError, TypeError):
                continue  # a damaged record: its part is computed again
            if not verify or all(sizes.get(name) == f["n_bytes"] for name, f in part.files.items()):
                parts[part.index] = part
        return parts

    def manifest(self) -> Manifest | None:
        """Return the manifest, or None while the dataset is unfinished."""
        content = read_json(self.at("_manifest.json"))
        if content is None:
            return None
        parts = [Part(**p) for p in content["parts"]]
        stats = add_stats([p.stats for p in parts])
        return Manifest(self.uri, self.plan() or {}, parts, stats, sum(p.n_rows for p in parts))

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
        """Read a part, or some of its columns, and verify it.

        The file's CRC-32 is checked if most of the file is read, else Parquet's page checksums. On a local disk only
        the wanted columns of a large file are read.

        Raises:
            FiqaRayError: The file is missing or damaged.
        """
        with self._table(part, suffix, columns) as file:
            return file.read(columns, use_threads=False)

    def read_all(self, columns: list[str] | None = None, suffix: str = ".parquet") -> pa.Table:
        """Read all parts in order as one table. Memory: the table, so use it for small results and per-image vectors."""
        parts = self.require().parts
        if _is_local(filesystem(self.uri)[0]):  # threads do not speed up a local disk
            tables = [self.read(p, columns, suffix) for p in parts]
        else:  # many small requests run in parallel
            with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
                tables = list(pool.map(lambda p: self.read(p, columns, suffix), parts))
        return pa.concat_tables(tables)

    def read_rows(self, part: Part, first: int, last: int, columns: list[str]) -> pa.Table:
        """Return the rows first:last of a large part; only the row groups that hold them are read."""
        with self._table(part, ".parquet", whole=False) as file:
            groups: list[int] = []
            skip = start = 0
            for g in range(file.num_row_groups):
                n = file.metadata.row_group(g).num_rows
                if start < last and start + n > first:
                    skip = first - start if not groups else skip
                    groups.append(g)
                start += n
            return file.read_row_groups(groups, columns=columns).slice(skip, last - first)

    def read_range(self, part: Part, low: int | None, high: int | None, suffix: str) -> pa.Table:
        """Read the row groups of a sorted table whose first column overlaps [low, high); None means unbounded."""
        with self._table(part, suffix, whole=False) as file:
            groups = []
            for g in range(file.num_row_groups):
                extent = file.metadata.row_group(g).column(0).statistics
                if (high is None or extent.min < high) and (low is None or extent.max >= low):
                    groups.append(g)
            return file.read_row_groups(groups)

    @contextmanager
    def _table(
        self, part: Part, suffix: str, columns: list[str] | None = None, whole: bool = True
    ) -> Iterator[pq.ParquetFile]:
        """Open a part's table. Damage that shows while it is open becomes an error with the remedy."""
        name = part_name(part.index) + suffix
        uri = self.at(name)
        with storage_errors(uri):
            fs, path = filesystem(uri)
            if _is_local(fs):
                source: Any = pa.memory_map(path)
            else:  # one request, unless only a few rows are wanted
                source = pa.BufferReader(fs.cat_file(path)) if whole else fs.open(path, "rb")
        try:
            with source:
                check_file = whole and (not _is_local(fs) or source.size() <= _SMALL_BYTES or _is_most(columns, source))
                if check_file:
                    source.seek(0)
                    if f"{crc32(source.read_buffer()):08x}" != part.files[name]["crc32"]:
                        raise self._damaged(part, name, "its checksum differs from")
                with pq.ParquetFile(source, page_checksum_verification=not check_file) as file:
                    yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
            raise self._damaged(part, name, f"{' '.join(str(exc).split())[:120]}; see its record") from exc

    def _damaged(self, part: Part, name: str, how: str) -> FiqaRayError:
        return FiqaRayError(
            f"{self.at(name)} is damaged: {how} {part_name(part.index)}.json; remove this file and run again: "
            "its part is then computed again"
        )


def _is_most(columns: list[str] | None, source: pa.NativeFile) -> bool:
    """Return whether the columns (None: all) hold more than half of the bytes of a Parquet file."""
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


def _sums(data: bytes | pa.Buffer) -> dict[str, Any]:
    """Return a file's size and CRC-32 (isal computes it much faster than zlib; SHA-256 takes longer than the write)."""
    return {"n_bytes": len(data), "crc32": f"{crc32(data):08x}"}
