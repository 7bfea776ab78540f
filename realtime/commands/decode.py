"""``realtime decode``."""

from __future__ import annotations

import argparse

from realtime.commands.keys import add_keys_option
from realtime.commands.options import add_bundle_options, add_decoder_options
from realtime.commands.signers import add_signer_options, trust_of
from realtime.commands.supervised import add_supervised_option, configure_log


def add_decode(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "decode",
        help="decode what a recorder takes",
        description="Decode the runs that `realtime record` takes, until Ctrl-C. This is the second of the\n"
        "three processes of `realtime serve`. Of a run under way, it decodes the newest window first.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bundle_options(parser)
    add_decoder_options(parser)
    add_signer_options(parser)
    add_keys_option(parser)
    add_supervised_option(parser)
    parser.set_defaults(command=_decode)


def _decode(arguments: argparse.Namespace) -> None:
    from realtime.bundle.locate import choose_bundle, is_shipped
    from realtime.service.decode import Options, decode

    configure_log(arguments)
    bundle, _ = choose_bundle(arguments.bundle, arguments.subject)
    decode(
        Options(
            bundle=bundle,
            bundle_is_demo=is_shipped(bundle),
            trust=trust_of(arguments),
            out=arguments.out,
            engine=arguments.engine,
            sampler=arguments.sampler,
            show_faces=arguments.show_faces,
            carry=arguments.statistics == "carry",
            seal_to=tuple(arguments.seal_to),
            keys=arguments.keys,
            publish=arguments.publish,
            is_supervised=arguments.supervised,
        )
    )
