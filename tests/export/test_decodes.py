from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.errors import ExportError
from export.parity.decodes import Decodes, Seen, random_windows, recorded_windows
from export.parity.limits import Limits
from export.parity.parity_report import DecodeParity, GraphParity, Parity, page
from realtime.report.identification import Identification, Interval

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


def test_an_engine_that_cannot_run_here_is_noted_with_its_reason(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    decodes = decodes_of(exported, Limits())
    decodes.by_engine("compact, tensorrt", exported.bundle, "tensorrt")
    row = decodes.rows[-1]
    assert row.runs_on is None
    assert row.reason
    assert caplog.messages[-1] == f"compact, tensorrt left out: {row.reason}"
    assert row.psnr_db is None


def test_recordings_that_are_not_there(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot read held-out windows from"):
        recorded_windows(exported.checkpoint, tmp_path / "none", tmp_path / "cache", seed=1)


def test_the_page_escapes_what_it_shows_and_lists_every_row() -> None:
    graph = GraphParity(
        step="vae <onnx>", against="torch", what="image", largest=2.0, relative=0.00392, limit=1e-2
    )
    ran = DecodeParity(
        way="compact & fast",
        runs_on="a CPU",
        psnr_db=51.23,
        largest_levels=3,
        relative=0.0118,
        identification={
            "HOG": Identification(value=0.8, low=0.7, high=0.9, n_trials=9),  # as earlier versions wrote it
            "pixels": Identification(
                value=0.5, low=0.4, high=0.6, n_trials=9, by_picture=Interval(value=0.3, low=0.2, high=0.4)
            ),
        },
    )
    missing = DecodeParity(way="tensorrt", reason="no GPU <here>")
    parity = Parity(
        form="compact",
        windows="4 windows",
        samplers=["ddim-20", "dpm++-6"],
        seed=1,
        identification="Not measured.",
        limits={"psnr_db": 30.0, "identification": 0.01},
        graphs=[graph],
        decodes=[ran, missing],
    )
    text = page(parity, "<b>sub-01</b>")
    assert "<h1>Parity of &lt;b&gt;sub-01&lt;/b&gt;</h1>" in text
    assert "<td>vae &lt;onnx&gt;</td><td>torch</td><td>image</td><td>2</td><td>0.0039</td>" in text
    assert "<td>compact &amp; fast</td><td>a CPU</td><td>51.2</td><td>3</td><td>0.0118</td>" in text
    assert (
        "<td>80.00 % [70.0, 90.0]</td><td></td><td>50.00 % [40.0, 60.0]</td><td>30.00 % [20.0, 40.0]</td>"
        in text
    )
    for head in ("HOG, by decode", "HOG, by picture", "pixels, by decode", "pixels, by picture"):
        assert f"<th>{head}</th>" in text
    assert "<td>tensorrt</td><td>not here: no GPU &lt;here&gt;</td>" in text
    assert "by ddim-20, dpm++-6" in text
