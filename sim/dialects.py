"""What makes DICOM of one scanner unlike that of another: each dialect changes the images of a volume. Pure.

    echoes       two echoes in one series, numbered in turn; the second has 0.6 of the first's intensity
    phase        a phase image after each magnitude image, in the same series
    uids         the series' UID changes within the run, as on Siemens XA
    no-csa       Siemens' private header is stripped, as by an anonymiser
    slice-major  slices are numbered through time first and have no other count, as on Philips
    shot-tr      the TR is that of a shot, as in 3D sequences
    from-6       the first five volumes were deleted, and numbers begin at 6
    subfolder    files lie in folders of exam and series
    sbref        a series of one reference image comes before, as in multiband sequences
    follow       slices follow the head by 0.4 mm a volume (prospective correction)
    rle          pixels are compressed

Several can be joined: ``dialect=subfolder,echoes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import RLELossless, generate_uid

from realtime import wire
from sim.delivery import Voxels
from sim.dicom_images import Named
from sim.errors import SimError

Images = Callable[[wire.RunStart, int, Voxels], Named]
"""The images of a volume, with their file names."""

ECHO_TIMES_MS = (20.0, 37.83)
_SECOND_ECHO = 0.6
_FIRST_KEPT = 6
_FOLLOW_MM = 0.4


def echoes(images: Images) -> Images:
    """Two echoes in one series."""

    def changed(start: wire.RunStart, index: int, voxels: Voxels) -> Named:
        for second, te_ms in enumerate(ECHO_TIMES_MS):
            scaled = np.rint(np.asarray(voxels, dtype=np.float64) * (_SECOND_ECHO if second else 1))
            for name, image in images(start, index, scaled):
                _set_in_groups(image, "MREchoSequence", "EffectiveEchoTime", te_ms)
                if "EchoTime" in image:
                    image.EchoTime, image.EchoNumbers = te_ms, second + 1
                yield _doubled(name, image, second)

    return changed


def phase(images: Images) -> Images:
    """A phase image after each magnitude image."""

    def changed(start: wire.RunStart, index: int, voxels: Voxels) -> Named:
        angles = np.random.default_rng(index).integers(0, 4_096, voxels.shape)
        both = zip(images(start, index, voxels), images(start, index, angles), strict=True)
        for (name, magnitude), (_, image) in both:
            image.ImageType = [*image.ImageType[:2], "P", *image.ImageType[3:]]
            image.ComplexImageComponent, magnitude.ComplexImageComponent = "PHASE", "MAGNITUDE"
            yield _doubled(name, magnitude, 0)
            yield _doubled(name, image, 1)

    return changed


def sbref(images: Images) -> Images:
    """A series of one reference image comes before."""

    def changed(start: wire.RunStart, index: int, voxels: Voxels) -> Named:
        if index == 0:
            for name, image in images(start, 0, voxels):
                image.SeriesNumber += 1_000
                image.SeriesInstanceUID = generate_uid(entropy_srcs=[image.SeriesInstanceUID, "sbref"])
                image.SeriesDescription += "_SBRef"
                _name_anew(image, "sbref")
                yield f"{name.removesuffix('.dcm')}_sbref.dcm", image
        yield from images(start, index, voxels)

    return changed


def from_6(images: Images) -> Images:
    """The first five volumes were deleted."""

    def changed(start: wire.RunStart, index: int, voxels: Voxels) -> Named:
        longer = msgspec.structs.replace(start, n_volumes=start.n_volumes + _FIRST_KEPT - 1)
        return images(longer, index + _FIRST_KEPT - 1, voxels)

    return changed


def _each(change: Callable[[wire.RunStart, int, str, FileDataset], str | None]) -> Callable[[Images], Images]:
    """Return a dialect that changes each image alone; ``change`` may return another name."""

    def dialect(images: Images) -> Images:
        def changed(start: wire.RunStart, index: int, voxels: Voxels) -> Iterator[tuple[str, FileDataset]]:
            for name, image in images(start, index, voxels):
                yield change(start, index, name, image) or name, image

        return changed

    return dialect


def _uids(start: wire.RunStart, index: int, name: str, image: FileDataset) -> None:
    part = str(3 * index // start.n_volumes)
    image.SeriesInstanceUID = generate_uid(entropy_srcs=[image.SeriesInstanceUID, part])


def _no_csa(start: wire.RunStart, index: int, name: str, image: FileDataset) -> None:
    image.remove_private_tags()


def _slice_major(start: wire.RunStart, index: int, name: str, image: FileDataset) -> str:
    if "TemporalPositionIdentifier" not in image:
        raise SimError("dialect=slice-major: expected format=classic, a slice a file")
    slice_ = (image.InstanceNumber - 1) % start.shape[2]
    image.InstanceNumber = slice_ * start.n_volumes + index + 1
    image.AcquisitionNumber = 1
    del image.TemporalPositionIdentifier, image.NumberOfTemporalPositions, image.AcquisitionTime
    del image.AcquisitionDateTime
    return f"IM_{index + 1:04d}_{slice_ + 1:04d}.dcm"


def _shot_tr(start: wire.RunStart, index: int, name: str, image: FileDataset) -> None:
    tr_ms = round(start.tr_s * 1_000 / start.shape[2], 3)
    _set_in_groups(image, "MRTimingAndRelatedParametersSequence", "RepetitionTime", tr_ms)
    if "RepetitionTime" in image:
        image.RepetitionTime = tr_ms


def _subfolder(start: wire.RunStart, index: int, name: str, image: FileDataset) -> str:
    return f"p{start.subject:03d}/e0001/s{image.SeriesNumber:04d}/{name}"


def _follow(start: wire.RunStart, index: int, name: str, image: FileDataset) -> None:
    places: list[Dataset] = [image] if "ImagePositionPatient" in image else []
    for frame in image.get("PerFrameFunctionalGroupsSequence") or []:
        places += frame.PlanePositionSequence
    for place in places:
        x, y, z = place.ImagePositionPatient
        place.ImagePositionPatient = [x, y, round(float(z) + _FOLLOW_MM * index, 6)]


def _rle(start: wire.RunStart, index: int, name: str, image: FileDataset) -> None:
    image.compress(RLELossless, generate_instance_uid=False)


DIALECTS: dict[str, Callable[[Images], Images]] = {
    "echoes": echoes,
    "phase": phase,
    "uids": _each(_uids),
    "no-csa": _each(_no_csa),
    "slice-major": _each(_slice_major),
    "shot-tr": _each(_shot_tr),
    "from-6": from_6,
    "subfolder": _each(_subfolder),
    "sbref": sbref,
    "follow": _each(_follow),
    "rle": _each(_rle),
}
"""Changes of how a volume's images are made, by the name of the dialect."""


def in_dialects(images: Images, names: str) -> Images:
    """Return images in dialects, whose names are joined by commas. :raises SimError: when there is none"""
    for name in filter(None, names.split(",")):
        if name not in DIALECTS:
            raise SimError(f"dialect={name}: expected one of {', '.join(DIALECTS)}")
        images = DIALECTS[name](images)
    return images


def _doubled(name: str, image: FileDataset, second: int) -> tuple[str, FileDataset]:
    """Number an image of a series that has two for each that it had."""
    image.InstanceNumber = 2 * image.InstanceNumber - 1 + second
    _name_anew(image, str(second))
    return f"{name.removesuffix('.dcm')}_{second + 1}.dcm", image


def _name_anew(image: FileDataset, addition: str) -> None:
    image.SOPInstanceUID = generate_uid(entropy_srcs=[image.SOPInstanceUID, addition])
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID


def _set_in_groups(image: Dataset, sequence: str, name: str, value: float) -> None:
    """Set a value in the functional groups that the frames of an enhanced image share."""
    for group in image.get("SharedFunctionalGroupsSequence") or []:
        setattr(group[sequence][0], name, value)
