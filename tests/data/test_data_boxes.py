"""Annotations are read exactly, safely, and once."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from optcam_pl.data import boxes
from optcam_pl.data.boxes import parse_annotation, read_annotations


def xml(*found: tuple[float, ...], size: tuple[int, int] = (500, 375), name: str = "n01440764") -> bytes:
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box, strict=True))
        + "</bndbox></object>"
        for box in found
    )
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>".encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "boxes" / "val").mkdir(parents=True)
    (tmp_path / "boxes" / "val" / "a.xml").write_bytes(xml((1, 2, 30, 40), (5, 6, 70, 80)))
    (tmp_path / "boxes" / "val" / "b.xml").write_bytes(xml())
    return tmp_path / "boxes"


def pack(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "bbox")
    return path


def test_a_folder_and_its_tar_give_the_same_boxes(folder: Path, tmp_path: Path) -> None:
    read = read_annotations(folder)
    assert read["a"] == ((500, 375), ((1, 2, 30, 40), (5, 6, 70, 80)), ("n01440764", "n01440764"))
    assert read["b"] == ((500, 375), (), ())
    assert read_annotations(pack(folder, tmp_path / "boxes.tar.gz")) == read


@pytest.mark.parametrize("packed", [False, True])
def test_annotations_are_parsed_once_until_one_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    source = pack(folder, tmp_path / "boxes.tgz") if packed else folder
    first = read_annotations(source)
    parsed: list[bytes] = []
    monkeypatch.setattr(boxes, "parse_annotation", lambda data: parsed.append(data) or parse_annotation(data))
    assert read_annotations(source) == first
    assert not parsed
    (folder / "val" / "b.xml").write_bytes(xml((9, 9, 10, 10)))
    if packed:
        pack(folder, source)
    assert read_annotations(source)["b"].boxes == ((9, 9, 10, 10),)
    assert len(parsed) == 2
    os.utime(source if packed else folder / "val" / "a.xml", (1, 1))
    read_annotations(source)
    assert len(parsed) == 4


LAUGHS = b"""<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;"><!ENTITY z "&y;&y;&y;&y;">]><a>&z;</a>"""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LAUGHS, "document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
        (
            LAUGHS.decode().replace("<!DOC", '<?xml version="1.0" encoding="utf-16"?><!DOC').encode("utf-16"),
            "document type",
        ),
        (b"not xml", "not XML"),
        (b"", "not XML"),
        (b"<annotation>" + b" " * 1_000_000, "larger than"),
        (b"<annotation><object><name>x</name></object></annotation>", "no bndbox"),
        (xml((1, 2, 3, 4)).replace(b"<xmin>1</xmin>", b""), "bndbox has no xmin"),
        (xml((1, 2, 3, 4)).replace(b"<xmin>1<", b"<xmin>left<"), "the xmin of bndbox is no number, but 'left'"),
        (xml((1, 2, 3, 4)).replace(b"<ymax>4<", b"<ymax>nan<"), "the ymax of bndbox is no number, but 'nan'"),
        (xml((1, 2, 3, 4)).replace(b">500<", b">wide<"), "the width of size is no number, but 'wide'"),
    ],
)
def test_what_is_no_annotation_is_refused_and_named(folder: Path, data: bytes, message: str) -> None:
    (folder / "val" / "b.xml").write_bytes(data)
    with pytest.raises(ValueError, match=rf"'val/b.xml': .*{message}"):
        read_annotations(folder)


def test_a_frame_that_is_not_stated_is_none() -> None:
    assert parse_annotation(b"<annotation/>") == (None, (), ())
    assert parse_annotation(xml(size=(0, 0))).frame is None


def test_two_annotations_of_one_name_are_refused(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "train" / "a.xml").write_bytes(xml())
    with pytest.raises(ValueError, match="'a' occurs twice"):
        read_annotations(folder)


def test_a_damaged_tar_and_a_missing_source_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"rubbish" * 100)
    with pytest.raises(ValueError, match=r"tar file .*x\.tar\.gz"):
        read_annotations(tmp_path / "x.tar.gz")
    with pytest.raises(FileNotFoundError, match="`boxes` to be a folder or a tar file .*nowhere"):
        read_annotations(tmp_path / "nowhere")


def test_a_tar_is_not_unpacked_and_its_links_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, kind in (("../outside.xml", tarfile.REGTYPE), ("link.xml", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, data = kind, "/etc/passwd", xml((1, 2, 3, 4))
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(data))
    assert list(read_annotations(tmp_path / "evil.tar")) == ["outside"]
    assert not (tmp_path.parent / "outside.xml").exists()


def test_sizes_may_be_written_with_a_point() -> None:
    assert parse_annotation(xml((1, 2, 3, 4)).replace(b">500<", b">500.0<")).frame == (500, 375)
