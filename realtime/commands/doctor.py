"""``realtime doctor``."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from realtime.commands.engines import add_measured_bundle, print_found
from realtime.commands.keys import add_keys_option
from realtime.commands.options import add_out_option
from realtime.commands.registration import add_registration_options, registration
from realtime.commands.signers import trust_of
from realtime.commands.sources import add_source_options, source_options
from realtime.errors import EngineError

if TYPE_CHECKING:
    from realtime.bundle.bundle import Bundle
    from realtime.service.preflight import Preflight

_DOCTOR = """\
Show what can decode a bundle on this machine: which engines run and why the others do not, how long a step
takes on each, which of the bundle's samplers fits into a TR, and how much memory and disk space is free. Each
engine that can run is opened and measured, which takes seconds for a small model and minutes for a full-size
one on a CPU. Run it before the scan, with the bundle and on the machine that will serve.

With --source, and the other options of `realtime serve`, it first listens to a test scan: whether anything
speaks there, whether such a run would be accepted, how the head lies, whether markers come, and for how many
hours there is room on the disk. Nothing is recorded. The exit code is 1 where a run would fail.
"""


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``doctor``."""
    parser = commands.add_parser(
        "doctor",
        help="what can decode a bundle here, how fast, and whether a scan would be taken",
        description=_DOCTOR,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_measured_bundle(parser)
    add_out_option(parser)
    add_source_options(parser, None)
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="with --source: listen for so many seconds at most (default %(default)g)",
    )
    add_registration_options(parser)
    add_keys_option(parser)
    parser.set_defaults(command=_doctor)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text}")
    return seconds


def _doctor(arguments: argparse.Namespace) -> int:
    from realtime.bundle.bundle import Bundle
    from realtime.bundle.locate import choose_bundle
    from realtime.decoding import doctor

    folder, _ = choose_bundle(arguments.bundle, None)
    bundle = Bundle.open(folder, trust_of(arguments))
    heard = _preflight(bundle, arguments) if arguments.source else None
    found = doctor.diagnose(bundle, arguments.out, heard.volumes.tr_s if heard and heard.volumes else None)
    _print(found, doctor.lines(found), heard, as_json=arguments.json)
    if not found.engine:
        raise EngineError(
            "expected an engine that runs this bundle here, found none; the lines above say why each does not"
        )
    return 1 if heard and heard.problems else 0


def _preflight(bundle: Bundle, arguments: argparse.Namespace) -> Preflight:
    from realtime.service.keys import keys_for
    from realtime.service.preflight import Options, check

    options = Options(
        source=arguments.source,
        source_options=source_options(arguments),
        keys=keys_for(arguments.keys, (arguments.source, arguments.markers)),
        registration=registration(arguments),
        registers_all=arguments.register_all,
        resamples=arguments.resample,
        out=arguments.out,
        wait_s=arguments.wait,
    )
    return check(bundle, options, lambda line: print(line, file=sys.stderr, flush=True))


def _print(found: object, lines: list[str], heard: Preflight | None, *, as_json: bool) -> None:
    if heard is None:
        print_found(found, lines, as_json=as_json)
        return
    import msgspec

    from realtime.logs import escaped
    from realtime.service import preflight

    both = msgspec.to_builtins(found) | {"preflight": msgspec.to_builtins(heard)}
    print_found(both, [*lines, "", *map(escaped, preflight.lines(heard))], as_json=as_json)
