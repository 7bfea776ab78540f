"""``python -m sim``: make synthetic subjects and replay runs like a scanner."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from nsd import N_IMAGES, NsdError
from realtime.errors import RealtimeError
from sim.errors import SimError

_SHIPPED = Path("raw.toml of this package")
"""Stands for the shipped settings where an option has no file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; 2 means an error that was reported in one line."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (SimError, NsdError, RealtimeError) as error:
        print(f"sim: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sim: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_synthesize(commands)
    _add_replay(commands)
    _add_play(commands)
    _add_excerpt(commands)
    _add_betas(commands)
    return parser


def _add_synthesize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "synthesize",
        help="write a synthetic subject in the layout of the Natural Scenes Dataset",
        description="Write a synthetic subject in NSD's layout: pictures, experimental design, region of "
        "interest, mean functional volume with the head around it, and the runs of the first N sessions. The "
        "result depends on --world and --seed only; an interrupted command continues when it is run again. "
        "A session takes about 10 s and 24 MB, with the pictures that it shows; all 73 000 take 2 minutes "
        "and 290 MB, those of the natural world 3 minutes and 480 MB.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="root of the data set")
    parser.add_argument("--subject", type=int, default=1, help="subject number, 1 to 8 (default 1)")
    parser.add_argument(
        "--sessions", type=int, required=True, metavar="N", help="write sessions 1 to N (at most 40)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of scenes, design, cortex and noise (default 1)"
    )
    parser.add_argument(
        "--world",
        default="plain",
        metavar="NAME|TOML",
        help="what is seen, and by what cortex: plain (one of 64 objects on a gradient), natural (2 to 5 of "
        "832 objects on textures; some kinds are in the shared 1 000 pictures only), or a file of settings "
        "like those in sim/worlds (default plain)",
    )
    parser.add_argument(
        "--pictures",
        type=_number_of_pictures,
        metavar="N",
        help="write the first N pictures instead of those that the sessions show, which a decoder is trained "
        f"and tested on: {N_IMAGES} for `train base`, or 0, since replay can draw them",
    )
    parser.add_argument(
        "--raw",
        type=Path,
        nargs="?",
        const=_SHIPPED,
        metavar="TOML",
        help="also write the raw side: for each session the scanner's grid and where the head lies, for "
        "each run how the head moves, as desc-truth_timeseries.tsv (BIDS, under nsddata_rawdata). It takes "
        "a few kB: `replay --raw` draws the raw volumes when it sends them. The settings are grid, "
        "position, motion, TR and slice timing (default: sim/raw.toml)",
    )
    parser.set_defaults(command=_synthesize)


def _number_of_pictures(text: str) -> int:
    if not text.isdecimal() or int(text) > N_IMAGES:
        raise argparse.ArgumentTypeError(f"expected a number of pictures from 0 to {N_IMAGES}, got {text}")
    return int(text)


def _synthesize(arguments: argparse.Namespace) -> int:
    from sim.raw_settings import read_raw_settings
    from sim.settings import read_settings
    from sim.synthesize import synthesize

    raw = None
    if arguments.raw:
        raw = read_raw_settings(None if arguments.raw == _SHIPPED else arguments.raw)
    provenance = synthesize(
        arguments.out,
        settings=read_settings(arguments.world),
        seed=arguments.seed,
        subject=arguments.subject,
        n_sessions=arguments.sessions,
        n_stimuli=arguments.pictures,
        raw=raw,
    )
    low, median, high = provenance.share_quartiles(arguments.subject)
    print(f"share of variance that pictures evoke: median {median:.3f}, quartiles {low:.3f} and {high:.3f}")
    return 0


def _add_run_options(parser: argparse.ArgumentParser, default: int | None, in_words: str) -> None:
    parser.add_argument("--nsd", type=Path, required=True, metavar="DIR", help="root of the data set")
    parser.add_argument("--subject", type=int, default=1, help="subject number (default 1)")
    parser.add_argument("--session", type=int, default=default, help=f"session number (default{in_words} 1)")
    parser.add_argument(
        "--run", type=int, default=default, help=f"number of a task run (default{in_words} 1)"
    )


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "replay",
        help="simulate a scanner: send a recorded run to a runtime, volume by volume",
        description="Send a run of a data set in NSD's layout to a runtime, volume by volume at the scan's "
        "pace, with the pictures that were shown. By this project's own messages, volumes that the runtime "
        "has not acknowledged are sent again after a restart of either side: the same command continues at "
        "the first volume that the runtime lacks. By the other ways, each volume is sent once, and no "
        "pictures. Ctrl-C ends the run on both sides. Without --run it is a run that the bundle in "
        "./bundles/sub-NN held out, if there is one.",
    )
    _add_run_options(parser, None, ": a held-out run's, else")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="send the raw side of a synthetic run, as the scanner sees it before motion is corrected; "
        "`synthesize --raw` writes what it takes",
    )
    _add_way_options(parser)
    parser.add_argument(
        "--markers",
        metavar="ADDRESS",
        help="send the pictures to the runtime's port of --markers, for ways that carry none; at --speed "
        "1, since the runtime compares their time with the volume's (--keys is then the presentation's "
        "folder)",
    )
    parser.add_argument(
        "--run-id", metavar="ID", help="name of the run (default: as in sub-01_ses-nsd01_task-nsdcore_run-01)"
    )
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="stop when standard input ends, which happens when the parent process dies",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="KIND=RATE",
        help="inject a fault into each volume with this probability; can be repeated. Faults of the "
        "scanner: drop, delay, reorder, stall, nan, spike; in transit, for tcp:// and ipc:// only: "
        "corrupt, duplicate, disconnect",
    )
    parser.add_argument(
        "--fault-seed", type=int, default=0, metavar="N", help="seed of the faults (default %(default)s)"
    )
    parser.set_defaults(command=_replay)


def _add_way_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--connect",
        default="tcp://127.0.0.1:5555",
        metavar="ADDRESS",
        help="where the volumes go, and how; on one machine it is the runtime's --source. tcp:// or "
        "ipc://: this project's own messages. pyneal+tcp://HOST:PORT: as Pyneal's scanner side. "
        "afni+tcp://HOST:PORT?data=PORT: as AFNI's Dimon (data port: default 7960). "
        "dicom://HOST:PORT?aet=NAME&format=FORMAT: to a DICOM node (C-STORE; format: default enhanced). "
        "folder:/path?format=FORMAT: files, with a format of nifti (the default), pair (.hdr and .img), "
        "mosaic, enhanced, classic, split (DICOM) or nifti-4d (one file, once the run is over). DICOM takes "
        "&dialect=NAME,...: echoes, phase, uids, no-csa, slice-major, shot-tr, from-6, subfolder, sbref, "
        "follow, rle; sim/dialects.py explains each (default %(default)s)",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="the scanner's folder made by `realtime keys` (default: the keys that `realtime serve` made for "
        "this user's programs on this machine; only tcp:// needs any)",
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="1 is the scan's pace, 8 is eight times as fast (default 1)"
    )


def _replay(arguments: argparse.Namespace) -> int:
    from nsd import Layout
    from sim.faults import draw_plan, parse_rates
    from sim.recording import RawRecording, Recording
    from sim.transmit import tell, transmit
    from sim.which_run import choose_run, warn_of_training

    if arguments.stop_with_stdin:
        threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    layout, subject = Layout(arguments.nsd), arguments.subject
    session, run = choose_run(layout, subject, arguments.session, arguments.run, tell)
    kind = RawRecording if arguments.raw else Recording
    with kind(layout, subject=subject, session=session, run=run, run_id=arguments.run_id) as recording:
        for note in recording.notes:
            tell(note)
        warn_of_training(recording.run, tell)
        return transmit(
            recording,
            recording.markers,
            address=arguments.connect,
            keys=arguments.keys,
            speed=arguments.speed,
            plan=draw_plan(parse_rates(arguments.fault), arguments.fault_seed, recording.start),
            markers_to=arguments.markers,
        )


def _exit_at_end_of_input() -> None:
    # Not sys.stdin, because a thread that waits in it blocks the interpreter's exit.
    while os.read(0, 4096):
        pass
    os._exit(130)  # the parent, which runs the runtime, is gone, so the run cannot be ended properly


def _add_play(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "play",
        help="play anyone's 4D NIfTI file, or a folder that a scanner has exported, at its TR",
        description="Play a recorded run through a runtime, as if it were acquired now. PATH is a 4D file "
        "that nibabel reads (NIfTI, PAR/REC), whose volumes are sent by any way that --connect knows. Or "
        "PATH is a folder that a scanner has exported: DICOM files, or NIfTI or PAR/REC files of one "
        "volume each. They are passed on as they are, into the folder that a runtime watches (--connect "
        "folder:/path) or to its DICOM node (--connect dicom://HOST:PORT): files of a volume together, "
        "volumes one TR apart, series in the order of their numbers, subfolders as they are. For example, "
        "in one terminal `realtime serve --source folder:watched --volumes 300`, in another `python "
        "-m sim play export/ --connect folder:watched`. Ctrl-C ends it.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a 4D file, or a folder of files")
    _add_way_options(parser)
    parser.add_argument(
        "--tr", type=float, metavar="SECONDS", help="TR, where headers do not say it or are wrong"
    )
    parser.add_argument(
        "--series",
        default="",
        metavar="TEXT",
        help="of a folder, play only series with this text in their name",
    )
    parser.add_argument(
        "--subject", type=int, default=1, help="subject number, for this project's own messages (default 1)"
    )
    parser.add_argument("--run-id", metavar="ID", help="name of the run (default: after the file)")
    parser.set_defaults(command=_play)


def _play(arguments: argparse.Namespace) -> int:
    from sim.play import play_file, play_folder

    if arguments.path.is_dir():
        return play_folder(
            arguments.path,
            address=arguments.connect,
            tr_s=arguments.tr,
            speed=arguments.speed,
            only=arguments.series,
        )
    return play_file(
        arguments.path,
        address=arguments.connect,
        keys=arguments.keys,
        tr_s=arguments.tr,
        speed=arguments.speed,
        subject=arguments.subject,
        run_id=arguments.run_id,
    )


def _add_excerpt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "excerpt",
        help="copy one run of a synthetic data set to a small data set",
        description="Copy one run with its ROI, design, motion, mean volume and raw side to a folder in "
        "the same layout. Pictures are omitted; replay draws them from the seed.",
    )
    _add_run_options(parser, 1, "")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="root of the new data set")
    parser.set_defaults(command=_excerpt)


def _excerpt(arguments: argparse.Namespace) -> int:
    from sim.excerpt import excerpt

    numbers = {"subject": arguments.subject, "session": arguments.session, "run": arguments.run}
    written = excerpt(arguments.nsd, arguments.out, **numbers)
    n_bytes = sum(path.stat().st_size for path in written)
    print(f"{arguments.out}: {len(written)} files, {n_bytes / 1e6:.1f} MB")
    return 0


def _add_betas(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "betas",
        help="estimate single-trial responses of a synthetic subject from its recorded runs",
        description="Estimate each voxel's response to each presentation from the recorded runs, and write "
        "one file per session in the layout of NSD's betas_fithrf_GLMdenoise_RR. Each voxel uses the "
        "haemodynamic response of a small library that explains its runs best. Ridge regression shrinks "
        "trials towards the voxel's mean response; the penalty is chosen by how well a trial predicts the "
        "same picture in another run. Slow drifts are removed; noise components (GLMdenoise) are not. "
        "Z-score the betas within each session before use. Files store int16, 300 times percent signal "
        "change, [x, y, z, 750 trials], with 0 outside the region of interest; nsd.read_betas reads them. "
        "Existing files are kept, so an interrupted command continues when it is run again. A session of "
        "2 000 voxels takes about 1 s and 3 MB.",
    )
    parser.add_argument("--nsd", type=Path, required=True, metavar="DIR", help="root of a synthetic data set")
    parser.add_argument("--subject", type=int, default=1, help="subject number (default 1)")
    parser.add_argument(
        "--sessions",
        type=int,
        metavar="N",
        help="estimate sessions 1 to N (default: all sessions with their 12 task runs on disk)",
    )
    parser.set_defaults(command=_betas)


def _betas(arguments: argparse.Namespace) -> int:
    from sim.betas import write_betas

    written, kept = write_betas(arguments.nsd, subject=arguments.subject, n_sessions=arguments.sessions)
    print(f"single-trial responses: {len(written)} sessions written, {len(kept)} existed already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
