"""The file layer of run folders: a folder that is held open, and files that are opened relative to it.

A run folder may come from somebody else. So a link is never followed, only regular files are opened, and none
that has a second name or another owner is written. Folders get the mode 0700 and files 0600, whatever the
umask is.

Linux and macOS open relative to the folder's descriptor, so that nobody can put another folder in its place
between two calls. Windows has no such calls: there, files are opened by path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from realtime.errors import RecordError

FOLDER_MODE, FILE_MODE = 0o700, 0o600
_BY_DESCRIPTOR = os.open in os.supports_dir_fd
# Without O_NONBLOCK, opening a FIFO waits until another process opens it too.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_FLAGS = _NO_LINK | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_BLOCK_BYTES = 2**20


class Folder:
    """A folder that is held open; names of its files are single components. Closing it twice is fine.

    :raises RecordError: from every method, with the path and the reason
    """

    def __init__(self, path: Path, descriptor: int | None, *, to_write: bool) -> None:
        """Use :meth:`open` or :meth:`create`."""
        self.path = path
        self._descriptor = descriptor
        self._to_write = to_write

    @classmethod
    def open(cls, path: Path, *, to_write: bool) -> Folder:
        """Open a folder, which must not be a link.

        :param to_write: whether files will be written; the folder must then belong to this user, without a
            right to write for everybody
        """
        return cls._open(path, str(path), None, to_write=to_write)

    @classmethod
    def create(cls, path: Path) -> Folder:
        """Make a private folder, which must not exist yet, and open it to write."""
        return cls._create(path, str(path), None)

    def sub(self, name: str) -> Folder:
        """Open a folder in this one, to write if this one was opened to write."""
        return self._open(self.path / name, self._at(name), self._descriptor, to_write=self._to_write)

    def make_sub(self, name: str) -> Folder:
        """Make a private folder in this one, which must not exist yet, and open it to write."""
        self._check_writable(name)
        return self._create(self.path / name, self._at(name), self._descriptor)

    @classmethod
    def _create(cls, path: Path, name: str, parent: int | None) -> Folder:
        with _told("make", path):
            os.mkdir(name, FOLDER_MODE, dir_fd=parent)
        return cls._open(path, name, parent, to_write=True, is_new=True)

    @classmethod
    def _open(
        cls, path: Path, name: str, parent: int | None, *, to_write: bool, is_new: bool = False
    ) -> Folder:
        if not _BY_DESCRIPTOR:
            with _told("open", path):
                status = os.lstat(path)
            _check_folder(path, status, to_write=to_write, is_new=is_new)
            return cls(path, None, to_write=to_write)
        with _told("open", path):
            descriptor = os.open(name, _FLAGS | os.O_RDONLY | os.O_DIRECTORY, dir_fd=parent)
        try:
            with _told("open", path):
                status = os.fstat(descriptor)
            _check_folder(path, status, to_write=to_write, is_new=is_new)
            if is_new:
                _set_mode(descriptor, FOLDER_MODE)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, to_write=to_write)

    def close(self) -> None:
        """Let go of the folder. Files that were opened in it stay open."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The folder's descriptor; -1 where folders have none."""
        return -1 if self._descriptor is None else self._descriptor

    def make_private(self) -> None:
        """Take from others what rights they have: runs of earlier releases could be read by every user."""
        if self._descriptor is not None:
            self._check_writable(".")
            _set_mode(self._descriptor, FOLDER_MODE)

    def is_in_place(self) -> bool:
        """Whether the folder's path still leads to the folder that is open."""
        self._check_open()
        return exists(self.path) if self._descriptor is None else _is_same(self._descriptor, self.path)

    def names(self) -> list[str]:
        """What is in the folder, sorted."""
        self._check_open()
        with _told("read", self.path):
            return sorted(os.listdir(self.path if self._descriptor is None else self._descriptor))

    def has(self, name: str) -> bool:
        """Whether something of this name is in the folder, be it a link that leads nowhere."""
        try:
            self._status(name)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RecordError(f"cannot read {self.path / name}: {_reason(error)}") from error
        return True

    def has_folder(self, name: str) -> bool:
        """Whether it is a folder; a link to one is none."""
        with _told("read", self.path / name):
            return stat.S_ISDIR(self._status(name).st_mode)

    def size(self, name: str) -> int:
        """Bytes of a regular file."""
        path = self.path / name
        with _told("read", path):
            status = self._status(name)
        _check_regular(path, status)
        return status.st_size

    def open_read(self, name: str) -> int:
        """A descriptor to read a regular file, which the caller closes."""
        path = self.path / name
        descriptor = self._open_file(name, os.O_RDONLY, doing="read")
        with _closed_on_error(descriptor), _told("read", path):
            _check_regular(path, os.fstat(descriptor))
        return descriptor

    def read(self, name: str, max_bytes: int) -> bytes:
        """The content of a regular file of at most ``max_bytes``."""
        path = self.path / name
        with _told("read", path), os.fdopen(self.open_read(name), "rb", buffering=0) as file:
            content = bytearray()
            # The size that the system states is no limit: a file may grow, and some have none.
            while block := file.read(min(_BLOCK_BYTES, max_bytes + 1 - len(content))):
                content += block
        if len(content) > max_bytes:
            raise RecordError(f"expected at most {max_bytes} bytes in {path}, found more; it is damaged")
        return bytes(content)

    def open_append(self, name: str) -> int:
        """A descriptor that appends to a file, made if it does not exist; the caller closes it."""
        self._check_writable(name)
        path = self.path / name
        descriptor = self._open_file(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, doing="write")
        with _closed_on_error(descriptor), _told("write", path):
            status = os.fstat(descriptor)
            _check_regular(path, status)
            if status.st_nlink != 1:
                raise RecordError(f"cannot write {path}: the file has a second name, elsewhere perhaps")
            _check_ours(path, status)
            _set_mode(descriptor, FILE_MODE)
        return descriptor

    def write_whole(self, name: str, content: bytes) -> None:
        """Write a file so that it is the old one or the new one at any moment; a link is replaced."""
        self._check_writable(name)
        partial = f".partial-{name}"
        self.unlink(partial)
        with _told("write", self.path / name):
            try:
                descriptor = os.open(
                    self._at(partial),
                    _FLAGS | os.O_WRONLY | os.O_CREAT | os.O_EXCL,
                    FILE_MODE,
                    dir_fd=self._descriptor,
                )
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    _set_mode(descriptor, FILE_MODE)
                    write_all(file.fileno(), content)
                os.replace(
                    self._at(partial),
                    self._at(name),
                    src_dir_fd=self._descriptor,
                    dst_dir_fd=self._descriptor,
                )
            except BaseException:
                with contextlib.suppress(RecordError):  # a read-only disk refuses this too
                    self.unlink(partial)
                raise

    def unlink(self, name: str) -> None:
        """Remove a file or a link, if there is one; what a link leads to stays."""
        self._check_writable(name)
        with _told("remove", self.path / name), contextlib.suppress(FileNotFoundError):
            os.unlink(self._at(name), dir_fd=self._descriptor)

    def _open_file(self, name: str, flags: int, doing: str) -> int:
        with _told(doing, self.path / name):
            if not _BY_DESCRIPTOR and self.has(name):
                _check_regular(self.path / name, self._status(name))
            return os.open(self._at(name), _FLAGS | flags, FILE_MODE, dir_fd=self._descriptor)

    def _status(self, name: str) -> os.stat_result:
        return os.stat(self._at(name), dir_fd=self._descriptor, follow_symlinks=False)

    def _at(self, name: str) -> str:
        """A file's name for the system: relative to the descriptor, or a path where there is none."""
        if name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
            raise RecordError(f"expected the name of one file in {self.path}, got {name!r}")
        self._check_open()
        return str(self.path / name) if self._descriptor is None else name

    def _check_open(self) -> None:
        # Without its descriptor, names of files would be looked for in the working directory.
        if _BY_DESCRIPTOR and self._descriptor is None:
            raise RecordError(f"{self.path} has been closed")

    def _check_writable(self, name: str) -> None:
        if not self._to_write:
            raise RecordError(f"cannot write {self.path / name}: the folder was opened to be read only")


def is_same(descriptor: int, folder: Folder, name: str) -> bool:
    """Whether the path of a file still leads to the file that is open, so that what is written is found.

    :raises RecordError: when that cannot be seen now, because the path cannot be read
    """
    return _is_same(descriptor, folder.path / name)


def read_file(path: Path, max_bytes: int, *, missing: bytes | None = None) -> bytes:
    """The content of a regular file of a run folder, read as :meth:`Folder.read` does.

    :param missing: what counts as the content of a file that does not exist; None: that is an error
    """
    with Folder.open(path.parent, to_write=False) as folder:
        if missing is not None and not folder.has(path.name):
            return missing
        return folder.read(path.name, max_bytes)


def exists(path: Path) -> bool:
    """Whether something is at a path, be it a link that leads nowhere.

    :raises RecordError: when that cannot be seen
    """
    with _told("read", path):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all bytes; the system may take them in parts.

    :raises OSError: when the disk does not take them
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def lock_role(out: Path, role: str) -> BinaryIO:
    """Lock a folder of runs for one role, such as ``recorder``, until the file that is returned is closed.

    The system unlocks it when the process ends, however it ends.

    :raises RecordError: when another process has that role there, or the folder cannot be written
    """
    path = out / f".{role}.lock"
    with _told("write", path):
        out.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        if not _BY_DESCRIPTOR and os.path.lexists(path):
            _check_regular(path, os.lstat(path))
        descriptor = os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT, FILE_MODE)
    with _closed_on_error(descriptor), _told("lock", path):
        _check_regular(path, os.fstat(descriptor))
        try:
            lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            raise RecordError(f"another {role} works in {out}; stop it or choose another --out") from error
        if not _is_same(descriptor, path):  # removed since it was opened, so that the next would lock another
            raise RecordError(f"{path} was removed while it was being locked; start again")
    return os.fdopen(descriptor, "rb", buffering=0)


def lock(descriptor: int) -> None:
    """Lock an open file for this process.

    :raises OSError: when another process has locked it (BlockingIOError; on Windows PermissionError)
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_same(descriptor: int, path: Path) -> bool:
    with _told("read", path):
        ours = os.fstat(descriptor)
        try:
            there = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return ours.st_nlink > 0 and (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)


def _check_folder(path: Path, status: os.stat_result, *, to_write: bool, is_new: bool) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise RecordError(f"cannot open {path}: it is a link; give the folder that it leads to")
    if not stat.S_ISDIR(status.st_mode):
        raise RecordError(f"cannot open {path}: expected a folder")
    if not to_write or sys.platform == "win32":
        return
    _check_ours(path, status)
    if status.st_mode & stat.S_IWOTH and not is_new:  # some file systems have one mode for everything
        raise RecordError(
            f"cannot write {path}: every user may write into it, so that nobody knows whose it is; if it is "
            f"yours, run chmod go-w {path}"
        )


def _check_ours(path: Path, status: os.stat_result) -> None:
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        raise RecordError(
            f"cannot write {path}: it belongs to another user (number {status.st_uid}), so it is read, never "
            "written; copy the run to go on with it"
        )


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise RecordError(f"cannot open {path}: expected a regular file; a link is not followed")


def _set_mode(descriptor: int, mode: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # file systems without modes
            os.fchmod(descriptor, mode)


@contextmanager
def _closed_on_error(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def _told(doing: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"cannot {doing} {path}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a link, which is not followed"
    if error.errno == errno.ENOTDIR:
        return "expected a folder; a link to one is not followed"
    if error.errno == errno.ENXIO:
        return "expected a regular file"
    return error.strerror or str(error)
