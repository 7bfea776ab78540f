"""TLS for a port of this machine, from a certificate and its key."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from realtime.errors import ServeError


def server_context(certificate: Path, key: Path, peers: Path | None = None) -> ssl.SSLContext:
    """TLS of a server.

    :param certificate: PEM, the server's own first, then its issuers'; the key is PEM without a password
    :param peers: certificates, PEM, of those who may connect, or of who issued theirs; None lets anybody
    :raises ServeError: when one cannot be read, or others can read the key
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        mode = key.stat().st_mode
        if not stat.S_ISREG(mode):  # to read a pipe would wait for ever
            raise ServeError(f"expected a file with the certificate's key, {key} is none")
        context.load_cert_chain(certificate, key, password=lambda: "")  # do not ask for one on the terminal
    except OSError as error:  # SSLError is one
        raise ServeError(
            f"expected a certificate in {certificate} and its key, without a password, in {key}: "
            f"{error.strerror or error}"
        ) from error
    if os.name == "posix" and mode & 0o077:
        raise ServeError(
            f"expected that only its owner can read the certificate's key {key}, found mode "
            f"{mode & 0o777:o}; run chmod 600 {key}, and get a new certificate if another user may have read "
            "it"
        )
    if peers is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags = (
            ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
        )  # as scanners have
        try:
            context.load_verify_locations(peers)
        except OSError as error:
            raise ServeError(
                f"expected certificates of those who may connect, PEM, in {peers}: {error.strerror or error}"
            ) from error
    return context
