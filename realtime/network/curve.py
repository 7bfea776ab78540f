"""Lets a peer connect to a ZeroMQ port if its public key is listed (:mod:`realtime.network.key_files`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from zmq.auth.asyncio import AsyncioAuthenticator

from realtime.errors import ServeError
from realtime.network.key_files import Right, ServerKeys, key_files, load_public

REREAD_S = 1.0
"""The longest time for which a change of the runtime's folder can go unnoticed."""
_MAX_WARNINGS = 1000

_log = logging.getLogger(__name__)


class Guard:
    """Restricts a context's sockets to peers with a right; create one per context before binding sockets.

    It needs a running event loop. It notices within :data:`REREAD_S` when a key is added to the runtime's
    folder or removed from it.
    """

    def __init__(self, context: zmq.Context[Any], keys: ServerKeys, right: Right) -> None:
        self._keys, self._right = keys, right
        self._authenticator = AsyncioAuthenticator(context)
        self._allowed = _Allowed(keys.folder / right, keys.allowed[right])
        self._authenticator.configure_curve_callback(right, self._allowed)

    def start(self) -> None:
        """Start answering authentication requests."""
        self._authenticator.start()

    def protect(self, socket: zmq.Socket[Any]) -> None:
        """Require keys on a socket before it is bound; if the guard is not running, nobody can connect."""
        socket.curve_publickey, socket.curve_secretkey = self._keys.own.public, self._keys.own.secret
        socket.curve_server = True
        socket.zap_domain = self._right.encode()
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def allows(self, key: str) -> bool:
        """Whether the peer with this public key (Z85) still has the right."""
        return key.encode() in self._allowed.keys()

    def revoked(self) -> bool:
        """Whether a peer that was admitted since the last call that returned True has lost the right."""
        gone = bool(self._allowed.admitted - self._allowed.keys())
        if gone:
            self._allowed.admitted.clear()
        return gone

    def stop(self) -> None:
        """Stop answering; call this before the context is terminated."""
        self._authenticator.stop()


class _Allowed:
    """Decides which keys may connect, in the form that pyzmq requires."""

    def __init__(self, folder: Path, keys: frozenset[bytes]) -> None:
        self._folder, self._keys = folder, keys
        self._read_s = time.monotonic()
        self._tell = _warn_once()
        self.admitted: set[bytes] = set()

    def keys(self) -> frozenset[bytes]:
        """The keys in the folder, no older than :data:`REREAD_S`."""
        if time.monotonic() - self._read_s >= REREAD_S:
            self._keys = self._read()
            self._read_s = time.monotonic()
        return self._keys

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client that owns this public key (Z85) may connect."""
        if key in self.keys():
            self.admitted.add(key)
            return True
        self._tell(f"turned away a peer: its key {key.decode()} is not among the {domain}")
        return False

    def _read(self) -> frozenset[bytes]:
        """Read the folder; a file that is damaged, or is being written, gives nobody the right."""
        keys = set()
        try:
            for path in key_files(self._folder):
                try:
                    keys.add(load_public(path))
                except ServeError as error:
                    self._tell(f"a key does not count: {error}")
        except (ServeError, OSError) as error:
            self._tell(f"nobody can connect: {error}")
            return frozenset()
        return frozenset(keys)


def _warn_once() -> Callable[[str], None]:
    """Log each warning once, because a refused peer retries ten times per second."""
    told: set[str] = set()

    def tell(message: str) -> None:
        if message not in told and len(told) < _MAX_WARNINGS:
            told.add(message)
            _log.warning("%s", message)

    return tell
