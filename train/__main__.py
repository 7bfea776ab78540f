"""``python -m train``: the commands of the offline half."""

from __future__ import annotations

import argparse
import logging
import sys

from nsd import NsdError
from realtime.errors import RealtimeError
from train.commands.fitting import add_base, add_fit, add_prepare, add_ridge
from train.commands.papers import add_describe, add_released
from train.commands.testing import add_evaluate, add_experiment, add_score
from train.errors import TrainError

_EPILOG = """\
the steps of the demo (about two hours on two cores; an interrupted command continues when it is run
again):

  python -m sim synthesize --out data/nsd --subject 1 --sessions 40 --seed 1 --pictures 73000
  python -m train base --nsd data/nsd --subject 1 --out checkpoints/base
  python -m train fit --nsd data/nsd --subject 1 --base checkpoints/base --out checkpoints/sub-01
  python -m train evaluate --nsd data/nsd --checkpoint checkpoints/sub-01 --trials 320 --out results
  python -m export bundle --checkpoint checkpoints/sub-01 --out bundles/sub-01
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code: 2 for an error that the message explains."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options.run(options)
    except (TrainError, NsdError, RealtimeError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train: interrupted; run the command again to continue", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train and evaluate the decoder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # The deepspeed launcher adds this option; the same value is in the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_base,
        add_prepare,
        add_fit,
        add_ridge,
        add_evaluate,
        add_experiment,
        add_released,
        add_describe,
        add_score,
    ):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
