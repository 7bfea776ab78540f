"""From the volumes of a run to the windows of its region: registration where it is needed, preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.bundle.grid import same_grid
from realtime.bundle.statistics import VoxelStatistics
from realtime.events import Quality
from realtime.preprocessing.resample import ScannerWindow
from realtime.preprocessing.stream import Pushed, StreamingPreprocessor
from realtime.record.run_json import RunFile
from realtime.runs.head_position import Head, MovedSlices


class Region:
    """The region of one run, volume after volume.

    :param info: of the run
    :param prior: the statistics that it begins with
    """

    def __init__(self, bundle: Bundle, info: RunFile, prior: VoxelStatistics) -> None:
        self._bundle = bundle
        self._start = info.start
        registration = info.registration
        self._head = Head(bundle, registration, info.start.shape) if registration else None
        self._moved: MovedSlices | None = None
        """For volumes that lie elsewhere in a run that is not registered."""
        self._fits_motion = registration is not None and registration.fits_motion
        from_s = info.start.tr_s if info.resampled_to_s else None
        decoders, decoder_tr_s = bundle.spec.decoders, bundle.spec.tr_s
        self.windows = {each.name: ScannerWindow(each.window, decoder_tr_s, from_s) for each in decoders}
        """What each decoder makes its window of, by its name."""
        self._window_volumes = max(window.length_volumes for window in self.windows.values())
        self._preprocessor = StreamingPreprocessor.for_bundle(
            bundle,
            info.start.n_volumes,
            info.start.tr_s,
            info.spikes,
            prior,
            n_confounds=6 if self._fits_motion else 0,
            window_volumes=self._window_volumes,
        )
        self.quality: Quality | None = None
        """Of the newest volume."""
        self.said = ""
        """What the operator is to be told of it."""

    def push(self, index: int, voxels: NDArray[Any], affine: wire.Affine) -> Pushed:
        """Add a volume [x, y, z]; indices must rise, and those left out count as missing."""
        motion, self.said = None, ""
        finder = self._finder(affine)
        if finder is None:
            pushed = self._preprocessor.push(index, voxels)
        else:
            placed = finder.place(index, voxels, np.array(affine))
            motion, self.said = placed.motion, placed.said
            confounds = motion.in_mm() if motion and self._fits_motion else ()
            pushed = self._preprocessor.push_row(index, placed.row, placed.censored, confounds)
        self.quality = Quality(
            volume=index,
            motion=motion,
            dvars=pushed.dvars,
            global_signal=pushed.global_signal,
            tsnr=pushed.tsnr,
        )
        return pushed

    def _finder(self, affine: wire.Affine) -> Head | MovedSlices | None:
        """What finds the region in a volume; None if it lies on the decoder's grid and is not registered."""
        if self._head:
            return self._head
        if affine == self._start.affine or same_grid(affine, self._start.affine, self._start.shape):
            return None
        self._moved = self._moved or MovedSlices(self._bundle)
        return self._moved

    @property
    def is_searching(self) -> bool:
        """Whether the next volume is registered to the decoder's reference, which takes seconds."""
        return self._head is not None and self._head.is_searching

    @property
    def alarm(self) -> str:
        """Why no volume of the run can be used so far; empty if they can."""
        return self._head.alarm if self._head else ""

    def window(self) -> NDArray[np.float32] | None:
        """Z-scores [V, n] of the last n volumes, enough for any decoder; None while the run is shorter."""
        return self._preprocessor.window()

    @property
    def empty_window(self) -> NDArray[np.float32]:
        """An array of the shape of a window, [V, n]."""
        return np.zeros((self._bundle.spec.roi.n_voxels, self._window_volumes), dtype=np.float32)

    def statistics(self) -> VoxelStatistics | None:
        """Mean and SD of the volumes so far; None while there are too few for a fit."""
        return self._preprocessor.statistics()

    @property
    def index(self) -> int:
        """The newest volume that was pushed; -1 before the first."""
        return self._preprocessor.index

    def state(self) -> dict[str, NDArray[Any]]:
        """All that later windows depend on, by name; copies, which a later volume does not change."""
        return self._preprocessor.state() | self._head_state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from the state of another region of this run, bit for bit.

        :raises PreprocessError, RegistrationError: when it is not such a state
        """
        head = {name: state[name] for name in self._head_state()}
        self._preprocessor.restore({name: state[name] for name in state.keys() - head.keys()})
        if self._head:
            self._head.restore(head)

    def _head_state(self) -> dict[str, NDArray[Any]]:
        return self._head.state() if self._head else {}
