"""A run that an older version recorded and decoded in part, when it was killed, goes on with this one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from realtime import wire
from realtime.bundle.bundle import Bundle
from realtime.cli import main
from realtime.record.run_json import read_run_file, table_path
from realtime.runs import checkpoint
from realtime.runs.checkpoint import CHECKPOINT

from .conftest import Client, Scan, Served, frames_of, wait_until
from .in_process import Lockstep

N_VOLUMES, KILLED_AT = 32, 18
OLDER = {"realtime-dynadiff": "0.0.9", "numpy": "2.0.0", "python": "3.11.0", "system": "another"}
NEWER_FIELDS = ("owner", "bundle_signed_by", "spikes", "registration", "resampled_to_s")
"""Of ``run.json``, which releases of before did not write."""


def checkpoint_with_other_versions(folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What the older decoder saved at this place in the journal: the same but for the versions."""
    info = read_run_file(folder)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "versions", lambda: OLDER)
        older = Lockstep.reopen(folder, bundle, engine=info.engine, faces=info.faces)
        saved = older.run.checkpoint()
        older.let_go()
    assert saved
    return saved.as_bytes()


def as_older_version_left_it(folder: Path) -> None:
    described = msgspec.json.decode((folder / "run.json").read_bytes())
    described["versions"] = OLDER
    for name in NEWER_FIELDS:
        described.pop(name, None)
    for decoder in described["decoders"]:
        del decoder["added_delay_s"]
    (folder / "run.json").write_bytes(msgspec.json.encode(described))


def test_a_run_goes_on_with_a_newer_version_without_a_loss(
    serve: Callable[..., Served],
    connect: Callable[[str], Client],
    make_scan: type[Scan],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scan = make_scan(n_volumes=N_VOLUMES)
    served = serve()
    client, folder = connect(served.address), served.run_folder(scan)
    client.ask(scan.start)
    for index in range(KILLED_AT):
        client.send_volume(scan, index)
    wait_until(lambda: len(rows_of(folder, scan)) == KILLED_AT, f"rows of the first {KILLED_AT} volumes")
    served.kill()
    content = checkpoint_with_other_versions(folder, Bundle.open(tiny_bundle), monkeypatch)
    as_older_version_left_it(folder)
    (folder / CHECKPOINT).write_bytes(content)
    rows, frames = rows_of(folder, scan), frames_of(folder)
    assert frames

    served = serve()
    client = connect(served.address)
    assert client.ask(scan.start) == wire.RunAccepted(run_id=scan.run_id, held=[(0, KILLED_AT)])
    for index in range(KILLED_AT, N_VOLUMES):
        client.send_volume(scan, index)
    client.ask(scan.end())
    served.closed(scan)
    assert served.interrupt() == 0
    assert f"the checkpoint of {scan.run_id} is ignored, its journal is read instead" in served.log()
    assert not (folder / CHECKPOINT).exists()
    assert rows_of(folder, scan)[:KILLED_AT] == rows
    assert {row.split("\t")[0] for row in rows_of(folder, scan)} == {str(index) for index in range(N_VOLUMES)}
    assert frames.items() <= frames_of(folder).items()
    replayed = ["replay", str(folder), "--bundle", str(tiny_bundle), "--out", str(tmp_path / "replays")]
    assert main(replayed) == 0, capsys.readouterr().out


def rows_of(folder: Path, scan: Scan) -> list[str]:
    """The whole rows of the table of decodes, as they are in the file."""
    table = table_path(folder, scan.start)
    return table.read_text().split("\n")[1:-1] if table.exists() else []
