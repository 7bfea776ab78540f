"""The design's arrows: which package may import which, and what must run without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "realtime": set(),
    "nsd": set(),
    "sim": {"nsd", "realtime"},
    "train": {"nsd", "realtime"},
    "export": {"train", "realtime"},
}
NEEDS_AN_EXTRA = {"torch", "diffusers", "peft", "deepspeed", "onnx", "onnxscript", "safetensors"}
WITHOUT_TORCH = ("realtime", "nsd", "sim")


def imported(file: Path) -> Iterator[str]:
    """Top-level names of everything ``file`` imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        ours = set(imported(file)) & (MAY_IMPORT.keys() - {package})
        assert ours <= MAY_IMPORT[package], f"{file} imports {ours - MAY_IMPORT[package]}"


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_the_base_install_needs_no_extra(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert not set(imported(file)) & NEEDS_AN_EXTRA, file


def test_the_commands_of_the_base_install_load_no_torch() -> None:
    code = (
        "import sys, realtime.cli, sim.__main__, sim.scanner\n"
        "loaded = {'torch', 'diffusers', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
