"""Errors of the export: one root, so that a command can catch what it can explain."""


class ExportError(Exception):
    """Anything the export can name: says what was expected, what came and what to do."""
