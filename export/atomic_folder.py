"""A bundle appears whole or not at all: written beside its place, checked, then moved there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from export.errors import ExportError
from realtime.bundle.files import read_bytes
from realtime.bundle.spec import MAX_SPEC_BYTES, SPEC_FILE, decode_spec
from realtime.decoding.engines.plans import ENGINES_FOLDER, RECORD_FILE
from realtime.errors import BundleError


@contextmanager
def staging(out: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place when the block ends well, else is gone.

    :param check: raises where ``out`` must stay as it is; by default where it holds anything but a bundle
    :raises ExportError: of ``check``, or when its parent cannot be written
    """
    check = check or check_replaceable
    check(out)
    out = out.absolute()
    staged = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        staged.mkdir(parents=True)
    except OSError as error:
        raise ExportError(
            f"expected to write beside {out}: {error.strerror}; give a place that can be written"
        ) from error
    try:
        yield staged
        check(out)
        _take_place(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def check_replaceable(out: Path) -> None:
    """See that nothing but an older bundle would be lost.

    :raises ExportError: what is in the way, and what to do
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise ExportError(f"expected {out} to be a bundle's folder or not to exist, found a file or a link")
    found = {path.name for path in out.iterdir()}
    if not found:
        return
    if SPEC_FILE not in found:
        raise ExportError(
            f"expected {out} to be a bundle, empty, or not to exist; it holds {_some(found)}; choose another "
            "--out"
        )
    try:
        # Engines fit the graphs they were built from and no others: they go with them.
        known = {SPEC_FILE, ENGINES_FOLDER, *decode_spec(read_bytes(out / SPEC_FILE, MAX_SPEC_BYTES)).files}
    except BundleError as error:
        raise ExportError(
            f"{out} is in the way and is not read as a bundle ({error}); remove it first"
        ) from error
    if found - known:
        raise ExportError(
            f"the bundle in {out} would be replaced, but {_some(found - known)} beside it is no part of it; "
            "move that away, or choose another --out"
        )


def check_engines_replaceable(out: Path) -> None:
    """See that nothing but older engines would be lost; raises as :func:`check_replaceable`."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"expected {out} to be a folder of engines or not to exist, found a file or a link")
    if out.exists():
        found = {path.name for path in out.iterdir() if path.suffix != ".plan"}
        if found - {RECORD_FILE}:
            others = _some(found - {RECORD_FILE})
            raise ExportError(f"expected {out} to hold engines only; it holds {others}; move that away")


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


def _take_place(staged: Path, out: Path) -> None:
    """Two renames where there is an older bundle; it comes back if the second one fails."""
    if not out.exists():
        staged.rename(out)
        return
    older = staged.with_suffix(".older")
    out.rename(older)
    try:
        staged.rename(out)
    except OSError:
        older.rename(out)
        raise
    shutil.rmtree(older)
