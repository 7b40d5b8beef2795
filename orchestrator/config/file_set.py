"""The files that a configuration comes from: what they held when they were read, and whether they still do."""

from __future__ import annotations

import asyncio
import fcntl
import glob
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

MAX_FILE_BYTES: Final = 4 << 20
"""Bytes that a file may have."""

MISSING: Final = ""
"""Stands for the content of a file that cannot be read."""

_MAX_SYMLINKS: Final = 16
_EXECUTOR: Final = ThreadPoolExecutor(2, thread_name_prefix="files")
_T = TypeVar("_T")


async def run_in_file_thread(work: Callable[[], _T]) -> _T:
    """Do what waits for a disk where no visitor waits for it, nor it for names that take long to resolve."""
    return await asyncio.get_running_loop().run_in_executor(_EXECUTOR, work)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSet:
    """What was read. Equal sources give equal configurations, in an environment that does not change."""

    path: Path
    patterns: tuple[str, ...] = ()
    """what ``include:`` names, relative to the file"""
    named: frozenset[Path] = frozenset()
    """files of keys and certificates"""
    files: Mapping[Path, str] = field(default_factory=dict)
    """every file, with the SHA-256 of its content or MISSING"""

    def refresh(self) -> FileSet:
        """The same sources as they are now: a pattern may match other files. Blocks as long as the disk takes."""
        paths = dict.fromkeys([self.path, *match_includes(self.path, self.patterns), *sorted(self.named)])
        return FileSet(
            path=self.path, patterns=self.patterns, named=self.named, files={path: hash_file(path) for path in paths}
        )

    def directories(self) -> frozenset[Path]:
        """The existing directories in which a change of these files shows, that of each symbolic link included."""
        found = {place for path in self.files for place in _linked_directories(path)}
        parents = (os.path.expanduser(Path(pattern).parent) for pattern in self.patterns)  # noqa: PTH111  may be no user's
        found |= {self.path.parent / parent for parent in parents if not glob.has_magic(parent)}
        return frozenset(place for place in found if place.is_dir())


def resolve_pattern(path: Path, pattern: str) -> str:
    """A pattern of ``include:`` in the file ``path``, for glob."""
    return os.path.join(glob.escape(str(path.parent)), os.path.expanduser(pattern))  # noqa: PTH111, PTH118  glob takes texts


def match_includes(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files that ``include:`` names, each once, in the order of the patterns, then of the names; never itself."""
    own = os.path.realpath(path)  # unlike Path.resolve it bears links in a circle
    found: dict[Path, None] = {}
    for pattern in patterns:
        for match in sorted(glob.glob(resolve_pattern(path, pattern), recursive=True)):  # noqa: PTH207  Path.glob refuses absolute patterns
            if os.path.realpath(match) != own:
                found.setdefault(Path(match))
    return list(found)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's content, MISSING where it cannot be read."""
    try:
        return hash_bytes(read_file(path))
    except (OSError, ValueError):
        return MISSING


def read_file(path: Path) -> bytes:
    """A file's content, and one byte more than it may have at the most: it may be a device that never ends."""
    with path.open("rb") as stream:
        return stream.read(MAX_FILE_BYTES + 1)


def is_open_for_writing(path: Path) -> bool:
    """Whether a process has the file open for writing, as far as the system tells: then it may be half of itself.

    A lease on it is refused in that case. Who opens it while we have the lease is held up until we give it back, at
    once, and a signal announces him: one that does nothing, instead of SIGIO, which would end us.
    """
    try:
        with path.open("rb") as stream:
            fcntl.fcntl(stream, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(stream, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except (OSError, ValueError) as error:
        return isinstance(error, BlockingIOError)
    return False


def hash_bytes(data: bytes) -> str:
    """The SHA-256 of a content that was read."""
    return hashlib.sha256(data).hexdigest()


def _linked_directories(path: Path) -> Iterator[Path]:
    """The directories of a path, of what it links to, and so on."""
    for _ in range(_MAX_SYMLINKS):
        yield path.parent
        try:
            target = path.readlink()
        except OSError:
            break
        path = path.parent / target
    yield Path(os.path.realpath(path)).parent
