"""What people look for who pick the project up: licences, citation, contributing, locked versions."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("export", "nsd", "realtime", "sim", "train")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MADE_FROM_PICTURES = (".png", ".jpg", ".onnx", ".safetensors", ".npy", ".npz", ".nii.gz")


@pytest.fixture(scope="module")
def licences() -> dict[str, str]:
    """The SPDX expression of every file in the repository, by its path."""
    command = [sys.executable, "-m", "reuse", "--root", str(ROOT), "lint", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    files = json.loads(done.stdout)["files"]
    return {file["path"]: " AND ".join(each["value"] for each in file["spdx_expressions"]) for file in files}


def test_what_derives_from_openmoji_is_under_its_licence(licences: dict[str, str]) -> None:
    derived = {
        path for path in licences if path.endswith(MADE_FROM_PICTURES) and not path.startswith("tests/")
    }
    assert len(derived) > 10
    assert {licences[path] for path in derived} == {"CC-BY-SA-4.0"}
    assert {licences[path] for path in licences if path.endswith(".py")} == {"Apache-2.0"}
    assert {licences[path] for path in licences if "/vendor/uplot/" in path} == {"MIT"}


def test_the_notice_names_the_same_files_and_the_package_the_same_licences(licences: dict[str, str]) -> None:
    notice = (ROOT / "NOTICE").read_text()
    for annotation in tomllib.loads((ROOT / "REUSE.toml").read_text())["annotations"][1:]:
        for pattern in [annotation["path"]] if isinstance(annotation["path"], str) else annotation["path"]:
            assert pattern.removesuffix("**") in notice
    assert set(PROJECT["license"].split(" AND ")) == set(licences.values())
    assert {path.stem for path in (ROOT / "LICENSES").iterdir()} == set(licences.values())
    assert (ROOT / "LICENSE").read_text() == (ROOT / "LICENSES" / "Apache-2.0.txt").read_text()


def test_an_installation_holds_every_file_of_the_packages() -> None:
    installed = {str(file) for file in importlib.metadata.files("realtime-dynadiff") or ()}
    if "realtime/cli.py" not in installed:
        pytest.skip("installed in editable mode: `pip install .` copies the files that are looked for")
    files = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    base_model = {file for file in files if file.startswith("train/base_small/")}
    assert files - installed == base_model, "it is for experiments in the repository"
    assert {f"{package}/py.typed" for package in PACKAGES} <= installed


def test_citation_and_changelog_are_of_this_version() -> None:
    version = PROJECT["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]


def test_every_path_in_the_guide_to_contributing_exists() -> None:
    # Examples in other languages may name a new file; they have tests of their own.
    shell = " ".join(re.findall(r"^```bash$(.*?)^```$", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE))
    text = re.sub(r"^```.*?^```$", "", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE)
    words = {word for part in re.findall(r"`([^`]+)`", text) for word in part.split()} | set(shell.split())
    paths = {word for word in words if re.fullmatch(r"\.?\w[\w.-]*(/[\w.-]*)+|[\w-]+\.(cff|md|toml)", word)}
    assert len(paths) > 30
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_name_in_the_guide_to_contributing_is_defined() -> None:
    text = re.sub(r"^```.*?^```$", "", CONTRIBUTING, flags=re.DOTALL | re.MULTILINE)
    names = set(re.findall(r"`(_?[A-Z]\w+|_[a-z]\w+|[a-z]+_[a-z]+)`", text))
    names -= {"tr_s", "width_px"} | {path.name for path in ROOT.iterdir()}
    assert len(names) > 10
    code = "\n".join(path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    defined = re.findall(r"^(?:class |(?:async )?def )?(\w+)(?:[(:]|.* = )", code, flags=re.MULTILINE)
    assert names <= set(defined), names - set(defined)


def test_extras_in_the_guide_to_contributing_exist() -> None:
    assert set(re.findall(r"'\.\[([a-z-]+)\]'", CONTRIBUTING)) <= PROJECT["optional-dependencies"].keys()


def requirements(extra: str) -> Iterator[Requirement]:
    """Those of the base install and an extra, through the extras that it includes."""
    for text in PROJECT["dependencies"] if extra == "" else PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for included in requirement.extras:
                yield from requirements(included)
        else:
            yield requirement


@pytest.mark.parametrize("extra", ["dev", "test-runtime"])
def test_locked_versions_fit_the_project_and_name_no_place(extra: str) -> None:
    text = (ROOT / "requirements" / f"{extra}.txt").read_text()
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in text.splitlines() if "    # " not in line))
    entries = [entry for entry in entries if not entry.startswith("#")]
    locked: dict[str, list[Requirement]] = {}
    for entry in entries:
        assert re.search(r"\\\n +--hash=sha256:[0-9a-f]{64}", entry), entry
        requirement = Requirement(entry.partition("\\")[0])
        locked.setdefault(requirement.name, []).append(requirement)
    for wanted in [*requirements(""), *requirements(extra)]:
        versions = [next(iter(each.specifier)).version for each in locked[wanted.name]]
        assert all(version in wanted.specifier for version in versions), f"{wanted}, locked: {versions}"
    assert not re.search(r"://|@ |^-|/(opt|tmp|home)\b", text, flags=re.MULTILINE)
    assert ("torch" in locked) == (extra == "dev")
