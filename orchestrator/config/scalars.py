"""What every section of the file has: texts, lists of texts, names, and a set of known keys."""

from __future__ import annotations

from orchestrator.config.document import MappingNode, Node, ScalarNode, SequenceNode, is_empty, quote
from orchestrator.config.faults import MAX_FAULTS, Fault
from orchestrator.config.schema_parts import MAX_NAME_LENGTH
from tunnel.model.errors import name_known
from tunnel.model.options import OPTIONS_HELP


def check_keys(mapping: MappingNode, known: tuple[str, ...], where: str, faults: list[Fault]) -> None:
    """Report every unknown key."""
    for key, _ in mapping:
        if key.text not in known:
            if len(faults) > MAX_FAULTS:
                break
            hint = name_known(key.text, known, OPTIONS_HELP)
            faults.append(Fault(key.place, f"unknown key {quote(key)} in {where}{hint}"))


def read_scalar(node: Node, what: str, faults: list[Fault]) -> ScalarNode | None:
    """Return a scalar that has a value; otherwise report the fault and return None."""
    if isinstance(node, ScalarNode) and node.is_faulty:
        return None
    if not isinstance(node, ScalarNode):
        faults.append(Fault(node.place, f"{what} takes one text, not a list or a mapping"))
        return None
    if not node.value:
        faults.append(Fault(node.place, f"{what} is empty; give it a value or remove the line"))
        return None
    return node


def read_scalars(node: Node | None, what: str, faults: list[Fault]) -> tuple[ScalarNode, ...]:
    """Return the scalars of a list; a single scalar counts as a list of one."""
    if node is None or is_empty(node):
        return ()
    if isinstance(node, MappingNode):
        faults.append(Fault(node.place, f"{what} takes a list of texts"))
        return ()
    items = node.items if isinstance(node, SequenceNode) else (node,)
    return tuple(scalar for item in items if (scalar := read_scalar(item, f"each of {what}", faults)))


def describe_name_fault(text: str) -> str | None:
    """Return what is wrong with the name of a tunnel or key; None if nothing is."""
    if not text or text != text.strip() or not text.isprintable():
        return "a name is a printable text without blanks at its ends"
    if len(text) > MAX_NAME_LENGTH:
        return f"a name has at most {MAX_NAME_LENGTH} characters; this one has {len(text)}"
    return None
