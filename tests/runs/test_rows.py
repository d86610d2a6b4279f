from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optcam_pl.runs import rows as rows_module
from optcam_pl.runs.files import RunFolderError
from optcam_pl.runs.manifest import FingerprintMismatch, check_fingerprint, read_manifest, write_manifest
from optcam_pl.runs.rows import Row, RowWriter, completed_blocks, format_ranges, missing, read_rows


def a_row(index: int = 0, **changes) -> Row:
    values = {"id": f"{index}.png", "status": "ok", "target": 1, "predicted": 2, "p": 0.5, "o": 0.25, "seconds": 0.1}
    return Row(index=index, **{**values, "scores": {"average_drop": 50.0 + index}, **changes})


def written(folder: Path, *rows: Row, rank: int = 0) -> Path:
    with RowWriter(folder, rank) as writer:
        writer.write(rows)
    assert writer.path is not None
    return writer.path


MANIFEST = {
    "stage": "test",
    "run": "demo",
    "data": "d",
    "classifier": "c",
    "explainer": "GradCAM",
    "images": 3,
    "metrics": ["average_drop"],
    "settings": {"baseline": "black"},
    "fingerprint": {"block": 8},
    "created": "2024-01-01",
}


def test_rows_come_back_equal_and_sorted_from_two_ranks_and_two_attempts(tmp_path):
    paths = [
        written(tmp_path, a_row(4), a_row(0)),
        written(tmp_path, a_row(3), rank=1),
        written(tmp_path, a_row(2), a_row(1)),
    ]
    assert [path.name for path in paths] == ["a0001-r00000.jsonl", "a0001-r00001.jsonl", "a0002-r00000.jsonl"]
    rows = read_rows(tmp_path)
    assert list(rows) == [a_row(index) for index in range(5)]
    assert rows.damaged == ()
    assert rows[1:3] == (a_row(1), a_row(2))


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"p": None, "o": None, "scores": {"x": None, "curve": [1.0, 2.0], "y": -1.5}}, {"p": math.nan},
        {"scores": {"x": math.inf}}, {"scores": {"x": 3}}, {"p": 1}, {"seconds": 1}, {"scores": {}}, {"reason": "why"},
        {"scores": {"x": True}},
    ],
)  # fmt: skip
def test_a_line_is_read_as_the_row_that_its_entries_make(changes):
    entries = {**a_row().__dict__, **changes}
    read, made = rows_module._row(dict(entries)), Row(**entries)
    assert read == made
    assert [type(value) for value in read.__dict__.values()] == [type(value) for value in made.__dict__.values()]
    assert str(read) == str(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": -1}, {"index": 1.5}, {"status": "fine"}, {"seconds": -1.0}, {"seconds": math.nan}, {"id": 3},
        {"reason": None}, {"scores": [1.0]}, {"scores": {"x": "y"}}, {"p": "y"}, {"other": 1},
    ],
)  # fmt: skip
def test_a_line_that_is_no_row_is_refused_as_the_row_itself_refuses_it(changes):
    entries = {**a_row().__dict__, **changes}
    with pytest.raises((TypeError, ValueError)) as expected:
        Row(**entries)
    with pytest.raises(expected.type) as found:
        rows_module._row(dict(entries))
    assert str(found.value) == str(expected.value)


def test_the_attempt_after_the_ten_thousandth_is_read_after_it(tmp_path):
    first = written(tmp_path, a_row(0, seconds=1.0))
    first.rename(first.with_name("a9999-r00000.jsonl"))
    assert written(tmp_path, a_row(0, seconds=2.0)).name == "a10000-r00000.jsonl"
    assert read_rows(tmp_path)[0].seconds == 1.0


def test_a_folder_without_rows_has_none(tmp_path):
    assert list(read_rows(tmp_path / "nowhere")) == []


@given(
    st.text(),
    st.floats(),
    st.lists(st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_row_survives_its_line(text, number, numbers):
    row = a_row(id=text, reason=text, p=number, o=-number, scores={text: number, "curve": numbers})
    line = row.to_json()
    assert Row.from_json(line) == row
    assert line.isascii()
    assert "\n" not in line
    json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("name", ["new\nline.png", "日本 é.png", "<b>&.png", "\udcff\udcfe.png", "\x00\x1b[31m"])
def test_odd_names_are_kept(tmp_path, name):
    written(tmp_path, a_row(id=name))
    assert read_rows(tmp_path, strict=True)[0].id == name


def test_numbers_that_are_not_finite_become_none():
    row = a_row(p=math.nan, o=math.inf, scores={"a": -math.inf, "b": [1.0, math.nan], "c": None, "d": True})
    assert (row.p, row.o) == (None, None)
    assert row.scores == {"a": None, "b": None, "c": None, "d": 1.0}


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"index": -1}, ValueError, "Expected `index` to be 0 or more, but got -1."),
        (
            {"status": "fine"},
            ValueError,
            "Expected `status` to be one of .'degenerate', 'error', 'ok'., but got 'fine'",
        ),
        ({"seconds": math.nan}, ValueError, "Expected `seconds`"),
        ({"target": 1.5}, TypeError, "integer"),
        ({"id": b"a"}, TypeError, "Expected `id` and `reason`"),
        ({"scores": [1.0]}, TypeError, "Expected `scores`"),
        ({"p": "high"}, ValueError, "high"),
    ],
)
def test_what_is_no_row_is_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        a_row(**changes)


def test_a_torn_last_line_is_no_row_and_no_damage(tmp_path):
    path = written(tmp_path, a_row(0), a_row(1))
    whole = path.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        rows = read_rows(tmp_path, strict=True)
        assert [row.index for row in rows] == [0]
        assert not rows.damaged
    path.write_bytes(whole + b"\0" * 100)  # what some file systems leave after a power cut
    assert len(read_rows(tmp_path, strict=True)) == 2


def test_a_complete_last_line_without_its_newline_counts(tmp_path):
    path = written(tmp_path, a_row(0))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(read_rows(tmp_path)) == 1


def test_every_flipped_bit_is_noticed(tmp_path):
    path = written(tmp_path, a_row(0), a_row(1), a_row(2))
    whole = path.read_bytes()
    start, stop = whole.index(b"\n") + 1, whole.index(b"\n", whole.index(b"\n") + 1)
    for position in range(start, stop):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        rows = read_rows(tmp_path)
        assert [row.index for row in rows] == [0, 2]
        assert rows.damaged
    path.write_bytes(whole.replace(b"1.png", b"7.png"))
    with pytest.raises(RunFolderError, match=r"a0001-r00000\.jsonl, line 2: its checksum does not match"):
        read_rows(tmp_path, strict=True)


def test_a_sealed_line_that_is_no_row_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(Row, "to_json", lambda self: '{"index":0}')
    written(tmp_path, a_row(0))
    assert "it is not a row" in read_rows(tmp_path).damaged[0]


def test_an_index_may_come_twice_if_only_the_seconds_differ(tmp_path):
    written(tmp_path, a_row(0, seconds=1.0))
    written(tmp_path, a_row(0, seconds=2.0), rank=3)
    assert [row.seconds for row in read_rows(tmp_path)] == [1.0]


def test_two_different_rows_of_an_index_are_refused_by_name(tmp_path):
    written(tmp_path, a_row(0))
    written(tmp_path, a_row(0, scores={"average_drop": math.nextafter(50.0, 51.0)}), rank=1)
    with pytest.raises(
        RunFolderError, match=r"image 0 \('0.png'\): in .*a0001-r00000.jsonl and in .*a0001-r00001.jsonl"
    ):
        read_rows(tmp_path)


def test_a_place_that_cannot_be_written_is_named_before_any_row(tmp_path):
    (tmp_path / "rows").write_text("a file where the folder should be")
    with pytest.raises(RunFolderError, match=str(tmp_path / "rows")), RowWriter(tmp_path):
        pytest.fail("entered")


def test_a_full_disk_keeps_complete_rows_and_names_the_file(tmp_path):
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RowWriter(tmp_path) as writer:
        writer.write([a_row(0), a_row(1)])
        size = writer.path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, old[1]))
        try:
            with pytest.raises(RunFolderError, match=r"Cannot write rows to .*a0001-r00000.jsonl: File too large"):
                writer.write([a_row(2), a_row(3)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert writer.path.stat().st_size == size
        with pytest.raises(RunFolderError, match="closed"):
            writer.write([a_row(2)])
    written(tmp_path, a_row(2), a_row(3))
    assert [row.index for row in read_rows(tmp_path, strict=True)] == [0, 1, 2, 3]


def test_a_vanished_file_is_noticed_at_the_next_block(tmp_path):
    with RowWriter(tmp_path) as writer:
        writer.write([a_row(0)])
        writer.path.unlink()
        with pytest.raises(RunFolderError, match="deleted"):
            writer.write([a_row(1)])


def test_an_interrupted_write_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    def interrupt(fd):
        raise KeyboardInterrupt

    with RowWriter(tmp_path) as writer:
        writer.write([a_row(0)])
        monkeypatch.setattr(rows_module, "sync_data", interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.write([a_row(1)])
    assert len(writer.path.read_bytes().splitlines()) == 1


def test_two_writers_never_share_a_file(tmp_path):
    with RowWriter(tmp_path) as one, RowWriter(tmp_path) as two:
        assert one.path != two.path
    with pytest.raises(ValueError, match="Expected `rank`"):
        RowWriter(tmp_path, rank=-1)


def test_the_manifest_comes_back_and_is_complete(tmp_path):
    write_manifest(tmp_path / "new", MANIFEST)
    assert read_manifest(tmp_path / "new") == {"format": 1, **MANIFEST}
    with pytest.raises(ValueError, match="explainer, images is missing"):
        write_manifest(tmp_path, {k: v for k, v in MANIFEST.items() if k not in ("explainer", "images")})
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(tmp_path, {**MANIFEST, "settings": {"alpha": math.nan}})
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run folder: it has no manifest.json"),
        ("{", "Cannot read"),
        ("[]", "is not a manifest of format 1"),
        ('{"format": 2}', "is not a manifest of format 1"),
        ('{"format": 1}', "Expected the entries format, stage"),
    ],
)
def test_what_is_no_manifest_is_refused_in_words(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RunFolderError, match=message):
        read_manifest(tmp_path)


def test_equal_fingerprints_pass_whatever_the_order_and_sequence_type():
    check_fingerprint({"a": 1, "b": {"c": [1, 2], "d": {}}}, {"b": {"d": {}, "c": (1, 2)}, "a": 1})


def test_each_key_that_differs_is_named_with_both_values():
    old = {"a": 1, "data": {"root": "x", "limit": None}, "same": [1]}
    with pytest.raises(FingerprintMismatch) as caught:
        check_fingerprint(old, {"a": 1.0, "data": {"root": "y"}, "same": [1], "new": {"k": True}})
    assert caught.value.keys == ("a", "data.limit", "data.root", "new.k")
    assert str(caught.value).splitlines()[1:] == [
        "  a: 1 there, 1.0 now",
        "  data.limit: null there, nothing now",
        '  data.root: "x" there, "y" now',
        "  new.k: nothing there, true now",
    ]


def test_missing_images_and_complete_blocks():
    rows = [a_row(index) for index in (0, 1, 2, 3, 5, 6, 8)]
    assert missing(rows, 9) == [4, 7]
    assert completed_blocks(rows, 9, 4) == {0, 2}
    assert completed_blocks(rows, 8, 4) == {0}
    assert completed_blocks([], 0, 4) == set()
    with pytest.raises(ValueError, match="Expected `block_size` to be a positive integer, but got 0"):
        completed_blocks(rows, 9, 0)


def test_ranges_read_as_people_write_them():
    assert format_ranges([]) == ""
    assert format_ranges([4, 5, 9, 5]) == "4-5, 9"
