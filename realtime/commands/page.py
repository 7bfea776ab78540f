"""``realtime page``."""

from __future__ import annotations

import argparse
import os

from realtime.commands.options import add_bundle_options, add_viewer_options
from realtime.commands.supervised import add_supervised_option, configure_log


def add_page(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "page",
        help="show what is decoded in a browser",
        description="Show the runs that `realtime decode` decodes, until Ctrl-C. This is the third of the\n"
        "three processes of `realtime serve`. A token from the environment variable REALTIME_PAGE_TOKEN\n"
        "stays the same when the page is started again; without it a new one is drawn.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bundle_options(parser)
    add_viewer_options(parser)
    add_supervised_option(parser)
    parser.set_defaults(command=_page)


def _page(arguments: argparse.Namespace) -> None:
    from realtime.bundle.locate import choose_bundle, is_shipped
    from realtime.service.page import Options, page
    from realtime.service.serve import TOKEN_VARIABLE

    configure_log(arguments)
    bundle, _ = choose_bundle(arguments.bundle, arguments.subject)
    page(
        Options(
            bundle=bundle,
            bundle_is_demo=is_shipped(bundle),
            out=arguments.out,
            port=arguments.port,
            page_host=arguments.page_host,
            tls_cert=arguments.tls_cert,
            tls_key=arguments.tls_key,
            token=os.environ.get(TOKEN_VARIABLE),
            is_supervised=arguments.supervised,
        )
    )
