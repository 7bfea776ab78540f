"""``cache.json``: the data and settings that a cache was made from. Does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from nsd import TR_S, Layout, RunKey
from nsd.splits import RunTrial
from realtime.atomic import write_whole
from train.errors import TrainError
from train.recipe import Recipe
from train.store.fingerprints import betas_identity

_JSON = "cache.json"


def required_settings(
    keys: list[RunKey],
    train_keys: list[RunKey],
    n_voxels: int,
    data: str,
    repaired: dict[RunKey, range],
    recipe: Recipe,
) -> dict[str, Any]:
    """Settings that must be equal for every recipe that uses a cache.

    :param data: fingerprint of the subject's recordings
    :param repaired: volumes that are left out, by run
    """
    preprocessing: dict[str, Any] = msgspec.to_builtins(recipe.preprocessing)
    del preprocessing["train_on"], preprocessing["repaired_volumes"]
    # Caches of earlier versions do not name these.
    if preprocessing["tr_s"] == TR_S:
        del preprocessing["tr_s"]
    if not preprocessing["drift_prior"]:
        del preprocessing["drift_prior"]
    settings = {
        "subject": keys[0].subject,
        "n_voxels": n_voxels,
        "runs": keys,
        "data": data,
        "split": recipe.split,
        "train_runs": train_keys,
        "preprocessing": preprocessing,
        # None where there are none, as in caches of earlier versions.
        "repaired volumes": [(key, volumes.start, volumes.stop) for key, volumes in repaired.items()] or None,
    }
    as_read_back: dict[str, Any] = json.loads(msgspec.json.encode(settings))
    return as_read_back


def optional_settings(layout: Layout, trials: list[RunTrial], recipe: Recipe) -> dict[str, Any]:
    """Settings that must be equal if both have them: the window of causal windows, the files of betas."""
    forms = recipe.preprocessing.train_on
    return {
        "window": msgspec.to_builtins(recipe.window) if "causal" in forms else None,
        "betas": betas_identity(layout, trials) if "betas" in forms else None,
    }


def claim(folder: Path, settings: dict[str, Any], optional: dict[str, Any]) -> None:
    """Write ``cache.json`` in a new cache; check it in an existing one.

    :param optional: settings that may be added to an existing cache
    :raises TrainError: ``folder`` holds a cache that was made from something else, or other files
    """
    path = folder / _JSON
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise TrainError(
                f"expected {folder} to be empty or to hold a cache, found other files; choose another folder"
            )
        write_whole(path, json.dumps(settings | optional, indent=1))
        return
    theirs = json.loads(path.read_text())
    different = [name for name in settings if theirs.get(name) != settings[name]]
    different += [name for name, value in optional.items() if value and theirs.get(name) not in (None, value)]
    if different:
        raise TrainError(
            f"{folder} was prepared with other {', '.join(different)} than this recipe and data set have; "
            "choose another folder, or remove this one to prepare it again"
        )
    grown = settings | {name: value or theirs.get(name) for name, value in optional.items()}
    if grown != theirs:
        write_whole(path, json.dumps(grown, indent=1))
