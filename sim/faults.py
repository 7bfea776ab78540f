"""Faults on purpose, to see what a runtime makes of them: what goes wrong at a scanner and on its way.

    drop        the scanner never hands the volume on
    delay       it hands it on 0.5 to 5 TR late
    reorder     it hands it on after the next one
    stall       it hands nothing on for 4 to 8 TR, then all at once
    nan         3 in 10 of its slices are not a number; such a run is sent as floats
    spike       its slices are brighter and dimmer by 20 %, in turn
    corrupt     a byte of its message changes on the way
    duplicate   its message is sent twice
    disconnect  the connection breaks, and the message is lost with it

A plan is a pure function of rates, seed and run: at most one fault a volume, and each volume's is drawn from
its own numbers, so that a test (or a person) knows what was done. Faults of messages strike the first time a
volume is sent; what is sent again comes through.

Legend: x, y, z the grid of a volume; slices lie along z.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import msgspec
import numpy as np

from realtime import wire
from sim.errors import SimError
from sim.scanner import Link, Pictured

Kind = Literal["drop", "delay", "reorder", "stall", "nan", "spike", "corrupt", "duplicate", "disconnect"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DELAY_TR = (0.5, 5.0)
STALL_TR = (4.0, 8.0)
REORDER_TR = 1.25
"""So much later than it should a volume comes after the next one and before the one after that."""
NAN_SHARE = 0.3
"""Of a volume's slices."""
SPIKE_SHARE = 0.2
"""Of a voxel's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What befalls one volume."""

    kind: Kind
    late_tr: float
    """How late a delayed volume comes, how long a stall lasts; else 0."""
    seed: int
    """Draws which bytes or slices."""


Plan = Mapping[int, Fault]
"""By volume; most have none."""


def parse_rates(texts: Sequence[str]) -> dict[Kind, float]:
    """Rates from a command line, each like ``drop=0.01``: the probability that this befalls a volume.

    :raises SimError: unknown faults, a rate outside 0 to 1, more than one fault a volume.
    """
    rates: dict[Kind, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        kind = next((kind for kind in KINDS if kind == name), None)
        rate = _number(number)
        if kind is None or not 0 <= rate <= 1:
            raise SimError(f"fault {text!r}: expected one of {', '.join(KINDS)} with a rate, like drop=0.01")
        rates[kind] = rate
    if sum(rates.values()) > 1:
        raise SimError(f"faults: expected rates that sum to at most 1, got {sum(rates.values()):g}")
    return rates


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def draw_plan(rates: Mapping[Kind, float], seed: int, start: wire.RunStart) -> dict[int, Fault]:
    """What will befall each volume of a run; volumes without a fault are left out."""
    drawn = (
        (index, _draw(rates, random.Random(f"{seed} {start.run_id} {index}")))
        for index in range(start.n_volumes)
    )
    return {index: fault for index, fault in drawn if fault is not None}


def _draw(rates: Mapping[Kind, float], rng: random.Random) -> Fault | None:
    rest = rng.random()
    for kind in KINDS:  # in this order, whatever that of the rates
        rest -= rates.get(kind, 0.0)
        if rest < 0:
            late_tr = {
                "delay": rng.uniform(*DELAY_TR),
                "reorder": REORDER_TR,
                "stall": rng.uniform(*STALL_TR),
            }
            return Fault(kind=kind, late_tr=late_tr.get(kind, 0.0), seed=rng.getrandbits(32))
    return None


def late_tr(plan: Plan, n_volumes: int) -> dict[int, float]:
    """How many TR late the scanner hands a volume on, infinity: never; others are left out."""
    late = {index: fault.late_tr for index, fault in plan.items() if fault.late_tr}
    for begin, fault in plan.items():
        if fault.kind == "stall":
            for index in range(begin, min(n_volumes, begin + math.ceil(fault.late_tr))):
                late[index] = max(late.get(index, 0.0), begin + fault.late_tr - index)
    return late | {index: math.inf for index, fault in plan.items() if fault.kind == "drop"}


def describe(plan: Plan) -> list[str]:
    """A line for each kind of fault that will happen."""
    counts = Counter(fault.kind for fault in plan.values())
    return [
        f"{kind}: {counts[kind]} volumes, {', '.join(str(i) for i in sorted(plan) if plan[i].kind == kind)}"
        for kind in KINDS
        if counts[kind]
    ]


class Scan(Pictured, Protocol):
    """A recording with its start."""

    @property
    def start(self) -> wire.RunStart:
        """How its volumes look."""


class FaultyScan:
    """A recording whose volumes are spoilt as planned."""

    def __init__(self, scan: Scan, plan: Plan) -> None:
        self._scan = scan
        self._plan = plan
        dtype = scan.start.dtype
        has_nan = any(fault.kind == "nan" for fault in plan.values())
        if has_nan and not dtype.startswith("float"):  # int32 beyond 2**24 wants more digits
            dtype = "float64" if dtype == "int32" else "float32"
        self.start = msgspec.structs.replace(scan.start, dtype=dtype)

    def picture_png(self, onset_volume: int) -> bytes:
        """The picture that appeared at ``onset_volume``."""
        return self._scan.picture_png(onset_volume)

    def volume(self, index: int) -> bytes:
        """The voxels of a volume."""
        volume = wire.volume_array(self._scan.start, self._scan.volume(index))
        voxels = volume.astype(np.dtype(self.start.dtype).newbyteorder("<"))
        fault = self._plan.get(index)
        n_slices = voxels.shape[2]
        if fault and fault.kind == "nan":
            struck = random.Random(fault.seed).sample(range(n_slices), math.ceil(NAN_SHARE * n_slices))
            voxels[:, :, struck] = np.nan
        elif fault and fault.kind == "spike":
            change = voxels * (SPIKE_SHARE * (-1.0) ** (np.arange(n_slices) + fault.seed % 2))
            limits = np.iinfo(voxels.dtype) if voxels.dtype.kind in "iu" else np.finfo(voxels.dtype)
            voxels = np.clip(voxels + change, limits.min, limits.max).astype(voxels.dtype)
        return voxels.tobytes()


class FaultyLink:
    """A connection on which messages of volumes fare as planned."""

    def __init__(self, link: Link, plan: Plan) -> None:
        self._link = link
        self._plan = dict(plan)

    def send(self, header: bytes, buffer: bytes) -> None:
        """Queue one message, if nothing befalls it."""
        message = wire.decode_to_runtime(header)
        fault = self._plan.pop(message.index, None) if isinstance(message, wire.Volume) else None
        kind = fault.kind if fault else None
        if kind == "disconnect":
            self._link.reconnect()
            return
        if fault and kind == "corrupt":
            header, buffer = _change_a_byte(header, buffer, random.Random(fault.seed))
        self._link.send(header, buffer)
        if kind == "duplicate":
            self._link.send(header, buffer)

    def receive(self, timeout_s: float) -> bytes | None:
        """The header of the next reply, or None when none came in time."""
        return self._link.receive(timeout_s)

    def reconnect(self) -> None:
        """Drop the connection with all that is queued, and make a new one."""
        self._link.reconnect()


def _change_a_byte(header: bytes, buffer: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    """Half of the time in the header, which is so much shorter."""
    in_header = rng.random() < 0.5
    changed = bytearray(header if in_header else buffer)
    changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
    return (bytes(changed), buffer) if in_header else (header, bytes(changed))
