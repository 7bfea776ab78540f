"""DICOM files as scanners, archives and consoles write them: each kind is read, or refused in words."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import dcm2niix
import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from realtime.errors import WireError
from realtime.sources.files.dicom import read
from realtime.sources.files.formats import parse
from realtime.sources.files.jpeg_lossless import decoded
from realtime.sources.files.series import Series
from realtime.sources.files.volume_file import NotWholeError, VolumeFile

from .test_dicom import AFFINE, GRID, VOXELS, enhanced, first_pixel_mm, images, mosaic, single, written

CSA, N_TILES, TILE_TEXT = (0x0029, 0x1010), (0x0019, 0x100A), (0x0051, 0x100B)


def only(data: bytes, name: str = "0001.dcm") -> VolumeFile:
    (volume,) = parse(name, data)
    assert isinstance(volume, VolumeFile)
    return volume


def asserts_whole(data: bytes, name: str = "0001.dcm") -> None:
    volume = only(data, name)
    assert np.array_equal(volume.voxels, VOXELS)
    assert np.allclose(volume.affine, AFFINE, atol=1e-4)


def why_refused(data: FileDataset) -> str:
    with pytest.raises(WireError) as raised:
        read(written(data))
    assert not isinstance(raised.value, NotWholeError)
    return str(raised.value)


# ---------------------------------------------------------------------------------------------- encodings
def bare(data: FileDataset, *, implicit: bool) -> bytes:
    """Neither preamble nor meta information."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(
        buffer,
        Dataset({element.tag: element for element in data}),
        implicit_vr=implicit,
        little_endian=True,
        enforce_file_format=False,
    )
    return buffer.getvalue()


def without_meta_length(whole: bytes) -> bytes:
    return whole[:132] + whole[144:]


ENCODINGS: dict[str, Callable[[], bytes]] = {
    "no preamble": lambda: written(mosaic())[132:],
    "no preamble, no meta information, implicit": lambda: bare(mosaic(), implicit=True),
    "no preamble, no meta information, explicit": lambda: bare(mosaic(), implicit=False),
    "junk as preamble": lambda: b"\xff" * 128 + written(mosaic())[128:],
    "no length of the meta information": lambda: without_meta_length(written(mosaic())),
    "implicit": lambda: written(mosaic(syntax=ImplicitVRLittleEndian)),
}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("make", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("name", ["0001.ima", "0001.dcm", "MR000001", "1.3.12.2.1107"])
def test_every_encoding_is_read_under_any_name(make: Callable[[], bytes], name: str) -> None:
    asserts_whole(make(), name)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("make", ENCODINGS.values(), ids=ENCODINGS)
def test_every_encoding_is_incomplete_while_it_is_written(make: Callable[[], bytes]) -> None:
    data = make()
    for n_bytes in (*range(4, 600, 7), *range(600, len(data), 211), len(data) - 1):
        with pytest.raises(NotWholeError):
            parse("0001.ima", data[:n_bytes])


def test_big_endian_files_are_read() -> None:
    data = mosaic()
    data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    data["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, implicit_vr=False, little_endian=False, force_encoding=True)
    asserts_whole(buffer.getvalue())


# ---------------------------------------------------------------------------------------------- mosaics
def test_a_mosaic_says_in_other_elements_how_it_is_laid_out() -> None:
    data = mosaic()
    del data[CSA]
    data.add_new(N_TILES, "US", VOXELS.shape[2])
    asserts_whole(written(data))
    del data[N_TILES]
    data.add_new(TILE_TEXT, "SH", f"{VOXELS.shape[1]}p*{VOXELS.shape[0]}s")
    asserts_whole(written(data))


def test_a_mosaic_without_its_layout_is_refused() -> None:
    data = mosaic()
    del data[CSA]
    assert "expected NumberOfImagesInMosaic in the CSA header (0029,1010), or (0019,100a)" in why_refused(
        data
    )


def test_tiles_that_do_not_fill_the_image_are_refused() -> None:
    data = mosaic()
    data.Rows, data.Columns = 27, 14
    assert "expected a mosaic of 3 x 3 tiles for 5 slices, got an image of" in why_refused(data)


def united_imaging() -> FileDataset:
    """Two rows of three tiles, in any order of height, and the place of each slice."""
    order = (4, 2, 0, 1, 3)
    data, tiles = mosaic(), images()[list(order)]
    n_rows, n_columns = tiles.shape[1:]
    tiled = np.zeros((6, n_rows, n_columns), np.uint16)
    tiled[:5] = tiles
    pixels = tiled.reshape(2, 3, n_rows, n_columns).transpose(0, 2, 1, 3).reshape(2 * n_rows, 3 * n_columns)
    data.Rows, data.Columns = pixels.shape
    data.PixelData = pixels.astype("<u2").tobytes()
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "VFRAME"]
    del data[CSA], data.ImagePositionPatient
    frames = []
    for slice_ in order:
        frame = Dataset()
        frame.ImagePositionPatient = first_pixel_mm(VOXELS, slice_)
        frames.append(frame)
    data.private_block(0x65, "Image Private Header", create=True).add_new(0x51, "SQ", frames)
    return data


def test_a_mosaic_of_united_imaging_is_placed_by_its_frames() -> None:
    asserts_whole(written(united_imaging()))
    data = united_imaging()
    del data[0x65, 0x1051]
    assert "expected (0065,1051)" in why_refused(data)
    data = united_imaging()
    data.Rows, data.Columns = data.Columns, data.Rows
    assert "expected a mosaic of 2 x 3 tiles for 5 slices" in why_refused(data)


def test_philips_values_are_those_that_compare_between_volumes() -> None:
    """(stored * RescaleSlope + RescaleIntercept) / (RescaleSlope * ScaleSlope): Chenevert et al., 2014."""
    data = mosaic()
    data.RescaleSlope, data.RescaleIntercept = 2, -100
    data.private_block(0x2005, "Philips MR Imaging DD 001", create=True).add_new(0x0E, "FL", 0.25)
    assert np.allclose(only(written(data)).voxels, (VOXELS * 2.0 - 100) / (2 * 0.25))


@pytest.mark.parametrize("name", ["0.dcm", "1.dcm"])
def test_a_scanners_cropped_mosaic_is_refused(name: str) -> None:
    """Images of a Siemens scanner whose header is of another size."""
    data = (Path(nibabel.__file__).parent / "nicom/tests/data" / name).read_bytes()
    with pytest.raises(WireError, match="7 x 7 tiles for 48 slices, got an image of 256 x 256"):
        read(data)


@pytest.mark.parametrize(
    ("orientation", "normal"),
    [
        ([1, 0, 0, 0, 1, 0], (0, 0, 1)),
        ([1, 0, 0, 0, 0, -1], (0, 1, 0)),
        ([0, 1, 0, 0, 0, -1], (1, 0, 0)),
        ([-1, 0, 0, 0, 1, 0], (0, 0, 1)),
    ],
)
def test_slices_of_a_mosaic_without_csa_go_left_back_or_up(
    orientation: list[float], normal: tuple[float, ...]
) -> None:
    """As Siemens numbers them: so say the CSA headers of real axial, coronal and sagittal series."""
    data = mosaic()
    del data[CSA]
    data.add_new(N_TILES, "US", VOXELS.shape[2])
    data.ImageOrientationPatient = orientation
    affine = np.array(only(written(data)).affine)[:3, :3]
    in_ras = np.array(normal) * (-1, -1, 1)
    axis = int(np.abs(in_ras).argmax())
    stored = written(data)
    tiles = pydicom.dcmread(io.BytesIO(stored)).pixel_array
    first = only(stored).voxels.take(0 if in_ras[axis] > 0 else -1, axis=axis)
    assert sorted(first.ravel()) == sorted(tiles[: VOXELS.shape[1], : VOXELS.shape[0]].ravel())
    assert np.isclose(abs(affine[axis, axis]), GRID["sizes_mm"][2])


# ---------------------------------------------------------------------------------------------- enhanced
def several(n_volumes: int, order: str = "volumes first") -> FileDataset:
    """A file with several volumes, whose frames follow each other by volume or by place."""
    n_slices = VOXELS.shape[2]
    tall = np.concatenate([VOXELS + 10 * k for k in range(n_volumes)], axis=2)
    pairs = [(k, slice_) for k in range(n_volumes) for slice_ in range(n_slices)]
    if order == "places first":
        pairs.sort(key=lambda pair: (pair[1], pair[0]))
    if order == "reversed":
        pairs.reverse()
    data = enhanced(tall, order=tuple(k * n_slices + slice_ for k, slice_ in pairs))
    for (k, slice_), frame in zip(pairs, data.PerFrameFunctionalGroupsSequence, strict=True):
        frame.PlanePositionSequence[0].ImagePositionPatient = first_pixel_mm(VOXELS, slice_)
        frame.FrameContentSequence[0].TemporalPositionIndex = k + 1
    return data


@pytest.mark.parametrize("order", ["volumes first", "places first", "reversed"])
def test_all_volumes_of_a_file_are_read_in_order(order: str) -> None:
    series, found = Series(tr_s=1), []
    for number in (1, 2):
        data = several(3, order)
        data.InstanceNumber = number
        for volume in read(written(data)):
            found += series.add(volume, "file", 0, 0)
    assert [ready.index for ready in found] == [0, 1, 2, 3, 4, 5]
    for ready in found:
        assert np.array_equal(ready.volume.voxels, VOXELS + 10 * (ready.index % 3))
        assert np.allclose(ready.volume.affine, AFFINE, atol=1e-4)


@pytest.mark.parametrize("missing", ["DimensionIndexValues", "InStackPositionNumber", "StackID", "all"])
def test_frames_are_placed_by_their_positions(missing: str) -> None:
    data = enhanced(order=(3, 1, 4, 0, 2))
    for frame in data.PerFrameFunctionalGroupsSequence:
        if missing == "all":
            del frame.FrameContentSequence
        else:
            delattr(frame.FrameContentSequence[0], missing)
    asserts_whole(written(data))


def test_frames_of_other_echoes_and_parts_are_told_apart() -> None:
    data = several(4)
    for index, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
        kind, echo = Dataset(), Dataset()
        which = index // VOXELS.shape[2]
        kind.ComplexImageComponent = ("MAGNITUDE", "PHASE")[which % 2]
        echo.EffectiveEchoTime = (20.0, 40.0)[which // 2]
        frame.MRImageFrameTypeSequence, frame.MREchoSequence = [kind], [echo]
    found = [(volume.acquired.part, volume.acquired.echo_time_ms) for volume in read(written(data))]
    assert found == [("magnitude", 20.0), ("phase", 20.0), ("magnitude", 40.0), ("phase", 40.0)]


def test_what_an_enhanced_file_lacks_is_named() -> None:
    repeated = enhanced()
    frames = repeated.PerFrameFunctionalGroupsSequence
    frames[1].PlanePositionSequence[0].ImagePositionPatient = first_pixel_mm(VOXELS, 0)
    assert "every place in PlanePositionSequence (0020,9113) equally often" in why_refused(repeated)
    placeless = enhanced()
    del placeless.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    assert "ImagePositionPatient (0020,0032) in PlanePositionSequence" in why_refused(placeless)
    short = enhanced()
    short.PerFrameFunctionalGroupsSequence.pop()
    assert "PerFrameFunctionalGroupsSequence with 5 frames, got 4" in why_refused(short)
    frameless = enhanced()
    del frameless.PerFrameFunctionalGroupsSequence
    assert "PerFrameFunctionalGroupsSequence in an image of several frames" in why_refused(frameless)


def test_an_image_without_a_number_is_refused() -> None:
    data = mosaic()
    del data.InstanceNumber
    assert "expected InstanceNumber (0020,0013)" in why_refused(data)


# ---------------------------------------------------------------------------------------------- compression
def bits(values: Iterator[tuple[int, int]]) -> bytes:
    """Join values, each with its number of bits, and stuff zeros as JPEG does."""
    text = "".join(f"{value:0{n}b}" for value, n in values if n)
    text += "1" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big") if text else b""
    return data.replace(b"\xff", b"\xff\0")


def jpeg_lossless(
    pixels: np.ndarray, predictor: int = 1, precision: int = 16, rows_at_once: int = 0, shift: int = 0
) -> bytes:
    """Encode by the standard (ITU-T T.81, H.1), with codes of five bits for all sizes of a difference."""

    def segment(kind: int, *body: int) -> bytes:
        return bytes((0xFF, kind)) + (len(body) + 2).to_bytes(2, "big") + bytes(body)

    def coded(part: np.ndarray) -> Iterator[tuple[int, int]]:
        for (row, column), value in np.ndenumerate(part):
            left_or_above = (row, column - 1) if predictor == 1 else (row - 1, column)
            if row == 0:
                left_or_above = (0, column - 1)
            elif column == 0:
                left_or_above = (row - 1, 0)
            is_first = (row, column) == (0, 0)
            expected = 1 << (precision - shift - 1) if is_first else int(part[left_or_above])
            difference = (int(value) - expected + 2**15) % 2**16 - 2**15
            difference = 2**15 if difference == -(2**15) else difference
            size = abs(difference).bit_length()
            yield size, 5
            if size < 16:
                yield difference if difference > 0 else difference + (1 << size) - 1, size

    n_rows, n_columns = pixels.shape
    lines = rows_at_once or n_rows
    parts = [bits(coded(pixels[first : first + lines])) for first in range(0, n_rows, lines)]
    scan = b"".join(part + bytes((0xFF, 0xD0 + k % 8)) for k, part in enumerate(parts[:-1])) + parts[-1]
    restart = segment(0xDD, *(lines * n_columns).to_bytes(2, "big")) if rows_at_once else b""
    return (
        b"\xff\xd8"
        + segment(0xC3, precision, *n_rows.to_bytes(2, "big"), *n_columns.to_bytes(2, "big"), 1, 1, 0x11, 0)
        + segment(0xC4, 0, *(17 if length == 5 else 0 for length in range(1, 17)), *range(17))
        + restart
        + segment(0xDA, 1, 1, 0, predictor, 0, shift)
        + scan
        + b"\xff\xd9"
    )


@settings(deadline=None, max_examples=60)
@given(
    pixels=arrays.arrays(
        np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 65_535)
    ),
    predictor=st.sampled_from([1, 2]),
    rows_at_once=st.sampled_from([0, 0, 1, 2]),
)
def test_jpeg_lossless_is_decoded_exactly(pixels: np.ndarray, predictor: int, rows_at_once: int) -> None:
    assert np.array_equal(decoded(jpeg_lossless(pixels, predictor, rows_at_once=rows_at_once)), pixels)


def test_jpeg_lossless_longer_than_a_chunk_is_decoded() -> None:
    pixels = np.random.default_rng(0).integers(0, 65_536, (250, 251)).astype(np.uint16)
    assert np.array_equal(decoded(jpeg_lossless(pixels)), pixels)
    assert np.array_equal(
        decoded(jpeg_lossless(pixels >> 6 >> 2, precision=10, shift=2)), pixels >> 6 >> 2 << 2
    )


@settings(deadline=None, max_examples=150)
@given(spots=st.lists(st.tuples(st.integers(2, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_jpeg_is_pixels_or_an_error(spots: list[tuple[int, int]]) -> None:
    data = bytearray(jpeg_lossless(np.arange(96, dtype=np.uint16).reshape(8, 12)))
    for place, value in spots:
        data[place % len(data)] = value
    claimed = int.from_bytes(data[7:9], "big") * int.from_bytes(data[9:11], "big")
    if claimed > 10_000:
        return  # never decoded: it is compared with Rows and Columns before
    try:
        assert decoded(bytes(data)).dtype == np.uint16
    except (ValueError, IndexError, StopIteration):
        pass


LARGE = VOXELS.repeat(8, axis=0).repeat(8, axis=1)
"""Encoders of JPEG 2000 refuse smaller images."""


def compressed(
    syntax: str, make: Callable[..., FileDataset] = mosaic, voxels: np.ndarray = LARGE
) -> FileDataset:
    data = make(voxels)
    if syntax == JPEGLosslessSV1:
        frames = data.pixel_array if data.pixel_array.ndim == 3 else [data.pixel_array]
        data.PixelData = encapsulate([jpeg_lossless(frame) for frame in frames])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    else:
        data.compress(syntax, generate_instance_uid=False)
    return data


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("make", [mosaic, enhanced])
def test_what_was_compressed_without_loss_is_read(syntax: str, make: Callable[[], FileDataset]) -> None:
    whole = written(compressed(syntax, make))
    assert np.array_equal(only(whole).voxels, LARGE)
    for n_bytes in (len(whole) - 40, len(whole) * 9 // 10, len(whole) // 2):
        with pytest.raises(NotWholeError):
            read(whole[:n_bytes])


@pytest.mark.parametrize("options", [["+e1"], ["+el", "+sv", "2"]])
def test_jpeg_lossless_of_another_program_is_read(options: list[str], tmp_path: Path) -> None:
    program = shutil.which("dcmcjpeg")
    if program is None:
        pytest.skip("no dcmcjpeg here (Debian's package dcmtk)")
    (tmp_path / "plain.dcm").write_bytes(written(mosaic()))
    paths = str(tmp_path / "plain.dcm"), str(tmp_path / "packed.dcm")
    subprocess.run([program, *options, *paths], check=True, timeout=60)
    asserts_whole((tmp_path / "packed.dcm").read_bytes())


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
def test_a_frame_that_claims_another_size_is_not_decompressed(syntax: str) -> None:
    data = compressed(syntax)
    data.Rows, data.Columns = 9, 9
    assert "expected compressed frames of (9, 9) pixels, got one of (168, 144)" in why_refused(data)


def test_too_much_is_not_decompressed() -> None:
    data = compressed(RLELossless)
    data.Rows = data.Columns = 5_000
    assert "bytes in a compressed frame" in why_refused(data)
    longer = compressed(RLELossless, voxels=VOXELS)
    longer.PixelData = encapsulate([bytes(64) + b"\x81\0" * 2_000])
    longer["PixelData"].is_undefined_length = True
    assert "expected a frame of 756 bytes, got 4064 compressed" in why_refused(longer)


# ---------------------------------------------------------------------------------------------- dcm2niix
def oblique(data: FileDataset, turned: bool) -> FileDataset:
    if turned:
        angle, tilt = math.radians(11), math.radians(-7)
        row = [math.cos(angle), math.sin(angle), 0.0]
        column = [-math.sin(angle) * math.cos(tilt), math.cos(angle) * math.cos(tilt), math.sin(tilt)]
        data.ImageOrientationPatient = [float(f"{each:.12g}") for each in (*row, *column)]
    return data


def converted(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What dcm2niix makes of a folder: voxels [x, y, z, time] on RAS+ axes, and their affine."""
    out = folder / "out"
    out.mkdir()
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "%4r_%s", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    images = [nibabel.as_closest_canonical(nibabel.load(path)) for path in sorted(out.glob("*.nii"))]
    voxels = [image.get_fdata().reshape(*image.shape[:3], -1) for image in images]
    return np.concatenate(voxels, axis=3), images[0].affine


def files(kind: str) -> Iterator[FileDataset]:
    for k in range(3):
        voxels = VOXELS + 10 * k
        if kind == "slices":
            numbered = [(slice_, k * VOXELS.shape[2] + slice_ + 1) for slice_ in range(VOXELS.shape[2])]
            yield from (single(voxels, slice_, number, k + 1) for slice_, number in numbered)
        else:
            data = mosaic(voxels, k + 1) if kind.startswith("mosaic") else enhanced(voxels, k + 1)
            data.AcquisitionNumber = k + 1
            yield oblique(data, turned=kind == "mosaic, oblique")


@pytest.mark.parametrize("kind", ["mosaic", "mosaic, oblique", "slices", "enhanced"])
def test_volumes_and_affines_are_those_of_dcm2niix(kind: str, tmp_path: Path) -> None:
    series = Series(tr_s=1)
    found: dict[int, VolumeFile] = {}
    for count, data in enumerate(files(kind)):
        data.Modality, data.Manufacturer = "MR", "SIEMENS"
        data.ImageType = [
            "ORIGINAL",
            "PRIMARY",
            "M",
            "ND",
            *(["MOSAIC"] if kind.startswith("mosaic") else []),
        ]
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
        data.AcquisitionTime = f"1000{count:02d}.000000"
        (tmp_path / f"{count:04d}.dcm").write_bytes(written(data))
        for image in read(written(data)):
            found |= {each.index: each.volume for each in series.add(image, "file", 0, 0)}
    voxels, affine = converted(tmp_path)
    assert len(found) == voxels.shape[3] == 3
    for index, volume in found.items():
        assert np.array_equal(volume.voxels, voxels[..., index])
    assert np.allclose(found[0].affine, affine, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["", "_RLE", "_bigendian", "_expb", "_implicit", "_jp2klossless", "_jpeg_ls_lossless"]
)
def test_a_scanners_slice_is_that_of_dcm2niix(name: str, tmp_path: Path) -> None:
    path = Path(pydicom.data.__file__).parent / f"test_files/MR_small{name}.dcm"
    shutil.copy(path, tmp_path / "one.dcm")
    voxels, affine = converted(tmp_path)
    series = Series(tr_s=1)
    series.add(read(path.read_bytes())[0], "file", 0, 0)
    (found,) = series.settle(4.1)
    assert np.array_equal(found.volume.voxels, voxels[..., 0])
    assert np.allclose(found.volume.affine, affine, atol=1e-4)
