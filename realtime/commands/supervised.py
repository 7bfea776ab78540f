"""The arguments of the processes that ``serve`` and ``demo`` start: subcommands with options of their own."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable


def add_supervised_option(parser: argparse.ArgumentParser) -> None:
    """Add what is for the process that starts this one."""
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quiet", action="store_true", help=argparse.SUPPRESS)


def configure_log(arguments: argparse.Namespace) -> None:
    """Log as the options say; with ``--quiet``, warnings only and without times, as in a demo's terminal."""
    from realtime import logs

    if arguments.quiet:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
    else:
        logs.configure(arguments.log_format, logging.INFO)


def arguments_of(
    add_options: Callable[[argparse.ArgumentParser], None], arguments: argparse.Namespace
) -> list[str]:
    """The command line of a subcommand with the options that were given to another.

    :param add_options: adds the subcommand's options
    :param arguments: of a subcommand that has the same options, among others
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    line = []
    for action in parser._actions:
        value = getattr(arguments, action.dest, action.default)
        if value == action.default or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        for each in values:
            line += [action.option_strings[0]] if action.nargs == 0 else [action.option_strings[0], str(each)]
    return line
