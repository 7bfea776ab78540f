"""The command ``realtime bench``, and the options for engines of other commands."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from realtime.commands.signers import add_signer_options, trust_of

say = partial(print, flush=True)
"""Print a line for the operator at once."""

NAMES = "tensorrt, onnxruntime-cuda, openvino, openvino-bf16, onnxruntime-cpu"
_BENCH = """\
Measure whole decodes with every engine that can run here and every sampler of the bundle. A sampler whose
95th percentile is below the TR keeps up with the scanner. `realtime serve` chooses a sampler at every volume:
the best that is expected to leave a tenth of the TR free, or the one given as --sampler. Run nothing else
meanwhile.
"""


def add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``bench``."""
    parser = commands.add_parser("bench", help="time decodes for engines and samplers", description=_BENCH)
    add_measured_bundle(parser)
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
        help=f"what decodes: {NAMES}; by default the one that decodes fastest here, a GPU's before the CPU's "
        "(see `realtime doctor`); never openvino-bf16, whose pictures differ a little",
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


def add_measured_bundle(parser: argparse.ArgumentParser) -> None:
    """Add which bundle is measured, and in which form that is told."""
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


def _bench(arguments: argparse.Namespace) -> None:
    from realtime.bundle.bundle import Bundle
    from realtime.bundle.locate import choose_bundle
    from realtime.decoding import bench

    folder, _ = choose_bundle(arguments.bundle, None)
    bundle = Bundle.open(folder, trust_of(arguments))
    samplers = [bundle.sampler(name) for name in arguments.sampler] or bundle.spec.samplers
    tell = (lambda line: None) if arguments.json else say
    found = bench.bench(bundle, arguments.engine, samplers, arguments.n, tell)
    print_found(found, bench.lines(found), as_json=arguments.json)


def print_found(found: object, lines: list[str], *, as_json: bool) -> None:
    """Print what was found, for people or for programs."""
    import msgspec

    if as_json:
        say(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        for line in lines:
            say(line)
