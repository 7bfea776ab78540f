"""``realtime demo``."""

from __future__ import annotations

import argparse
import logging
import math

from realtime.commands.engines import say
from realtime.commands.options import add_running_options


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
    add_running_options(parser, opens=True)
    parser.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from realtime.bundle.locate import demo_data
    from realtime.service.demo import Replay, demo
    from realtime.service.service import Options

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = Options(
        bundle=demo_data("bundle"),
        bundle_is_demo=True,
        source="tcp://127.0.0.1:0",
        port=None if arguments.headless else arguments.port,
        out=arguments.out,
        engine=arguments.engine,
        sampler=arguments.sampler,
        show_faces=arguments.show_faces,
    )
    replay = Replay(nsd=demo_data("nsd"), speed=arguments.speed)
    demo(options, replay, open_browser=arguments.open, tell=say)


def _speed(text: str) -> float:
    speed = float(text)
    if not (math.isfinite(speed) and speed > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return speed
