"""The design's arrows: which package and which room may import which, and what must run without torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
"""Its tables say what may import what."""


def packages() -> dict[str, set[str]]:
    """What each package may import of the others, by the table of packages."""
    table = re.split(r"\n#", ARCHITECTURE.partition("\n## Packages\n")[2])[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {row[0].strip("`/"): set(re.findall(r"`(\w+)`", row[2])) for row in rows}


MAY_IMPORT = packages()
NEEDS_AN_EXTRA = {"torch", "diffusers", "peft", "deepspeed", "onnx", "onnxscript", "safetensors"}
WITHOUT_TORCH = ("realtime", "nsd", "sim")
NEEDS_TORCH = {"torch", "diffusers", "peft", "deepspeed", "onnxscript", "safetensors", "transformers"}
TESTED_WITHOUT_TORCH = ("fuzz", "nsd", "realtime", "sim", "viewer")

MOST_ROOMS = 20
SHARED_NAMES = {
    "__init__": "Python's",
    "__main__": "Python's",
    "checkpoint": "a state that was saved to go on from: of a fit in train, of an open run in realtime",
    "errors": "every package has one tree of exceptions",
    "options": "options that several commands of a package have",
    "betas": "NSD's word: read in nsd, made by sim",
    "page": "the HTML page of a run, of an experiment",
    "run": "a recorded run in nsd, one that is being recorded in realtime, an experiment's in train",
    "spec": "bundle.json: what the runtime reads, how the export fills it",
}
"""Names of modules that several packages have, and why."""


def imported(file: Path) -> Iterator[str]:
    """Top-level names of everything ``file`` imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or file.is_relative_to(ROOT / "tests"), f"{file}: relative import"
            if node.level == 0 and node.module:
                yield node.module.split(".")[0]


def test_the_table_has_every_package() -> None:
    assert MAY_IMPORT.keys() == {"realtime", "nsd", "sim", "train", "export"}
    assert {package for package, others in MAY_IMPORT.items() if not others} == {"realtime", "nsd"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        ours = set(imported(file)) & (MAY_IMPORT.keys() - {package})
        assert ours <= MAY_IMPORT[package], f"{file} imports {ours - MAY_IMPORT[package]}"


class Floor(NamedTuple):
    """A row of a package's table."""

    rooms: frozenset[str]
    named: frozenset[str]
    """The rooms that it says they may import."""
    imports_all_below: bool


def floors(package: str) -> list[Floor]:
    """A package's rows in its table of rooms, from the top floor down."""
    _, found, rest = ARCHITECTURE.partition(f"\n### {package}\n")
    assert found, f"no rooms of {package}"
    rows = [line.strip("| ").split(" | ") for line in re.split(r"\n#", rest)[0].splitlines() if "|" in line]
    assert rows[0] == ["room", "is", "may import"]
    return [_floor(room, may_import) for room, _, may_import in rows[2:]]


def _floor(room: str, may_import: str) -> Floor:
    names = frozenset(name.split("/")[0].removesuffix(".py") for name in re.findall(r"`([^`]+)`", room))
    is_list = may_import not in ("all below", "nothing")
    named = frozenset(may_import.replace("`", "").split(", ")) if is_list else frozenset[str]()
    return Floor(names, named, may_import == "all below")


def room_arrows(package: str) -> dict[str, set[str]]:
    """Which rooms of a package each of its rooms imports, by its files; errors and itself left out."""
    arrows: dict[str, set[str]] = {}
    for file in (ROOT / package).rglob("*.py"):
        room = file.relative_to(ROOT / package).with_suffix("").parts[0]
        if room not in ("__init__", "__main__"):  # a package's doors, which nothing in it imports
            targets = {module[1] for module in modules(file) if module[0] == package}
            arrows.setdefault(room, set()).update(targets - {"errors", room})
    return arrows


def modules(file: Path) -> Iterator[list[str]]:
    """The path of everything from our packages that ``file`` imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}".split(".") for alias in node.names)


WITH_ROOMS = ("realtime", "train", "export")


@pytest.mark.parametrize("package", WITH_ROOMS)
def test_every_room_is_in_the_table(package: str) -> None:
    in_table = [room for floor in floors(package) for room in floor.rooms]
    assert sorted(in_table) == sorted(room_arrows(package))


@pytest.mark.parametrize("package", WITH_ROOMS)
def test_rooms_import_what_the_table_says(package: str) -> None:
    plan, arrows = floors(package), room_arrows(package)
    for number, floor in enumerate(plan):
        below = frozenset(chain.from_iterable(other.rooms for other in plan[number + 1 :]))
        assert floor.named <= below, f"{set(floor.rooms)}: the table has arrows up to {floor.named - below}"
        allowed = (below if floor.imports_all_below else floor.named) | floor.rooms
        for room in floor.rooms:
            assert arrows[room] <= allowed, f"{package}/{room} imports {arrows[room] - allowed}"
        unused = floor.named - set().union(*(arrows[room] for room in floor.rooms))
        assert not unused, f"{set(floor.rooms)} may import {set(unused)} and do not; take them off the table"


@pytest.mark.parametrize("package", WITH_ROOMS)
def test_no_circle_joins_rooms(package: str) -> None:
    arrows = room_arrows(package)
    order = list(TopologicalSorter(arrows).static_order())  # raises CycleError
    assert all(order.index(below) < order.index(room) for room in arrows for below in arrows[room])


def test_the_runtime_has_few_rooms() -> None:
    assert len(room_arrows("realtime")) <= MOST_ROOMS


def test_modules_of_different_packages_have_different_names() -> None:
    packages: dict[str, set[str]] = defaultdict(set)
    for package in MAY_IMPORT:
        for file in (ROOT / package).rglob("*.py"):
            packages[file.stem].add(package)
    shared = {name for name, found in packages.items() if len(found) > 1}
    assert shared <= SHARED_NAMES.keys(), {name: packages[name] for name in shared - SHARED_NAMES.keys()}


@pytest.mark.parametrize("package", WITHOUT_TORCH)
def test_the_base_install_needs_no_extra(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert not set(imported(file)) & NEEDS_AN_EXTRA, file


@pytest.mark.parametrize("folder", TESTED_WITHOUT_TORCH)
def test_who_changes_the_runtime_tests_it_without_torch(folder: str) -> None:
    files = [*(ROOT / "tests" / folder).rglob("*.py"), ROOT / "tests" / "conftest.py"]
    assert len(files) > 1
    for file in files:
        assert not set(imported(file)) & {"train", "export", *NEEDS_TORCH}, file


def test_the_commands_of_the_base_install_load_no_torch() -> None:
    code = (
        "import sys, realtime.cli, sim.__main__, sim.scanner\n"
        "loaded = {'torch', 'diffusers', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def loaded_by(*files: str) -> set[str]:
    """The modules that a process has loaded after importing these."""
    code = f"import sys, {', '.join(files)}; print('\\n'.join(sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


IMAGE_MODEL_OR_WEB = {
    "cv2",
    "onnxruntime",
    "openvino",
    "scipy",
    "nibabel",
    "pydicom",
    "aiohttp",
    "aiortc",
    "av",
}


def test_the_recorder_loads_no_image_no_model_and_no_page() -> None:
    """It must start at once, stay small, and not fail where one of these does."""
    loaded = loaded_by("realtime.cli", "realtime.commands.record", "realtime.service.record")
    rooms = {f"realtime.{room}" for room in ("decoding", "runs", "viewer", "report")}
    assert "realtime.recorder.recorder" in loaded
    assert not loaded & (IMAGE_MODEL_OR_WEB | rooms)


def test_what_starts_the_processes_loads_nothing_of_theirs() -> None:
    loaded = loaded_by("realtime.cli", "realtime.service.keys", "realtime.service.serve")
    assert "realtime.service.supervisor" in loaded
    assert not loaded & (
        IMAGE_MODEL_OR_WEB | {"realtime.recorder", "realtime.runs", "realtime.viewer.server"}
    )


MOST_FILES_OF_A_VOLUME = 12


def test_the_way_of_a_volume_is_short() -> None:
    way = ARCHITECTURE.partition("\n## The way of a volume\n")[2].partition("\n## ")[0]
    steps = re.findall(r"^(\d+)\. \*\*`([\w/.]+)`\*\*", way, flags=re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert 0 < len(steps) <= MOST_FILES_OF_A_VOLUME
    assert all((ROOT / file).is_file() for _, file in steps)
