"""The columns of the table that the user hides, kept in a file across starts as htop and k9s keep theirs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_HEADING = "# Columns that the dashboard hides; its key C writes this file.\n"


def default_column_file(environ: Mapping[str, str]) -> Path | None:
    """Return ``nodepass-orch/columns.yaml`` in the user's configuration directory; None without such a directory."""
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '')}/.config"
    path = Path(home) / "nodepass-orch" / "columns.yaml"
    return path if path.is_absolute() else None


class ColumnFile:
    """Reads and writes the names of hidden columns; without a path they are forgotten at the end."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> frozenset[str]:
        """Return the hidden columns. A file that is missing or wrong hides none: the dashboard must open."""
        if self._path is None:
            return frozenset()
        try:
            content = yaml.safe_load(self._path.read_text())
        except (OSError, UnicodeError, yaml.YAMLError):
            return frozenset()
        hidden = content.get("hidden") if isinstance(content, dict) else None
        return frozenset(name for name in hidden if isinstance(name, str)) if isinstance(hidden, list) else frozenset()

    def save(self, hidden: Collection[str]) -> str | None:
        """Write the hidden columns; return a sentence that says why that failed, None if it did not.

        Another dashboard never reads half a file: the new one replaces it.
        """
        if self._path is None:
            return None
        text = f"{_HEADING}{yaml.safe_dump({'hidden': sorted(hidden)})}"
        temporary = ""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".columns-")
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            Path(temporary).replace(self._path)
        except OSError as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            return f"The columns are kept only until the dashboard ends: {self._path}: {error.strerror}."
        return None
