"""Settings of the simulated cortex; their values are in ``cortex.toml``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

from sim.errors import SimError

T = TypeVar("T")

_SHARES = ("retinotopic_share", "signal_share", "drift_share", "shared_noise_share", "driving_share")


@dataclass(frozen=True, kw_only=True)
class CortexSettings:
    """Settings of the simulated cortex; ``sim/cortex.toml`` explains each field."""

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
    category_weight: float
    driving_share: float
    size_exponent: float
    position_sigma_px: float
    peak_s: tuple[float, float]
    dispersion_s: float
    undershoot_delay_s: float
    undershoot_share: float
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


def read_settings(path: Path | None = None) -> CortexSettings:
    """Read settings from a TOML file with exactly the fields of `CortexSettings`; the shipped one by default.

    :raises SimError: when the file is unreadable, a field is missing or unknown, or a value is invalid
    """
    return read_toml(CortexSettings, "cortex", path)


def read_toml(kind: type[T], what: str, path: Path | None) -> T:
    """Read settings from a TOML file with exactly the fields of a dataclass; by default the shipped one.

    :param what: what they are settings of, which is also the name of the shipped file
    """
    source = path if path is not None else resources.files("sim") / f"{what}.toml"
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SimError(f"{source}: expected {what} settings in TOML: {error}") from error
    fields = {field.name: str(field.type) for field in dataclasses.fields(cast("Any", kind))}
    if values.keys() != fields.keys():
        missing, unknown = sorted(fields.keys() - values.keys()), sorted(values.keys() - fields.keys())
        raise SimError(f"{source}: expected the fields of {what}.toml; missing {missing}, unknown {unknown}")
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
