"""A bundle small enough to make in a test, with real arithmetic and pictures that depend on the window."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import nibabel
import numpy as np
import onnx
import platformdirs
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from realtime.bundle import bundle
from realtime.bundle import spec as bundle_spec
from realtime.bundle.files import file_sha256
from realtime.bundle.user_cache import PACKAGE
from realtime.decoding.engines.signature import signature

GRID = (6, 6, 6)
N_VOXELS = 30
WINDOW = 6
LATENTS = (4, 8, 8)
CONDITION = (2, 4)
IMAGE_PX = (32, 32)
AFFINE = ((1.8, 0.0, 0.0, -5.4), (0.0, 1.8, 0.0, -5.4), (0.0, 0.0, 1.8, -5.4), (0.0, 0.0, 0.0, 1.0))

DDIM = bundle_spec.Sampler(
    name="ddim-4",
    timesteps=(751, 501, 251, 1),
    coefficients=((0.8, 0.3, 0.0), (0.6, 0.5, 0.0), (0.3, 0.8, 0.0), (0.0, 1.0, 0.0)),
    guidance=(3.0, 3.0, 3.0, 3.0),
)
MULTISTEP = bundle_spec.Sampler(
    name="multistep-3",
    timesteps=(751, 401, 1),
    coefficients=((0.7, 0.4, 0.0), (0.5, 0.8, -0.2), (0.0, 1.5, -0.5)),
    guidance=(3.0, 1.0, 1.0),
)
IMAGE_TO_IMAGE = bundle_spec.Sampler(
    name="ddim-3-of-4",
    timesteps=(501, 251, 1),
    coefficients=((0.6, 0.5, 0.0), (0.3, 0.8, 0.0), (0.4, 0.6, 0.0)),
    guidance=(3.0, 3.0, 3.0),
    start=(0.6, 0.8),
)


@pytest.fixture(scope="package", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache, for this process and those that tests start; not the cache of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield platformdirs.user_cache_path(PACKAGE)


@pytest.fixture(scope="session")
def starting_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle whose brain graph also predicts initial latents; do not change it."""
    folder = tmp_path_factory.mktemp("bundle") / "starting"
    graphs = {name: _graph(name) for name in ("brain", "denoise", "vae")}
    start = bundle_spec.Tensor(name="start", dtype="float32", shape=(1, *LATENTS))
    graphs["brain"] = msgspec.structs.replace(graphs["brain"], outputs=(start,))
    return write_tiny_bundle(folder, samplers=(IMAGE_TO_IMAGE, DDIM), graphs=graphs)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny bundle; do not change it (see ``make_tiny_bundle``)."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def make_tiny_bundle() -> Callable[..., Path]:
    """Writes a tiny bundle into a new folder; keywords replace fields of its spec."""
    return write_tiny_bundle


@pytest.fixture(scope="session")
def tiny_bank(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle's decoder and two of windows that start 2 volumes before and 1 after a picture's onset.

    The former has a denoise graph of its own, the latter the general one's.
    """
    folder = tmp_path_factory.mktemp("bank") / "bank"
    shutil.copytree(tiny_bundle, folder)
    spec = bundle.Bundle.open(tiny_bundle).spec
    decoders, graphs = list(spec.decoders), dict(spec.graphs)
    for name, offset_volumes, own in (("before-2", -2, ("brain", "denoise")), ("after-1", 1, ("brain",))):
        for graph in own:
            file = f"{graph}-{name}.onnx"
            onnx.save(_weakened(onnx.load(folder / f"{graph}.onnx")), folder / file)
            graphs[f"{graph}-{name}"] = msgspec.structs.replace(graphs[graph], file=file)
        null_condition = f"null_condition-{name}.npy"
        shutil.copyfile(folder / bundle_spec.NULL_CONDITION_FILE, folder / null_condition)
        decoders.append(
            bundle_spec.Decoder(
                name=name,
                graph=f"brain-{name}",
                window=bundle_spec.Window(offset_volumes=offset_volumes, length_volumes=WINDOW),
                denoise=f"denoise-{name}" if "denoise" in own else "denoise",
                null_condition=null_condition,
            )
        )
    (folder / bundle_spec.SPEC_FILE).unlink()
    files = {path.name: file_sha256(path) for path in folder.iterdir()}
    changes = {"decoders": tuple(decoders), "graphs": graphs, "files": files}
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, **changes))
    return folder


def _weakened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with smaller weights."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(0.8 * values, tensor.name))
    return model


def write_tiny_bundle(folder: Path, seed: int = 0, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    mask = np.zeros(np.prod(GRID), dtype=np.uint8)
    mask[rng.choice(mask.size, N_VOXELS, replace=False)] = 1
    nibabel.save(nibabel.Nifti1Image(mask.reshape(GRID), np.array(AFFINE)), folder / "roi.nii.gz")
    np.savez(
        folder / "prior.npz",
        mean=np.full(N_VOXELS, 1000, dtype=np.float32),
        sd=np.full(N_VOXELS, 10, dtype=np.float32),
    )
    np.save(folder / "null_condition.npy", (0.1 * rng.standard_normal(CONDITION)).astype(np.float32))
    (folder / "README.md").write_text("A bundle made by a test.\n")
    spec = _spec(**changes)
    for name, graph in {
        "brain": _brain(spec, rng),
        "denoise": _denoise(spec, rng),
        "vae": _vae(spec, rng),
    }.items():
        onnx.save(graph, folder / f"{name}.onnx")
    files = {path.name: file_sha256(path) for path in folder.iterdir()}
    bundle_spec.write_spec(folder, _spec(**{"files": files, **changes}))
    return folder


def _spec(**changes: Any) -> bundle_spec.Spec:
    names = ["brain.onnx", "denoise.onnx", "vae.onnx", "roi.nii.gz", "prior.npz", "null_condition.npy"]
    fields: dict[str, Any] = {
        "format_version": bundle_spec.FORMAT_VERSION,
        "name": "tiny",
        "subject": 1,
        "roi": bundle_spec.Roi(file="roi.nii.gz", n_voxels=N_VOXELS, shape=GRID, affine=AFFINE),
        "tr_s": 4 / 3,
        "preprocessing": bundle_spec.Preprocessing(high_pass_hz=0.008, warmup_volumes=12, prior_volumes=10.0),
        "latent_shape": LATENTS,
        "image_size_px": IMAGE_PX,
        "condition_shape": CONDITION,
        "decoders": (
            bundle_spec.Decoder(
                name="general",
                graph="brain",
                window=bundle_spec.Window(offset_volumes=3, length_volumes=WINDOW),
            ),
        ),
        "samplers": (DDIM, MULTISTEP),
        "graphs": {name: _graph(name) for name in ("brain", "denoise", "vae")},
        "files": dict.fromkeys(names, "0" * 64),
        "provenance": (),
    }
    spec = bundle_spec.Spec(**(fields | changes))
    return spec


def _graph(name: str) -> bundle_spec.Graph:
    return bundle_spec.Graph(file=f"{name}.onnx", precision="float32", inputs=(), outputs=())


class _Builder:
    """Collects nodes and constants; every node gets one output, named after it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def model(self, spec: bundle_spec.Spec, name: str) -> onnx.ModelProto:
        inputs, outputs = (
            [helper.make_tensor_value_info(t.name, _TYPES[t.dtype], t.shape) for t in tensors]
            for tensors in signature(spec, name)
        )
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model


_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8}


def _brain(spec: bundle_spec.Spec, rng: np.random.Generator) -> onnx.ModelProto:
    """condition = tanh(window W); start, where samplers begin at it, = tanh(window S)."""
    b = _Builder()
    size = int(np.prod(spec.condition_shape))
    weights = rng.standard_normal((N_VOXELS * WINDOW, size)) / np.sqrt(N_VOXELS * WINDOW)
    b.constant("brain_weights", weights.astype(np.float32))
    b.constant("flat", np.array([1, N_VOXELS * WINDOW]))
    b.constant("shape", np.array([1, *spec.condition_shape]))
    flat = b.node("Reshape", "window", "flat")
    b.node("Reshape", b.node("Tanh", b.node("MatMul", flat, "brain_weights")), "shape", name="condition")
    if spec.starts_from_brain:
        size = int(np.prod(spec.latent_shape))
        weights = rng.standard_normal((N_VOXELS * WINDOW, size)) / np.sqrt(N_VOXELS * WINDOW)
        b.constant("start_weights", weights.astype(np.float32))
        b.constant("start_shape", np.array([1, *spec.latent_shape]))
        b.node(
            "Reshape", b.node("Tanh", b.node("MatMul", flat, "start_weights")), "start_shape", name="start"
        )
    return b.model(spec, "brain")


def _denoise(spec: bundle_spec.Spec, rng: np.random.Generator) -> onnx.ModelProto:
    """x0 = sum_i w_i tanh(condition_i M) + 1e-4 t latents; next = c0 latents + c1 x0 + c2 previous."""
    b = _Builder()
    tokens = int(np.prod(spec.condition_shape))
    size = int(np.prod(spec.latent_shape))
    b.constant("mix", (rng.standard_normal((tokens, size)) / np.sqrt(tokens)).astype(np.float32))
    b.constant("flat", np.array([-1, tokens]))
    b.constant("row", np.array([1, -1]))
    b.constant("latent_shape", np.array([1, *spec.latent_shape]))
    b.constant("per_timestep", np.array(1e-4, dtype=np.float32))
    b.constant("three", np.array([1, 1, 1]))
    each = b.node("Tanh", b.node("MatMul", b.node("Reshape", "conditions", "flat"), "mix"))
    mixed = b.node("MatMul", b.node("Reshape", "weights", "row"), each)
    scale = b.node("Mul", b.node("Cast", "timestep", to=TensorProto.FLOAT), "per_timestep")
    guided = b.node("Reshape", mixed, "latent_shape")
    b.node("Add", guided, b.node("Mul", "latents", scale), name="prediction")
    parts = [f"c{i}" for i in range(3)]
    b.nodes.append(helper.make_node("Split", ["coefficients", "three"], parts, axis=0))
    kept = b.node("Mul", "latents", "c0")
    step = b.node("Add", kept, b.node("Mul", "prediction", "c1"))
    b.node("Add", step, b.node("Mul", "previous", "c2"), name="next")
    return b.model(spec, "denoise")


def _vae(spec: bundle_spec.Spec, rng: np.random.Generator) -> onnx.ModelProto:
    """A 1x1 convolution to three channels, every latent a block of pixels, [-1, 1] to 0..255."""
    b = _Builder()
    height, width = spec.image_size_px
    channels, rows, columns = spec.latent_shape
    b.constant("colours", rng.standard_normal((3, channels, 1, 1)).astype(np.float32))
    b.constant("blocks", np.array([1, 3, rows, 1, columns, 1]))
    b.constant("pixels", np.array([1, 3, rows, height // rows, columns, width // columns]))
    b.constant("image_shape", np.array([3, height, width]))
    b.constant("half", np.array(127.5, dtype=np.float32))
    b.constant("low", np.array(0, dtype=np.float32))
    b.constant("high", np.array(255, dtype=np.float32))
    colours = b.node("Reshape", b.node("Conv", "latents", "colours"), "blocks")
    picture = b.node("Reshape", b.node("Expand", colours, "pixels"), "image_shape")
    scaled = b.node("Add", b.node("Mul", picture, "half"), "half")
    whole = b.node("Round", b.node("Clip", scaled, "low", "high"))
    b.node("Cast", b.node("Transpose", whole, perm=[1, 2, 0]), to=TensorProto.UINT8, name="image")
    return b.model(spec, "vae")
