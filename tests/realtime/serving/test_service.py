"""A runtime as a whole, in this process."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from realtime.service.service import Options, Service


def is_free(address: str) -> bool:
    parts = urlsplit(address)
    with socket.socket() as one:
        return one.connect_ex((parts.hostname, parts.port)) != 0


def test_all_is_let_go_of_whatever_fails_on_the_way(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        service = Service(
            Options(
                bundle=tiny_bundle,
                bundle_is_demo=False,
                source="tcp://127.0.0.1:0",
                port=0,
                out=tmp_path,
                engine="onnxruntime-cpu",
                publish="tcp://127.0.0.1:0",
            )
        )
        await service.start()
        assert service.publish_address
        assert service.url
        addresses = [service.source_address, service.publish_address, service.url]
        assert [is_free(address) for address in addresses] == [False] * 3

        def fail(*, end_run: bool) -> None:
            raise RuntimeError("something unforeseen")

        try:
            with monkeypatch.context() as patch:
                patch.setattr(service.pipeline, "stop", fail)
                with pytest.raises(RuntimeError, match="something unforeseen"):
                    await service.stop(end_run=True)
            assert [is_free(address) for address in addresses] == [True] * 3
        finally:
            await service.stop(end_run=True)

    asyncio.run(run())
