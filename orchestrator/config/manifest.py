"""The validated content of a configuration file: frozen data that ``==`` compares."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.config.faults import Fault, Place
    from orchestrator.config.file_set import FileSet
    from orchestrator.config.supervisor_settings import SupervisorSettings
    from tunnel.model.address import Address
    from tunnel.model.spec import TunnelSpec


@dataclass(frozen=True, slots=True)
class OptionOrigin:
    """Where the value of an option was written."""

    source: str
    """``URL``, ``entry``, ``defaults``, ``environment`` or ``command line``"""
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tunnel of the file. Equal entries need the same engine, at whatever place of the file they are written."""

    name: str
    spec: TunnelSpec
    enabled: bool = True
    tags: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """the SHA-256 of each certificate file, by the option that names it"""
    url: str = field(compare=False)
    """the URL as written, with the key masked"""
    origin: Place = field(compare=False)
    """the place of its name"""
    origins: Mapping[str, OptionOrigin] = field(default_factory=dict, compare=False)
    """where the value of each option comes from, the strongest source first; built-in defaults are left out"""
    key_places: Mapping[str, Place] = field(default_factory=dict, compare=False)
    """where each of the named keys is written"""
    publisher: str | None = None
    """the entry whose rules allow this tunnel, which a client has published; None: the tunnel is in the file"""

    @property
    def key_origin(self) -> OptionOrigin | None:
        """Where the key comes from; None for a tunnel without one. ``origins`` has the strongest source first."""
        return next((origin for name, origin in self.origins.items() if name in {"key", "key_file"}), None)


class ManifestReader(Protocol):
    """Reads a configuration again."""

    def __call__(self, *, content: bytes | None = None) -> Manifest:
        """Return the manifest of the file as it is now, or with other content, in the same environment.

        Raises ConfigError.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A configuration file together with the files that it includes."""

    path: Path
    supervisor: SupervisorSettings
    entries: tuple[Entry, ...]
    """in the order of the file, then of the included files"""
    warnings: tuple[Fault, ...] = ()
    sources: FileSet
    reload: ManifestReader = field(compare=False, repr=False)


def addresses_conflict(one: Address, other: Address) -> bool:
    """Return whether two sockets cannot listen on these addresses at the same time."""
    return one.port == other.port != 0 and any(_is_same_host(a, b) for a in _hosts(one) for b in _hosts(other))


_Host = ipaddress.IPv4Address | ipaddress.IPv6Address | str
_ALL_INTERFACES: Final[tuple[_Host, ...]] = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))
_LOCALHOST: Final[tuple[_Host, ...]] = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


def _hosts(address: Address) -> tuple[_Host, ...]:
    if address.host in {"", "::"}:  # a listener on :: accepts IPv4 as well
        return _ALL_INTERFACES
    if address.host.lower() == "localhost":
        return _LOCALHOST
    return (address.ip or address.host.lower(),)


def _is_same_host(a: _Host, b: _Host) -> bool:
    if isinstance(a, str) or isinstance(b, str):  # names are not resolved: the answer may change at run time
        return a == b
    return a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))
