"""Settings of the simulated worlds; their values are in ``worlds/``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, cast

from sim.errors import SimError

T = TypeVar("T")

_SHARES = ("retinotopic_share", "signal_share", "drift_share", "shared_noise_share", "driving_share")


@dataclass(frozen=True, kw_only=True)
class CortexSettings:
    """Settings that the cortices of all worlds have; the files in ``worlds/`` explain each field."""

    grid: tuple[int, int, int]
    voxel_mm: float
    shell_voxels: float
    n_roi_voxels: int
    retinotopic_share: float
    max_eccentricity_px: float
    rf_sigma_px: float
    rf_sigma_slope: float
    channel_share: float
    suppressive_share: float
    compression: float
    object_dimensions: int
    driving_share: float
    size_exponent: float
    position_sigma_px: float
    undershoot_delay_s: float
    image_on_s: float
    common_response_sd: float
    signal_share: float
    signal_share_sigma: float
    drift_share: float
    drift_period_s: tuple[float, float]
    shared_noise_share: float
    shared_noise_modes: int
    noise_rho: tuple[float, float]
    spikes_per_run: float
    spike_size_sd: float
    spike_mm: float
    baseline: tuple[float, float]
    fluctuation: float
    run_scale_sd: float

    def __post_init__(self) -> None:
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 < value < 1:
                raise SimError(f"cortex setting {name}: expected a share between 0 and 1, got {value}")
        if self.drift_share + self.shared_noise_share >= 1:
            raise SimError("cortex settings drift_share + shared_noise_share: expected less than 1 together")
        if self.n_roi_voxels < 2:
            raise SimError(f"cortex setting n_roi_voxels: expected at least 2, got {self.n_roi_voxels}")

    @property
    def n_retinotopic(self) -> int:
        """Number of retinotopic voxels in the ROI."""
        return round(self.n_roi_voxels * self.retinotopic_share)

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as plain values for a JSON file."""
        return dataclasses.asdict(self)

    def sha256(self) -> str:
        """Return the SHA-256 of the values, which identifies these settings."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class PlainSettings(CortexSettings):
    """Settings of the plain world; ``worlds/plain.toml`` explains each field."""

    category_weight: float
    peak_s: tuple[float, float]
    dispersion_s: float
    undershoot_share: float


@dataclass(frozen=True, kw_only=True)
class NaturalSettings(CortexSettings):
    """Settings of the natural world; ``worlds/natural.toml`` explains each field."""

    objects: tuple[int, int]
    object_px: tuple[float, float]
    overlap: float
    stage_share: tuple[float, float, float]
    stage_channels: tuple[int, int]
    stage_rf_growth: float
    saturation: float
    family_weight: float
    competition: float
    half_area: float
    fixation_px: float
    attention_sd: tuple[float, float]
    attention_time_s: float
    repetition_loss: tuple[float, float]
    session_tuning_deg: float
    session_gain_sd: float
    library_size: int
    peak_s: tuple[float, float]
    dispersion_s: tuple[float, float]
    undershoot_share: tuple[float, float]
    onset_s: tuple[float, float]
    selective_signal: float
    physiological_share: float
    breathing_s: tuple[float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drift_share + self.shared_noise_share + self.physiological_share >= 1:
            raise SimError(
                "cortex settings drift_share + shared_noise_share + physiological_share: expected less than "
                "1 together"
            )
        if not 1 <= self.objects[0] <= self.objects[1]:
            raise SimError(f"cortex setting objects: expected [fewest, most], got {list(self.objects)}")


WORLDS: dict[str, type[CortexSettings]] = {"plain": PlainSettings, "natural": NaturalSettings}
"""The shipped worlds, and what settings each has."""


def world_of(settings: CortexSettings) -> str:
    """Return the name of the world that has these settings."""
    return next(name for name, kind in WORLDS.items() if type(settings) is kind)


def read_settings(world: str = "plain") -> CortexSettings:
    """Read the settings of a shipped world by its name, or those in a TOML file with exactly its fields.

    :raises SimError: when there is no such file, a field is missing or unknown, or a value is invalid
    """
    shipped = resources.files("sim") / "worlds" / f"{world}.toml"
    source = shipped if world in WORLDS else Path(world)
    values = read_toml(source, f"the settings of a world: {', '.join(WORLDS)}, or a file")
    name = values.pop("world", None)
    if name not in WORLDS:
        raise SimError(f"{source}: expected world = one of {', '.join(WORLDS)}; got {name!r}")
    return as_settings(WORLDS[name], "cortex", f"worlds/{name}.toml", source, values)


def settings_from(world: str, stored: Mapping[str, Any]) -> CortexSettings:
    """Return the settings of a world from the values in a data set's record."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return WORLDS[world](**values)


def read_toml(source: Path | Traversable, what: str) -> dict[str, Any]:
    """Read a TOML file. :raises SimError: when it cannot be read"""
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SimError(f"{source}: expected {what}, in TOML: {error}") from error


def as_settings(
    kind: type[T], what: str, example: str, source: Path | Traversable, values: Mapping[str, Any]
) -> T:
    """Make settings of values with exactly the fields of a dataclass.

    :param what: what they are settings of
    :param example: the shipped file with these fields
    :raises SimError: when a field is missing or unknown, or a value is invalid
    """
    fields = {field.name: str(field.type) for field in dataclasses.fields(cast("Any", kind))}
    if values.keys() != fields.keys():
        missing, unknown = sorted(fields.keys() - values.keys()), sorted(values.keys() - fields.keys())
        raise SimError(f"{source}: expected the fields of {example}; missing {missing}, unknown {unknown}")
    return kind(**{name: _typed(what, name, fields[name], values[name]) for name in fields})


def _typed(what: str, name: str, kind: str, value: Any) -> Any:
    if kind.startswith("tuple"):
        kinds = kind[len("tuple[") : -1].split(", ")
        if not isinstance(value, list) or len(value) != len(kinds):
            raise SimError(f"{what} setting {name}: expected {len(kinds)} numbers, got {value!r}")
        return tuple(_typed(what, name, inner, item) for inner, item in zip(kinds, value, strict=True))
    accepted = {"int": (int,), "str": (str,)}.get(kind, (int, float))
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise SimError(f"{what} setting {name}: expected {kind}, got {value!r}")
    return {"int": int, "str": str}.get(kind, float)(value)
