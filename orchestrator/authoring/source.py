"""A file of another program, its parsers and its nested sections, which report every value that was not read."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import yaml

from orchestrator.authoring.draft import Note
from orchestrator.errors import OrchestratorError

_MAX_DEPTH: Final = 6
_MAX_NOTES: Final = 200
_TRUE_WORDS: Final = {"true", "1", "yes", "on", "t"}
_MAX_SHOWN: Final = 60
_T = TypeVar("_T")


class ImportFileError(OrchestratorError):
    """A file cannot be read as one of the other program; the message is a sentence with the place."""


@dataclass(slots=True)
class ForeignFile:
    """One file of another program."""

    name: str
    text: str
    notes: list[Note] = field(default_factory=list)
    line_numbers: Sequence[int] = ()
    """the line of the file that each line of the text is from; empty: the text is the file's"""
    _lines: list[str] = field(default_factory=list)

    def place(self, *patterns: str) -> str:
        """Return the place of the last pattern; each is searched from the line of the one before."""
        self._lines = self._lines or self.text.splitlines()
        found = 0
        for pattern in patterns:
            compiled = re.compile(pattern)
            found = next((i for i in range(found, len(self._lines)) if compiled.search(self._lines[i])), found)
        return f"{self.name}:{self.line_number(found + 1)}"

    def line_number(self, number: int) -> int:
        """Return the line of the file that a line of the text is from; both count from 1."""
        return self.line_numbers[number - 1] if 0 < number <= len(self.line_numbers) else number

    def note(self, place: str, text: str) -> None:
        """Note what is not carried over. After some hundred notes the rest is not listed."""
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(Note(place, text))
        elif len(self.notes) == _MAX_NOTES:
            self.notes.append(Note(self.name, f"there is more; only the first {_MAX_NOTES} notes are listed"))


@dataclass(slots=True)
class Section:
    """A mapping of a file. Names may have dots: ``auth.token`` is ``token`` in the mapping ``auth``."""

    source: ForeignFile
    values: Mapping[str, object]
    patterns: tuple[str, ...] = ()
    """how the lines of the section are found"""
    label: str = ""
    """what the section is in notes, as in ``proxy "web"``"""
    _used: set[str] = field(default_factory=set)

    def place(self, name: str = "") -> str:
        """Return the place of a value, or of the section."""
        key = name.rpartition(".")[2]
        in_ini = re.sub(r"(?<=[a-z])([A-Z]+)", r"_\1", key).casefold()
        pattern = rf"\b({re.escape(key)}|{re.escape(in_ini)})\b"
        return self.source.place(*self.patterns, *((pattern,) if key else ()))

    def note(self, name: str, text: str) -> None:
        """Note a value that is not carried over, or with an empty name what concerns the section."""
        what = " ".join(part for part in (self.label, name) if part)
        self.source.note(self.place(name), f"{what}: {text}")

    def get(self, name: str) -> object:
        """Take a value. Returns None if it is missing."""
        self._used.add(name)
        value: object = self.values
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def text(self, name: str) -> str:
        """Take a text or a number as a text; empty if it is missing, noted if it is anything else."""
        value = self.get(name)
        if value is None or isinstance(value, bool) or not isinstance(value, (str, int, float)):
            if value is not None:
                self.note(name, "is not a text")
            return ""
        return str(value)

    def integer(self, name: str, minimum: int, maximum: int) -> int | None:
        """Take a whole number; None if it is missing, or out of range, which is noted."""
        text = self.text(name).strip()
        if not text:
            return None
        number = int(text) if re.fullmatch(r"-?[0-9]{1,12}", text) else None
        if number is None or not minimum <= number <= maximum:
            self.note(name, f"{text[:_MAX_SHOWN]!r} is not a number from {minimum} to {maximum}")
            return None
        return number

    def boolean(self, name: str) -> bool:
        """Take a truth value; false if it is missing."""
        return str(self.get(name)).strip().casefold() in _TRUE_WORDS

    def has(self, name: str) -> bool:
        """Take a value. Returns whether it is present and neither false, zero nor empty."""
        return not _is_off(self.get(name))

    def sections(self, name: str) -> list[Mapping[str, object]]:
        """Take a list of mappings; anything else in it is noted."""
        value = self.get(name)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(item, Mapping) for item in items):
            self.note(name, "is not a list of tables")
        return [item for item in items if isinstance(item, Mapping)]

    def mappings(self, name: str) -> dict[str, Mapping[str, object]]:
        """Take a mapping of mappings; anything else in it is noted."""
        value = self.get(name)
        if value is not None and not isinstance(value, Mapping):
            self.note(name, "is not a table")
        items = value.items() if isinstance(value, Mapping) else ()
        found = {str(key): item for key, item in items if isinstance(item, Mapping)}
        if len(found) < len(items):
            self.note(name, "has an entry that is not a table")
        return found

    def note_leftovers(self, reasons: Mapping[str, str]) -> None:
        """Note every value that was not taken and is not off, with the reason of the longest prefix that has one."""
        for name in self._leftovers(self.values, "", _MAX_DEPTH):
            parts = name.split(".")
            prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            reason = next((reasons[prefix] for prefix in prefixes if prefix in reasons), "has no counterpart")
            if reason:
                self.note(name, reason)

    def _leftovers(self, values: Mapping[str, object], prefix: str, depth: int) -> Iterator[str]:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if name in self._used or _is_off(value):
                continue
            if isinstance(value, Mapping) and depth:
                yield from self._leftovers(value, f"{name}.", depth - 1)
            else:
                yield name


def _is_off(value: object) -> bool:
    is_empty = value is None or value is False or value in ("", 0) or (isinstance(value, (list, dict)) and not value)
    return is_empty or (isinstance(value, str) and value.strip().casefold() in {"false", "0", "no", "off", ""})


def parse_toml(source: ForeignFile) -> dict[str, object]:
    """Parse TOML. Raises ImportFileError."""
    return _parse(source, "TOML", tomllib.loads)


def parse_json(source: ForeignFile) -> object:
    """Parse JSON. Raises ImportFileError."""
    return _parse(source, "JSON", json.loads)


def parse_yaml(source: ForeignFile) -> object:
    """Parse YAML, every scalar as a text. Raises ImportFileError."""
    return _parse(source, "YAML", lambda text: yaml.load(text, Loader=yaml.BaseLoader))  # noqa: S506  texts alone


def _parse(source: ForeignFile, language: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(source.text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source.name}:{source.line_number(mark.line + 1)}" if mark else source.name
        raise ImportFileError(f"{place}: this is not YAML: {error.problem or error.context}") from None
    except json.JSONDecodeError as error:
        place = f"{source.name}:{source.line_number(error.lineno)}:{error.colno}"
        raise ImportFileError(f"{place}: this is not JSON: {error.msg}") from None
    except (ValueError, yaml.YAMLError, RecursionError, TypeError, KeyError, AttributeError) as error:
        line = re.search(r"line ([0-9]+)", str(error))
        place = f"{source.name}:{source.line_number(int(line[1]))}" if line else source.name
        hint = "; expand such templates ({{ … }}) first" if "{{" in source.text else ""
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise ImportFileError(f"{place}: this is not {language}: {reason}{hint}") from None
