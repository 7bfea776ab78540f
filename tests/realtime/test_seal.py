"""A run that is over becomes one encrypted file, and its folder again; at no moment is there neither."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import cli, wire
from realtime.errors import RecordError
from realtime.events import DecoderUsed
from realtime.record import seal as sealing
from realtime.record import storage
from realtime.record.age import recipients_of
from realtime.record.run_json import new_run_file, read_run_file
from realtime.record.seal import interrupted, seal, unseal
from realtime.record.storage import Folder
from realtime.record.tar import Unpacker, pack

IDENTITY = pyrage.x25519.Identity.generate()
RECIPIENTS = recipients_of([str(IDENTITY.to_public())])
NAME = "sub-01_task-nsdcore_run-01"
START = wire.RunStart(
    run_id=NAME,
    subject=1,
    tr_s=4 / 3,
    n_volumes=40,
    shape=(6, 6, 6),
    affine=((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    dtype="int16",
)
FILES = {
    "volumes.journal": os.urandom(3 * 2**20 + 17),
    "empty": b"",
    "block": b"b" * 512,
    "frames/000007.png": b"a frame",
    "frames/000008.png": b"another",
    "notes/of the lab/" + "n" * 150: "what somebody put there: µ".encode(),
}


def make_run(out: Path, state: str = "closed") -> Path:
    path = out / NAME
    info = new_run_file(
        START,
        bundle_name="tiny",
        bundle_sha256="0" * 64,
        decoders=[DecoderUsed(name="general", window_delay_volumes=5)],
        seed=0,
    )
    info = msgspec.structs.replace(info, state=state)
    for name, content in {**FILES, "run.json": msgspec.json.encode(info)}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    (path / "shown").mkdir()
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "out")


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """A file as age-keygen writes it."""
    path = tmp_path / "key.txt"
    path.write_text(f"# created: 2031-01-01\n# public key: {IDENTITY.to_public()}\n{IDENTITY}\n")
    return path


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder with what is in it, and its folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name not in (".sealed", ".partial-.sealed")
    }


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_a_run_is_one_private_file_and_comes_back_as_it_was(run: Path, identity: Path) -> None:
    before = content(run)
    sealed = seal(run, RECIPIENTS)
    assert names(run.parent) == [f"{NAME}.tar.age"]
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert not any(value and value in sealed.read_bytes() for value in FILES.values())
    assert unseal(sealed, identity) == run
    assert content(run) == before
    assert names(run.parent) == [NAME, f"{NAME}.tar.age"]
    for path in (run, *run.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_the_programs_age_and_tar_open_it_too(age: str, run: Path, identity: Path, tmp_path: Path) -> None:
    before = content(run)
    sealed = seal(run, RECIPIENTS)
    plain = subprocess.run([age, "-d", "-i", identity, sealed], capture_output=True, check=True).stdout
    done = subprocess.run(["tar", "x"], input=plain, cwd=tmp_path, capture_output=True, check=True)
    assert done.stderr == b""
    assert content(tmp_path / NAME) == before


NAMES = st.text(st.characters(exclude_characters="/\\\0", codec="utf-8"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)
SIZES = st.sampled_from([0, 1, 511, 512, 513, 2**16, 2**20, 2**20 + 1])


@given(
    files=st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map(tuple), SIZES, max_size=6), cut=SIZES
)
@settings(max_examples=60, deadline=None)
def test_whatever_a_folder_holds_comes_back_and_python_reads_the_same_tar(
    files: dict[tuple[str, ...], int], cut: int
) -> None:
    with tempfile.TemporaryDirectory() as around:
        folder = Path(around) / "run"
        folder.mkdir()
        for parts, n_bytes in files.items():
            path = folder.joinpath(*parts)
            with contextlib.suppress(OSError):  # a name that another has as a folder
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(os.urandom(n_bytes))
        with Folder.open(folder, to_write=False) as opened:
            plain = b"".join(pack(opened, "run", 0.0, without=""))
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            by_python = {
                member.name.removeprefix("run/"): file.read() if (file := tar.extractfile(member)) else None
                for member in tar.getmembers()[1:]
            }
        with Folder.create(Path(around) / "back") as opened:
            unpacker = Unpacker(opened)
            for start in range(0, len(plain), max(cut, 100)):
                unpacker.take(plain[start : start + max(cut, 100)])
            assert unpacker.has_ended
        assert content(folder) == content(Path(around) / "back") == by_python


def test_any_of_several_recipients_opens_it_and_nobody_else(run: Path, tmp_path: Path) -> None:
    keys = [pyrage.x25519.Identity.generate() for _ in range(3)]
    sealed = seal(run, recipients_of([str(key.to_public()) for key in keys[:2]]))
    for nth, key in enumerate(keys):
        (tmp_path / f"{nth}.txt").write_text(f"{key}\n")
    for nth in (0, 1):
        shutil.rmtree(unseal(sealed, tmp_path / f"{nth}.txt"))
    with pytest.raises(RecordError, match="sealed for others"):
        unseal(sealed, tmp_path / "2.txt")
    assert names(run.parent) == [sealed.name]


def test_memory_does_not_grow_with_the_run(run: Path, identity: Path) -> None:
    (run / "volumes.journal").write_bytes(bytes(48 * 2**20))
    tracemalloc.start()
    try:
        unseal(seal(run, RECIPIENTS), identity)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * 2**20


# What is refused, and leaves everything as it was


def is_open(run: Path) -> None:
    info = read_run_file(run)
    (run / "run.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(info, state="open")))


def holds_a_link(run: Path) -> None:
    (run / "frames" / "000009.png").symlink_to("000008.png")


def holds_a_pipe(run: Path) -> None:
    os.mkfifo(run / "frames" / "pipe")


def holds_a_name_that_is_not_utf_8(run: Path) -> None:
    (run / os.fsdecode(b"notes\xff.txt")).write_bytes(b"")


def is_no_run(run: Path) -> None:
    (run / "run.json").unlink()


def has_a_sealed_file_of_another_run(run: Path) -> None:
    (run.parent / f"{NAME}.tar.age").write_bytes(b"another")


def was_unsealed(run: Path) -> None:
    before = content(run)
    sealed = seal(run, RECIPIENTS)
    identity = run.parent / "key.txt"
    identity.write_text(str(IDENTITY))
    unseal(sealed, identity)
    assert content(run) == before


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (is_open, "expected a closed run"),
        (holds_a_link, r"000009.png: .*link"),
        (holds_a_pipe, "expected a regular file"),
        (holds_a_name_that_is_not_utf_8, "name of a file in UTF-8, .*rename the file"),
        (is_no_run, "expected a run folder"),
        (has_a_sealed_file_of_another_run, "is there already; .*move the file away"),
        (was_unsealed, "is there already; .*remove the folder"),
    ],
)
def test_what_cannot_be_sealed_stays_as_it_is(run: Path, make: Callable[[Path], None], says: str) -> None:
    make(run)
    before, files = content(run.parent / NAME), names(run.parent)
    sealed = [file.read_bytes() for file in run.parent.glob("*.age")]
    with pytest.raises(RecordError, match=says):
        seal(run, RECIPIENTS)
    assert content(run) == before
    assert names(run.parent) == files
    assert [file.read_bytes() for file in run.parent.glob("*.age")] == sealed


@pytest.mark.parametrize("n_written", [0, 1000, 2**20, "all but the last bytes"])
def test_a_full_disk_leaves_the_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch, n_written: int | str
) -> None:
    """Also where it is full at the very last bytes, of whose error age's library says nothing."""
    before, taken, write_all = content(run), [0], storage.write_all

    def write(descriptor: int, block: bytes) -> None:
        is_last = len(block) < 2**15  # age writes 64 KiB at a time
        if is_last and taken[0] if isinstance(n_written, str) else taken[0] + len(block) > n_written:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken[0] += len(block)
        write_all(descriptor, block)

    monkeypatch.setattr(sealing, "write_all", write)
    with pytest.raises(RecordError, match="cannot seal .*No space left on device"):
        seal(run, RECIPIENTS)
    assert content(run) == before
    assert names(run.parent) == [NAME]


def test_a_disk_that_gives_back_other_bytes_is_noticed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write_all = content(run), storage.write_all

    def write(descriptor: int, block: bytes) -> None:
        write_all(descriptor, block[:-1] + b"?")

    monkeypatch.setattr(sealing, "write_all", write)
    with pytest.raises(RecordError, match="does not give back what was written"):
        seal(run, RECIPIENTS)
    assert content(run) == before
    assert names(run.parent) == [NAME]


def test_a_folder_that_changes_meanwhile_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest_of_file = sealing._digest_of_file

    def change(descriptor: int) -> str:
        (run / "report.html").write_text("a report that was still being written")
        return digest_of_file(descriptor)

    monkeypatch.setattr(sealing, "_digest_of_file", change)
    with pytest.raises(RecordError, match="changed while it was read"):
        seal(run, RECIPIENTS)
    assert (run / "report.html").exists()
    assert names(run.parent) == [NAME]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("age1xyz", "as age-keygen prints it, got 'age1xyz'"),
        ("ssh-ed25519 AAAA", "as age-keygen prints it"),
        (str(IDENTITY), "got a secret key"),
        (f" {IDENTITY}", "got a secret key"),
    ],
)
def test_what_is_no_public_key_is_refused_and_a_secret_one_not_told_on(key: str, says: str) -> None:
    with pytest.raises(RecordError, match=says) as refused:
        recipients_of([key])
    assert str(IDENTITY) not in str(refused.value)


# A process that is killed


KILLED = """
import os, signal, sys
from pathlib import Path
from realtime.record.age import recipients_of
from realtime.record.seal import seal

run, recipients, at = Path(sys.argv[1]), recipients_of([sys.argv[2]]), 0
while True:
    at += 1
    if (child := os.fork()) == 0:
        n_calls = 0
        def kill(event, arguments):
            global n_calls
            if event == "open" or event.startswith(("os.", "shutil.")):
                n_calls += 1
                if n_calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        seal(run, recipients)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("whole" if status == 0 else "killed", flush=True)
    if status == 0 or not sys.stdin.readline():
        break
"""
"""Seals a run, killed at its first call of the file system, then at the second, and so on to the last."""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_whenever_it_is_killed_there_is_the_run_or_the_sealed_file_and_the_next_seal_goes_on(
    tmp_path: Path, identity: Path
) -> None:
    run = make_run(tmp_path / "out")
    (run / "volumes.journal").write_bytes(FILES["volumes.journal"][:1000])
    for name in ("notes", "frames"):  # one folder and a few files have every kind of step
        shutil.rmtree(run / name)
    before, seen = content(run), set()
    sealed, rest = run.parent / f"{NAME}.tar.age", run.parent / f".sealed-{NAME}"
    command = [sys.executable, "-c", KILLED, str(run), str(RECIPIENTS[0])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        while process.stdout.readline() == "killed\n":
            seen.add((run.exists(), sealed.exists(), rest.exists()))
            if run.exists():
                assert content(run) == before
            else:
                assert content(unseal(sealed, identity)) == before
                shutil.rmtree(run)
            leftover = set(names(run.parent)) - {NAME, sealed.name}
            assert interrupted(run.parent) == ([run] if leftover or (run / ".sealed").exists() else [])
            assert seal(run, RECIPIENTS) == sealed
            assert names(run.parent) == [sealed.name]
            assert content(unseal(sealed, identity)) == before
            sealed.unlink()
            process.stdin.write("next\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert names(run.parent) == [sealed.name]
    plain_alone, both, sealed_with_rest = (True, False, False), (True, True, False), (False, True, True)
    assert {plain_alone, both, sealed_with_rest} <= seen


def test_a_seal_for_others_does_not_go_on_with_what_was_interrupted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "_sync_folder", die)
        with pytest.raises(KeyboardInterrupt):
            seal(run, RECIPIENTS)
    other = recipients_of([str(pyrage.x25519.Identity.generate().to_public())])
    with pytest.raises(RecordError, match="is there already"):
        seal(run, other)
    seal(run, RECIPIENTS)


# Sealed files of strangers: whoever has a public key can make one


def sealed_tar(
    out: Path, members: list[tuple[str, bytes, dict[str, Any]]], form: int = tarfile.GNU_FORMAT
) -> Path:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, data, changes in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in changes.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return encrypted(out, stream.getvalue())


def encrypted(out: Path, plain: bytes) -> Path:
    out.mkdir(exist_ok=True)
    path = out / "foreign.tar.age"
    path.write_bytes(pyrage.encrypt(plain, list(RECIPIENTS)))
    return path


RUN_JSON: tuple[str, bytes, dict[str, Any]] = ("run/run.json", b"{}", {})


@pytest.mark.parametrize(
    "members",
    [
        [("run/../../outside", b"x", {})],
        [("../outside", b"x", {})],
        [("/outside", b"x", {})],
        [("run//outside", b"x", {})],
        [("run/..", b"", {"type": tarfile.DIRTYPE})],
        [("run/a\\b", b"x", {})],
        [("run/link", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})],
        [("run/link", b"", {"type": tarfile.LNKTYPE, "linkname": "run/run.json"})],
        [("run/fifo", b"", {"type": tarfile.FIFOTYPE})],
        [("run/device", b"", {"type": tarfile.CHRTYPE})],
        [("run/sparse", b"", {"type": tarfile.GNUTYPE_SPARSE})],
        [("run/a", b"1", {}), ("run/a", b"2", {})],
        [("run/a", b"1", {}), ("run/a/b", b"2", {})],
        [("run/frames/b", b"of a folder that is not there", {})],
        [("elsewhere/a", b"a second folder", {})],
        [("run", b"a file in place of the folder", {})],
        [("run/" + "n" * 5000, b"", {})],
    ],
)
def test_a_tar_that_leads_out_or_holds_anything_but_files_and_folders_brings_nothing(
    tmp_path: Path, identity: Path, members: list[tuple[str, bytes, dict[str, Any]]]
) -> None:
    sealed = sealed_tar(tmp_path / "out", [RUN_JSON, *members])
    before = content(tmp_path)
    with pytest.raises(RecordError, match="cannot unseal"):
        unseal(sealed, identity)
    assert content(tmp_path) == before


def test_a_tar_of_another_program_is_taken_if_it_holds_files_and_folders_only(
    tmp_path: Path, identity: Path
) -> None:
    folder = ("run", b"", {"type": tarfile.DIRTYPE, "mode": 0o777})
    executable = ("run/a", b"1", {"mode": 0o4777, "uid": 0})
    path = unseal(
        sealed_tar(tmp_path / "out", [folder, RUN_JSON, executable], tarfile.USTAR_FORMAT), identity
    )
    assert content(path) == {"run.json": b"{}", "a": b"1"}
    assert stat.S_IMODE((path / "a").stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("plain", [b"", b"no tar" * 200, bytes(1024), bytes(512) + b"behind its end"])
def test_what_holds_no_run_brings_nothing(tmp_path: Path, identity: Path, plain: bytes) -> None:
    sealed = encrypted(tmp_path / "out", plain)
    with pytest.raises(RecordError, match="cannot unseal"):
        unseal(sealed, identity)
    assert names(sealed.parent) == [sealed.name]


def test_a_header_of_gigabytes_takes_no_memory(tmp_path: Path, identity: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        header = tarfile.TarInfo("run/a")
        header.type, header.size = kind, 2**40
        sealed = encrypted(tmp_path / "out", header.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
        with pytest.raises(RecordError, match="cannot unseal"):
            unseal(sealed, identity)


@given(
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    way=st.sampled_from(["cut", "flip", "add"]),
)
@settings(max_examples=60, deadline=None)
def test_a_sealed_file_that_was_changed_or_cut_anywhere_brings_nothing(
    place: float, bit: int, way: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.getbasetemp() / "changed"
    shutil.rmtree(out, ignore_errors=True)
    sealed = sealed_tar(out, [RUN_JSON, ("run/a", bytes(range(256)) * 600, {})])
    identity = out / "key.txt"
    identity.write_text(str(IDENTITY))
    changed = bytearray(sealed.read_bytes())
    at = int(place * len(changed))
    if way == "cut":
        del changed[at:]
    elif way == "flip":
        changed[at] ^= 1 << bit
    else:
        changed += b"x"
    sealed.write_bytes(changed)
    with pytest.raises(RecordError, match="cannot unseal"):
        unseal(sealed, identity)
    assert names(out) == [sealed.name, "key.txt"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# a comment only\n", "found none"),
        ("age-encryption.org/v1\n-> scrypt", "has a passphrase"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "expected secret keys of age"),
        (str(IDENTITY.to_public()), "expected secret keys of age"),
        (f"{IDENTITY}x", "expected secret keys of age"),
    ],
)
def test_a_file_without_a_secret_key_is_refused(run: Path, tmp_path: Path, text: str, says: str) -> None:
    sealed = seal(run, RECIPIENTS)
    (tmp_path / "key.txt").write_text(text)
    with pytest.raises(RecordError, match=says) as refused:
        unseal(sealed, tmp_path / "key.txt")
    assert str(IDENTITY) not in str(refused.value)


def test_a_folder_that_is_there_is_not_replaced(run: Path, identity: Path) -> None:
    sealed = seal(run, RECIPIENTS)
    run.mkdir()
    with pytest.raises(RecordError, match="is there already"):
        unseal(sealed, identity)
    assert content(run) == {}


# What people are told


def test_the_commands(run: Path, identity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sealed = run.parent / f"{NAME}.tar.age"
    before = hashlib.sha256(FILES["volumes.journal"]).digest()
    key = str(IDENTITY.to_public())
    assert cli.main(["seal", str(run), "--to", key]) == 0
    assert f"sealed in {sealed}; the folder {run} is removed" in capsys.readouterr().out
    assert cli.main(["unseal", str(sealed), "--identity", str(identity)]) == 0
    assert f"unsealed in {run}, in plain form" in capsys.readouterr().out
    assert hashlib.sha256((run / "volumes.journal").read_bytes()).digest() == before
    assert cli.main(["seal", str(run), "--to", "age1"]) == 2
    assert "expected a public key" in capsys.readouterr().err


@pytest.mark.parametrize("given_as", [NAME, f"{NAME}.tar.age"])
@pytest.mark.parametrize("command", ["replay", "report"])
def test_commands_that_read_a_run_say_that_it_is_sealed_and_how_to_open_it(
    run: Path, capsys: pytest.CaptureFixture[str], command: str, given_as: str
) -> None:
    sealed = seal(run, RECIPIENTS)
    assert cli.main([command, str(run.parent / given_as)]) == 2
    assert f"`realtime unseal {sealed} --identity FILE`" in capsys.readouterr().err
