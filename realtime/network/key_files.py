"""CurveZMQ keys, which authenticate every peer of a ZeroMQ port.

    keys/
      runtime/                       stays on the runtime's machine: `realtime serve --keys keys/runtime`
        server.key_secret            the runtime's key pair
        scanners/NAME.key            public keys of peers that may send runs
        markers/NAME.key             public keys of peers that may say what is on screen (--markers)
        subscribers/NAME.key         public keys of peers that may read results (--publish)
        operators/NAME.key           public keys of operators; no port is for them yet
      scanner/                       for the scanner's machine: `python -m sim replay --keys keys/scanner`
        client.key_secret            the scanner's key pair
        server.key                   the runtime's public key, which authenticates the runtime
      presentation/                  for presentation software: markers
      operator/                      for operators
      subscriber/                    for a program that reads results
      NAME/                          for a further subscriber; each with the same two files

Files are ZeroMQ certificates in the format of pyzmq and czmq, with mode 0600. A peer without a listed key
gets no answer at all: the handshake fails before any message. Both sides are authenticated, and all messages
are encrypted (CurveZMQ, ZeroMQ RFC 26; access control by ZAP, RFC 27).

A peer can have several rights: copy its public key from one folder of the runtime's to another. The runtime
notices within a second when a key is added or removed.

Programs of one user on one machine need no folder to be named: :func:`own_server_keys` makes the keys in the
user's configuration folder, and :func:`own_client_keys` finds them there.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import platformdirs
import zmq
from zmq.auth import create_certificates
from zmq.utils import z85

from realtime.atomic import whole
from realtime.errors import ServeError

Right = Literal["scanners", "markers", "subscribers", "operators"]
"""The right of a key, and the folder of keys with it. Each right is a separate ZAP domain."""

RIGHTS: dict[str, Right] = {
    "scanner": "scanners",
    "presentation": "markers",
    "subscriber": "subscribers",
    "operator": "operators",
}
"""The peers that :func:`make_keys` always makes a key for, and their rights."""

_SERVER, _CLIENT, _RUNTIME = "server", "client", "runtime"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_KEY_FILE_BYTES = 4_096


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A key pair in Z85, 40 characters each; ``repr`` omits the secret key."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.public.decode()})"


@dataclass(frozen=True, kw_only=True)
class ServerKeys:
    """The content of the runtime's folder."""

    folder: Path
    own: KeyPair
    allowed: dict[Right, frozenset[bytes]]
    """The keys when the folder was read; a :class:`~realtime.network.curve.Guard` reads it again."""
    loopback_only: bool = False
    """Whether nobody named these keys: they then open no port to other machines."""


@dataclass(frozen=True, kw_only=True)
class ClientKeys:
    """The content of a peer's folder."""

    own: KeyPair
    server: bytes

    def use(self, socket: zmq.Socket[bytes]) -> None:
        """Set these keys on a socket before it connects; it then talks to this runtime only."""
        socket.curve_publickey, socket.curve_secretkey = self.own.public, self.own.secret
        socket.curve_serverkey = self.server


def make_keys(folder: Path, subscribers: Iterable[str] = ()) -> list[Path]:
    """Make the keys of the runtime, of the peers in :data:`RIGHTS` and of further subscribers.

    Existing keys are kept. To revoke a peer's right, delete its public key from the runtime's folder.

    :returns: the new folders, the runtime's first
    :raises ServeError: when a name is invalid, or a file cannot be written
    """
    added = list(subscribers)
    for name in added:
        if not _NAME.fullmatch(name) or name in (*RIGHTS, _RUNTIME):
            raise ServeError(f"expected a subscriber's name of letters, digits, - and _, got {name!r}")
    peers: dict[str, Right] = {**dict.fromkeys(added, "subscribers"), **RIGHTS}
    runtime = folder / _RUNTIME
    made = []
    try:
        for part in (folder, runtime, *(runtime / right for right in RIGHTS.values())):
            part.mkdir(mode=0o700, exist_ok=True, parents=True)
        if not (runtime / "server.key_secret").exists():
            _create(runtime, _SERVER)
            made.append(runtime)
        for name, right in peers.items():
            # Whoever has another right under this name keeps it; older folders may hold such a subscriber.
            if not any((runtime / each / f"{name}.key").exists() for each in RIGHTS.values()):
                _make_client(folder / name, runtime, right)
                made.append(folder / name)
    except OSError as error:
        raise ServeError(f"cannot write keys into {folder}: {error.strerror or error}") from error
    return made


def own_folder() -> Path:
    """The folder of the keys with which this user's programs talk to each other on this machine."""
    return platformdirs.user_config_path("realtime-dynadiff") / "keys"


def own_server_keys() -> ServerKeys:
    """Read the runtime's keys in the user's configuration folder; make them, and the peers', at first use.

    :raises ServeError: when they cannot be made or read
    """
    folder = own_folder()
    if not folder.exists():
        try:
            with whole(folder, str(os.getpid()), replaces=False) as partial:
                make_keys(partial)
        except OSError as error:
            if not folder.exists():  # otherwise another runtime has made them meanwhile
                raise ServeError(
                    f"cannot make keys in {folder}: {error.strerror or error}; make them elsewhere with "
                    "`realtime keys`, and give the runtime's folder as --keys"
                ) from error
    return replace(load_server_keys(folder / _RUNTIME), loopback_only=True)


def own_client_keys(peer: str) -> ClientKeys | None:
    """Read a peer's keys in the user's configuration folder; None if no runtime has made them yet.

    :raises ServeError: when they cannot be read
    """
    folder = own_folder() / peer
    return load_client_keys(folder) if folder.exists() else None


def load_server_keys(folder: Path) -> ServerKeys:
    """Read the runtime's folder. A folder of a right that is absent holds no keys.

    :raises ServeError: when a file is missing or damaged, when other users can read the secret key or write
        to the folder, and when something else than a file is in the place of a key
    """
    own = _load_pair(folder / "server.key_secret")
    _check_folder(folder)
    allowed: dict[Right, frozenset[bytes]] = {
        right: frozenset(load_public(path) for path in key_files(folder / right)) for right in RIGHTS.values()
    }
    return ServerKeys(folder=folder, own=own, allowed=allowed)


def load_client_keys(folder: Path) -> ClientKeys:
    """Read a peer's folder; raises like :func:`load_server_keys`."""
    own = _load_pair(folder / "client.key_secret")
    _check_folder(folder)
    return ClientKeys(own=own, server=load_public(folder / "server.key"))


def _make_client(folder: Path, runtime: Path, right: Right) -> None:
    """Make a client's folder atomically, then add its key to the runtime's."""
    if folder.exists():
        raise ServeError(f"expected that {folder} does not exist, since its key was revoked; move it away")
    with whole(folder, replaces=False) as partial:
        partial.mkdir(mode=0o700)
        public = _create(partial, _CLIENT)
        _write(partial / "server.key", (runtime / "server.key").read_bytes())
        key = public.read_bytes()
        public.unlink()  # the runtime gets it; the client's secret file also contains it
    _write(runtime / right / f"{folder.name}.key", key)


def _create(folder: Path, name: str) -> Path:
    """Make a key pair in a folder that only its owner can read; return the public file."""
    folder.chmod(0o700)
    public, secret = (Path(file) for file in create_certificates(folder, name))
    for file in (public, secret):
        file.chmod(0o600)
    return public


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def key_files(folder: Path) -> list[Path]:
    """The public keys in a folder of a right; none if it is absent. Raises like :func:`load_server_keys`."""
    if not folder.exists():
        return []
    _check_folder(folder)
    return sorted(folder.glob("*.key"))


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which another user could put keys."""
    try:
        found = folder.stat()
    except OSError as error:
        raise ServeError(
            f"expected a folder of keys at {folder}: {error.strerror}; make it with `realtime keys`"
        ) from error
    if os.name != "posix":
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise ServeError(
            f"expected that {folder} belongs to this user or to root, found user {found.st_uid}, who can put "
            "keys there; copy the keys to a folder of this user"
        )
    if found.st_mode & 0o022:
        raise ServeError(
            f"expected that only its owner can write to {folder}, found mode {found.st_mode & 0o777:o}; run "
            f"chmod go-w {folder}, and delete keys in it that you did not put there"
        )


def _load_pair(path: Path) -> KeyPair:
    text, mode = _read(path)
    public, secret = _parse(text, path)
    if secret is None:
        raise ServeError(f"expected a secret key in {path}, found only a public one; see `realtime keys`")
    if os.name == "posix" and mode & 0o077:
        raise ServeError(
            f"expected that only its owner can read {path}, found mode {mode:o}; "
            f"run chmod 600 {path}, and make new keys if another user may have read it"
        )
    return KeyPair(public=public, secret=secret)


def load_public(path: Path) -> bytes:
    """Read a peer's public key; raises like :func:`load_server_keys`."""
    return _parse(_read(path)[0], path)[0]


def _parse(text: bytes, path: Path) -> tuple[bytes, bytes | None]:
    """Parse a ZeroMQ certificate into its public key and, if it has one, its secret key."""
    keys: dict[bytes, bytes] = {}
    for line in text.splitlines():
        name, is_key, value = line.strip().partition(b"=")
        if is_key and not name.startswith(b"#"):
            keys[name.strip()] = value.strip(b" \t'\"")
    public, secret = keys.get(b"public-key"), keys.get(b"secret-key")
    try:
        for key in (public, secret or public):
            if key is None or len(key) != 40 or len(z85.decode(key)) != 32:
                raise ValueError("not 40 characters")
    # Invalid Z85 raises KeyError or struct.error.
    except (ValueError, KeyError, struct.error) as error:
        raise ServeError(
            f"expected a ZeroMQ key of 40 characters in {path}, found something else; copy the file again, "
            "or make new keys with `realtime keys`"
        ) from error
    assert public
    return public, secret


def _read(path: Path) -> tuple[bytes, int]:
    """Content and mode of a key file; nothing else is opened: a FIFO would block, a device never ends."""
    try:
        # Windows has neither flag.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ServeError(
                f"expected a key file at {path}, found a link; put a copy of the file in its place"
            ) from error
        raise ServeError(
            f"expected a ZeroMQ key in {path}, found none; make it with `realtime keys`"
        ) from error
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_KEY_FILE_BYTES:
            raise ServeError(
                f"expected a key file of at most {MAX_KEY_FILE_BYTES} bytes at {path}, found "
                f"{stat.filemode(found.st_mode)} of {found.st_size} bytes; delete it, and copy the file again"
            )
        return os.read(number, MAX_KEY_FILE_BYTES), stat.S_IMODE(found.st_mode)
    finally:
        os.close(number)
