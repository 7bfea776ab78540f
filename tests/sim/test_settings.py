from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sim.errors import SimError
from sim.settings import read_settings


def shipped_text(name: str = "cortex.toml") -> str:
    from importlib import resources

    return (resources.files("sim") / name).read_text(encoding="utf-8")


def test_shipped_settings_stay_within_what_the_demo_promises() -> None:
    settings = read_settings()
    assert settings.signal_share <= 0.25
    assert settings.n_roi_voxels == 2000
    assert settings.n_retinotopic == 1200
    assert settings.peak_s == (4.5, 7.5)


def test_every_line_of_the_settings_file_is_explained() -> None:
    for line in shipped_text().splitlines():
        assert not line.strip() or "#" in line, line


def test_changed_values_change_the_name_and_equal_ones_do_not() -> None:
    settings = read_settings()
    assert read_settings().sha256() == settings.sha256()
    assert dataclasses.replace(settings, compression=0.61).sha256() != settings.sha256()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("voxel_mm = 1.8", "voxel_cm = 1.8"), "missing ['voxel_mm'], unknown ['voxel_cm']"),
        (("grid = [20, 20, 20]", "grid = [20, 20]"), "grid: expected 3 numbers"),
        (("grid = [20, 20, 20]", "grid = [20, 20, 1.5]"), "grid: expected int, got 1.5"),
        (("voxel_mm = 1.8", "voxel_mm = 'wide'"), "voxel_mm: expected float, got 'wide'"),
        (("drift_share = 0.25", "drift_share = 1.5"), "drift_share: expected a share between 0 and 1"),
        (("drift_share = 0.25", "drift_share = 0.9"), "expected less than 1 together"),
        (("voxel_mm = 1.8", "voxel_mm ="), "expected cortex settings in TOML"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = shipped_text()
    assert change[0] in text
    path = tmp_path / "cortex.toml"
    path.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(SimError) as caught:
        read_settings(path)
    assert message in str(caught.value)


def test_missing_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(SimError, match=r"none\.toml: expected cortex settings"):
        read_settings(tmp_path / "none.toml")
