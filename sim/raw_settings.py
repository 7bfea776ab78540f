"""Settings of the raw side of a synthetic subject; their values are in ``raw.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sim.errors import SimError
from sim.settings import as_settings, read_toml

SLICE_ORDERS = ("none", "ascending", "interleaved")
_AT_LEAST_0 = (
    "aim_mm",
    "session_shift_mm",
    "between_runs_mm",
    "motion_mm",
    "swallows_per_min",
    "swallow_share",
    "jerks_per_run",
    "jerk_share",
    "thermal_sd",
)


@dataclass(frozen=True, kw_only=True)
class RawSettings:
    """Settings of the raw side; ``sim/raw.toml`` explains each field."""

    voxel_mm: tuple[float, float, float]
    margin_mm: tuple[float, float, float]
    oblique_deg: float
    aim_mm: float
    session_shift_mm: float
    session_turn_deg: float
    between_runs_mm: float
    motion_mm: float
    swallows_per_min: float
    swallow_share: float
    jerks_per_run: float
    jerk_share: float
    tr_s: float
    slice_order: str
    multiband: int
    thermal_sd: float

    def __post_init__(self) -> None:
        for name in _AT_LEAST_0:
            if not getattr(self, name) >= 0:
                raise SimError(f"raw setting {name}: expected 0 or more, got {getattr(self, name)}")
        if not (min(self.voxel_mm) > 0 and min(self.margin_mm) > 0):
            raise SimError(
                "raw settings voxel_mm and margin_mm: expected lengths above 0, "
                f"got {self.voxel_mm} and {self.margin_mm}"
            )
        if not 0 < self.tr_s <= 60:
            raise SimError(f"raw setting tr_s: expected seconds, above 0 and at most 60, got {self.tr_s}")
        if self.slice_order not in SLICE_ORDERS:
            expected = ", ".join(SLICE_ORDERS)
            raise SimError(f"raw setting slice_order: expected one of {expected}, got {self.slice_order!r}")
        if self.multiband < 1:
            raise SimError(f"raw setting multiband: expected at least 1, got {self.multiband}")


def read_raw_settings(path: Path | None = None) -> RawSettings:
    """Read settings from a TOML file with exactly the fields of `RawSettings`; the shipped one by default.

    :raises SimError: when the file is unreadable, a field is missing or unknown, or a value is invalid
    """
    source = path if path is not None else resources.files("sim") / "raw.toml"
    return as_settings(RawSettings, "raw", "raw.toml", source, read_toml(source, "raw settings"))
