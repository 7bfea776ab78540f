"""What is written whole is the old or the new at any moment, whatever fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from realtime.atomic import whole, write_whole


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "one")
    write_whole(path, "zwölf".encode())
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert names(path.parent) == {"a.txt"}


def test_an_error_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, "one")

    def interrupted() -> None:
        with whole(path) as partial:
            partial.write_text("tw")
            assert path.read_text() == "one"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "one"
    assert names(tmp_path) == {"a.txt"}


def test_a_folder_that_must_not_be_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def make_while_another_does() -> None:
        with whole(path, replaces=False) as partial:
            partial.mkdir()
            path.mkdir()
            (path / "journal").write_text("acknowledged")

    with pytest.raises(OSError, match="not empty"):
        make_while_another_does()
    assert names(path) == {"journal"}
    assert names(tmp_path) == {"run"}


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with whole(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / content).touch()
    assert names(tmp_path / "folder") == {"new"}
    assert names(tmp_path) == {"folder"}


def test_a_folder_that_cannot_take_its_place_leaves_the_older_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    with pytest.raises(OSError, match="partial-folder"), whole(tmp_path / "folder"):
        pass  # nothing was written, so that there is nothing to move
    assert names(tmp_path / "folder") == {"old"}
    assert names(tmp_path) == {"folder"}


def test_what_a_killed_process_left_is_no_part_of_the_next(tmp_path: Path) -> None:
    for name in ("folder", ".partial-folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rest").touch()
    with whole(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "weights").touch()
        assert names(tmp_path / "folder") == {"rest"}
    assert names(tmp_path / "folder") == {"weights"}
    assert names(tmp_path) == {"folder"}
