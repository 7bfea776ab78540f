"""``python -m sim``: make synthetic subjects, and replay runs as a scanner would send them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nsd import N_IMAGES, NsdError
from sim.errors import SimError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return the exit code (2: an error that was explained in one line)."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (SimError, NsdError) as error:
        print(f"sim: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sim: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_synthesize(commands)
    return parser


def _add_synthesize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "synthesize",
        help="write a synthetic subject in the layout of the Natural Scenes Dataset",
        description="Write a synthetic subject in NSD's layout: pictures, experiment plan, region of "
        "interest and the runs of the first N sessions. Deterministic in --seed; an interrupted command goes on "
        "where it was. A session takes about 10 s and 24 MB, all 73 000 pictures 2 minutes and 290 MB.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="root of the data set")
    parser.add_argument("--subject", type=int, default=1, help="subject number, 1 to 8 (default 1)")
    parser.add_argument(
        "--sessions", type=int, required=True, metavar="N", help="write sessions 1 to N (at most 40)"
    )
    parser.add_argument("--seed", type=int, default=1, help="draws scenes, plan, cortex, noise (default 1)")
    parser.add_argument(
        "--settings", type=Path, metavar="TOML", help="settings of the cortex (default: sim/cortex.toml)"
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=N_IMAGES,
        metavar="N",
        help="write the first N pictures into the stimulus file; 0: none, replay can draw them (default all)",
    )
    parser.set_defaults(command=_synthesize)


def _synthesize(arguments: argparse.Namespace) -> int:
    from sim.settings import read_settings
    from sim.synthesize import synthesize

    provenance = synthesize(
        arguments.out,
        settings=read_settings(arguments.settings),
        seed=arguments.seed,
        subject=arguments.subject,
        n_sessions=arguments.sessions,
        n_stimuli=arguments.pictures,
    )
    low, median, high = provenance.median_share(arguments.subject)
    print(f"signal share of a volume, over voxels: median {median:.3f}, quartiles {low:.3f} and {high:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
