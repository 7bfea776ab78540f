"""Signs bundles, and makes keys to sign with, in minisign's format."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from export.errors import ExportError
from realtime.atomic import write_whole
from realtime.bundle import minisign
from realtime.bundle.bundle import Bundle
from realtime.bundle.regular_file import open_regular, read_bytes
from realtime.bundle.signers import SIGNATURE_FILE
from realtime.bundle.spec import MAX_SPEC_BYTES, SPEC_FILE


def make_signing_key(path: Path) -> Path:
    """Make a secret key, which only its owner may read, and the public key beside it.

    :returns: the public key's file, the secret key's with the suffix ``.pub``
    :raises ExportError: a file exists already, or cannot be written
    """
    key, public = minisign.new_secret_key(), path.with_suffix(".pub")
    if path == public:
        raise ExportError(f"{path}: expected a name for a secret key that does not end in .pub")
    if existing := [str(file) for file in (path, public) if os.path.lexists(file)]:
        raise ExportError(
            f"expected no file {' and '.join(existing)}; choose another name, because a signing key is not "
            "replaced"
        )
    try:
        for file, mode, content in (
            (path, 0o600, minisign.secret_key_file(key)),
            (public, 0o644, minisign.public_key_file(key.public)),
        ):
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as opened:
                opened.write(content)
    except OSError as error:
        raise ExportError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return public


def sign_bundle(folder: Path, key_file: Path) -> minisign.PublicKey:
    """Check a bundle and sign it; returns the public key.

    :raises BundleError: the bundle cannot be read or was changed
    :raises ExportError: the key cannot be read, has a password, or others may read it
    """
    key = _read_key(key_file, folder)
    sha256 = Bundle.open(folder).sha256
    spec = read_bytes(folder / SPEC_FILE, MAX_SPEC_BYTES)
    comment = f"timestamp:{int(time.time())}\tfile:{SPEC_FILE}\tsha256:{sha256}"
    write_whole(folder / SIGNATURE_FILE, minisign.sign(spec, key, comment))
    return key.public


def _read_key(path: Path, folder: Path) -> minisign.SecretKey:
    try:
        with open_regular(path, minisign.MAX_FILE_BYTES) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read().decode()
        if mode & 0o077:
            raise ExportError(
                f"{path}: expected mode 0600, found {mode:04o}: others may read it; make a new key"
            )
        return minisign.read_secret_key(text)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ExportError(
            f"{path}: expected a secret key of `python -m export signing-key`: {error}. If the key has a "
            f"password, sign with minisign itself: minisign -S -s {path} -m {folder / SPEC_FILE}"
        ) from error
