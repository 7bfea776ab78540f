"""Engines of TensorRT that do not fit are named, with what to rebuild, and the next engine is taken.

The engine's own module runs here, on a machine without a GPU, with TensorRT-RTX's bindings, whose API is the
same; what it needs a device for is in tests marked ``gpu``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from realtime.bundle.bundle import Bundle
from realtime.bundle.files import file_sha256
from realtime.bundle.user_cache import make_cache_folder
from realtime.decoding.engines import choose
from realtime.decoding.engines.choose import open_engine, probe
from realtime.decoding.engines.cuda import Device
from realtime.decoding.engines.plans import (
    FORMAT_VERSION,
    RECORD_FILE,
    Plan,
    Record,
    check_plans,
    digest,
    find_plans,
    graph_files,
    plans_folder,
)
from realtime.errors import EngineError

VERSION, SM, GPU = "11.4.0.106", "90", "A GPU"
GRAPHS = ("brain", "denoise", "vae")


@pytest.fixture
def bundle(make_tiny_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bundle.open(make_tiny_bundle(tmp_path / "bundle"))


def write_plans(bundle: Bundle, version: str = VERSION, sm: str = SM) -> Path:
    """Write plan files like the command does, with other content."""
    make_cache_folder(bundle.sha256)
    folder = plans_folder(bundle, version, sm)
    folder.mkdir(mode=0o700)
    plans = {}
    for graph in GRAPHS:
        path = folder / f"{graph}.plan"
        path.write_bytes(f"a plan of {graph}".encode() * 100)
        plans[graph] = Plan(
            file=path.name,
            sha256=file_sha256(path),
            made_from=graph_files(bundle.spec, graph),
            layers={"float32": 3},
            float32_layers=(),
            parity={"next": 1e-6},
        )
    record = Record(
        format_version=FORMAT_VERSION,
        tensorrt=version,
        sm=sm,
        gpu=GPU,
        notes={},
        plans=plans,
        psnr_db=60.0,
    )
    write_record(folder, record)
    return folder


def write_record(folder: Path, record: Record) -> None:
    (folder / RECORD_FILE).write_bytes(msgspec.json.encode(record))


def read_record(folder: Path) -> Record:
    return msgspec.json.decode((folder / RECORD_FILE).read_bytes(), type=Record)


def no_engines(bundle: Bundle, folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def another_version(bundle: Bundle, folder: Path) -> None:
    folder.rename(folder.with_name(f"tensorrt-10.12.0.36-sm{SM}"))


def another_architecture(bundle: Bundle, folder: Path) -> None:
    folder.rename(folder.with_name(f"tensorrt-{VERSION}-sm86"))


def renamed(bundle: Bundle, folder: Path) -> None:
    no_engines(bundle, folder)
    write_plans(bundle, version="10.12.0.36").rename(folder)


def malformed(bundle: Bundle, folder: Path) -> None:
    (folder / RECORD_FILE).write_text('{"format_version": 1, "tensorrt": ')


def unknown_field(bundle: Bundle, folder: Path) -> None:
    (folder / RECORD_FILE).write_bytes(b'{"run": "rm",' + (folder / RECORD_FILE).read_bytes()[1:])


def outside(bundle: Bundle, folder: Path) -> None:
    content = (folder / RECORD_FILE).read_bytes()
    (folder / RECORD_FILE).write_bytes(content.replace(b"brain.plan", b"../brain.plan"))


def no_record(bundle: Bundle, folder: Path) -> None:
    (folder / RECORD_FILE).unlink()


def newer_format(bundle: Bundle, folder: Path) -> None:
    write_record(folder, msgspec.structs.replace(read_record(folder), format_version=2))


def a_graph_less(bundle: Bundle, folder: Path) -> None:
    record = read_record(folder)
    write_record(folder, msgspec.structs.replace(record, plans={"vae": record.plans["vae"]}))


def another_model(bundle: Bundle, folder: Path) -> None:
    write_record(folder, msgspec.structs.replace(read_record(folder), gpu="A larger GPU"))


def of_another_graph(bundle: Bundle, folder: Path) -> None:
    """Built before the bundle was exported again."""
    record = read_record(folder)
    plan = msgspec.structs.replace(record.plans["denoise"], made_from={"denoise.onnx": "0" * 64})
    write_record(folder, msgspec.structs.replace(record, plans={**record.plans, "denoise": plan}))


def truncated(bundle: Bundle, folder: Path) -> None:
    path = folder / "denoise.plan"
    path.write_bytes(path.read_bytes()[:-1])


def swapped(bundle: Bundle, folder: Path) -> None:
    (folder / "denoise.plan").write_bytes((folder / "vae.plan").read_bytes())


def a_plan_less(bundle: Bundle, folder: Path) -> None:
    (folder / "vae.plan").unlink()


DAMAGES: dict[Callable[[Bundle, Path], None], str] = {
    no_engines: rf"expected engines in tensorrt-{VERSION}-sm90, found none",
    another_version: r"found only tensorrt-10\.12\.0\.36-sm90",
    another_architecture: rf"found only tensorrt-{VERSION}-sm86",
    renamed: rf"expected format 1, TensorRT {VERSION} and sm90, found format 1, TensorRT 10\.12\.0\.36",
    malformed: r"engines\.json: expected a record of engines: Input data was truncated",
    unknown_field: r"engines\.json: expected a record of engines: .*unknown field `run`",
    outside: r"engines\.json: expected a record of engines: .*`\$\.plans\[\.\.\.\]\.file`",
    no_record: r"engines\.json: expected a record of engines: .*No such file",
    newer_format: r"found format 2, ",
    a_graph_less: r"expected engines of brain, denoise, vae, found vae",
    another_model: r"expected engines built on A GPU, found ones built on A larger GPU",
    of_another_graph: r"denoise\.plan: built from another denoise\.onnx than the bundle's",
    truncated: r"denoise\.plan: changed or truncated since it was built: expected SHA-256 [0-9a-f]{64}",
    swapped: r"denoise\.plan: changed or truncated",
    a_plan_less: r"vae\.plan: cannot be read: No such file",
}


def test_matching_plans_are_found(bundle: Bundle) -> None:
    folder = write_plans(bundle)
    paths = check_plans(bundle, find_plans(bundle, VERSION, SM, GPU))
    assert paths == {graph: folder / f"{graph}.plan" for graph in GRAPHS}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_mismatched_plans_are_named_with_the_command_to_rebuild(
    bundle: Bundle, damage: Callable[[Bundle, Path], None]
) -> None:
    damage(bundle, write_plans(bundle))
    with pytest.raises(EngineError, match=DAMAGES[damage]) as raised:
        check_plans(bundle, find_plans(bundle, VERSION, SM, GPU))
    assert f"python -m export engines --bundle {bundle.folder}" in str(raised.value)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The engine's module on a machine that reports a GPU of architecture 90."""
    if not find_spec("tensorrt"):
        monkeypatch.setitem(sys.modules, "tensorrt", pytest.importorskip("tensorrt_rtx"))
    module = importlib.import_module("realtime.decoding.engines.tensorrt")
    monkeypatch.setattr(module, "first_device", lambda: Device(name="A GPU", sm=SM))
    monkeypatch.setattr(module.trt, "__version__", VERSION)
    yield module
    del sys.modules["realtime.decoding.engines.tensorrt"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_next_engine_is_taken_and_says_why(
    bundle: Bundle, tensorrt: ModuleType, damage: Callable[[Bundle, Path], None]
) -> None:
    damage(bundle, write_plans(bundle))
    with pytest.raises(EngineError, match=DAMAGES[damage]) as raised:
        open_engine(bundle, "tensorrt")
    description = open_engine(bundle, "auto").description
    assert description.startswith(("ONNX Runtime", "OpenVINO"))
    assert f"tensorrt: {raised.value}" in description


def writable(bundle: Bundle, folder: Path) -> Path:
    folder.chmod(0o770)
    return folder


def writable_cache(bundle: Bundle, folder: Path) -> Path:
    folder.parent.parent.chmod(0o777)
    return folder.parent.parent


def writable_record(bundle: Bundle, folder: Path) -> Path:
    (folder / RECORD_FILE).chmod(0o666)
    return folder / RECORD_FILE


def writable_plan(bundle: Bundle, folder: Path) -> Path:
    (folder / "vae.plan").chmod(0o666)
    return folder / "vae.plan"


def linked_plan(bundle: Bundle, folder: Path) -> Path:
    (folder / "vae.plan").rename(bundle.folder / "elsewhere")
    (folder / "vae.plan").symlink_to(bundle.folder / "elsewhere")
    return folder / "vae.plan"


@pytest.mark.parametrize("spoil", [writable, writable_cache, writable_record, writable_plan, linked_plan])
def test_plans_that_others_could_have_written_are_not_loaded(
    bundle: Bundle, tensorrt: ModuleType, spoil: Callable[[Bundle, Path], Path]
) -> None:
    """All digests match."""
    named = spoil(bundle, write_plans(bundle))
    with pytest.raises(EngineError, match=rf"^{named}: expected .* only this user may write"):
        open_engine(bundle, "tensorrt")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_plans_of_another_user_are_not_loaded(bundle: Bundle) -> None:
    os.chown(write_plans(bundle) / RECORD_FILE, 12345, -1)
    with pytest.raises(EngineError, match=r"engines\.json: .* found one of the user with number 12345"):
        find_plans(bundle, VERSION, SM, GPU)


def test_plans_that_came_with_a_bundle_are_not_loaded(
    bundle: Bundle, tensorrt: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger's bundle with a record that vouches for its plans, as earlier releases wrote it."""
    folder = write_plans(bundle)
    (bundle.folder / "engines").mkdir()
    folder.rename(bundle.folder / "engines" / folder.name)
    opened = Bundle.open(bundle.folder)
    with pytest.raises(EngineError, match=rf"expected engines in tensorrt-{VERSION}-sm90, found none"):
        open_engine(opened, "tensorrt")
    open_engine(opened, "auto")
    told = [record for record in caplog.records if "are not used" in record.message]
    assert len(told) == 1
    assert f"{bundle.folder / 'engines'}: engines in a bundle are executable code" in told[0].message
    assert f"python -m export engines --bundle {bundle.folder}" in told[0].message


def test_plans_of_another_bundle_are_not_found(
    bundle: Bundle, make_tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    write_plans(bundle)
    other = Bundle.open(make_tiny_bundle(tmp_path / "other", seed=1))
    with pytest.raises(EngineError, match="found none"):
        find_plans(other, VERSION, SM, GPU)


def test_a_rebuilt_plan_has_another_digest(bundle: Bundle) -> None:
    record = read_record(write_plans(bundle))
    plan = msgspec.structs.replace(record.plans["vae"], sha256="0" * 64)
    rebuilt = msgspec.structs.replace(record, plans={**record.plans, "vae": plan})
    assert digest(rebuilt) != digest(record) == digest(record)


def test_tensorrt_that_does_not_start_is_passed_over(
    bundle: Bundle, tensorrt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its binding does where CUDA does not start."""

    def fail(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt, "Stream", lambda: None)
    monkeypatch.setattr(tensorrt.trt, "Runtime", fail)
    write_plans(bundle)
    assert "does not start on A GPU: pybind11::init()" in open_engine(bundle, "auto").description


def test_a_probe_reads_no_plan(bundle: Bundle, tensorrt: ModuleType) -> None:
    folder = write_plans(bundle)
    truncated(bundle, folder)
    candidate = probe(bundle, "tensorrt")
    assert candidate.available
    assert candidate.versions == {"tensorrt": VERSION}
    no_record(bundle, folder)
    assert "engines.json: expected a record" in probe(bundle, "tensorrt").reason


def test_files_that_are_not_plans_are_passed_over(bundle: Bundle, tensorrt: ModuleType) -> None:
    """All digests match, but the plan does not load: there is no device, or it is not a plan."""
    write_plans(bundle)
    with pytest.raises(EngineError, match=r"cuda\w+ failed: |expected a plan that TensorRT"):
        open_engine(bundle, "tensorrt")
    assert "passed over: tensorrt: " in open_engine(bundle, "auto").description


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_it_says_what_to_install(bundle: Bundle) -> None:
    assert "tensorrt" not in sys.modules
    reason = choose.probe(bundle, "tensorrt").reason
    assert "No module named 'tensorrt'; pip install tensorrt cuda-bindings" in reason
