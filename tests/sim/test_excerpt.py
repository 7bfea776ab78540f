from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nsd import BadRequest, Layout, MissingFile, Run, read_roi, runs
from sim.__main__ import main
from sim.errors import SimError
from sim.excerpt import excerpt
from sim.recording import Recording
from sim.synthetic_json import read_provenance

from .conftest import SEED, Tiny


def test_an_excerpt_is_a_data_set_of_its_own(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--nsd", str(tiny.root), "--session", "1", "--run", "4", "--out", str(out)]
    assert main(["excerpt", *options]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 6 files, ")
    layout = Layout(out)
    assert runs(layout, 1) == [(1, 1, 4)]
    original, copy = Run(Layout(tiny.root), 1, 1, 4), Run(layout, 1, 1, 4)
    roi = read_roi(layout, 1)
    assert np.array_equal(copy.roi_series(roi), original.roi_series(roi))
    assert copy.trials == original.trials
    assert read_provenance(out).seed == SEED
    assert not layout.stimuli().exists()
    with Recording(layout, subject=1, session=1, run=4) as recording:
        assert len(recording.markers) == len(original.trials)
        assert recording.picture_png(9).startswith(b"\x89PNG")


def test_nsd_itself_is_never_copied(tiny: Tiny, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "nsd")
    layout.roi(1).parent.mkdir(parents=True)
    with pytest.raises(SimError, match="expected a synthetic data set"):
        excerpt(layout.root, tmp_path / "out", subject=1, session=1, run=1)
    assert not (tmp_path / "out").exists()


def test_missing_runs_cannot_be_copied(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="session02_run01"):
        excerpt(tiny.root, tmp_path / "out", subject=1, session=2, run=1)
    with pytest.raises(SimError, match="expected another folder"):
        excerpt(tiny.root, tiny.root, subject=1, session=1, run=1)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadRequest):
        runs(Layout(tmp_path), 9)
