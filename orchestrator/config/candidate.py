"""A candidate: the text that may take the place of the running file. It is checked as if it stood there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config.faults import ConfigError, Fault
from tunnel.model.files import noted_access


@dataclass(frozen=True, slots=True)
class Candidate:
    """The text of a configuration. Relative file names in it start at the running file's directory."""

    content: bytes
    name: str
    """what faults call it"""

    def relocate(self, error: ConfigError, path: Path) -> ConfigError:
        """Return an error whose faults in the file ``path`` are in the candidate."""
        shown = Path(self.name)
        faults = [
            Fault(replace(fault.place, path=shown), fault.message) if fault.place.path == path else fault
            for fault in error.faults
        ]
        return ConfigError(faults)


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of a file at once: a reader sees the old or the new one. Raises OSError.

    Mode and owner stay; of a symbolic link, the file that it leads to is replaced.
    """
    with noted_access(path):
        _replace_file(path, content)


def _replace_file(path: Path, content: bytes) -> None:
    target = Path(os.path.realpath(path))
    status = target.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            with contextlib.suppress(PermissionError):
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), status.st_mode & 0o7777)
            os.fsync(file.fileno())
        Path(name).replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
