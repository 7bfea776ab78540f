"""The account of a run: every planned volume ends in exactly one state. Pure."""

from __future__ import annotations

from collections import Counter

from realtime.events import STATES, Counts, VolumeState


class Account:
    """Which volumes came, and the final state of each.

    decoded   the first decoder made a frame of its window, with trusted statistics
    warming   the run was too young to trust its statistics; if a full window existed, there is a frame
    censored  too many of its voxels were not finite, or it is a spike; no frame
    skipped   no frame: a newer window was ready first, the runtime was restarted, or the decode failed
    missing   it did not come, or came after its gap had been given up
    """

    def __init__(self, n_volumes: int) -> None:
        self.n_volumes = n_volumes
        self._received: set[int] = set()
        self._settled: dict[int, VolumeState] = {}
        # Asked for at every change of a run that may be long, so not found anew each time.
        self._tally: Counter[VolumeState] = Counter()
        self._newest: int | None = None

    def receive(self, index: int) -> bool:
        """Note that a volume came; False if it had come before."""
        if index in self._received:
            return False
        self._received.add(index)
        self._newest = index if self._newest is None else max(self._newest, index)
        return True

    def settle(self, index: int, state: VolumeState) -> None:
        """Give a volume its final state.

        :raises ValueError: for a volume outside the run or one that has a state already. Both are mistakes of
            the caller: indices from outside are checked before.
        """
        if not 0 <= index < self.n_volumes:
            raise ValueError(f"expected a volume in [0, {self.n_volumes}), got {index}")
        if index in self._settled:
            raise ValueError(f"volume {index} is already {self._settled[index]}, it cannot become {state}")
        self._settled[index] = state
        self._tally[state] += 1

    def state_of(self, index: int) -> VolumeState | None:
        """The final state of a volume, or None while it is open."""
        return self._settled.get(index)

    @property
    def open_volumes(self) -> list[int]:
        """Planned volumes without a final state, in order."""
        return [index for index in range(self.n_volumes) if index not in self._settled]

    @property
    def newest(self) -> int | None:
        """The highest index that came."""
        return self._newest

    @property
    def counts(self) -> Counts:
        """How many volumes have come and are in each state."""
        return Counts(
            planned=self.n_volumes,
            received=len(self._received),
            **{state: self._tally[state] for state in STATES},
        )
