"""Replaces ``${NAME}`` and ``${NAME:-default}`` in a text of the file. Pure, and linear in the length of the text.

A default may contain variables and braces in pairs. ``$$`` is a dollar. Every other ``${`` is a fault, because a text
that is mangled silently would be worse: it may be a key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_NESTED_DEFAULTS: Final = 16
MAX_VARIABLE_CHARACTERS: Final = 2 << 20
"""Characters of all texts with variables of a configuration, and of the values, all its files together."""

_MAX_NAME_LENGTH: Final = 60  # of a name in a message
_TOKEN: Final = re.compile(r"\$\$|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(\}|:-))?|\$(?=[A-Za-z_])|[{}]")
_NOT_A_VARIABLE: Final = "this ${ is not ${NAME} or ${NAME:-default}; write $${ for a dollar and a brace"


class VariableError(ValueError):
    """A text whose variables cannot be replaced; the message is a sentence without values of variables."""


@dataclass(slots=True)
class VariableBudget:
    """How many characters texts with variables may still have: a file could name a long value a million times."""

    characters: int = MAX_VARIABLE_CHARACTERS

    def spend_on(self, value: str) -> str:
        """Return the value. Raises VariableError if the texts of the file get too long."""
        self.characters -= len(value)
        if self.characters < 0:
            raise VariableError(f"the texts with variables have more than {MAX_VARIABLE_CHARACTERS >> 20} MiB in all")
        return value


@dataclass(frozen=True, slots=True)
class SubstitutedText:
    """A text after the replacement, and the offsets of dollars that look like variables and were kept."""

    value: str
    bare_dollars: tuple[int, ...] = ()


@dataclass(slots=True)
class _Default:
    """A ``${NAME:-`` whose brace is still open."""

    name: str
    value: str
    is_used: bool
    """whether the default, and so each variable in it, is needed"""
    parts: list[str] = field(default_factory=list)
    open_braces: int = 0


def substitute(text: str, environ: Mapping[str, str], budget: VariableBudget) -> SubstitutedText:
    """Replace the variables of a text. Raises VariableError for a syntax fault or a variable that is not set."""
    if "$" not in text:
        return SubstitutedText(text)
    return _Substitution(budget.spend_on(text), environ, budget).run()


@dataclass(slots=True)
class _Substitution:
    text: str
    environ: Mapping[str, str]
    budget: VariableBudget
    outermost: list[str] = field(default_factory=list)
    """the parts of the result"""
    defaults: list[_Default] = field(default_factory=list)
    bare_dollars: list[int] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """The parts of the innermost open default, or of the result."""
        return self.defaults[-1].parts if self.defaults else self.outermost

    @property
    def is_needed(self) -> bool:
        """Whether what comes next is part of the result: a default may not be used."""
        return not self.defaults or self.defaults[-1].is_used

    def run(self) -> SubstitutedText:
        position = 0
        for token in _TOKEN.finditer(self.text):
            self.parts.append(self.text[position : token.start()])
            self._add(token)
            position = token.end()
        if self.defaults:
            name = self.defaults[-1].name[:_MAX_NAME_LENGTH]
            raise VariableError(f"the default of ${{{name}:- has no closing brace; braces in a default go in pairs")
        return SubstitutedText("".join([*self.outermost, self.text[position:]]), tuple(self.bare_dollars))

    def _add(self, token: re.Match[str]) -> None:
        match token[0], token[2]:
            case "$$", _:
                self.parts.append("$")
            case "$", _:
                self.bare_dollars.append(token.start())
                self.parts.append("$")
            case "${", _:
                raise VariableError(_NOT_A_VARIABLE)
            case _, "}":
                self.parts.append(self.budget.spend_on(self._value(token[1])))
            case _, ":-":
                self._open_default(token[1])
            case brace, _:
                self._add_brace(brace)

    def _value(self, name: str) -> str:
        value = self.environ.get(name)
        if value is None and self.is_needed:
            short = name[:_MAX_NAME_LENGTH]
            raise VariableError(f"the environment variable {short} is not set; set it or write ${{{short}:-default}}")
        return value or ""

    def _open_default(self, name: str) -> None:
        if len(self.defaults) == MAX_NESTED_DEFAULTS:
            raise VariableError(f"defaults are nested deeper than {MAX_NESTED_DEFAULTS} levels")
        value = self.environ.get(name, "")
        self.defaults.append(_Default(name, value, is_used=self.is_needed and not value))

    def _add_brace(self, brace: str) -> None:
        """Add a brace that belongs to the text, or close the innermost default."""
        if not self.defaults:
            self.parts.append(brace)
            return
        innermost = self.defaults[-1]
        if brace == "}" and not innermost.open_braces:
            self._close_default()
        else:
            innermost.open_braces += 1 if brace == "{" else -1
            self.parts.append(brace)

    def _close_default(self) -> None:
        closed = self.defaults.pop()
        self.parts.append(self.budget.spend_on(closed.value) if closed.value else "".join(closed.parts))
