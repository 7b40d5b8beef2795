"""Who a daemon is on the broker: an installation has an id of its own, kept in the state directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """The id, and, where it could not be kept, why."""

    instance: str
    problem: str | None = None

    def client_id(self, host: str) -> str:
        """The same in every life, or an old connection's will would come after the new birth.

        As long as every broker has to accept. Of its own for each host: machines are copied with all that they keep.
        """
        return f"np-{hashlib.sha256(f'{self.instance} {host}'.encode()).hexdigest()[:20]}"


def state_directory(environ: Mapping[str, str], uid: int) -> Path:
    """Where a daemon keeps what shall outlive it: what its service manager says, else the usual place."""
    for variable, below in (("STATE_DIRECTORY", ""), ("XDG_STATE_HOME", "nodepass-orch")):
        place = environ.get(variable, "").partition(":")[0]
        if place.startswith("/"):
            return Path(place) / below
    if uid == 0:
        return Path("/var/lib/nodepass-orch")
    return Path(environ.get("HOME") or "/nonexistent") / ".local/state/nodepass-orch"


def identity(file: Path, directory: Path) -> Identity:
    """The id of the installation that runs ``file``, made if there is none yet."""
    whole = os.fsencode(os.path.realpath(file))
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", file.stem)[:20]
    path = directory / f"host-{stem}-{hashlib.sha256(whole).hexdigest()[:12]}"
    fresh = str(uuid.uuid4())
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, ValueError):
            return Identity(str(uuid.UUID(path.read_text(encoding="ascii").strip())))
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            beside.write_text(f"{fresh}\n", encoding="ascii")
            beside.replace(path)
        except OSError:  # the disk is full: no half of it shall stay
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        why = error.strerror or str(error)
        return Identity(fresh, f"cannot keep this host's id in {path}: {why}; it is another one after each start")
    return Identity(fresh)
