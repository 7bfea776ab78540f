"""Parses the commands that an AFNI sender sends before its images. Pure.

There is one command per line. ``XYMATRIX nx ny [nz]`` (or ``ZNUM nz``), ``XYZAXES R-L A-P I-S`` and
``XYFOV x y [z]`` (or ``ZDELTA dz``) are required; of the others, those that affect the meaning of the voxels
are used. The x axis varies fastest. Images are whole volumes (``3D+t``, or ``3D+timing`` as Dimon says) or,
by default, slices in interleaved order. With ``NUM_CHAN`` each image comes once for every channel, before
the next image; channels are echoes.

Source: AFNI's README.realtime, plug_realtime.c and rtfeedme.c. Their "DICOM" coordinates are LPS+.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime import wire
from realtime.errors import WireError
from realtime.sources.files.echoes import COMBINE
from realtime.sources.orient import LPS_TO_RAS

MAX_BYTES = 65_536
_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_SIGN = {"R": 1, "L": -1, "A": 1, "P": -1, "S": 1, "I": -1}
_AXES = ("RL", "LR", "AP", "PA", "IS", "SI")
_SENT = {"short": "i2", "byte": "u1", "int": "i4", "float": "f4", "double": "f8"}
_TAKEN = {"short": "int16", "byte": "int16", "int": "int32", "float": "float32", "double": "float64"}
_ACQUISITIONS = ("2D+z", "2D+zt", "3D", "3D+t", "3D+timing")
_MOST_CHANNELS = 32
LONGEST_TR_S = 60.0
"""A larger number is a TR in ms: no run has such a TR in s, and none that is shorter in ms."""
_PLACE = re.compile(r"([-+0-9.eE]{1,32})([IPASRL]?)")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The format of a run's images."""

    shape: tuple[int, int, int]
    sent: np.dtype[np.generic]
    taken: str
    """Dtype to which the runtime converts them."""
    affine: NDArray[np.float64]
    """[4, 4], indices as sent to RAS+ mm."""
    tr_s: float | None
    slices: tuple[int, ...] | None
    """Order in which slices are sent; None if images are whole volumes."""
    n_channels: int = 1
    channel: int | None = 0
    """The channel that is taken; None means that all are combined."""
    echo_times_ms: tuple[float, ...] = ()
    """Of the channels, if they are combined."""
    is_tr_in_ms: bool = False
    """Whether the TR was sent in ms, against AFNI's definition."""

    @property
    def images(self) -> int:
        """Number of images per volume, those of all channels."""
        return self._n_slice_images * self.n_channels

    @property
    def image_bytes(self) -> int:
        """Size of an image in bytes."""
        return math.prod(self.shape) * self.sent.itemsize // self._n_slice_images

    @property
    def _n_slice_images(self) -> int:
        return 1 if self.slices is None else len(self.slices)

    def volume(self, images: list[bytes]) -> NDArray[np.generic]:
        """Assemble the images of the channel that is taken to its voxels [nx, ny, nz]."""
        return self._channel(images, self.channel or 0).astype(self.taken)

    def echoes(self, images: list[bytes]) -> NDArray[Any]:
        """Assemble the images of all channels to their voxels [channel, nx, ny, nz]."""
        return np.stack([self._channel(images, channel) for channel in range(self.n_channels)])

    def _channel(self, images: list[bytes], channel: int) -> NDArray[Any]:
        nx, ny, nz = self.shape
        taken = images[channel :: self.n_channels]
        stacked = np.frombuffer(b"".join(taken), dtype=self.sent).reshape(nz, ny, nx)
        if self.slices is not None:
            stacked = stacked[np.argsort(self.slices)]
        return stacked.transpose(2, 1, 0)


class RefusedRunError(WireError):
    """A run is refused, but how long its images are is known, so that they can be passed over.

    :param header: of these images
    """

    def __init__(self, header: Header, message: str) -> None:
        super().__init__("header", message)
        self.header = header


def parse(text: bytes, echo: int | str | None = None) -> Header:
    """Parse the commands, given without the zero byte that ends them.

    :param echo: the echo to take of several, from 1, or ``combine``; None takes the first
    :raises RefusedRunError: when the run cannot be taken, but its images can be told from the next run
    :raises WireError: code ``header``, when another command is missing or invalid
    """
    commands = _Commands(text)
    shape = _shape(commands)
    datum = commands.choice("DATUM", tuple(_SENT), "short")
    order = commands.choice("BYTEORDER", ("LSB_FIRST", "MSB_FIRST"), "LSB_FIRST")
    acquisition = commands.choice("ACQUISITION_TYPE", _ACQUISITIONS, "2D+zt")
    n_channels = _n_channels(commands)
    n_bytes = math.prod(shape) * max(np.dtype(_TAKEN[datum]).itemsize, 4) * n_channels
    if n_bytes > wire.MAX_VOLUME_BYTES:
        raise WireError(
            "header",
            f"expected at most {wire.MAX_VOLUME_BYTES} bytes a volume, got {n_channels} channels of {shape}",
        )
    header = Header(
        shape=shape,
        sent=np.dtype(_SENT[datum]).newbyteorder("<" if order == "LSB_FIRST" else ">"),
        taken=_TAKEN[datum],
        affine=np.eye(4),
        tr_s=None,
        slices=None if acquisition.startswith("3D") else _slice_order(commands, shape[2]),
        n_channels=n_channels,
    )
    try:
        channel, (tr_s, is_tr_in_ms) = _channel(n_channels, echo), _tr_s(commands)
        return replace(
            header,
            taken=header.taken if channel is not None else "float32",
            affine=_oblique(commands) if commands.get("OBLIQUE_XFORM") else _axis_aligned(commands, shape),
            tr_s=tr_s,
            is_tr_in_ms=is_tr_in_ms,
            channel=channel,
            echo_times_ms=_echo_times_ms(commands, n_channels) if channel is None else (),
        )
    except WireError as error:
        raise RefusedRunError(header, str(error)) from error


def _channel(n_channels: int, echo: int | str | None) -> int | None:
    """Return the channel to take; None if all are combined."""
    if echo == COMBINE:
        return None if n_channels > 1 else 0
    if int(echo or 1) > n_channels:
        raise WireError(
            "header",
            f"expected --echo from 1 to {n_channels}, as the sender has so many channels (NUM_CHAN), got "
            f"--echo {echo}; start again with one of these, or have the sender send more (Dimon -num_chan)",
        )
    return int(echo or 1) - 1


def _tr_s(commands: _Commands) -> tuple[float | None, bool]:
    """Return the TR, None if the sender does not know it, and whether it was sent in ms and not in s."""
    (tr,) = commands.numbers("TR", 1, 1) if commands.get("TR") else (0.0,)
    if tr == 0:
        return None, False
    if 0 < tr <= LONGEST_TR_S:
        return tr, False
    if LONGEST_TR_S < tr <= 1_000 * LONGEST_TR_S:
        return tr / 1_000, True
    raise WireError("header", f"expected a TR above 0 s and at most {LONGEST_TR_S:.0f} s, got {tr:g}")


def _echo_times_ms(commands: _Commands, n_channels: int) -> tuple[float, ...]:
    times_ms = tuple(commands.numbers("ECHO_TIMES", n_channels, n_channels))
    if any(earlier >= later for earlier, later in pairwise((0.0, *times_ms))):
        raise WireError("header", f"expected ECHO_TIMES above 0 that increase, got {times_ms} ms")
    return times_ms


def _n_channels(commands: _Commands) -> int:
    if not commands.get("NUM_CHAN"):
        return 1
    (count,) = commands.numbers("NUM_CHAN", 1, 1)
    if not (count.is_integer() and 1 <= count <= _MOST_CHANNELS):
        raise WireError("header", f"expected NUM_CHAN from 1 to {_MOST_CHANNELS}, got {count:g}")
    return int(count)


def _slice_order(commands: _Commands, nz: int) -> tuple[int, ...]:
    if commands.choice("ZORDER", ("seq", "alt"), "alt") == "seq":
        return tuple(range(nz))
    return (*range(0, nz, 2), *range(1, nz, 2))


class _Commands:
    """The commands by name; a repeated command replaces the earlier one."""

    def __init__(self, text: bytes) -> None:
        # Notes have names of files, in any encoding, and form feeds, which begin no line.
        lines = text.decode("latin-1").split("\n")
        self._arguments: dict[str, list[str]] = {}
        for name, *arguments in filter(None, map(str.split, lines)):
            self._arguments.pop(name, None)  # so that the order is that of the last occurrences
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
        chosen = (self._arguments.get(name) or [default])[0]
        if chosen not in known:
            raise WireError("header", f"expected {name} {' or '.join(known)}, got {chosen!r}")
        return chosen

    def numbers(self, name: str, at_least: int, at_most: int) -> list[float]:
        return [_number(name, word) for word in self._of_length(name, at_least, at_most)]

    def places(self, name: str, n: int) -> list[tuple[float, str]]:
        """Parse distances in mm, each with the letter of its direction, if any."""
        words = self._of_length(name, n, n)
        found = [match for match in map(_PLACE.fullmatch, words) if match]
        if len(found) < n:
            raise WireError("header", f"expected {name} with positions like 30.5R, got {words}")
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


def _shape(commands: _Commands) -> tuple[int, int, int]:
    counts = commands.numbers("XYMATRIX", 2, 3)
    if len(counts) == 2:
        counts += commands.numbers("ZNUM", 1, 1)
    if not all(count.is_integer() and 1 <= count <= 1_024 for count in counts):
        raise WireError("header", f"expected from 1 to 1024 voxels along each axis, got {counts}")
    nx, ny, nz = (int(count) for count in counts)
    return nx, ny, nz


def _oblique(commands: _Commands) -> NDArray[np.float64]:
    matrix = np.array(commands.numbers("OBLIQUE_XFORM", 16, 16)).reshape(4, 4)
    matrix[3] = (0, 0, 0, 1)  # some senders send zeros
    placed: NDArray[np.float64] = LPS_TO_RAS @ matrix
    return placed


def _axis_aligned(commands: _Commands, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return the affine of a volume that is not oblique; its centre is the origin by default."""
    axes = _axes(commands)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    firsts = _first_voxels(commands)
    for column, (axis, n, size_mm) in enumerate(zip(axes, shape, _sizes_mm(commands, shape), strict=True)):
        row = _AXIS[axis[0]]
        affine[row, column] = size_mm * _SIGN[axis[1]]
        distance_mm, code = firsts[column] or (size_mm * (n - 1) / 2, "")
        if code not in ("", *axis):
            raise WireError("header", f"expected a position along {axis[0]}-{axis[1]}, got one along {code}")
        affine[row, 3] = distance_mm * _SIGN[code or axis[0]]
    return affine


def _axes(commands: _Commands) -> list[str]:
    axes = [word.replace("-", "") for word in commands.needed("XYZAXES")]
    if not all(axis in _AXES for axis in axes) or sorted(_AXIS[axis[0]] for axis in axes) != [0, 1, 2]:
        raise WireError("header", f"expected XYZAXES like R-L A-P I-S, got {commands.needed('XYZAXES')}")
    return axes


def _sizes_mm(commands: _Commands, shape: tuple[int, int, int]) -> list[float]:
    fov_mm = commands.numbers("XYFOV", 2, 3)
    fov_mm[1] = fov_mm[1] or fov_mm[0]
    sizes_mm = [fov / n for fov, n in zip(fov_mm, shape, strict=False)]
    if len(sizes_mm) == 2:
        sizes_mm += commands.numbers("ZDELTA", 1, 1)
    if not all(size_mm > 0 for size_mm in sizes_mm):
        raise WireError("header", f"expected voxel sizes above 0, got {sizes_mm} mm")
    return sizes_mm


def _first_voxels(commands: _Commands) -> list[tuple[float, str] | None]:
    """Return the position of the first voxel's centre along each axis, or None; the last command counts."""
    firsts: list[tuple[float, str] | None] = [None, None, None]
    for name in commands.names:
        if name == "XYZFIRST":
            firsts = [*commands.places(name, 3)]
        elif name == "ZFIRST":
            firsts[2] = commands.places(name, 1)[0]
    return firsts
