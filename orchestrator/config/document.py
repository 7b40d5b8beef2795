"""YAML text into a tree that knows the place of every word.

Built from the parser's events instead of PyYAML's own constructor, because a fault has to be quote where it stands,
and because a scalar here is the text that somebody wrote: the key ``0123`` is not the number 83 and ``12:30`` is not
750. What a text means is decided where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml

from orchestrator.config.faults import ConfigError, Fault, Place
from orchestrator.config.file_set import MAX_FILE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

_MAX_DEPTH: Final = 32
_MAX_MERGED_KEYS: Final = 100_000
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_SCALAR_TAGS: Final = frozenset(
    {None, "!"} | {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}
)
_COLLECTION_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_VARIABLE: Final = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}|\$\{")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where PyYAML was built with libyaml


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A scalar, its variables replaced. ``value`` is None where nothing is written."""

    place: Place
    value: str | None
    is_literal: bool = False
    """whether each character of the value stands in the file, one after the other, from ``place`` on"""
    is_broken: bool = False
    """a fault of it is known already: nobody needs to hear more about it"""

    def at(self, offset: int) -> Place:
        """The place of one character of the value, or of its start where that is all that is known."""
        if not self.is_literal:
            return self.place
        return Place(self.place.path, self.place.line, self.place.column + offset)


@dataclass(frozen=True, slots=True)
class MappingNode:
    """A mapping; each key is there once."""

    place: Place
    items: Mapping[str, tuple[ScalarNode, Node]]

    def get(self, name: str) -> Node | None:
        """What stands under a key."""
        return self.items[name][1] if name in self.items else None

    def __iter__(self) -> Iterator[tuple[ScalarNode, Node]]:
        return iter(self.items.values())


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A sequence."""

    place: Place
    items: tuple[Node, ...]


Node = ScalarNode | MappingNode | SequenceNode


def is_empty(node: Node | None) -> bool:
    """Whether a key is missing, or has nothing behind it."""
    return node is None or (isinstance(node, ScalarNode) and node.value is None and not node.is_broken)


def decode_text(path: Path, data: bytes) -> str:
    """The text of a file. Raises ConfigError where it is too long, not UTF-8 or holds control characters."""
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(
            [Fault(Place(path), f"the file is longer than {MAX_FILE_BYTES >> 20} MiB; split it with include:")]
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _line_column(data[: error.start].decode("utf-8-sig", errors="replace"))
        raise ConfigError([Fault(Place(path, line, column), "the file is not UTF-8 text; save it as UTF-8")]) from None
    if bad := _UNPRINTABLE.search(text):
        line, column = _line_column(text[: bad.start()])
        message = f"the file holds the control character U+{ord(bad[0]):04X}; remove it"
        raise ConfigError([Fault(Place(path, line, column), message)])
    return text


def _line_column(before: str) -> tuple[int, int]:
    lines = before.split("\n")
    return len(lines), len(lines[-1]) + 1


def parse_document(path: Path, text: str, environ: Mapping[str, str], faults: list[Fault]) -> Node | None:
    """The tree of one document, None where it is empty.

    Double keys, unknown variables and the like go to ``faults`` and reading goes on; a text that is no YAML raises
    ConfigError.
    """
    composer = _Composer(path, text, environ, faults)
    try:
        return composer.document()
    except yaml.MarkedYAMLError as error:
        raise ConfigError([*faults, composer.syntax_fault(error)]) from None
    except yaml.YAMLError as error:
        raise ConfigError([*faults, Fault(Place(path), f"this is not YAML: {error}")]) from None


@dataclass(slots=True)
class _Composer:
    path: Path
    text: str
    environ: Mapping[str, str]
    faults: list[Fault]
    events: Iterator[Any] = field(init=False)
    anchors: dict[str, Node | None] = field(default_factory=dict)
    merged: int = 0

    def __post_init__(self) -> None:
        self.events = iter(yaml.parse(self.text, Loader=_LOADER))

    def document(self) -> Node | None:
        root: Node | None = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents == 2:
                    raise self._stop(event, "a second YAML document starts here; one file is one document")
                root = self._node(next(self.events), 0)
        return None if is_empty(root) else root

    def _node(self, event: Any, depth: int) -> Node:  # noqa: ANN401  PyYAML's events have no common type
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if depth > _MAX_DEPTH:
            raise self._stop(event, f"this is nested deeper than {_MAX_DEPTH} levels")
        anchor = event.anchor
        if anchor:
            self.anchors[anchor] = None  # known, not finished: an alias to it from inside is a circle
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(event, depth)
        else:
            node = self._sequence(event, depth)
        if anchor:
            self.anchors[anchor] = node
        return node

    def _alias(self, event: Any) -> Node:  # noqa: ANN401  as above
        if event.anchor not in self.anchors:
            raise self._stop(event, f"no anchor &{event.anchor} stands before this alias")
        node = self.anchors[event.anchor]
        if node is None:
            raise self._stop(event, f"the alias *{event.anchor} stands inside what it stands for")
        return node

    def _scalar(self, event: Any) -> ScalarNode:  # noqa: ANN401  as above
        start, end = event.start_mark.index, event.end_mark.index
        raw = event.value
        self._check_tag(event, _SCALAR_TAGS)
        is_plain = not event.style
        if is_plain and raw in _NULLS:
            return ScalarNode(self._place(event), None)
        value, is_broken = self._substitute(event, raw)
        found = self.text.find(raw, start, end) if raw and "\n" not in raw else -1
        is_literal = found >= 0 and value == raw
        place = self._place(event)
        if is_literal and "\n" not in self.text[start:found]:
            place = Place(place.path, place.line, place.column + found - start)
        elif is_literal:
            is_literal = False
        return ScalarNode(place, value, is_literal, is_broken)

    def _substitute(self, event: Any, raw: str) -> tuple[str, bool]:  # noqa: ANN401  as above
        is_broken = False

        def replace(match: re.Match[str]) -> str:
            nonlocal is_broken
            name, default = match[1], match[3]
            if match[0] == "$$":
                return "$"
            if name is None:
                is_broken = True
                self._fault(event, "this ${ is not ${NAME} or ${NAME:-default}; write $${ for a dollar and a brace")
                return ""
            value = self.environ.get(name)
            if default is not None:
                return value or default
            if value is None:
                is_broken = True
                self._fault(event, f"the environment variable {name} is not set; set it or write ${{{name}:-default}}")
            return value or ""

        return _VARIABLE.sub(replace, raw), is_broken

    def _sequence(self, event: Any, depth: int) -> SequenceNode:  # noqa: ANN401  as above
        self._check_tag(event, _COLLECTION_TAGS)
        items: list[Node] = []
        while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(inner, depth + 1))
        return SequenceNode(self._place(event), tuple(items))

    def _mapping(self, event: Any, depth: int) -> MappingNode:  # noqa: ANN401  as above
        self._check_tag(event, _COLLECTION_TAGS)
        items: dict[str, tuple[ScalarNode, Node]] = {}
        merges: list[tuple[ScalarNode, Node]] = []
        while not isinstance(inner := next(self.events), yaml.MappingEndEvent):
            is_plain = isinstance(inner, yaml.ScalarEvent) and not inner.style
            key = self._node(inner, depth + 1)
            value = self._node(next(self.events), depth + 1)
            if not isinstance(key, ScalarNode) or key.value is None:
                self.faults.append(Fault(key.place, "a key must be a text"))
            elif key.value == "<<" and is_plain:
                merges.append((key, value))
            elif key.value in items:
                first = items[key.value][0].place.line
                self.faults.append(
                    Fault(key.place, f"the key {quote(key.value)} stands here twice; first in line {first}")
                )
            elif not key.is_broken:
                items[key.value] = key, value
        for key, value in merges:
            self._merge(key, value, items)
        return MappingNode(self._place(event), items)

    def _merge(self, key: ScalarNode, value: Node, items: dict[str, tuple[ScalarNode, Node]]) -> None:
        for block in value.items if isinstance(value, SequenceNode) else (value,):
            if not isinstance(block, MappingNode):
                self.faults.append(Fault(key.place, "<<: takes an alias of a mapping, or a list of them"))
                continue
            self.merged += len(block.items)
            if self.merged > _MAX_MERGED_KEYS:
                raise ConfigError([*self.faults, Fault(key.place, "the aliases of this file unfold to too many keys")])
            for name, item in block.items.items():
                items.setdefault(name, item)

    def _check_tag(self, event: Any, known: frozenset[str | None]) -> None:  # noqa: ANN401  as above
        if event.tag not in known:
            self._fault(event, f"the tag {event.tag[:40]!r} means nothing here; remove it")

    def _place(self, event: Any) -> Place:  # noqa: ANN401  as above
        return Place(self.path, event.start_mark.line + 1, event.start_mark.column + 1)

    def _fault(self, event: Any, message: str) -> None:  # noqa: ANN401  as above
        self.faults.append(Fault(self._place(event), message))

    def _stop(self, event: Any, message: str) -> ConfigError:  # noqa: ANN401  as above
        return ConfigError([*self.faults, Fault(self._place(event), message)])

    def syntax_fault(self, error: yaml.MarkedYAMLError) -> Fault:
        """What the parser could not read, where, and what most often lies behind it."""
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        lines = self.text.split("\n")
        hint = ""
        if mark and "${" in lines[min(mark.line, len(lines) - 1)]:
            hint = '; inside { } or [ ] put a value with ${…} in "quotes"'
        elif error.problem and "\\t" in error.problem:
            hint = "; indent with blanks, not with tabs"
        what = ", ".join(part for part in (error.problem, error.context) if part)
        return Fault(Place(self.path, line, column), f"this is not YAML: {what}{hint}")


def quote(text: str) -> str:
    """A text of the file as a message quotes it: in quotes, short, and without what may be a key."""
    if "://" in text:
        text = re.sub(r"://.*@", "://***@", text, flags=re.DOTALL)
    return repr(text if len(text) <= 60 else text[:59] + "…")
