"""Parses ``targets:`` and ``servers:`` of an entry: addresses that are dialled, with weights and backups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from orchestrator.config.document import MappingNode, ScalarNode, SequenceNode, quote
from orchestrator.config.faults import Fault
from orchestrator.config.scalars import check_keys, read_scalar
from orchestrator.config.schema_parts import parse_bool
from tunnel.model.address import Address, parse_address
from tunnel.model.balancer import MAX_WEIGHT
from tunnel.model.errors import InvalidValueError, UrlError
from tunnel.model.option_types import IntegerType
from tunnel.model.servers import MAX_SERVERS, ServerShare
from tunnel.model.targets import MAX_TARGETS, TargetSpec

if TYPE_CHECKING:
    from orchestrator.config.document import Node

MEMBER_KEYS: Final = ("address", "weight", "backup")
WEIGHT: Final = IntegerType(0, MAX_WEIGHT)

MemberT = TypeVar("MemberT", TargetSpec, ServerShare)


@dataclass(frozen=True, slots=True)
class MemberKind(Generic[MemberT]):
    """What a list of an entry has: targets, or servers."""

    noun: str
    """in messages; the key of the list is its plural"""
    example: str
    maximum: int
    make: Callable[[Address, int, bool], MemberT]


TARGETS: Final = MemberKind(
    "target",
    "as in [{address: db-1:5432}, {address: db-2:5432, backup: true}]",
    MAX_TARGETS,
    TargetSpec,
)
SERVERS: Final = MemberKind(
    "server",
    "as in [{address: site-a:10101, weight: 2}, {address: site-b:10101}]",
    MAX_SERVERS,
    ServerShare,
)


def read_members(node: Node, kind: MemberKind[MemberT], faults: list[Fault]) -> tuple[MemberT, ...]:
    """Return the targets or servers without a fault, in their order, and report the others."""
    noun = kind.noun
    if not isinstance(node, SequenceNode) or not node.items:
        if isinstance(node, SequenceNode) or not node.is_faulty:
            faults.append(Fault(node.place, f"{noun}s: takes a list of {noun}s, {kind.example}"))
        return ()
    if len(node.items) > kind.maximum:
        faults.append(Fault(node.place, f"{noun}s: has {len(node.items)} {noun}s; {kind.maximum} at most"))
        return ()
    before = len(faults)
    found: dict[Address, MemberT] = {}
    has_weight = False
    for item in node.items:
        read = _read_member(item, noun, faults)
        if read is None:
            continue
        address, weight, is_backup = read
        if address in found:
            faults.append(Fault(item.place, f"the {noun} {address} is given twice; remove one"))
        found[address] = kind.make(address, weight, is_backup)
        has_weight = has_weight or weight > 0
    if len(faults) == before and not has_weight:
        faults.append(Fault(node.place, f"every {noun} has the weight 0, so no visitor can be served"))
    return tuple(found.values())


def _read_member(node: Node, noun: str, faults: list[Fault]) -> tuple[Address, int, bool] | None:
    """Return one target or server; or report its fault and return None. An address alone is short for a mapping."""
    if isinstance(node, SequenceNode):
        faults.append(Fault(node.place, f"a {noun} is an address or a mapping with address:, not a list"))
        return None
    if isinstance(node, ScalarNode):
        address = _read_address(node, noun, faults)
        return None if address is None else (address, 1, False)
    check_keys(node, MEMBER_KEYS, f"a {noun}", faults)
    address_node = node.get("address")
    if address_node is None:
        if not node.is_faulty:
            faults.append(Fault(node.place, f"the {noun} has no address:"))
        return None
    address = _read_address(address_node, noun, faults)
    weight, is_backup = _read_weight(node, faults), _read_backup(node, faults)
    return None if address is None else (address, weight, is_backup)


def _read_address(node: Node, noun: str, faults: list[Fault]) -> Address | None:
    scalar = read_scalar(node, f"the address of a {noun}", faults)
    if scalar is None:
        return None
    try:
        address = parse_address(scalar.text, 0, noun)
    except UrlError as error:
        message = error.quoting("…") if scalar.is_substituted and error.quoted else str(error)
        faults.append(Fault(scalar.place_at(error.offset), message))
        return None
    if address.port == 0:
        faults.append(Fault(scalar.place, f"the {noun} {quote(scalar)} is dialled, so its port cannot be 0"))
        return None
    return address


def _read_weight(node: MappingNode, faults: list[Fault]) -> int:
    weight = node.get("weight")
    scalar = None if weight is None else read_scalar(weight, "weight", faults)
    if scalar is None:
        return 1
    try:
        return WEIGHT.parse(scalar.text, Path())
    except InvalidValueError as error:
        shown = error.quoting(quote(scalar)) if scalar.is_substituted else str(error)
        faults.append(Fault(scalar.place, f"weight: {shown}"))
        return 1


def _read_backup(node: MappingNode, faults: list[Fault]) -> bool:
    backup = node.get("backup")
    scalar = None if backup is None else read_scalar(backup, "backup", faults)
    if scalar is None:
        return False
    try:
        return parse_bool(scalar.text)
    except ValueError as error:
        faults.append(Fault(scalar.place, f"backup: {error}"))
        return False
