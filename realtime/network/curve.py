"""CurveZMQ keys: who may send volumes to this runtime, and who may read its results.

    keys/
      runtime/                       stays on the runtime's machine: `realtime serve --keys keys/runtime`
        server.key_secret            the runtime's own pair
        scanners/scanner.key         public keys of those who may send volumes
        subscribers/NAME.key         public keys of those who may read results
      scanner/                       goes to the scanner's machine: `python -m sim replay --keys keys/scanner`
                                     (and to that of presentation software which sends markers)
        client.key_secret            the scanner's own pair
        server.key                   the runtime's public key, by which the scanner knows it
      NAME/                          goes to a subscriber's machine; the same two files

Files are ZeroMQ certificates, as pyzmq and czmq write them; all have mode 0600. A peer without a listed key
gets nothing, not even a refusal: the handshake fails before a message passes. Both sides are proven to each
other, and what passes between them is encrypted (CurveZMQ, ZeroMQ RFC 26; access by ZAP, RFC 27).
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.auth.asyncio import AsyncioAuthenticator
from zmq.utils import z85

from realtime.atomic import whole
from realtime.errors import ServeError

Right = Literal["scanners", "subscribers"]
"""The folders of public keys: each right is its own ZAP domain, and no key of one opens the other."""

SCANNER = "scanner"
_SERVER, _CLIENT, _RUNTIME = "server", "client", "runtime"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TOLD_AT_MOST = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """Both keys in Z85, 40 characters; the secret one is kept out of whatever prints this."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair({self.public.decode()})"


@dataclass(frozen=True, kw_only=True)
class ServerKeys:
    """What the runtime's folder holds."""

    own: KeyPair
    allowed: dict[Right, frozenset[bytes]]


@dataclass(frozen=True, kw_only=True)
class ClientKeys:
    """What a scanner's or a subscriber's folder holds."""

    own: KeyPair
    server: bytes

    def use(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket, before it connects, talk to this runtime only, and with these keys."""
        socket.curve_publickey, socket.curve_secretkey = self.own.public, self.own.secret
        socket.curve_serverkey = self.server


def make_keys(folder: Path, subscribers: Iterable[str] = ()) -> list[Path]:
    """Make the keys of the runtime, one scanner and any subscribers; whose key is allowed already keeps it.

    To take a peer's right away, delete its public key from the runtime's folder.

    :returns: the folders that were made, the runtime's first.
    :raises ServeError: when a name is none, or a file cannot be written.
    """
    names: list[tuple[str, Right]] = [(SCANNER, "scanners"), *((name, "subscribers") for name in subscribers)]
    for name, _ in names[1:]:
        if not _NAME.fullmatch(name) or name in (SCANNER, _RUNTIME):
            raise ServeError(f"expected a subscriber's name of letters, digits, - and _, got {name!r}")
    runtime = folder / _RUNTIME
    made = []
    try:
        if not (runtime / "server.key_secret").exists():
            for part in (folder, runtime, runtime / "scanners", runtime / "subscribers"):
                part.mkdir(mode=0o700, exist_ok=True, parents=True)
            _create(runtime, _SERVER)
            made.append(runtime)
        for name, right in names:
            if not (runtime / right / f"{name}.key").exists():
                _make_client(folder / name, runtime, right)
                made.append(folder / name)
    except OSError as error:
        raise ServeError(f"cannot write keys into {folder}: {error.strerror or error}") from error
    return made


def load_server_keys(folder: Path) -> ServerKeys:
    """Read the runtime's folder.

    :raises ServeError: when a file is missing, damaged, or a secret that others on this machine can read.
    """
    allowed: dict[Right, frozenset[bytes]] = {
        right: frozenset(_load(path)[0] for path in sorted((folder / right).glob("*.key")))
        for right in ("scanners", "subscribers")
    }
    return ServerKeys(own=_load_pair(folder / "server.key_secret"), allowed=allowed)


def load_client_keys(folder: Path) -> ClientKeys:
    """Read a scanner's or a subscriber's folder; raises as :func:`load_server_keys`."""
    return ClientKeys(own=_load_pair(folder / "client.key_secret"), server=_load(folder / "server.key")[0])


class Guard:
    """Lets only peers with a right to a socket; one for each context, from before its sockets are bound.

    Needs a running event loop.
    """

    def __init__(self, context: zmq.Context[Any], keys: ServerKeys, right: Right) -> None:
        self._keys, self._right = keys, right
        self._authenticator = AsyncioAuthenticator(context)
        self._authenticator.configure_curve_callback(right, _Allowed(keys.allowed[right], _told_once()))

    def start(self) -> None:
        """Begin to answer the sockets' questions."""
        self._authenticator.start()

    def protect(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket, before it is bound, ask for keys; without a guard that answers it lets nobody in."""
        socket.curve_publickey, socket.curve_secretkey = self._keys.own.public, self._keys.own.secret
        socket.curve_server = True
        socket.zap_domain = self._right.encode()
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def stop(self) -> None:
        """Stop answering; before the context ends."""
        self._authenticator.stop()


class _Allowed:
    """Which keys may enter, in the form pyzmq asks for it."""

    def __init__(self, keys: frozenset[bytes], tell: Callable[[str], None]) -> None:
        self._keys, self._tell = keys, tell

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client that has proven to own this public key (Z85) may enter."""
        if key in self._keys:
            return True
        self._tell(f"turned away a peer: its key {key.decode()} is not among the {domain}")
        return False


def _told_once() -> Callable[[str], None]:
    """Log a warning once: a peer that is turned away comes back ten times a second."""
    told: set[str] = set()

    def tell(message: str) -> None:
        if message not in told and len(told) < _TOLD_AT_MOST:
            told.add(message)
            _log.warning("%s", message)

    return tell


def _make_client(folder: Path, runtime: Path, right: Right) -> None:
    """The client's folder appears whole, and then its key is allowed."""
    if folder.exists():
        raise ServeError(f"expected no {folder}, whose key is not allowed any more; move it away")
    with whole(folder) as partial:
        partial.mkdir(mode=0o700)
        public = _create(partial, _CLIENT)
        _write(partial / "server.key", (runtime / "server.key").read_bytes())
        key = public.read_bytes()
        public.unlink()  # the runtime gets it, and the client's secret file holds it too
    _write(runtime / right / f"{folder.name}.key", key)


def _create(folder: Path, name: str) -> Path:
    """A new pair in a folder nobody else can enter; returns the public file."""
    folder.chmod(0o700)
    public, secret = (Path(file) for file in create_certificates(folder, name))
    for file in (public, secret):
        file.chmod(0o600)
    return public


def _write(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def _load_pair(path: Path) -> KeyPair:
    public, secret = _load(path)
    if secret is None:
        raise ServeError(f"expected a secret key in {path}, found only a public one; see `realtime keys`")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ServeError(
            f"expected that only its owner can read {path}, found mode {path.stat().st_mode & 0o777:o}; "
            f"run chmod 600 {path}, and make new keys if somebody else may have read it"
        )
    return KeyPair(public=public, secret=secret)


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
        for key in (public, secret or public):
            if len(key) != 40 or len(z85.decode(key)) != 32:
                raise ValueError(f"{len(key)} characters")
    except OSError as error:
        raise ServeError(
            f"expected a ZeroMQ key in {path}, found none; make it with `realtime keys`"
        ) from error
    # No Z85: KeyError and struct.error; a line without "=": IndexError.
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise ServeError(f"expected a ZeroMQ key of 40 characters in {path}: {error!r}") from error
    return public, secret
