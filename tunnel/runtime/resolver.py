"""Name resolution, and the addresses of a destination that is dialled repeatedly."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Final

from tunnel.model.address import Address
from tunnel.runtime.sockets import SockAddr

Candidate = tuple[socket.AddressFamily, SockAddr]
"""One address to try: its family, and the socket address."""

_NAME_TTL_S: Final = 5.0  # how long a resolved name is trusted: a burst asks once, and a change is seen soon


async def resolve(address: Address) -> list[Candidate]:
    """Return the socket addresses of a host and port, with a new query every time. Raises OSError."""
    host = address.host
    if (ip := address.ip) is not None:
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        return [(family, (host, address.port) if ip.version == 4 else (host, address.port, 0, 0))]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
    except UnicodeError:  # not even a valid query
        raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]  # type: ignore[misc]  # TCP has no other shapes


class DialTarget:
    """A destination that is dialled repeatedly: its socket addresses, the one that answered last first.

    A literal address is available at once; a name is resolved again when its last answer is some seconds old or failed.
    """

    def __init__(self, address: Address, monotonic: Callable[[], float] = time.monotonic) -> None:
        if address.is_wildcard:  # "every interface" as a destination means this host
            ip = address.ip
            address = Address("::1" if ip is not None and ip.version == 6 else "127.0.0.1", address.port)
        self.address = address
        self._monotonic = monotonic
        self._candidates: list[Candidate] = []
        self._fresh_until = 0.0

    def cached(self) -> list[Candidate] | None:
        """Return the addresses if they are known and fresh, else None: then ``resolve`` has to be awaited."""
        return self._candidates if self._monotonic() < self._fresh_until else None

    async def resolve(self) -> list[Candidate]:
        """Resolve now. Raises OSError."""
        self._candidates = await resolve(self.address)
        is_literal = self.address.ip is not None
        self._fresh_until = float("inf") if is_literal else self._monotonic() + _NAME_TTL_S
        return self._candidates

    def prefer(self, sockaddr: SockAddr) -> None:
        """Try this address first from now on: it answered."""
        if self._candidates and self._candidates[0][1] != sockaddr:
            self._candidates = sorted(self._candidates, key=lambda candidate: candidate[1] != sockaddr)

    def invalidate(self) -> None:
        """Resolve the name again before the next attempt: none of its addresses worked."""
        if self.address.ip is None:
            self._fresh_until = 0.0


def is_this_host(address: Address) -> bool:
    """Whether an address means this host: a wildcard, loopback, this host's own name, or one of its IP addresses.

    Other names are not resolved for this: whether a name resolves, and to what, may change from minute to minute.
    """
    return address.is_wildcard or address.is_loopback or _is_own_name(address.host) or _is_own_ip(address)


def _is_own_name(host: str) -> bool:
    name = socket.gethostname().lower()
    return host.lower().rstrip(".") in {name, name.partition(".")[0]} or host.lower().endswith(".localhost")


def _is_own_ip(address: Address) -> bool:
    ip = address.ip
    if ip is None:
        return False
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(ip), 9))  # sends nothing; the kernel picks the address it would send from
        return str(probe.getsockname()[0]) == str(ip)
    return False
