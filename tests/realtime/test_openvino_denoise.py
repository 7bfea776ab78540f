"""What OpenVINO computes once for several steps, or side by side, gives what computing all of it would."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import openvino
import pytest

from realtime.bundle import Bundle
from realtime.decode import Decoder
from realtime.engines import open_engine
from realtime.engines.openvino_denoise import name_of, take_apart


def shaped(folder: Path, n_conditions: int) -> openvino.Model:
    bundle = Bundle.open(folder)
    model = openvino.Core().read_model(bundle.graph_path("denoise"))
    free = {"conditions": (n_conditions, *bundle.spec.condition_shape), "weights": (n_conditions,)}
    model.reshape(free)
    return model


@pytest.mark.parametrize("threads", [1, 2])
def test_every_sampler_gives_what_onnx_runtime_gives(threads: int, tiny_bundle: Path) -> None:
    """With one thread two conditions are a batch, with more each has its own."""
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


def test_what_is_kept_of_a_window_is_not_taken_for_the_next(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    windows = np.random.default_rng(5).standard_normal((6, 30, 6)).astype(np.float32)
    used = Decoder(opened, open_engine(opened, "openvino"))
    images = [used.decode(window).image for window in windows]
    fresh = [Decoder(opened, open_engine(opened, "openvino")).decode(window).image for window in windows]
    np.testing.assert_array_equal(images, fresh)
    assert len({image.tobytes() for image in images}) == len(windows)


@pytest.mark.parametrize("n_conditions", [1, 2])
def test_the_demo_steps_without_its_conditions_and_timestep(n_conditions: int) -> None:
    """Keys and values of every cross-attention are apart, and what every block adds for the timestep."""
    demo = Path(str(files("realtime") / "demo_data" / "bundle"))
    whole = shaped(demo, n_conditions)
    n_cross_attentions = len(
        {
            name.split(".attn2.")[0]
            for name in (node.get_friendly_name() for node in whole.get_ops())
            if ".attn2." in name
        }
    )
    compiled = openvino.compile_model(whole, "CPU")
    steps, parts = take_apart(shaped(demo, n_conditions), ("conditions", "timestep"))
    assert len(parts["conditions"].outputs) == 2 * n_cross_attentions > 0
    assert {"latents", "previous", "weights", "coefficients"} == {
        name for name in map(name_of, steps.inputs) if "." not in name
    }
    rng = np.random.default_rng(6)
    inputs = {
        name_of(port): np.array([500])
        if name_of(port) == "timestep"
        else rng.standard_normal(tuple(port.shape)).astype(np.float32)
        for port in compiled.inputs
    }
    given = {name: inputs[name] for name in ("latents", "previous", "weights", "coefficients")}
    for name, part in parts.items():
        outcome = openvino.compile_model(part, "CPU")({name: inputs[name]})
        given |= {f"{name}.{place}": array for place, array in enumerate(outcome.values())}
    expected, found = compiled(inputs), openvino.compile_model(steps, "CPU")(given)
    for name in ("next", "prediction"):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5 * scale)
