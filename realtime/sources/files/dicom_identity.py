"""Which series an image belongs to, and what it is within it. Pure.

A series is what one acquisition makes. SeriesInstanceUID is no part of it, because some scanners change it
within a run.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import pydicom
from pydicom.multival import MultiValue

from realtime.errors import WireError
from realtime.sources.files.volume_file import Acquired

_PARTS = {
    "phase": {"P", "PHASE", "PHASE MAP", "PHASE_MAP"},
    "real": {"R", "REAL"},
    "imaginary": {"I", "IMAGINARY"},
}
"""Values of ImageType, FrameType and ComplexImageComponent."""
_GE_PARTS = ("magnitude", "phase", "real", "imaginary")
_PROCESSED = ("DERIVED", "MOCO")
"""Values of ImageType that tell images which a scanner computed apart from those that it acquired."""
_SPLIT = "MFSPLIT"
"""Value of ImageType: an image of several frames was exported as one file a frame."""
_COILS = ((0x0051, "SIEMENS MR HEADER", 0x0F), (0x0021, "SIEMENS MR SDI 02", 0x4F))


def series(dataset: pydicom.Dataset) -> dict[str, Any]:
    """Return series, its name, the TR, and the image's number, as volumes and slices have them."""
    number = abs(int(dataset.get("SeriesNumber") or 0))
    name = str(dataset.get("SeriesDescription") or dataset.get("ProtocolName") or "")
    if volume := _split_volume(dataset, number):
        number = (number - volume) // 1_000
    who = dataset.get("StudyInstanceUID") or dataset.get("SeriesInstanceUID") or ""
    coil = next((value for tag in _COILS if (value := private(dataset, *tag))), "")
    processed = [each for each in _PROCESSED if each in image_type(dataset)]
    key = "\n".join(str(each) for each in (who, name, coil, *processed))
    return {
        "number": _number(dataset),
        "series": f"{number}x{zlib.crc32(key.encode()):08x}",
        "series_name": name,
        "tr_s": _tr_s(dataset),
    }


def _number(dataset: pydicom.Dataset) -> int:
    number = dataset.get("InstanceNumber")
    if number is None:
        raise WireError(
            "file", "expected InstanceNumber (0020,0013), by which images are ordered, found none"
        )
    return int(number)


def _split_volume(dataset: pydicom.Dataset, number: int) -> int | None:
    """Return which volume it is, if each has a series number of its own, such as 7001 and 7002 in series 7.

    AcquisitionNumber may count volumes too, beyond the 999th, or be 1 in all of them. What was split and is
    not marked has one slice a file: other images of a series 1001 agree by chance in the first volume.
    """
    is_marked = _SPLIT in image_type(dataset)
    is_siemens = str(dataset.get("Manufacturer", "")).upper().startswith("SIEMENS")
    is_volume = "MOSAIC" in image_type(dataset) or "PerFrameFunctionalGroupsSequence" in dataset
    if number <= 1_000 or not (is_marked or (is_siemens and not is_volume)):
        return None
    acquisition = int(dataset.get("AcquisitionNumber") or 0)
    if acquisition and number % 1_000 == acquisition % 1_000:
        return acquisition
    return (number - 1) % 1_000 + 1 if is_marked else None


def acquired(dataset: pydicom.Dataset) -> Acquired:
    """Return what a header of one volume or slice says about it."""
    echo_time_ms = dataset.get("EchoTime")
    ge_part = private(dataset, 0x0043, "GEMS_PARM_01", 0x2F)
    number = abs(int(dataset.get("SeriesNumber") or 0))
    part = _GE_PARTS[ge_part] if isinstance(ge_part, int) and 0 <= ge_part < len(_GE_PARTS) else None
    return Acquired(
        acquisition=counted(dataset.get("AcquisitionNumber")),
        moment=counted(dataset.get("TemporalPositionIdentifier")) or _split_volume(dataset, number),
        echo_time_ms=float(echo_time_ms) if echo_time_ms else None,
        echo=counted(_first_value(dataset.get("EchoNumbers"))) or _echo_by_type(dataset),
        time_s=time_s(dataset.get("AcquisitionTime") or dataset.get("AcquisitionDateTime")),
        is_derived=any(each in image_type(dataset) for each in _PROCESSED),
        part=part or part_of(dataset.get("ComplexImageComponent"), dataset.get("ImageType")),
    )


def _echo_by_type(dataset: pydicom.Dataset) -> int | None:
    """Return the number of the echo that ImageType names, such as TE2."""
    found = (re.fullmatch(r"(?:TE|ECHO)_?(\d{1,2})", each) for each in image_type(dataset))
    return next((int(each[1]) for each in found if each), None)


def time_s(value: Any) -> float | None:
    """Return the seconds since midnight of a time, or date and time, such as 153000.25."""
    found = re.fullmatch(r"(?:\d{8})?(\d\d)(\d\d)(\d\d(?:\.\d+)?)(?:[+-]\d{4})?", str(value or "").strip())
    if not found:
        return None
    return int(found[1]) * 3_600 + int(found[2]) * 60 + float(found[3]) or None  # 0 is written to hide it


def part_of(component: Any, types: Any) -> str:
    """Return the part of the complex image: ComplexImageComponent, and otherwise ImageType, tells it."""
    values = {str(component).upper()} if component and component != "MIXED" else _upper(types)
    return next((part for part, names in _PARTS.items() if names & values), "magnitude")


def image_type(dataset: pydicom.Dataset) -> set[str]:
    """Return the values of ImageType."""
    return _upper(dataset.get("ImageType"))


def private(dataset: pydicom.Dataset, group: int, creator: str, element: int) -> Any:
    """Return the value of a private element, or None."""
    try:
        return dataset.private_block(group, creator)[element].value
    except KeyError:
        return None


def counted(value: Any) -> int | None:
    """Return a counter's value; scanners that do not count leave it out or store 0."""
    return int(value) if value else None


def _first_value(value: Any) -> Any:
    return value[0] if isinstance(value, MultiValue) else value


def _upper(values: Any) -> set[str]:
    listed = [values] if isinstance(values, str) else values or []
    return {str(each).upper() for each in listed}


def _tr_s(dataset: pydicom.Dataset) -> float | None:
    """Return the TR in seconds; enhanced images store it in a functional group."""
    found: Any = dataset.get("RepetitionTime")
    shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
    for group in (shared[0], frames[0]):
        timing = group.get("MRTimingAndRelatedParametersSequence") if group else None
        found = found or (timing[0].get("RepetitionTime") if timing else None)
    return float(found) / 1_000 if found else None
