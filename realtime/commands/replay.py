"""The command ``realtime replay``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from realtime.commands.engines import NAMES, add_faces_option

_say = partial(print, flush=True)

_REPLAY = """\
Decode a recorded run again, from the journal in its folder, and compare every frame with the recorded one:
with the same bundle on the same engine they are the same bit for bit. Each frame is made with the sampler
that the record names, and what was missing or skipped then is so again. The result is another run folder.
Exit code 0: all frames and states are the recorded ones; 1: some are not; 2: an error.
"""


def add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``replay``."""
    parser = commands.add_parser("replay", help="decode a recorded run again", description=_REPLAY)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of the recorded run")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("replays"),
        metavar="DIR",
        help="where the new run folder is made (default ./replays)",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="decode with this bundle (default: the recording's, if it is in ./bundles/sub-NN or the demo's)",
    )
    parser.add_argument(
        "--engine", metavar="NAME", help=f"what decodes: {NAMES} (default: the engine of the recording)"
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="decode with this sampler (default: each frame's own)"
    )
    add_faces_option(parser, "by default they are as the recording's")
    parser.set_defaults(command=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from realtime.runs import replay

    compared = replay.replay(
        replay.Options(
            run=arguments.run,
            out=arguments.out,
            bundle=arguments.bundle,
            engine=arguments.engine,
            sampler=arguments.sampler,
            show_faces=arguments.show_faces,
        ),
        _say,
    )
    for line in replay.lines(compared):
        _say(line)
    return 0 if compared.is_same else 1
