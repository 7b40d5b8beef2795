"""Warnings about a configuration that is valid: keys that do not protect, and addresses that cannot be what was meant.

``check`` prints them, ``check --strict`` treats them as faults, and the daemon logs them.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.config.document import quote
from orchestrator.config.faults import Fault, Place
from tunnel.model.keys import WEAK_KEY_WARNING
from tunnel.model.options import KEY_VARIABLE, OPTIONS, describe_misplaced, misplaced_options
from tunnel.model.spec import Direction, Mode, Proto, Role
from tunnel.runtime.listeners import decide_direction

if TYPE_CHECKING:
    from orchestrator.config.manifest import Entry
    from tunnel.model.address import Address
    from tunnel.model.keys import Key
    from tunnel.model.spec import TunnelSpec

_MAX_LISTED: Final = 5  # names in one warning
_OF_TCP: Final = ("reuse", "mux")
_OF_UDP: Final = ("udp_carrier", "udp_timeout")
"""Options that concern visitors of one protocol alone."""


@dataclass(slots=True)
class SecretPlaces:
    """Where a configuration contains secrets, collected while it is read."""

    literal_keys: dict[Path, Place] = field(default_factory=dict)
    """the first key that is written in a file of the configuration"""
    named_keys: set[Place] = field(default_factory=set)
    """the places of ``literal_keys`` that are below ``keys:``"""
    secret_files: dict[Path, Place] = field(default_factory=dict)
    """files of keys, tokens and passwords, and where they are named"""
    unused_keys: list[Place] = field(default_factory=list)
    """keys of entries whose URL has one as well"""

    def add_literal_key(self, place: Place, *, is_named: bool = False) -> None:
        """Note a key that is written at a place, not brought by a variable; ``is_named``: below ``keys:``."""
        self.literal_keys.setdefault(place.path, place)
        if is_named:
            self.named_keys.add(place)

    def add_file(self, path: Path, place: Place) -> None:
        """Note a file of a secret."""
        self.secret_files.setdefault(path, place)


def advise(path: Path, entries: Iterable[Entry], secrets: SecretPlaces) -> Iterator[Fault]:
    """Yield the warnings of a configuration whose main file is ``path``."""
    entries = tuple(entries)
    yield from _weak_keys(path, entries)
    yield from _shared_keys(entries)
    yield from _exposed_files(secrets)
    for place in secrets.unused_keys:
        yield Fault(place, "this key is not used, because the URL has one; keep one of them")
    for entry in entries:
        yield from _unreachable_addresses(entry)
        yield from _ineffective_options(entry)
        yield from _ineffective_rates(entry)
        yield from _options_of_other_visitors(entry)


# --- keys -------------------------------------------------------------------------------------------------------------


def _weak_keys(path: Path, entries: tuple[Entry, ...]) -> Iterator[Fault]:
    for entry in entries:
        if entry.spec.key is not None and entry.spec.key.is_weak:
            origin = entry.key_origin
            if origin is not None and origin.source == "environment":
                yield Fault(Place(path), f"the environment variable {KEY_VARIABLE}: {WEAK_KEY_WARNING}")
            else:
                yield Fault(origin.place if origin and origin.place else entry.origin, WEAK_KEY_WARNING)
        for named in entry.spec.named_keys:
            if named.key.is_weak:
                yield Fault(entry.key_places[named.name], f"the key {quote(named.name)}: {WEAK_KEY_WARNING}")


def _shared_keys(entries: tuple[Entry, ...]) -> Iterator[Fault]:
    """Yield one warning for each key that several servers, or several clients, have for one service."""
    holders: dict[tuple[Role, Key], list[Entry]] = {}
    for entry in entries:
        for key in _keys_of(entry.spec):
            holders.setdefault((entry.spec.role, key), []).append(entry)
    for (role, _), having in holders.items():
        services = Counter(entry.spec.service for entry in having)
        sharing = [entry for entry in having if services[entry.spec.service] > 1]
        if sharing:
            names = ", ".join(quote(entry.name) for entry in sharing[:_MAX_LISTED])
            more = f" and {len(sharing) - _MAX_LISTED} more" if len(sharing) > _MAX_LISTED else ""
            text = f"the {role}s {names}{more} share one key, so a peer of one can pass for a peer of another"
            hint = "give each a service of its own (service=, the same at both ends) or a key of its own"
            yield Fault(sharing[1].origin, f"{text}; {hint}")


def _keys_of(spec: TunnelSpec) -> tuple[Key, ...]:
    return tuple(named.key for named in spec.named_keys) or ((spec.key,) if spec.key is not None else ())


def _exposed_files(secrets: SecretPlaces) -> Iterator[Fault]:
    for path, place in secrets.literal_keys.items():
        if _mode(path) & stat.S_IROTH:
            text = "the file contains a key, and every user of this host can read it"
            instead = "NAME: ${VARIABLE}" if place in secrets.named_keys else "key: ${NAME} or key_file:"
            yield Fault(place, f"{text}; chmod o-r {path}, or write {instead}")
    for path, place in secrets.secret_files.items():
        mode = _mode(path)
        if mode & (stat.S_IRGRP | stat.S_IROTH):
            readers = "every user of this host" if mode & stat.S_IROTH else "its group"
            yield Fault(place, f"the file holds a secret, and {readers} can read it; chmod 600")


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode  # noqa: PTH116  Path.stat does the same
    except (OSError, ValueError):
        return 0


def is_secret_file(name: str) -> bool:
    """Return whether an option names a file that must not be readable by others."""
    return OPTIONS[name].is_file and (OPTIONS[name].is_secret or name == "tls_key")


# --- addresses --------------------------------------------------------------------------------------------------------


def _unreachable_addresses(entry: Entry) -> Iterator[Fault]:
    for what, address in _dialled_wildcards(entry.spec):
        text = f"{quote(entry.name)} dials its {what} address {address}, which means this host: write 127.0.0.1"
        hint = "or mode=forward at both ends to accept visitors there" if entry.spec.role is Role.CLIENT else ""
        if what == "tunnel":
            hint = "or the host of the server"
        yield Fault(entry.origin, f"{text}{', ' if hint else ''}{hint}")


def _ineffective_options(entry: Entry) -> Iterator[Fault]:
    """Yield the options that act at the other end, at a server whose target address alone shows which end it is.

    A fixed ``mode`` makes them faults of the entry; a client in ``auto`` learns its end from the server.
    """
    spec = entry.spec
    if spec.role is Role.CLIENT or spec.mode is not Mode.AUTO:
        return
    for option in misplaced_options(spec, spec.end_in(decide_direction(spec))):
        origin = entry.origins.get(option.name)
        if origin is not None and origin.source in {"URL", "entry"}:
            text = describe_misplaced(option, spec.role)
            yield Fault(origin.place or entry.origin, f"{text}, or set mode: the target address decides in auto")


def _ineffective_rates(entry: Entry) -> Iterator[Fault]:
    rate, visitor_rate = entry.spec.rate, entry.spec.visitor_rate
    if rate is not None and visitor_rate is not None and visitor_rate.bits_per_s >= rate.bits_per_s:
        origin = entry.origins.get("visitor_rate")
        text = f"visitor_rate {visitor_rate} has no effect: rate {rate} limits all visitors together to that or less"
        yield Fault((origin.place if origin else None) or entry.origin, f"{text}; lower it, or remove it")


def _options_of_other_visitors(entry: Entry) -> Iterator[Fault]:
    """Yield options that an entry names for visitors of TCP or UDP, of which it has none."""
    proto = entry.spec.proto
    names = () if proto is Proto.BOTH else _OF_TCP if proto is Proto.UDP else _OF_UDP
    for name in names:
        origin = entry.origins.get(name)
        if origin is None or origin.source not in {"URL", "entry"}:
            continue
        if OPTIONS[name].read(entry.spec):
            other = "UDP" if proto is Proto.TCP else "TCP"
            text = f"{name} has no effect with proto={proto}, because it concerns visitors of {other}"
            yield Fault(origin.place or entry.origin, f"{text}; remove it, or write proto=both at both ends")


def _dialled_wildcards(spec: TunnelSpec) -> Iterator[tuple[str, Address]]:
    """Yield the wildcard addresses that the configuration alone shows to be dialled; in ``auto`` the server decides."""
    if spec.role is Role.CLIENT:
        yield from (("tunnel", address) for address in spec.tunnels if address.is_wildcard)
        if spec.mode is not Mode.REVERSE and not spec.targets:
            return
    elif decide_direction(spec) is not Direction.FORWARD:
        return
    for each in spec.members:
        if each.address.is_wildcard:
            yield "target", each.address
