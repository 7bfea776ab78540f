"""What recorder and decoder tell their listeners (page, publisher, metrics): status, frames, pictures shown.

The processes of a runtime send each other these events (:mod:`realtime.network.channel`); within a process a
:class:`Broadcast` hands them on. A listener gets every event in order through a bounded queue. One that does
not keep up loses the oldest events, never the newest, and the sender never waits for it. A function that
returns at once, such as one that hands a message to a socket that does not block, can be called directly.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

VolumeState = Literal["decoded", "warming", "censored", "skipped", "missing"]
STATES: tuple[VolumeState, ...] = get_args(VolumeState)

State = Literal["waiting", "warming", "trusted", "stale", "ended"]
"""waiting for a scanner; warming up; trusted; no volume for more than 3 TR in an open run; run ended.

*Trusted* are a run's statistics, not its frames: it says nothing of how well the decoder decodes. People read
:data:`STATE_WORDS`.
"""
STATE_WORDS: dict[State, str] = {
    "waiting": "waiting",
    "warming": "warming",
    "trusted": "settled",
    "stale": "stale",
    "ended": "ended",
}


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The account of a run so far; once it has ended, the last five add up to ``planned``."""

    planned: int = 0
    received: int = 0
    decoded: int = 0
    warming: int = 0
    censored: int = 0
    skipped: int = 0
    missing: int = 0


class DecoderUsed(msgspec.Struct, frozen=True, kw_only=True):
    """One of the bundle's decoders.

    The bundle's first decoder, the general one, decodes every volume. The others are specialised: of every
    picture, each decodes the one window that ends ``window_delay_volumes`` after the picture's onset.
    """

    name: str
    window_delay_volumes: int
    """Volumes of the scanner from a picture's onset to the last volume of the window that shows it."""
    added_delay_s: float = 0.0
    """In a run that is resampled in time: by how much that volume is later than the window's end."""


class Motion(msgspec.Struct, frozen=True, kw_only=True):
    """Where the head lies at a volume, against the run's first (see :mod:`realtime.registration.rigid`)."""

    trans_x: float
    """mm to the right; y to the front, z to the top."""
    trans_y: float
    trans_z: float
    rot_x: float
    """rad, about the axis that points to the right; then y and z."""
    rot_y: float
    rot_z: float
    framewise_displacement: float | None
    """mm since the volume before (Power et al. 2012); None where that one was not registered."""
    rmsd: float | None
    """mm since the volume before, RMS over a sphere of 80 mm (Jenkinson 1999)."""

    def in_mm(self) -> tuple[float, ...]:
        """The six parameters, rotations as arcs on a sphere of 50 mm: numbers of one size."""
        turns = (self.rot_x, self.rot_y, self.rot_z)
        return (self.trans_x, self.trans_y, self.trans_z, *(50.0 * turn for turn in turns))


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """What one volume is like: columns of the confounds table (:mod:`realtime.record.tables`)."""

    volume: int
    motion: Motion | None = None
    """None where volumes are not registered, or this one could not be."""
    dvars: float | None = None
    global_signal: float | None = None
    tsnr: float | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status", tag_field="kind"):
    """The state of the run; sent on every change, and first to every new listener."""

    state: State
    run_id: str | None
    subject: int | None
    volume: int | None
    counts: Counts
    tr_s: float
    decode_delay_s: float
    """From a picture's onset to the end of its window: the haemodynamic response, not compute."""
    bundle_name: str
    bundle_sha256: str
    bundle_is_demo: bool
    decoders: tuple[DecoderUsed, ...]
    """In the bundle's order, the general one first."""
    run_folder: str | None
    decoding_quality: str = ""
    """How well the bundle's decoder decodes by its own evaluation, in words."""
    is_near_chance: bool = False
    """Whether that is hardly better than chance."""
    statistics: str = ""
    """The statistics that the run began with, in words."""
    resampling: str = ""
    """From which TR volumes are resampled in time to the decoder's, and what delay that adds, in words."""
    quality: Quality | None = None
    """Of the newest volume."""
    alarm: str = ""
    """Why volumes or results are not recorded, a run is not sealed, or onsets are probably wrong; empty while
    all is well."""
    message: str
    """The latest message to the operator, such as why a volume was skipped, or that a run was resumed."""


class LatencyMs(msgspec.Struct, frozen=True, kw_only=True):
    """Compute latency of one frame by stage, from the last byte of its volume to the frame."""

    journal: float
    preprocess: float
    wait: float
    brain: float
    denoise: float
    vae: float
    total: float


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag="frame", tag_field="kind"):
    """One decoded frame, without its picture (see :class:`Event`)."""

    run_id: str
    volume: int
    decoder: str
    """Name of the decoder that made it."""
    window: tuple[int, int]
    """Half-open range of the scanner's volumes that the window was made of."""
    state: Literal["warming", "trusted"]
    sampler: str
    latency_ms: LatencyMs
    shown_onset: int | None
    """Onset volume of the picture that was on screen for this window; None without markers."""


class Shown(msgspec.Struct, frozen=True, kw_only=True, tag="shown", tag_field="kind"):
    """A picture was put on screen."""

    run_id: str
    onset_volume: int
    name: str


class Recording(msgspec.Struct, frozen=True, kw_only=True, tag="recording", tag_field="kind"):
    """What the recorder does; sent on every change, and each second as a sign of life."""

    run_folder: str | None = None
    """Of the run that is open, or was open last."""
    is_open: bool = False
    received: int = 0
    """Volumes in the journal."""
    alarm: str = ""
    """Why recording has stopped, so that no volume is acknowledged; empty while it works."""
    message: str = ""
    """The latest message to the operator, such as why a volume was refused."""


class Reported(msgspec.Struct, frozen=True, kw_only=True, tag="reported", tag_field="kind"):
    """The report of a run was written into its folder, or could not be."""

    run_folder: str
    error: str = ""


class Publishing(msgspec.Struct, frozen=True, kw_only=True, tag="publishing", tag_field="kind"):
    """What was sent to subscribers since the decoder started."""

    messages: int
    overruns: int
    """How often a subscriber's queue was found full."""


class Event(msgspec.Struct, frozen=True):
    """An event with its picture: RGB uint8 ``[H, W, 3]`` for a frame, PNG bytes for what was shown."""

    message: Status | Frame | Shown
    """What a :class:`Broadcast` hands on."""
    image: NDArray[np.uint8] | None = None
    png: bytes | None = None
    is_recorded: bool = False
    """Read from the run folder after a restart; the earlier process has sent it already."""


KEPT = 500
"""Volumes whose frames, and pictures, are kept for late listeners: more than a run of ten minutes has."""


class Broadcast:
    """Hands events to any number of listeners; keeps the open run's newest for late listeners."""

    def __init__(self, status: Status, queue_length: int = 64) -> None:
        self.status = status
        self.frames: dict[tuple[int, str], Event] = {}
        """By volume and decoder."""
        self.shown: dict[int, Event] = {}
        """By onset volume."""
        self._queue_length = queue_length
        self._listeners: set[asyncio.Queue[Event]] = set()
        self._called: list[Callable[[Event], None]] = []

    def send(self, event: Event) -> None:
        """Give an event to every listener.

        A status replaces the one before; one of another run folder drops the old run's frames and pictures.
        """
        message = event.message
        if isinstance(message, Status):
            if message.run_folder != self.status.run_folder:
                self.frames.clear()
                self.shown.clear()
            self.status = message
        elif isinstance(message, Frame):
            self.frames[message.volume, message.decoder] = event
            while next(iter(self.frames))[0] <= message.volume - KEPT:
                del self.frames[next(iter(self.frames))]
        else:
            self.shown[message.onset_volume] = event
            while len(self.shown) > KEPT:
                del self.shown[next(iter(self.shown))]
        for take in self._called:
            take(event)
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def call(self, take: Callable[[Event], None]) -> None:
        """Call ``take`` at once with every event from now on; it must neither wait nor raise."""
        self._called.append(take)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[asyncio.Queue[Event]]:
        """A queue that first holds the current status, then every event from now on."""
        queue: asyncio.Queue[Event] = asyncio.Queue(self._queue_length)
        queue.put_nowait(Event(self.status))
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)
