"""WebDataset: tar files whose members `key.jpg`, `key.cls`, `key.json` make one sample (webdataset/webdataset).

A shard is walked from header to header by range reads and is never loaded or unpacked; members' names are names only.
POSIX ustar, pax and GNU long names are read; links, sparse members and compressed shards are refused.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from fiqa_ray.datasets.schemas import SOURCE_FACES, SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.containers import N_THREADS
from fiqa_ray.sources.leftovers import EXTENSIONS, reason_left_out
from fiqa_ray.sources.listing import joined, refuse_duplicates, sorted_faces, text_column
from fiqa_ray.sources.paths import absolute, expand
from fiqa_ray.storage import filesystem, storage_errors

_MAX_NOTE_BYTES = 1 << 20  # of a .cls, .json or .txt, or of a long name
_NOTES = ("cls", "json", "txt")
_READ_BYTES = 1 << 22
_BLOCK = tarfile.BLOCKSIZE
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass
class _Sample:
    name: str = ""  # of the image
    offset: int | None = None
    length: int | None = None
    notes: dict[str, bytes] = field(default_factory=dict)


def list_webdataset(uri: str, *, identity_key: str | None = None, left_out: Counter[str] | None = None) -> pa.Table:
    """List the samples of WebDataset shards as a table of `schemas.SOURCE_RECORDS`.

    A sample's identity is its `.cls`, else `identity` or `label` in its `.json`, else its `.txt`. Landmarks are the json's
    `landmarks`, ten numbers or five pairs. image_id is the image's name in the tar, with the shard's in front if names
    repeat. A sample without an image keeps a row, without offset.

    Args:
        uri: one tar, several by braces (`train-{0000..0127}.tar`, `{a,b}.tar`), a glob, or a folder of tars.
        identity_key: key of the identity in each sample's json.
        left_out: counts by reason the members that are no data.

    Raises:
        FiqaRayError: names shard and member of what is missing or damaged, of samples without identity or with several
            images, and of names that lead out of a folder.
    """
    shards = expand_shards(uri, left_out)
    refused: list[Counter[str]] = [Counter() for _ in shards]  # one per shard: they are read side by side
    with ThreadPoolExecutor(min(N_THREADS, len(shards))) as pool:
        tables = list(pool.map(lambda shard, counts: _list_shard(shard, identity_key, counts), shards, refused))
    if left_out is not None:
        left_out.update(sum(refused, Counter()))
    table = pa.concat_tables(tables)
    if not len(table):
        raise FiqaRayError(f"{uri}: no samples in {len(shards)} shard(s); an image is a member ending in {EXTENSIONS}")
    image_id = table["image_id"].combine_chunks()
    if pc.count_distinct(image_id).as_py() < len(image_id):
        names = [shard.rpartition("/")[2].removesuffix(".tar") + "/" for shard in shards]
        prefix = pa.concat_arrays([pa.repeat(n, len(t)) for n, t in zip(names, tables, strict=True)])
        image_id = joined(prefix.cast(pa.large_string()), image_id)
        refuse_duplicates(image_id, uri, "member")
    return sorted_faces(table.set_column(table.column_names.index("image_id"), "image_id", image_id), SOURCE_RECORDS)


def expand_shards(uri: str, left_out: Counter[str] | None = None) -> list[str]:
    """Return the shards that a path, or a pattern of braces and wildcards, names, in order, without repeats.

    Raises:
        FiqaRayError: there are none.
    """
    shards = list(expand(absolute(uri), (".tar",), left_out, braces=True))
    if not shards:
        raise FiqaRayError(f"{uri}: no shards found; check the pattern")
    return shards


def _list_shard(shard: str, identity_key: str | None, left_out: Counter[str]) -> pa.Table:
    samples: dict[str, _Sample] = {}
    with storage_errors(shard):
        fs, path = filesystem(shard)
        with fs.open(path, "rb", block_size=_READ_BYTES) as f:
            for name, offset, length in _members(f, shard):
                reason = reason_left_out(name, (*EXTENSIONS, *(f".{kind}" for kind in _NOTES)))
                if reason is not None:
                    left_out[reason] += 1
                    continue
                folder, slash, base = name.rpartition("/")
                stem, _, ending = base.partition(".")
                sample = samples.setdefault(folder + slash + stem, _Sample())
                kind = ending.rpartition(".")[2].lower()
                if f".{kind}" in EXTENSIONS:
                    if sample.name:
                        raise FiqaRayError(f"{shard}: {sample.name!r} and {name!r} are images of one sample; keep one")
                    sample.name, sample.offset, sample.length = name, offset, length
                elif kind in _NOTES:
                    f.seek(offset)
                    sample.notes[kind] = f.read(_note_length(length, name, shard))
    rows = {
        key: _note_values(sample.notes, key, shard, identity_key)
        for key, sample in samples.items()
        if sample.name or sample.notes
    }
    taken = [samples[key] for key in rows]
    columns = {
        "uri": pa.repeat(pa.scalar(shard, pa.large_string()), len(rows)),
        "image_id": text_column([s.name or key for key, s in zip(rows, taken, strict=True)], shard),
        "identity": text_column([identity for identity, _ in rows.values()], shard),
        "landmarks": pa.array([landmarks for _, landmarks in rows.values()], SOURCE_FACES.field("landmarks").type),
        "offset": pa.array([s.offset for s in taken], pa.int64()),
        "length": pa.array([s.length for s in taken], pa.int64()),
    }
    return pa.table(columns)


# --- tar --------------------------------------------------------------------------------------------------------------


def _members(f: IO[bytes], shard: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and bytes of every file of a tar."""
    size = f.seek(0, 2)
    at, ended = 0, False
    pax: dict[str, str] = {}
    while at < size:
        f.seek(at)
        block = f.read(_BLOCK)
        if block == bytes(_BLOCK):  # the end, unless several tars were put into one file
            at, ended = at + _BLOCK, True
            continue
        try:
            name, kind, length = _header(block)
        except ValueError as exc:
            hint = "; it is gzip: unpack it, ranges of it cannot be read" if block[:2] == b"\x1f\x8b" else ""
            raise FiqaRayError(
                f"{shard}: no member's header at byte {at} ({exc}){hint}; fetch the shard again"
            ) from exc
        name = pax.get("path", name)
        length = _size(pax["size"], name, shard) if "size" in pax else length
        data = at + _BLOCK
        if length < 0 or data + length > size:
            raise FiqaRayError(
                f"{shard}: {name!r} announces {length} bytes at byte {data}, but the file has {size}; it is cut off or "
                "damaged: fetch the shard again"
            )
        ended = False
        at = data + (length + _BLOCK - 1) // _BLOCK * _BLOCK
        if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            f.seek(data)
            pax |= _pax_values(f.read(_note_length(length, name, shard)), name, shard)
        elif kind == tarfile.GNUTYPE_LONGNAME:
            f.seek(data)
            pax["path"] = f.read(_note_length(length, name, shard)).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind == tarfile.DIRTYPE or (kind in _FILES and name.endswith("/")):
            pax = {}
        elif kind in _FILES and not any(key.startswith("GNU.sparse") for key in pax):
            pax = {}
            name = name.removeprefix("./")
            if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
                raise FiqaRayError(f"{shard}: the member {name!r} leads out of the shard; do not trust this file")
            yield name, data, length
        elif kind == tarfile.XGLTYPE:
            pass  # holds for all members, so neither a name nor a size
        else:
            raise FiqaRayError(
                f"{shard}: the member {name!r} is a link, a sparse file or a device; a shard holds plain files"
            )
    if not ended:
        raise FiqaRayError(f"{shard}: the tar's end mark is missing, so members may be; fetch the shard again")


def _header(block: bytes) -> tuple[str, bytes, int]:
    """Return name, type and size of a header; raise ValueError if it is none. tarfile takes four times as long."""
    if len(block) < _BLOCK:
        raise ValueError("the file ends")
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise ValueError("bad checksum")
    parts = [block[345:500], block[:100]] if block[257:263] == b"ustar\0" else [block[:100]]
    texts = [part.partition(b"\0")[0].decode("utf-8", "surrogateescape") for part in parts]
    return "/".join(text for text in texts if text), block[156:157], _number(block[124:136])


def _number(digits: bytes) -> int:
    """Octal digits, or big-endian after a byte from 0x80."""
    return int.from_bytes(digits[1:]) if digits[0] & 0x80 else int(digits.strip(b" \0") or b"0", 8)


def _note_length(length: int, name: str, shard: str) -> int:
    if length > _MAX_NOTE_BYTES:
        raise FiqaRayError(f"{shard}: {name!r} has {length} bytes; labels and names have at most {_MAX_NOTE_BYTES}")
    return length


def _pax_values(data: bytes, name: str, shard: str) -> dict[str, str]:
    r"""Return the values of records `<length> <key>=<value>\n`."""
    values = {}
    record = re.compile(rb"(\d{1,7}) ([^=]+)=")
    data, at = data.rstrip(b"\0"), 0
    while at < len(data):
        match = record.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data):
            raise FiqaRayError(f"{shard}: {name!r} is not a pax header; fetch the shard again")
        values[match[2].decode("utf-8", "replace")] = data[match.end() : end - 1].decode("utf-8", "surrogateescape")
        at = end
    return values


def _size(text: str, name: str, shard: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise FiqaRayError(f"{shard}: {name!r} has the size {text[:40]!r}; fetch the shard again")
    return int(text)


# --- what is known of a sample ----------------------------------------------------------------------------------------


def _note_values(
    notes: dict[str, bytes], key: str, shard: str, identity_key: str | None
) -> tuple[str, list[float] | None]:
    """Return identity and landmarks of a sample."""
    values = {}
    if "json" in notes:
        try:
            values = json.loads(notes["json"])
        except (ValueError, RecursionError) as exc:
            raise FiqaRayError(f"{shard}: {key}.json is not JSON ({str(exc)[:100]}); mend the shard") from exc
        if not isinstance(values, dict):
            raise FiqaRayError(f"{shard}: {key}.json holds no object; mend the shard")
    names = [identity_key] if identity_key else ["identity", "label"]
    identity = next((values[n] for n in names if values.get(n) is not None), None)
    if identity_key is None and ("cls" in notes or identity is None):
        identity = _note_text(notes.get("cls", notes.get("txt", b"")), key, shard)
    if isinstance(identity, float) and identity.is_integer():
        identity = int(identity)  # as pandas writes whole numbers beside gaps
    if not isinstance(identity, str | int) or isinstance(identity, bool) or identity == "":
        raise FiqaRayError(
            f"{shard}: the sample {key!r} has no identity: {_shown(identity, names)} in {key}.json"
            f"{'' if identity_key else f', no {key}.cls and no {key}.txt'}; source.identity_key names another key"
        )
    return str(identity), _landmarks(values.get("landmarks"), key, shard)


def _note_text(note: bytes, key: str, shard: str) -> str:
    try:
        return note.decode("utf-8-sig").strip()
    except UnicodeDecodeError as exc:
        raise FiqaRayError(
            f"{shard}: the identity of the sample {key!r} is not UTF-8 (byte {exc.start}); mend the shard"
        ) from exc


def _shown(value: object, names: list[str]) -> str:
    return f"no {' or '.join(names)}" if value in (None, "") else f"{str(value)[:40]!r} is no text or whole number"


def _landmarks(value: object, key: str, shard: str) -> list[float] | None:
    if value is None:
        return None
    points = value if isinstance(value, list) else []
    flat = list(itertools.chain.from_iterable(p if isinstance(p, list) else [p] for p in points))
    if len(flat) != 10 or not all(isinstance(v, int | float) and abs(v) < 1e9 for v in flat):
        raise FiqaRayError(f"{shard}: landmarks of {key}.json are not ten numbers x1, y1 .. x5, y5; mend the shard")
    return [float(v) for v in flat]
