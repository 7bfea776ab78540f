"""How Sphinx builds the documentation: ``sphinx-build -W --keep-going -n docs build/docs``."""

from __future__ import annotations

import os
import re
import shutil
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OURS = ("realtime", "nsd", "sim", "train", "export")

# The reference describes this checkout, also where another one is installed. The commands whose help it
# shows are run as processes: with this Python, and with lines of one length on every machine.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
os.environ["COLUMNS"] = "100"

project = "Real-time Dynadiff"
author = "The contributors"
release = version_of("realtime-dynadiff")
version = release

extensions = [
    "myst_parser",
    "autoapi.extension",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.programoutput",
]
# The two are tables that programs write into docs/results; pages include them.
exclude_patterns = ["results/samplers.md", "results/held-out.md"]
templates_path = ["_templates"]
smartquotes = False  # would make one dash of the two before an option

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# The Python reference is read from the source: nothing is imported, so it needs neither torch nor a GPU.
autoapi_dirs = [str(ROOT / package) for package in OURS]
autoapi_root = "reference/api"
autoapi_options = ["members", "undoc-members", "show-module-summary"]
autoapi_member_order = "bysource"
autoapi_ignore = ["*/__main__.py", "*/static/*", "*/demo_data/*"]
autoapi_add_toctree_entry = False
# Names of other projects are not looked up: a build needs no network. Names of ours must resolve.
nitpick_ignore_regex = [(r"py:.*", rf"(?!({'|'.join(OURS)})\.).*")]

html_theme = "pydata_sphinx_theme"
html_title = "Real-time Dynadiff"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = "_static/icon.svg"
html_show_sourcelink = False
html_theme_options = {
    "logo": {"image_light": "_static/icon.svg", "image_dark": "_static/icon.svg", "text": "Real-time Dynadiff"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "show_nav_level": 1,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["licence"],
    "footer_end": ["theme-version"],
}
html_sidebars = {"index": []}

RESULTS = DOCS / "results"


def verbatim(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep diagrams and listings as they are: our docstrings set them four columns in, without ``::``."""
    shown: list[str] = []
    is_block = False
    for nth, line in enumerate(lines):
        begins = line.startswith("    ") and not is_block and (nth == 0 or not lines[nth - 1].strip())
        if begins:
            shown += ["::", ""]
        is_block = begins or (is_block and (line.startswith("    ") or not line.strip()))
        shown.append(line)
    lines[:] = shown


def link_results(app: Sphinx, doctree: nodes.document) -> None:
    """Let links to the files of docs/results open them in the site, where :func:`copy_results` puts them.

    Without this they would be offered as downloads.
    """
    page = app.env.docname
    for node in list(doctree.findall(addnodes.download_reference)):
        file = (DOCS / page).parent / node["reftarget"]
        if node["reftarget"].startswith("/"):
            file = DOCS / node["reftarget"].lstrip("/")
        file = Path(os.path.normpath(file))
        if not file.is_relative_to(RESULTS):
            continue
        target = os.path.relpath(file, (DOCS / page).parent)
        node.replace_self(nodes.reference("", "", *node.children, refuri=Path(target).as_posix(), internal=True))


def copy_results(app: Sphinx, failure: Exception | None) -> None:
    """Put the results' pages and figures into the site as they are."""
    if failure is None and app.builder.format == "html":
        shutil.copytree(
            RESULTS, Path(app.outdir) / "results", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.md")
        )


def setup(app: Sphinx) -> None:
    """Connect the hooks above."""
    app.connect("autodoc-process-docstring", verbatim)
    app.connect("doctree-read", link_results, priority=400)  # before downloads are collected
    app.connect("build-finished", copy_results)
