"""Checks and binds the addresses of sockets: TCP on loopback or, with keys, on any interface; or ipc."""

from __future__ import annotations

import ipaddress
import os
import socket as sockets
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import zmq

from realtime.errors import ServeError

_LINGER_MS = 500
"""Time for pending messages when a socket is closed."""


def check_address(address: str, *, is_guarded: bool = False) -> tuple[str, int]:
    """Parse a ``tcp://`` address into host and port.

    :param is_guarded: whether peers have keys, or the operator named their machines; if neither, only
        loopback addresses are allowed
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
    if not (loopback or is_guarded):
        raise ServeError(
            f"expected a loopback address such as tcp://127.0.0.1:{port}, got {address!r}: other machines "
            "could reach it without authentication; forward the port to this machine through an SSH tunnel "
            "or, for this project's own messages and results, make keys with `realtime keys` and give the "
            "runtime's as --keys, or, for AFNI's protocol and DICOM, name the sender's machine with --allow"
        )
    return host, port


def check_path(address: str) -> Path:
    """Parse an ``ipc://`` address into the path of its socket, which only this user can connect to.

    :raises ServeError: when the address is malformed, when other users could reach or replace the socket, or
        when something else is at its path
    """
    path = Path(address.removeprefix("ipc://"))
    if not address.startswith("ipc:///") or path.name in ("", ".."):
        raise ServeError(f"expected an address like ipc:///path/to/socket, got {address!r}")
    folder = path.parent
    try:
        found = folder.lstat()
    except OSError as error:
        raise ServeError(
            f"cannot listen at {address}: {folder}: {error.strerror}; make it with mkdir -m 700 {folder}"
        ) from error
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or mode & 0o077:
        raise ServeError(
            f"expected that {folder} is a folder of this user that nobody else can enter, found "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}: whoever reaches the socket can use it; "
            f"run chmod 700 {folder}, or choose another folder"
        )
    _check_free(path)
    return path


def _check_free(path: Path) -> None:
    """Refuse a path that is taken, since ZeroMQ would remove whatever is there. A stale socket is free."""
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket() or path.is_symlink():
        raise ServeError(f"expected nothing or a socket at {path}, found something else; choose another path")
    with sockets.socket(sockets.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise ServeError(
                f"ipc://{path} is in use, perhaps by another runtime; stop it or choose another path"
            )


def bind_path(socket: zmq.Socket[Any], path: Path) -> str:
    """Bind a socket to a path and return the address.

    :raises ServeError: when it cannot be bound; the socket is closed then
    """
    socket.set(zmq.LINGER, _LINGER_MS)
    try:
        _check_free(path)
        socket.bind(f"ipc://{path}")
    except ServeError:
        socket.close(linger=0)
        raise
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise ServeError(f"cannot listen at ipc://{path}: {error.strerror}") from error
    return f"ipc://{path}"


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
