"""``realtime demo``."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence

from realtime.commands.engines import say
from realtime.commands.options import (
    add_decoding_options,
    add_out_option,
    add_port_option,
    add_screen_options,
)
from realtime.commands.supervised import arguments_of


def add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="replay the shipped run and decode it",
        description="Replay a held-out run of a simulated subject, which comes with this package, as a "
        "scanner would send it; decode it, and report how well the frames match the pictures shown.",
    )
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        help="1 is the scan's own pace, 8 eight times as fast (default 1)",
    )
    add_out_option(parser)
    add_decoding_options(parser)
    add_port_option(parser)
    add_screen_options(parser, opens=True)
    parser.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from realtime.bundle.locate import demo_data
    from realtime.service.demo import Replay, demo
    from realtime.service.process import Role

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    common = ["--bundle", str(demo_data("bundle")), "--out", str(arguments.out), "--quiet"]
    processes: dict[Role, Sequence[str]] = {
        "record": [*common, "--source", "tcp://127.0.0.1:0"],
        "decode": [*common, *arguments_of(add_decoding_options, arguments)],
    }
    if not arguments.headless:
        processes["page"] = [*common, "--port", str(arguments.port)]
    replay = Replay(nsd=demo_data("nsd"), speed=arguments.speed)
    demo(processes, arguments.out, replay, open_browser=arguments.open, tell=say)


def _speed(text: str) -> float:
    speed = float(text)
    if not (math.isfinite(speed) and speed > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return speed
