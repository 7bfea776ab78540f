"""Bundles are signed with a key that only its owner can read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from export.__main__ import main
from realtime.bundle import minisign as format_of
from realtime.bundle.bundle import Bundle
from realtime.bundle.locate import demo_data
from realtime.bundle.signers import Trust, given_signers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(demo_data("bundle"), tmp_path / "bundle")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    assert main(["signing-key", str(tmp_path / "lab.key")]) == 0
    return tmp_path / "lab.key"


def test_a_signed_bundle_is_its_signers(folder: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    assert main(["sign", str(folder), "--key", str(key)]) == 0
    public = key.with_suffix(".pub")
    trust = Trust(signers=given_signers([str(public)]), required=True)
    assert Bundle.open(folder, trust).signed.by == "lab"
    assert trust.signers[0].text in capsys.readouterr().out


def test_minisign_accepts_the_signature_of_a_bundle(minisign: str, folder: Path, key: Path) -> None:
    main(["sign", str(folder), "--key", str(key)])
    command = [minisign, "-V", "-p", str(key.with_suffix(".pub")), "-m", str(folder / "bundle.json")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"sha256:{Bundle.open(folder).sha256}" in said


def test_a_key_is_never_replaced(key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = key.read_bytes()
    assert main(["signing-key", str(key)]) == 2
    assert "a signing key is not replaced" in capsys.readouterr().err
    assert key.read_bytes() == before
    key.unlink()
    assert main(["signing-key", str(key)]) == 2, "its public key is still there"
    assert not key.exists()


def test_a_changed_bundle_is_not_signed(folder: Path, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "vae.onnx").open("ab") as file:
        file.write(b"more")
    assert main(["sign", str(folder), "--key", str(key)]) == 2
    assert "vae.onnx: changed since the bundle was made" in capsys.readouterr().err
    assert not (folder / "bundle.json.minisig").exists()


def test_a_key_that_others_may_read_or_that_has_a_password_is_refused(
    folder: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key.chmod(0o640)
    assert main(["sign", str(folder), "--key", str(key)]) == 2
    assert "expected mode 0600, found 0640" in capsys.readouterr().err
    key.chmod(0o600)
    secret = format_of.secret_key_file(format_of.read_secret_key(key.read_text()))
    key.write_text(secret.replace("\nRWQAAEIy", "\nRWRTY0Iy"))
    assert main(["sign", str(folder), "--key", str(key)]) == 2
    said = capsys.readouterr().err
    assert f"minisign -S -s {key} -m {folder / 'bundle.json'}" in said
