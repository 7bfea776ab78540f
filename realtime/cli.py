"""The command ``realtime``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from realtime.commands.decode import add_decode
from realtime.commands.demo import add_demo
from realtime.commands.doctor import add_doctor
from realtime.commands.engines import add_bench
from realtime.commands.keys import add_keys
from realtime.commands.page import add_page
from realtime.commands.record import add_record
from realtime.commands.replay import add_replay
from realtime.commands.report import add_report
from realtime.commands.seal import add_seal
from realtime.commands.serve import add_serve
from realtime.errors import RealtimeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; 2 means an error that was reported in one line."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments) or 0)
    except RealtimeError as error:
        _tell(error, is_supervised=getattr(arguments, "supervised", False))
        return 2
    except KeyboardInterrupt:
        print("realtime: interrupted", file=sys.stderr)
        return 130


def _tell(error: RealtimeError, *, is_supervised: bool) -> None:
    """Tell the user in one line, or the process that started this one, which tells it."""
    if is_supervised:
        from realtime.service.process import say_failed

        say_failed(error)
    else:
        print(f"realtime: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="realtime", description="Decode the runs of a scanner in real time."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_serve(commands)
    add_demo(commands)
    add_doctor(commands)
    add_bench(commands)
    add_keys(commands)
    add_replay(commands)
    add_report(commands)
    add_seal(commands)
    add_record(commands)
    add_decode(commands)
    add_page(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
