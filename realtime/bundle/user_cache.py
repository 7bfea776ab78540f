"""The user's cache: what this machine made from a bundle, in a folder that only this user can write.

    <user cache>/realtime-dynadiff/<SHA-256 of bundle.json>/

A bundle travels; its cache does not. So compiled engines, which are executable code, are loaded from here and
never from a bundle.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from realtime.errors import BundleError

PACKAGE = "realtime-dynadiff"


def cache_folder(bundle_sha256: str) -> Path:
    """Return the folder for a bundle, which may not exist yet.

    :raises BundleError: when the folder, or the one it is in, could be written by another user
    """
    root = platformdirs.user_cache_path(PACKAGE)
    for folder in (root, root / bundle_sha256):
        check_private(folder)
    return root / bundle_sha256


def make_cache_folder(bundle_sha256: str) -> Path:
    """Make the folder for a bundle, if need be, and return it; raises as :func:`cache_folder`.

    :raises OSError: when it cannot be made
    """
    folder = cache_folder(bundle_sha256)
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return cache_folder(bundle_sha256)


def check_private(path: Path) -> None:
    """Check that a file or folder, if it exists, is this user's own, and that no other user may write it.

    :raises BundleError: when it is a link, or another user owns it or may write it
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    if stat.S_ISLNK(found.st_mode):
        problem = "found a link"
    elif hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        problem = f"found one of the user with number {found.st_uid}"
    elif found.st_mode & 0o022:
        problem = f"found one that others may write (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise BundleError(
        f"{path}: expected a file or folder that only this user may write, {problem}; what lies in it is not "
        "used. Remove it, or correct its owner and mode"
    )
