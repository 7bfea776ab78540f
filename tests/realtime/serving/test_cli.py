from __future__ import annotations

import json
import re
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from realtime import cli
from realtime.bundle.locate import choose_bundle
from realtime.errors import ServeError

from .conftest import Client, Scan, Served, wait_until


@pytest.fixture
def shipped(tmp_path: Path, tiny_bundle: Path, tiny_nsd: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation whose demo data is the tests' own."""
    root = tmp_path / "installed"
    shutil.copytree(tiny_bundle, root / "demo_data" / "bundle")
    shutil.copytree(tiny_nsd, root / "demo_data" / "nsd")
    monkeypatch.setattr(resources, "files", lambda package: root)
    monkeypatch.chdir(tmp_path)
    return root / "demo_data" / "bundle"


def test_a_given_bundle_is_taken(tiny_bundle: Path, shipped: Path) -> None:
    assert choose_bundle(tiny_bundle, None) == (tiny_bundle, False)
    assert choose_bundle(tiny_bundle, 1) == (tiny_bundle, False)


def test_without_one_the_subjects_own_comes_before_the_shipped(tiny_bundle: Path, shipped: Path) -> None:
    assert choose_bundle(None, 1) == (shipped, True)
    assert choose_bundle(None, None) == (shipped, True)
    shutil.copytree(tiny_bundle, "bundles/sub-01")
    assert choose_bundle(None, 1) == (Path("bundles/sub-01"), False)


def test_a_bundle_of_another_subject_is_refused(tiny_bundle: Path, shipped: Path) -> None:
    with pytest.raises(ServeError, match="expected a bundle of subject 2, got one of subject 1"):
        choose_bundle(tiny_bundle, 2)
    with pytest.raises(ServeError, match="found no bundle in bundles/sub-02"):
        choose_bundle(None, 2)


def test_an_installation_without_the_demo_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in (["demo", "--headless"], ["serve", "--headless"]):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert "expected the shipped demo's data" in said
        assert said.count("\n") == 1


def test_serve_says_which_bundle_it_took(serve: Callable[..., Served]) -> None:
    served = serve()
    assert "decoding with bundle tiny, subject 1" in served.said
    assert "no page (headless)" in served.said
    assert re.search(r"^on (OpenVINO|ONNX Runtime) \S+, C", served.said, flags=re.MULTILINE)
    assert served.interrupt() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["demo", "--speed", "0"],
        ["demo", "--speed", "nan"],
        ["demo", "--port", "70000"],
        ["serve", "--no-such-option"],
    ],
)
def test_wrong_options_are_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: realtime" in capsys.readouterr().err


def test_a_source_on_the_network_is_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path), "--headless"]
    assert cli.main(["serve", *options, "--source", "tcp://0.0.0.0:5555"]) == 2
    assert "expected a loopback address" in capsys.readouterr().err


def test_a_page_on_the_network_without_a_certificate_is_refused(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--bundle", str(tiny_bundle), "--out", str(tmp_path), "--source", "tcp://127.0.0.1:0"]
    assert cli.main(["serve", *options, "--page-host", "0.0.0.0"]) == 2
    assert "expected --tls-cert and --tls-key for a page at 0.0.0.0" in capsys.readouterr().err


def test_on_the_network_it_is_opened_by_the_url_that_is_printed_once(
    serve: Callable[..., Served], make_certificate: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    cert, key = make_certificate(tmp_path, "127.0.0.1")
    options = ["--page-host", "0.0.0.0", "--tls-cert", str(cert), "--tls-key", str(key)]
    served = serve(*options, "--port", "0")
    url = served.found(r"page: (https://127\.0\.0\.1:\d+/\?token=\S+)")
    trust = ssl.create_default_context(cafile=str(cert))
    browser = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=trust), urllib.request.HTTPCookieProcessor()
    )
    assert b"<html" in browser.open(url).read()
    assert browser.open(url.split("?")[0]).status == 200  # by its cookie
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url.split("?")[0], context=trust)
    token = url.split("token=")[1]
    assert served.said.count(token) == 1
    assert served.interrupt() == 0
    assert token not in served.log()


def test_the_log_is_json_where_asked_for_and_the_figures_are_served(
    serve: Callable[..., Served], connect: Callable[..., Client], make_scan: type[Scan]
) -> None:
    served = serve("--log-format", "json", "--port", "0", "--publish", "tcp://127.0.0.1:0")
    scan = make_scan()
    url, token = served.found(r"page: (\S+)").split("?token=")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}metrics")
    asked = urllib.request.Request(f"{url}metrics", headers={"Authorization": f"Bearer {token}"})

    def figures() -> tuple[float, float, float | None]:
        """Volumes that have a state, frames, messages published: None while the decoder is not heard."""
        with urllib.request.urlopen(asked) as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            families = list(text_string_to_metric_families(response.read().decode()))
        found = {sample.name: sample.value for family in families for sample in family.samples}
        [states] = [family.samples for family in families if family.name == "realtime_volumes"]
        return (
            sum(sample.value for sample in states if sample.name.endswith("_total")),
            found["realtime_decode_latency_seconds_count"],
            found.get("realtime_published_messages_total"),
        )

    wait_until(lambda: figures() == (0, 0, 0), "that the page hears the decoder")
    connect(served.address).send_run(scan)
    n_frames = len(list((served.closed(scan) / "frames").iterdir()))
    assert n_frames > 0
    expected = (scan.n_volumes, n_frames)
    wait_until(lambda: figures()[:2] == expected, f"{expected} in /metrics")
    # The run's start and end are published too, and what volumes are like.
    wait_until(lambda: (figures()[2] or 0) > n_frames + 2, f"more than {n_frames + 2} messages in /metrics")
    assert served.interrupt() == 0
    lines = [json.loads(line) for line in served.log().splitlines()]
    assert any(line.get("run_id") == scan.run_id for line in lines)
    assert {line["level"] for line in lines} <= {"info", "warning"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--source", "ftp://127.0.0.1:1"], "expected a source like tcp://127.0.0.1:5555, pyneal+tcp://"),
        (["--source", "pyneal+tcp://127.0.0.1:0"], "expected --volumes N"),
        (["--source", "pyneal+tcp://0.0.0.0:0", "--volumes", "9"], "expected a loopback address"),
        (["--source", "afni+tcp://10.0.0.1:7961", "--volumes", "9"], "expected a loopback address"),
        (["--source", "folder:/no/such/folder", "--volumes", "9"], "expected a folder to watch"),
        (["--volumes", "9"], "expected no --volumes"),
        (["--source", "folder:/", "--volumes", "9", "--run-id", "a/b"], "expected --volumes and --run-id"),
    ],
)
def test_an_invalid_source_is_one_line(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    common = ["--bundle", str(tiny_bundle), "--out", str(tmp_path), "--headless"]
    assert cli.main(["serve", *common, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_help_tells_what_each_source_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    said = capsys.readouterr().out
    for form in ("tcp://127.0.0.1:5555 ", "pyneal+tcp://", "afni+tcp://", "folder:/path"):
        assert form in said
    assert max(map(len, said.splitlines())) <= 110
