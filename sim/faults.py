"""Injects faults of a scanner and its connection, to test a runtime.

    drop        the scanner never sends the volume
    delay       the scanner sends the volume 0.5 to 5 TR late
    reorder     the scanner sends the volume after the next one
    stall       the scanner sends nothing for 4 to 8 TR, then all volumes at once
    nan         30 % of the volume's slices are NaN; the run is sent as floats
    spike       the volume's slices are brighter and darker by 20 %, alternating
    corrupt     a byte of the message changes in transit
    duplicate   the message is sent twice
    disconnect  the connection breaks and the message is lost

A plan depends on rates, seed and run only. A volume has at most one fault, drawn from its own random numbers,
so the plan is known in advance. Faults of messages apply when a volume is first sent; repeats arrive.

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
from sim.scanner import Link, RunData

Kind = Literal["drop", "delay", "reorder", "stall", "nan", "spike", "corrupt", "duplicate", "disconnect"]
KINDS: tuple[Kind, ...] = get_args(Kind)

IN_TRANSIT: frozenset[Kind] = frozenset({"corrupt", "duplicate", "disconnect"})
"""Faults of messages; the others are the scanner's."""

DELAY_TR = (0.5, 5.0)
STALL_TR = (4.0, 8.0)
REORDER_TR = 1.25
"""Delay that puts a volume after the next one and before the one after that."""
NAN_SHARE = 0.3
"""Share of a volume's slices."""
SPIKE_SHARE = 0.2
"""Change as a share of a voxel's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The fault of one volume."""

    kind: Kind
    late_tr: float
    """Delay of the volume or duration of the stall; otherwise 0."""
    seed: int
    """Seed for the affected bytes or slices."""


Plan = Mapping[int, Fault]
"""Faults by volume; most volumes have none."""


def parse_rates(texts: Sequence[str]) -> dict[Kind, float]:
    """Parse rates like ``drop=0.01`` from a command line: the probability of a fault per volume.

    :raises SimError: when a fault is unknown, a rate lies outside 0 to 1, or rates sum to more than 1
    """
    rates: dict[Kind, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        kind = next((kind for kind in KINDS if kind == name), None)
        rate = _number(number)
        if kind is None or not 0 <= rate <= 1:
            raise SimError(
                f"fault {text!r}: expected one of {', '.join(KINDS)} with a rate from 0 to 1, like drop=0.01"
            )
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
    """Draw the faults of a run's volumes; volumes without a fault are omitted."""
    drawn = (
        (index, _draw(rates, random.Random(f"{seed} {start.run_id} {index}")))
        for index in range(start.n_volumes)
    )
    return {index: fault for index, fault in drawn if fault is not None}


def _draw(rates: Mapping[Kind, float], rng: random.Random) -> Fault | None:
    rest = rng.random()
    for kind in KINDS:  # a fixed order, independent of the order of the rates
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
    """Return by how many TR volumes are late; infinity means never sent, volumes in time are omitted."""
    late = {index: fault.late_tr for index, fault in plan.items() if fault.late_tr}
    for begin, fault in plan.items():
        if fault.kind == "stall":
            for index in range(begin, min(n_volumes, begin + math.ceil(fault.late_tr))):
                late[index] = max(late.get(index, 0.0), begin + fault.late_tr - index)
    return late | {index: math.inf for index, fault in plan.items() if fault.kind == "drop"}


def describe(plan: Plan) -> list[str]:
    """Format the plan, one line for each kind of fault."""
    counts = Counter(fault.kind for fault in plan.values())
    return [
        f"{kind}: {counts[kind]} volumes, {', '.join(str(i) for i in sorted(plan) if plan[i].kind == kind)}"
        for kind in KINDS
        if counts[kind]
    ]


class StartedRun(RunData, Protocol):
    """A run's data with its start message."""

    @property
    def start(self) -> wire.RunStart:
        """Format of its volumes."""


class FaultyScan:
    """A run whose volumes have the planned faults."""

    def __init__(self, scan: StartedRun, plan: Plan) -> None:
        self._scan = scan
        self._plan = plan
        dtype = scan.start.dtype
        has_nan = any(fault.kind == "nan" for fault in plan.values())
        if has_nan and not dtype.startswith("float"):  # float32 is not exact for int32 beyond 2**24
            dtype = "float64" if dtype == "int32" else "float32"
        self.start = msgspec.structs.replace(scan.start, dtype=dtype)

    def picture_png(self, onset_volume: int) -> bytes:
        """Return the picture that appeared at ``onset_volume``."""
        return self._scan.picture_png(onset_volume)

    def volume(self, index: int) -> bytes:
        """Return the voxels of a volume."""
        volume = wire.volume_array(self._scan.start, self._scan.volume(index))
        voxels = volume.astype(np.dtype(self.start.dtype).newbyteorder("<"))
        fault = self._plan.get(index)
        n_slices = voxels.shape[2]
        if fault and fault.kind == "nan":
            slices = random.Random(fault.seed).sample(range(n_slices), math.ceil(NAN_SHARE * n_slices))
            voxels[:, :, slices] = np.nan
        elif fault and fault.kind == "spike":
            change = voxels * (SPIKE_SHARE * (-1.0) ** (np.arange(n_slices) + fault.seed % 2))
            limits = np.iinfo(voxels.dtype) if voxels.dtype.kind in "iu" else np.finfo(voxels.dtype)
            voxels = np.clip(voxels + change, limits.min, limits.max).astype(voxels.dtype)
        return voxels.tobytes()


class FaultyLink:
    """A connection that applies the planned faults to messages of volumes."""

    def __init__(self, link: Link, plan: Plan) -> None:
        self._link = link
        self._plan = dict(plan)

    def send(self, header: bytes, buffer: bytes) -> None:
        """Queue one message with its fault, if any."""
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
        """Return the header of the next reply, or None after the timeout."""
        return self._link.receive(timeout_s)

    def reconnect(self) -> None:
        """Drop the connection with all queued messages, and connect again."""
        self._link.reconnect()


def _change_a_byte(header: bytes, buffer: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    """Change a byte, with equal probability in header or buffer, although the header is much shorter."""
    in_header = rng.random() < 0.5
    changed = bytearray(header if in_header else buffer)
    changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
    return (bytes(changed), buffer) if in_header else (header, bytes(changed))
