"""The arguments of this process: keys in URLs are masked in messages and in the process list.

This runs before everything else and imports almost nothing: until then, other users can read the arguments.
"""

# ruff: noqa: PTH123  pathlib would be half of the time until the keys are hidden

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def mask_url(text: str) -> str:
    """A URL to show, however malformed: three stars in place of what may be a key."""
    scheme, separator, rest = text.partition("://")
    if "@" not in text:
        return text
    return f"{scheme if separator else '***'}{separator}***@{rest.rpartition('@')[2] if separator else ''}"


def hide_keys_in_arguments(arguments: Sequence[str]) -> bool:
    """Overwrite keys of URLs among this process's arguments, so that the process list does not show them.

    Returns False where that was not possible. Linux keeps the arguments in the process's own memory.
    """
    with_keys = [a for a in arguments if mask_url(a) != a]
    if not with_keys:
        return True
    try:
        with open("/proc/self/stat", "rb") as file:
            start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            line = memory.read(end - start)
            for argument in with_keys:
                old = b"\0" + argument.encode(errors="surrogateescape") + b"\0"
                new = b"\0" + mask_url(argument).encode(errors="surrogateescape")
                line = line.replace(old, new.ljust(len(old), b"\0"))
            memory.seek(start)
            memory.write(line)
    except (OSError, ValueError):
        return not os.access("/proc/self/cmdline", os.F_OK)
    return True
