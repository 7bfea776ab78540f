from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from sim.errors import SimError
from sim.settings import WORLDS, PlainSettings, read_settings, settings_from, world_of


def shipped_text(name: str = "worlds/plain.toml") -> str:
    from importlib import resources

    return (resources.files("sim") / name).read_text(encoding="utf-8")


def test_shipped_settings_stay_within_what_the_demo_promises() -> None:
    settings = read_settings()
    assert isinstance(settings, PlainSettings)
    assert settings.signal_share <= 0.25
    assert settings.n_roi_voxels == 2000
    assert settings.n_retinotopic == 1200
    assert settings.peak_s == (4.5, 7.5)


@pytest.mark.parametrize("world", WORLDS)
def test_every_line_of_the_settings_file_is_explained(world: str) -> None:
    for line in shipped_text(f"worlds/{world}.toml").splitlines():
        assert not line.strip() or "#" in line, line


@pytest.mark.parametrize("world", WORLDS)
def test_a_record_gives_a_worlds_settings_back(world: str) -> None:
    settings = read_settings(world)
    assert world_of(settings) == world
    assert settings_from(world, json.loads(json.dumps(settings.as_dict()))) == settings


def test_the_plain_worlds_settings_have_the_name_they_always_had() -> None:
    """Data that were made with them can be continued."""
    sha256 = read_settings("plain").sha256()
    assert sha256 == "b684f6867e79c010ea22cdc7d21b7c63008b55a4be250af1d33ca078be1f6c36"


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
        (
            ("voxel_mm = 1.8", "voxel_mm ="),
            "expected the settings of a world: plain, natural, or a file, in TOML",
        ),
        (('world = "plain"', 'world = "flat"'), "expected world = one of plain, natural; got 'flat'"),
        (('world = "plain"', "#"), "expected world = one of plain, natural; got None"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = shipped_text()
    assert change[0] in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(SimError) as caught:
        read_settings(str(path))
    assert message in str(caught.value)


def test_missing_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        SimError, match=r"none\.toml: expected the settings of a world: plain, natural, or a file"
    ):
        read_settings(str(tmp_path / "none.toml"))


def test_a_file_is_a_world_as_good_as_a_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(shipped_text("worlds/natural.toml"), encoding="utf-8")
    assert read_settings(str(path)) == read_settings("natural")
