"""``import realtime`` offers a few names, and imports nothing before one of them is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import realtime

HEAVY = {
    *("torch", "onnx", "onnxruntime", "openvino", "tensorrt", "dlib"),
    *("aiohttp", "aiortc", "av", "cryptography", "prometheus_client"),
}


def loaded_by(code: str) -> set[str]:
    """The modules that a new interpreter has after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines())


def test_the_package_alone_loads_nothing() -> None:
    loaded = loaded_by("import realtime")
    assert not {name.split(".")[0] for name in loaded} & {*HEAVY, "numpy", "msgspec", "cv2", "nibabel"}
    assert {name for name in loaded if name.startswith("realtime.")} == set()


@pytest.mark.parametrize("name", realtime.__all__)
def test_a_name_loads_no_more_than_it_needs(name: str) -> None:
    loaded = loaded_by(f"from realtime import {name}")
    assert not {module.split(".")[0] for module in loaded} & HEAVY
    engines = {module for module in loaded if module.startswith("realtime.decoding")}
    assert bool(engines) == (name in ("Decoded", "Decoder", "open_engine"))


def test_the_names_are_those_that_the_package_lists() -> None:
    assert {*realtime.__all__} <= {*dir(realtime)}
    assert sorted(realtime.__all__) == realtime.__all__
    for name in realtime.__all__:
        assert getattr(realtime, name).__name__ == name
    misspelt = "Bundel"
    with pytest.raises(AttributeError, match="'realtime' has no attribute 'Bundel'"):
        getattr(realtime, misspelt)
