"""What a file says, understood: frozen data that two versions of can be compared with ``==``."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tunnel.model.address import Address
from tunnel.model.spec import Direction, Mode, Role
from tunnel.runtime import listeners

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.config.faults import Fault, Place
    from orchestrator.config.file_set import FileSet
    from orchestrator.config.schema import SupervisorSettings
    from tunnel.model.spec import TunnelSpec


@dataclass(frozen=True, slots=True)
class OptionOrigin:
    """Who said what an option is."""

    source: str
    """``URL``, ``entry``, ``defaults``, ``environment`` or ``command line``"""
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tunnel of the file. Equal entries need the same engine, wherever in the file they stand."""

    name: str
    spec: TunnelSpec
    enabled: bool = True
    tags: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """the SHA-256 of each certificate file, by the option that names it"""
    url: str = field(compare=False)
    """the URL as written, the key masked"""
    origin: Place = field(compare=False)
    origins: Mapping[str, OptionOrigin] = field(default_factory=dict, compare=False)
    """where the value of each option comes from, unless it is built in"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole file with what it includes."""

    path: Path
    supervisor: SupervisorSettings
    entries: tuple[Entry, ...]
    """in the order of the file, then of the included ones"""
    warnings: tuple[Fault, ...] = ()
    sources: FileSet
    reload: Callable[[], Manifest] = field(compare=False, repr=False)
    """reads the file as it is then, in the same environment; raises ConfigError"""


def listen_addresses(spec: TunnelSpec) -> Iterator[Address]:
    """The fixed addresses a tunnel will listen on, as far as the file alone can tell; port 0 is never in the way."""
    if spec.role is Role.SERVER:
        yield spec.tunnel
        if spec.data_port:
            yield Address(spec.tunnel.host, spec.data_port)
        if listeners.decide_direction(spec) is Direction.REVERSE:
            yield spec.target
    elif spec.mode is Mode.FORWARD:  # in auto the server decides: the address may be one to dial
        yield spec.target


def addresses_conflict(one: Address, other: Address) -> bool:
    """Whether both cannot be listened on at once."""
    return one.port == other.port != 0 and any(_same(a, b) for a in _hosts(one) for b in _hosts(other))


_Host = ipaddress.IPv4Address | ipaddress.IPv6Address | str
_EVERYWHERE: Final[tuple[_Host, ...]] = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))
_LOCALHOST: Final[tuple[_Host, ...]] = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


def _hosts(address: Address) -> tuple[_Host, ...]:
    if address.host in {"", "::"}:  # a listener on :: takes IPv4 as well
        return _EVERYWHERE
    if address.host.lower() == "localhost":
        return _LOCALHOST
    return (address.ip or address.host.lower(),)


def _same(a: _Host, b: _Host) -> bool:
    if isinstance(a, str) or isinstance(b, str):  # names are not resolved: the answer may change while we run
        return a == b
    return a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))
