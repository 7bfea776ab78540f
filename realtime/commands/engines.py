"""The commands ``realtime doctor`` and ``realtime bench``, and the options for engines of other commands."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from realtime.commands.signers import add_signer_options, trust_of
from realtime.errors import EngineError

say = partial(print, flush=True)
"""Print a line for the operator at once."""

NAMES = "tensorrt, onnxruntime-cuda, openvino, openvino-bf16, onnxruntime-cpu"
_DOCTOR = """\
Show what can decode a bundle on this machine: which engines run and why the others do not, how long a step
takes on each, which of the bundle's samplers fits into a TR, and how much memory and disk space is free. Each
engine that can run is opened and measured, which takes seconds for a small model and minutes for a full-size
one on a CPU. Run it before the scan, with the bundle and on the machine that will serve.
"""
_BENCH = """\
Measure whole decodes with every engine that can run here and every sampler of the bundle. A sampler whose
95th percentile is below the TR keeps up with the scanner. `realtime serve` chooses a sampler at every volume:
the best that is expected to leave a tenth of the TR free, or the one given as --sampler. Run nothing else
meanwhile.
"""


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``doctor``."""
    parser = commands.add_parser(
        "doctor", help="what can decode a bundle here, and how fast", description=_DOCTOR
    )
    _add_bundle(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where runs would be recorded; the free space of its disk is shown (default ./runs)",
    )
    parser.set_defaults(command=_doctor)


def add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``bench``."""
    parser = commands.add_parser("bench", help="time decodes for engines and samplers", description=_BENCH)
    _add_bundle(parser)
    parser.add_argument(
        "--engine",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"which engines: {NAMES} (default: every one that can run here)",
    )
    parser.add_argument(
        "--sampler", nargs="+", default=[], metavar="NAME", help="which samplers (default: all)"
    )
    parser.add_argument(
        "-n", type=_positive, default=20, help="decodes of each sampler on each engine (default %(default)s)"
    )
    parser.set_defaults(command=_bench)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and ``--sampler`` to a command that decodes."""
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="NAME",
        help=f"what decodes: {NAMES}; by default the first that can run here except openvino-bf16, whose "
        "pictures differ a little (see `realtime doctor`)",
    )
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help="the bundle's sampler to decode with (default: at each volume the best for which there is time)",
    )


def add_faces_option(
    parser: argparse.ArgumentParser,
    default: str = "by default they are blurred on the page, in published messages and in the run folder",
) -> None:
    """Add ``--show-faces`` to a command that decodes."""
    parser.add_argument(
        "--show-faces", action="store_true", help=f"do not blur faces in the frames; {default}"
    )


def _add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="the bundle (default: ./bundles/sub-01, else the shipped demo bundle)",
    )
    add_signer_options(parser)
    parser.add_argument("--json", action="store_true", help="for programs: JSON in place of text")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def _doctor(arguments: argparse.Namespace) -> None:
    from realtime.bundle.bundle import Bundle
    from realtime.bundle.locate import choose_bundle
    from realtime.decoding import doctor

    folder, _ = choose_bundle(arguments.bundle, None)
    found = doctor.diagnose(Bundle.open(folder, trust_of(arguments)), arguments.out)
    _print(found, doctor.lines(found), as_json=arguments.json)
    if not found.engine:
        raise EngineError(
            "expected an engine that runs this bundle here, found none; the lines above say why each does not"
        )


def _bench(arguments: argparse.Namespace) -> None:
    from realtime.bundle.bundle import Bundle
    from realtime.bundle.locate import choose_bundle
    from realtime.decoding import bench

    folder, _ = choose_bundle(arguments.bundle, None)
    bundle = Bundle.open(folder, trust_of(arguments))
    samplers = [bundle.sampler(name) for name in arguments.sampler] or bundle.spec.samplers
    tell = (lambda line: None) if arguments.json else say
    found = bench.bench(bundle, arguments.engine, samplers, arguments.n, tell)
    _print(found, bench.lines(found), as_json=arguments.json)


def _print(found: object, lines: list[str], *, as_json: bool) -> None:
    import msgspec

    if as_json:
        say(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        for line in lines:
            say(line)
