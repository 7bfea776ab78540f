"""How the page is opened in the user's browser: the token is in no command line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from realtime.viewer import open as opening
from realtime.viewer.access import open_access

TOKEN = "a-token-that-only-its-user-may-ever-see"
URL = f"http://127.0.0.1:8765/?token={TOKEN}"
# Stands for the browser: notes its command line, and what the file says that it is to open.
BROWSER = """#!/bin/sh
echo "$@" > {folder}/arguments
cat "${{1#file://}}" > {folder}/read
"""
OPEN = """
import sys
from realtime.viewer.open import open_page
open_page(sys.stdin.read())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a shell script stands for the browser")
def test_the_token_is_in_no_command_line_and_the_file_goes_away(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(BROWSER.format(folder=tmp_path))
    browser.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"DISPLAY": ":0", "BROWSER": str(browser), "HOME": str(home)}
    subprocess.run([sys.executable, "-c", OPEN], input=URL, text=True, env=environment, check=True)
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith("file:///")
    assert TOKEN not in arguments
    assert URL in (tmp_path / "read").read_text()
    assert list(home.iterdir()) == []  # once the process has ended


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_only_its_user_can_read_the_file_and_it_goes_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(opening, "KEPT_S", 0.2)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    try:
        path = opening.write_redirect(URL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    end_s = time.monotonic() + 60
    while path.parent.exists():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@pytest.mark.browser
@pytest.mark.parametrize("has_certificate", [False, True])
def test_a_browser_comes_from_the_file_to_the_page(
    run: Any,
    serve: Any,
    open_page: Any,
    make_certificate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_certificate: bool,
) -> None:
    certificate = make_certificate(tmp_path, "127.0.0.1") if has_certificate else (None, None)
    served = serve(run.status("warming", 30), access=open_access("127.0.0.1", *certificate))
    with monkeypatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        redirect = opening.write_redirect(served.url + "&transport=websocket")
    page = open_page(redirect.as_uri(), flags=("--ignore-certificate-errors",))
    expect(page.locator("html")).to_have_attribute("data-transport", "websocket")
    assert page.url == f"{served.base}?transport=websocket"
