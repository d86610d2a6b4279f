"""What was found is stored beside the data, or in the user's cache, or not at all; never half of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optcam_pl.data import files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_stored_is_read_again_and_lies_beside_the_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    assert files.load_json(data, "a.json") is None
    files.store_json(data, "a.json", {"x": [1, 2.5, "ü"]})
    assert files.load_json(data, "a.json") == {"x": [1, 2.5, "ü"]}
    assert [path.name for path in (data / ".optcam_pl").iterdir()] == ["a.json"]
    assert files.list_files(data, frozenset({".json"})) == []  # it is no part of the data


def test_beside_read_only_data_the_users_cache_is_used(tmp_path: Path, cache: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / ".optcam_pl").write_text("a file, so that no folder can be made here, for root neither")
    files.store_json(data, "a.json", 1)
    assert files.load_json(data, "a.json") == 1
    assert len(list(cache.glob("optcam_pl/*/a.json"))) == 1
    assert files.load_json(tmp_path, "a.json") is None  # another folder's


def test_where_nothing_can_be_written_nothing_is_stored(tmp_path: Path, cache: Path) -> None:
    cache.write_text("no folder")
    (tmp_path / ".optcam_pl").write_text("no folder")
    files.store_json(tmp_path, "a.json", 1)
    assert files.load_json(tmp_path, "a.json") is None


def test_a_damaged_store_counts_as_none(tmp_path: Path) -> None:
    files.store_json(tmp_path, "a.json", 1)
    (tmp_path / ".optcam_pl" / "a.json").write_bytes(b'{"x": [1, \xff')
    assert files.load_json(tmp_path, "a.json") is None


def test_a_write_that_fails_leaves_the_old_store_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.store_json(tmp_path, "a.json", 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.json, "dump", full)
    files.store_json(tmp_path, "a.json", 2)
    assert files.load_json(tmp_path, "a.json") == 1
    assert [path.name for path in (tmp_path / ".optcam_pl").iterdir()] == ["a.json"]


def test_a_user_without_a_home_folder_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(files.Path, "expanduser", homeless)
    (tmp_path / ".optcam_pl").write_text("no folder")
    files.store_json(tmp_path, "a.json", 1)
    assert files.load_json(tmp_path, "a.json") is None


@pytest.mark.parametrize("look", [files.list_files, files.subfolders])
def test_a_link_to_itself_is_told(tmp_path: Path, look: Callable[[Path], list[str]]) -> None:
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(ValueError, match="The symbolic link '.*a' leads round in a circle"):
        look(tmp_path)
