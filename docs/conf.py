"""How Sphinx builds the documentation: ``sphinx-build -W --keep-going -n docs build/docs``."""

from __future__ import annotations

import os
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
os.environ["COLUMNS"] = "96"

project = "Real-time Dynadiff"
author = "The contributors"
release = version_of("realtime-dynadiff")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.programoutput",
]
# The first two are tables that programs write into docs/results; pages include them.
exclude_patterns = ["results/samplers.md", "results/held-out.md", "reference/api/*/modules.rst"]
templates_path = ["_templates"]
smartquotes = False  # would make one dash of the two before an option

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# One page a room, written into reference/api, which git ignores.
apidoc_modules = [
    {
        "path": str(ROOT / package),
        "destination": f"reference/api/{package}",
        "exclude_patterns": ["**/__main__.py"],
        "module_first": True,
    }
    for package in OURS
]
autodoc_default_options = {"ignore-module-all": True}  # each class where it is defined, and only there
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["cuda", "openvino", "polygraphy", "tensorrt"]  # signatures need none of them
# Names of other projects are not looked up: a build needs no network. Names of ours must resolve, but for
# type variables and private names, which the reference leaves out.
_ours = "|".join(OURS)
nitpick_ignore_regex = [
    (r"py:.*", rf"(?!({_ours})\.).*"),
    (r"py:.*", rf"({_ours})\.[\w.]+\.(_\w+|[A-Z]|Item|Key|Kind|Line|Part)"),
]
suppress_warnings = ["ref.python"]  # a short name in a signature that two of our modules have

ICON = "_static/icon.svg"
html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = ICON
html_show_sourcelink = False
html_theme_options = {
    "logo": {"image_light": ICON, "image_dark": ICON, "text": project},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_toc_level": 2,
    "show_nav_level": 1,
    "collapse_navigation": True,  # a page would else list all others
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["licence"],
    "footer_end": ["theme-version"],
}
html_sidebars = {"index": []}

RESULTS = DOCS / "results"


def verbatim(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep diagrams and tables of docstrings as they are: they stand four columns in, or between bars."""
    shown: list[str] = []
    marks: tuple[str, ...] = ()
    for nth, line in enumerate(lines):
        if marks and line.strip() and not line.startswith(marks):
            marks = ()
        after_blank = nth == 0 or not lines[nth - 1].strip()
        if not marks and after_blank and line.startswith(("    ", "|")):
            marks = ("|",) if line.startswith("|") else ("    ",)
            shown += ["::", ""]
        shown.append(f"    {line}" if marks == ("|",) and line else line)
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
        target = Path(os.path.relpath(file, (DOCS / page).parent)).as_posix()
        node.replace_self(nodes.reference("", "", *node.children, refuri=target, internal=True))


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
