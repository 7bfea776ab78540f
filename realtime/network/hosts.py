"""Which machines may connect to a port whose protocol has no keys: this one, and those that are named.

An address can be forged by whoever controls the network between the machines. So this keeps out mistakes and
strangers on a network that one trusts, and is no authentication.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence

from realtime.errors import ServeError

_log = logging.getLogger(__name__)


class Hosts:
    """Machines that may connect: this one, and others.

    :param named: IP addresses or networks, such as ``10.0.0.5`` or ``10.0.0.0/24``
    :raises ServeError: when one is neither
    """

    def __init__(self, named: Sequence[str] = ()) -> None:
        try:
            self._networks = [ipaddress.ip_network(each) for each in named]
        except ValueError as error:
            raise ServeError(
                f"expected --allow with an IP address or a network, such as 10.0.0.5 or 10.0.0.0/24: {error}"
            ) from error

    @property
    def has_others(self) -> bool:
        """Whether another machine than this one is among them."""
        return bool(self._networks)

    def __contains__(self, address: str) -> bool:
        """Whether a peer's IP address is one of them."""
        found = ipaddress.ip_address(address.partition("%")[0])  # without the zone of a link-local address
        found = getattr(found, "ipv4_mapped", None) or found  # IPv4 at a socket of IPv6
        return found.is_loopback or any(found in network for network in self._networks)

    def tell_of_those_out_of_reach(self, host: str) -> None:
        """Warn if a port at this IP address cannot be reached by the others."""
        if self.has_others and ipaddress.ip_address(host).is_loopback:
            _log.warning(
                "--allow names other machines, which cannot reach %s: listen at this machine's own address",
                host,
            )
