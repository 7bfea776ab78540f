"""The table-driven loop on an engine equals the same arithmetic in numpy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from realtime.decoding.decoder import Decoder, initial_noise
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.engines.contract import Engine, Handle, LoopEngine, Steps
from realtime.errors import BundleError, EngineError

Array = NDArray[Any]


@pytest.fixture(scope="module")
def opened(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def engine(opened: Bundle) -> Engine:
    return open_engine(opened, "onnxruntime-cpu")


def windows(count: int) -> Array:
    return np.random.default_rng(7).standard_normal((count, 30, 6)).astype(np.float32)


class Reference:
    """The tiny bundle's three graphs and the loop over the table, in float64."""

    def __init__(self, opened: Bundle) -> None:
        self.null = opened.null_conditions["general"].astype(np.float64).reshape(-1)
        self.weights: dict[str, Array] = {}
        for name in opened.spec.graphs:
            for tensor in onnx.load(opened.graph_path(name)).graph.initializer:
                self.weights[tensor.name] = numpy_helper.to_array(tensor).astype(np.float64)

    def decode(self, window: Array, sampler: Sampler, seed: int) -> Array:
        condition = np.tanh(window.reshape(-1) @ self.weights["brain_weights"])
        kept, share = sampler.start
        latents = share * initial_noise((4, 8, 8), seed).astype(np.float64)
        if kept:
            start = np.tanh(window.reshape(-1) @ self.weights["start_weights"])
            latents += kept * start.reshape(4, 8, 8)
        previous = np.zeros_like(latents)
        for t, (c0, c1, c2), guidance in zip(
            sampler.timesteps, sampler.coefficients, sampler.guidance, strict=True
        ):
            guided, unguided = (
                np.tanh(c @ self.weights["mix"]).reshape(4, 8, 8) for c in (condition, self.null)
            )
            prediction = unguided + guidance * (guided - unguided) + 1e-4 * t * latents
            latents = c0 * latents + c1 * prediction + c2 * previous
            previous = prediction
        colours = np.einsum("oc,chw->ohw", self.weights["colours"][:, :, 0, 0], latents)
        picture = colours.repeat(4, axis=1).repeat(4, axis=2).transpose(1, 2, 0)
        clipped: Array = np.clip(127.5 * picture + 127.5, 0, 255)
        return clipped


@pytest.mark.parametrize("name", ["ddim-4", "multistep-3"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_table_is_run_as_written(opened: Bundle, engine: Engine, name: str, seed: int) -> None:
    decoder, reference = Decoder(opened, engine, seed=seed), Reference(opened)
    sampler = opened.sampler(name)
    for window in windows(3):
        image = decoder.decode(window, sampler).image
        assert image.dtype == np.uint8
        assert image.shape == (32, 32, 3)
        assert (
            np.abs(image - reference.decode(window, sampler, seed)).max() < 0.51
        )  # rounding to whole numbers
        assert image.std() > 20  # and there is something to see


def test_a_table_may_start_from_latents_of_the_brain_graph(starting_bundle: Path) -> None:
    opened = Bundle.open(starting_bundle)
    decoder, reference = Decoder(opened, open_engine(opened, "onnxruntime-cpu"), seed=4), Reference(opened)
    for sampler in reversed(opened.spec.samplers):
        for window in windows(3):
            image = decoder.decode(window, sampler).image
            assert np.abs(image - reference.decode(window, sampler, seed=4)).max() < 0.51
    for unlike in ((0.0, 0.8), (0.6, 0.0)):
        other = reference.decode(window, msgspec.structs.replace(sampler, start=unlike), seed=4)
        assert np.abs(image - other).max() > 5, "both parts must matter, else nothing is tested"


def test_the_window_decides_the_picture(opened: Bundle, engine: Engine) -> None:
    decoder = Decoder(opened, engine)
    first, second = windows(2)
    images = [decoder.decode(window).image for window in (first, second, first)]
    np.testing.assert_array_equal(images[0], images[2])
    assert np.abs(images[0].astype(int) - images[1]).mean() > 10


def test_a_decode_does_not_change_its_window_or_earlier_pictures(opened: Bundle, engine: Engine) -> None:
    decoder = Decoder(opened, engine)
    first, second = windows(2)
    kept = first.copy()
    image = decoder.decode(first).image
    seen = image.copy()
    decoder.decode(second)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(image, seen)


def test_a_reopened_engine_decodes_the_same(opened: Bundle) -> None:
    (window,) = windows(1)
    first, second = (Decoder(opened, open_engine(opened), seed=3).decode(window).image for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_stages_are_timed(opened: Bundle, engine: Engine) -> None:
    decoded = Decoder(opened, engine).decode(windows(1)[0])
    assert list(decoded.stages_ms) == ["brain", "denoise", "vae"]
    assert all(value > 0 for value in decoded.stages_ms.values())


class Counting:
    """Forwards all calls and records the number of conditions of each step."""

    description = "counting"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.conditions: list[int] = []

    def put(self, array: Array) -> Handle:
        return self.engine.put(array)

    def get(self, tensor: Handle) -> Array:
        return self.engine.get(tensor)

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        if graph == "denoise":
            self.conditions.append(len(self.engine.get(inputs["conditions"])))
        return self.engine.run(graph, inputs)


def test_a_step_without_guidance_costs_half(opened: Bundle, engine: Engine) -> None:
    counting = Counting(engine)
    decoder = Decoder(opened, counting)
    assert set(counting.conditions) == {1, 2}  # both forms are warm
    counting.conditions.clear()
    decoder.decode(windows(1)[0], opened.sampler("multistep-3"))
    assert counting.conditions == [2, 1, 1]


class Looping(Counting):
    """Runs whole tables, as an engine with CUDA graphs does."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.tables: list[Steps] = []

    def sample(self, graph: str, steps: Steps, conditions: Array, latents: Handle) -> Handle:
        self.tables.append(steps)
        previous = self.put(np.zeros((1, 4, 8, 8), np.float32))
        for step in steps:
            inputs = {"latents": latents, "previous": previous, "timestep": step.timestep}
            inputs |= {"weights": step.weights, "coefficients": step.coefficients}
            inputs["conditions"] = self.put(conditions[0 if step.is_guided else 1 :])
            outputs = self.engine.run(graph, inputs)
            latents, previous = outputs["next"], outputs["prediction"]
        return latents


def test_an_engine_can_run_whole_tables(opened: Bundle, engine: Engine) -> None:
    looping = Looping(engine)
    assert isinstance(looping, LoopEngine)
    assert not isinstance(engine, LoopEngine)
    decoder, plain = Decoder(opened, looping), Decoder(opened, engine)
    assert [len(steps) for steps in looping.tables[:2]] == [4, 3], "every table is prepared before a run"
    assert {len(steps) for steps in looping.tables[2:]} == {1}, "then single steps are timed"
    prepared = list(looping.tables)
    for window in windows(2):
        for sampler in opened.spec.samplers:
            image = decoder.decode(window, sampler).image
            np.testing.assert_array_equal(image, plain.decode(window, sampler).image)
    assert set(looping.tables) == set(prepared), "a table is known again"
    assert looping.tables[len(prepared) :] == prepared[:2] * 2
    assert not looping.conditions, "the decoder leads it through no step"


class Slow(Counting):
    """Takes at least a known time for every run of a graph."""

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        n_conditions = len(self.engine.get(inputs["conditions"])) if graph == "denoise" else 1
        time.sleep({"brain": 0.01, "denoise": 0.02 * n_conditions, "vae": 0.03}[graph])
        return super().run(graph, inputs)


def test_step_times_are_measured_at_the_start_and_followed(opened: Bundle, engine: Engine) -> None:
    slow = Slow(engine)
    decoder = Decoder(opened, slow)
    times = decoder.pace.times
    assert times.brain_s >= 0.01
    assert times.guided_s >= 0.04
    assert times.unguided_s >= 0.02
    assert times.vae_s >= 0.03
    assert times.unguided_s < times.guided_s
    assert decoder.pace.factor == 1
    decoder._engine = engine  # the machine is many times faster from now on
    for window in windows(3):
        decoder.decode(window)
    assert decoder.pace.factor < 0.9


def test_a_window_of_another_shape_is_refused(opened: Bundle, engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"expected a window of shape \(30, 6\), got \(6, 30\)"):
        Decoder(opened, engine).decode(windows(1)[0].T)
    with pytest.raises(BundleError, match="decoders"):
        Decoder(opened, engine, name="special")


def test_noise_is_the_same_in_every_release() -> None:
    noise = initial_noise((2, 3), seed=0)
    expected = [
        [-0.14246037602424622, 2.9167699813842773, 1.0293543338775635],
        [0.666201651096344, -0.007848219946026802, 0.20520946383476257],
    ]
    np.testing.assert_array_equal(noise, np.array(expected, np.float32))


def test_noise_is_standard_normal_and_depends_on_the_seed() -> None:
    noise = initial_noise((4, 64, 65), seed=5)
    assert noise.shape == (4, 64, 65)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert abs((np.abs(noise) < 1).mean() - 0.6827) < 0.02
    assert abs(np.corrcoef(noise.ravel(), initial_noise((4, 64, 65), seed=6).ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(initial_noise((3, 3), 5).ravel()[:8], initial_noise((2, 4), 5).ravel())
