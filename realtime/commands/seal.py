"""``realtime seal`` and ``realtime unseal``."""

from __future__ import annotations

import argparse
from pathlib import Path

from realtime.commands.engines import say

_SEAL = """\
Encrypt the folder of a run that is over, and remove it. RUN becomes RUN.tar.age, which only the holders of
the secret keys can open, with `realtime unseal` or with the program age. The folder is removed once the disk
has all of the encrypted file; until then it stays as it is. To go on with a seal that was interrupted, give
the same command again. `realtime serve --seal-to` seals every run.
"""
_UNSEAL = """\
Bring the folder of a sealed run back: RUN.tar.age becomes RUN, beside it. The sealed file stays. Remove the
folder when it is no longer needed.
"""


def add_seal(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    sealing = commands.add_parser(
        "seal",
        help="encrypt a recorded run",
        description=_SEAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sealing.add_argument("run", type=Path, metavar="RUN", help="the folder of the run")
    sealing.add_argument(
        "--to",
        action="append",
        required=True,
        metavar="RECIPIENT",
        help="public key of who may open it, age1..., as age-keygen prints it; can be given several times",
    )
    sealing.set_defaults(command=_seal)
    unsealing = commands.add_parser(
        "unseal",
        help="decrypt a sealed run",
        description=_UNSEAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    unsealing.add_argument("sealed", type=Path, metavar="RUN.tar.age", help="the sealed run")
    unsealing.add_argument(
        "--identity",
        type=Path,
        required=True,
        metavar="FILE",
        help="age's file with a secret key that opens it",
    )
    unsealing.set_defaults(command=_unseal)


def add_seal_to_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--seal-to`` to a command that decodes."""
    parser.add_argument(
        "--seal-to",
        action="append",
        default=[],
        metavar="RECIPIENT",
        help="encrypt each run for this public key of age, age1..., once its report is written, and remove "
        "its folder (see `realtime seal`); can be given several times (default: runs stay in plain form)",
    )


def _seal(arguments: argparse.Namespace) -> None:
    from realtime.record.age import recipients_of
    from realtime.record.seal import seal

    sealed = seal(arguments.run, recipients_of(arguments.to))
    say(f"sealed in {sealed}; the folder {arguments.run} is removed")


def _unseal(arguments: argparse.Namespace) -> None:
    from realtime.record.seal import unseal

    folder = unseal(arguments.sealed, arguments.identity)
    say(f"unsealed in {folder}, in plain form; {arguments.sealed} stays")
