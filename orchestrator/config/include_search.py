"""Finds the files that the patterns of ``include:`` match, cheaply enough to look for changes every two seconds.

The listing of each directory is kept with its modification time: at rest, a search costs one stat(2) per directory,
however many files there are. Unlike ``glob``, a recursive pattern enters each directory once, so symbolic links in a
circle end the search, and the number of directories is bounded.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tunnel.model.files import noted_access

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DIRECTORIES: Final = 20_000
"""Directories that the patterns of one configuration may search."""

_RECENT_NS: Final = 2_000_000_000  # a directory that changed so shortly before it was listed may change unnoticed


class TooManyDirectoriesError(Exception):
    """A pattern would search more than MAX_DIRECTORIES."""


@dataclass(frozen=True, slots=True)
class _Listing:
    identity: tuple[int, int, int, int]
    """device, inode, modification time and change time of the directory; tar and rsync can set all but the last one"""
    is_settled: bool
    """whether a later change is certain to have another modification time"""
    names: tuple[str, ...]
    directories: tuple[str, ...]
    links: tuple[str, ...]
    """symbolic links, whose targets may become directories without a change here; like ``directories`` not hidden"""
    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """names by the component of a pattern that they match"""

    def match(self, component: str) -> tuple[str, ...]:
        """Return the names that a component of a pattern matches; a leading dot has to be written."""
        found = self.matches.get(component)
        if found is None:
            is_match = _compiled(component).match
            shows_hidden = component.startswith(".")
            found = tuple(n for n in self.names if is_match(n) and (shows_hidden or not n.startswith(".")))
            self.matches[component] = found
        return found


@lru_cache(maxsize=64)
def _compiled(component: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(component))


@dataclass(slots=True)
class IncludeSearch:
    """Searches directories for patterns, and keeps their listings. Blocks on the disk; safe to use in threads."""

    max_directories: int = MAX_DIRECTORIES
    _listings: dict[str, _Listing] = field(default_factory=dict)

    def find(self, pattern: str) -> list[str]:
        """Return the sorted paths that match a pattern. Raises TooManyDirectoriesError."""
        if not glob.has_magic(pattern):
            return [pattern] if _exists(pattern) else []
        root, components = _split(pattern)
        return sorted(dict.fromkeys(self._search(root, components, _Visits(self.max_directories))))

    def _search(
        self, directory: str, components: list[str], visits: _Visits, listing: _Listing | None = None
    ) -> Iterator[str]:
        """Yield the paths in a directory, whose listing may be known, that components of a pattern match."""
        component, rest = components[0], components[1:]
        if component == "**":
            yield from self._search_recursively(directory, rest or ["*"], visits)
            return
        if glob.has_magic(component):
            listing = listing or self._list(directory, visits)
            names = listing.match(component) if listing else ()
        else:
            names = (component,)
        for name in names:
            path = os.path.join(directory, name)  # noqa: PTH118  hot: a Path costs ten times as much
            if rest:
                yield from self._search(path, rest, visits)
            elif component != name or _exists(path):
                yield path

    def _search_recursively(self, top: str, rest: list[str], visits: _Visits) -> Iterator[str]:
        """Search a directory and those below it, each once: links in a circle would otherwise have no end."""
        seen = set[tuple[int, int]]()
        waiting = [top]
        while waiting:
            directory = waiting.pop()
            listing = self._list(directory, visits)
            if listing is None or listing.identity[:2] in seen:
                continue
            seen.add(listing.identity[:2])
            yield from self._search(directory, rest, visits, listing)
            links = [name for name in listing.links if _is_directory(f"{directory or '.'}/{name}")]
            waiting += [os.path.join(directory, name) for name in (*links, *listing.directories)]  # noqa: PTH118  as above

    def _list(self, directory: str, visits: _Visits) -> _Listing | None:
        """Return the content of a directory, read again if it may have changed; None if it cannot be read."""
        visits.count(directory)
        now_ns = time.time_ns()
        try:
            with noted_access(directory):
                status = os.stat(directory or ".")  # noqa: PTH116  as above
                identity = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
                known = self._listings.get(directory)
                if known is not None and known.identity == identity and known.is_settled:
                    return known
                changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
                listing = _read(directory, identity, is_settled=now_ns - changed_ns > _RECENT_NS)
        except (OSError, ValueError):
            self._listings.pop(directory, None)
            return None
        self._listings[directory] = listing
        return listing


@dataclass(slots=True)
class _Visits:
    """The directories of one search."""

    limit: int
    directories: set[str] = field(default_factory=set)

    def count(self, directory: str) -> None:
        self.directories.add(directory)
        if len(self.directories) > self.limit:
            raise TooManyDirectoriesError


def _exists(path: str) -> bool:
    with noted_access(path):
        return os.path.lexists(path)


def _is_directory(path: str) -> bool:
    with noted_access(path):
        return os.path.isdir(path)  # noqa: PTH112  hot: a Path costs ten times as much


def _read(directory: str, identity: tuple[int, int, int, int], *, is_settled: bool) -> _Listing:
    names, directories, links = [], [], []
    with os.scandir(directory or ".") as entries:
        for entry in entries:
            names.append(entry.name)
            if entry.name.startswith("."):
                continue  # a recursive pattern does not enter it
            if entry.is_symlink():
                links.append(entry.name)
            elif entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
    return _Listing(identity, is_settled, tuple(names), tuple(directories), tuple(links))


def _split(pattern: str) -> tuple[str, list[str]]:
    """Return the directory before the first component with magic characters, and the components from there on."""
    components = [part for part in pattern.split("/") if part]
    first = next(index for index, part in enumerate(components) if glob.has_magic(part))
    root = "/" if pattern.startswith("/") else ""
    return root + "/".join(components[:first]), components[first:]
