"""Decodes a window of z-scores to a picture on any engine.

    window ─► brain ─► condition ─► sampler's table, one denoise step per row ─► vae ─► picture
                └────► start ───────┘ (if the decoder predicts the initial latents)

The sampler is data. At each step the graph ``denoise`` predicts the clean latents x0, guided by the weighted
conditions, and returns ``next = c0 * latents + c1 * x0 + c2 * previous x0`` with the table's coefficients.
This covers DDIM (c2 = 0; Song et al. 2021) and DPM-Solver++(2M) (Lu et al. 2022).

The initial latents are seeded noise or, as in diffusers' img2img, latents that the brain graph predicts plus
noise; the sampler's ``start`` weights the two. The noise depends on the seed alone, so differences between
pictures come from the brain.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from realtime.decoding.engines.contract import Engine, Handle, LoopEngine, Step, Steps
from realtime.decoding.pace import Pace, StepTimes
from realtime.errors import EngineError

_TIMED_RUNS = 3
_TIMED_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A picture and how long each stage took."""

    image: NDArray[np.uint8]
    """RGB [H, W, 3]"""
    stages_ms: dict[str, float]
    """Time in ``brain``, ``denoise`` (all steps) and ``vae``; ``vae`` includes the blurring of faces."""


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A sampler with its tensors on the device."""

    steps: Steps
    start_weight: float
    """Weight of the latents that the brain graph predicts in the initial latents."""
    noise: NDArray[np.float32]
    """Noise of the initial latents, already weighted."""
    noise_on_device: Handle


def initial_noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Return standard normal noise that is the same in every release of numpy.

    numpy guarantees the bit stream of Philox (4x64, 10 rounds), but may change ``standard_normal``. So the
    64-bit words become uniform numbers, and pairs of these become normal by the Box-Muller transform.
    """
    count = math.prod(shape)
    words = np.random.Philox(seed).random_raw(2 * ((count + 1) // 2)).reshape(-1, 2)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:, 0])), 2.0 * np.pi * uniform[:, 1]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal.reshape(-1)[:count].reshape(shape).astype(np.float32)


class Decoder:
    """Decodes windows with one of a bundle's decoders.

    Creating it runs every graph to warm it up and to measure step times, unless ``step_times`` is given.

    :param seed: seed of the initial noise, which is the same for every picture
    :param name: name of the bundle's decoder; the first one by default
    :param blur: applied to every picture, RGB uint8 [H, W, 3]
    :param step_times: known step times, which skip the warm-up and the measurement
    :raises BundleError: when the bundle has no such decoder
    :raises EngineError: when a graph fails to run here, or gives numbers that are not finite
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        seed: int = 0,
        name: str | None = None,
        blur: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
        step_times: StepTimes | None = None,
    ) -> None:
        self._blur = blur
        self._bundle, self._engine = bundle, engine
        decoder = bundle.decoder(name)
        self.spec = decoder
        """The bundle's description of this decoder."""
        self._null = bundle.null_conditions[decoder.name][np.newaxis]
        self._window_shape = (bundle.spec.roi.n_voxels, decoder.window.length_volumes)
        latents = (1, *bundle.spec.latent_shape)
        self._noise = initial_noise(latents, seed)
        self._no_previous = engine.put(np.zeros(latents, dtype=np.float32))
        self._tables: dict[Sampler, _Table] = {}
        self.pace = Pace(step_times or self._warm_up())
        """How long decodes take on this engine."""

    def decode(self, window: NDArray[np.float32], sampler: Sampler | None = None) -> Decoded:
        """Decode a window [V, T] of z-scores.

        :param sampler: one of the bundle's samplers; its first by default
        :raises EngineError: when the window has the wrong shape, or a graph fails
        """
        if window.shape != self._window_shape:
            raise EngineError(f"expected a window of shape {self._window_shape}, got {window.shape}")
        sampler = sampler or self._bundle.sampler()
        decoded = self._decode(window, self._table(sampler))
        self.pace.note(sampler, sum(decoded.stages_ms.values()) / 1e3)
        return decoded

    def _decode(self, window: NDArray[np.float32], table: _Table) -> Decoded:
        engine = self._engine
        times = [perf_counter()]
        inputs = {"window": engine.put(window[np.newaxis].astype(np.float32))}
        outputs = engine.run(self.spec.graph, inputs)
        condition = engine.get(outputs["condition"])
        latents = self._first_latents(outputs, table)
        times.append(perf_counter())
        latents = self._denoise(condition, latents, table.steps)
        times.append(perf_counter())
        image = self._picture(latents)
        times.append(perf_counter())
        stages_s = zip(("brain", "denoise", "vae"), np.diff(times), strict=True)
        return Decoded(image=image, stages_ms={stage: 1e3 * float(seconds) for stage, seconds in stages_s})

    def _picture(self, latents: Handle) -> NDArray[np.uint8]:
        image = self._engine.get(self._engine.run("vae", {"latents": latents})["image"])
        return image if self._blur is None else self._blur(image)

    def _first_latents(self, outputs: Mapping[str, Handle], table: _Table) -> Handle:
        if not table.start_weight:
            return table.noise_on_device
        start = self._engine.get(outputs["start"])
        return self._engine.put(np.float32(table.start_weight) * start + table.noise)

    def _denoise(self, condition: NDArray[Any], latents: Handle, steps: Steps) -> Handle:
        conditions = np.concatenate([self._null, condition])
        if isinstance(self._engine, LoopEngine):
            return self._engine.sample(self.spec.denoise, steps, conditions, latents)
        return self._step_by_step(conditions, latents, steps)

    def _step_by_step(self, conditions: NDArray[Any], latents: Handle, steps: Steps) -> Handle:
        """Run the table's steps; an unguided step omits the null condition and costs half."""
        engine = self._engine
        both, alone = engine.put(conditions), engine.put(conditions[1:])
        previous = self._no_previous
        for step in steps:
            outputs = engine.run(
                self.spec.denoise,
                {
                    "latents": latents,
                    "previous": previous,
                    "timestep": step.timestep,
                    "conditions": both if step.is_guided else alone,
                    "weights": step.weights,
                    "coefficients": step.coefficients,
                },
            )
            latents, previous = outputs["next"], outputs["prediction"]
        return latents

    def _run_step(self, condition: NDArray[Any], latents: Handle, step: Step) -> None:
        self._engine.get(self._denoise(condition, latents, (step,)))

    def _table(self, sampler: Sampler) -> _Table:
        if sampler not in self._tables:
            rows = zip(sampler.timesteps, sampler.coefficients, sampler.guidance, strict=True)
            start_weight, noise_weight = sampler.start
            noise = np.float32(noise_weight) * self._noise
            self._tables[sampler] = _Table(
                steps=tuple(self._step(*row) for row in rows),
                start_weight=start_weight,
                noise=noise,
                noise_on_device=self._engine.put(noise),
            )
        return self._tables[sampler]

    def _step(self, timestep: int, coefficients: tuple[float, float, float], guidance: float) -> Step:
        is_guided = guidance != 1.0
        return Step(
            timestep=self._engine.put(np.array([timestep], dtype=np.int64)),
            coefficients=self._engine.put(np.array(coefficients, dtype=np.float32)),
            weights=self._engine.put(np.array([1 - guidance, guidance][not is_guided :], dtype=np.float32)),
            is_guided=is_guided,
        )

    def _warm_up(self) -> StepTimes:
        """Run every graph so that the first picture of a run is not slow, and measure the step times.

        ``denoise`` runs guided, unguided or both, as the samplers use it. If they use only one of the two,
        its time stands for the other. An engine may still compute once per timestep when it first occurs.
        """
        engine, start_table = self._engine, self._table(self._bundle.sampler())
        by_guidance = {
            step.is_guided: step for s in self._bundle.spec.samplers for step in self._table(s).steps
        }
        window = engine.put(np.zeros((1, *self._window_shape), dtype=np.float32))
        outputs = engine.run(self.spec.graph, {"window": window})
        for name, output in outputs.items():
            self._check_finite(self.spec.graph, name, output)
        condition, latents = engine.get(outputs["condition"]), self._first_latents(outputs, start_table)
        if isinstance(engine, LoopEngine):  # it prepares each table when it first runs it
            for sampler in self._bundle.spec.samplers:
                self._denoise(condition, latents, self._table(sampler).steps)
        for step in by_guidance.values():
            self._check_finite(self.spec.denoise, "next", self._denoise(condition, latents, (step,)))
        self._check_picture(latents)
        step_s = {
            is_guided: _time(partial(self._run_step, condition, latents, step))
            for is_guided, step in by_guidance.items()
        }
        return StepTimes(
            brain_s=_time(lambda: engine.get(engine.run(self.spec.graph, {"window": window})["condition"])),
            guided_s=step_s.get(True, step_s.get(False, 0.0)),
            unguided_s=step_s.get(False, step_s.get(True, 0.0)),
            vae_s=_time(lambda: self._picture(latents)),
        )

    def _check_finite(self, graph: str, name: str, output: Handle) -> None:
        if not np.isfinite(self._engine.get(output)).all():
            raise EngineError(
                f"{self._bundle.graph_path(graph)}: expected finite numbers in {name}, found others on "
                f"{self._engine.description}; export the bundle again, or use another engine"
            )

    def _check_picture(self, latents: Handle) -> None:
        """Check that noise does not become a flat picture: NaN is lost in the conversion to uint8."""
        image = self._engine.get(self._engine.run("vae", {"latents": latents})["image"])
        if (image.max(axis=(0, 1)) == image.min(axis=(0, 1))).any():
            raise EngineError(
                f"{self._bundle.graph_path('vae')}: expected that noise becomes a picture, found one whose "
                f"red, green or blue is the same everywhere on {self._engine.description}, as with weights "
                "that are not finite; export the bundle again, or use another engine"
            )


def _time(run: Callable[[], object]) -> float:
    """Return the median duration in seconds after one warm-up run; slow functions run fewer times."""
    run()
    taken_s: list[float] = []
    while len(taken_s) < _TIMED_RUNS and sum(taken_s) < _TIMED_S:
        began_s = perf_counter()
        run()
        taken_s.append(perf_counter() - began_s)
    return statistics.median(taken_s)
