"""What is written whole is the old or the new at any moment, whatever fails."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_private_file_is_private_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    modes: dict[str, int] = {}

    def watched(path: str, flags: int, mode: int = 0o777, **options: Any) -> int:
        descriptor = os_open(path, flags, mode, **options)
        modes[Path(path).name] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return descriptor

    os_open, before = os.open, os.umask(umask)
    monkeypatch.setattr(os, "open", watched)
    try:
        write_whole(tmp_path / "private", "new", private=True)
        write_whole(tmp_path / "open", "new")
    finally:
        os.umask(before)
    assert modes == {".partial-private": 0o600, ".partial-open": 0o666 & ~umask}
    assert {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)} == {
        "private": 0o600,
        "open": 0o666 & ~umask,
    }


@pytest.mark.parametrize("name", ["a.txt", ".partial-a.txt"])
def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("stays")
    path = tmp_path / "folder" / "a.txt"
    path.parent.mkdir()
    (path.parent / name).symlink_to(tmp_path / "outside")
    write_whole(path, "new")
    assert (path.read_text(), path.is_symlink()) == ("new", False)
    assert (tmp_path / "outside").read_text() == "stays"
    assert names(path.parent) == {"a.txt"}


def test_a_link_that_is_put_there_in_the_meantime_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").write_text("stays")

    def put_a_link(path: Path) -> None:
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / "outside")

    monkeypatch.setattr("realtime.atomic._remove", put_a_link)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "a.txt", "new")
    assert (tmp_path / "outside").read_text() == "stays"


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
