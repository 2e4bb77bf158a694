import gzip
import json
import tarfile

import numpy as np
import pytest

from containers import put, tar_bytes
from fiqa_ray.datasets.schemas import SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources.containers import Fault, read_entries
from fiqa_ray.sources.webdataset import expand_shards, list_webdataset

SAMPLE = [("a.jpg", b"image a"), ("a.cls", b"7")]
POINTS = [float(v) for v in range(10)]


def shard(tmp_path, members, name="x.tar", **options):
    return put(f"{tmp_path}/{name}", tar_bytes(members, **options))


def listed(uri, **options):
    """image_id -> (identity, landmarks, content)."""
    table = list_webdataset(uri, **options)
    assert table.schema == SOURCE_RECORDS
    found = dict(read_entries(table))
    return {r["image_id"]: (r["identity"], r["landmarks"], found[i]) for i, r in enumerate(table.to_pylist())}


def fault(uri, **options):
    with pytest.raises(FiqaRayError) as info:
        list_webdataset(str(uri), **options)
    return str(info.value)


def test_where_identity_and_landmarks_come_from(tmp_path):
    members = [
        ("p/a.JPG", b"1"), ("p/a.cls", b"12\n"), ("p/a.json", b'{"label": 99}'), ("p/a.txt", b"a caption"),
        ("p/b.json", json.dumps({"label": 3, "landmarks": POINTS}).encode()), ("p/b.png", b"2"),
        ("q/c.webp", b"3"), ("q/c.txt", "Zoë Ångström".encode()),
        ("d.jpg", b"4"), ("d.json", json.dumps({"identity": "Ann", "label": 5, "landmarks": None}).encode()),
        ("e.cls", b"1"),  # a sample that lost its image
        ("README.md", b"not a sample"),
    ]  # fmt: skip
    assert listed(shard(tmp_path, members)) == {
        "p/a.JPG": ("12", None, b"1"),
        "p/b.png": ("3", POINTS, b"2"),
        "q/c.webp": ("Zoë Ångström", None, b"3"),
        "d.jpg": ("Ann", None, b"4"),
        "e": ("1", None, Fault("missing", "no image belongs to this entry")),
    }
    assert {k: v[0] for k, v in listed(shard(tmp_path, members[8:10]), identity_key="label").items()} == {"d.jpg": "5"}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_each_tar_format(tmp_path, format):
    stem = "/".join(["d" * 60, "e" * 60, "f" * 70]) if format == tarfile.USTAR_FORMAT else "Zoë/" + "d" * 300
    members = [(f"{stem}.jpg", b"x" * 700), (f"./{stem}.cls", b"4"), *SAMPLE]
    found = listed(shard(tmp_path, members, format=format))
    assert found == {f"{stem}.jpg": ("4", None, b"x" * 700), "a.jpg": ("7", None, b"image a")}


def test_several_shards(root):
    for i in range(3):
        put(
            f"{root}/t-{i:02d}.tar",
            tar_bytes([("a.jpg", b"%d" % i), ("a.cls", b"7"), (f"u{i}.jpg", b"u"), (f"u{i}.cls", b"8")]),
        )
    expected = {
        f"t-{i:02d}/{n}" for i in range(3) for n in ("a.jpg", f"u{i}.jpg")
    }  # "a" repeats: all get the shard's name
    for uri in (f"{root}/t-{{00..02}}.tar", f"{root}/t-*.tar", f"{root}/t-{{00,01,02}}.tar", f"{root}/t-0?.tar"):
        found = listed(uri)
        assert set(found) == expected
        assert [found[f"t-{i:02d}/a.jpg"][2] for i in range(3)] == [b"0", b"1", b"2"]
    assert set(listed(f"{root}/t-01.tar")) == {"a.jpg", "u1.jpg"}
    assert listed(put(f"{root}/empty.tar", tar_bytes([("a.jpg", b""), ("a.cls", b"7")]))) == {"a.jpg": ("7", None, b"")}
    assert "not found" in fault(f"{root}/t-{{00..03}}.tar")
    assert "no shards found" in fault(f"{root}/u-*.tar")


def test_braces():
    assert expand_shards("memory://b/{train,val}-{008..010}.tar") == [
        f"memory://b/{part}-{i}.tar" for part in ("train", "val") for i in ("008", "009", "010")
    ]
    for text in ("{0..99999999999}", "{9..3}", "{0..9999}-{0..9999}"):
        with pytest.raises(FiqaRayError, match=r"give a range such as|names more than"):
            expand_shards(f"memory://b/{text}.tar")


def test_tars_put_into_one_file(tmp_path):
    uri = put(f"{tmp_path}/x.tar", tar_bytes(SAMPLE) + tar_bytes([("b.jpg", b"b"), ("b.cls", b"8")]))
    assert set(listed(uri)) == {"a.jpg", "b.jpg"}


def test_only_headers_and_labels_are_read(tmp_path, monkeypatch):
    """A shard of 40 MB is listed by less than 1 MB."""
    import io

    image = np.random.default_rng(0).bytes(4_000_000)
    uri = shard(tmp_path, [m for i in range(10) for m in ((f"{i}.jpg", image), (f"{i}.cls", b"1"))])
    read = []
    monkeypatch.setattr("fiqa_ray.sources.webdataset.filesystem", lambda uri: (Spy(), uri))

    class Spy:
        def open(self, path, mode, block_size):
            file = io.FileIO(path)
            original = file.read
            return type("F", (), {
                "__enter__": lambda s: s, "__exit__": lambda s, *_: None, "seek": staticmethod(file.seek),
                "read": lambda s, n: read.append(n) or original(n),
            })()  # fmt: skip

    assert len(list_webdataset(uri)) == 10
    assert sum(read) < 50_000


# --- hostile and damaged ---


def header(name=b"a.jpg", size=b"00000000012", kind=b"0"):
    """A ustar header by hand."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
PAX = header(b"pax", b"00000000021", b"x")


def test_a_header_by_hand(tmp_path):
    data = (
        header(size=b"00000000005")
        + b"image".ljust(512, b"\0")
        + header(b"a.cls", b"00000000001")
        + b"3".ljust(512, b"\0")
    )
    assert listed(put(f"{tmp_path}/x.tar", data + END)) == {"a.jpg": ("3", None, b"image")}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(b"../../etc/x.jpg") + bytes(512) + END, "'../../etc/x.jpg' leads out of the shard"),
        (header(b"/etc/x.jpg") + bytes(512) + END, "leads out"),
        (header(b"..\\x.jpg") + bytes(512) + END, "leads out"),
        (header(size=b"77777777777") + END, "announces 8589934591 bytes at byte 512, but the file has 1536"),
        (header(size=b"\x80" + b"\xff" * 11) + END, "announces"),
        (header(size=b"\xff" * 12) + END, "announces 309485009821345068724781055 bytes"),
        (header(size=b"-0000000012") + END, "announces -10 bytes"),
        (header(size=b"0000000009x") + END, "no member's header at byte 0"),
        (header(b"a.json", b"00010000000") + bytes(1 << 21) + END, "labels and names have at most"),
        (header(b"pax", b"00010000000", b"x") + bytes(1 << 21) + END, "labels and names have at most"),
        (header(b"pax", b"00000000020", b"x") + b"999999 path=a\n".ljust(512, b"\0") + END, "not a pax header"),
        (
            PAX + b"17 size=99999999\n".ljust(512, b"\0") + header() + END,
            "announces 99999999",
        ),
        (header(b"pax", b"00000000012", b"x") + b"10 size=x\n".ljust(512, b"\0") + header() + END, "has the size 'x'"),
        (header(kind=b"2", size=b"00000000000") + END, "is a link"),
        (header(kind=b"1", size=b"00000000000") + END, "is a link"),
        (PAX + b"17 GNU.sparse.a=\n".ljust(512, b"\0") + header(size=b"0") + END, "a sparse file"),
        (header(kind=b"S") + bytes(512) + END, "a sparse file"),
        (b"\xff" * 4096, "no member's header at byte 0"),
        (gzip.compress(tar_bytes(SAMPLE)), "it is gzip"),
        (tar_bytes(SAMPLE)[:1536], "cut off or damaged"),
        (tar_bytes(SAMPLE)[:2048], "the tar's end mark is missing"),
        (b"", "the tar's end mark is missing"),
        (END, "no samples in 1 shard"),
    ],
)
def test_hostile_and_damaged_shards_are_refused(tmp_path, data, words):
    uri = put(f"{tmp_path}/x.tar", data)
    message = fault(uri)
    assert words in message
    assert uri in message


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.jpg", b"i")], "'a' has no identity: no identity or label in a.json, no a.cls and no a.txt"),
        ([("a.jpg", b"i"), ("a.cls", b" ")], "'a' has no identity"),
        ([("a.jpg", b"i"), ("a.cls", b"Jos\xe9")], "identity of the sample 'a' is not UTF-8"),
        ([("a.jpg", b"i"), ("a.json", b'{"label": [1]}')], "'a' has no identity"),
        ([("a.jpg", b"i"), ("a.json", b"{")], "a.json is not JSON"),
        ([("a.jpg", b"i"), ("a.json", b"[" * 100_000)], "a.json is not JSON"),
        ([("a.jpg", b"i"), ("a.json", b"[1]")], "holds no object"),
        ([*SAMPLE, ("a.json", b'{"landmarks": [1, 2]}')], "not ten numbers"),
        ([*SAMPLE, ("a.json", b'{"landmarks": [1,2,3,4,5,6,7,8,9,NaN]}')], "not ten numbers"),
        ([*SAMPLE, ("a.png", b"i")], "are images of one sample"),
    ],
)
def test_faulty_samples_are_named(tmp_path, members, words):
    assert words in fault(shard(tmp_path, members))
