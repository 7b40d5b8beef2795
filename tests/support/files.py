"""Files that another process writes and renames."""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str:
    """Return the text of a file; nothing while there is none, as in the moment in which a log is renamed."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
