"""Everything that touches storage: atomic writes, parts with their records, manifests, fingerprints, the run's lock.

One code path for local folders, ``s3://`` (endpoint and credentials from the usual environment variables) and
``memory://`` (one process only). A dataset is a folder named by its fingerprint:

    _plan.json            what the dataset will hold (number of parts and rows), written before the first part
    part-00000.parquet    a part: written whole by one atomic act under its final name
    part-00000.json       its record (files with bytes and CRC-32, rows, addable stats): a part counts from here on
    _manifest.json        the parts, once all are there: a dataset counts from here on

Nothing is deleted; a part is only ever written again with the bytes it had, to mend a lost or damaged file.
"""

from __future__ import annotations

import _thread
import errno
import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from isal.isal_zlib import crc32

from fiqa_ray.errors import FiqaRayError, IncompleteError, StorageError

_SLASH = "/"
_READS_AT_ONCE = 8
_SMALL_BYTES = 1 << 20


# --- file systems and errors ---


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path within it."""
    options: dict[str, Any] = {}
    if uri.startswith(("s3://", "s3a://")):
        # stores other than AWS reject the checksums that newer clients add unasked
        os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
        options = {"use_listings_cache": False, "config_kwargs": {"max_pool_connections": 32}}
        if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
            options["config_kwargs"]["s3"] = {"addressing_style": "path"}
    try:
        return fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as exc:
        raise FiqaRayError(
            f"cannot open {uri}: {exc}; use a local path, s3://, memory:// or another fsspec URL"
        ) from exc


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turns what storage raises into one `FiqaRayError` that names the URI, the cause and the remedy."""
    try:
        yield
    except FiqaRayError:
        raise
    except Exception as exc:
        hint = _storage_hint(exc)
        if hint is None:
            raise
        raise StorageError(f"{uri}: {hint}") from exc


def _storage_hint(exc: BaseException) -> str | None:
    code = str(getattr(exc, "response", {}).get("Error", {}).get("Code", ""))
    cause = getattr(exc.__cause__, "response", {}) if exc.__cause__ else {}
    code = code or str(cause.get("Error", {}).get("Code", ""))
    name = type(exc).__name__
    number = getattr(exc, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full or over quota; free some space and run the same command again, it continues"
    if name in ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"):
        return "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or an instance role"
    if isinstance(exc, PermissionError) or code in (
        "AccessDenied",
        "403",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
    ):
        return f"access denied ({code or exc}); check the credentials and the rights on this location"
    if code in ("NoSuchBucket",) or "NoSuchBucket" in str(exc) or "bucket does not exist" in str(exc):
        return "the bucket does not exist; create it or correct the name"
    if name in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ConnectionError",
        "ClientConnectorError",
    ) or isinstance(exc, ConnectionError | TimeoutError):
        return f"cannot be reached ({exc}); check the network and AWS_ENDPOINT_URL"
    if isinstance(exc, FileNotFoundError):
        return "not found; check the path"
    if isinstance(exc, IsADirectoryError):
        return "is a folder; give a file"
    if isinstance(exc, NotADirectoryError):
        return "a part of this path is a file, not a folder; choose another place"
    if name == "ParamValidationError":
        return f"not a valid bucket or key; correct the name ({' '.join(str(exc).split())[:120]})"
    if isinstance(exc, OSError):
        return str(exc) or name
    if type(exc).__module__.split(".")[0] in ("botocore", "aiobotocore", "aiohttp", "urllib3"):
        return f"{name}: {exc}; check the network and AWS_ENDPOINT_URL, and run the same command again"
    return None


def join(uri: str, *parts: str) -> str:
    """Joins URI parts with single slashes."""
    return _SLASH.join([uri.rstrip(_SLASH), *(p.strip(_SLASH) for p in parts)])


def read_bytes(uri: str) -> bytes:
    """The content of a file; `FiqaRayError` where it cannot be read."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        return fs.cat_file(path)


def read_json(uri: str) -> Any | None:
    """Parsed JSON, or None where there is no such file."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        try:
            return json.loads(fs.cat_file(path))
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise FiqaRayError(f"{uri} is damaged ({exc}); remove this file and run again") from exc


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        return fs.exists(path)


def write_atomic(uri: str, data: bytes | pa.Buffer) -> None:
    """Writes a whole object by one act: readers see all of it or nothing."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        if _is_local(fs):
            _write_local(path, data, os.replace)
        else:
            fs.pipe_file(path, bytes(data))


def _write_local(path: str, data: bytes | pa.Buffer, name_it: Callable[[str, str], None]) -> None:
    """Writes beside the place, then gives the file its name in one act."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as f:
            f.write(data)
        name_it(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Creates a small object unless it is there; True for the one caller whose content now stands there."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        try:
            if _is_local(fs):
                _write_local(path, data, os.link)  # fails where the name is taken
            else:
                fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        except OSError as exc:  # stores that do not name the condition in their answer
            code = getattr(exc.__cause__, "response", {}).get("Error", {}).get("Code") if exc.__cause__ else None
            if code in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
        return True


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return protocol in ("file", "local")


def sizes_below(uri: str) -> dict[str, int]:
    """Names (relative to ``uri``) and bytes of all files below a folder; empty where there is none. One listing."""
    with storage_errors(uri):
        fs, path = filesystem(uri)
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        root = fs._strip_protocol(path).rstrip(_SLASH)
        return {p[len(root) :].lstrip(_SLASH): int(info["size"] or 0) for p, info in found.items()}


# --- fingerprints ---


def fingerprint(content: Any) -> str:
    """16 hex digits that stand for a JSON-able value: a dataset's stage, settings, schema version and inputs."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def content_hash(uri: str) -> str:
    """SHA-256 (hex) of a file's content; read once per process."""
    return hashlib.sha256(read_bytes(uri)).hexdigest()


# --- parts and datasets ---


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


def table_bytes(table: pa.Table, row_group_rows: int = 1 << 20, **options: Any) -> pa.Buffer:
    """A table as Parquet with a checksum per page: equal tables give equal bytes with one pyarrow version.

    Whole numbers are stored as differences, which need no more packing; embeddings as they are, for their digits are noise;
    floats byte by byte and by snappy, in half the time of zstd, which saves 3 % of the room; the rest by zstd.
    """
    sink = pa.BufferOutputStream()
    encodings = {f.name: _ENCODING[f.type] for f in table.schema if f.type in _ENCODING}
    bare = [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_fixed_size_binary(f.type)]
    packing = {name: "NONE" if name in bare else "zstd" for name in table.schema.names}
    packing |= {f.name: "snappy" for f in table.schema if pa.types.is_floating(f.type)}
    options.setdefault("use_dictionary", [f.name for f in table.schema if pa.types.is_string(f.type)])
    pq.write_table(
        table.replace_schema_metadata(None),
        sink,
        row_group_size=row_group_rows,
        write_page_checksum=True,
        **{"compression": packing, "column_encoding": encodings, **options},
    )
    return sink.getvalue()


def plain_bytes(table: pa.Table) -> pa.Buffer:
    """Numbers without nulls as a Parquet file that holds them as they are, and has no sums of its own: for large columns
    that are read as a whole (`Dataset.read` without ``columns``), where the file's sum is looked at. Memory: the file."""
    room = pa.allocate_buffer(table.nbytes + table.nbytes // 50 + (1 << 20))  # more than page headers take
    sink = pa.FixedSizeBufferWriter(room)
    pq.write_table(
        table.replace_schema_metadata(None),
        sink,
        compression="NONE",
        use_dictionary=False,
        write_statistics=False,
        data_page_size=1 << 20,
    )
    return room.slice(0, sink.tell())


_ENCODING = {pa.int32(): "DELTA_BINARY_PACKED", pa.int64(): "DELTA_BINARY_PACKED"}
_ENCODING |= {pa.float32(): "BYTE_STREAM_SPLIT", pa.float64(): "BYTE_STREAM_SPLIT"}

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
        sizes = sizes_below(self.uri)
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


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


# --- the run's lock ---


class RunLock:
    """Lets one run at a time write to a run folder, on any storage.

    The highest ``_lock/NNNNNN.json`` holds; taking over means creating the next number, which only one can do. The
    holder renews ``NNNNNN.beat``; a holder on this machine whose process is gone, or one without a new beat for `stale_s`,
    is dead. The beats are the only objects that a run writes more than once.
    """

    beat_s = 5.0
    stale_s = 20.0

    def __init__(self, run_uri: str) -> None:
        self.uri = join(run_uri, "_lock")
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._number = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        while True:
            names = sizes_below(self.uri)
            numbers = [int(n[:6]) for n in names if n.endswith(".json")]
            newest = max(numbers, default=0)
            if newest and f"{newest:06d}.released" not in names:
                self._refuse_unless_dead(newest)
            self._number = newest + 1
            content = {"host": socket.gethostname(), "pid": os.getpid(), "start": _process_start(os.getpid())}
            if put_if_absent(self._at("json"), _json({**content, "token": self._token})) or self._is_mine():
                break
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        with storage_quiet():  # must not stand in for the run's own error
            put_if_absent(self._at("released"), b"")

    def _is_mine(self) -> bool:
        """Whether the number is ours after all: the answer to a first try may have been lost."""
        return (read_json(self._at("json")) or {}).get("token") == self._token

    def _at(self, suffix: str, number: int | None = None) -> str:
        return join(self.uri, f"{number or self._number:06d}.{suffix}")

    def _beat(self) -> None:
        n = 0
        while not self._stop.wait(self.beat_s if n else 0):
            n += 1
            with storage_quiet():
                write_atomic(self._at("beat"), _json({"token": self._token, "beat": n}))
                if exists(self._at("json", self._number + 1)):
                    logging.getLogger("fiqa_ray").error("another run took over %s; this one stops", self.uri)
                    _thread.interrupt_main()
                    return

    def _refuse_unless_dead(self, number: int) -> None:
        holder = read_json(self._at("json", number)) or {}
        here = holder.get("host") == socket.gethostname()
        if here and _process_start(int(holder["pid"])) != holder["start"]:
            return  # its process is gone
        before = read_json(self._at("beat", number))
        if not here:
            time.sleep(self.stale_s)
            if read_json(self._at("beat", number)) == before:
                return
        raise FiqaRayError(
            f"another run is at work in {self.uri.removesuffix('/_lock')} (process {holder.get('pid')} on "
            f"{holder.get('host')}); wait for it, stop it, or choose another run_uri"
        )


def _process_start(pid: int) -> str | None:
    """Start time of a process in ticks: tells a process from a later one of the same number. None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            fields = f.read().rsplit(")", 1)[1].split()
            return None if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return "running"


@contextmanager
def storage_quiet() -> Iterator[None]:
    """For what is tried again anyway, such as a lock's beat: a fault is logged and passed over."""
    try:
        yield
    except Exception as exc:  # logged, not raised: storage may be back by the next beat
        logging.getLogger("fiqa_ray").warning("storage did not answer: %s", exc)
