"""Places in a file and the faults at them: one sentence each, all reported together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orchestrator.config.file_set import FileSet


MAX_FAULTS: Final = 200
"""A configuration with more faults is not checked further: aliases can repeat one fault a million times."""
TOO_MANY_FAULTS: Final = f"there are more than {MAX_FAULTS} faults; what follows here is not checked"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A character of a file; line and column count from 1."""

    path: Path
    line: int = 1
    column: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"

    def as_json(self) -> dict[str, str | int]:
        """Return the place as one JSON object."""
        return {"path": str(self.path), "line": self.line, "column": self.column}


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One sentence about one place: the cause and the way out. It never contains a key."""

    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class ConfigError(OrchestratorError):
    """The configuration cannot be used. ``faults`` has at least one element and is sorted by place.

    ``sources`` are the files that were read, if known: a change of them may mend the faults. ``warnings`` are about
    what could be read.
    """

    def __init__(
        self, faults: Sequence[Fault], sources: FileSet | None = None, warnings: tuple[Fault, ...] = ()
    ) -> None:
        self.faults = tuple(sorted(set(faults)))
        self.sources = sources
        self.warnings = warnings
        super().__init__("\n".join(map(str, self.faults)))
