"""Parses YAML text into a tree in which every node knows its place in the file.

The tree is built from the events of PyYAML's parser instead of PyYAML's own constructor, because a fault has to be
reported at its place. A scalar here is the text that the user wrote: the key ``0123`` is not the number 83 and
``12:30`` is not 750. The code that reads a scalar decides what its text means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

from orchestrator.config.faults import MAX_FAULTS, TOO_MANY_FAULTS, ConfigError, Fault, Place
from orchestrator.config.variables import VariableBudget, VariableError, substitute

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Protocol

    class _Mark(Protocol):
        """A position in the text; PyYAML has two classes of it."""

        index: int


MAX_NODES: Final = 200_000
"""Nodes of a configuration with every alias expanded, all its files together."""

_MAX_DEPTH: Final = 32
_MAX_QUOTED_LENGTH: Final = 60
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_SCALAR_TAGS: Final = frozenset(
    {None, "!"} | {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}
)
_COLLECTION_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster if PyYAML was built with libyaml


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A scalar after the substitution of its variables. ``value`` is None if nothing is written."""

    place: Place
    value: str | None
    written: str = ""
    """the text before the substitution: what a message may quote, because a variable may hold a secret"""
    is_literal: bool = False
    """whether the characters of the value are those of the file, in sequence, from ``place`` on"""
    is_faulty: bool = False
    """whether a fault of it has been reported, so that no other need be"""

    @property
    def text(self) -> str:
        """The value, empty if nothing is written."""
        return self.value or ""

    @property
    def is_substituted(self) -> bool:
        """Whether the value is not the text that the file contains."""
        return self.value is not None and self.value != self.written

    def place_at(self, offset: int) -> Place:
        """Return the place of one character of the value, or of the start if the value is not literal."""
        if not self.is_literal:
            return self.place
        return Place(self.place.path, self.place.line, self.place.column + offset)


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A mapping; each key occurs once."""

    place: Place
    items: Mapping[str, tuple[ScalarNode, Node]]
    is_faulty: bool = False
    """whether a fault inside it has been reported, so that pairs may be missing"""

    def get(self, name: str) -> Node | None:
        """Return the value of a key."""
        return self.items[name][1] if name in self.items else None

    def __iter__(self) -> Iterator[tuple[ScalarNode, Node]]:
        return iter(self.items.values())


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A sequence of nodes."""

    place: Place
    items: tuple[Node, ...]


Node = ScalarNode | MappingNode | SequenceNode


def is_empty(node: Node | None) -> bool:
    """Return whether a key is missing or has no value."""
    return node is None or (isinstance(node, ScalarNode) and node.value is None and not node.is_faulty)


def quote(text: str | ScalarNode) -> str:
    """Return a text as a message quotes it: as the file contains it, in quotes, short, without what may be a key."""
    shown = text.written if isinstance(text, ScalarNode) else text
    if "://" in shown:
        shown = re.sub(r"://.*@", "://***@", shown, flags=re.DOTALL)
    return repr(shown if len(shown) <= _MAX_QUOTED_LENGTH else shown[: _MAX_QUOTED_LENGTH - 1] + "…")


@dataclass(slots=True)
class DocumentLimits:
    """What the files of one configuration may still use, and the warnings that their texts gave."""

    nodes: int = MAX_NODES
    variables: VariableBudget = field(default_factory=VariableBudget)
    warnings: list[Fault] = field(default_factory=list)


def decode_text(path: Path, data: bytes) -> str:
    """Decode the content of a file. Raises ConfigError if it is not UTF-8 or has control characters."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig", errors="replace")
        raise ConfigError([Fault(_place_after(path, before), "the file is not UTF-8 text; save it as UTF-8")]) from None
    if bad := _UNPRINTABLE.search(text):
        message = f"the file contains the control character U+{ord(bad[0]):04X}; remove it"
        raise ConfigError([Fault(_place_after(path, text[: bad.start()]), message)])
    return text


def _place_after(path: Path, before: str) -> Place:
    lines = before.split("\n")
    return Place(path, len(lines), len(lines[-1]) + 1)


def _index(mark: _Mark | None) -> int:
    return mark.index if mark else 0


def parse_document(
    path: Path, text: str, environ: Mapping[str, str], faults: list[Fault], limits: DocumentLimits | None = None
) -> Node | None:
    """Return the tree of a file with one YAML document, or None if it is empty. ``limits`` is shared by several files.

    Duplicate keys, unknown variables and similar faults are added to ``faults`` and parsing continues. Raises
    ConfigError if the text is not YAML.
    """
    composer = _Composer(path, text, environ, faults, limits or DocumentLimits())
    try:
        return composer.compose()
    except yaml.MarkedYAMLError as error:
        raise ConfigError([*faults, composer.syntax_fault(error)]) from None
    except yaml.YAMLError as error:
        raise ConfigError([*faults, Fault(Place(path), f"this is not YAML: {error}")]) from None


@dataclass(frozen=True, slots=True)
class _Anchored:
    """The node of an anchor, and what an alias of it adds."""

    node: Node
    nodes: int
    height: int


@dataclass(slots=True)
class _Composer:
    """Builds the tree of one document from the events of the parser."""

    path: Path
    text: str
    environ: Mapping[str, str]
    faults: list[Fault]
    limits: DocumentLimits
    events: Iterator[yaml.Event] = field(init=False)
    anchors: dict[str, _Anchored | None] = field(default_factory=dict)
    """None for an anchor whose node is still being composed"""
    deepest: int = 0
    """the deepest level of the node that is being composed"""

    def __post_init__(self) -> None:
        self.events = iter(yaml.parse(self.text, Loader=_LOADER))

    def compose(self) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents == 2:
                    raise self._stop(event, "a second YAML document starts here; a file contains one document")
                root = self._compose_node(next(self.events), 0)
        return None if is_empty(root) else root

    def _compose_node(self, event: yaml.Event, depth: int) -> Node:
        if isinstance(event, yaml.AliasEvent):
            return self._resolve_alias(event, depth)
        self._enter(event, 1, depth)
        anchor = event.anchor if isinstance(event, yaml.NodeEvent) else None
        if not anchor:
            return self._compose_content(event, depth)
        self.anchors[anchor] = None
        left, outer_depth, self.deepest = self.limits.nodes, self.deepest, depth
        node = self._compose_content(event, depth)
        self.anchors[anchor] = _Anchored(node, left - self.limits.nodes + 1, self.deepest - depth)
        self.deepest = max(self.deepest, outer_depth)
        return node

    def _compose_content(self, event: yaml.Event, depth: int) -> Node:
        match event:
            case yaml.ScalarEvent():
                return self._compose_scalar(event)
            case yaml.MappingStartEvent():
                return self._compose_mapping(event, depth)
            case yaml.SequenceStartEvent():
                return self._compose_sequence(event, depth)
        raise self._stop(event, "a value is expected here")

    def _enter(self, event: yaml.Event, nodes: int, depth: int) -> None:
        """Count nodes whose deepest one is at a level. Raises ConfigError if they are too many or too deep."""
        self.deepest = max(self.deepest, depth)
        if depth > _MAX_DEPTH:
            raise self._stop(event, f"this is nested deeper than {_MAX_DEPTH} levels; flatten it")
        self.limits.nodes -= nodes
        if self.limits.nodes < 0:
            message = f"with its aliases the configuration has more than {MAX_NODES} values; use fewer aliases or files"
            raise self._stop(event, message)

    def _resolve_alias(self, event: yaml.AliasEvent, depth: int) -> Node:
        anchor = event.anchor or ""
        shown = anchor[:_MAX_QUOTED_LENGTH]
        if anchor not in self.anchors:
            raise self._stop(event, f"no anchor &{shown} is defined before this alias")
        found = self.anchors[anchor]
        if found is None:
            raise self._stop(event, f"the alias *{shown} is inside the node that it refers to")
        self._enter(event, found.nodes, depth + found.height)
        return found.node

    def _compose_scalar(self, event: yaml.ScalarEvent) -> ScalarNode:
        self._check_tag(event, event.tag, _SCALAR_TAGS)
        raw: str = event.value
        place = self._place(event)
        if not event.style and raw in _NULLS:
            return ScalarNode(place, None)
        value, is_faulty = self._substitute_variables(event, raw)
        start, end = _index(event.start_mark), _index(event.end_mark)
        found = self.text.find(raw, start, end) if raw and "\n" not in raw else -1
        is_literal = found >= 0 and value == raw and "\n" not in self.text[start:found]
        if is_literal:
            place = Place(place.path, place.line, place.column + found - start)
        return ScalarNode(place, value, raw, is_literal, is_faulty)

    def _substitute_variables(self, event: yaml.ScalarEvent, raw: str) -> tuple[str, bool]:
        """Return the text with its variables replaced, and whether a fault was reported."""
        try:
            found = substitute(raw, self.environ, self.limits.variables)
        except VariableError as error:
            self._report(event, str(error))
            return "", True
        if found.bare_dollars and len(self.limits.warnings) < MAX_FAULTS:
            text = "this $ is not replaced: a variable is written ${NAME}, and a dollar $$"
            self.limits.warnings.append(Fault(self._place(event), text))
        return found.value, False

    def _compose_sequence(self, event: yaml.SequenceStartEvent, depth: int) -> SequenceNode:
        self._check_tag(event, event.tag, _COLLECTION_TAGS)
        items: list[Node] = []
        while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
            items.append(self._compose_node(inner, depth + 1))
        return SequenceNode(self._place(event), tuple(items))

    def _compose_mapping(self, event: yaml.MappingStartEvent, depth: int) -> MappingNode:
        self._check_tag(event, event.tag, _COLLECTION_TAGS)
        items: dict[str, tuple[ScalarNode, Node]] = {}
        merges: list[tuple[ScalarNode, Node]] = []
        faults_before = len(self.faults)
        while not isinstance(inner := next(self.events), yaml.MappingEndEvent):
            is_plain = isinstance(inner, yaml.ScalarEvent) and not inner.style
            key = self._compose_node(inner, depth + 1)
            value = self._compose_node(next(self.events), depth + 1)
            if len(self.faults) > MAX_FAULTS:
                raise self._stop(inner, TOO_MANY_FAULTS)
            if not isinstance(key, ScalarNode) or key.value is None:
                self.faults.append(Fault(key.place, "a key must be a text; quote it"))
            elif key.value == "<<" and is_plain:
                merges.append((key, value))
            elif key.value in items:
                first = items[key.value][0].place.line
                message = f"duplicate key {quote(key)} (first defined in line {first}); remove one"
                self.faults.append(Fault(key.place, message))
            elif not key.is_faulty:
                items[key.value] = key, value
        for key, value in merges:
            self._merge(key, value, items)
        return MappingNode(self._place(event), items, is_faulty=len(self.faults) > faults_before)

    def _merge(self, key: ScalarNode, value: Node, items: dict[str, tuple[ScalarNode, Node]]) -> None:
        for mapping in value.items if isinstance(value, SequenceNode) else (value,):
            if not isinstance(mapping, MappingNode):
                self.faults.append(Fault(key.place, "<<: takes an alias of a mapping, or a list of such aliases"))
                continue
            for name, item in mapping.items.items():
                items.setdefault(name, item)

    def _check_tag(self, event: yaml.Event, tag: str | None, known: frozenset[str | None]) -> None:
        if tag not in known:
            self._report(event, f"the tag {str(tag)[:40]!r} is not supported; remove it")

    def _place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        return Place(self.path, mark.line + 1, mark.column + 1) if mark else Place(self.path)

    def _report(self, event: yaml.Event, message: str) -> None:
        if len(self.faults) > MAX_FAULTS:
            raise self._stop(event, TOO_MANY_FAULTS)
        self.faults.append(Fault(self._place(event), message))

    def _stop(self, event: yaml.Event, message: str) -> ConfigError:
        return ConfigError([*self.faults, Fault(self._place(event), message)])

    def syntax_fault(self, error: yaml.MarkedYAMLError) -> Fault:
        """Return what the parser could not read, its place, and the most frequent cause."""
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        lines = self.text.split("\n")
        hint = ""
        written = lines[min(line, len(lines)) - 1]
        if "\t" in written[:column]:
            hint = "; indent with blanks, not with tabs"
        elif "${" in written:
            hint = '; inside { } or [ ] put a value with ${…} in "quotes"'
        what = ", ".join(part for part in (error.problem, error.context) if part)
        return Fault(Place(self.path, line, column), f"this is not YAML: {what}{hint}")
