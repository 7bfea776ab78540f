"""A run says who signed the bundle that decoded it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from realtime.bundle import minisign
from realtime.bundle.signers import SIGNATURE_FILE
from realtime.record.reader import read_recorded

from .conftest import Client, Scan, Served


@pytest.mark.parametrize("is_signed", [True, False])
def test_serve_and_the_run_folder_say_who_signed_the_bundle(
    serve: Callable[..., Served],
    connect: Callable[..., Client],
    make_scan: type[Scan],
    make_tiny_bundle: Callable[..., Path],
    tmp_path: Path,
    is_signed: bool,
) -> None:
    folder, key = make_tiny_bundle(tmp_path / "bundle"), minisign.new_secret_key()
    required = []
    if is_signed:
        signature = minisign.sign((folder / "bundle.json").read_bytes(), key, "made by a test")
        (folder / SIGNATURE_FILE).write_text(signature)
        required = ["--require-signed"]
    served = serve("--bundle", str(folder), "--signer", key.public.text, *required)
    expected = f"signed by {key.public.name}" if is_signed else "unsigned"
    assert f"\nthe bundle is {expected}\n" in served.said
    connect(served.address).send_run(scan := make_scan())
    recorded = read_recorded(served.run_folder(scan))
    assert recorded.info.bundle_signed_by == (key.public.name if is_signed else None)
