"""The bundle: one folder with all that the runtime needs to know about a subject and a model.

    bundle.json           what this module reads; names every other file with its SHA-256
    roi.nii.gz            the ROI on the scanner's grid
    prior.npz             mean, sd: float32 [V], per-voxel statistics of training runs
    null_condition.npy    float32 [tokens, width], the condition of the unguided branch
    brain.onnx denoise.onnx vae.onnx
    <graph>.onnx.data     the weights of a large graph
    brain-<decoder>.onnx denoise-<decoder>.onnx null_condition-<decoder>.npy
                          in a bank, of its specialised decoders
    parity.json .html     how close each step from the checkpoint to here stayed
    README.md             model card
    engines/              graphs compiled for one machine, where some were: not part of the bundle's identity

Read without torch and without executing anything in it. ``bundle.json`` holds the SHA-256 of every other
file, so that its own SHA-256 is the identity of the whole. Graphs and numbers it does not name are refused;
other files, such as notes, are left alone, since nothing reads them. Engines are made from the bundle after
it: what lies under ``engines/`` is not looked at here, and brings digests of its own.

Legend: V voxels of the region, T volumes of a window, c, h, w latent channels, height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from realtime.bundle import files as bundle_files
from realtime.bundle.grid import same_grid
from realtime.bundle.spec import (
    MAX_SPEC_BYTES,
    PRIOR_FILE,
    SPEC_FILE,
    Decoder,
    Roi,
    Sampler,
    Spec,
    decode_spec,
)
from realtime.bundle.statistics import VoxelStatistics
from realtime.errors import BundleError, WireError
from realtime.wire import RunStart

TR_TOLERANCE = 0.005
"""Share by which a scanner's TR may differ from the bundle's: 1.33 s is what some say for 4/3 s."""


N = TypeVar("N", Sampler, Decoder)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """An opened bundle: everything in it has been checked against ``bundle.json``."""

    folder: Path
    spec: Spec
    sha256: str
    """Of ``bundle.json``, and through it of everything."""
    roi_mask: NDArray[np.bool_]
    """[x, y, z]"""
    prior: VoxelStatistics
    null_conditions: Mapping[str, NDArray[np.float32]]
    """[tokens, width], by decoder."""

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and check a bundle.

        :raises BundleError: what is missing, changed, too new or contradictory, and what to do
        """
        if not folder.is_dir():
            raise BundleError(f"expected a bundle's folder, found none at {folder}")
        encoded = bundle_files.read_bytes(folder / SPEC_FILE, MAX_SPEC_BYTES)
        spec = decode_spec(encoded, folder / SPEC_FILE)
        for file, expected in spec.files.items():
            bundle_files.check_sha256(folder / file, expected)
        bundle_files.check_nothing_besides(folder, spec.files.keys())
        mask = _read_roi(folder, spec.roi)
        return cls(
            folder=folder,
            spec=spec,
            sha256=hashlib.sha256(encoded).hexdigest(),
            roi_mask=mask,
            prior=VoxelStatistics.read(folder / PRIOR_FILE, spec.roi.n_voxels),
            null_conditions={
                decoder.name: bundle_files.read_npy(folder / decoder.null_condition, spec.condition_shape)
                for decoder in spec.decoders
            },
        )

    def graph_path(self, name: str) -> Path:
        """The ONNX file of a graph that the spec names."""
        return self.folder / self.spec.graphs[name].file

    def sampler(self, name: str | None = None) -> Sampler:
        """A sampler by name; the bundle's first without one.

        :raises BundleError: when there is none of that name
        """
        return _named(self.spec.samplers, name, "samplers")

    def decoder(self, name: str | None = None) -> Decoder:
        """A decoder by name; the bundle's first, the general one, without one; raises as :meth:`sampler`."""
        return _named(self.spec.decoders, name, "decoders")

    @property
    def window_volumes(self) -> int:
        """Volumes of the longest window that a decoder sees."""
        return max(decoder.window.length_volumes for decoder in self.spec.decoders)

    def check_run(self, start: RunStart) -> None:
        """See that a run is one this bundle can decode.

        :raises WireError: codes ``subject``, ``grid`` and ``tr``
        """
        spec = self.spec
        if start.subject != spec.subject:
            raise WireError(
                "subject",
                f"expected subject {spec.subject}, for whom bundle {spec.name!r} was made, got subject "
                f"{start.subject}; start the runtime with that subject's bundle",
            )
        if start.shape != spec.roi.shape or not same_grid(start.affine, spec.roi.affine, spec.roi.shape):
            raise WireError(
                "grid",
                f"expected volumes on the grid {spec.roi.shape} with affine {spec.roi.affine}, got "
                f"{start.shape} with {start.affine}; send volumes on the grid of the subject's region",
            )
        if abs(start.tr_s - spec.tr_s) > TR_TOLERANCE * spec.tr_s:
            raise WireError(
                "tr",
                f"expected the TR the decoder was trained for, {spec.tr_s:.4f} s, got {start.tr_s:.4f} s",
            )


def _named(items: tuple[N, ...], name: str | None, what: str) -> N:
    for item in items:
        if name in (None, item.name):
            return item
    known = ", ".join(item.name for item in items)
    raise BundleError(f"expected one of the bundle's {what} ({known}), got {name!r}")


def _read_roi(folder: Path, roi: Roi) -> NDArray[np.bool_]:
    mask, affine = bundle_files.read_mask(folder / roi.file)
    n_voxels = int(np.count_nonzero(mask))
    if mask.shape != roi.shape or n_voxels != roi.n_voxels or not same_grid(affine, roi.affine, roi.shape):
        raise BundleError(
            f"{folder / roi.file}: expected {roi.n_voxels} voxels on {roi.shape} with affine {roi.affine}, "
            f"found {n_voxels} on {mask.shape} with {affine.tolist()}; export the bundle again"
        )
    return mask
