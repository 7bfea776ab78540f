"""The whole house: ``realtime demo`` in its own process, its page in Chromium, its run folder on disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

COUNTS = ("planned", "received", "decoded", "warming", "censored", "skipped", "missing")


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running demo, 16 times as fast as the scan, and the address of its page."""
    command = [sys.executable, "-m", "realtime", "demo", "--speed", "16", "--port", "0", "--no-open"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/\S*", line):
                break
        else:
            pytest.fail(f"the demo printed no address: {''.join(said)}")
        yield process, found.group()
        process.kill()


def number(page: Page, testid: str) -> int:
    return int(page.get_by_test_id(testid).get_attribute("data-value") or -1)


def test_the_page_shows_what_the_run_folder_records(
    demo: tuple[subprocess.Popen[str], str], open_page: Any, video_mean_rgb: Any, until: Any, tmp_path: Path
) -> None:
    process, url = demo
    page = open_page(url + "&patience=120")
    expect(page.locator("html")).to_have_attribute("data-transport", "webrtc")
    colours: dict[int, Any] = {}

    def seen_enough() -> bool:
        volume = number(page, "frame-volume")
        if volume not in colours:
            colours[volume] = video_mean_rgb(page)
        return len({tuple(colour.round()) for colour in colours.values()}) >= 8

    until(page, seen_enough, "eight different pictures in the video")
    expect(page.get_by_test_id("decode-delay")).to_have_text("12.0")
    expect(page.get_by_test_id("state")).to_have_text("Run ended")
    on_page = {name: number(page, f"count-{name}") for name in COUNTS[1:]} | {
        "planned": number(page, "planned")
    }
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert on_page == {name: summary[name] for name in COUNTS}
    assert summary["planned"] == 225
    assert summary["received"] == 225
    assert sum(summary[name] for name in COUNTS[2:]) == 225
    (run_folder,) = (path.parent for path in tmp_path.rglob("volumes.journal"))
    frames = sorted(int(path.stem) for path in (run_folder / "frames").glob("*.png"))
    strip = page.get_by_test_id("strip").locator("[data-volume]")
    assert strip.evaluate_all("items => items.map(item => Number(item.dataset.volume))") == frames
    assert summary["decoded"] + summary["warming"] >= len(frames) >= summary["decoded"] > 0
    assert "report.html" in {path.name for path in tmp_path.iterdir()}
