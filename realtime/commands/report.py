"""``realtime report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from realtime.commands.engines import say


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report",
        help="write the report of a recorded run",
        description="Write report.html and summary.json into the folder of a recorded run, as it is now.\n"
        "`realtime serve` does so when a run ends.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of the run")
    parser.set_defaults(command=_report)


def _report(arguments: argparse.Namespace) -> None:
    from realtime.report.summary import lines
    from realtime.report.write import write_report

    summary = write_report(arguments.run)
    say(f"{summary.run_id} ({summary.state}): {arguments.run / 'report.html'}")
    for line in lines(summary):
        say(line)
