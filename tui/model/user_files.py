"""The files of the dashboard in a user's configuration directory: where they are, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.model.files import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_BYTES: Final = 64 << 10


def user_file(environ: Mapping[str, str], name: str) -> Path | None:
    """Return ``nodepass-orch/NAME`` in the user's configuration directory; None without such a directory."""
    home = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '')}/.config"
    path = Path(home) / "nodepass-orch" / name
    return path if path.is_absolute() else None


def read_user_file(path: Path) -> str:
    """Return the text of a regular file of at most 64 KiB. Raises FileError."""
    return read_file(path, _MAX_BYTES).text()
