"""Which keys a process of the runtime needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from realtime.errors import ServeError
from realtime.network.key_files import ServerKeys, load_server_keys, own_server_keys


def keys_for(folder: Path | None, ports: Iterable[str | None]) -> ServerKeys | None:
    """The keys, if one of these addresses needs them: the user's own unless others are named.

    :param folder: the runtime's, as ``--keys`` names it
    :raises ServeError: when the keys cannot be read or made
    """
    if not need_keys(ports):
        return None
    return load_server_keys(folder) if folder else own_server_keys()


def need_keys(ports: Iterable[str | None]) -> bool:
    """Whether one of these addresses is for peers that have keys."""
    return any(port and port.startswith("tcp:") for port in ports)


def check_keys_are_needed(folder: Path | None, source: str, ports: Iterable[str | None]) -> None:
    """:raises ServeError: when keys were given, and no port uses them"""
    if folder is not None and not need_keys(ports):
        raise ServeError(
            f"expected no --keys with {source} and without --publish or --markers at tcp://: keys are for "
            "scanners at tcp://, presentation software and subscribers, and none of these can connect here"
        )
