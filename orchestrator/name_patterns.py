"""Names of tunnels on a command line, which may be patterns such as ``edge-*``."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATTERN_CHARACTERS: Final = set("*?[")


def is_pattern(text: str) -> bool:
    """Whether a name may match several tunnels."""
    return not _PATTERN_CHARACTERS.isdisjoint(text)


def matching_names(names: Sequence[str], pattern: str) -> list[str]:
    """Return the names that a pattern matches; a name that equals the pattern is the only one.

    So a tunnel named ``web[1]`` can be selected, although the pattern matches ``web1``.
    """
    return [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
