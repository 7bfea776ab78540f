"""The README's commands exist, take the options it gives them, and are the ones that are tested."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
OURS = [
    part.strip()
    for line in COMMANDS
    for part in line.split("&&")
    if part.strip().startswith(("realtime", "python -m"))
]


def test_the_readme_names_the_two_commands_of_a_newcomer() -> None:
    assert "pip install . && realtime demo" in COMMANDS
    assert "pip install '.[test]' && pytest" in COMMANDS


def test_continuous_integration_runs_the_readmes_test_command_on_every_test() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install --quiet '.[test]'\n" in script
    assert '    pytest "$tests"\n' in script
    parts = re.search(r"for tests in (.*); do", script)
    assert parts
    run = {path for part in parts[1].split() for path in ROOT.glob(part)}
    tests = ROOT / "tests"
    assert run == {*tests.glob("test_*.py"), *(file.parent for file in tests.glob("*/conftest.py"))} | {
        file.parent for file in tests.glob("*/test_*.py")
    }


@pytest.mark.parametrize("command", OURS)
def test_a_command_takes_the_options_the_readme_gives_it(command: str) -> None:
    words = shlex.split(command)
    module, rest = (words[2], words[3:]) if words[0] == "python" else (words[0], words[1:])
    done = subprocess.run(
        [sys.executable, "-m", module, rest[0], "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    for option in rest[1:]:
        if option.startswith("--"):
            assert re.search(rf"{option}\b", done.stdout), f"{command}: no option {option}"


def test_links_and_pictures_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


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
    "page", sorted((ROOT / "docs" / "results").glob("*.html")), ids=lambda page: page.stem
)
def test_the_table_of_results_says_what_the_pages_say(page: Path) -> None:
    findings = json.loads(page.with_suffix(".json").read_text())["findings"]
    rows = [line for line in README.splitlines() if line.startswith("|")]
    (start,) = (nth for nth, row in enumerate(rows) if f"](docs/results/{page.name})" in row)
    for row, finding in zip(rows[start:], findings, strict=False):
        expected = " (expected)" if finding["source"].lower().startswith("expected") else ""
        assert row.endswith(f" | {finding['claim']}{expected} | {finding['verdict']} | {numbers(finding)} |")
