"""Parses ``keys:`` of a server entry: the names of its keys, and the keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from orchestrator.config.document import MappingNode, quote
from orchestrator.config.faults import Fault, Place
from orchestrator.config.scalars import describe_name_fault, read_scalar
from tunnel.model.errors import InvalidValueError
from tunnel.model.keys import Key, NamedKey, looks_generated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.config.advice import SecretPlaces
    from orchestrator.config.document import Node

MAX_NAMED_KEYS: Final = 64
"""Keys of one entry: the server tries all of them on each proof."""


@dataclass(frozen=True, slots=True)
class LocatedKeys:
    """The named keys of an entry, sorted by their names, and where each is written."""

    keys: tuple[NamedKey, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict)


def read_named_keys(node: Node, secrets: SecretPlaces, faults: list[Fault]) -> LocatedKeys:
    """Return the keys without a fault, and report the others. No fault contains a key."""
    if isinstance(node, MappingNode) and not node.items and node.is_faulty:
        return LocatedKeys()
    if not isinstance(node, MappingNode) or not node.items:
        faults.append(Fault(node.place, "keys: takes a mapping of names to keys, as in {office: ${OFFICE_KEY}}"))
        return LocatedKeys()
    if len(node.items) > MAX_NAMED_KEYS:
        faults.append(Fault(node.place, f"keys: has {len(node.items)} keys; {MAX_NAMED_KEYS} at most"))
        return LocatedKeys()
    found: dict[str, Key] = {}
    places: dict[str, Place] = {}
    names: dict[Key, str] = {}
    for name, value in node:
        if looks_generated(name.text):
            faults.append(Fault(name.place, "the name of a key starts with npk_, as keys do; write NAME: KEY"))
            continue
        if fault := describe_name_fault(name.text):
            faults.append(Fault(name.place, fault))
            continue
        scalar = read_scalar(value, f"the key {quote(name)}", faults)
        if scalar is None:
            continue
        try:
            key = Key(scalar.text)
        except InvalidValueError as error:
            faults.append(Fault(scalar.place, f"the key {quote(name)}: {error}"))
            continue
        if key in names:
            faults.append(Fault(scalar.place, f"the keys {names[key]} and {quote(name)} are the same; remove one"))
            continue
        names[key] = quote(name)
        found[name.text], places[name.text] = key, scalar.place
        if not scalar.is_substituted:
            secrets.add_literal_key(scalar.place, is_named=True)
    return LocatedKeys(tuple(NamedKey(name, found[name]) for name in sorted(found)), places)
