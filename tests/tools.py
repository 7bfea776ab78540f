"""Outside tools that tests need: how each is found, and the line that installs it.

Without a tool the tests that need it are skipped, and the last lines of the run say how many and what to do.
Under ``CI=true`` they fail instead, so that nothing is skipped unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A program that pip does not install."""

    name: str
    install: str
    find: Callable[[], str | None]

    @property
    def missing(self) -> str:
        return f"needs {self.name}, found none; to install: {self.install}"

    def path(self) -> str:
        """Where it is; skips or fails the test where it is nowhere."""
        found = self.find()
        if found is not None:
            return found
        if os.environ.get("CI") == "true":
            pytest.fail(self.missing, pytrace=False)
        pytest.skip(self.missing)


def _find_chromium() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"):
        if found := shutil.which(name):
            return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path: str = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def _find_compiler() -> str | None:
    from torch.utils.cpp_extension import get_cxx_compiler

    return shutil.which(str(get_cxx_compiler()))


def _find_dcmtk() -> str | None:
    """DCMTK's storescu; pynetdicom installs another program of this name beside Python's."""
    for folder in os.get_exec_path():
        program = shutil.which("storescu", path=folder)
        if program and b"dcmtk" in subprocess.run([program, "--version"], capture_output=True).stdout:
            return program
    return None


AGE = Tool(name="age", install="apt-get install age", find=lambda: shutil.which("age"))
CHROMIUM = Tool(
    name="Chromium or Chrome", install="playwright install --with-deps chromium", find=_find_chromium
)
COMPILER = Tool(
    name="a C++ compiler (for DeepSpeed)",
    install="apt-get install g++",
    find=_find_compiler,
)
CURL = Tool(name="curl", install="apt-get install curl", find=lambda: shutil.which("curl"))
DCMTK = Tool(name="storescu (DCMTK)", install="apt-get install dcmtk", find=_find_dcmtk)
MINISIGN = Tool(name="minisign", install="apt-get install minisign", find=lambda: shutil.which("minisign"))
TOOLS = (AGE, CHROMIUM, COMPILER, CURL, DCMTK, MINISIGN)


def told(skipped: list[str]) -> list[str]:
    """A line for each tool that was missing, from the reasons of all skipped tests."""
    counts = {tool: sum(tool.missing in reason for reason in skipped) for tool in TOOLS}
    return [
        f"skipped {count} {'test' if count == 1 else 'tests'} without {tool.name}; to install: {tool.install}"
        for tool, count in counts.items()
        if count
    ]
