"""The command line that does what a key did, so that users can put it into a script."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAM: Final = "nodepass-orch"
_MAX_NAMES: Final = 5


def command_line(
    verb: str, names: Sequence[str] = (), *, is_fleet: bool = False, member: Mapping[str, str] | None = None
) -> str:
    """Return the command line for some tunnels; of many names only the first ones are shown.

    ``member`` is the one link or target that is meant, by the name of its option.
    """
    shown = names[:_MAX_NAMES]
    chosen = [word for option, name in (member or {}).items() for word in (f"--{option}", name)]
    words = [PROGRAM, *(("fleet",) if is_fleet else ()), *verb.split(), *shown, *chosen]
    return shlex.join(words) + (" …" if len(names) > len(shown) else "")
