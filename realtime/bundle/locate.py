"""Finds the bundle to serve and the data of the shipped demo."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from realtime.bundle.match import read_spec
from realtime.bundle.spec import SPEC_FILE
from realtime.errors import BundleError, ServeError


def choose_bundle(folder: Path | None, subject: int | None) -> tuple[Path, bool]:
    """Return the bundle to serve and whether it is the shipped demo's.

    Without ``folder``, choose the subject's bundle under ``./bundles``, or else the demo's, if it is made for
    the subject.

    :raises ServeError: when there is no bundle for the subject
    :raises BundleError: when the bundle cannot be read
    """
    found = folder or Path("bundles") / f"sub-{subject or 1:02d}"
    is_demo = folder is None and not (found / SPEC_FILE).is_file()
    chosen = demo_data("bundle") if is_demo else found
    if subject is not None:
        bundle_subject = read_spec(chosen)[0].subject
        if bundle_subject != subject:
            looked = f" (found no bundle in {found})" if is_demo else ""
            raise ServeError(
                f"expected a bundle of subject {subject}, got one of subject {bundle_subject}: "
                f"{chosen}{looked}; export one, or give its folder as --bundle"
            )
    return chosen, is_demo


def find_bundle(sha256: str, folders: Sequence[Path], beside: Sequence[Path]) -> Path | None:
    """Return the folder of the bundle with this SHA-256; None where it is in none of the places.

    :param folders: where it may be
    :param beside: where a folder ``bundles`` may be that holds it; the demo's is looked at last
    """
    around = [path.parent for root in beside for path in sorted((root / "bundles").glob(f"*/{SPEC_FILE}"))]
    for folder in (*folders, *around, _demo_folder("bundle")):
        with contextlib.suppress(BundleError, ValueError):  # no bundle there, one of another version, no path
            if read_spec(folder)[1] == sha256:
                return folder
    return None


def is_shipped(folder: Path) -> bool:
    """Whether a bundle is the demo's, which is part of this installation and trusted like its code."""
    return folder.resolve() == _demo_folder("bundle").resolve()


def _demo_folder(name: str) -> Path:
    return Path(str(resources.files("realtime"))) / "demo_data" / name


def demo_data(name: str) -> Path:
    """Return a folder of the shipped demo, ``bundle`` or ``nsd``.

    :raises ServeError: when this installation does not contain it
    """
    folder = _demo_folder(name)
    if not folder.is_dir():
        raise ServeError(
            f"expected the shipped demo's data in {folder}, found none; install a release, or give --bundle"
        )
    return folder
