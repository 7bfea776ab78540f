"""Sealed runs: the folder of a run that is over as one encrypted file, and back.

    RUN/  ─► tar ─► age, for the recipients' public keys ─► RUN.tar.age      seal
    RUN/  ◄─ tar ◄─ age, with an identity, the secret key ◄─ RUN.tar.age     unseal

Without this software, ``age -d -i FILE RUN.tar.age | tar x`` brings the folder back. Whoever seals needs no
secret, so what was sealed cannot be decrypted here to compare it. Instead, the folder is removed only once
the disk has the file, the file was read back as it was written, and the folder, read once more, still is what
was encrypted. The process may be killed at any moment; then there is, beside one of the two,

    .partial-RUN.tar.age    being written, or about to be: RUN/ is whole, and the next seal begins anew
    RUN/.sealed             the digests of both: RUN/ is whole, and so is RUN.tar.age if it is there with this
                            digest; the next seal compares and goes on
    .sealed-RUN/            being removed: RUN.tar.age is whole, and the next seal removes the rest
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from realtime.atomic import whole
from realtime.errors import RecordError
from realtime.record.age import Recipients, decrypt, encrypt, read_identities
from realtime.record.run_json import SEALED, is_sealed, read_run_file, sealed_path
from realtime.record.storage import FILE_MODE, Folder, exists, lock, write_all
from realtime.record.tar import Unpacker, pack

MARK = ".sealed"
_BLOCK_BYTES = 2**20
_MAX_MARK_BYTES = 2**16


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What the mark says: the sealed file with the one digest holds the folder with the other."""

    sealed_sha256: str
    tar_sha256: str
    recipients: list[str]


def seal(path: Path, recipients: Recipients) -> Path:
    """Seal a closed run and remove its folder; returns the sealed file. Goes on with what was interrupted.

    :raises RecordError: when the run is open or cannot be read, or the disk does not take the file: the
        folder stays. Also when the run is sealed and its folder cannot be removed
    """
    path = Path(os.path.abspath(path))
    sealed = sealed_path(path)
    if is_sealed(path) or (exists(to_remove(path)) and not exists(path)):
        _remove_rest(path)
        return sealed
    if read_run_file(path).state != "closed":
        raise RecordError(
            f"expected a closed run in {path}, found an open one; once it has ended, `realtime serve` or "
            "`realtime decode` with the same --out closes it"
        )
    with Folder.open(path, to_write=True) as folder, _locked(folder):
        try:
            if exists(sealed):
                _check_is_of(sealed, folder, recipients)
            else:
                _write(sealed, folder, recipients)
            _sync_folder(path.parent)
            _remove_rest(path)  # of an earlier run of this name
            if not folder.is_in_place():
                raise RecordError(f"{path} was replaced while it was sealed in {sealed}; look at both")
            path.rename(to_remove(path))
        except OSError as error:
            raise RecordError(f"cannot seal {path}: {error.strerror or error}") from error
    _remove_rest(path)
    return sealed


def unseal(sealed: Path, identity: Path) -> Path:
    """Bring the folder of a sealed run back, beside the sealed file, which stays; returns the folder.

    :param identity: a file with a secret key of age
    :raises RecordError: when the file is damaged, is for others, or does not hold a run; when there is a
        folder, or the disk does not take it
    """
    sealed = Path(os.path.abspath(sealed))
    name = sealed.name.removesuffix(SEALED)
    if name in ("", sealed.name):
        raise RecordError(f"expected a sealed run, a file whose name ends with {SEALED}, got {sealed}")
    path = sealed.with_name(name)
    if exists(path):
        raise RecordError(f"{path} is there already; move it away, or remove it if it is not needed")
    identities = read_identities(identity)
    try:
        with whole(path, replaces=False) as partial, sealed.open("rb") as file:
            with Folder.create(partial) as folder, contextlib.closing(Unpacker(folder)) as unpacker:
                decrypt(file, unpacker.take, identities)
                if not unpacker.has_ended:
                    raise RecordError("its tar has no end")
                if not folder.has("run.json"):
                    raise RecordError("expected a run in it, found no run.json")
            if exists(path):
                raise RecordError(f"{path} has just been made by another process")
    except OSError as error:
        raise RecordError(f"cannot unseal {sealed}: {error.strerror or error}") from error
    except RecordError as error:
        raise RecordError(f"cannot unseal {sealed}: {error}") from error
    return path


def note_to_seal(path: Path) -> None:
    """Make a run count as one whose sealing was begun (see :func:`interrupted`).

    :raises RecordError: when the disk does not take the note
    """
    try:
        sealed_path(path).with_name(f".partial-{path.name}{SEALED}").touch(FILE_MODE)
    except OSError as error:
        raise RecordError(f"cannot note that {path} is to be sealed: {error.strerror or error}") from error


def interrupted(out: Path) -> list[Path]:
    """Folders of the runs whose sealing was begun under ``out`` and did not come to its end."""
    partial = f".partial-*{SEALED}"
    found = {file.name.removeprefix(".partial-").removesuffix(SEALED) for file in out.glob(partial)}
    found |= {file.parent.name for file in out.glob(f"[!.]*/{MARK}")}
    found |= {rest.name.removeprefix(f"{MARK}-") for rest in out.glob(f"{MARK}-*")}
    return [out / name for name in sorted(found)]


def to_remove(path: Path) -> Path:
    """Where the folder of a sealed run is while it is being removed."""
    return path.with_name(f"{MARK}-{path.name}")


def _write(sealed: Path, folder: Folder, recipients: Recipients) -> None:
    """Write the sealed file of a folder; it appears when the disk has it and it was compared."""
    for stale in (MARK, f".partial-{MARK}"):
        folder.unlink(stale)
    with whole(sealed) as partial:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(partial, flags, FILE_MODE), "r+b", buffering=0) as file:
            descriptor = file.fileno()
            tar_sha256, sealed_sha256 = encrypt(
                _tar(folder), lambda block: write_all(descriptor, block), recipients
            )
            os.fsync(descriptor)
            if _digest_of_file(descriptor) != sealed_sha256:
                raise RecordError(f"the disk does not give back what was written in {sealed}; check the disk")
        if _digest(_tar(folder)) != tar_sha256:
            raise RecordError(f"{folder.path} changed while it was read; seal it when nothing writes there")
        mark = _Mark(sealed_sha256=sealed_sha256, tar_sha256=tar_sha256, recipients=_names(recipients))
        folder.write_whole(MARK, msgspec.json.encode(mark))


def _check_is_of(sealed: Path, folder: Folder, recipients: Recipients) -> None:
    """Check that a sealed file is this folder's, which a process that was killed had not yet removed."""
    mark = folder.read(MARK, _MAX_MARK_BYTES) if folder.has(MARK) else b"{}"
    with (
        sealed.open("rb", buffering=0) as file,
        contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError),
    ):
        if msgspec.json.decode(mark, type=_Mark) == _Mark(
            sealed_sha256=_digest_of_file(file.fileno()),
            tar_sha256=_digest(_tar(folder)),
            recipients=_names(recipients),
        ):
            return
    raise RecordError(
        f"{sealed} is there already; if {folder.path} was unsealed from it and has not changed, remove the "
        "folder; if not, move the file away, and seal the folder again"
    )


def _tar(folder: Folder) -> Iterator[bytes]:
    with os.fdopen(folder.open_read("run.json"), "rb") as run_file:
        dated_s = os.fstat(run_file.fileno()).st_mtime
    yield from pack(folder, folder.path.name, dated_s, without=MARK)


def _names(recipients: Recipients) -> list[str]:
    return sorted({str(recipient) for recipient in recipients})


def _remove_rest(path: Path) -> None:
    """Remove what is left of the folder of a sealed run."""
    rest = to_remove(path)
    try:
        if exists(rest):
            shutil.rmtree(rest)
            _sync_folder(path.parent)
    except OSError as error:
        raise RecordError(
            f"the run is sealed in {sealed_path(path)}, and its plain folder cannot be removed: "
            f"{error.strerror or error}; remove {rest}"
        ) from error


@contextlib.contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    """One process seals a run at a time, where folders can be locked."""
    if folder.fd >= 0:
        try:
            lock(folder.fd)
        except BlockingIOError as error:
            raise RecordError(f"another process is sealing {folder.path}") from error
    yield


def _sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _digest_of_file(descriptor: int) -> str:
    """Of what the disk has, where the system can be told to forget what it keeps in memory."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return _digest(iter(lambda: os.read(descriptor, _BLOCK_BYTES), b""))
