"""What people look for who pick the project up: licences, citation, contributing, locked versions."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

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
    assert not files - installed
    assert {f"{package}/py.typed" for package in PACKAGES} <= installed


def test_every_file_of_data_is_declared_to_belong_to_an_installation() -> None:
    """The same without an installation: by the patterns, each of which starts at the top of a package."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    everywhere = declared.pop("*")
    found = {
        file
        for package in PACKAGES
        for init in (ROOT / package).rglob("__init__.py")
        for pattern in ["*.py", *everywhere]
        for file in init.parent.glob(pattern)
    }
    found |= {
        file for name, patterns in declared.items() for each in patterns for file in (ROOT / name).glob(each)
    }
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, check=True, capture_output=True, text=True
    )
    files = {ROOT / name for name in tracked.stdout.splitlines() if (ROOT / name).exists()}
    assert not files - found


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


@pytest.mark.parametrize("lock", ["dev", "runtime", "test-runtime"])
def test_locked_versions_fit_the_project_and_name_no_place(lock: str) -> None:
    extra = "" if lock == "runtime" else lock
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
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
    assert ("torch" in locked) == (lock == "dev")


INSTALLS = {
    "the base install": (["realtime", "nsd", "sim"], []),
    "train": (["realtime", "nsd", "sim", "train"], ["train"]),
    "export": (["realtime", "nsd", "sim", "train", "export"], ["train", "export", "tensorrt"]),
    "the repository": ([".", "benchmarks", "tests/fuzz"], [*PROJECT["optional-dependencies"]]),
}
"""The code of each, in folders from which modules are imported, and the extras that it holds."""


@pytest.mark.parametrize("install", INSTALLS)
def test_an_install_declares_what_it_imports_and_imports_what_it_declares(install: str) -> None:
    folders, extras = INSTALLS[install]
    command = [sys.executable, "-m", "deptry", "--no-ansi", *folders]
    if others := PROJECT["optional-dependencies"].keys() - set(extras):
        command += ["--optional-dependencies-dev-groups", ",".join(others)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@contextmanager
def database(*known: str) -> Iterator[str]:
    """Address of a database in OSV's protocol that has a vulnerability of each version in ``known``."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package = asked["package"]
            vulnerability = {"id": "TEST-1", "affected": [{"package": package}]}
            found = {"vulns": [vulnerability]} if f"{package['name']}=={asked['version']}" in known else {}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *arguments: object) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def audit(folder: Path, url: str) -> tuple[int, str]:
    """Exit status and first line of an audit of two packages."""
    lock = folder / "lock.txt"
    lock.write_text("".join(f"{name}==1.0 --hash=sha256:{'0' * 64}\n" for name in ("alpha", "beta")))
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), lock.name]
    environment = {**os.environ, "PIP_AUDIT_OSV_URL": url}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not done.stderr
    return done.returncode, done.stdout.splitlines()[0]


KNOWN = "jinja2==2.4.1"
"""The audit asks for it first: every database has its vulnerabilities."""


def test_an_audit_fails_on_a_known_vulnerability(tmp_path: Path) -> None:
    with database(KNOWN, "beta==1.0") as url:
        assert audit(tmp_path, url) == (1, "beta 1.0: TEST-1; fixed in: no version yet")
    with database(KNOWN, "beta==0.9") as url:
        assert audit(tmp_path, url) == (0, "lock.txt: 2 packages audited, 0 known vulnerabilities")


def test_an_audit_without_a_database_passes_and_says_that_nothing_was_audited(tmp_path: Path) -> None:
    with database() as answers_nothing:
        status, told = audit(tmp_path, answers_nothing)
        assert (status, told[:45]) == (0, "not audited: the database cannot be reached (")
        assert KNOWN in told
    status, told = audit(tmp_path, answers_nothing)  # which is closed by now
    assert (status, told[:45]) == (0, "not audited: the database cannot be reached (")
    assert "refused" in told
