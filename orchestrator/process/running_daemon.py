"""What is known about a daemon that runs: the record in its lock file and in its announcement."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon that holds the lock of its file; what is unknown is None."""

    pid: int | None = None
    file: Path | None = None
    """its path as given, absolute"""
    socket: Path | None = None
    is_foreign: bool = False
    """whether it belongs to a user whose answers are not trusted"""

    def __str__(self) -> str:
        """The daemon in a sentence."""
        pid = "" if self.pid is None else f" (process {self.pid})"
        return f"the daemon{pid} of {self.file}" if self.file else f"the daemon{pid}"

    def as_json(self) -> dict[str, int | str | None]:
        """The record as a JSON object."""
        paths = {"file": self.file, "socket": self.socket}
        texts = {name: None if path is None else os.fspath(path) for name, path in paths.items()}
        return {"pid": self.pid, **texts}

    def as_bytes(self) -> bytes:
        """The record, one line of JSON."""
        return json.dumps(self.as_json()).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> RunningDaemon:
        """Return what a record holds; nothing is known from one that cannot be read."""
        try:
            record = json.loads(data)
            pid, file, socket = record["pid"], record["file"], record["socket"]
        except (ValueError, KeyError, TypeError):
            return cls()
        return cls(
            pid if isinstance(pid, int) else None,
            Path(file) if isinstance(file, str) else None,
            Path(socket) if isinstance(socket, str) else None,
        )
