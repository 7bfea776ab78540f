from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.errors import ExportError
from export.parity.decodes import Decodes, Seen, random_windows, recorded_windows
from export.parity.limits import Limits

from .conftest import Exported


def decodes_of(exported: Exported, limits: Limits) -> Decodes:
    """Twelve windows, of which it is said that what torch makes of them was shown."""
    checkpoint, samplers = exported.checkpoint, exported.bundle.spec.samplers[:1]
    windows = random_windows(checkpoint, 12, seed=5).windows
    seen = Seen(windows=windows, shown=None, description="windows", identification="")
    first = Decodes(seen=seen, samplers=samplers, seed=9, limits=limits)
    first.by_torch("torch", checkpoint)
    assert first._reference is not None
    seen = Seen(windows=windows, shown=first._reference, description="windows", identification="")
    decodes = Decodes(seen=seen, samplers=samplers, seed=9, limits=limits)
    decodes.by_torch("torch", checkpoint)
    return decodes


def test_identification_is_measured_and_stays(exported: Exported) -> None:
    decodes = decodes_of(exported, Limits())
    decodes.by_engine("compact", exported.bundle, "onnxruntime-cpu")
    torch, compact = decodes.rows
    assert torch.identification.keys() == compact.identification.keys() == {"pixels", "HOG"}
    assert torch.identification["pixels"].value == compact.identification["pixels"].value == 1.0
    assert compact.psnr_db is not None
    assert compact.psnr_db > 40


def test_identification_that_changes_too_much_is_named(exported: Exported) -> None:
    decodes = decodes_of(exported, Limits(psnr_db=0))
    assert decodes._reference is not None
    shuffled = decodes._reference[np.roll(np.arange(12), 1)]
    with pytest.raises(ExportError, match="^decodes, shuffled: expected identification by pixels"):
        decodes._add("shuffled", "nothing", shuffled)


def test_a_way_whose_pictures_differ_is_named(exported: Exported) -> None:
    decodes = decodes_of(exported, Limits())
    assert decodes._reference is not None
    with pytest.raises(ExportError, match=r"^decodes: expected a PSNR of at least 30 dB .* for inverted"):
        decodes._add("inverted", "nothing", 255 - decodes._reference)


def test_an_engine_that_cannot_run_here_is_noted_with_its_reason(exported: Exported) -> None:
    decodes = decodes_of(exported, Limits())
    decodes.by_engine("compact, tensorrt", exported.bundle, "tensorrt")
    row = decodes.rows[-1]
    assert row.runs_on is None
    assert row.reason
    assert row.psnr_db is None


def test_recordings_that_are_not_there(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected held-out windows of"):
        recorded_windows(exported.checkpoint, tmp_path / "none", tmp_path / "cache", seed=1)
