"""The command ``realtime replay``."""

from __future__ import annotations

import argparse
from pathlib import Path

from realtime.commands.engines import NAMES, add_faces_option, say
from realtime.commands.signers import add_signer_options, trust_of

_REPLAY = """\
Decode a recorded run again, from the journal in its folder, and compare every frame with the recorded one.
With the same bundle on the same engine they are the same bit for bit. Each frame is made with the sampler of
the recording, and volumes that were missing or skipped are so again. The result is another run folder.
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
        help="decode with this bundle (default: the recording's, where it was, in bundles/ here or beside "
        "the run, or the demo's)",
    )
    add_signer_options(parser)
    parser.add_argument(
        "--engine", metavar="NAME", help=f"what decodes: {NAMES} (default: the engine of the recording)"
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="decode with this sampler (default: each frame's own)"
    )
    add_faces_option(parser, "by default they are as in the recording")
    parser.set_defaults(command=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from realtime.report.write import write_report
    from realtime.runs import replay

    compared = replay.replay(
        replay.Options(
            run=arguments.run,
            out=arguments.out,
            bundle=arguments.bundle,
            trust=trust_of(arguments),
            engine=arguments.engine,
            sampler=arguments.sampler,
            show_faces=arguments.show_faces,
        ),
        say,
    )
    write_report(Path(compared.run_folder))
    for line in replay.lines(compared):
        say(line)
    return 0 if compared.is_same else 1
