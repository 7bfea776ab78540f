"""README and documentation: their commands run, their links lead somewhere, their figures are the files'."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from realtime import wire
from realtime.bundle import spec
from realtime.network import publish
from realtime.record import run_json, tables

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
GENERATED = (DOCS / "reference" / "api", DOCS / "_build")
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(page for page in DOCS.rglob("*.md") if not any(page.is_relative_to(each) for each in GENERATED)),
]
PARSERS = {
    "realtime": "realtime.cli",
    "sim": "sim.__main__",
    "train": "train.__main__",
    "export": "export.__main__",
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    """Every code block of a language, with the page it stands in."""
    for page in PAGES:
        found = re.findall(
            rf"^( *)```{language}\n(.*?)^\1```", page.read_text(), flags=re.DOTALL | re.MULTILINE
        )
        for indent, block in found:
            yield page, re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)


COMMANDS = [(page, line) for page, block in blocks("bash") for line in block.splitlines()]
PROGRAMS = ("realtime ", "python ", "deepspeed ")
OURS = sorted(
    {
        part.strip()
        for _, line in COMMANDS
        for part in re.split(r"&&|;| do ", line)
        if part.strip().startswith(PROGRAMS)
    }
)


def test_the_readme_names_the_two_commands_of_a_newcomer() -> None:
    commands = [line for page, line in COMMANDS if page.name == "README.md" and page.parent == ROOT]
    assert "pip install . && realtime demo" in commands
    assert "pip install '.[test]' && pytest" in commands


def test_the_readme_is_a_page_and_says_early_what_was_not_tested() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    (says,) = (nth for nth, line in enumerate(lines) if "What was tested, and what not" in line)
    assert says < 35


def test_continuous_integration_runs_the_readmes_test_command_on_every_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines.index("pip install --quiet '.[test]'") + 1 == lines.index("pytest")


def split_command(command: str) -> tuple[str, list[str]]:
    """Module or script, and the words after it."""
    words = shlex.split(command, comments=True)
    if words[0] == "realtime":
        return "realtime", words[1:]
    if words[0] == "deepspeed":
        assert words[1] == "--module", command
        return words[2], words[3:]
    return (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])


@pytest.mark.parametrize("command", OURS)
def test_a_command_takes_the_options_the_documentation_gives_it(command: str) -> None:
    module, rest = split_command(command)
    if module.endswith(".py"):  # run by tests of its own
        assert (ROOT / module).is_file()
    elif module in PARSERS and "--help" not in rest:
        text = subcommands(module)[rest[0]].format_help()
        for option in rest[1:]:
            if option.startswith("--"):
                assert re.search(rf"{option}\b", text), f"{command}: no option {option}"
        parser_of(module).parse_args(
            [word.replace("$s", "2") for word in rest]
        )  # a loop's variable is a number
    else:
        assert module == "venv" or rest[0] in subcommands(module)


UNITS = [
    command
    for _, block in blocks("ini")
    for command in re.findall(r"^ExecStart=(.+)$", block, flags=re.MULTILINE)
]


@pytest.mark.parametrize("command", UNITS)
def test_a_systemd_unit_starts_a_command_with_options_that_it_has(command: str) -> None:
    program, *rest = shlex.split(command)
    assert Path(program).name == "realtime"
    parser_of("realtime").parse_args(rest)


def test_systemd_has_a_unit_for_each_process_of_the_runtime() -> None:
    assert sorted(shlex.split(unit)[1] for unit in UNITS) == ["decode", "page", "record"]


def test_links_and_pictures_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", without_code(page.read_text())):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]+`(?!\])", "", text, flags=re.DOTALL)


PYTHON = [
    pytest.param(page, code, id=f"{name_of(page)}:{nth}") for nth, (page, code) in enumerate(blocks("python"))
]


@pytest.mark.parametrize(("page", "code"), PYTHON)
def test_python_in_the_documentation_compiles_and_its_imports_exist(page: Path, code: str) -> None:
    tree = ast.parse(code, filename=name_of(page))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in (*PARSERS, "nsd")
        ):
            module = import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "code"),
    [each for each in PYTHON if each.values[0].is_relative_to(DOCS)],  # type: ignore[union-attr]
)
def test_python_in_the_documentation_runs(page: Path, code: str, tmp_path: Path) -> None:
    """CONTRIBUTING's blocks are files to be added; those of docs/ stand alone."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, "it shows nothing"


PATHS = re.compile(r"`((?:realtime|nsd|sim|train|export|benchmarks|docs|tests)/[\w./-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert not {path for path in PATHS.findall(text) if not (ROOT / path).exists()}


# The threat model


PROMISES = [
    line.strip("| ").split(" | ")
    for line in (DOCS / "security.md").read_text().partition("## What is promised")[2].splitlines()
    if line.startswith("| ") and line.count("`") > 1
]


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[0])
def test_a_promise_names_the_file_that_keeps_it_and_tests_that_exist(row: list[str]) -> None:
    _, keepers, tests = row
    assert all((ROOT / file).exists() for file in re.findall(r"`([^`]+)`", keepers))
    files = re.findall(r"`(tests/[\w/.]+)`: ((?:`test_\w+`(?:, )?)+)", tests)
    assert files, tests
    for file, names in files:
        text = (ROOT / file).read_text()
        missing = [name for name in re.findall(r"`(\w+)`", names) if f"def {name}(" not in text]
        assert not missing, f"{file} has no {missing}"


# The reference


def parser_of(program: str) -> ArgumentParser:
    parser = import_module(PARSERS[program])._parser()
    assert isinstance(parser, ArgumentParser)
    return parser


def subcommands(program: str) -> dict[str, ArgumentParser]:
    """A program's subcommands by name."""
    (action,) = (each for each in parser_of(program)._actions if isinstance(each, _SubParsersAction))
    return dict(action.choices)


ALL_SUBCOMMANDS = [(program, name) for program in PARSERS for name in subcommands(program)]


@pytest.mark.parametrize(("program", "name"), ALL_SUBCOMMANDS)
def test_every_command_has_its_place_in_the_reference(program: str, name: str) -> None:
    page = (DOCS / "reference" / "commands" / f"{program}.md").read_text()
    assert f"```{{program-output}} python -m {program} {name} --help\n" in page


STRUCTS = {
    "wire-protocol": [
        *(wire.RunStart, wire.Volume, wire.Marker, wire.RunEnd),
        *(wire.RunAccepted, wire.Ack, wire.MarkerAck, wire.RunClosed, wire.Refused),
    ],
    "published-frames": [publish.FrameHeader, publish.RunStart, publish.RunEnd],
    "bundle": [spec.Spec, spec.Decoder, spec.Sampler, spec.Graph, spec.Roi, spec.Window, spec.Stage],
    "run-folder": [run_json.RunFile, tables.Row],
}


@pytest.mark.parametrize(
    ("page", "struct"), [(page, struct) for page, structs in STRUCTS.items() for struct in structs]
)
def test_a_format_s_page_names_every_field(page: str, struct: Any) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text()
    tag = struct.__struct_config__.tag
    if tag is not None:
        (text,) = re.findall(rf"^##+ {tag}\n(.*?)(?=^##|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    common = {"version", "run_id", "sequence"}  # said once, of all messages
    missing = [
        field for field in struct.__struct_fields__ if f"`{field}`" not in text and field not in common
    ]
    assert not missing


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; any warning of Sphinx fails the build."""
    pytest.importorskip("sphinx", reason="pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-j2", "-W", "--keep-going", "-n", str(DOCS), str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return out


class Links(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if not value:
                continue
            if name in ("href", "src") and (tag, dict(attrs).get("rel")) != ("link", "canonical"):
                self.targets.append(value)
            elif name == "id" or (tag, name) == ("a", "name"):
                self.anchors.add(value)


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    themes = site / "_static"  # it has templates, which are no pages
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html") if not page.is_relative_to(themes)}
    assert len(pages) > 60
    broken = [
        f"{page.relative_to(site.resolve())}: {target}"
        for page, links in pages.items()
        for target in set(links.targets)
        if not _resolves(page, target, pages)
    ]
    assert not broken


def _resolves(page: Path, target: str, pages: dict[Path, Links]) -> bool:
    """Whether a link leads to a file and an anchor of the site; those to other hosts are not followed."""
    url = urlsplit(target)
    if url.scheme or url.netloc:
        return url.scheme in ("http", "https", "data", "mailto", "javascript")
    file = (page.parent / unquote(url.path)).resolve() if url.path else page
    if file.is_dir():
        file /= "index.html"
    if not file.is_file():
        return False
    if not url.fragment or file not in pages or file.suffix != ".html":
        return True
    return unquote(url.fragment) in pages[file].anchors


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.html", tmp_path / "other.html"
    page.write_text("<a href='other.html#here'>x</a>")
    other.write_text("<h1 id='here'>x</h1>")
    pages = {page: Links(page), other: Links(other)}
    assert pages[page].targets == ["other.html#here"]
    assert _resolves(page, "other.html#here", pages)
    assert not _resolves(page, "other.html#there", pages)
    assert not _resolves(page, "another.html", pages)


@pytest.mark.slow
@pytest.mark.parametrize(("program", "name"), ALL_SUBCOMMANDS)
def test_every_option_is_in_the_built_reference(site: Path, program: str, name: str) -> None:
    page = (site / "reference" / "commands" / f"{program}.html").read_text()
    text = re.sub(r"<[^>]+>", "", page)
    section = text[text.index(f"usage: {subcommands(program)[name].prog} [-h]") :]
    for action in subcommands(program)[name]._actions:
        for option in action.option_strings:
            assert action.help == SUPPRESS or option in section, option


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((DOCS / "results").glob("*.*")), ids=lambda file: file.name)
def test_every_file_of_results_is_part_of_the_site(site: Path, file: Path) -> None:
    if file.suffix == ".md":
        assert (site / "results" / f"{file.stem}.html").exists() or f"include}} {file.name}" in "".join(
            page.read_text() for page in PAGES
        )
        return
    assert (site / "results" / file.name).read_bytes() == file.read_bytes()
    linked = re.compile(rf"\]\((\.\./)*(docs/)?(results/)?{re.escape(file.name)}\)")
    assert any(linked.search(page.read_text()) for page in PAGES), f"no page shows or links {file.name}"


# Results


def numbers(finding: dict[str, Any]) -> str:
    """What a statement's verdict rests on first: the difference of two models, or in words."""
    differences = finding["differences"]
    if not differences:
        return str(finding["here"]).split(". ")[-1].split(";")[0].removesuffix(".")

    def pair(each: dict[str, Any]) -> tuple[str, str]:
        return each["one"], each["other"]

    first = list(takewhile(lambda each: pair(each) == pair(differences[0]), differences))
    named = [
        f"{each['metric']} {100 * each['value']:+.1f} [{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]"
        for each in first
    ]
    return f"{' against '.join(pair(first[0]))}: {', '.join(named)}" + (", …" if first != differences else "")


@pytest.mark.parametrize(
    "page",
    sorted(page for page in (DOCS / "results").glob("*.html")),
    ids=lambda page: page.stem,
)
def test_the_table_of_results_says_what_the_pages_say(page: Path) -> None:
    findings = json.loads(page.with_suffix(".json").read_text())["findings"]
    text = (DOCS / "results" / "experiments.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    (start,) = (nth for nth, row in enumerate(rows) if f"]({page.name})" in row)
    for row, finding in zip(rows[start:], findings, strict=False):
        expected = " (expected)" if finding["source"].lower().startswith("expected") else ""
        assert row.endswith(f" | {finding['claim']}{expected} | {finding['verdict']} | {numbers(finding)} |")


@pytest.mark.parametrize("file", sorted((DOCS / "results").glob("*.json")), ids=lambda file: file.stem)
def test_every_figure_has_its_date(file: Path) -> None:
    dates = set(re.findall(r'"date": ?"(\d{4}-\d{2}-\d{2})"', file.read_text()))
    text = "".join(page.read_text() for page in PAGES if page.parent == DOCS / "results")
    for date in dates:
        assert date in text or written_out(date) in text, f"{file.name} is of {date}, which no page says"


def written_out(date: str) -> str:
    year, month, day = date.split("-")
    names = "January February March April May June July August September October November December".split()
    return f"{int(day)} {names[int(month) - 1]} {year}"
