"""What a file of weights is, by its first bytes, and what to do with one that is no checkpoint."""

from __future__ import annotations

import io
import zipfile

from fiqa_ray.models.formats.mxnet_params import is_mxnet

ZIP = b"PK"
_ZIP_KINDS = (
    ("/constants.pkl", "a TorchScript archive; save its weights: torch.save(torch.jit.load(FILE).state_dict(), PATH)"),
    (
        ".npy",
        "an npz archive of numpy; save its arrays as tensors: torch.save({name: torch.from_numpy(array), ...}, PATH)",
    ),
    ("saved_model.pb", "a TensorFlow model; export it to ONNX and give that file as the recogniser's name"),
)

_UNPACK = "; unpack it and give the file inside"
_EXPORT = "; export the network to ONNX and give that file as the recogniser's name"
_MAGICS = (  # first bytes, where they stand, what the file is
    (b"\x1f\x8b", 0, f"compressed by gzip{_UNPACK}"),
    (b"BZh", 0, f"compressed by bzip2{_UNPACK}"),
    (b"\xfd7zXZ\0", 0, f"compressed by xz{_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", 0, f"compressed by Zstandard{_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", 0, f"a 7z archive{_UNPACK}"),
    (b"Rar!\x1a\x07", 0, f"a RAR archive{_UNPACK}"),
    (b"ustar", 257, f"a tar archive{_UNPACK}"),
    (b"\x89HDF", 0, f"an HDF5 file, as Keras writes{_EXPORT}"),
    (b"\x08\x01\x12\x0a", 0, f"a TensorFlow model{_EXPORT}"),
    (b"TFL3", 4, f"a TensorFlow Lite model{_EXPORT}"),
    (b"GGUF", 0, "a GGUF file of a language model; give the weights of a face recogniser"),
    (
        b"\x93NUMPY",
        0,
        "an array of numpy; save it with its name as tensors: torch.save({name: torch.from_numpy(array)}, PATH)",
    ),
    (b"\xff\xd8\xff", 0, "a JPEG image, no weights; give the checkpoint"),
    (b"\x89PNG", 0, "a PNG image, no weights; give the checkpoint"),
    (b"%PDF", 0, "a PDF document, no weights; give the checkpoint"),
    (b"\x81\xa6params", 0, f"msgpack, as Flax writes{_EXPORT}"),
)


def is_safetensors(data: bytes) -> bool:
    """Return whether the bytes begin as a safetensors file: the length of a header, then JSON."""
    return len(data) > 9 and 2 <= int.from_bytes(data[:8], "little") <= len(data) - 8 and data[8:9] == b"{"


def foreign_kind(data: bytes) -> str | None:
    """Say what a file is that holds no torch checkpoint, and what to do; None if nothing shows it."""
    if is_safetensors(data):
        return None
    start = data[:256].lstrip().lower()
    if not data.strip(b"\0"):
        return f"empty ({len(data):,} bytes{', all of them 0' if data else ''}); fetch or save the file again"
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the file itself; fetch it: git lfs pull"
    if start.startswith((b"<!doctype", b"<html")):
        return "an HTML page, not the file; the link needs a browser or a login: fetch the file itself"
    if start.startswith((b"<?xml", b"{", b"[")):
        return "text in XML or JSON, no weights; a server may have sent an error: read it and fetch the file itself"
    if is_mxnet(data):
        return "an MXNet parameter file; the recogniser serfiq_lresnet100e and the method serfiq_mxnet read it"
    for magic, at, kind in _MAGICS:
        if data[at : at + len(magic)] == magic:
            return kind
    if data[:1] == b"\x08" and data[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        return "an ONNX file; it is a recogniser of its own: give it as the recogniser's name, not as weights"
    if data.startswith(ZIP):
        return _zip_kind(data)
    return None


def _zip_kind(data: bytes) -> str | None:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return None  # cut off: who reads it says so
    for end, kind in _ZIP_KINDS:
        if any(name.endswith(end) for name in names):
            return kind
    if not any(name.endswith("data.pkl") for name in names):
        return f"a zip archive of {len(names)} file(s), no checkpoint; unpack it and give the checkpoint inside"
    return None


def damaged_entry(data: bytes) -> str | None:
    """Return the name of the first entry of a zip that its checksum does not fit; None if all fit or it is no zip.

    torch itself reads zips without their checksums.
    """
    if not data.startswith(ZIP):
        return None
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        return None
    for info in archive.infolist():
        try:
            with archive.open(info) as entry:
                while entry.read(1 << 24):
                    pass
        except Exception:  # damaged bytes raise nearly anything
            return info.filename
    return None
