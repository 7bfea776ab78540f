"""The worked example of an element of the page in CONTRIBUTING.md does what it says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from realtime.viewer import server

pytestmark = pytest.mark.browser


def test_the_example_of_an_element_shows_what_was_sent(
    contributing_example: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    run: Any,
    serve: Any,
    open_page: Any,
) -> None:
    static = tmp_path / "static"
    shutil.copytree(Path(server.__file__).parent / "static", static)

    def path(name: str) -> str:
        return f"realtime/viewer/static/{name}"

    page = (static / "index.html").read_text()
    element = contributing_example(path("index.html"))
    (static / "index.html").write_text(page.replace("<footer>", f"<footer>\n{element}"))
    (static / "to_come.js").write_text(contributing_example(path("to_come.js")))
    loaded, used = contributing_example(path("app.js")).splitlines()
    app = (static / "app.js").read_text()
    made = "const store = new Store();"
    assert made in app
    (static / "app.js").write_text(f"{loaded}\n{app.replace(made, f'{made}{used}')}")
    monkeypatch.setattr(server, "_STATIC", static)
    served = serve(run.status("trusted", 30))
    shown = open_page(served.url).get_by_test_id("to-come")
    expect(shown).to_have_text(str(run.planned - 31))
    served.send(run.status("trusted", 99))
    expect(shown).to_have_attribute("data-value", str(run.planned - 100))
