import itertools
import struct

import numpy as np
import pytest

import containers
from containers import MAGIC, image_record, insightface_records, labels_record, put_records, record
from fiqa_ray.datasets.schemas import SOURCE_RECORDS
from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources import containers as reading
from fiqa_ray.sources.containers import Fault
from fiqa_ray.sources.recordio import RecordError, list_recordio, read_recordio, unpack_record

SAMPLES = [(p, bytes([p, i]) * (40 + 13 * p + i)) for p in range(4) for i in range(5)]


def contents(table):
    """Key -> (identity, bytes or (status, error))."""
    found = dict(read_recordio(table))
    assert sorted(found) == list(range(len(table)))
    return {
        r["image_id"]: (r["identity"], c if isinstance(c := found[i], bytes) else (c.status, c.error))
        for i, r in enumerate(table.to_pylist())
    }


def expected(samples=SAMPLES):
    return {f"{key:08d}": (str(p), image) for key, (p, image) in enumerate(samples, 1)}


def fault(folder):
    with pytest.raises(FiqaRayError) as info:
        list_recordio(str(folder))
    return str(info.value)


# --- records ---


def test_records_by_hand():
    """dmlc-core's layout: magic, length with flag, data, padding; MXNet's header; labels before the image."""
    whole = MAGIC + struct.pack("<I", 24 + 5) + struct.pack("<IfQQ", 0, 7.0, 1, 0) + b"image" + b"\0\0\0"
    labels, image = unpack_record(whole)
    assert (labels.tolist(), image) == ([7.0], b"image")
    vector = struct.pack("<IfQQ2f", 2, 0.0, 1, 0, 3.0, 1.0) + b"img!"
    labels, image = unpack_record(MAGIC + struct.pack("<I", len(vector)) + vector)
    assert (labels.tolist(), image) == ([3.0, 1.0], b"img!")


@pytest.mark.parametrize("body", [b"abcd" + MAGIC + b"efgh", MAGIC * 3, b"ab" + MAGIC + b"cd", MAGIC + b"x", b""])
def test_the_magic_inside_an_image_survives(body):
    data = image_record(5, body)
    assert data.count(MAGIC) == 1 + body.count(MAGIC)
    assert unpack_record(data)[1] == body
    pieces = image_record(5, b"abcd" + MAGIC + b"efgh")
    assert struct.unpack_from("<I", pieces, 4)[0] >> 29 == 1  # first
    assert struct.unpack_from("<I", pieces, 8 + 28 + 4)[0] >> 29 == 3  # last


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "ends early"),
        (MAGIC + b"\x10", "ends early"),
        (b"\0" * 64, "no record begins"),
        (MAGIC + struct.pack("<I", 2**29 - 1) + b"x" * 40, "announces 536870911 bytes where 40 lie"),
        (MAGIC + struct.pack("<I", 2 << 29 | 4) + b"abcd", "continuation flag 2"),
        (MAGIC + struct.pack("<I", 1 << 29 | 4) + b"abcd", "ends early"),
        (MAGIC + struct.pack("<I", 1 << 29 | 4) + b"abcd" + MAGIC + struct.pack("<I", 4) + b"abcd", "flag 0"),
        (image_record(1, b"abcd") * 2, "36 bytes after the record belong to no record"),
        (record(b"short"), "5 bytes has no header"),
        (record(struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0)), "announces 4294967295 labels"),
        (record(struct.pack("<IfQQ", 3, 0, 0, 0) + bytes(8)), "announces 3 labels"),
    ],
)
def test_forged_records_are_named(data, words):
    with pytest.raises(RecordError, match=words):
        unpack_record(data)


# --- listing ---


def test_insightface_reads_one_label_per_identity(tmp_path, monkeypatch):
    put_records(str(tmp_path), insightface_records(SAMPLES))
    asked = []
    read = reading.read_ranges

    def spy(uris, offset, length):
        asked.append(len(uris))
        return read(uris, offset, length)

    monkeypatch.setattr("fiqa_ray.sources.recordio.read_ranges", spy)
    table = list_recordio(str(tmp_path))  # the folder serves as well
    assert asked == [1, 4, 4]  # record 0, identity records, the first image of each
    assert table.schema == SOURCE_RECORDS
    assert contents(table) == expected()


def test_labels_need_not_be_dense_or_in_order(tmp_path):
    samples = [({0: 17, 1: 3, 2: 17, 3: 250}[p], image) for p, image in SAMPLES]  # two ranges of one person
    put_records(str(tmp_path), insightface_records(samples))
    table = list_recordio(str(tmp_path))
    assert contents(table) == expected(samples)
    assert table["identity"].to_pylist() == ["17"] * 10 + ["250"] * 5 + ["3"] * 5


@pytest.mark.parametrize("with_list", [False, True])
def test_im2rec_with_and_without_its_list(tmp_path, with_list):
    records = {key: image_record(p, image, key) for key, (p, image) in enumerate(SAMPLES, 1)}
    order = np.random.default_rng(0).permutation(list(records))  # shuffled, as im2rec's are
    put_records(str(tmp_path), {int(k): records[k] for k in order})
    if with_list:
        lines = [f"{k}\t{SAMPLES[k - 1][0]:.6f}\tpeople/{k}.jpg\n" for k in order]
        (tmp_path / "train.lst").write_text("".join(lines))
    assert contents(list_recordio(str(tmp_path / "train.rec"))) == expected()
    if with_list:
        (tmp_path / "train.lst").write_text("".join(lines[:-1]))
        assert "19 images where the index has 20 records, 19 of them" in fault(tmp_path)
        (tmp_path / "train.lst").write_text("1\tpeople/1.jpg\t0\n")
        assert "as im2rec writes it; without this file labels are read from the records: remove the .lst" in fault(
            tmp_path
        )
        (tmp_path / "train.lst").write_text("".join(lines) + lines[0])
        text = fault(tmp_path)
        assert "21 images where the index has 20 records, 20 of them the same" in text
        assert "remove the .lst" in text


def test_a_list_of_more_images_and_labels_than_the_file_has(tmp_path):
    """im2rec leaves out what it cannot read, and one list serves several files; --pack-label writes several labels."""
    put_records(str(tmp_path), {k: image_record(p, image, k) for k, (p, image) in enumerate(SAMPLES, 1) if k % 5})
    lines = [f"{k}\t{p:.6f}\t0.5\t0.25\tpeople/{k}.jpg\n" for k, (p, _) in enumerate(SAMPLES, 1)]
    (tmp_path / "train.lst").write_text("".join(lines))
    assert contents(list_recordio(str(tmp_path))) == {k: v for k, v in expected().items() if int(k) % 5}


@pytest.mark.parametrize("kind", ["im2rec", "insightface"])
def test_records_are_found_without_an_index(tmp_path, kind):
    """The keys are the records' own, also where pictures hold the magic and so lie in several pieces."""
    samples = [(p, image + (MAGIC * 2 if k % 3 == 0 else b"")) for k, (p, image) in enumerate(SAMPLES)]
    if kind == "im2rec":
        records = {k: image_record(p, image, k) for k, (p, image) in enumerate(samples, 1)}
    else:

        def keyed(key, *labels, image=b""):
            return record(struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, key, 0, *labels) + image)

        starts = [k for k in range(1, 21) if k == 1 or samples[k - 1][0] != samples[k - 2][0]]
        records = {0: keyed(0, 21, 21 + len(starts))}
        records |= {k: keyed(k, p, 1, image=image) for k, (p, image) in enumerate(samples, 1)}
        records |= {21 + i: keyed(21 + i, a, b) for i, (a, b) in enumerate(itertools.pairwise([*starts, 21]))}
    put_records(str(tmp_path), records)
    with_index = contents(list_recordio(str(tmp_path)))
    assert len(with_index) == 20
    (tmp_path / "train.idx").unlink()
    assert contents(list_recordio(str(tmp_path))) == with_index
    data = (tmp_path / "train.rec").read_bytes()
    for cut in (len(data) - 4, len(data) - 100, len(data) // 2):
        (tmp_path / "train.rec").write_bytes(data[:cut])
        assert "no whole record begins at byte" in fault(tmp_path)
    (tmp_path / "train.rec").write_bytes(b"")
    assert "the file is empty" in fault(tmp_path)


def test_labels_of_minus_one_are_said(tmp_path, caplog):
    put_records(str(tmp_path), {k: image_record(-1.0, image, k) for k, (_, image) in enumerate(SAMPLES, 1)})
    assert set(list_recordio(str(tmp_path))["identity"].to_pylist()) == {"-1"}
    assert "20 images have the label -1, which often means unlabelled" in caplog.text


def test_counts_beyond_float32_make_it_read_every_label(tmp_path):
    """Glint360K has more than 2^24 records: record 0 and the ranges are rounded there and cannot be trusted."""
    records = insightface_records(SAMPLES)
    records[0] = labels_record(2.0**24 + 2, 2.0**24 + 8)
    put_records(str(tmp_path), records)
    assert contents(list_recordio(str(tmp_path))) == expected()


def test_damaged_records_keep_their_rows_and_identities(tmp_path):
    records = insightface_records(SAMPLES)
    for key in (1, 2, 8):  # also the two from which the identity would be read first
        records[key] = b"\0\0\0\0" + records[key][4:]
    records[12] = records[12][:8] + b"\xff\xff\xff\x7f" + records[12][12:]  # a label count
    records[13] = records[13][:32] + struct.pack("<f", 1.0) + records[13][36:]  # another person's label
    records[22] = bytes(len(records[22]))  # the second identity's record
    records[9] = records[9][:32] + struct.pack("<f", 1.5) + records[9][36:]
    put_records(str(tmp_path), records)
    found = contents(list_recordio(str(tmp_path)))
    bad = {k: v for k, v in found.items() if v != expected()[k]}
    assert {k: (identity, c[0]) for k, (identity, c) in bad.items()} == {
        "00000001": ("0", "bad_record"),
        "00000002": ("0", "bad_record"),
        "00000008": ("", "bad_record"),  # nothing tells whose it was
        "00000009": ("", "bad_record"),
        "00000012": ("2", "bad_record"),
        "00000013": ("2", "bad_record"),
    }
    assert "announces 2147483647 labels" in bad["00000012"][1][1]
    assert bad["00000013"][1][1] == "its label is 1, its identity in the list 2"


def test_index_and_file_must_agree(tmp_path):
    records = insightface_records(SAMPLES)
    put_records(str(tmp_path), records)
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    whole, lines = rec.read_bytes(), idx.read_text().splitlines(keepends=True)

    rec.write_bytes(whole[: len(whole) // 2])
    assert "of 25 records lie beyond its end at byte" in fault(tmp_path)
    rec.write_bytes(whole)
    idx.write_text("".join(line for line in lines if not line.startswith("7\t")))
    assert "announces 20 images and 4 identities, together 25 records, but the index lists 24" in fault(tmp_path)
    idx.write_text("".join(lines[1:]))
    assert "records before byte" in fault(tmp_path)
    idx.write_text("".join([*lines, lines[3]]))
    assert "the key 4 occurs more than once" in fault(tmp_path)
    for text, words in (("", "the index is empty"), ("1,0\n", "a line is"), ("1\t-5\n", "1 of 1 records lie beyond")):
        idx.write_text(text)
        assert words in fault(tmp_path)
    idx.unlink()
    assert "needs its index beside it" in fault(tmp_path)
    rec.unlink()
    assert "not found" in fault(tmp_path)


def test_an_unlisted_record_is_not_lost(tmp_path):
    """A record that the index leaves out shows at the one before it."""
    records = {key: image_record(p, image, key) for key, (p, image) in enumerate(SAMPLES, 1)}
    put_records(str(tmp_path), records)
    idx = tmp_path / "train.idx"
    idx.write_text("".join(line for line in idx.read_text().splitlines(keepends=True) if not line.startswith("7\t")))
    found = contents(list_recordio(str(tmp_path)))
    assert found["00000006"][1][0] == "bad_record"
    assert "belong to no record of the index" in found["00000006"][1][1]
    assert {k: v for k, v in expected().items() if k not in ("00000006", "00000007")}.items() <= found.items()


def test_hostile_ranges(tmp_path):
    for first, last in ((1e30, 2e30), (float("nan"), 5), (5, 2), (-1, 3)):
        put_records(str(tmp_path), insightface_records(SAMPLES) | {0: labels_record(first, last)})
        assert "which is no number of images" in fault(tmp_path)
    records = insightface_records(SAMPLES)
    put_records(str(tmp_path), records | {22: labels_record(3, 9)})
    assert "identity records overlap, such as at image 3" in fault(tmp_path)
    put_records(str(tmp_path), records | {22: labels_record(-5, 1e9)})  # no range: its images tell
    assert contents(list_recordio(str(tmp_path))) == expected()


def test_an_oversized_entry_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_ENTRY_BYTES", 100)
    put_records(str(tmp_path), {1: image_record(0, b"a" * 40), 2: image_record(0, b"b" * 400)})
    read = []
    monkeypatch.setattr(reading, "read_ranges", lambda u, o, n: read.extend(n) or iter(()))
    table = list_recordio(str(tmp_path))
    ((row, content),) = read_recordio(table)
    assert (row, content) == (1, Fault("too_large", "an entry of 432 bytes; the limit is 100"))
    assert read == [72]


# --- ranges ---


def test_neighbours_share_requests_and_memory_is_bounded(tmp_path, monkeypatch):
    """Every byte comes where it belongs, whatever the order, the overlaps and the gaps."""
    rng = np.random.default_rng(0)
    data = {f"{tmp_path}/{name}": rng.bytes(100_000) for name in "ab"}
    for uri, content in data.items():
        containers.put(uri, content)
    monkeypatch.setattr(reading, "_GAP_BYTES", 50)
    monkeypatch.setattr(reading, "_SPAN_BYTES", 5_000)
    monkeypatch.setattr(reading, "_BATCH_BYTES", 20_000)
    uris = [str(u) for u in rng.choice(list(data), 2000)]
    offset = rng.integers(0, 99_000, 2000)
    length = rng.integers(0, 1000, 2000)
    length[:3] = 0
    requests = []
    read = reading._Span.read

    def spy(span):
        requests.append(span.last - span.first)
        return read(span)

    monkeypatch.setattr(reading._Span, "read", spy)
    found = dict(reading.read_ranges(uris, offset, length))
    assert found == {i: data[u][o : o + n] for i, (u, o, n) in enumerate(zip(uris, offset, length, strict=True))}
    assert max(requests) <= 5_000
    assert len(requests) < 120
    with pytest.raises(FiqaRayError, match="the file changed"):
        list(reading.read_ranges([uris[0]], np.array([99_990]), np.array([50])))
