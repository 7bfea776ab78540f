"""Who signed a bundle: checks ``bundle.json.minisig`` against the keys of the signers that the user trusts.

``bundle.json`` names the SHA-256 of every other file, so its signature covers the whole bundle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from realtime.bundle import minisign
from realtime.bundle.regular_file import read_bytes
from realtime.bundle.spec import SPEC_FILE
from realtime.bundle.user_cache import PACKAGE, check_private
from realtime.errors import BundleError

SIGNATURE_FILE = f"{SPEC_FILE}.minisig"


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What the signature of a bundle says."""

    by: str | None = None
    """Name of the trusted signer; None: nobody whom the user trusts."""
    description: str = "unsigned"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose signatures count, and whether a bundle needs one."""

    signers: tuple[minisign.PublicKey, ...] = ()
    required: bool = False

    def check(self, folder: Path, spec: bytes) -> Signed:
        """Check the signature of a bundle.

        :param spec: content of its ``bundle.json``
        :raises BundleError: when a trusted signer's signature does not match, the signature cannot be read,
            or one is required and no trusted signer made it
        """
        path = folder / SIGNATURE_FILE
        signed = self._signed(path, spec) if os.path.lexists(path) else Signed()
        if self.required and not signed.by:
            known = ", ".join(each.name for each in self.signers) or "nobody yet"
            raise BundleError(
                f"{folder}: expected a bundle signed by a trusted signer ({known}), found one that is "
                f"{signed.description}; put the signer's .pub file into {signers_folder()}, or give it as "
                "--signer"
            )
        return signed

    def _signed(self, path: Path, spec: bytes) -> Signed:
        try:
            signature = minisign.read_signature(read_bytes(path, minisign.MAX_FILE_BYTES).decode())
        except ValueError as error:
            raise BundleError(
                f"{path}: expected a signature of minisign's: {error}; copy the bundle again"
            ) from error
        candidates = [key for key in self.signers if key.id == signature.id]
        for key in candidates:
            if minisign.is_signed(spec, signature, key):
                return Signed(by=key.name, description=f"signed by {key.name}")
        key_id = minisign.id_text(signature.id)
        if not candidates:
            return Signed(description=f"signed by the key {key_id}, which is not a trusted signer's")
        raise BundleError(
            f"{path}: expected the signature of {candidates[0].name} ({key_id}), but that key did not sign "
            f"this {SPEC_FILE} with this comment; copy the bundle again from a source that you trust"
        )


def signers_folder() -> Path:
    """Where the user keeps the public keys of trusted signers, as ``<name>.pub``."""
    return platformdirs.user_config_path(PACKAGE) / "signers"


def pinned_signers() -> tuple[minisign.PublicKey, ...]:
    """Read the keys in :func:`signers_folder`.

    :raises BundleError: when a key cannot be read, or another user could change it
    """
    folder = signers_folder()
    check_private(folder)
    return tuple(_read_key(path, private=True) for path in sorted(folder.glob("*.pub")))


def given_signers(keys: Sequence[str]) -> tuple[minisign.PublicKey, ...]:
    """Read public keys, each a line of base64 or the path of a file.

    :raises BundleError: when one cannot be read
    """
    return tuple(_read_key(Path(key)) if Path(key).exists() else _key(key, key) for key in keys)


def _read_key(path: Path, *, private: bool = False) -> minisign.PublicKey:
    if private:
        check_private(path)
    return _key(read_bytes(path, minisign.MAX_FILE_BYTES).decode(errors="replace"), str(path), path.stem)


def _key(text: str, source: str, name: str = "") -> minisign.PublicKey:
    try:
        key = minisign.read_public_key(text, name)
    except ValueError as error:
        raise BundleError(
            f"{source}: expected a public key of minisign's, or the file of one: {error}"
        ) from error
    return key if name else minisign.PublicKey(name=minisign.id_text(key.id), id=key.id, key=key.key)
