import pickle
import struct

import numpy as np
import pytest

from containers import put, put_bin
from fiqa_ray.datasets.schemas import SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.containers import Fault
from fiqa_ray.sources.insightface_bin import list_bin, read_bin, read_bin_pairs

A, B, C, D, E = (bytes([0xFF, 0xD8, i, 0x80]) * 90 for i in range(5))


def fault(uri):
    with pytest.raises(FiqaRayError) as info:
        list_bin(str(uri))
    assert str(uri) in str(info.value)
    return str(info.value)


def check(uri, n=5):
    """The pairs (A, B) mated, (A, C) not, (B, D) mated, (E, C) not."""
    table = list_bin(uri)
    assert table.schema == SOURCE_RECORDS
    found = dict(read_bin(table))
    rows = {r["image_id"]: (r["identity"], found[i]) for i, r in enumerate(table.to_pylist())}
    assert rows == {
        "00000": ("00000", A), "00001": ("00000", B), "00003": ("00003", C), "00005": ("00000", D), "00006": ("00006", E),
    }  # fmt: skip
    pairs = read_bin_pairs(uri)
    assert pairs.image_id_a.tolist() == ["00000", "00000", "00001", "00006"]
    assert pairs.image_id_b.tolist() == ["00001", "00003", "00005", "00003"]
    assert pairs.mated.tolist() == [True, False, True, False]
    assert pairs.fold.tolist() == [0, 1, 2, 3]


IMAGES, SAME = [A, B, A, C, B, D, E, C], [True, False, True, False]


def test_python_2_pickle_by_hand(tmp_path):
    """Protocol 2 of Python 2, as InsightFace's packages have it: byte strings as BINSTRING."""
    strings = b"".join(b"T" + struct.pack("<i", len(image)) + image for image in IMAGES)
    data = b"\x80\x02" + b"](" + strings + b"e" + b"](" + b"\x88\x89\x88\x89" + b"e" + b"\x86."
    assert pickle.loads(data, encoding="bytes") == (IMAGES, SAME)
    check(put(f"{tmp_path}/lfw.bin", data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["bytes", "flat", "column", "writable"])
def test_every_protocol_and_kind_of_array(tmp_path, protocol, kind):
    make = {
        "bytes": lambda image: image,
        "flat": lambda image: np.frombuffer(image, np.uint8),
        "column": lambda image: np.frombuffer(image, np.uint8).reshape(-1, 1),
        "writable": lambda image: np.array(list(image), np.uint8),
    }[kind]
    same = [np.bool_(s) for s in SAME] if kind == "flat" else [int(s) for s in SAME] if kind == "column" else SAME
    images = [make(image) for image in IMAGES]
    check(put_bin(f"{tmp_path}/x.bin", images, same, protocol))
    old = pickle.dumps((images, same), protocol).replace(b"numpy._core.", b"numpy.core.")
    if protocol < 4:  # names there have no length in front
        check(put(f"{tmp_path}/x.bin", old))


def test_folds_are_consecutive_tenths(tmp_path):
    uri = put_bin(f"{tmp_path}/x.bin", [b"%d" % i for i in range(46)], [True, False] * 11 + [True])
    assert np.bincount(read_bin_pairs(uri).fold).tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]


def test_what_is_no_image_keeps_its_row(tmp_path, monkeypatch):
    images = [A, 7, b"", np.zeros(5, np.float32), B, [A]]
    table = list_bin(put_bin(f"{tmp_path}/x.bin", images, [True, False, True]))
    monkeypatch.setattr("fiqa_ray.sources.insightface_bin.MAX_ENTRY_BYTES", 100)
    found = {table["offset"][row].as_py(): content for row, content in read_bin(table)}
    assert found[2] == b""
    assert found[1] == Fault("bad_record", "entry 1 is int, not the bytes of an image")
    assert [found[i].status for i in (0, 3, 4, 5)] == ["too_large", "bad_record", "too_large", "bad_record"]


def nested(levels):
    """Tuples of one another: 6 bytes of pickle per level, and text that doubles with each."""
    value = (1, 2)
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param((IMAGES, [nested(200), *SAME[1:]]), "neither true nor false but 'tuple'", id="nested"),
        pytest.param((IMAGES, [10**3000, *SAME[1:]]), "not a safe one (opcode LONG4", id="long"),
        ((IMAGES, SAME[:3]), "8 images for 3 pairs; there must be two per pair"),
        (([], []), "0 images for 0 pairs"),
        ((IMAGES, [1, 0, 2, 0]), "pair 2 is neither true nor false but '2'"),
        ((IMAGES, ["y", 0, 1, 0]), "pair 0 is neither true nor false"),
        (IMAGES, "not (list of images"),
        ((1, 2), "not (list of images"),
        ({"a": 1}, "not a safe one (opcode EMPTY_DICT"),
    ],
)
def test_other_pickles_are_named(tmp_path, value, words):
    assert words in fault(put(f"{tmp_path}/x.bin", pickle.dumps(value)))


class _Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def bombs(marker):
    """Name -> pickle that runs code, or asks for memory, when it is loaded."""
    import builtins
    import os

    run = {
        "system": pickle.dumps(([_Call(os.system, f"touch {marker}")] * 2, [True])),
        "exec": pickle.dumps(([_Call(builtins.exec, f"open({str(marker)!r}, 'w')")] * 2, [True]), 2),
        "getattr": b"cbuiltins\ngetattr\n.",
        "numpy.load": b"cnumpy\nload\n(S'x'\ntR.",
        "submodule": b"cnumpy\nf2py.os.system\n.",
        "core": b"cnumpy.core.multiarray\nfromfile\n.",
        "inst": b"(S'x'\nios\nsystem\n.",
        "extension": b"\x80\x02\x82\x01.",
        "persistent": b"Px\n.",
        "build": b"c_codecs\nencode\n(dS'a'\nI1\nsb.",
        "changed": b"c_codecs\nencode\n(I1\nI2\ntb.",
    }
    ask = {
        "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        # tuples of one another, whose text doubles at each of 200 levels, as the name of a numpy type
        "nested": b"\x80\x02Nq\x000" + b"h\x00h\x00\x86q\x000" * 200
        + b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(h\x00tRU\x01xtR.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"].",
        # one text of 1 MB encoded 5,000 times
        "growth": b"\x80\x02](X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x01"
        + b"c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R" * 5000 + b"e.",
        "dtype": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'" + b"x" * 20 + b"'\ntR.",
        "cut": pickle.dumps((IMAGES, SAME))[:-200],
        "empty": b"",
        "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
        "text": b"this is no pickle",
    }  # fmt: skip
    return run | ask


@pytest.mark.parametrize("name", bombs(""))
def test_pickle_bombs_do_nothing(tmp_path, name):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    marker = tmp_path / "ran"
    message = fault(put(f"{tmp_path}/x.bin", bombs(marker)[name]))
    assert "not a safe one" in message or "the pickle holds tuple" in message
    assert len(message) < 600
    assert not marker.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    uri = put_bin(f"{tmp_path}/x.bin", IMAGES, SAME)
    monkeypatch.setattr("fiqa_ray.sources.insightface_bin.MAX_FILE_BYTES", 1000)
    assert "a verification file has at most 1000" in fault(uri)
