"""What a stranger put into a run folder leads nowhere: nothing outside is written, removed or waited for."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from realtime.errors import RecordError
from realtime.record import storage
from realtime.record.storage import Folder, is_same, lock_role, write_all

BYTES = b"the operator's own"


@pytest.fixture(params=["by descriptor", "by path"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Linux and macOS open by descriptor; the second way is that of Windows."""
    if request.param == "by path":
        monkeypatch.setattr(storage, "_BY_DESCRIPTOR", False)
    return str(request.param)


@pytest.fixture(params=[0o000, 0o022, 0o177])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of the operator's, which no run folder may reach."""
    path = tmp_path / "outside.txt"
    path.write_bytes(BYTES)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def append(folder: Folder, name: str, content: bytes) -> None:
    descriptor = folder.open_append(name)
    try:
        write_all(descriptor, content)
    finally:
        os.close(descriptor)


def content_of(folder: Folder, name: str) -> bytes:
    with os.fdopen(folder.open_read(name), "rb") as file:
        return file.read()


def test_what_is_written_is_read_again(tmp_path: Path, way: str) -> None:
    with Folder.create(tmp_path / "run") as folder, folder.make_sub("frames") as frames:
        append(folder, "volumes.journal", b"one")
        append(folder, "volumes.journal", b"two")
        for content in (b"old", b"new"):
            folder.write_whole("run.json", content)
        frames.write_whole("000001.png", b"png")
        assert folder.names() == ["frames", "run.json", "volumes.journal"]
        assert folder.read("run.json", 3) == b"new"
        assert content_of(folder, "volumes.journal") == b"onetwo"
        assert folder.size("volumes.journal") == 6
        assert folder.has("frames")
        assert not folder.has("volumes")
    with Folder.open(tmp_path / "run", to_write=True) as folder, folder.sub("frames") as frames:
        assert frames.path == tmp_path / "run" / "frames"
        assert frames.read("000001.png", 100) == b"png"
        frames.unlink("000001.png")
        frames.unlink("000001.png")
        assert frames.names() == []


def test_folders_and_files_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    with Folder.create(tmp_path / "run") as folder, folder.make_sub("frames") as frames:
        append(folder, "volumes.journal", b"one")
        frames.write_whole("000001.png", b"png")
    assert mode(tmp_path / "run") == mode(tmp_path / "run" / "frames") == 0o700
    assert mode(tmp_path / "run" / "volumes.journal") == 0o600
    assert mode(tmp_path / "run" / "frames" / "000001.png") == 0o600


def test_a_run_of_an_earlier_release_becomes_private_when_it_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(0o775)
    (path / "volumes.journal").touch()
    (path / "volumes.journal").chmod(0o664)
    with Folder.open(path, to_write=True) as folder:
        assert mode(path) == 0o775
        folder.make_private()
        append(folder, "volumes.journal", b"one")
    assert (mode(path), mode(path / "volumes.journal")) == (0o700, 0o600)


def test_reading_changes_no_mode(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(0o755)
    (path / "run.json").write_text("{}")
    (path / "run.json").chmod(0o644)
    with Folder.open(path, to_write=False) as folder:
        assert folder.read("run.json", 10) == b"{}"
    assert (mode(path), mode(path / "run.json")) == (0o755, 0o644)


def test_a_folder_that_was_opened_to_be_read_is_not_written(tmp_path: Path, way: str) -> None:
    Folder.create(tmp_path / "run").close()
    with Folder.open(tmp_path / "run", to_write=False) as folder:
        writers: list[Callable[[], object]] = [
            lambda: folder.open_append("a"),
            lambda: folder.write_whole("a", b""),
            lambda: folder.unlink("a"),
            lambda: folder.make_sub("a"),
            *([] if way == "by path" else [folder.make_private]),
        ]
        for write in writers:
            with pytest.raises(RecordError, match="opened to be read only"):
                write()
    assert list((tmp_path / "run").iterdir()) == []


def test_the_folder_itself_is_no_link_and_no_file(tmp_path: Path, way: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for to_write in (False, True):
        with pytest.raises(RecordError, match="link"):
            Folder.open(tmp_path / "link", to_write=to_write)
        for name in ("file", "fifo"):
            with pytest.raises(RecordError, match="expected a folder"):
                Folder.open(tmp_path / name, to_write=to_write)
        with pytest.raises(RecordError, match="No such file"):
            Folder.open(tmp_path / "absent", to_write=to_write)
    with pytest.raises(RecordError, match="exists"):
        Folder.create(tmp_path / "link")


def test_a_subfolder_is_no_link_and_cannot_be_left(tmp_path: Path, way: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "photo.jpg").touch()
    with Folder.create(tmp_path / "run") as folder:
        (tmp_path / "run" / "frames").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RecordError, match="link"):
            folder.sub("frames")
        for name in ("", ".", "..", "../elsewhere", str(tmp_path), "a\0b", "a\\b"):
            with pytest.raises(RecordError, match="name of one file"):
                folder.sub(name)
    assert (tmp_path / "elsewhere" / "photo.jpg").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_belongs_to_another_user_is_read_and_never_written(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "run.json").write_bytes(b"{}")
    os.chown(path / "run.json", 12345, -1)
    with Folder.open(path, to_write=True) as folder:
        assert folder.read("run.json", 10) == b"{}"
        with pytest.raises(RecordError, match="belongs to another user"):
            folder.open_append("run.json")
    os.chown(path, 12345, -1)
    with pytest.raises(RecordError, match="belongs to another user.*read, never written"):
        Folder.open(path, to_write=True)
    with Folder.open(path, to_write=False) as folder:
        assert folder.read("run.json", 10) == b"{}"


def test_what_everybody_may_write_is_read_and_never_written(tmp_path: Path, way: str) -> None:
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(0o777)
    (path / "run.json").write_bytes(b"{}")
    with pytest.raises(RecordError, match="chmod go-w"):
        Folder.open(path, to_write=True)
    with Folder.open(path, to_write=False) as folder:
        assert folder.read("run.json", 10) == b"{}"


def plant_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def plant_hard_link(path: Path, outside: Path) -> None:
    path.hardlink_to(outside)


def plant_link_to_a_device(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def plant_fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def plant_folder(path: Path, outside: Path) -> None:
    path.mkdir()


Plant = Callable[[Path, Path], None]
PLANTS: list[Plant] = [plant_link, plant_hard_link, plant_link_to_a_device, plant_fifo, plant_folder]


@pytest.mark.parametrize("plant", PLANTS)
def test_nothing_but_a_file_of_its_own_is_appended_to(
    tmp_path: Path, outside: Path, way: str, plant: Plant
) -> None:
    with Folder.create(tmp_path / "run") as folder:
        plant(tmp_path / "run" / "volumes.journal", outside)
        with pytest.raises(RecordError, match=r"volumes\.journal"):
            folder.open_append("volumes.journal")
    assert outside.read_bytes() == BYTES


def test_a_fifo_with_a_reader_is_not_appended_to(tmp_path: Path, way: str) -> None:
    with Folder.create(tmp_path / "run") as folder:
        os.mkfifo(tmp_path / "run" / "volumes.journal")
        reader = os.open(tmp_path / "run" / "volumes.journal", os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(RecordError, match="expected a regular file"):
            folder.open_append("volumes.journal")
        os.close(reader)


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant is not plant_hard_link])
def test_nothing_but_a_regular_file_is_read(tmp_path: Path, outside: Path, way: str, plant: Plant) -> None:
    with Folder.create(tmp_path / "run") as folder:
        plant(tmp_path / "run" / "run.json", outside)
        with pytest.raises(RecordError, match=r"run\.json"):
            folder.open_read("run.json")
        with pytest.raises(RecordError, match=r"run\.json"):
            folder.read("run.json", 100)
        with pytest.raises(RecordError, match=r"run\.json"):
            folder.size("run.json")


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant is not plant_folder])
@pytest.mark.parametrize("name", ["run.json", ".partial-run.json"])
def test_what_is_written_whole_replaces_links_and_leaves_what_they_lead_to(
    tmp_path: Path, outside: Path, way: str, plant: Plant, name: str
) -> None:
    with Folder.create(tmp_path / "run") as folder:
        plant(tmp_path / "run" / name, outside)
        folder.write_whole("run.json", b"new")
        assert folder.read("run.json", 3) == b"new"
        assert folder.names() == ["run.json"]
    assert outside.read_bytes() == BYTES
    assert mode(tmp_path / "run" / "run.json") == 0o600


@pytest.mark.parametrize("name", ["run.json", ".partial-run.json"])
def test_a_folder_in_the_place_of_a_file_stays(tmp_path: Path, way: str, name: str) -> None:
    with Folder.create(tmp_path / "run") as folder:
        (tmp_path / "run" / name).mkdir()
        with pytest.raises(RecordError, match=r"run\.json: Is a directory"):
            folder.write_whole("run.json", b"new")
        assert folder.names() == [name]


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path, outside: Path, way: str) -> None:
    with Folder.create(tmp_path / "run") as folder:
        (tmp_path / "run" / "000001.png").symlink_to(outside)
        folder.unlink("000001.png")
        assert folder.names() == []
    assert outside.read_bytes() == BYTES


def test_a_file_is_read_up_to_its_limit(tmp_path: Path, way: str) -> None:
    with Folder.create(tmp_path / "run") as folder:
        folder.write_whole("run.json", b"x" * 1000)
        assert len(folder.read("run.json", 1000)) == 1000
        with pytest.raises(RecordError, match="at most 999 bytes"):
            folder.read("run.json", 999)


def test_what_the_disk_does_not_take_is_told_and_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Folder.create(tmp_path / "run") as folder:
        folder.write_whole("run.json", b"old")
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(RecordError, match=r"cannot write .*run\.json: No space left"):
                folder.write_whole("run.json", b"new")
        assert folder.read("run.json", 3) == b"old"
        assert folder.names() == ["run.json"]


def test_a_folder_that_takes_the_place_of_an_open_one_gets_nothing(tmp_path: Path) -> None:
    with Folder.create(tmp_path / "run") as folder, Folder.create(tmp_path / "planted") as planted:
        append(folder, "volumes.journal", b"one")
        descriptor = folder.open_append("volumes.journal")
        assert folder.is_in_place()
        assert is_same(descriptor, folder, "volumes.journal")
        (tmp_path / "run").rename(tmp_path / "moved")
        assert not folder.is_in_place()
        assert not is_same(descriptor, folder, "volumes.journal")
        (tmp_path / "run").symlink_to(tmp_path / "planted")
        assert not folder.is_in_place()
        append(planted, "volumes.journal", b"")
        assert not is_same(descriptor, folder, "volumes.journal")
        folder.write_whole("run.json", b"new")
        assert planted.names() == ["volumes.journal"]
        assert (tmp_path / "moved" / "run.json").read_bytes() == b"new"
        os.close(descriptor)


def test_a_file_that_was_removed_or_replaced_is_seen(tmp_path: Path, way: str) -> None:
    with Folder.create(tmp_path / "run") as folder:
        descriptor = folder.open_append("volumes.journal")
        assert is_same(descriptor, folder, "volumes.journal")
        (tmp_path / "run" / "volumes.journal").unlink()
        assert not is_same(descriptor, folder, "volumes.journal")
        append(folder, "volumes.journal", b"")
        assert not is_same(descriptor, folder, "volumes.journal")
        (tmp_path / "run" / "volumes.journal").unlink()
        (tmp_path / "run").rmdir()
        assert not is_same(descriptor, folder, "volumes.journal")
        assert not folder.is_in_place()
        os.close(descriptor)


def test_a_closed_folder_is_not_looked_for_in_the_working_directory(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder.create(tmp_path / "run")
    folder.close()
    folder.close()
    with pytest.raises(RecordError, match="has been closed"):
        folder.unlink("outside.txt")
    with pytest.raises(RecordError, match="has been closed"):
        folder.read("outside.txt", 100)
    for look in (folder.names, folder.is_in_place):
        with pytest.raises(RecordError, match="has been closed"):
            look()
    assert outside.exists()


def test_what_is_refused_leaves_no_descriptor_open(tmp_path: Path, outside: Path) -> None:
    with Folder.create(tmp_path / "run") as folder:
        for plant in PLANTS:
            plant(tmp_path / "run" / plant.__name__, outside)
        before = os.listdir("/dev/fd")
        for refused, allowed in (
            (folder.open_append, None),
            (folder.open_read, plant_hard_link),
            (folder.sub, plant_folder),
        ):
            for plant in PLANTS:
                if plant is not allowed:
                    with pytest.raises(RecordError, match=plant.__name__):
                        refused(plant.__name__)
        assert os.listdir("/dev/fd") == before


def test_one_process_has_a_role_in_a_folder(tmp_path: Path, way: str) -> None:
    out = tmp_path / "new" / "runs"
    code = (
        "import sys; from pathlib import Path; from realtime.record.storage import lock_role\n"
        "held = lock_role(Path(sys.argv[1]), sys.argv[2])"
    )

    def in_another_process(role: str) -> str:
        command = [sys.executable, "-c", code, str(out), role]
        return subprocess.run(command, capture_output=True, text=True).stderr

    with lock_role(out, "recorder"):
        assert f"another recorder works in {out}; stop it or choose another --out" in in_another_process(
            "recorder"
        )
        assert in_another_process("decoder") == ""
    assert in_another_process("recorder") == ""
    assert mode(out) == 0o700
    assert mode(out / ".recorder.lock") == 0o600


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant is not plant_hard_link])
def test_a_lock_is_a_regular_file(tmp_path: Path, outside: Path, way: str, plant: Plant) -> None:
    plant(tmp_path / ".decoder.lock", outside)
    with pytest.raises(RecordError, match=r"\.decoder\.lock"):
        lock_role(tmp_path, "decoder")
    assert outside.read_bytes() == BYTES


def test_a_lock_that_was_removed_while_it_was_taken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed_first(descriptor: int) -> None:
        (tmp_path / ".decoder.lock").unlink()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(storage, "lock", removed_first)
    with pytest.raises(RecordError, match="start again"):
        lock_role(tmp_path, "decoder")
