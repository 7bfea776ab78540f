"""The decode loop: takes each window of the open run when it is ready and makes frames, on one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter

from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder
from realtime.decoding.pace import MARGIN_TR, SPECIALISED_MARGIN_TR, left_s
from realtime.errors import EngineError
from realtime.events import Event
from realtime.runs.run import Ready, Run


class DecodeLoop:
    """Decodes until it is cancelled.

    :param decoders: the bundle's, in its order: the first decodes every volume
    :param samplers: the bundle's, best first; each decode takes the best for which there is time
    :param sampler: the one to decode everything with instead
    :param open_run: gives the run that is open now, if any
    :param send: takes every frame the moment it is decoded
    :param decoded: is called after each window
    :param worker: the one thread on which the decoders were made, where that matters to their engine
    """

    def __init__(
        self,
        decoders: Sequence[Decoder],
        samplers: Sequence[Sampler],
        sampler: Sampler | None,
        *,
        open_run: Callable[[], Run | None],
        send: Callable[[Event], None],
        decoded: Callable[[Run], None],
        worker: ThreadPoolExecutor | None = None,
    ) -> None:
        self._first = decoders[0]
        self._decoders = {decoder.spec.name: decoder for decoder in decoders}
        self._samplers = samplers
        self._fixed_sampler = sampler
        self._told_sampler = sampler or samplers[0]
        """The sampler that the operator knows to be in use."""
        self._open_run = open_run
        self._send = send
        self._decoded = decoded
        self._worker = worker or ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()

    async def run(self) -> None:
        """Decode what is ready, whenever :meth:`wake` says that something may be."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (run := self._open_run()) and (ready := run.queue.take()):
                await self._decode(run, ready)
                run.queue.done()
                self._decoded(run)
            self._drained.set()

    def wake(self) -> None:
        """Look whether a window is ready."""
        self._wake.set()

    async def drain(self, run: Run) -> None:
        """Return once the open run has no window left to decode."""
        while not run.queue.idle:
            self._drained.clear()
            self._wake.set()
            await self._drained.wait()

    def stop(self) -> None:
        """Once :meth:`run` is over: wait for the decode under way and end the thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def _decode(self, run: Run, ready: Ready) -> None:
        """Make a frame by each decoder that is due at a volume, the bundle's first decoder before the others.

        Each may take an equal share of the time that is left when its turn comes. A specialised decoder is
        left out where there is none; so are those after it.
        """
        while due := run.due(ready.volume):
            decoder = self._decoders[due[0].name]
            if decoder is self._first:
                sampler = self._choose_for_every_volume(run, ready, len(due))
            elif run.queue.is_waiting:
                run.skip(ready.volume, "a newer window was ready before its decode began")
                return
            else:
                sampler = self._choose(decoder, self._left_s(run, ready, SPECIALISED_MARGIN_TR) / len(due))
                if decoder.pace.decode_s(sampler) > self._left_s(run, ready):
                    run.skip(ready.volume, "there was no time left before the next volume")
                    return
            try:
                await self._make_frame(run, ready, decoder, sampler)
            except EngineError as error:
                run.skip(ready.volume, f"its decode failed: {error}")
                return

    async def _make_frame(self, run: Run, ready: Ready, decoder: Decoder, sampler: Sampler) -> None:
        decode = partial(decoder.decode, ready.window_of(decoder.spec), sampler)
        decoded = await asyncio.get_running_loop().run_in_executor(self._worker, decode)
        frame = run.frame(ready, decoder.spec, sampler.name, decoded.stages_ms)
        self._send(Event(frame, image=decoded.image))
        run.record(frame, decoded.image, ready.repaired_voxels)

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
