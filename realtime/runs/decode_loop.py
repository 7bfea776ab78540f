"""The decode loop: takes each window of a run when it is ready and makes frames, on one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Protocol

from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder
from realtime.decoding.pace import MARGIN_TR, SPECIALISED_MARGIN_TR, left_s
from realtime.errors import EngineError
from realtime.events import Event
from realtime.runs.queue import Ready
from realtime.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Decode:
    """What to do with a window next: let a decoder make a frame of it."""

    decoder: str
    sampler: Sampler


@dataclass(frozen=True, kw_only=True)
class Skip:
    """What to do with a window next: leave out every decoder that has not had it."""

    reason: str


class Policy(Protocol):
    """Decides what is made of each window."""

    def next(self, run: Run, ready: Ready) -> Decode | Skip | None:
        """The next thing to do with a window; None when all is done."""
        ...

    def failed(self, run: Run, ready: Ready, error: EngineError) -> None:
        """A decode has failed. :raises EngineError: where the run must not go on without it"""
        ...


class DecodeLoop:
    """Makes frames of windows.

    :param decoders: the bundle's, in its order
    :param send: takes every frame the moment it is decoded
    :param worker: the one thread on which the decoders were made, where that matters to their engine
    """

    def __init__(
        self,
        decoders: Sequence[Decoder],
        policy: Policy,
        send: Callable[[Event], None],
        worker: ThreadPoolExecutor | None = None,
    ) -> None:
        self._decoders = {decoder.spec.name: decoder for decoder in decoders}
        self._policy = policy
        self._send = send
        self._worker = worker or ThreadPoolExecutor(1, thread_name_prefix="decode")

    async def decode_waiting(self, run: Run) -> None:
        """Decode until no window waits."""
        while ready := run.queue.take():
            await self._decode(run, ready)

    def stop(self) -> None:
        """Wait for the decode under way and end the thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def _decode(self, run: Run, ready: Ready) -> None:
        while todo := self._policy.next(run, ready):
            if isinstance(todo, Skip):
                run.skip(ready.volume, todo.reason)
                return
            try:
                await self._make_frame(run, ready, self._decoders[todo.decoder], todo.sampler)
            except EngineError as error:
                self._policy.failed(run, ready, error)

    async def _make_frame(self, run: Run, ready: Ready, decoder: Decoder, sampler: Sampler) -> None:
        decode = partial(decoder.decode, run.region.windows[decoder.spec.name].of(ready.window), sampler)
        decoded = await asyncio.get_running_loop().run_in_executor(self._worker, decode)
        frame = run.frame(ready, decoder.spec, sampler.name, decoded.stages_ms)
        self._send(Event(frame, image=decoded.image))
        run.record(frame, decoded.image, ready.repaired_voxels)


class ByDeadline:
    """Each decode takes the best sampler for which there is time before the next volume.

    :param decoders: the bundle's, in its order: the first decodes every volume
    :param samplers: the bundle's, best first
    :param sampler: the one to decode everything with instead
    """

    def __init__(
        self, decoders: Sequence[Decoder], samplers: Sequence[Sampler], sampler: Sampler | None
    ) -> None:
        self._first = decoders[0]
        self._decoders = {decoder.spec.name: decoder for decoder in decoders}
        self._samplers = samplers
        self._fixed_sampler = sampler
        self._told_sampler = sampler or samplers[0]
        """The sampler that the operator knows to be in use."""

    def next(self, run: Run, ready: Ready) -> Decode | Skip | None:
        """The decoders that are due at a volume, the bundle's first before the others.

        Each may take an equal share of the time that is left when its turn comes. A specialised decoder is
        left out where there is none; so are those after it.
        """
        due = run.due(ready.volume)
        if not due:
            return None
        decoder = self._decoders[due[0].name]
        if decoder is self._first:
            sampler = self._choose_for_every_volume(run, ready, len(due))
        elif run.queue.is_waiting:
            return Skip(reason="a newer window was ready before its decode began")
        else:
            sampler = self._choose(decoder, self._left_s(run, ready, SPECIALISED_MARGIN_TR) / len(due))
            if decoder.pace.decode_s(sampler) > self._left_s(run, ready):
                return Skip(reason="there was no time left before the next volume")
        return Decode(decoder=decoder.spec.name, sampler=sampler)

    def failed(self, run: Run, ready: Ready, error: EngineError) -> None:
        """The next window may succeed."""
        run.skip(ready.volume, f"its decode failed: {error}")

    def _choose_for_every_volume(self, run: Run, ready: Ready, n_decodes: int) -> Sampler:
        """The first decoder's sampler; the operator is told when it is another than for the volume before.

        Volumes at which specialised decoders are due come and go: of those the operator is not told.
        """
        time_s = self._left_s(run, ready) / n_decodes
        chosen = self._choose(self._first, time_s)
        if n_decodes == 1:
            if chosen != self._told_sampler:
                best, pace = self._samplers[0], self._first.pace
                run.tell(
                    f"decoding with {chosen.name} from volume {ready.volume} on: it takes "
                    f"{pace.decode_s(chosen):.2f} s, {best.name} {pace.decode_s(best):.2f} s, "
                    f"and {max(time_s, 0):.2f} s are left"
                )
            self._told_sampler = chosen
        return chosen

    def _choose(self, decoder: Decoder, time_s: float) -> Sampler:
        return self._fixed_sampler or decoder.pace.choose(self._samplers, time_s)

    def _left_s(self, run: Run, ready: Ready, margin_tr: float = MARGIN_TR) -> float:
        return left_s(ready.arrival.received_s, perf_counter(), run.start.tr_s, margin_tr)
