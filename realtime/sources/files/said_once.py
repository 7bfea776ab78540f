"""Tells each thing of a folder once, however many files it is true of."""

from __future__ import annotations

import logging
from pathlib import Path

MOST_SAID = 1_000
"""So many different things are told; beyond that, a folder of damaged files would fill log and memory."""


class SaidOnce:
    """What was told of a folder."""

    def __init__(self, log: logging.Logger, folder: Path) -> None:
        self._log = log
        self._folder = folder
        self._said: set[str] = set()

    def __call__(self, what: str, text: str, *arguments: object, level: int = logging.INFO) -> None:
        """Log a text, unless one of the same ``what`` was logged."""
        if what in self._said or len(self._said) > MOST_SAID:
            return
        self._said.add(what)
        if len(self._said) > MOST_SAID:
            self._log.warning(
                "%d kinds of files were told; what else is ignored is not told until the next start. Look at "
                "what is written into %s",
                MOST_SAID,
                self._folder,
            )
        else:
            self._log.log(level, text, *arguments)
