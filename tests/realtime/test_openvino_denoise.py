"""Splitting, caching and concurrent conditions on OpenVINO do not change the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13 as operators
from openvino import properties

from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines import openvino_denoise
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.engines.openvino import cpu_core
from realtime.decoding.engines.openvino_denoise import DenoiseModel, name_of, split_by_input
from realtime.errors import EngineError

DEMO = Path(str(files("realtime") / "demo_data" / "bundle"))


def compiled(model: openvino.Model, n_at_once: int) -> openvino.CompiledModel:
    return cpu_core().compile_model(model, "CPU", {properties.num_streams: n_at_once})


def drawn(shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def shaped(folder: Path, n_conditions: int) -> openvino.Model:
    bundle = Bundle.open(folder)
    model = cpu_core().read_model(bundle.graph_path("denoise"))
    free = {"conditions": (n_conditions, *bundle.spec.condition_shape), "weights": (n_conditions,)}
    model.reshape(free)
    return model


@pytest.mark.parametrize("threads", [1, 2])
def test_every_sampler_gives_what_onnx_runtime_gives(threads: int, tiny_bundle: Path) -> None:
    """With one thread two conditions are a batch; with an even number each runs separately."""
    opened = Bundle.open(tiny_bundle)
    steps = {value == 1 for sampler in opened.spec.samplers for value in sampler.guidance}
    assert steps == {True, False}, "guided ones and others"
    found, expected = (
        Decoder(opened, open_engine(opened, name, threads)) for name in ("openvino", "onnxruntime-cpu")
    )
    for window in np.random.default_rng(4).standard_normal((3, 30, 6)).astype(np.float32):
        for sampler in opened.spec.samplers:
            images = [each.decode(window, sampler).image.astype(int) for each in (found, expected)]
            assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.parametrize("threads", [1, 2])
def test_cached_outputs_are_not_used_for_other_inputs(threads: int, tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    windows = np.random.default_rng(5).standard_normal((6, 30, 6)).astype(np.float32)
    used = Decoder(opened, open_engine(opened, "openvino", threads))
    images = [used.decode(window).image for window in windows]
    fresh = [
        Decoder(opened, open_engine(opened, "openvino", threads)).decode(window).image for window in windows
    ]
    np.testing.assert_array_equal(images, fresh)
    assert len({image.tobytes() for image in images}) == len(windows)


@pytest.mark.parametrize("is_paired", [True, False])
def test_the_demos_steps_are_those_of_its_graph(is_paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any cache sizes: conditions and timesteps recur."""
    monkeypatch.setattr(openvino_denoise, "_CACHE_SIZES", {"conditions": 2, "timestep": 1})
    whole = cpu_core().compile_model(shaped(DEMO, 2), "CPU")
    shapes = {name_of(port): tuple(port.shape) for port in whole.inputs}
    model = DenoiseModel(shaped(DEMO, 2), shapes, compiled, is_paired=is_paired)
    rng = np.random.default_rng(7)
    first, second = (rng.standard_normal(shapes["conditions"]).astype(np.float32) for _ in range(2))
    for conditions, timestep in ((first, 900), (first, 500), (second, 500), (first, 900), (first, 20)):
        given = drawn(shapes, rng) | {
            "conditions": conditions,
            "timestep": np.array([timestep]),
            "weights": np.array([-2, 3], dtype=np.float32),
        }
        expected = whole(given)
        found = model.run({name: openvino.Tensor(array) for name, array in given.items()})
        for name in ("next", "prediction"):
            atol = 1e-5 * np.abs(expected[name]).max()
            np.testing.assert_allclose(found[name].data, expected[name], atol=atol)


@pytest.mark.parametrize("threads", [1, 2])
def test_inconsistent_inputs_are_refused(threads: int, tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    engine = open_engine(opened, "openvino", threads)
    shapes = {name_of(port): tuple(port.shape) for port in shaped(tiny_bundle, 2).inputs}
    right = drawn(shapes, np.random.default_rng(8)) | {"timestep": np.array([500])}

    def run(**others: NDArray[Any]) -> None:
        engine.run("denoise", {name: engine.put(array) for name, array in (right | others).items()})

    run()
    with pytest.raises(EngineError, match="expected a weight for each of 2 conditions"):
        run(weights=np.ones(1, np.float32))
    with pytest.raises(EngineError, match="denoise failed on OpenVINO"):
        run(latents=right["latents"].astype(np.float64))
    with pytest.raises(EngineError, match="expected inputs .*'weights'"):
        run(unknown=np.ones(1, np.float32))
    run()


def of_two(build: Callable[[openvino.Node, openvino.Node], list[openvino.Node]]) -> openvino.Model:
    """A model of inputs a and b."""
    inputs = [operators.parameter([2], np.float32, name=name) for name in "ab"]
    for node, name in zip(inputs, "ab", strict=True):
        node.output(0).set_names({name})
    return openvino.Model([operators.result(node) for node in build(*inputs)], inputs, "of_two")


def test_a_split_model_computes_the_same() -> None:
    """An input that the rest also uses; one without a separate part; one that determines an output alone."""
    used_twice = of_two(lambda a, b: [operators.add(operators.multiply(operators.exp(a), b), a)])
    a, b = np.array([1, 2], np.float32), np.array([3, 4], np.float32)
    steps, parts = split_by_input(used_twice, ("a",))
    outcome = cpu_core().compile_model(parts["a"], "CPU")({"a": a}).values()
    given = {f"a.{place}": array for place, array in enumerate(outcome)}
    (found,) = cpu_core().compile_model(steps, "CPU")({"b": b} | given).values()
    np.testing.assert_allclose(found, np.exp(a) * b + a, rtol=1e-6)
    nothing_apart = of_two(lambda a, b: [operators.multiply(a, b)])
    output_alone = of_two(lambda a, b: [operators.multiply(operators.exp(a), b), operators.exp(a)])
    for model in (nothing_apart, output_alone):
        steps, parts = split_by_input(model, ("a",))
        assert not parts
        assert {name_of(port) for port in steps.inputs} == {"a", "b"}


@pytest.mark.parametrize("n_conditions", [1, 2])
def test_parts_of_the_demo_that_depend_on_one_input_are_split_off(n_conditions: int) -> None:
    """Keys and values of every cross-attention are split off, and every block's timestep embedding."""
    whole = shaped(DEMO, n_conditions)
    n_cross_attentions = len(
        {
            name.split(".attn2.")[0]
            for name in (node.get_friendly_name() for node in whole.get_ops())
            if ".attn2." in name
        }
    )
    steps, parts = split_by_input(shaped(DEMO, n_conditions), ("conditions", "timestep"))
    assert len(parts["conditions"].outputs) == 2 * n_cross_attentions > 0
    left = {name for name in map(name_of, steps.inputs) if "." not in name}
    assert left == {"latents", "previous", "weights", "coefficients"}
