"""A first training on a CPU says that DeepSpeed compiles, or what it waits for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from train.loop.compiling import tell_of_compiling


def test_compiling_and_waiting_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    caplog.set_level(logging.INFO, "train")
    tell_of_compiling()
    assert "this once" in caplog.text
    caplog.clear()
    folder = tmp_path / "deepspeed_shm_comm"
    folder.mkdir()
    lock = folder / "lock"
    lock.touch()
    tell_of_compiling()
    assert f"has left its lock: remove {lock}" in caplog.text
    caplog.clear()
    lock.unlink()
    (folder / "deepspeed_shm_comm.so").touch()
    tell_of_compiling()
    assert not caplog.text
