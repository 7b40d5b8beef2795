"""Parses ``targets:`` of an entry: the addresses that its egress dials, with weights and backups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.config.document import MappingNode, ScalarNode, SequenceNode, quote
from orchestrator.config.faults import Fault
from orchestrator.config.scalars import check_keys, read_scalar
from orchestrator.config.schema_parts import parse_bool
from tunnel.model.address import parse_address
from tunnel.model.balancer import MAX_WEIGHT
from tunnel.model.errors import InvalidValueError, UrlError
from tunnel.model.option_types import IntegerType
from tunnel.model.targets import MAX_TARGETS, TargetSpec

if TYPE_CHECKING:
    from orchestrator.config.document import Node
    from tunnel.model.address import Address

TARGET_KEYS: Final = ("address", "weight", "backup")
WEIGHT: Final = IntegerType(0, MAX_WEIGHT)

_EXAMPLE: Final = "as in [{address: db-1:5432}, {address: db-2:5432, backup: true}]"


def read_targets(node: Node, faults: list[Fault]) -> tuple[TargetSpec, ...]:
    """Return the targets without a fault, in their order, and report the others."""
    if not isinstance(node, SequenceNode) or not node.items:
        if isinstance(node, SequenceNode) or not node.is_faulty:
            faults.append(Fault(node.place, f"targets: takes a list of targets, {_EXAMPLE}"))
        return ()
    if len(node.items) > MAX_TARGETS:
        faults.append(Fault(node.place, f"targets: has {len(node.items)} targets; {MAX_TARGETS} at most"))
        return ()
    before = len(faults)
    found: dict[Address, TargetSpec] = {}
    for item in node.items:
        target = _read_target(item, faults)
        if target is None:
            continue
        if target.address in found:
            faults.append(Fault(item.place, f"the target {target.address} is given twice; remove one"))
        found[target.address] = target
    if len(faults) == before and not any(each.weight for each in found.values()):
        faults.append(Fault(node.place, "every target has the weight 0, so no visitor can be served"))
    return tuple(found.values())


def _read_target(node: Node, faults: list[Fault]) -> TargetSpec | None:
    """Return one target; or report its fault and return None. An address alone is short for a mapping."""
    if isinstance(node, SequenceNode):
        faults.append(Fault(node.place, "a target is an address or a mapping with address:, not a list"))
        return None
    if isinstance(node, ScalarNode):
        address = _read_address(node, faults)
        return None if address is None else TargetSpec(address)
    check_keys(node, TARGET_KEYS, "a target", faults)
    address_node = node.get("address")
    if address_node is None:
        if not node.is_faulty:
            faults.append(Fault(node.place, "the target has no address:"))
        return None
    address = _read_address(address_node, faults)
    weight, is_backup = _read_weight(node, faults), _read_backup(node, faults)
    return None if address is None else TargetSpec(address, weight, is_backup)


def _read_address(node: Node, faults: list[Fault]) -> Address | None:
    scalar = read_scalar(node, "the address of a target", faults)
    if scalar is None:
        return None
    try:
        address = parse_address(scalar.text, 0, "target")
    except UrlError as error:
        message = error.quoting("…") if scalar.is_substituted and error.quoted else str(error)
        faults.append(Fault(scalar.place_at(error.offset), message))
        return None
    if address.port == 0:
        faults.append(Fault(scalar.place, f"the target {quote(scalar)} is dialled, so its port cannot be 0"))
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
