"""``realtime doctor`` and ``realtime bench`` on the machine that runs the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from realtime import cli
from realtime.bundle.bundle import Bundle
from realtime.bundle.spec import Sampler
from realtime.decoding import doctor
from realtime.decoding.bench import Bench
from realtime.decoding.doctor import Diagnosis
from realtime.decoding.engines import onnxruntime_cuda
from realtime.decoding.engines.choose import AUTO_ORDER, ENGINES, probe
from realtime.record.reader import read_recorded

from .conftest import Client, Scan, Served


@pytest.fixture(scope="module")
def said(tiny_bundle: Path) -> tuple[Diagnosis, str]:
    found = doctor.diagnose(Bundle.open(tiny_bundle), Path("no/such/folder/yet"))
    return found, "\n".join(doctor.lines(found))


def test_every_engine_is_measured_or_its_reason_is_given(
    said: tuple[Diagnosis, str], tiny_bundle: Path
) -> None:
    found, text = said
    bundle = Bundle.open(tiny_bundle)
    assert [finding.name for finding in found.engines] == [name for name in ENGINES if name != "auto"]
    for finding in found.engines:
        candidate = probe(bundle, finding.name)
        assert finding.available == candidate.available
        assert finding.versions == candidate.versions
        if finding.available:
            assert f"{finding.name:17} yes: {finding.description}" in text
            assert finding.step_ms.keys() == {"brain", "guided", "unguided", "vae"}
            assert min(finding.step_ms.values()) > 0
            expected = sum(finding.step_ms[part] for part in ("brain", "vae")) + 4 * finding.step_ms["guided"]
            assert finding.decode_ms["ddim-4"] == pytest.approx(expected)
        else:
            assert f"{finding.name:17} no: {candidate.reason}" in text
    cpu = {finding.name: finding for finding in found.engines}["onnxruntime-cpu"]
    assert cpu.available
    assert cpu.memory_bytes is None or cpu.memory_bytes > 10e6


def test_it_says_what_the_runtime_will_do(said: tuple[Diagnosis, str]) -> None:
    found, text = said
    running = [name for name in AUTO_ORDER if {f.name: f.available for f in found.engines}[name]]
    assert found.engine in running
    assert text.splitlines()[-1].startswith(f"the runtime uses {found.engine}")
    assert "ddim-4 for a TR of 1.333 s" in text
    assert found.disk_free_bytes > 0
    assert found.disk_per_hour_bytes == 2700 * (6**3 * 4 + 32 * 32 * 3)


def test_engines_are_judged_by_the_scanners_tr(tiny_bundle: Path, tmp_path: Path) -> None:
    """It may be another, with --resample."""
    found = doctor.diagnose(Bundle.open(tiny_bundle), tmp_path, 1e-6)
    assert not any(finding.fits for finding in found.engines if finding.available)
    found = doctor.diagnose(Bundle.open(tiny_bundle), tmp_path, 2.0)
    assert "ddim-4 for a TR of 2.000 s" in "\n".join(doctor.lines(found))
    assert found.disk_per_hour_bytes == 1800 * (6**3 * 4 + 32 * 32 * 3)


def test_a_model_too_slow_for_the_tr_is_reported(
    make_tiny_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    """A thousand steps within a microsecond, which no machine can do."""
    steps = 1000
    long, longer = (
        Sampler(
            name=name,
            timesteps=tuple(reversed(range(steps))),
            coefficients=((0.0, 1.0, 0.0),) * steps,
            guidance=(guidance,) * steps,
        )
        for name, guidance in (("guided", 3.0), ("unguided", 1.0))
    )
    folder = make_tiny_bundle(tmp_path / "bundle", samplers=(long, longer), tr_s=1e-6)
    found = doctor.diagnose(Bundle.open(folder), tmp_path)
    measured = [finding for finding in found.engines if finding.available]
    assert not any(finding.fits for finding in measured)
    for finding in measured:
        assert finding.sampler == min(finding.decode_ms, key=lambda name: finding.decode_ms[name])
    assert "too slow for the TR: volumes will be skipped" in "\n".join(doctor.lines(found))


def test_programs_get_json(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["doctor", "--bundle", str(tiny_bundle), "--out", str(tmp_path)]
    assert cli.main([*command, "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Diagnosis)
    assert found.bundle_sha256 == Bundle.open(tiny_bundle).sha256
    assert cli.main(command) == 0
    assert "the runtime uses " in capsys.readouterr().out


def test_where_nothing_can_run_it_says_so_and_fails(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from realtime.decoding.engines import choose

    for name in AUTO_ORDER:
        monkeypatch.setitem(choose._MODULES, name, "realtime.decoding.engines.none_such")
    monkeypatch.setitem(choose._MODULES, "openvino-bf16", "realtime.decoding.engines.none_such")
    assert cli.main(["doctor", "--bundle", str(tiny_bundle), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert "no engine can run this bundle here" in said.out
    assert "No module named 'realtime.decoding.engines.none_such'; pip install" in said.out
    assert said.err.startswith("realtime: expected an engine that runs this bundle here")
    assert cli.main(["bench", "--bundle", str(tiny_bundle)]) == 2


def test_a_bundle_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("doctor", "bench"):
        assert cli.main([command, "--bundle", str(tmp_path / "none")]) == 2
        assert "expected a bundle's folder" in capsys.readouterr().err


def test_bench_times_every_sampler_on_every_engine(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--bundle", str(tiny_bundle), "-n", "3", "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Bench)
    assert found.descriptions.keys() | found.passed_over.keys() == set(ENGINES) - {"auto"}
    assert [(timing.engine, timing.sampler) for timing in found.timings] == [
        (engine, sampler) for engine in found.descriptions for sampler in ("ddim-4", "multistep-3")
    ]
    for timing in found.timings:
        assert timing.n == 3
        assert 0 < timing.median_ms <= timing.p95_ms
        assert list(timing.stages_ms) == ["brain", "denoise", "vae"]


def test_bench_goes_on_after_an_engine_that_does_not_open(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "_has_cuda_device", lambda: True)
    assert cli.main(["bench", "--bundle", str(tiny_bundle), "-n", "1", "--json"]) == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=Bench)
    assert "onnxruntime-cuda" in found.passed_over
    assert "onnxruntime-cpu" in found.descriptions


def test_bench_takes_the_engines_and_samplers_it_is_given(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--bundle", str(tiny_bundle), "-n", "1", "--engine"]
    assert cli.main([*command, "onnxruntime-cpu", "--sampler", "multistep-3"]) == 0
    said = capsys.readouterr().out
    assert "onnxruntime-cpu: ONNX Runtime" in said
    assert "ddim-4" not in said
    assert "openvino" not in said
    assert cli.main([*command, "abacus"]) == 2
    assert "expected an engine of auto, tensorrt" in capsys.readouterr().err
    assert cli.main([*command, "auto", "--sampler", "euler"]) == 2
    assert "samplers (ddim-4, multistep-3), got 'euler'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "demo", "bench"])
def test_help_names_the_engines(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name in ENGINES[1:]:
        assert name in said
    assert "--sampler NAME" in said


def test_the_engine_and_sampler_asked_for_are_used(
    serve: Callable[..., Served], connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    served = serve("--engine", "onnxruntime-cpu", "--sampler", "multistep-3")
    assert "on ONNX Runtime" in served.said
    scan = make_scan(n_volumes=8)
    connect(served.address).send_run(scan)
    recorded = read_recorded(served.closed(scan))
    assert served.interrupt() == 0
    assert {row.sampler for row in recorded.rows if row.sampler} == {"multistep-3"}
