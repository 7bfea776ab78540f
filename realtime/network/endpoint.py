"""Where a ZeroMQ socket of this project's own protocols listens, and who may connect to it."""

from __future__ import annotations

from typing import Any

import zmq

from realtime.errors import ServeError
from realtime.network.address import bind, bind_path, check_address, check_path
from realtime.network.curve import Guard
from realtime.network.key_files import Right, ServerKeys


class Endpoint:
    """An address that a context's socket listens at.

    Over ``tcp://`` only peers with keys can connect, on loopback too: otherwise every user and every web page
    on the machine could. An ``ipc://`` socket needs no keys, because its folder is closed to other users.

    :param address: such as ``tcp://127.0.0.1:5555``, where port 0 chooses a free one, or ``ipc:///path``
    :param right: the right that peers need
    :raises ServeError: when the address is malformed or not allowed
    """

    def __init__(
        self, context: zmq.Context[Any], address: str, keys: ServerKeys | None, right: Right
    ) -> None:
        self._guard: Guard | None = None
        if address.startswith("ipc:"):
            self._path = check_path(address)
            return
        is_known = keys is not None and not keys.loopback_only
        self._host, self._port = check_address(address, is_guarded=is_known)
        if keys is None:
            raise ServeError(
                f"expected keys for {address}; make them with `realtime keys`, or listen at ipc:///path"
            )
        self._guard = Guard(context, keys, right)
        self._is_guarded = False

    def bind(self, socket: zmq.Socket[Any]) -> str:
        """Bind and return the address with its port; needs a running event loop.

        :raises ServeError: when the address is in use; the socket is closed then
        """
        if self._guard is None:
            return bind_path(socket, self._path)
        if not self._is_guarded:
            self._guard.start()
            self._is_guarded = True
        self._guard.protect(socket)
        address = bind(socket, self._host, self._port)
        self._port = int(address.rpartition(":")[2])  # so that it can be bound again
        return address

    @property
    def is_tcp(self) -> bool:
        """Whether peers connect over TCP; if not, they are programs of this user."""
        return self._guard is not None

    def allows(self, key: str) -> bool:
        """Whether a peer that was admitted with this key may still be here."""
        return self._guard is None or self._guard.allows(key)

    def revoked(self) -> bool:
        """Whether a peer that was admitted since the last call that returned True has lost its right."""
        return self._guard is not None and self._guard.revoked()

    def close(self) -> None:
        """Admit nobody any more; call this before the context is terminated."""
        if self._guard:
            self._guard.stop()
