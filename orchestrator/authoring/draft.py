"""Entries that are about to be written to a file: their YAML, and the check that a daemon accepts them."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from orchestrator.config.faults import ConfigError
from orchestrator.config.load import load
from orchestrator.config.schema_parts import MAX_NAME_LENGTH
from orchestrator.process.terminal_text import printable
from tunnel.model.address import Address
from tunnel.model.option_types import IntegerType, parse_natural
from tunnel.model.options import OPTIONS

MAX_DRAFTS: Final = 1000
"""More entries are not written at once."""

_PLACEHOLDER: Final = "a placeholder for the value of a variable, 9f83c1d07b"
_CHECKED_FILE: Final = Path("imported.yaml")
_CHECKED_PLACE: Final = re.compile(r"\bimported\.yaml:([0-9]+):[0-9]+")
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

PlainValue: TypeAlias = "str | int | bool | list[PlainValue] | dict[str, PlainValue]"


class Variable(str):
    """A reference ``${NAME}`` to an environment variable, which stays one in the file."""

    __slots__ = ()

    @classmethod
    def of(cls, name: str) -> Variable:
        """Return the reference to the variable of a name."""
        return cls(f"${{{name}}}")


@dataclass(frozen=True, slots=True)
class Note:
    """What is not, or not exactly, in the written file: the place in the source, and the reason."""

    place: str
    text: str

    def __str__(self) -> str:
        return printable(f"{self.place}: {self.text}")


@dataclass(slots=True)
class Draft:
    """One entry. Its texts are literal: what the syntax of the file treats specially is escaped when it is written."""

    name: str
    url: str
    """role and addresses, without options"""
    place: str
    """where the source has it"""
    options: dict[str, str] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    enabled: bool = True

    def as_plain(self) -> PlainValue:
        """Return the entry as a value of YAML."""
        plain: dict[str, PlainValue] = {"url": _escape(self.url)}
        plain |= {name: _plain_option(name, value) for name, value in self.options.items()}
        if self.targets:
            plain["targets"] = [_escape(target) for target in self.targets]
        if self.tags:
            plain["tags"] = [_escape(tag) for tag in self.tags]
        if not self.enabled:
            plain["enabled"] = False
        return plain


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """The text of a file, which ``check`` accepts, and what had to be left out of it."""

    text: str
    drafts: tuple[Draft, ...]
    notes: tuple[Note, ...]


def join_address(host: str, port: int | str) -> str:
    """Return ``host:port``, with brackets around an IPv6 address."""
    return str(Address(host.strip().removeprefix("[").removesuffix("]"), 0)).rpartition(":")[0] + f":{port}"


def write_file(
    drafts: Sequence[Draft], comment: Iterable[str], defaults: Mapping[str, str] | None = None
) -> WrittenFile:
    """Return a file with these entries under unique names. Entries that ``check`` would reject are left out."""
    kept = _with_unique_names(drafts[:MAX_DRAFTS])
    notes = [Note(each.place, f"is left out: {MAX_DRAFTS} entries at most") for each in drafts[MAX_DRAFTS:]]
    head = "".join(f"# {printable(line)}".rstrip() + "\n" for line in comment)
    while True:
        text, lines = _render(kept, head, defaults or {})
        try:
            manifest = load(_CHECKED_FILE, _environment(text), content=text.encode())
        except ConfigError as error:
            faulty = {
                bisect.bisect_right(lines, fault.place.line) - 1: fault.message for fault in reversed(error.faults)
            }
            if min(faulty) < 0:
                raise
            for index in sorted(faulty):
                reason = _name_sources(faulty[index], kept, lines)
                notes.append(Note(kept[index].place, f"is left out: {reason}"))
            kept = [draft for index, draft in enumerate(kept) if index not in faulty]
            continue
        for warning in manifest.warnings:
            index = bisect.bisect_right(lines, warning.place.line) - 1
            place = kept[index].place if index >= 0 else "the file"
            notes.append(Note(place, _name_sources(warning.message, kept, lines)))
        return WrittenFile(text, tuple(kept), tuple(notes))


def _name_sources(message: str, drafts: Sequence[Draft], lines: Sequence[int]) -> str:
    """Return a message with places of the source instead of those in the checked file, which is not on the disk."""
    return _CHECKED_PLACE.sub(lambda found: drafts[bisect.bisect_right(lines, int(found[1])) - 1].place, message)


def clean_name(text: str) -> str:
    """Return a name for an entry that resembles a text."""
    name = "".join(char if char.isprintable() else "-" for char in text).strip()[: MAX_NAME_LENGTH - 5].strip()
    return "tunnel" if not name or name in {".", ".."} or "://" in name else name


def _with_unique_names(drafts: Iterable[Draft]) -> list[Draft]:
    used: set[str] = set()
    found: list[Draft] = []
    for draft in drafts:
        base = name = clean_name(draft.name)
        number = 1
        while name in used:
            number += 1
            name = f"{base}-{number}"
        used.add(name)
        draft.name = name
        found.append(draft)
    return found


def _render(drafts: Sequence[Draft], head: str, defaults: Mapping[str, str]) -> tuple[str, list[int]]:
    """Return the text of the file, and the line at which each entry starts."""
    text = f"{head}version: 1\n"
    if defaults:
        text += _dump({"defaults": dict(defaults)})
    text += "\ntunnels:\n" if drafts else "\ntunnels: {}\n"
    lines: list[int] = []
    line = text.count("\n") + 1
    parts = [text]
    for draft in drafts:
        dumped = _dump({_escape(draft.name): draft.as_plain()})
        lines.append(line)
        parts += [f"  {row}\n" for row in dumped.splitlines()]
        line += dumped.count("\n")
    return "".join(parts), lines


class _PlainDumper(yaml.SafeDumper):
    """Writes YAML for people to read; a text with what is not printable is escaped."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """PyYAML would write U+0085 and U+2028 as line breaks, which it reads as blanks."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, None if text.isprintable() else '"')


_PlainDumper.add_representer(str, _PlainDumper.represent_text)


def _dump(value: PlainValue) -> str:
    text: str = yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=1 << 20)
    return text


def _plain_option(name: str, value: str) -> str | int:
    """Return the value of an option: a number as one, but only where the option is a number."""
    number = parse_natural(value) if isinstance(OPTIONS[name].type, IntegerType) else None
    return _escape(value) if number is None else number


def _escape(text: str) -> str:
    """Return a text for the file, where ``$`` starts a variable."""
    return str(text) if isinstance(text, Variable) else text.replace("$", "$$")


def _environment(text: str) -> dict[str, str]:
    """Return values for the variables of a text, so that it can be checked without them."""
    return dict.fromkeys(_VARIABLE.findall(text.replace("$$", "")), _PLACEHOLDER)
