"""Opens a bundle, the folder with everything the runtime knows about a subject and a model.

    bundle.json           the spec, which lists every other file with its SHA-256
    roi.nii.gz            the ROI on the scanner's grid
    prior.npz             mean, sd: float32 [V], per-voxel statistics of training runs
    null_condition.npy    float32 [tokens, width], the null condition for guidance
    brain.onnx denoise.onnx vae.onnx
    <graph>.onnx.data     the weights of a large graph
    brain-<decoder>.onnx denoise-<decoder>.onnx null_condition-<decoder>.npy
                          files of a bank's specialised decoders
    parity.json .html     numerical differences at each step from the checkpoint to the bundle
    reference.nii.gz      optional reference volume of the decoder, for registration
    README.md             model card
    bundle.json.minisig   optional signature of bundle.json

Opening a bundle needs no torch and executes nothing in it. ``bundle.json`` contains the SHA-256 of every
other file, so its own SHA-256 identifies the whole bundle. Unlisted graphs and arrays are refused; other
unlisted files, such as notes, are never read and allowed. Engines that are compiled from the graphs are not
part of a bundle: see :mod:`realtime.bundle.user_cache`.

Legend: V voxels of the ROI, T volumes of a window, c, h, w latent channels, height and width.
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
from realtime.bundle.match import check_run
from realtime.bundle.regular_file import read_bytes
from realtime.bundle.signers import Signed, Trust
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
from realtime.errors import BundleError
from realtime.wire import RunStart

N = TypeVar("N", Sampler, Decoder)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The decoder's reference volume: where the head lies on the grid of the region."""

    voxels: NDArray[np.float32]
    """[x, y, z], on any grid."""
    affine: NDArray[np.float64]
    """[4, 4], voxel indices to RAS+ mm of the region's affine."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """An open bundle whose files were checked against ``bundle.json``."""

    folder: Path
    spec: Spec
    sha256: str
    """SHA-256 of ``bundle.json``, which identifies the whole bundle."""
    roi_mask: NDArray[np.bool_]
    """[x, y, z]"""
    prior: VoxelStatistics
    reference: Reference | None
    """None: the bundle takes only volumes on the region's own grid."""
    null_conditions: Mapping[str, NDArray[np.float32]]
    """[tokens, width], by the name of the decoder."""
    signed: Signed = Signed()

    @classmethod
    def open(cls, folder: Path, trust: Trust = Trust()) -> Bundle:  # noqa: B008  # frozen
        """Read and check a bundle.

        :param trust: whose signatures count, and whether one is required
        :raises BundleError: when a file is missing or changed, the spec is too new or inconsistent, or the
            signature does not match or is missing although required
        """
        if not folder.is_dir():
            raise BundleError(f"expected a bundle's folder, found none at {folder}")
        encoded = read_bytes(folder / SPEC_FILE, MAX_SPEC_BYTES)
        signed = trust.check(folder, encoded)
        spec = decode_spec(encoded, folder / SPEC_FILE)
        for file, expected in spec.files.items():
            bundle_files.check_sha256(folder / file, expected)
        bundle_files.check_no_unlisted_files(folder, spec.files.keys())
        mask = _read_roi(folder, spec.roi)
        return cls(
            folder=folder,
            spec=spec,
            sha256=hashlib.sha256(encoded).hexdigest(),
            roi_mask=mask,
            prior=VoxelStatistics.read(folder / PRIOR_FILE, spec.roi.n_voxels),
            reference=_read_reference(folder, spec.reference),
            null_conditions={
                decoder.name: bundle_files.read_npy(folder / decoder.null_condition, spec.condition_shape)
                for decoder in spec.decoders
            },
            signed=signed,
        )

    def graph_path(self, name: str) -> Path:
        """Return the ONNX file of a graph."""
        return self.folder / self.spec.graphs[name].file

    def sampler(self, name: str | None = None) -> Sampler:
        """Return a sampler by name; the bundle's first sampler by default.

        :raises BundleError: when there is no sampler of that name
        """
        return _named(self.spec.samplers, name, "samplers")

    def decoder(self, name: str | None = None) -> Decoder:
        """Return a decoder by name; the general decoder, which is the first, by default.

        :raises BundleError: when there is no decoder of that name
        """
        return _named(self.spec.decoders, name, "decoders")

    @property
    def window_volumes(self) -> int:
        """Length of the longest window of any decoder."""
        return max(decoder.window.length_volumes for decoder in self.spec.decoders)

    def check_run(self, start: RunStart, *, resamples: bool = False) -> None:
        """Check that this bundle can decode a run.

        :param resamples: whether a run with another TR is resampled in time
        :raises WireError: codes ``subject``, ``grid`` and ``tr``, when these differ from the bundle's
        """
        check_run(self.spec, start, resamples=resamples)


def _named(items: tuple[N, ...], name: str | None, what: str) -> N:
    for item in items:
        if name in (None, item.name):
            return item
    known = ", ".join(item.name for item in items)
    raise BundleError(f"expected one of the bundle's {what} ({known}), got {name!r}")


def _read_reference(folder: Path, file: str | None) -> Reference | None:
    if file is None:
        return None
    voxels, affine = bundle_files.read_volume(folder / file)
    if voxels.min() == voxels.max():
        raise BundleError(
            f"{folder / file}: expected a reference volume with a head in it, found one in which all voxels "
            "are the same; give the bundle another: python -m export reference"
        )
    return Reference(voxels=voxels, affine=affine)


def _read_roi(folder: Path, roi: Roi) -> NDArray[np.bool_]:
    mask, affine = bundle_files.read_mask(folder / roi.file)
    n_voxels = int(np.count_nonzero(mask))
    if mask.shape != roi.shape or n_voxels != roi.n_voxels or not same_grid(affine, roi.affine, roi.shape):
        raise BundleError(
            f"{folder / roi.file}: expected {roi.n_voxels} voxels on {roi.shape} with affine {roi.affine}, "
            f"found {n_voxels} on {mask.shape} with {affine.tolist()}; export the bundle again"
        )
    return mask
