"""Which folders an export may replace, and the folder that it writes in until then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from export.errors import ExportError
from realtime.atomic import whole
from realtime.bundle.regular_file import read_bytes
from realtime.bundle.signers import SIGNATURE_FILE
from realtime.bundle.spec import MAX_SPEC_BYTES, SPEC_FILE, decode_spec
from realtime.decoding.engines.plans import ENGINES_FOLDER, RECORD_FILE
from realtime.errors import BundleError


@contextmanager
def staging(out: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A new folder that takes the place of ``out`` when the block ends without an error, else is removed.

    Every process has a folder of its own, so that exports to the same ``out`` do not mix their files.

    :param check: called before and after the block; raises where ``out`` must not be replaced: by default,
        where it holds anything but a bundle
    :raises ExportError: ``check`` raised it, or no folder can be made beside ``out``
    """
    check = check or check_replaceable
    check(out)
    out = out.absolute()
    with ExitStack() as stack:
        try:
            staged = stack.enter_context(whole(out, str(os.getpid())))
            staged.mkdir()
        except OSError as error:
            raise ExportError(
                f"cannot make a folder beside {out}: {error.strerror}; choose a place that can be written"
            ) from error
        yield staged
        check(out)


def check_replaceable(out: Path) -> None:
    """Check that ``out`` holds nothing but an older bundle, which may be replaced.

    :raises ExportError: ``out`` holds something else
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
        # Engines that an earlier release wrote into a bundle are replaced too: nothing loads them any more.
        known = {
            SPEC_FILE,
            SIGNATURE_FILE,
            ENGINES_FOLDER,
            *decode_spec(read_bytes(out / SPEC_FILE, MAX_SPEC_BYTES)).files,
        }
    except BundleError as error:
        raise ExportError(
            f"expected {out} to be a bundle, but it cannot be read as one ({error}); remove it first"
        ) from error
    if found - known:
        raise ExportError(
            f"the bundle in {out} would be replaced, but the folder also holds {_some(found - known)}; move "
            "that away, or choose another --out"
        )


def check_engines_replaceable(out: Path) -> None:
    """Check that ``out`` holds nothing but older engines; raises as :func:`check_replaceable`."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ExportError(f"expected {out} to be a folder of engines or not to exist, found a file or a link")
    if out.exists():
        found = {path.name for path in out.iterdir() if path.suffix != ".plan"}
        if found - {RECORD_FILE}:
            others = _some(found - {RECORD_FILE})
            raise ExportError(f"expected {out} to hold only engines; it holds {others}; move that away")


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")
