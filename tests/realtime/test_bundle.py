"""A bundle opens completely, or the error names the wrong file and says what to do."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import wire
from realtime.bundle import files as bundle_files
from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.regular_file import read_bytes
from realtime.errors import BundleError, WireError

FILES = (
    "brain.onnx",
    "denoise.onnx",
    "vae.onnx",
    "roi.nii.gz",
    "prior.npz",
    "null_condition.npy",
    "README.md",
)


@pytest.fixture
def folder(make_tiny_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    return make_tiny_bundle(tmp_path / "bundle")


def put(folder: Path, file: str, write: Callable[[Path], object]) -> None:
    """Overwrite a file of a bundle and update its digest in ``bundle.json``."""
    write(folder / file)
    spec = bundle_spec.decode_spec((folder / "bundle.json").read_bytes())
    listed = {**spec.files, file: file_sha256(folder / file)}
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, files=listed))


def edit_json(folder: Path, **changes: Any) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_opened_bundle_has_the_written_content(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    voxels = opened.spec.roi.n_voxels
    assert opened.sha256 == file_sha256(tiny_bundle / "bundle.json")
    assert opened.roi_mask.shape == opened.spec.roi.shape
    assert opened.roi_mask.sum() == voxels
    np.testing.assert_array_equal(opened.prior.mean, np.full(voxels, 1000, np.float32))
    np.testing.assert_array_equal(opened.prior.sd, np.full(voxels, 10, np.float32))
    np.testing.assert_array_equal(
        opened.null_conditions["general"], np.load(tiny_bundle / "null_condition.npy")
    )
    assert opened.graph_path("brain") == tiny_bundle / "brain.onnx"
    assert opened.decoder().window.delay_volumes == 8
    assert set(opened.spec.files) == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_changed_byte_is_detected_and_its_file_named(folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{file}: changed since the bundle was made"):
        Bundle.open(folder)


@pytest.mark.parametrize("file", [*FILES, "bundle.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(BundleError, match=file):
        Bundle.open(folder)


def not_regular(kind: str, path: Path) -> None:
    """Put something that is no regular file in the place of a bundle's file."""
    path.unlink(missing_ok=True)
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a link to an endless device":
            path.symlink_to("/dev/zero")
        case "a link to a FIFO":
            os.mkfifo(path.parent.with_name("elsewhere"))
            path.symlink_to(path.parent.with_name("elsewhere"))
        case "a socket":
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
        case "a folder":
            path.mkdir()
        case "a sparse file":
            with path.open("wb") as file:
                file.truncate(2**37)


KINDS = ("a FIFO", "a link to an endless device", "a link to a FIFO", "a socket", "a folder", "a sparse file")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", [*FILES, "bundle.json"])
def test_what_is_no_regular_file_is_refused_at_once(folder: Path, file: str, kind: str) -> None:
    not_regular(kind, folder / file)
    with pytest.raises(BundleError, match=rf"{file}: (expected (a regular file|at most)|.*cannot be read)"):
        Bundle.open(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_readers_of_a_bundles_files_refuse_what_is_no_regular_file(tmp_path: Path, kind: str) -> None:
    """Also where a file was replaced after its digest was checked."""
    path = tmp_path / "bundle" / "file.gz"
    path.parent.mkdir()
    not_regular(kind, path)
    for read in (
        bundle_files.read_mask,
        lambda path: bundle_files.read_npy(path, (2, 4)),
        lambda path: bundle_files.read_npz(path, {"mean": (30,)}),
        lambda path: read_bytes(path, 2**20),
    ):
        with pytest.raises(BundleError, match=r"file\.gz: "):
            read(path)


def test_links_to_regular_files_are_read_and_their_content_is_checked(folder: Path, tmp_path: Path) -> None:
    """Model hubs keep a folder of links to files that are named by their content."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name in (*FILES, "bundle.json"):
        (folder / name).rename(blobs / name)
        (folder / name).symlink_to(blobs / name)
    assert Bundle.open(folder).sha256 == file_sha256(blobs / "bundle.json")
    with (blobs / "vae.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BundleError, match=r"vae.onnx: changed since the bundle was made"):
        Bundle.open(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        Bundle.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["old.onnx", "brain.onnx.data", "sm89.plan", "prior-2.NPZ", "null.npy"])
def test_unlisted_graphs_and_arrays_are_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"of another model")
    with pytest.raises(BundleError, match=rf"found also {name}; move these files away"):
        Bundle.open(folder)


def test_notes_and_engines_are_allowed_in_a_bundle(folder: Path) -> None:
    (folder / "notes.txt").write_text("used in session 3")
    (folder / "engines" / "sm89").mkdir(parents=True)
    (folder / "engines" / "sm89" / "denoise.plan").write_bytes(b"compiled later")
    assert Bundle.open(folder).sha256 == file_sha256(folder / "bundle.json")


def table(**changes: Any) -> dict[str, Any]:
    """A sampler in the form of ``bundle.json``."""
    steps: dict[str, Any] = {"timesteps": [501, 1], "coefficients": [[0.5, 0.5, 0], [0, 1, 0]]}
    return {"name": "a", **steps, "guidance": [3.0, 1.0], **changes}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"timesteps": [1000, 1]}, "<= 999"),
        ({"timesteps": [1, -1]}, ">= 0"),
        ({"timesteps": [1, 501]}, "expected falling timesteps, got 1, 501"),
        ({"timesteps": [501, 501]}, "expected falling timesteps, got 501, 501"),
        ({"timesteps": [], "coefficients": [], "guidance": []}, "length >= 1"),
        ({"timesteps": [0] * 1001, "coefficients": [[0, 0, 0]] * 1001, "guidance": [1] * 1001}, "<= 1000"),
        ({"coefficients": [[0.5, 1e39, 0], [0, 1, 0]]}, r"finite float32 numbers, got 1e\+39"),
        ({"guidance": [3.0, -1e39]}, r"finite float32 numbers, got -1e\+39"),
        ({"start": [0, 1e300]}, r"finite float32 numbers, got 1e\+300"),
        ({"guidance": [3.0]}, "differ in length"),
    ],
)
def test_a_sampler_that_no_engine_could_run_is_refused(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    edit_json(folder, samplers=[table()])
    Bundle.open(folder)
    edit_json(folder, samplers=[table(**changes)])
    with pytest.raises(BundleError, match=named):
        Bundle.open(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_sampler_with_nonfinite_numbers_cannot_be_made(number: float) -> None:
    with pytest.raises(ValueError, match="'a': expected finite"):
        bundle_spec.Sampler(name="a", timesteps=(1,), coefficients=((0.0, number, 0.0),), guidance=(1.0,))


@pytest.mark.parametrize(("version", "todo"), [(2, "update realtime"), (0, "export the bundle again")])
def test_another_format_version_says_what_to_do(folder: Path, version: int, todo: str) -> None:
    edit_json(folder, format_version=version, something_new={"a": 1})
    with pytest.raises(BundleError, match=f"expected format version 1, got {version}; {todo}"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"something": 1}, "something"),
        ({"files": {"../outside": "0" * 64}}, "regex"),
        ({"files": {"/etc/passwd": "0" * 64}}, "regex"),
        ({"files": {}}, "no SHA-256 for 'brain.onnx'"),
        ({"graphs": {}}, "no graph"),
        ({"samplers": []}, "samplers"),
        (
            {"samplers": [{"name": "a", "timesteps": [1], "coefficients": [], "guidance": []}]},
            "differ in length",
        ),
        ({"tr_s": None}, "tr_s"),
        ({"latent_shape": [4, 0, 8]}, "latent_shape"),
    ],
)
def test_an_inconsistent_specification_is_refused(folder: Path, changes: dict[str, Any], named: str) -> None:
    edit_json(folder, **changes)
    with pytest.raises(BundleError, match=named):
        Bundle.open(folder)


def test_a_bundle_with_a_prior_of_the_drifts_and_one_without_come_back_as_written(
    make_tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    prior = bundle_spec.DriftPrior(frequencies_hz=(1 / 600, 2 / 600), noise_to_drift=(0.2173, 1e6))
    with_prior = make_tiny_bundle(tmp_path / "with", drift_prior=prior)
    without = make_tiny_bundle(tmp_path / "without")
    assert Bundle.open(with_prior).spec.drift_prior == prior
    assert Bundle.open(without).spec.drift_prior is None
    assert "drift_prior" not in json.loads((without / "bundle.json").read_text()), "as in older bundles"


@pytest.mark.parametrize(
    ("frequencies_hz", "ratios", "named"),
    [
        ([], [], "length >= 1"),
        ([0.001, 0.002], [1.0], "a ratio for each frequency"),
        ([0.002, 0.001], [1.0, 1.0], "rising finite frequencies"),
        ([0.001, 0.001], [1.0, 1.0], "rising finite frequencies"),
        ([0.0], [1.0], "> 0"),
        ([0.001], [0.0], ">= 1e-06"),
        ([0.001], [1e7], "<= 1000000"),
    ],
)
def test_a_prior_of_the_drifts_that_no_fit_could_use_is_refused(
    folder: Path, frequencies_hz: list[float], ratios: list[float], named: str
) -> None:
    edit_json(folder, drift_prior={"frequencies_hz": frequencies_hz, "noise_to_drift": ratios})
    with pytest.raises(BundleError, match=named):
        Bundle.open(folder)


def test_initial_latents_are_noise_by_default(folder: Path) -> None:
    opened = Bundle.open(folder)
    assert [sampler.start for sampler in opened.spec.samplers] == [(0.0, 1.0)] * 2
    assert "start" not in (folder / "bundle.json").read_text(), "an older runtime reads it too"


def test_brain_and_samplers_must_agree_on_initial_latents(folder: Path, starting_bundle: Path) -> None:
    assert Bundle.open(starting_bundle).spec.starts_from_brain
    samplers = json.loads((starting_bundle / "bundle.json").read_text())["samplers"]
    edit_json(folder, samplers=samplers)
    with pytest.raises(BundleError, match="'brain' and the samplers disagree"):
        Bundle.open(folder)
    graphs = json.loads((starting_bundle / "bundle.json").read_text())["graphs"]
    edit_json(folder, graphs=graphs, samplers=samplers[1:])
    with pytest.raises(BundleError, match="'brain' and the samplers disagree"):
        Bundle.open(folder)


def test_a_huge_specification_is_not_read(folder: Path) -> None:
    edit_json(folder, name="x" * bundle_spec.MAX_SPEC_BYTES)
    with pytest.raises(BundleError, match=r"bundle.json: expected at most"):
        Bundle.open(folder)


@settings(max_examples=60)
@given(data=st.data())
def test_any_bytes_are_a_specification_or_a_bundle_error(tiny_bundle: Path, data: st.DataObject) -> None:
    encoded = bytearray((tiny_bundle / "bundle.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    # One that still reads, with another name for something, is caught by the digests it lists.
    with suppress(BundleError):
        assert isinstance(bundle_spec.decode_spec(bytes(encoded)), bundle_spec.Spec)


class _Payload:
    """Executes code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize(
    ("mean", "found"),
    [
        (np.zeros(29, np.float32), "29"),
        (np.zeros(30, np.float64), "float64"),
        (np.full(30, np.nan, np.float32), "finite"),
        (np.array([_Payload()] * 30, dtype=object), "object"),
    ],
)
def test_a_prior_of_wrong_shape_or_dtype_is_refused(folder: Path, mean: np.ndarray, found: str) -> None:
    sd = np.ones(30, np.float32)
    put(folder, "prior.npz", lambda path: np.savez(path, mean=mean, sd=sd))
    with pytest.raises(BundleError, match=rf"prior.npz, mean: .*{found}"):
        Bundle.open(folder)


def test_a_prior_without_its_parts_is_refused(folder: Path) -> None:
    put(folder, "prior.npz", lambda path: np.savez(path, mean=np.zeros(30, np.float32)))
    with pytest.raises(BundleError, match=r"expected an .npz with mean, sd"):
        Bundle.open(folder)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00\xff\xff"])
def test_files_that_are_not_arrays_are_refused(folder: Path, content: bytes) -> None:
    put(folder, "null_condition.npy", lambda path: path.write_bytes(content))
    with pytest.raises(BundleError, match=r"null_condition.npy: expected an array"):
        Bundle.open(folder)
    put(folder, "prior.npz", lambda path: path.write_bytes(content))
    with pytest.raises(BundleError):
        Bundle.open(folder)


def test_a_truncated_array_is_refused(folder: Path) -> None:
    put(folder, "null_condition.npy", lambda path: path.write_bytes(path.read_bytes()[:-4]))
    with pytest.raises(BundleError, match="expected 32 bytes of numbers, found 28"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"no NIfTI"), gzip.compress(bytes(400))],
    ids=["empty", "no gzip", "no NIfTI", "zeros"],
)
def test_an_roi_that_is_not_nifti_is_refused(folder: Path, content: bytes) -> None:
    put(folder, "roi.nii.gz", lambda path: path.write_bytes(content))
    with pytest.raises(BundleError, match=r"roi.nii.gz"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_voxels": 31},
        {"shape": (6, 6, 7)},
        {"affine": ((2.0, 0, 0, -5.4), (0, 1.8, 0, -5.4), (0, 0, 1.8, 0), (0, 0, 0, 1))},
    ],
)
def test_an_roi_that_differs_from_the_specification_is_refused(folder: Path, changes: dict[str, Any]) -> None:
    spec = bundle_spec.decode_spec((folder / "bundle.json").read_bytes())
    roi = msgspec.structs.replace(spec.roi, **changes)
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, roi=roi))
    with pytest.raises(BundleError, match=r"roi.nii.gz: expected"):
        Bundle.open(folder)


def test_a_specification_is_written_atomically(folder: Path) -> None:
    before = (folder / "bundle.json").read_bytes()
    spec = bundle_spec.decode_spec(before)
    with pytest.raises(BundleError):
        bundle_spec.write_spec(folder, msgspec.structs.replace(spec, tr_s=float("nan")))
    assert (folder / "bundle.json").read_bytes() == before
    assert bundle_spec.write_spec(folder, spec) == file_sha256(folder / "bundle.json")
    assert {path.name for path in folder.iterdir()} == {*FILES, "bundle.json"}


def test_parts_are_found_by_name(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    assert opened.sampler().name == "ddim-4"
    assert opened.sampler("multistep-3").timesteps == (751, 401, 1)
    with pytest.raises(BundleError, match=r"samplers \(ddim-4, multistep-3\), got 'euler'"):
        opened.sampler("euler")
    with pytest.raises(BundleError, match="decoders"):
        opened.decoder("special")


def start(opened: Bundle, **changes: Any) -> wire.RunStart:
    roi = opened.spec.roi
    fields: dict[str, Any] = {"subject": 1, "tr_s": 4 / 3, "shape": roi.shape, "affine": roi.affine}
    return wire.RunStart(run_id="run", n_volumes=225, dtype="int16", **(fields | changes))


def test_a_matching_run_is_accepted(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    opened.check_run(start(opened))
    opened.check_run(start(opened, tr_s=1.333))
    rounded = tuple(tuple(float(np.float32(x)) for x in row) for row in opened.spec.roi.affine)
    opened.check_run(start(opened, affine=rounded))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("subject", {"subject": 2}),
        ("grid", {"shape": (6, 6, 7)}),
        ("grid", {"affine": ((1.8, 0, 0, -5.2), (0, 1.8, 0, -5.4), (0, 0, 1.8, -5.4), (0, 0, 0, 1))}),
        ("grid", {"affine": ((-1.8, 0, 0, 5.4), (0, 1.8, 0, -5.4), (0, 0, 1.8, -5.4), (0, 0, 0, 1))}),
        ("tr", {"tr_s": 1.6}),
    ],
)
def test_a_run_that_does_not_match_the_bundle_is_refused(
    tiny_bundle: Path, code: str, changes: dict[str, Any]
) -> None:
    opened = Bundle.open(tiny_bundle)
    with pytest.raises(WireError, match="expected .* got") as caught:
        opened.check_run(start(opened, **changes))
    assert caught.value.code == code
