"""A recorded run as a scanner sends it: its start, its volumes and the pictures on screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from nsd import TR_S, Layout, Run, Stimuli, repaired_volumes, task_runs
from realtime import wire
from realtime.errors import WireError
from sim.errors import SimError
from sim.forward import Scenes
from sim.raw import RawRun
from sim.synthetic_json import FILE_NAME, read_provenance
from sim.world import open_scenes

Picture = npt.NDArray[np.uint8]


def default_run_id(run: Run) -> str:
    """Return the run's id in BIDS style, such as ``sub-01_ses-nsd01_task-nsdcore_run-01``."""
    return f"sub-{run.subject:02d}_ses-nsd{run.session:02d}_task-nsdcore_run-{run.run:02d}"


class Recording:
    """One task run of a data set in NSD's layout, ready to be sent. A context manager.

    :raises NsdError: when files of the run are missing or invalid
    :raises SimError: when the run is not a task run or does not fit the wire format
    """

    def __init__(
        self, layout: Layout, *, subject: int, session: int, run: int, run_id: str | None = None
    ) -> None:
        runs = task_runs(subject, session)
        if run not in runs:
            raise SimError(
                f"run {run}: expected a task run, {runs.start} to {runs.stop - 1} in session {session} "
                f"of subject {subject}; give one of these as --run"
            )
        self.run = Run(layout, subject, session, run)
        """Which run of the data set it is, whatever ``start.run_id`` calls it."""
        self._pictures = _open_pictures(layout)
        self._dtype = wire_dtype(self.run.dtype)
        self.start = make_start(
            run_id=run_id or default_run_id(self.run),
            subject=subject,
            tr_s=self.run.tr_s,
            n_volumes=self.run.n_volumes,
            shape=self.run.shape,
            affine=self.run.affine,
            dtype=self._dtype,
        )
        self._trials = {trial.onset_volume: trial for trial in self.run.trials}

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *exception: object) -> None:
        if isinstance(self._pictures, _StoredPictures):
            self._pictures.close()

    @property
    def markers(self) -> list[wire.Marker]:
        """Markers of all presentations, in order; empty if the data set has no pictures."""
        if self._pictures is None:
            return []
        name, run_id = self._pictures.name, self.start.run_id
        trials = self._trials.items()
        return [wire.Marker(run_id=run_id, onset_volume=at, name=name(trial.image)) for at, trial in trials]

    @property
    def notes(self) -> list[str]:
        """What the user should know of this run before it is sent."""
        repaired = repaired_volumes(self.run.layout, self.run.key)
        if not repaired:
            return []
        return [
            f"volumes {repaired.start} to {repaired.stop - 1} of this run are not what the scanner recorded: "
            "NSD's authors repaired them. They are sent as they are, and the runtime does not know; leave "
            "pictures whose windows hold them out of what you report"
        ]

    def volume(self, index: int) -> bytes:
        """Return the voxels of a volume in the wire format: C order, little endian."""
        return np.ascontiguousarray(self.run.volume(index), dtype=self._dtype).tobytes()

    def picture_png(self, onset_volume: int) -> bytes:
        """Return the picture that appeared at ``onset_volume`` as PNG."""
        if self._pictures is None:
            raise SimError(
                f"{self.run.key}: expected pictures, found neither stimuli nor {FILE_NAME}; put NSD's "
                "stimulus file into the data set, or make the synthetic subject again"
            )
        picture = self._pictures.picture(self._trials[onset_volume].image)
        _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        return png.tobytes()


class RawRecording(Recording):
    """The raw side of a task run of a synthetic data set; the pictures are those of the run.

    A picture appears at the volume that is being acquired then, whatever the scanner's TR.
    """

    def __init__(
        self, layout: Layout, *, subject: int, session: int, run: int, run_id: str | None = None
    ) -> None:
        super().__init__(layout, subject=subject, session=session, run=run, run_id=run_id)
        self._raw = RawRun(layout, subject=subject, session=session, run=run)
        geometry = self._raw.geometry
        self.start = make_start(
            run_id=self.start.run_id,
            subject=subject,
            tr_s=geometry.tr_s,
            n_volumes=geometry.n_volumes,
            shape=geometry.shape,
            affine=geometry.affine,
            dtype=np.dtype(np.int16),
        )
        onsets = {int(onset * TR_S / geometry.tr_s + 1e-6): trial for onset, trial in self._trials.items()}
        self._trials = {onset: trial for onset, trial in onsets.items() if onset < geometry.n_volumes}

    def volume(self, index: int) -> bytes:
        """Return the voxels of a volume in the wire format: C order, little endian."""
        return self._raw.volume(index).astype("<i2").tobytes()


def make_start(
    *,
    run_id: str,
    subject: int,
    tr_s: float,
    n_volumes: int,
    shape: tuple[int, int, int],
    affine: npt.NDArray[np.float64],
    dtype: np.dtype[Any],
) -> wire.RunStart:
    """Make the start of a run. :raises SimError: when it does not fit the wire format"""
    try:
        start = wire.RunStart(
            run_id=run_id,
            subject=subject,
            tr_s=tr_s,
            n_volumes=n_volumes,
            shape=shape,
            affine=cast("Any", tuple(tuple(row) for row in affine.tolist())),
            dtype=cast("Any", dtype.name),
        )
        wire.decode_to_runtime(wire.encode(start))
    except (WireError, ValueError) as error:
        raise SimError(
            f"the start of run {run_id!r} does not fit the wire format: {error}; choose another --run-id, or "
            "mend the recording's header"
        ) from error
    return start


def wire_dtype(stored: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype to send: the stored one if the wire format supports it, otherwise float64."""
    dtype = stored if stored.name in wire.DTYPES else np.dtype(np.float64)
    return dtype.newbyteorder("<")


class _StoredPictures:
    """Pictures of a stimulus file."""

    def __init__(self, stimuli: Stimuli) -> None:
        self._stimuli = stimuli
        self.picture: Callable[[int], Picture] = stimuli.image

    def name(self, image: int) -> str:
        return f"nsd {image + 1}"

    def close(self) -> None:
        self._stimuli.close()


class _DrawnPictures:
    """Pictures of a synthetic data set, drawn from its seed."""

    def __init__(self, scenes: Scenes) -> None:
        self.picture: Callable[[int], Picture] = scenes.render
        self.name: Callable[[int], str] = scenes.name


def _open_pictures(layout: Layout) -> _StoredPictures | _DrawnPictures | None:
    if (layout.root / FILE_NAME).is_file():
        provenance = read_provenance(layout.root)
        return _DrawnPictures(open_scenes(provenance.cortex, provenance.seed))
    if layout.stimuli().is_file():
        return _StoredPictures(Stimuli(layout))
    return None
