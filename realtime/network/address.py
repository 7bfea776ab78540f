"""Checks and binds the addresses of ZeroMQ sockets: loopback only, or with keys any interface."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

import zmq

from realtime.errors import ServeError

_LINGER_MS = 500
"""Time for pending messages when a socket is closed."""


def check_address(address: str, *, has_keys: bool = False) -> tuple[str, int]:
    """Parse a ``tcp://`` address into host and port.

    :param has_keys: whether peers are authenticated; if not, only loopback addresses are allowed
    :raises ServeError: when the address is malformed or not allowed
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme != "tcp" or parts.path:
        raise ServeError(f"expected an address like tcp://127.0.0.1:5555, got {address!r}")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise ServeError(
            f"expected an IP address of this machine, such as tcp://127.0.0.1:{port}, got {address!r}"
        ) from error
    if not (loopback or has_keys):
        raise ServeError(
            f"expected a loopback address such as tcp://127.0.0.1:{port}, got {address!r}: other machines "
            "could reach it without authentication; forward the port to this machine through an SSH tunnel "
            "or, for this project's own messages and results, make keys with `realtime keys` and give the "
            "runtime's as --keys"
        )
    return host, port


def bind(socket: zmq.Socket[Any], host: str, port: int) -> str:
    """Bind a socket and return the address with its port; port 0 chooses a free one.

    :raises ServeError: when the address cannot be bound; the socket is closed then
    """
    socket.set(zmq.LINGER, _LINGER_MS)
    socket.set(zmq.IPV6, ":" in host)
    named = f"[{host}]" if ":" in host else host
    try:
        socket.bind(f"tcp://{named}:{port or '*'}")
    except zmq.ZMQError as error:
        socket.close(linger=0)
        if error.errno == zmq.EADDRINUSE:
            raise ServeError(
                f"tcp://{named}:{port} is in use, perhaps by another runtime; stop it or choose another port"
            ) from error
        raise ServeError(f"cannot listen on tcp://{named}:{port}: {error.strerror}") from error
    return str(socket.get_string(zmq.LAST_ENDPOINT))
