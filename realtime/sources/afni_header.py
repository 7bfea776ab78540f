"""What an AFNI sender says of its images before it sends them. Pure: bytes in, a header out.

Commands, one a line. Needed are ``XYMATRIX nx ny [nz]`` (or ``ZNUM nz``), ``XYZAXES R-L A-P I-S`` and
``XYFOV x y [z]`` (or ``ZDELTA dz``); of the others those are heeded that change what the voxels mean. Sent is
x fastest, volume by volume (``3D+t``) or, by default, slice by slice, every second slice first.

AFNI's README.realtime; its "DICOM" coordinates run to the left, to the back and up.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.errors import WireError
from realtime.sources.orient import LPS_TO_RAS

MAX_BYTES = 65_536
_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_SIGN = {"R": 1, "L": -1, "A": 1, "P": -1, "S": 1, "I": -1}
_AXES = ("RL", "LR", "AP", "PA", "IS", "SI")
_SENT = {"short": "i2", "byte": "u1", "float": "f4"}
_TAKEN = {"short": "int16", "byte": "int16", "float": "float32"}
_ACQUISITIONS = ("2D+z", "2D+zt", "3D", "3D+t")
_PLACE = re.compile(r"([-+0-9.eE]{1,32})([IPASRL]?)")


@dataclass(frozen=True, kw_only=True)
class Header:
    """How the images of a run are sent."""

    shape: tuple[int, int, int]
    sent: np.dtype[np.generic]
    taken: str
    """The type in which the runtime takes them."""
    affine: NDArray[np.float64]
    """[4, 4], indices as sent to mm to the right, front and up."""
    tr_s: float | None
    slices: tuple[int, ...] | None
    """Which slice comes when, where slices come one by one; None where volumes come whole."""

    @property
    def images(self) -> int:
        """How many images make a volume."""
        return 1 if self.slices is None else len(self.slices)

    @property
    def image_bytes(self) -> int:
        """Size of an image, a slice or a volume."""
        return math.prod(self.shape) * self.sent.itemsize // self.images

    def volume(self, images: list[bytes]) -> NDArray[np.generic]:
        """The voxels [nx, ny, nz] of as many images as make a volume."""
        nx, ny, nz = self.shape
        stacked = np.frombuffer(b"".join(images), dtype=self.sent).reshape(nz, ny, nx)
        if self.slices is not None:
            stacked = stacked[np.argsort(self.slices)]
        return stacked.transpose(2, 1, 0).astype(self.taken)


def parse(commands: bytes) -> Header:
    """Read the commands, without the zero byte that ends them.

    :raises WireError: code ``header``, when one is missing or says what cannot be.
    """
    said = _Said(commands)
    shape = _shape(said)
    datum = said.choice("DATUM", tuple(_SENT), "short")
    order = said.choice("BYTEORDER", ("LSB_FIRST", "MSB_FIRST"), "LSB_FIRST")
    acquisition = said.choice("ACQUISITION_TYPE", _ACQUISITIONS, "2D+zt")
    slices = said.choice("ZORDER", ("seq", "alt"), "alt")
    if said.get("NUM_CHAN") not in (None, ["1"]):
        raise WireError("header", f"expected images of one channel, got NUM_CHAN {said.get('NUM_CHAN')}")
    taken = np.dtype(_TAKEN[datum])
    if math.prod(shape) * taken.itemsize > wire.MAX_VOLUME_BYTES:
        raise WireError("header", f"expected volumes of at most {wire.MAX_VOLUME_BYTES} bytes, got {shape}")
    nz = shape[2]
    interleaved = (*range(0, nz, 2), *range(1, nz, 2)) if slices == "alt" else tuple(range(nz))
    return Header(
        shape=shape,
        sent=np.dtype(_SENT[datum]).newbyteorder("<" if order == "LSB_FIRST" else ">"),
        taken=taken.name,
        affine=_oblique(said) if said.get("OBLIQUE_XFORM") else _straight(said, shape),
        tr_s=said.numbers("TR", 1, 1)[0] if said.get("TR") else None,
        slices=None if acquisition.startswith("3D") else interleaved,
    )


class _Said:
    """The commands by name; one that is given again takes the place of the one before."""

    def __init__(self, commands: bytes) -> None:
        try:
            lines = commands.decode("ascii").splitlines()
        except UnicodeDecodeError as error:
            raise WireError("header", f"expected commands in ASCII: {error}") from error
        self._arguments: dict[str, list[str]] = {}
        for name, *arguments in filter(None, map(str.split, lines)):
            self._arguments.pop(name, None)  # its place among the others is that of the last time
            self._arguments[name] = arguments
        self.names = list(self._arguments)

    def get(self, name: str) -> list[str] | None:
        return self._arguments.get(name)

    def needed(self, name: str) -> list[str]:
        arguments = self._arguments.get(name)
        if not arguments:
            raise WireError("header", f"expected the command {name}, got {', '.join(self.names) or 'none'}")
        return arguments

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        said = (self._arguments.get(name) or [default])[0]
        if said not in known:
            raise WireError("header", f"expected {name} {' or '.join(known)}, got {said!r}")
        return said

    def numbers(self, name: str, at_least: int, at_most: int) -> list[float]:
        return [_number(name, word) for word in self._of_length(name, at_least, at_most)]

    def places(self, name: str, n: int) -> list[tuple[float, str]]:
        """Distances in mm, each with the letter of its direction, if any."""
        words = self._of_length(name, n, n)
        found = [match for match in map(_PLACE.fullmatch, words) if match]
        if len(found) < n:
            raise WireError("header", f"expected {name} with places like 30.5R, got {words}")
        return [(_number(name, match[1]), match[2]) for match in found]

    def _of_length(self, name: str, at_least: int, at_most: int) -> list[str]:
        arguments = self.needed(name)
        if not at_least <= len(arguments) <= at_most:
            raise WireError("header", f"expected {name} with {at_least} to {at_most} values, got {arguments}")
        return arguments


def _number(name: str, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise WireError("header", f"expected {name} with numbers, got {word!r}")
    return number


def _shape(said: _Said) -> tuple[int, int, int]:
    counts = said.numbers("XYMATRIX", 2, 3)
    if len(counts) == 2:
        counts += said.numbers("ZNUM", 1, 1)
    if not all(count.is_integer() and 1 <= count <= 1_024 for count in counts):
        raise WireError("header", f"expected from 1 to 1024 voxels along each axis, got {counts}")
    nx, ny, nz = (int(count) for count in counts)
    return nx, ny, nz


def _oblique(said: _Said) -> NDArray[np.float64]:
    matrix = np.array(said.numbers("OBLIQUE_XFORM", 16, 16)).reshape(4, 4)
    matrix[3] = (0, 0, 0, 1)  # some senders leave it empty
    placed: NDArray[np.float64] = LPS_TO_RAS @ matrix
    return placed


def _straight(said: _Said, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Without obliquity: sizes from the field of view; the volume's middle is 0 unless said otherwise."""
    axes = _axes(said)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    firsts = _firsts(said)
    for column, (axis, n, size_mm) in enumerate(zip(axes, shape, _sizes_mm(said, shape), strict=True)):
        row = _AXIS[axis[0]]
        affine[row, column] = size_mm * _SIGN[axis[1]]
        distance_mm, code = firsts[column] or (size_mm * (n - 1) / 2, "")
        if code not in ("", *axis):
            raise WireError("header", f"expected a place along {axis[0]}-{axis[1]}, got one to {code}")
        affine[row, 3] = distance_mm * _SIGN[code or axis[0]]
    return affine


def _axes(said: _Said) -> list[str]:
    axes = [word.replace("-", "") for word in said.needed("XYZAXES")]
    if not all(axis in _AXES for axis in axes) or sorted(_AXIS[axis[0]] for axis in axes) != [0, 1, 2]:
        raise WireError("header", f"expected XYZAXES like R-L A-P I-S, got {said.needed('XYZAXES')}")
    return axes


def _sizes_mm(said: _Said, shape: tuple[int, int, int]) -> list[float]:
    fov_mm = said.numbers("XYFOV", 2, 3)
    fov_mm[1] = fov_mm[1] or fov_mm[0]
    sizes_mm = [fov / n for fov, n in zip(fov_mm, shape, strict=False)]
    if len(sizes_mm) == 2:
        sizes_mm += said.numbers("ZDELTA", 1, 1)
    if not all(size_mm > 0 for size_mm in sizes_mm):
        raise WireError("header", f"expected voxels with a size, got {sizes_mm} mm")
    return sizes_mm


def _firsts(said: _Said) -> list[tuple[float, str] | None]:
    """Where the middle of the first voxel is along each axis, where that was said; the last word counts."""
    firsts: list[tuple[float, str] | None] = [None, None, None]
    for name in said.names:
        if name == "XYZFIRST":
            firsts = [*said.places(name, 3)]
        elif name == "ZFIRST":
            firsts[2] = said.places(name, 1)[0]
    return firsts
