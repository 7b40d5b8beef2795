"""Which file a daemon runs, by its path as given, and where a daemon keeps what belongs to that file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

_PROGRAM: Final = "nodepass-orch"
_SYSTEM_DIRECTORY: Final = Path("/var/lib") / _PROGRAM


def absolute_path(file: Path) -> Path:
    """Return the absolute path of a file as the user gave it: symbolic links are kept.

    A link that is pointed at another target (a Kubernetes ConfigMap, a ``current`` directory) is still the same file.
    ``..`` is removed as the kernel follows it, so a link before it is resolved.
    """
    parts: list[str] = []
    for part in (logical_directory() / file).parts:
        if part == "..":
            before = os.path.join(*parts)  # noqa: PTH118  texts
            parts = list(Path(os.path.realpath(before)).parent.parts if os.path.islink(before) else parts[:-1]) or ["/"]  # noqa: PTH114  text
        else:
            parts.append(part)
    return Path(*parts)


def logical_directory() -> Path:
    """Return the working directory as the shell names it (PWD), if that is correct; else as the kernel does."""
    named = os.environ.get("PWD", "")
    with contextlib.suppress(OSError):
        if named.startswith("/") and ".." not in named.split("/") and Path(named).samefile("."):
            return Path(named)
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return Path("/")


def file_key(file: Path) -> str:
    """Return a short name for a file that differs for each path as given: what belongs to its daemon is named so."""
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", file.stem)[:20]
    return f"{stem}-{hash_path(absolute_path(file))}"


def hash_path(path: Path) -> str:
    """Return twelve characters that stand for a path."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def find_state_directory(environ: Mapping[str, str], uid: int) -> Path:
    """Where a daemon stores what must survive a restart: as the service manager says, otherwise the usual place."""
    return state_directories(environ, uid)[0]


def state_directories(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Return the state directory of this user, then the directories that replace it where it cannot be written.

    A directory that the environment names is the only one, except for the last resort. Without one, that of the system
    service and those below the home directory count: a command has to find a daemon that was started from cron or with
    another HOME.
    """
    for variable, below in (("STATE_DIRECTORY", ""), ("XDG_STATE_HOME", _PROGRAM)):
        directory = environ.get(variable, "").partition(":")[0]
        if directory.startswith("/"):
            return [Path(directory) / below, private_directory(uid)]
    return fixed_directories(environ, uid)


def fixed_directories(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Return the state directories that do not depend on variables for such directories."""
    homes = [home for home in (environ.get("HOME", ""), _registered_home(uid)) if home.startswith("/")]
    own = [Path(home) / ".local/state" / _PROGRAM for home in dict.fromkeys(homes)]
    ordered = [_SYSTEM_DIRECTORY, *own] if uid == 0 else [*own, _SYSTEM_DIRECTORY]
    if not own and uid:
        ordered = [private_directory(uid), _SYSTEM_DIRECTORY]
    return list(dict.fromkeys([*ordered, private_directory(uid)]))


def _registered_home(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_dir
    except (KeyError, OverflowError):  # a container often runs as a user without an entry
        return ""


def private_directory(uid: int) -> Path:
    """Return the last resort: a directory that is made with mode 0700, and checked with ``is_safe`` before each use."""
    return Path("/tmp") / f"{_PROGRAM}-{uid}"  # noqa: S108  see above


def is_safe(directory: Path, uid: int) -> bool:
    """Whether no other user can put a file there."""
    try:
        found = directory.lstat() if directory == private_directory(uid) else directory.stat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in {uid, 0} and not found.st_mode & 0o022


def usable_directories(candidates: Iterable[Path], uid: int) -> Iterator[Path]:
    """Yield the directories that this user can write to; each one is created, if it is missing, when it is its turn."""
    for directory in candidates:
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_trusted = directory != private_directory(uid) or is_safe(directory, uid)
        if is_trusted and os.access(directory, os.W_OK | os.X_OK):
            yield directory
