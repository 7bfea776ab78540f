"""Sockets with the keys that the runtime makes for its user, which are those of the tests' session here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from realtime.network.key_files import own_client_keys, own_server_keys

Prepare = Callable[[zmq.Socket[bytes]], None]


def own_keys(peer: str) -> Prepare:
    """Sets the keys of this user's scanner, presentation software, operator or subscriber on a socket."""
    own_server_keys()  # makes them, if no runtime has
    keys = own_client_keys(peer)
    assert keys
    return keys.use


def without_keys(socket: zmq.Socket[bytes]) -> None:
    """Leaves a socket as it is."""


def own_server(socket: zmq.Socket[Any]) -> None:
    """Sets the keys of this user's runtime on a socket before it is bound; it does not ask who connects."""
    own = own_server_keys().own
    socket.curve_publickey, socket.curve_secretkey, socket.curve_server = own.public, own.secret, True
