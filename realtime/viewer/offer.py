"""Session descriptions (SDP, RFC 8866) of the page's WebRTC connection: checks, candidates, addresses.

aioice gathers every address of the machine but loopback. Here only one address is offered, the one at which
the page has reached this server. The page's own candidates are dropped unread: they name other interfaces, or
mDNS names that would need a query on the network. The page's address is learned from its connectivity checks
("peer reflexive", RFC 8445 section 7.3.1.3).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import msgspec
from aioice import Candidate, Connection
from aiortc import RTCPeerConnection

MAX_OFFER_BYTES = 32 * 1024
MAX_OFFER_LINES = 500
"""Chromium's offers have about 200. The time that aiortc takes grows with the square of their number."""

_Gather = Callable[..., Awaitable[list[Candidate]]]


class OfferError(ValueError):
    """A session description that is not an offer of the page."""


class _Offer(msgspec.Struct, frozen=True):
    sdp: str


def read_offer(body: bytes) -> str:
    """The session description in the JSON that a page sends.

    :raises OfferError: when there is none
    """
    try:
        return msgspec.json.decode(body, type=_Offer).sdp
    # msgspec lets these errors of Python's through: of text that is not UTF-8, and of deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OfferError(f"expected an offer as JSON: {error}") from error


def check_offer(sdp: str) -> None:
    """Check, before a parser sees it, that an offer asks for one video and one data channel.

    :raises OfferError: when it does not
    """
    if not sdp.startswith("v=0"):
        raise OfferError("expected a session description that starts with v=0")
    if (n_lines := len(sdp.splitlines())) > MAX_OFFER_LINES:
        raise OfferError(f"expected at most {MAX_OFFER_LINES} lines, got {n_lines}")
    sections = sorted(line[2:].split(" ")[0] for line in sdp.splitlines() if line.startswith("m="))
    if sections != ["application", "video"]:
        raise OfferError(f"expected one video and one application section, got {sections[:8]}")
    if "\na=fingerprint:" not in sdp:
        raise OfferError("expected a fingerprint of the page's certificate")


def without_candidates(sdp: str) -> str:
    """The description without its candidates and without the line that ends them."""
    drop = ("a=candidate:", "a=end-of-candidates")
    return "".join(f"{line}\r\n" for line in sdp.splitlines() if not line.startswith(drop))


def candidate_addresses(sdp: str) -> set[str]:
    """The addresses of all candidates in a description."""
    candidates = [line.split(" ") for line in sdp.splitlines() if line.startswith("a=candidate:")]
    return {fields[4] for fields in candidates}


def gather_only(connection: RTCPeerConnection, address: str) -> None:
    """Make this connection gather one address only; call between remote and local description.

    aioice passes the machine's addresses to ``Connection.get_component_candidates``. That method is replaced
    on this connection's own instances alone, so that other connections in the process are not affected.
    """
    transports = [transceiver.receiver.transport for transceiver in connection.getTransceivers()]
    if connection.sctp is not None:
        transports.append(connection.sctp.transport)
    for transport in transports:
        ice: Connection = transport.transport.iceGatherer._connection
        gather = functools.partial(_candidates, Connection.get_component_candidates, ice, address)
        ice.get_component_candidates = gather  # type: ignore[method-assign,assignment]


def _candidates(
    gather: _Gather, ice: Connection, address: str, component: int, addresses: list[str], timeout: int = 5
) -> Awaitable[list[Candidate]]:
    return gather(ice, component=component, addresses=[address], timeout=timeout)
