"""Who owns a run: the peer that started it, and the process there that knows the run's secret."""

from __future__ import annotations

import hashlib
import secrets

from realtime import wire
from realtime.errors import WireError
from realtime.record.run_json import Owner
from realtime.sources import Peer

STALE_TR = 3
"""After this many TR without a volume, another run may begin."""


def claim_of(message: wire.RunStart, peer: Peer) -> Owner:
    """As whom a peer starts a run, or comes back to it."""
    secret = message.secret
    return Owner(key=peer.key, secret_sha256=hashlib.sha256(secret.encode()).hexdigest() if secret else None)


def check_owner(owner: Owner | None, claim: Owner, start: wire.RunStart, silent_s: float) -> None:
    """Let the run's owner send its start again; the same scanner as another process, once it is silent.

    :param owner: None for a run that was recorded by an earlier release
    :param silent_s: since the run's last volume
    :raises WireError: code ``not-owner``, for any other peer
    """
    if owner is None:
        return
    has_secret = secrets.compare_digest(owner.secret_sha256 or "", claim.secret_sha256 or "")
    if owner.key != claim.key or not (has_secret or silent_s > STALE_TR * start.tr_s):
        raise WireError(
            "not-owner",
            f"{start.run_id} is open and belongs to the peer that started it; give another run an id of its "
            f"own, or wait {STALE_TR} TR without a volume",
        )
