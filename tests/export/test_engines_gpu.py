"""With an NVIDIA GPU and TensorRT: engines are right and fast, and recorded loops do what single steps do."""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np
import pytest

from export.bundle.build import export_bundle
from export.errors import ExportError
from realtime.bundle import spec as bundle_spec
from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines.choose import open_engine
from realtime.decoding.engines.contract import Engine, Handle, LoopEngine
from realtime.decoding.engines.plans import RECORD_FILE, Record, plans_folder
from realtime.errors import EngineError

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def why_not() -> str:
    """What is missing here; empty where nothing is."""
    missing = [name for name in ("tensorrt", "polygraphy", "cuda") if not find_spec(name)]
    if missing:
        return f"not installed: {', '.join(missing)}; pip install '.[tensorrt]'"
    from realtime.decoding.engines.cuda import first_device

    try:
        first_device()
    except EngineError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module", autouse=True)
def _a_gpu() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module", autouse=True)
def _a_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A user's cache that is not that of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported_bundle(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The tiny checkpoint in one form and the other."""
    return export_bundle(tiny_checkpoint, tmp_path_factory.mktemp("gpu") / "bundle", form=request.param)


@pytest.fixture(scope="module")
def built(exported_bundle: Bundle) -> Bundle:
    """The same, with engines for this machine."""
    from export.tensorrt_plans.build import build_engines

    cache = exported_bundle.folder.parent / "timing.cache"
    build_engines(exported_bundle.folder, optimization_level=1, timing_cache=cache)
    assert cache.stat().st_size > 0
    return exported_bundle


@pytest.fixture
def engine(built: Bundle) -> Engine:
    return open_engine(built, "tensorrt")


def engines_folder(bundle: Bundle) -> Path:
    import tensorrt

    from realtime.decoding.engines.cuda import first_device

    return plans_folder(bundle, tensorrt.__version__, first_device().sm)


def record_of(bundle: Bundle) -> Record:
    return msgspec.json.decode((engines_folder(bundle) / RECORD_FILE).read_bytes(), type=Record)


def window(bundle: Bundle, seed: int = 0) -> np.ndarray:
    shape = (bundle.spec.roi.n_voxels, bundle.decoder().window.length_volumes)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Steps:
    """An engine that must be led through the steps."""

    def __init__(self, engine: Engine) -> None:
        self.description, self.put, self.get = engine.description, engine.put, engine.get
        self._engine = engine

    def run(self, graph: str, inputs: Mapping[str, Handle]) -> dict[str, Handle]:
        return self._engine.run(graph, inputs)


def test_engines_decode_as_the_cpu_does(built: Bundle, engine: Engine) -> None:
    ways = [Decoder(built, each) for each in (engine, open_engine(built, "onnxruntime-cpu"))]
    for sampler in built.spec.samplers:
        found, expected = (way.decode(window(built), sampler).image.astype(float) for way in ways)
        assert np.mean((found - expected) ** 2) < 255**2 / 10**3, "a PSNR of 30 dB"
    assert record_of(built).psnr_db >= 30


def test_a_recorded_loop_is_its_steps(built: Bundle, engine: Engine) -> None:
    assert isinstance(engine, LoopEngine)
    recorded, led = Decoder(built, engine), Decoder(built, Steps(engine))
    assert "step by step" not in engine.description
    for sampler in built.spec.samplers:
        for seed in range(3):
            one, other = (each.decode(window(built, seed), sampler).image for each in (recorded, led))
            np.testing.assert_array_equal(one, other)


def test_layers_compute_in_what_the_graphs_say(built: Bundle) -> None:
    for graph, plan in record_of(built).plans.items():
        precision = built.spec.graphs[graph].precision
        assert plan.layers.get(precision, 0) > 0, plan
        if precision == "float32":
            assert "float16" not in plan.layers, plan


def test_a_float32_graph_of_what_is_called_float16_is_refused(
    exported_bundle: Bundle, tmp_path: Path
) -> None:
    from export.tensorrt_plans.build import build_engines

    if exported_bundle.spec.graphs["denoise"].precision != "float32":
        pytest.skip("its graphs are what they are called")
    folder = tmp_path / "bundle"
    shutil.copytree(exported_bundle.folder, folder)
    spec = exported_bundle.spec
    graphs = {
        name: msgspec.structs.replace(graph, precision="float16") for name, graph in spec.graphs.items()
    }
    bundle_spec.write_spec(folder, msgspec.structs.replace(spec, graphs=graphs))
    with pytest.raises(ExportError, match=r"expected convolutions and matrix products in float16"):
        build_engines(folder, optimization_level=0)
    assert not engines_folder(Bundle.open(folder)).exists()


def test_a_step_takes_little_time(built: Bundle, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    decoder, sampler = Decoder(built, engine), built.sampler()
    taken_s = []
    for seed in range(20):
        began_s = perf_counter()
        decoder.decode(window(built, seed), sampler)
        taken_s.append(perf_counter() - began_s)
    step_ms = 1e3 * statistics.median(taken_s) / len(sampler.timesteps)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{engine.description}: {step_ms:.2f} ms a step, with its share of brain and VAE\n"
        )
    assert step_ms < 100, "of a model of some thousand weights"


def test_a_plan_cut_short_with_a_record_that_fits_does_not_load(
    built: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(engines_folder(built).parents[2], tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle, record = built, record_of(built)
    path = engines_folder(bundle) / "vae.plan"
    path.write_bytes(path.read_bytes()[:-1000])
    plan = msgspec.structs.replace(record.plans["vae"], sha256=file_sha256(path))
    changed = msgspec.structs.replace(record, plans={**record.plans, "vae": plan})
    (path.parent / RECORD_FILE).write_bytes(msgspec.json.encode(changed))
    with pytest.raises(EngineError, match=r"vae\.plan: expected a plan that TensorRT"):
        open_engine(bundle, "tensorrt")
    assert "passed over: tensorrt: " in open_engine(bundle, "auto").description
