"""Writers of what people have, byte by byte or by the standard library: none of the code under test."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import struct
import tarfile

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fiqa_ray.synthetic.dataset import aligned_faces

MAGIC = bytes.fromhex("0a23d7ce")


def put(uri: str, data: bytes) -> str:
    fs, path = fsspec.core.url_to_fs(uri)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, data)
    return uri


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def synthetic_crops(n_people: int, per_person: int) -> list[tuple[int, bytes]]:
    """(person, JPEG of 112x112) in the order of people; all pictures differ."""
    made = []
    for person in range(n_people):
        for face in aligned_faces((0, 0, person, (per_person + 1) // 2))[:per_person]:
            _, coded = cv2.imencode(".jpg", face[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
            made.append((person, coded.tobytes()))
    return made


def write_folder(root: str, samples: list[tuple[int, bytes]]) -> dict:
    for i, (person, image) in enumerate(samples):
        put(f"{root}/{person}/{i + 1:08d}.jpg", image)
    return {"kind": "folder", "uri": root}


# --- RecordIO ---


def record(body: bytes) -> bytes:
    """dmlc-core's recordio.cc: the data are cut where the magic stands in them at a multiple of 4 bytes."""
    cuts = [at for at in range(0, len(body) - 3, 4) if body[at : at + 4] == MAGIC]
    pieces = [body[a:b] for a, b in zip([0, *(c + 4 for c in cuts)], [*cuts, len(body)], strict=True)]
    made = b""
    for i, piece in enumerate(pieces):
        flag = 0 if len(pieces) == 1 else 1 if i == 0 else 3 if i == len(pieces) - 1 else 2
        made += MAGIC + struct.pack("<I", flag << 29 | len(piece)) + piece + bytes(-len(piece) % 4)
    return made


def image_record(label: float, image: bytes, key: int = 0) -> bytes:
    return record(struct.pack("<IfQQ", 0, label, key, 0) + image)


def labels_record(*labels: float, image: bytes = b"") -> bytes:
    return record(struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, 0, 0, *labels) + image)


def put_records(folder: str, records: dict[int, bytes]) -> dict:
    """Records in the order given; returns the source's settings."""
    at, lines = 0, []
    for key, data in records.items():
        lines.append(f"{key}\t{at}\n")
        at += len(data)
    put(f"{folder}/train.rec", b"".join(records.values()))
    put(f"{folder}/train.idx", "".join(lines).encode())
    return {"kind": "recordio", "uri": f"{folder}/train.rec"}


def insightface_records(samples: list[tuple[int, bytes]]) -> dict[int, bytes]:
    """face2rec2.py: images 1..n-1 with labels (identity, aligned), then one record per identity; record 0 comes last."""
    records = {key: labels_record(person, 1, image=image) for key, (person, image) in enumerate(samples, 1)}
    n = len(samples) + 1
    starts = [key for key in range(1, n) if key == 1 or samples[key - 1][0] != samples[key - 2][0]]
    ranges = list(itertools.pairwise([*starts, n]))
    for i, (first, last) in enumerate(ranges):
        records[n + i] = labels_record(first, last)
    records[0] = labels_record(n, n + len(ranges))
    return records


def write_recordio(root: str, samples: list[tuple[int, bytes]]) -> dict:
    return put_records(root, insightface_records(samples))


def write_im2rec(root: str, samples: list[tuple[int, bytes]]) -> dict:
    return put_records(root, {key: image_record(p, image, key) for key, (p, image) in enumerate(samples, 1)})


# --- tar ---


def tar_bytes(members: list[tuple[str, bytes]], **options) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def write_webdataset(root: str, samples: list[tuple[int, bytes]]) -> dict:
    """Three shards: identities as .cls, .json and .txt."""
    for shard in range(3):
        members = []
        for i, (person, image) in list(enumerate(samples))[shard::3]:
            key = f"{person}/{i + 1:08d}"
            note = {"cls": str(person), "json": json.dumps({"label": person}), "txt": f"{person}\n"}
            kind = ("cls", "json", "txt")[shard]
            members += [(f"{key}.jpg", image), (f"{key}.{kind}", note[kind].encode())]
        put(f"{root}/train-{shard:04d}.tar", tar_bytes(members))
    return {"kind": "webdataset", "uri": f"{root}/train-{{0000..0002}}.tar"}


# --- Parquet ---


def put_parquet(uri: str, columns: dict, features: dict | None = None, **options) -> str:
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return put(uri, sink.getvalue())


def write_parquet(root: str, samples: list[tuple[int, bytes]]) -> dict:
    """Two files as datasets.push_to_hub writes them; labels count names from the end."""
    people = sorted({p for p, _ in samples}, reverse=True)
    half = len(samples) // 2
    for i, part in enumerate((samples[:half], samples[half:])):
        paths = [f"{p}/{j + 1:08d}.jpg" for j, (p, _) in enumerate(part, i * half)]
        images = [{"bytes": image, "path": path} for (_, image), path in zip(part, paths, strict=True)]
        label = [people.index(p) for p, _ in part]
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": [str(p) for p in people]}}
        put_parquet(
            f"{root}/train-{i:05d}-of-00002.parquet", {"image": images, "label": label}, features, row_group_size=7
        )
    return {"kind": "parquet_images", "uri": root}


# --- .bin ---


def put_bin(uri: str, images: list, same: list, protocol: int = 4) -> str:
    return put(uri, pickle.dumps((images, same), protocol))


def write_bin(root: str, samples: list[tuple[int, bytes]]) -> dict:
    """Mated pairs of neighbours in the list, which link each person's images; one non-mated pair of the first two people."""
    images, same = [], []
    for (p, a), (q, b) in itertools.pairwise(samples):
        if p == q:
            images += [a, np.frombuffer(b, np.uint8)]
            same.append(True)
    other = next(image for p, image in samples if p != samples[0][0])
    return {"kind": "bin", "uri": put_bin(f"{root}/set.bin", [*images, samples[0][1], other], [*same, False])}


WRITERS = {
    "recordio": write_recordio,
    "im2rec": write_im2rec,
    "webdataset": write_webdataset,
    "parquet": write_parquet,
    "bin": write_bin,
}
