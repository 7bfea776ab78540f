"""A machine without outside tools passes and is told what it lacks; continuous integration fails there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .tools import CHROMIUM, TOOLS, Tool

ROOT = Path(__file__).parent.parent
NEEDS_A_BROWSER = "tests/viewer/test_page.py::test_a_bank_shows_every_picture_by_every_decoder"


@pytest.fixture
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has none of them."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("no_tools")
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_test_without_its_tool_is_skipped_or_fails(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    for ci, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome) as raised:
            tool.path()
        assert str(raised.value) == f"needs {tool.name}, found none; to install: {tool.install}"


def run_pytest() -> tuple[int, list[str]]:
    """Its exit status and its last two lines for a test that needs a browser."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", NEEDS_A_BROWSER]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()[-2:]


@pytest.mark.slow
@pytest.mark.usefixtures("no_tools")
def test_a_run_without_tools_passes_and_says_at_its_end_what_was_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", "")
    status, (told, last) = run_pytest()
    assert told == f"skipped 1 test without {CHROMIUM.name}; to install: {CHROMIUM.install}"
    assert " 1 skipped in " in last
    assert status == 0
    monkeypatch.setenv("CI", "true")
    status, (told, last) = run_pytest()
    assert told.startswith("ERROR ")
    assert CHROMIUM.missing in told
    assert " 1 error in " in last
    assert status == 1


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome", "chrome"])
def test_a_systems_browser_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert CHROMIUM.path() == str(tmp_path / name)


def test_playwrights_own_browser_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from playwright.sync_api import sync_playwright

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    assert CHROMIUM.find() is None
    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    path.parent.mkdir(parents=True)
    path.touch()
    assert CHROMIUM.path() == str(path)
