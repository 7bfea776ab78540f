"""The worked examples of a source and an engine in CONTRIBUTING.md do what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.decoding.decoder import Decoder
from realtime.decoding.engines import choose
from realtime.errors import EngineError, ServeError
from realtime.sources.run_boundaries import Plan, RunBoundarySource

AFFINE = ((2.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))


@pytest.fixture
def example(contributing_example: Callable[[str], str]) -> Callable[[str], ModuleType]:
    """``example(path)``: the module that CONTRIBUTING.md shows for a path."""

    def load(path: str) -> ModuleType:
        module = ModuleType(Path(path).stem)
        exec(compile(contributing_example(path), path, "exec"), module.__dict__)
        return module

    return load


def test_the_example_of_a_source_sends_a_file_as_a_run(
    example: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    source_class = example("realtime/sources/npy.py").NpyScanner
    volumes = np.random.default_rng(0).integers(0, 999, (3, 4, 5, 6)).astype("<i2")
    np.save(tmp_path / "run.npy", volumes)
    plan = Plan(subject=1, run_id="sub-01_task-npy", n_volumes=3, tr_s=0.01)

    async def received() -> list[tuple[wire.ToRuntime, bytes]]:
        source = RunBoundarySource(source_class(tmp_path / "run.npy", AFFINE, plan.tr_s), plan)
        await source.start()
        messages = []
        while not messages or not isinstance(messages[-1][0], wire.RunEnd):
            one = await source.receive()
            messages.append((one.message, bytes(one.payload)))
            if isinstance(one.message, wire.RunStart):
                await one.reply(wire.RunAccepted(run_id=one.message.run_id, held=()))
            elif isinstance(one.message, wire.Volume):
                await one.reply(wire.Ack(run_id=one.message.run_id, index=one.message.index))
        await source.stop()
        return messages

    start, *sent, end = asyncio.run(received())
    assert isinstance(start[0], wire.RunStart)
    assert (start[0].shape, start[0].dtype, start[0].n_volumes) == ((4, 5, 6), "int16", 3)
    assert [payload for _, payload in sent] == [volume.tobytes() for volume in volumes]
    assert isinstance(end[0], wire.RunEnd)
    assert end[0].reason == "complete"
    with pytest.raises(ServeError, match="found none; check --source"):
        asyncio.run(source_class(tmp_path / "none.npy", AFFINE, 1.0).start())


def test_the_example_of_an_engine_decodes_as_the_engine_that_it_extends(
    example: Callable[[str], ModuleType], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = example("realtime/decoding/engines/coreml.py")
    monkeypatch.setitem(choose._MODULES, "coreml", "example")
    monkeypatch.setattr(choose, "ENGINES", (*choose.ENGINES, "coreml"))
    monkeypatch.setattr(choose, "_module", lambda name: engine)
    bundle = Bundle.open(tiny_bundle)
    if not choose.probe(bundle, "coreml").available:
        with pytest.raises(EngineError, match="has no Core ML"):
            choose.open_engine(bundle, "coreml")
        engine.PROVIDER = "CPUExecutionProvider"  # the provider is the only part that is Apple's
    window = np.random.default_rng(1).standard_normal((30, 6), dtype=np.float32)
    opened = choose.open_engine(bundle, "coreml")
    assert opened.description.endswith("Core ML")
    monkeypatch.undo()
    pictures = [
        Decoder(bundle, each).decode(window).image
        for each in (opened, choose.open_engine(bundle, "onnxruntime-cpu"))
    ]
    np.testing.assert_allclose(*(picture.astype(int) for picture in pictures), rtol=0, atol=1)
    assert np.ptp(pictures[0]) > 0
