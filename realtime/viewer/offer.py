"""Session descriptions (SDP, RFC 8866) of the page's WebRTC connection: what is checked, dropped, gathered.

aioice gathers every address of the machine but loopback. Here the one address offered is that at which the
page has reached this server, 127.0.0.1 or another, and the page's own candidates are dropped unread (they
name other interfaces, or mDNS names that would have to be asked for on the network). The page's checks come
from its own address, which is learned from them ("peer reflexive", RFC 8445 section 7.3.1.3).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import msgspec
from aioice import Candidate, Connection
from aiortc import RTCPeerConnection

_Gather = Callable[..., Awaitable[list[Candidate]]]


class OfferError(ValueError):
    """A session description that is not the page's kind of offer."""


class _Offer(msgspec.Struct, frozen=True):
    sdp: str


def read_offer(body: bytes) -> str:
    """The session description in the JSON that a page sends. Raise OfferError where there is none."""
    try:
        return msgspec.json.decode(body, type=_Offer).sdp
    # Beside its own errors msgspec lets through what its string and recursion checks raise.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise OfferError(f"expected an offer as JSON: {error}") from error


def check_offer(sdp: str) -> None:
    """Raise OfferError unless an offer asks for one video and one data channel; before a parser sees it."""
    if not sdp.startswith("v=0"):
        raise OfferError("expected a session description that starts with v=0")
    sections = sorted(line[2:].split(" ")[0] for line in sdp.splitlines() if line.startswith("m="))
    if sections != ["application", "video"]:
        raise OfferError(f"expected one video and one application section, got {sections[:8]}")
    if "\na=fingerprint:" not in sdp:
        raise OfferError("expected a fingerprint of the page's certificate")


def without_candidates(sdp: str) -> str:
    """The description without its candidates, nor the word that no more will come."""
    drop = ("a=candidate:", "a=end-of-candidates")
    return "".join(f"{line}\r\n" for line in sdp.splitlines() if not line.startswith(drop))


def candidate_addresses(sdp: str) -> set[str]:
    """Addresses of all candidates in a description."""
    candidates = [line.split(" ") for line in sdp.splitlines() if line.startswith("a=candidate:")]
    return {fields[4] for fields in candidates}


def gather_only(connection: RTCPeerConnection, address: str) -> None:
    """Make this connection gather one address and nothing else; call between remote and local description.

    aioice hands the machine's addresses to ``Connection.get_component_candidates``: on this connection's own
    instances a function with the one address stands in its place, and nobody else in the process notices.
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
