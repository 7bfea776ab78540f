"""Graphs of a bundle that would stop the runtime are refused before a run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.locate import demo_data
from realtime.bundle.user_cache import cache_folder
from realtime.decoding import doctor
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.trial import is_known, try_bundle
from realtime.errors import BundleError, EngineError

GRAPHS = ("brain", "denoise", "vae")
AT_ONCE_S = 1e-6
"""A time limit that no trial keeps."""


@pytest.fixture
def folder(make_tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle that nothing is remembered of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_tiny_bundle(tmp_path / "bundle")


def change(folder: Path, graph: str, edit: Callable[[onnx.ModelProto], object]) -> Bundle:
    """Edit a graph of a bundle as a stranger would, with its digest, and open the bundle."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path)
    edit(model)
    path.write_bytes(model.SerializeToString())
    spec = bundle_spec.decode_spec((folder / "bundle.json").read_bytes())
    files = {**spec.files, path.name: file_sha256(path)}
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, files=files))
    return Bundle.open(folder)


def before_output(model: onnx.ModelProto, *nodes: onnx.NodeProto, renamed: str = "before") -> None:
    """Put nodes between what was a graph's first output, now called ``renamed``, and that output."""
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = [renamed if each == name else each for each in node.output]
    model.graph.node.extend(nodes)


def add_loop(model: onnx.ModelProto) -> None:
    """A loop of 2**62 turns that gives what it takes."""
    output = model.graph.output[0]
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("held", "passed")]
    turn = helper.make_tensor_value_info("turn", TensorProto.INT64, [])
    on, still = (helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still"))
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["held"], ["passed"])],
        "body",
        [turn, on, floats[0]],
        [still, floats[1]],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62, np.int64), "turns"))
    before_output(model, helper.make_node("Loop", ["turns", "", "before"], [output.name], body=body))


def add_if(model: onnx.ModelProto) -> None:
    output = model.graph.output[0]
    branch = helper.make_graph(
        [helper.make_node("Identity", ["before"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", output.type.tensor_type.elem_type, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    before_output(
        model, helper.make_node("If", ["always"], [output.name], then_branch=branch, else_branch=branch)
    )


def add_functions(model: onnx.ModelProto) -> None:
    """Forty functions, each of which calls the next twice: 2**40 nodes once they are inlined."""
    for n in range(40):
        twice = [("Identity" if n == 39 else f"f{n + 1}", x, y) for x, y in (("x", "y"), ("y", "z"))]
        nodes = [helper.make_node(op, [x], [y], domain="" if n == 39 else "own") for op, x, y in twice]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        model.functions.append(helper.make_function("own", f"f{n}", ["x"], ["z"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    before_output(model, helper.make_node("f0", ["before"], [model.graph.output[0].name], domain="own"))


def add_work(model: onnx.ModelProto) -> None:
    """Days of arithmetic without any control flow."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([4096, 4096], np.int64), "size"))
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["ones"]),
        helper.make_node("ReduceSum", ["before"], ["sum"], keepdims=0),
        helper.make_node("Add", ["ones", "sum"], ["m0"]),
        *(helper.make_node("MatMul", [f"m{n}", f"m{n}"], [f"m{n + 1}"]) for n in range(100_000)),
        helper.make_node("ReduceSum", ["m100000"], ["worked"], keepdims=0),
        helper.make_node("Add", ["before", "worked"], [model.graph.output[0].name]),
    ]
    before_output(model, *nodes)


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino"])
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    ("edit", "found"), [(add_loop, "control flow"), (add_if, "control flow"), (add_functions, "a function")]
)
def test_graphs_with_control_flow_or_functions_are_not_loaded(
    folder: Path, edit: Callable[[onnx.ModelProto], None], found: str, graph: str, name: str
) -> None:
    bundle = change(folder, graph, edit)
    with pytest.raises(EngineError, match=rf"{graph}\.onnx: expected an ONNX graph: found {found}"):
        open_engine(bundle, name)


def spoil(model: onnx.ModelProto) -> None:
    """NaN in the weights, as a training that diverged leaves."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "openvino"])
@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ("brain", "finite numbers in condition"),
        ("denoise", "finite numbers in next"),
        ("vae", "becomes a pic"),
    ],
)
def test_weights_that_are_not_finite_are_refused(folder: Path, graph: str, found: str, name: str) -> None:
    bundle = change(folder, graph, spoil)
    engine = open_engine(bundle, name)
    with pytest.raises(EngineError, match=rf"{graph}\.onnx: expected .*{found}"):
        Decoder(bundle, engine)
    with pytest.raises(EngineError, match=rf"{graph}\.onnx: expected .*{found}"):
        try_bundle(bundle, name)


def test_a_graph_that_computes_for_ever_is_ended(folder: Path) -> None:
    bundle = change(folder, "brain", add_work)
    with pytest.raises(EngineError, match=r"expected graphs that run once within 5 s, these did not end"):
        try_bundle(bundle, "onnxruntime-cpu", limit_s=5)
    assert not multiprocessing.active_children()


def ended_by(number: signal.Signals, bundle: Bundle) -> str:
    """What is said of a bundle whose trial a signal ends."""

    def end() -> None:
        end_s = time.monotonic() + 60
        while not (children := multiprocessing.active_children()) and time.monotonic() < end_s:
            time.sleep(0.01)
        for child in children:
            os.kill(child.pid or 0, number)

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(EngineError) as failed:
        try_bundle(bundle, "onnxruntime-cpu")
    ending.join()
    return str(failed.value)


def test_a_graph_that_takes_the_engine_down_takes_nothing_else_down(folder: Path) -> None:
    bundle = change(folder, "brain", add_work)
    said = ended_by(signal.SIGKILL, bundle)
    assert "they ended the engine's process (exit code -9)" in said
    with pytest.raises(EngineError) as again:
        try_bundle(bundle, "onnxruntime-cpu", limit_s=AT_ONCE_S)
    assert str(again.value) == said, "the failure is remembered with its reason"
    with pytest.raises(EngineError, match="did not end"):
        try_bundle(bundle, "onnxruntime-cpu", limit_s=AT_ONCE_S, again=True)


def test_a_trial_that_is_stopped_says_nothing_of_the_engine(folder: Path) -> None:
    bundle = change(folder, "brain", add_work)
    assert "was stopped; start again" in ended_by(signal.SIGTERM, bundle)
    with pytest.raises(EngineError, match="did not end"):
        try_bundle(bundle, "onnxruntime-cpu", limit_s=AT_ONCE_S)


def test_a_bundle_that_changes_meanwhile_says_nothing_of_the_engine(folder: Path) -> None:
    bundle = Bundle.open(folder)
    change(folder, "brain", spoil)
    with pytest.raises(BundleError, match="changed while it was opened"):
        try_bundle(bundle, "openvino-bf16")
    assert not is_known(bundle, "openvino-bf16")


def test_what_passed_is_remembered_for_the_bundle_and_the_engine(
    make_tiny_bundle: Callable[..., Path], folder: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(folder)
    try_bundle(bundle, "onnxruntime-cpu")
    try_bundle(bundle, "onnxruntime-cpu", limit_s=AT_ONCE_S)
    for other, engine in (
        (bundle, "openvino"),
        (Bundle.open(make_tiny_bundle(tmp_path / "other", seed=1)), "onnxruntime-cpu"),
    ):
        with pytest.raises(EngineError, match="did not end"):
            try_bundle(other, engine, limit_s=AT_ONCE_S)
    remembered = cache_folder(bundle.sha256) / "tried.json"
    remembered.write_text(remembered.read_text().replace("numpy", "another"))
    with pytest.raises(EngineError, match="did not end"):
        try_bundle(bundle, "onnxruntime-cpu", limit_s=AT_ONCE_S)


def test_a_cache_that_others_may_write_is_not_believed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = Bundle.open(folder)
    try_bundle(bundle, "onnxruntime-cpu")
    place = cache_folder(bundle.sha256)
    user_cache = place.parent
    assert [path.stat().st_mode & 0o777 for path in (user_cache, place)] == [0o700, 0o700]
    place.chmod(0o777)
    with pytest.raises(BundleError, match=r"others may write \(mode 0777\)"):
        cache_folder(bundle.sha256)
    with pytest.raises(EngineError, match="did not end"):
        try_bundle(bundle, "onnxruntime-cpu", limit_s=AT_ONCE_S)
    assert "the bundle's graphs are tried again" in caplog.text
    place.rename(user_cache / "elsewhere")
    place.symlink_to(user_cache / "elsewhere")
    with pytest.raises(BundleError, match="found a link"):
        cache_folder(bundle.sha256)


def test_the_shipped_bundle_needs_no_trial() -> None:
    shipped = Bundle.open(demo_data("bundle"))
    try_bundle(shipped, "onnxruntime-cpu", limit_s=AT_ONCE_S)
    assert not (cache_folder(shipped.sha256) / "tried.json").exists()


def test_the_doctor_names_the_engines_that_a_bundle_does_not_run_on(folder: Path, tmp_path: Path) -> None:
    found = doctor.diagnose(change(folder, "vae", spoil), tmp_path)
    assert not found.engine
    reasons = {each.name: each.reason for each in found.engines}
    assert "vae.onnx: expected that noise becomes a picture" in reasons["onnxruntime-cpu"]
