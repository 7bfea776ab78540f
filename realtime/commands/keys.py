"""The command ``realtime keys``, and the options for connections from other machines."""

from __future__ import annotations

import argparse
from pathlib import Path

from realtime.commands.engines import say

_KEYS = """\
Make key pairs for a runtime that other machines can reach: its own, and one each for a scanner,
presentation software, an operator, a subscriber, and every further --subscriber that may read its results.
Existing keys are kept, so the same command adds a subscriber later. To revoke a key, delete its file from
the runtime's folder.
"""
_GOES_TO = {
    "runtime": "stays on the runtime's machine: realtime serve --keys {folder}",
    "scanner": "move it to the scanner's machine: python -m sim replay --keys {folder}",
    "presentation": "move it to the machine of presentation software that sends markers",
    "operator": "move it to the machine of an operator",
}
_SUBSCRIBER_GOES_TO = "move it to the machine of the program that reads the results"


def add_keys(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``keys``."""
    parser = commands.add_parser(
        "keys", help="make keys for encrypted connections to a runtime", description=_KEYS
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
        help="the runtime's folder from `realtime keys`: only peers whose keys are in it can connect to a "
        "tcp:// port (default: keys for this user's own programs on this machine, made at first use)",
    )


def add_page_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that show the page to other machines."""
    parser.add_argument(
        "--page-host",
        default="127.0.0.1",
        metavar="IP",
        help="where the page listens; any address but this machine's loopback, such as 0.0.0.0, needs a "
        "certificate, and opening the page needs the token in the printed URL (default %(default)s)",
    )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="PEM", help="the page's certificate, with the names of its address"
    )
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="the certificate's key")


def _make_keys(arguments: argparse.Namespace) -> None:
    from realtime.network.key_files import make_keys

    made = make_keys(arguments.folder, arguments.subscriber)
    for folder in made:
        where = _GOES_TO.get(folder.name, _SUBSCRIBER_GOES_TO).format(folder=folder)
        say(f"{folder}  {where}")
    if made:
        say("Each holds a secret: move it over a secure channel, leave no copy, and keep its mode 0600.")
    else:
        say(f"{arguments.folder}: every key exists already; none was made")
