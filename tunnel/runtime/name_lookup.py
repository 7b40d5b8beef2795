"""Host names to IP addresses: one lookup per name at a time, on threads of its own.

``getaddrinfo`` blocks for as long as the name servers are silent (10 to 30 s with glibc's defaults) and cannot be
cancelled. Lookups therefore never share threads with anything else, and the same name is never asked twice at once.
Names that were quick, slow or never looked up before have separate threads, so dead names cannot delay healthy ones.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from tunnel.runtime.blocking_calls import BlockingCalls

if TYPE_CHECKING:
    from collections.abc import Iterable

_SLOW_LOOKUP_S: Final = 2.0
"""Seconds of a lookup from which on its name counts as slow, until a lookup of it is quick again."""
_MAX_KNOWN_NAMES: Final = 8192


class _Speed(enum.Enum):
    """What is known of a name; each kind has threads of its own, so that none waits for another."""

    UNKNOWN = "new names", 16
    QUICK = "names", 4
    SLOW = "slow names", 4


class HostAddress(NamedTuple):
    """One IP address of a host; ``scope_id`` is the interface of a link-local IPv6 address, else 0."""

    family: socket.AddressFamily
    ip: str
    scope_id: int = 0


_Lookups = dict[str, "asyncio.Task[tuple[HostAddress, ...]]"]


class GetAddrInfo(Protocol):
    """``socket.getaddrinfo``, or a replacement in tests."""

    def __call__(self, host: str, port: None, *, type: socket.SocketKind) -> list[tuple[object, ...]]:  # noqa: A002  its name there
        """The addresses of a host. Raises OSError."""


class NameLookup:
    """Resolves host names; the threads are shared by everything that uses the same instance, on any event loop."""

    def __init__(self, getaddrinfo: GetAddrInfo = socket.getaddrinfo) -> None:  # type: ignore[assignment]  # narrower on purpose
        self._getaddrinfo = getaddrinfo
        self._calls = {speed: BlockingCalls(f"lookups of {speed.value[0]}", speed.value[1]) for speed in _Speed}
        self._speeds: dict[str, _Speed] = {}
        self._lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lookups] = WeakKeyDictionary()

    async def resolve(self, host: str) -> tuple[HostAddress, ...]:
        """Return the addresses of a host, IPv6 and IPv4 in turn (RFC 8305 §4). Raises OSError.

        Has no time limit of its own. Safe to cancel: the lookup continues for other callers with the same name.
        """
        loop = asyncio.get_running_loop()
        lookups = self._lookups.setdefault(loop, {})
        lookup = lookups.get(host)
        if lookup is None:
            lookup = lookups[host] = loop.create_task(self._look_up(host), name=f"lookup of {host}")
            lookup.add_done_callback(partial(_forget_lookup, lookups, host))
        return await asyncio.shield(lookup)

    async def _look_up(self, host: str) -> tuple[HostAddress, ...]:
        calls = self._calls[self._speeds.get(host, _Speed.UNKNOWN)]
        started = 0.0

        def call() -> list[tuple[object, ...]]:
            nonlocal started
            started = time.monotonic()
            return self._getaddrinfo(host, None, type=socket.SOCK_STREAM)

        try:
            found = await calls.run(call)
        except UnicodeError:  # no valid question to a name server
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from None
        finally:
            self._note_speed(host, time.monotonic() - started if started else _SLOW_LOOKUP_S)
        return interleave_families(_host_address(entry) for entry in found)

    def _note_speed(self, host: str, seconds: float) -> None:
        self._speeds.pop(host, None)
        self._speeds[host] = _Speed.SLOW if seconds >= _SLOW_LOOKUP_S else _Speed.QUICK
        if len(self._speeds) > _MAX_KNOWN_NAMES:
            del self._speeds[next(iter(self._speeds))]


SYSTEM_NAMES: Final = NameLookup()
"""The lookups of this process: names are resolved by the system, and the number of threads is bounded for all uses."""


def _forget_lookup(lookups: _Lookups, host: str, lookup: asyncio.Task[tuple[HostAddress, ...]]) -> None:
    del lookups[host]
    if not lookup.cancelled():
        lookup.exception()  # retrieved here too: all waiters may have been cancelled


def interleave_families(addresses: Iterable[HostAddress]) -> tuple[HostAddress, ...]:
    """The same addresses without repetition, families alternating, each family in its given order (RFC 8305 §4)."""
    unique = list(dict.fromkeys(addresses))
    if not unique:
        return ()
    first = [address for address in unique if address.family == unique[0].family]
    second = [address for address in unique if address.family != unique[0].family]
    ordered: list[HostAddress] = []
    for index in range(max(len(first), len(second))):
        ordered += first[index : index + 1] + second[index : index + 1]
    return tuple(ordered)


def _host_address(entry: tuple[object, ...]) -> HostAddress:
    """One row of ``getaddrinfo`` for TCP: (family, type, protocol, canonical name, socket address)."""
    family, *_, sockaddr = entry
    if not isinstance(family, socket.AddressFamily) or not isinstance(sockaddr, tuple):
        raise OSError("the name service gave an address of an unknown kind")
    scope_id = int(sockaddr[3]) if len(sockaddr) > 3 else 0
    return HostAddress(family, str(sockaddr[0]), scope_id)
