"""The socket addresses of a host and port, and of a destination that is dialled repeatedly."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from typing import TYPE_CHECKING, Final

from tunnel.model.address import Address
from tunnel.runtime.name_lookup import SYSTEM_NAMES, HostAddress, NameLookup
from tunnel.runtime.own_addresses import is_own_ip
from tunnel.runtime.sockets import NetError, SockAddr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Candidate = tuple[socket.AddressFamily, SockAddr]
"""One address to try: its family, and the socket address."""

_NAME_TTL_S: Final = 5.0  # how long a resolved name is trusted: a burst asks once, and a change is seen soon
_FALLBACK_DELAY_S: Final = 1.0  # a lookup that takes longer is overtaken by the last known addresses
_RESOLVE_TIMEOUT_S: Final = 8.0  # leaves time to connect within the ten seconds that a visitor or a link waits
_MAX_DEFERRED: Final = 64  # addresses of one name that are tried last


async def resolve(address: Address, names: NameLookup = SYSTEM_NAMES) -> list[Candidate]:
    """Return the socket addresses of a host and port, with a new query every time.

    Raises OSError; NetError where the name was not resolved in time, or an address names an unknown interface.
    """
    if (ip := address.ip) is not None:
        return [_literal_candidate(ip, address.port)]
    try:
        async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
            found = await names.resolve(address.host)
    except TimeoutError:
        raise NetError("its name was not resolved in time") from None
    return _candidates(found, address.port)


def _literal_candidate(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Candidate:
    if ip.version == 4:
        return (socket.AF_INET, (str(ip), port))
    scope_id = interface_index(ip.scope_id) if ip.scope_id else 0
    return (socket.AF_INET6, (str(ip).partition("%")[0], port, 0, scope_id))


def interface_index(zone: str) -> int:
    """Return the number of the interface that a link-local address names after "%" (RFC 4007 §11). Raises NetError.

    An interface that is removed and created again (VPN, modem, container) has another number afterwards.
    """
    if zone.isdigit():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except OSError:
        raise NetError(f"this host has no network interface {zone[:20]!r}") from None


def _candidates(addresses: Iterable[HostAddress], port: int) -> list[Candidate]:
    return [
        (family, (ip, port) if family == socket.AF_INET else (ip, port, 0, scope_id))
        for family, ip, scope_id in addresses
    ]


class DialTarget:
    """A destination that is dialled repeatedly: its socket addresses, the one that answered last first.

    A literal address is available at once. One with the name of an interface changes when the interface is created
    again, and is treated like a host name. A name is resolved again when its last answer is some seconds old; its last
    known addresses are used meanwhile, and also where no name server answers. That none of them worked, or that the
    name no longer exists, ends that.
    """

    def __init__(
        self,
        address: Address,
        names: NameLookup = SYSTEM_NAMES,
        monotonic: Callable[[], float] = time.monotonic,
        fallback_delay_s: float = _FALLBACK_DELAY_S,
    ) -> None:
        if address.is_wildcard:  # "every interface" as a destination means this host
            ip = address.ip
            address = Address("::1" if ip is not None and ip.version == 6 else "127.0.0.1", address.port)
        self.address = address
        self._names = names
        self._monotonic = monotonic
        self._fallback_delay_s = fallback_delay_s
        self._is_fixed = address.ip is not None and "%" not in address.host
        self._candidates: list[Candidate] = []
        self._preferred: SockAddr | None = None
        self._deferred: dict[SockAddr, None] = {}  # the one that was deferred last is the last
        self._fresh_until = 0.0
        self._is_invalid = True
        self._refresh: asyncio.Task[None] | None = None

    @property
    def has_alternatives(self) -> bool:
        """Whether there are several known addresses."""
        return len(self._candidates) > 1

    def cached(self) -> list[Candidate] | None:
        """Return the known addresses, or None: then ``resolve`` has to be awaited. Old ones are refreshed meanwhile."""
        if self._is_invalid:
            return None
        if self._monotonic() >= self._fresh_until and self._refresh is None:
            self._refresh = asyncio.get_running_loop().create_task(self._refresh_candidates())
            self._refresh.add_done_callback(self._on_refreshed)
        return self._candidates

    async def resolve(self) -> list[Candidate]:
        """Resolve now; the last known addresses where that takes long or no name server answers. Raises OSError."""
        if not self._candidates or self.address.ip is not None:
            self._set_candidates(await resolve(self.address, self._names))
            return self._candidates
        try:
            async with asyncio.timeout(self._fallback_delay_s):
                self._set_candidates(await resolve(self.address, self._names))
        except OSError as error:  # TimeoutError is one
            if _is_unknown_name(error):
                self._candidates = []
                raise
            self._fresh_until = self._monotonic() + _NAME_TTL_S  # do not let each of a burst wait
            self._is_invalid = False
        return self._candidates

    def prefer(self, sockaddr: SockAddr) -> None:
        """Try this address first from now on, also after the name was resolved again: it answered."""
        if self._preferred != sockaddr:
            self._preferred = sockaddr
            self._deferred.pop(sockaddr, None)
            self._sort_candidates()

    def defer(self, sockaddr: SockAddr) -> None:
        """Try this address last from now on: it accepted a connection and did not do what it is for."""
        if self._preferred == sockaddr:
            self._preferred = None
        self._deferred.pop(sockaddr, None)
        self._deferred[sockaddr] = None
        if len(self._deferred) > _MAX_DEFERRED:
            del self._deferred[next(iter(self._deferred))]
        self._sort_candidates()

    def invalidate(self) -> None:
        """Resolve the name again before the next attempt: none of its addresses worked."""
        if not self._is_fixed:
            self._is_invalid = True

    async def _refresh_candidates(self) -> None:
        with contextlib.suppress(OSError):
            self._set_candidates(await resolve(self.address, self._names))
        self._fresh_until = max(self._fresh_until, self._monotonic() + _NAME_TTL_S)

    def _on_refreshed(self, _task: asyncio.Task[None]) -> None:
        self._refresh = None

    def _set_candidates(self, candidates: list[Candidate]) -> None:
        self._candidates = candidates
        self._sort_candidates()
        self._is_invalid = False
        self._fresh_until = float("inf") if self._is_fixed else self._monotonic() + _NAME_TTL_S

    def _sort_candidates(self) -> None:
        places = {sockaddr: place for place, sockaddr in enumerate(self._deferred, start=1)}
        if self._preferred is not None:
            places[self._preferred] = -1
        self._candidates = sorted(self._candidates, key=lambda candidate: places.get(candidate[1], 0))


def _is_unknown_name(error: OSError) -> bool:
    """Whether a name server answered that the name does not exist, rather than not at all."""
    return isinstance(error, socket.gaierror) and error.errno in {socket.EAI_NONAME, socket.EAI_NODATA}


def has_local_address(sockaddr: SockAddr) -> bool:
    """Whether this host (still) has the local address of a socket; True where the kernel does not say."""
    ip = ipaddress.ip_address(sockaddr[0].partition("%")[0])
    if ip.version == 6 and ip.ipv4_mapped is not None:  # a connection of IPv4 on a listener of both families
        ip = ip.ipv4_mapped
    try:
        return is_own_ip(ip, sockaddr[3] if len(sockaddr) > 2 else 0)
    except OSError:
        return True


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
    try:
        return is_own_ip(ip, interface_index(ip.scope_id) if ip.version == 6 and ip.scope_id else 0)
    except OSError:  # a sandbox may forbid netlink sockets
        return _is_own_source(ip)


def _is_own_source(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether this host would connect to an address from the same one; false for second addresses of an interface."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(ip), 9))  # sends nothing; the kernel picks the address it would send from
        return str(probe.getsockname()[0]) == str(ip)
    return False
