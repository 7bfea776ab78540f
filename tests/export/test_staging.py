from __future__ import annotations

from pathlib import Path

import pytest

from export.atomic_folder import check_replaceable, staging
from export.errors import ExportError
from realtime.bundle.bundle import Bundle

from .conftest import Exported


def copy_of(bundle: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def stage_and_fail(out: Path, failure: BaseException) -> None:
    with staging(out) as folder:
        (folder / "file").write_text("half")
        raise failure


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "bundle"
    with staging(out) as folder:
        (folder / "file").write_text("content")
        assert not out.exists()
        assert folder.parent == out.parent, "a rename within one file system"
    assert names(out) == ["file"]
    assert names(out.parent) == ["bundle"]


@pytest.mark.parametrize("failure", [ExportError("too far"), KeyboardInterrupt(), OSError("disk full")])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        stage_and_fail(tmp_path / "bundle", failure)
    assert names(tmp_path) == []


def test_an_older_bundle_is_replaced_or_stays(tmp_path: Path, exported: Exported) -> None:
    out = copy_of(exported.folder, tmp_path / "sub-01")
    with pytest.raises(ExportError, match="too far"):
        stage_and_fail(out, ExportError("too far"))
    assert Bundle.open(out).sha256 == exported.bundle.sha256
    with staging(out) as folder:
        (folder / "file").write_text("newer")
    assert names(out) == ["file"]
    assert names(tmp_path) == ["sub-01"]


def test_exports_of_two_processes_do_not_mix_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    with staging(out, check=lambda _: None) as first:
        (first / "one").write_text("one")
        monkeypatch.setattr("os.getpid", lambda: 0)
        with staging(out, check=lambda _: None) as second:
            assert names(first) == ["one"]
            (second / "two").write_text("two")
        assert names(out) == ["two"]
    assert names(out) == ["one"]
    assert names(tmp_path) == ["bundle"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with staging(tmp_path / "bundle") as folder:
        (folder / "file").write_text("content")
    assert names(tmp_path / "bundle") == ["file"]


def test_what_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match=r"it holds thesis\.tex; choose another --out"):
        check_replaceable(tmp_path)
    with pytest.raises(ExportError, match="found a file"):
        check_replaceable(tmp_path / "thesis.tex")
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ExportError, match="cannot be read as one .* remove it first"):
        check_replaceable(tmp_path)


def test_files_beside_a_bundle_are_not_lost(tmp_path: Path, exported: Exported) -> None:
    out = copy_of(exported.folder, tmp_path / "sub-01")
    (out / "engines").mkdir()  # of an earlier release
    (out / "bundle.json.minisig").write_text("of the old bundle")
    check_replaceable(out)
    (out / "notes.txt").write_text("of this subject")
    with pytest.raises(ExportError, match=r"the folder also holds notes\.txt; move that away"):
        check_replaceable(out)


def test_what_comes_in_the_way_meanwhile_is_not_lost_either(tmp_path: Path) -> None:
    out = tmp_path / "bundle"

    def stage_while_somebody_writes() -> None:
        with staging(out) as folder:
            (folder / "file").write_text("content")
            out.mkdir()
            (out / "notes.txt").write_text("of this subject")

    with pytest.raises(ExportError, match=r"it holds notes\.txt"):
        stage_while_somebody_writes()
    assert names(out) == ["notes.txt"]
    assert names(tmp_path) == ["bundle"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ExportError, match="cannot make a folder beside"),
        staging(tmp_path / "file" / "bundle"),
    ):
        pass
