"""Addresses that ZeroMQ sockets listen at: this machine's loopback, or with keys any of its networks."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

import zmq

from realtime.errors import ServeError

_LINGER_MS = 500
"""Messages under way when a socket is closed get so long."""


def check_address(address: str, *, has_keys: bool = False) -> tuple[str, int]:
    """Host and port of a ``tcp://`` address: on this machine's loopback, or with keys on any of its networks.

    :raises ServeError: for any other form or host.
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
            f"expected a loopback address such as tcp://127.0.0.1:{port}, got {address!r}: others can reach "
            "that, and nobody would have to prove who they are; forward the port to this machine through an "
            "SSH tunnel or, for this project's own messages and results, make keys with `realtime keys` and "
            "give the runtime's as --keys"
        )
    return host, port


def bind(socket: zmq.Socket[Any], host: str, port: int) -> str:
    """Listen; returns the address with its port, which for port 0 is any free one.

    :raises ServeError: where that is not possible; the socket is closed then
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
                f"tcp://{named}:{port} is in use, perhaps by another runtime; stop that one or choose "
                "another port"
            ) from error
        raise ServeError(f"cannot listen on tcp://{named}:{port}: {error.strerror}") from error
    return str(socket.get_string(zmq.LAST_ENDPOINT))
