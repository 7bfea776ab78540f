"""``realtime serve``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from realtime.commands.engines import say
from realtime.commands.keys import add_keys_option
from realtime.commands.options import (
    add_bundle_options,
    add_decoder_options,
    add_recorder_options,
    add_screen_options,
    add_viewer_options,
)
from realtime.commands.signers import add_signer_options
from realtime.commands.supervised import arguments_of


def add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="decode the runs that a scanner sends",
        description="Decode the runs that a scanner sends, one after the other, until Ctrl-C. A run that\n"
        "was left open, by a crash or a stop, is resumed when serve starts again with the same --out.\n\n"
        "It runs three processes, and starts one that dies again: `realtime record` takes volumes,\n"
        "`realtime decode` makes frames of them, `realtime page` shows these. Each can be started alone.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bundle_options(parser)
    add_recorder_options(parser)
    add_keys_option(parser)
    add_decoder_options(parser)
    add_signer_options(parser)
    add_viewer_options(parser)
    add_screen_options(parser, opens=False)
    parser.set_defaults(command=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    from realtime import logs
    from realtime.bundle.locate import choose_bundle
    from realtime.service.keys import check_keys_are_needed
    from realtime.service.process import Role
    from realtime.service.serve import serve

    logs.configure(arguments.log_format, logging.INFO)
    ports = (arguments.source, arguments.markers, arguments.publish)
    check_keys_are_needed(arguments.keys, arguments.source, ports)
    arguments.bundle, _ = choose_bundle(arguments.bundle, arguments.subject)
    arguments.subject = None
    common = arguments_of(add_bundle_options, arguments)
    keys = arguments_of(add_keys_option, arguments)
    processes: dict[Role, Sequence[str]] = {
        "record": [*common, *keys, *arguments_of(add_recorder_options, arguments)],
        "decode": [
            *common,
            *keys,
            *arguments_of(add_signer_options, arguments),
            *arguments_of(add_decoder_options, arguments),
        ],
    }
    if not arguments.headless:
        processes["page"] = [*common, *arguments_of(add_viewer_options, arguments)]
    serve(processes, arguments.out, open_browser=arguments.open, tell=say)
