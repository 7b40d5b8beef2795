"""The files of a configuration: their content when they were read, and whether it has changed since."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import glob
import hashlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from orchestrator.config.include_search import IncludeSearch, TooManyDirectoriesError
from orchestrator.errors import OrchestratorError
from tunnel.model import files
from tunnel.runtime.blocking_calls import BlockingCalls

MAX_FILE_BYTES: Final = 4 << 20
"""The largest permitted size of a file."""

ACCESS_TIMEOUT_S: Final = 10.0
"""How long one access to a file or directory may block."""

MISSING: Final = ""
"""The digest of a file that cannot be read."""

_MAX_SYMLINKS: Final = 16
_FILE_CALLS: Final = BlockingCalls("reading files", 2)
_T = TypeVar("_T")


class StuckFileError(OrchestratorError, OSError):
    """A file system does not answer; the message is the end of a sentence and names the file."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ETIMEDOUT, f"its file system has not answered for {ACCESS_TIMEOUT_S:g} s: {path}")

    def __str__(self) -> str:
        return str(self.strerror)


async def run_in_file_thread(work: Callable[[], _T]) -> _T:
    """Run blocking file access in a thread of its own: neither the event loop nor the end of the process waits for it.

    Raises what ``work`` raises, ThreadShortageError, and StuckFileError once one access lasts ACCESS_TIMEOUT_S. The
    thread cannot be interrupted and stays behind. There is no limit for the work as a whole, which may be large.
    """
    call = asyncio.ensure_future(_FILE_CALLS.run(work))
    try:
        while not call.done():
            await asyncio.wait({call}, timeout=ACCESS_TIMEOUT_S / 4)
            if not call.done():
                check_none_stuck()
    finally:
        call.cancel()
    return call.result()


def check_none_stuck() -> None:
    """Raise StuckFileError while an access to a file lasts longer than ACCESS_TIMEOUT_S, in any thread.

    For work that may wait: with one thread stuck, the last one stays free for commands.
    """
    if (path := files.find_stuck_access(ACCESS_TIMEOUT_S)) is not None:
        raise StuckFileError(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSet:
    """The files that were read. Equal file sets give equal configurations in an unchanged environment."""

    path: Path
    patterns: tuple[str, ...] = ()
    """the patterns of ``include:``, relative to the file"""
    named: frozenset[Path] = frozenset()
    """files of keys and certificates"""
    files: Mapping[Path, str] = field(default_factory=dict)
    """every file, with the SHA-256 of its content, or MISSING"""
    is_unread: bool = False
    """whether the last load failed before it had read all files, so that equal content has to be loaded again"""
    search: IncludeSearch = field(default_factory=IncludeSearch, compare=False, repr=False)
    """what looks for the files of the patterns, and remembers the directories"""

    def refresh(self) -> FileSet:
        """Return the file set with the current content; a pattern may match other files now. Blocks on the disk."""
        try:
            included = match_includes(self.path, self.patterns, self.search)
        except TooManyDirectoriesError:  # since the last load: the next one reports it
            included = []
        paths = dict.fromkeys([self.path, *included, *sorted(self.named)])
        return replace(self, files={path: hash_file(path) for path in paths}, is_unread=False)

    def directories(self) -> frozenset[Path]:
        """Return the existing directories that show a change of these files, those of each symbolic link included."""
        found = {place for path in self.files for place in _linked_directories(path)}
        parents = (os.path.expanduser(Path(pattern).parent) for pattern in self.patterns)  # noqa: PTH111  unlike Path.expanduser it never raises
        found |= {self.path.parent / parent for parent in parents if not glob.has_magic(parent)}
        return frozenset(place for place in found if _is_directory(place))


def resolve_pattern(path: Path, pattern: str) -> str:
    """Return a pattern of ``include:`` in the file ``path`` as glob takes it."""
    return os.path.join(glob.escape(str(path.parent)), os.path.expanduser(pattern))  # noqa: PTH111, PTH118  glob takes texts


def match_includes(path: Path, patterns: tuple[str, ...], search: IncludeSearch) -> list[Path]:
    """Return the files that ``include:`` names, each once, in the order of the patterns, then of the names.

    The file ``path`` is never among them. Raises TooManyDirectoriesError.
    """
    own = _real_path(path)
    found: dict[Path, None] = {}
    for pattern in patterns:
        for match in search.find(resolve_pattern(path, pattern)):
            if _real_path(match) != own:
                found.setdefault(Path(match))
    return list(found)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, or MISSING if it cannot be read."""
    try:
        return hash_bytes(read_file(path))
    except (OSError, ValueError):
        return MISSING


def read_file(path: Path) -> bytes:
    """Return the content of a file of the configuration. Raises FileError."""
    return files.read_file(path, MAX_FILE_BYTES).data


def check_size(data: bytes) -> bytes:
    """Return a content that was not read from a file. Raises FileError if it is larger than a file may be."""
    if len(data) > MAX_FILE_BYTES:
        raise files.FileError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def is_open_for_writing(path: Path) -> bool:
    """Return whether a process has the file open for writing, so that its content may be incomplete.

    The kernel refuses a read lease in that case (fcntl(2), F_SETLEASE). A process that opens the file while the lease
    is held waits until it is released, which happens at once. The kernel then signals this process. The signal is set
    to SIGURG, which is ignored, because the default SIGIO would terminate the process.
    """
    try:
        with files.noted_access(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of a content."""
    return hashlib.sha256(data).hexdigest()


def _real_path(path: Path | str) -> str:
    with files.noted_access(path):
        return os.path.realpath(path)  # unlike Path.resolve it accepts circular links


def _is_directory(path: Path) -> bool:
    with files.noted_access(path):
        return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises an error for a directory that may not be searched


def _linked_directories(path: Path) -> Iterator[Path]:
    """Yield the directory of a path, then that of the target of each symbolic link."""
    for _ in range(_MAX_SYMLINKS):
        yield path.parent
        try:
            with files.noted_access(path):
                target = path.readlink()
        except (OSError, ValueError):
            break
        path = path.parent / target
    yield Path(_real_path(path)).parent
