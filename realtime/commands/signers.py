"""The options for signed bundles, of every command that opens one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realtime.bundle.signers import Trust


def add_signer_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--require-signed`` and ``--signer`` to a command that opens a bundle."""
    parser.add_argument(
        "--require-signed",
        action="store_true",
        help="refuse a bundle that no trusted signer has signed (default: say who signed it, or nobody)",
    )
    parser.add_argument(
        "--signer",
        action="append",
        default=[],
        metavar="KEY_OR_FILE",
        help="a trusted signer: minisign's public key, or its file; can be given several times, beside the "
        ".pub files in the folder signers of this program's user configuration",
    )


def trust_of(arguments: argparse.Namespace) -> Trust:
    """Read the keys of the trusted signers. :raises BundleError: when one cannot be read"""
    from realtime.bundle.signers import Trust, given_signers, pinned_signers

    return Trust(
        signers=(*pinned_signers(), *given_signers(arguments.signer)), required=arguments.require_signed
    )
