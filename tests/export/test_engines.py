"""`python -m export engines`: all or nothing, measured and recorded.

TensorRT's builder and inspector need a GPU: here a plan is the graph itself, on a device that is the host
(see tests/realtime/hostgpu.py), and the inspector says what a sound engine's says. All the rest is real.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import onnx
import pytest
from onnx import numpy_helper

from export.__main__ import main
from export.errors import ExportError
from export.tensorrt_plans.operators import typed_nodes
from realtime.bundle.bundle import Bundle
from realtime.bundle.user_cache import cache_folder
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.engines.cuda import Device
from realtime.decoding.engines.plans import RECORD_FILE, digest, find_plans

from .conftest import Exported

needs_rtx = pytest.mark.skipif(
    not find_spec("tensorrt_rtx"), reason="TensorRT-RTX is published for x86-64 Linux only"
)
MODULES = ("realtime.decoding.engines.tensorrt", "export.tensorrt_plans.plan", "export.tensorrt_plans.build")


@pytest.fixture
def bundle(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bundle.open(shutil.copytree(exported.folder, tmp_path / "sub-01"))


def inspected(path: Path) -> str:
    """A layer for every node, in the types of the graph."""
    names = {"float": "Float", "float16": "Half"}
    layers = []
    for node in typed_nodes(path):
        tensors = [{"Format/Datatype": names.get(kind, "Int64")} for kind in sorted(node.data)]
        layers.append(
            {
                "Name": node.name,
                "Metadata": f"[ONNX Layer: {node.name}]",
                "Inputs": tensors,
                "Outputs": tensors,
            }
        )
    return json.dumps({"Layers": layers, "Bindings": []})


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The command's module on a machine with a GPU, which is the host."""
    from ..realtime.hostgpu import HostGpu, HostRuntime

    rtx: Any = importlib.import_module("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    for name in MODULES:
        sys.modules.pop(name, None)
    module = importlib.import_module("export.tensorrt_plans.build")
    monkeypatch.setattr(HostRuntime, "gpu", HostGpu(monkeypatch), raising=False)
    monkeypatch.setattr(rtx, "Runtime", HostRuntime)
    for each in (module, sys.modules["realtime.decoding.engines.tensorrt"]):
        monkeypatch.setattr(each, "first_device", lambda: Device(name="A GPU", sm="90"))
    monkeypatch.setattr(
        module,
        "plan",
        SimpleNamespace(
            trt=rtx,
            build=lambda path, **options: memoryview(path.read_bytes()),
            inspect=lambda path, plan: inspected(path),
        ),
    )
    yield module
    for name in MODULES:
        sys.modules.pop(name, None)


@needs_rtx
def test_engines_are_built_measured_recorded_and_served(engines: ModuleType, bundle: Bundle) -> None:
    version = engines.plan.trt.__version__
    folder = engines.build_engines(bundle.folder, optimization_level=2)
    assert folder == cache_folder(bundle.sha256) / f"tensorrt-{version}-sm90"
    assert not (bundle.folder / "engines").exists()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert {path.name for path in folder.iterdir()} == {
        RECORD_FILE,
        "brain.plan",
        "denoise.plan",
        "vae.plan",
    }
    record = find_plans(Bundle.open(bundle.folder), version, "90", "A GPU")
    assert record.gpu == "A GPU"
    assert record.notes["optimization_level"] == "2"
    assert {graph: list(plan.parity) for graph, plan in record.plans.items()} == {
        "brain": ["condition"],
        "denoise": ["next"],
        "vae": ["image"],
    }
    assert all(error < 1e-6 for plan in record.plans.values() for error in plan.parity.values())
    assert record.psnr_db == 100.0
    for graph, plan in record.plans.items():
        assert plan.made_from == {f"{graph}.onnx": bundle.spec.files[f"{graph}.onnx"]}
        assert plan.layers["float32"] > 5
    described = open_engine(bundle, "auto").description
    assert described == f"TensorRT {version}, A GPU, plans {digest(record)}"


@needs_rtx
def test_an_engine_too_far_from_the_cpu_leaves_what_was_there(
    engines: ModuleType, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = engines.build_engines(bundle.folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def slightly_wrong(path: Path, **options: Any) -> memoryview:
        model = onnx.load(path)
        weights = next(each for each in model.graph.initializer if len(each.dims) == 4)
        weights.CopyFrom(numpy_helper.from_array(1.2 * numpy_helper.to_array(weights), weights.name))
        return memoryview(model.SerializeToString())

    build = engines.plan.build
    for graph in ("denoise", "vae"):
        monkeypatch.setattr(
            engines.plan,
            "build",
            lambda path, graph=graph, **options: (slightly_wrong if path.stem == graph else build)(path),
        )
        with pytest.raises(
            ExportError, match=rf"{graph}: expected \w+ within 0.001 of ONNX Runtime on the CPU"
        ):
            engines.build_engines(bundle.folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing half-written is left"


@needs_rtx
def test_what_is_no_engine_is_not_replaced(engines: ModuleType, bundle: Bundle) -> None:
    folder = engines.build_engines(bundle.folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"to hold only engines; it holds notes\.txt; move that away"):
        engines.build_engines(bundle.folder)


@needs_rtx
def test_no_room_is_told_and_leaves_nothing(
    engines: ModuleType, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        ExportError, match="cannot write .* MB to .*: No space left on device; no engine was written"
    ):
        engines.build_engines(bundle.folder)
    assert not list(cache_folder(bundle.sha256).iterdir())


@needs_rtx
def test_a_bundle_that_is_not_what_it_says_is_not_built(engines: ModuleType, bundle: Bundle) -> None:
    graphs = {
        name: msgspec.structs.replace(graph, precision="float16")
        for name, graph in bundle.spec.graphs.items()
    }
    importlib.import_module("realtime.bundle.spec").write_spec(
        bundle.folder, msgspec.structs.replace(bundle.spec, graphs=graphs)
    )
    with pytest.raises(
        ExportError, match=r"brain\.onnx: expected convolutions and matrix products in float16"
    ):
        engines.build_engines(bundle.folder)


@needs_rtx
def test_tensorrt_that_does_not_start_is_told(
    engines: ModuleType, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its binding does where CUDA does not start."""

    def fail(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(sys.modules["tensorrt"], "Builder", fail)
    with pytest.raises(ExportError, match=r"brain\.onnx: expected .* parses: pybind11::init\(\)"):
        importlib.import_module("export.tensorrt_plans.plan").parse(bundle.graph_path("brain"))


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_command_says_what_to_install(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["engines", "--bundle", str(exported.folder)]) == 2
    said = capsys.readouterr().err
    assert (
        "No module named 'tensorrt'; install them on a machine with an NVIDIA GPU: pip install '.[tensorrt]'"
        in said
    )
    assert not (exported.folder / "engines").exists()
