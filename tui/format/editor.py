"""The user's editor: which program it is, and how it opens a file at a line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_DEFAULT: Final = "vi"


def _colon(file: str, line: int) -> list[str]:
    return [f"{file}:{line}"]


def _wait_colon(file: str, line: int) -> list[str]:
    return ["--wait", f"{file}:{line}"]


def _goto(file: str, line: int) -> list[str]:
    return ["--wait", "--goto", f"{file}:{line}"]


_PLACES: Final[Mapping[str, Callable[[str, int], list[str]]]] = {
    **dict.fromkeys(("hx", "helix"), _colon),
    **dict.fromkeys(("subl", "zed"), _wait_colon),
    **dict.fromkeys(("code", "codium", "cursor"), _goto),
}
"""How editors open a file at a line that do not know ``+LINE FILE``, as vi, nano, emacs, micro, kak and others do."""


def editor_command(environ: Mapping[str, str], file: Path, line: int) -> list[str]:
    """Return the command that opens a file at a line: VISUAL, else EDITOR, else vi.

    Raises ValueError for a variable that is not the text of a command, as one with an open quotation mark.
    """
    text = environ.get("VISUAL", "").strip() or environ.get("EDITOR", "").strip() or _DEFAULT
    program, *arguments = shlex.split(text)
    name = Path(program).name
    place = _PLACES[name](str(file), line) if name in _PLACES else [f"+{line}", str(file)]
    return [program, *arguments, *place]


def parse_place(where: str, base: Path) -> tuple[Path, int]:
    """Return file and line of a place like ``tunnels.yaml:7:3``, relative to ``base``. Raises ValueError."""
    path, line, _column = where.rsplit(":", 2)
    return base / path, int(line)
