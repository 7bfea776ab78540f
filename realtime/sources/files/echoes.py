"""One of a volume's echoes, or their optimal combination. Pure.

The combination weights each echo by its echo time and by the decay of the voxel (Posse et al., 1999), as
tedana does: w = TE exp(-TE / T2*). T2* is fitted, log-linearly, to the first volume with all echoes, and then
kept: the weights know only the past, and do not move with the signal.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime.errors import WireError
from realtime.sources.files.begun import Begun
from realtime.sources.files.counting import Echo, Image, echo_of
from realtime.sources.files.numbering import Numbering
from realtime.sources.files.volume_file import DTYPE, VolumeFile

COMBINE = "combine"
MAX_T2STAR_MS = 500.0
"""Voxels that decay slower, or whose signal grows, have this T2*; their weights are nearly those of TE."""

_log = logging.getLogger(__name__)


class Echoes:
    """Chooses among the echoes of one series.

    :param choice: number of the echo, from 1 in order of echo time; or :data:`COMBINE`; or None, for the
        first, as the scanner numbers them or as they come
    """

    def __init__(self, choice: int | str | None, numbering: Numbering) -> None:
        self._choice = choice
        self._numbering = numbering
        self._followed: Echo | None = None
        self._known: list[Echo] | None = None
        self.begun: Begun[Echo, VolumeFile] = Begun("echoes")
        self._weights: NDArray[np.float32] | None = None
        self._told: set[str] = set()

    def wants(self, image: Image) -> bool | None:
        """Whether an image is taken; None means that it is not known yet."""
        echo = echo_of(image)
        if self._choice is None:
            if self._followed is None and (image.acquired.echo or 1) > 1:
                known = self._all()  # another may be the first
                if known is None:
                    return None
                self._followed = known[0]
            self._followed = self._followed or echo
            if echo != self._followed:
                self._tell(
                    f"{echo} is passed over, {self._followed} is followed. --echo N chooses another, "
                    "--echo combine takes all"
                )
            return echo == self._followed
        known = self._all()
        if known is None:
            return None
        if echo not in known:
            self._tell(f"{echo} came after the first volume, which had {_named(known)}: it is passed over")
        return echo in known if self._choice == COMBINE else echo == self._number_of(known)

    def add(self, volume: VolumeFile) -> VolumeFile | None:
        """Return the volume that an echo is, or completes.

        :raises WireError: when the echoes cannot be combined
        """
        known = self._all()
        if self._choice != COMBINE or known is None or len(known) == 1:
            return volume
        echoes = self.begun.add(volume.number, echo_of(volume), volume, len(known))
        return self._combined([echoes[echo] for echo in known]) if echoes else None

    def _all(self) -> list[Echo] | None:
        """Return the echoes of a volume, in order of time, once they are known."""
        is_short = isinstance(self._choice, int) and len(self._known or ()) < self._choice
        if (self._known is None or is_short) and self._numbering.has_all_echoes:
            self._known = [echo for echo in self._numbering.echoes if echo.part == "magnitude"] or None
        return self._known

    def _number_of(self, known: list[Echo]) -> Echo | None:
        number = int(self._choice or 1)
        if number <= len(known):
            return known[number - 1]
        self._tell(f"none is of number {number}, only {_named(known)}: give another --echo")
        return None

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("echoes of the series: %s", what)

    def _combined(self, echoes: Sequence[VolumeFile]) -> VolumeFile:
        times_ms = [volume.acquired.echo_time_ms for volume in echoes]
        if len({volume.voxels.shape for volume in echoes}) > 1 or any(not time_ms for time_ms in times_ms):
            raise WireError("file", f"expected echoes of one shape with echo times, got {times_ms} ms")
        signal = np.stack([volume.voxels for volume in echoes])
        te_ms = np.array(times_ms, dtype=np.float64)
        if self._weights is None or self._weights.shape != signal.shape:
            self._weights = weights(te_ms, t2star_ms(signal, te_ms))
        combined = (self._weights * signal).sum(axis=0, dtype=DTYPE)
        return replace(echoes[0], voxels=np.ascontiguousarray(combined, dtype="<f4"))


def t2star_ms(signal: NDArray[Any], te_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the decay of each voxel, log-linearly.

    :param signal: [echo, x, y, z]
    :returns: [x, y, z], at most :data:`MAX_T2STAR_MS`
    """
    logs = np.log(np.abs(signal.astype(np.float64)) + 1)  # tedana adds 1 too
    centred = te_ms - te_ms.mean()
    decay = -np.einsum("e,exyz->xyz", centred, logs) / (centred**2).sum()  # 1 / T2*, per ms
    slowest = 1 / MAX_T2STAR_MS
    return 1 / np.where(np.isfinite(decay) & (decay > slowest), decay, slowest)


def weights(te_ms: NDArray[np.float64], t2star_ms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the weight of each echo in each voxel, [echo, x, y, z], which add up to 1.

    :param t2star_ms: [x, y, z]
    """
    # exp of a difference, because exp(-TE / T2*) is 0 for all echoes of voxels that decay fast
    te = te_ms[:, np.newaxis, np.newaxis, np.newaxis]
    found = te * np.exp((te_ms.min() - te) / t2star_ms)
    shares: NDArray[np.float32] = (found / found.sum(axis=0)).astype(np.float32)
    return shares


def _named(echoes: Sequence[Echo]) -> str:
    return ", ".join(str(echo) for echo in echoes)
