"""The command ``realtime``."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from realtime.cli_engines import add_bench, add_doctor, add_engine_options, add_faces_option
from realtime.cli_replay import add_replay
from realtime.cli_security import add_keys, add_keys_option, add_page_options
from realtime.cli_sources import add_source_options, told
from realtime.errors import RealtimeError

_say = partial(print, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code (2: an error that was explained in one line)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments) or 0)
    except RealtimeError as error:
        print(f"realtime: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("realtime: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="realtime", description="Decode a scanner's runs as they come.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_demo(commands)
    add_doctor(commands)
    add_bench(commands)
    add_keys(commands)
    add_replay(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="decode the runs that a scanner sends",
        description="Decode the runs that a scanner sends, one after the other, until Ctrl-C. A run that\n"
        "was left open, by a crash or a stop, goes on where it was when serve starts again with the\n"
        "same --out.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--subject", type=int, metavar="N", help="who is scanned (default: whom the bundle is of)"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="the subject's bundle (default: ./bundles/sub-NN, of subject 1 without --subject; where there "
        "is none, the shipped demo bundle, which is of subject 1)",
    )
    add_source_options(parser)
    add_keys_option(parser)
    parser.add_argument(
        "--publish",
        metavar="ADDRESS",
        help="send every frame to programs that subscribe here, such as tcp://127.0.0.1:5556 "
        "(default: nowhere)",
    )
    add_page_options(parser)
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="of the log on standard error: lines for people, or a JSON object a line (default %(default)s)",
    )
    parser.add_argument(
        "--statistics",
        choices=("reset", "carry"),
        default="reset",
        help="what a run is z-scored by while it is young: reset begins every run with the bundle's prior, "
        "carry with what the last closed run in --out came to (default %(default)s)",
    )
    _add_common(parser, opens=False)
    parser.set_defaults(command=_serve)


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="replay the shipped run and decode it",
        description="Replay a held-out run of a simulated subject, which comes with this package, as a "
        "scanner would send it; decode it and report how well the frames match what was shown.",
    )
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        help="1 is the scan's own pace, 8 eight times as fast (default 1)",
    )
    _add_common(parser, opens=True)
    parser.set_defaults(command=_demo)


def _add_common(parser: argparse.ArgumentParser, *, opens: bool) -> None:
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


def _serve(arguments: argparse.Namespace) -> None:
    from realtime import logs
    from realtime.serve import serve
    from realtime.service import Options, choose_bundle

    logs.configure(arguments.log_format, logging.INFO)
    bundle, is_demo = choose_bundle(arguments.bundle, arguments.subject)
    options = Options(
        bundle=bundle,
        bundle_is_demo=is_demo,
        source=arguments.source,
        told=told(arguments),
        port=None if arguments.headless else arguments.port,
        out=arguments.out,
        engine=arguments.engine,
        sampler=arguments.sampler,
        show_faces=arguments.show_faces,
        keys=arguments.keys,
        publish=arguments.publish,
        page_host=arguments.page_host,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        carry=arguments.statistics == "carry",
    )
    serve(options, open_browser=arguments.open, tell=_say)


def _demo(arguments: argparse.Namespace) -> None:
    from realtime.demo import Replay, demo
    from realtime.service import Options, demo_data

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
    demo(options, replay, open_browser=arguments.open, tell=_say)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return port


def _speed(text: str) -> float:
    speed = float(text)
    if not (math.isfinite(speed) and speed > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return speed


if __name__ == "__main__":
    sys.exit(main())
