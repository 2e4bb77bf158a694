"""Images that a command line names; tars from strangers."""

import io
import tarfile

import pytest

from fiqa_ray.errors import FiqaRayError
from fiqa_ray.sources import command_line as places
from fiqa_ray.sources.command_line import list_images, read_images


def tar_of(path, *members, mode="w"):
    """A tar of (name, content) and of (name, type) for links and the like."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes) and len(content) != 1:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content, "/etc/passwd"
                tar.addfile(info)
    return path


def test_members_are_read_by_their_ranges(tmp_path):
    """Long names and names beyond ASCII have headers of their own; the last of two members with one name counts."""
    long = "d/" * 60 + "é.JPG"
    members = [("./a.jpg", b"old"), ("notes.txt", b"text"), ("b.png", b""), (long, b"x" * 700), ("./a.jpg", b"new")]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        file = tmp_path / f"{form}.tar"
        with tarfile.open(file, "w", format=form) as tar:
            tar.addfile(_folder("d.jpg"))
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        images = list_images([str(file)])
        assert [i.uri for i in images] == [f"tar://{name}::{file}" for name in ("./a.jpg", "b.png", long)]
        assert read_images(images) == [b"new", b"", b"x" * 700]
    (tmp_path / "loose.jpg").write_bytes(b"loose")
    everything = list_images([str(tmp_path / "loose.jpg"), str(tmp_path), str(tmp_path / "*.jpg")])
    assert len(everything) == 1 + 3 * 3
    assert read_images(everything[:2]) == [b"loose", b"new"]
    assert read_images([*list_images([str(tmp_path / "loose.jpg")]), everything[2]]) == [b"loose", b""]


def _folder(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


@pytest.mark.parametrize(
    "name", ["../a.jpg", "a/../../b.jpg", "/etc/a.jpg", "..\\a.jpg", "C:\\a.jpg", "../notes.txt", ".."]
)
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path, name):
    file = tar_of(tmp_path / "evil.tar", ("good.jpg", b"good"), (name, b"evil"))
    with pytest.raises(FiqaRayError, match=r"evil\.tar: its member '.*' leads out of the archive"):
        list_images([str(file)])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with pytest.raises(FiqaRayError, match=r"'a\.jpg' is a link or no plain file; pack it with tar --dereference"):
        list_images([str(tar_of(tmp_path / "evil.tar", ("a.jpg", kind)))])


def test_bombs_are_refused_unread(tmp_path, monkeypatch):
    """By what the header claims: a compressed tar, a huge member, a sparse one."""
    zeros = tar_of(tmp_path / "bomb.tar.gz", ("a.jpg", bytes(1 << 20)), mode="w:gz")
    with pytest.raises(FiqaRayError, match=r"bomb\.tar\.gz: a compressed tar"):
        list_images([str(zeros)])
    with pytest.raises(FiqaRayError, match=r"bomb\.tar: not a whole, uncompressed tar"):
        list_images([str(zeros.rename(tmp_path / "bomb.tar"))])
    sparse = tarfile.TarInfo("a.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    with tarfile.open(tmp_path / "sparse.tar", "w") as tar:
        tar.addfile(sparse)
    with pytest.raises(FiqaRayError, match="no plain file"):
        list_images([str(tmp_path / "sparse.tar")])
    monkeypatch.setattr(places, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(FiqaRayError, match=r"member 'a\.jpg' has 1,001 bytes; the limit is 1,000"):
        list_images([str(tar_of(tmp_path / "large.tar", ("a.jpg", bytes(1001))))])


def test_a_damaged_tar_is_never_a_shorter_one(tmp_path):
    whole = tar_of(tmp_path / "whole.tar", ("a.jpg", b"a" * 600), ("b.jpg", b"b" * 600)).read_bytes()
    header_of_b = 512 + 1024
    damaged = bytearray(whole)
    damaged[header_of_b + 10] ^= 1
    cut = (whole[:100], whole[:800], whole[:header_of_b], whole[: header_of_b + 30], whole[: header_of_b + 700])
    for content in (b"", b"no tar at all" * 100, bytes(damaged), *cut):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(FiqaRayError, match=r"bad\.tar: (not a whole, uncompressed tar|cut off or damaged at byte)"):
            list_images([str(tmp_path / "bad.tar")])


def test_names_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "latin.tar").write_bytes(
        tar_of(tmp_path / "plain.tar", ("caf~.jpg", b"image")).read_bytes().replace(b"caf~", b"caf\xe9")
    )
    data = bytearray((tmp_path / "latin.tar").read_bytes())
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))  # the header's checksum
    (tmp_path / "latin.tar").write_bytes(data)
    with pytest.raises(FiqaRayError, match=r"'tar://caf\\udce9\.jpg::.*latin\.tar' is not UTF-8"):
        list_images([str(tmp_path / "latin.tar")])


def test_places_without_images(tmp_path):
    empty = tar_of(tmp_path / "empty.tar", ("notes.txt", b"text"))
    (tmp_path / "folder").mkdir()
    for place, words in (
        (empty, "no image"),
        (tmp_path / "folder", "no image"),
        (tmp_path / "none*", "no image"),
        (tmp_path / "nowhere", "not found"),
        (f"tar://a.jpg::{empty}", f"give the tar itself, {empty}"),
    ):
        with pytest.raises(FiqaRayError, match=words):
            list_images([str(place)])
