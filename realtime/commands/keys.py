"""The command ``realtime keys``, and the options that say who may reach a runtime."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

_say = partial(print, flush=True)

_KEYS = """\
Make key pairs for a runtime that others than this machine can reach: its own, one for a scanner, and one for
each --subscriber that may read its results. Those who have a key already keep it, so that the same command
adds a subscriber later. To take a key's right away, delete its file from the runtime's folder and start
serve again.
"""
_GOES_TO = {
    "runtime": "stays on the runtime's machine: realtime serve --keys {folder}",
    "scanner": "move it to the scanner's machine: python -m sim replay --keys {folder}",
}
_SUBSCRIBER_GOES_TO = "move it to the machine of the program that reads the results"


def add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``keys``."""
    parser = commands.add_parser(
        "keys", help="make the keys by which runtime and scanner know each other", description=_KEYS
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to make the folders of keys")
    parser.add_argument(
        "--subscriber",
        action="append",
        default=[],
        metavar="NAME",
        help="a program that may read the results; can be given several times",
    )
    parser.set_defaults(command=_make_keys)


def add_keys_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--keys`` to a command that listens."""
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="the runtime's folder from `realtime keys`: then only scanners and subscribers whose keys are "
        "in it get anything",
    )


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that show the page to other machines."""
    parser.add_argument(
        "--page-host",
        default="127.0.0.1",
        metavar="IP",
        help="where the page listens; another address than this machine's loopback, such as 0.0.0.0, needs a "
        "certificate, and whoever looks needs the token in the URL that is printed (default %(default)s)",
    )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="the page's certificate, with the names it is reached by"
    )
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="the certificate's key")


def _make_keys(arguments: argparse.Namespace) -> None:
    from realtime.network.curve import make_keys

    made = make_keys(arguments.folder, arguments.subscriber)
    for folder in made:
        where = _GOES_TO.get(folder.name, _SUBSCRIBER_GOES_TO).format(folder=folder)
        _say(f"{folder}  {where}")
    if made:
        _say("Each holds a secret: move it by a way you trust, leave no copy behind, and keep its mode 0600.")
    else:
        _say(f"{arguments.folder}: all of them have a key already; nothing was made")
