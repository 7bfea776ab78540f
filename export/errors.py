"""Errors of the export. They have one base class, so that a command can catch and print them."""


class ExportError(Exception):
    """An error that the user can act on: it says what was expected, what was found and what to do."""
