"""The runtime: takes a scanner's volumes, decodes at every TR, shows and records the result.

What a notebook needs is here; each name is imported when it is first used, so that ``import realtime`` costs
nothing. The scanner's messages are in :mod:`realtime.wire`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realtime.bundle.bundle import Bundle
    from realtime.bundle.locate import demo_data
    from realtime.decoding.decoder import Decoded, Decoder
    from realtime.decoding.engines.choose import open_engine
    from realtime.errors import RealtimeError
    from realtime.preprocessing.stream import Pushed, StreamingPreprocessor
    from realtime.record.reader import Recorded, read_recorded

__all__ = [
    "Bundle",
    "Decoded",
    "Decoder",
    "Pushed",
    "RealtimeError",
    "Recorded",
    "StreamingPreprocessor",
    "demo_data",
    "open_engine",
    "read_recorded",
]
_MODULES = {
    "Bundle": "realtime.bundle.bundle",
    "Decoded": "realtime.decoding.decoder",
    "Decoder": "realtime.decoding.decoder",
    "Pushed": "realtime.preprocessing.stream",
    "RealtimeError": "realtime.errors",
    "Recorded": "realtime.record.reader",
    "StreamingPreprocessor": "realtime.preprocessing.stream",
    "demo_data": "realtime.bundle.locate",
    "open_engine": "realtime.decoding.engines.choose",
    "read_recorded": "realtime.record.reader",
}


if not TYPE_CHECKING:  # a type checker would take every name for one of the package's

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
