"""Options that several commands share: of the recorder, the decoder and the page, and of what starts them."""

from __future__ import annotations

import argparse
from pathlib import Path

from realtime.commands.engines import add_engine_options, add_faces_option
from realtime.commands.keys import add_page_options
from realtime.commands.registration import add_registration_options
from realtime.commands.seal import add_seal_to_option
from realtime.commands.sources import add_source_options


def add_bundle_options(parser: argparse.ArgumentParser) -> None:
    """Add what all processes of a runtime must agree on."""
    parser.add_argument(
        "--subject", type=int, metavar="N", help="number of the subject (default: the bundle's subject)"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="the subject's bundle (default: ./bundles/sub-NN, that of subject 1 without --subject; if there "
        "is none, the shipped demo bundle, which is of subject 1)",
    )
    add_out_option(parser)
    add_log_option(parser)


def add_out_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where runs are recorded (default ./runs)",
    )


def add_log_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-format``."""
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="format of the log on standard error: text, or one JSON object per line (default %(default)s)",
    )


def add_recorder_options(parser: argparse.ArgumentParser) -> None:
    """Add what only the recorder needs."""
    add_source_options(parser)
    add_registration_options(parser)
    parser.add_argument(
        "--fallback-out",
        type=Path,
        metavar="DIR",
        help="where a run goes on whose folder was deleted or moved while it was recorded, such as another "
        "disk (default: in --out)",
    )


def add_decoder_options(parser: argparse.ArgumentParser) -> None:
    """Add what only the decoder needs."""
    parser.add_argument(
        "--publish",
        metavar="ADDRESS",
        help="send every frame to programs that subscribe here, such as tcp://127.0.0.1:5556 "
        "(default: nowhere)",
    )
    parser.add_argument(
        "--statistics",
        choices=("reset", "carry"),
        default="reset",
        help="the statistics that z-score the first volumes of a run: reset takes the bundle's prior, carry "
        "those at the end of the last closed run in --out (default %(default)s)",
    )
    add_seal_to_option(parser)
    add_decoding_options(parser)


def add_decoding_options(parser: argparse.ArgumentParser) -> None:
    """Add the engine, the sampler, and what becomes of faces."""
    add_engine_options(parser)
    add_faces_option(parser)


def add_port_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--port`` of the page."""
    parser.add_argument(
        "--port", type=_port, default=8765, help="of the page; 0: any free one (default 8765)"
    )


def add_viewer_options(parser: argparse.ArgumentParser) -> None:
    """Add what only the page needs."""
    add_port_option(parser)
    add_page_options(parser)


def add_screen_options(parser: argparse.ArgumentParser, *, opens: bool) -> None:
    """Add whether there is a page, and whether it opens in a browser.

    :param opens: whether it does by default
    """
    parser.add_argument("--headless", action="store_true", help="serve no page")
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=opens,
        help=f"open the page in a browser (default: {'yes' if opens else 'no'})",
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return port
