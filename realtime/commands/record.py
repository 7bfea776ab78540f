"""``realtime record``."""

from __future__ import annotations

import argparse

from realtime.commands.keys import add_keys_option
from realtime.commands.options import add_bundle_options, add_recorder_options
from realtime.commands.registration import registration
from realtime.commands.sources import source_options
from realtime.commands.supervised import add_supervised_option, configure_log


def add_record(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "record",
        help="take the runs that a scanner sends, without decoding them",
        description="Record the runs that a scanner sends, until Ctrl-C. This is the first of the three\n"
        "processes of `realtime serve`; start it alone where a supervisor such as systemd watches it.\n"
        "`realtime decode` with the same --out decodes what it records, while it does.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bundle_options(parser)
    add_recorder_options(parser)
    add_keys_option(parser)
    add_supervised_option(parser)
    parser.set_defaults(command=_record)


def _record(arguments: argparse.Namespace) -> None:
    from realtime.bundle.locate import choose_bundle
    from realtime.service.record import Options, record

    configure_log(arguments)
    bundle, _ = choose_bundle(arguments.bundle, arguments.subject)
    record(
        Options(
            bundle=bundle,
            source=arguments.source,
            source_options=source_options(arguments),
            out=arguments.out,
            fallback_out=arguments.fallback_out,
            registration=registration(arguments),
            registers_all=arguments.register_all,
            resamples=arguments.resample,
            keys=arguments.keys,
            is_supervised=arguments.supervised,
        )
    )
