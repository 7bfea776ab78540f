"""Options that ``serve`` and ``demo`` share."""

from __future__ import annotations

import argparse
from pathlib import Path

from realtime.commands.engines import add_engine_options, add_faces_option


def add_running_options(parser: argparse.ArgumentParser, *, opens: bool) -> None:
    """Add the options of a runtime: page, run folders, engine.

    :param opens: whether the page opens in a browser by default
    """
    parser.add_argument(
        "--port", type=_port, default=8765, help="of the page; 0: any free one (default 8765)"
    )
    parser.add_argument("--headless", action="store_true", help="serve no page")
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=opens,
        help=f"open the page in a browser (default: {'yes' if opens else 'no'})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where runs are recorded (default ./runs)",
    )
    add_engine_options(parser)
    add_faces_option(parser)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return port
