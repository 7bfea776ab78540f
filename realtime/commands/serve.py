"""``realtime serve``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from realtime.commands.engines import say
from realtime.commands.keys import add_keys_option, add_page_options
from realtime.commands.options import add_running_options
from realtime.commands.signers import add_signer_options, trust_of
from realtime.commands.sources import add_source_options, source_options


def add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="decode the runs that a scanner sends",
        description="Decode the runs that a scanner sends, one after the other, until Ctrl-C. A run that\n"
        "was left open, by a crash or a stop, is resumed when serve starts again with the same --out.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--subject", type=int, metavar="N", help="number of the subject (default: the bundle's subject)"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="the subject's bundle (default: ./bundles/sub-NN, that of subject 1 without --subject; if there "
        "is none, the shipped demo bundle, which is of subject 1)",
    )
    add_signer_options(parser)
    add_source_options(parser)
    add_keys_option(parser)
    parser.add_argument(
        "--publish",
        metavar="ADDRESS",
        help="send every frame to programs that subscribe here, such as tcp://127.0.0.1:5556 "
        "(default: nowhere)",
    )
    add_page_options(parser)
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="format of the log on standard error: text, or one JSON object per line (default %(default)s)",
    )
    parser.add_argument(
        "--statistics",
        choices=("reset", "carry"),
        default="reset",
        help="the statistics that z-score the first volumes of a run: reset takes the bundle's prior, carry "
        "those at the end of the last closed run in --out (default %(default)s)",
    )
    add_running_options(parser, opens=False)
    parser.set_defaults(command=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    from realtime import logs
    from realtime.bundle.locate import choose_bundle
    from realtime.service.serve import serve
    from realtime.service.service import Options

    logs.configure(arguments.log_format, logging.INFO)
    bundle, is_demo = choose_bundle(arguments.bundle, arguments.subject)
    options = Options(
        bundle=bundle,
        bundle_is_demo=is_demo,
        trust=trust_of(arguments),
        source=arguments.source,
        source_options=source_options(arguments),
        port=None if arguments.headless else arguments.port,
        out=arguments.out,
        engine=arguments.engine,
        sampler=arguments.sampler,
        show_faces=arguments.show_faces,
        keys=arguments.keys,
        publish=arguments.publish,
        page_host=arguments.page_host,
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        carry=arguments.statistics == "carry",
    )
    serve(options, open_browser=arguments.open, tell=say)
