"""Opens the page in the user's browser without showing its token to the other users of the machine.

They see the command lines of all processes. So the browser is given a file that only its user can read and
that leads on to the page.
"""

from __future__ import annotations

import html
import os
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path

KEPT_S = 60.0
"""The browser has read the file by then."""

_REDIRECT = """<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>realtime</title>
<p><a href="{url}">The page</a></p>
"""


def open_page(url: str) -> None:
    """Open the page in the user's browser, if there is a screen."""
    has_screen = sys.platform in ("win32", "darwin") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if has_screen:
        webbrowser.open(write_redirect(url).as_uri())


def write_redirect(url: str) -> Path:
    """A file that leads on to this URL, readable by this user only, removed after ``KEPT_S`` or at exit."""
    # A browser that is a snap package sees neither /tmp nor hidden folders.
    home = Path.home()
    place = home if sys.platform == "linux" and os.access(home, os.W_OK) else None
    folder = tempfile.TemporaryDirectory(prefix="realtime-page-", dir=place)  # mode 0700
    path = Path(folder.name) / "page.html"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(_REDIRECT.format(url=html.escape(url)))
    removing = threading.Timer(KEPT_S, folder.cleanup)
    removing.daemon = True
    removing.start()
    return path
