"""Opens a bundle's decoders on an engine, on the one thread that will use it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import Ranking, open_and_use
from realtime.decoding.engines.contract import Engine
from realtime.decoding.faces import FaceBlur
from realtime.decoding.rank import rank
from realtime.decoding.trial import try_bundle


@dataclass(frozen=True, kw_only=True)
class OpenDecoders:
    """All decoders of a bundle."""

    decoders: list[Decoder]
    """In the bundle's order."""
    engine_name: str
    """As ``--engine`` takes it."""
    engine_description: str
    reason: str
    """Why this engine, in words; empty where it was asked for, or there was no choice."""
    worker: ThreadPoolExecutor
    """The thread that opened the engine, and must use it."""


def open_decoders(
    bundle: Bundle, engine: str, seed: int, *, blurs_faces: bool, begun_on: str = ""
) -> OpenDecoders:
    """Open an engine, and on it every decoder of the bundle.

    :param engine: one of :data:`realtime.decoding.engines.choose.ENGINES`
    :param seed: of the initial noise
    :param begun_on: the engine of a run that is gone on with; ``auto`` keeps to it
    :raises EngineError: when the engine does not run here, or a graph does not run in time
    """
    blur = FaceBlur() if blurs_faces else None

    def make(opened: Engine) -> list[Decoder]:
        return [Decoder(bundle, opened, seed, each.name, blur) for each in bundle.spec.decoders]

    ranking, reason = Ranking(), ""
    if engine == "auto":
        ranked = rank(bundle, begun_on)
        ranking, reason = ranked.ranking, ranked.reason
    else:
        try_bundle(bundle, engine)
    worker = ThreadPoolExecutor(1, thread_name_prefix="decode")
    with _ended_by_ctrl_c():
        name, opened, decoders = worker.submit(open_and_use, bundle, engine, make, None, ranking).result()
    return OpenDecoders(
        decoders=decoders,
        engine_name=name,
        engine_description=opened.description,
        reason=reason,
        worker=worker,
    )


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once, without waiting for an engine that loads on another thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
