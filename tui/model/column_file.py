"""The file with the columns of the table that the user hides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import yaml

from orchestrator.process.file_replacement import replace_file
from tui.model.user_files import read_user_file, user_file
from tunnel.model.files import FileError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

_HEADING: Final = "# Columns that the dashboard hides. The action `columns` (key C) writes this file.\n"
_TEXT_TAG: Final = "tag:yaml.org,2002:str"


def default_column_file(environ: Mapping[str, str]) -> Path | None:
    """Return ``nodepass-orch/columns.yaml`` in the user's configuration directory; None without such a directory."""
    return user_file(environ, "columns.yaml")


class ColumnFile:
    """Reads and writes the names of hidden columns. Without a path the choice ends with the dashboard."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> frozenset[str]:
        """Return the hidden columns. A file that is missing or wrong hides none: the dashboard must open."""
        if self._path is None:
            return frozenset()
        try:
            node = yaml.compose(read_user_file(self._path), Loader=yaml.SafeLoader)
        except (FileError, yaml.YAMLError, RecursionError):
            return frozenset()
        return frozenset(_hidden_names(node))

    def save(self, hidden: Collection[str]) -> str | None:
        """Write the hidden columns. Returns a sentence with the reason if that fails, else None.

        The new file replaces the old one at once, so that another dashboard never reads half of it.
        """
        if self._path is None:
            return None
        text = f"{_HEADING}{yaml.safe_dump({'hidden': sorted(hidden)})}"
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._path, text.encode())
        except OSError as error:
            return f"The columns are kept only until the dashboard ends: {self._path}: {error.strerror}."
        return None


def _hidden_names(node: yaml.Node | None) -> Iterator[str]:
    """Yield the texts of the list ``hidden``; another value there is no name of a column."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == "hidden" and isinstance(value, yaml.SequenceNode):
            yield from (one.value for one in value.value if isinstance(one, yaml.ScalarNode) and one.tag == _TEXT_TAG)
