"""The search for included files: what a pattern matches, and what a search costs that is repeated."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

import pytest

from orchestrator.config import include_search
from orchestrator.config.file_set import match_includes
from orchestrator.config.include_search import IncludeSearch, TooManyDirectoriesError
from tests.orchestrator.test_config import Folder, folder
from tunnel.model.files import find_stuck_access

__all__ = ["folder"]


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(tmp_path, "a.yaml", "b.yml", ".hidden.yaml", "d/a.yaml", "d/e/a.yaml", "d/.git/a.yaml", "[x]/a.yaml", "f/b")
    (tmp_path / "g").symlink_to("f")
    (tmp_path / "broken.yaml").symlink_to("nothere")
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    ["*.yaml", "a.yaml", "no.yaml", "no/*.yaml", "d/*", "*/a.yaml", "**/*.yaml", "**/a.yaml", "d/**/a.yaml", "[x]/*",
     "[[]x]/*", "?.y*", ".*.yaml", "d/.git/*", "d/*/*", "d/../*.yaml", "g/*", "[!a]*", "a.yaml/*", "./*.yaml"],
)  # fmt: skip
def test_a_pattern_matches_what_glob_matches(tree: Path, pattern: str) -> None:
    absolute = f"{glob.escape(str(tree))}/{pattern}"
    assert IncludeSearch().find(absolute) == sorted(set(glob.glob(absolute, recursive=True)))  # noqa: PTH207


def test_a_relative_pattern_starts_at_the_working_directory(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert IncludeSearch().find("d/*.yaml") == ["d/a.yaml"]
    assert IncludeSearch().find("*.yaml") == ["a.yaml", "broken.yaml"]


def test_links_in_a_circle_end_the_search(tree: Path) -> None:
    for name in ("one", "two"):
        (tree / "d" / name).symlink_to("..")
    found = IncludeSearch().find(f"{glob.escape(str(tree))}/**/a.yaml")
    assert found == sorted(f"{tree}/{name}" for name in ("a.yaml", "d/a.yaml", "d/e/a.yaml", "[x]/a.yaml"))
    assert IncludeSearch().find(f"{tree}/**/b") == [f"{tree}/f/b"]  # not g/b: g is a link to f


def test_every_access_of_a_search_is_noted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = list[tuple[str, str | None]]()

    def observe(module: object, name: str) -> None:
        call = getattr(module, name)

        def observed(path: str) -> object:
            noted.append((name, find_stuck_access(-1.0)))
            return call(path)

        monkeypatch.setattr(module, name, observed)

    for module, name in ((os, "scandir"), (os.path, "isdir"), (os.path, "lexists"), (os.path, "realpath")):
        observe(module, name)
    path = tree / "tunnels.yaml"
    assert match_includes(path, ("**/a.yaml", "a.yaml"), IncludeSearch())
    assert {name for name, _ in noted} == {"scandir", "isdir", "lexists", "realpath"}
    assert all(access is not None for _, access in noted), noted


def test_a_search_of_too_many_directories_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder.path, *(f"d{n}/x" for n in range(10)))
    with pytest.raises(TooManyDirectoriesError):
        IncludeSearch(max_directories=8).find(f"{folder.path}/**/*.yaml")
    monkeypatch.setattr(include_search.IncludeSearch, "find", _refuse)
    [fault] = folder.faults("version: 1\ninclude: '**/*.yml'")
    assert fault == "2:1: this searches more than 20000 directories; name them more narrowly"


def _refuse(_: IncludeSearch, __: str) -> list[str]:
    raise TooManyDirectoriesError


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock go on until the last change of every directory is long ago."""
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + 60_000_000_000)


def test_a_repeated_search_lists_only_directories_that_changed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    listed: list[str] = []
    read = include_search._read

    def count(directory: str, identity: tuple[int, int, int, int], *, is_settled: bool) -> include_search._Listing:
        listed.append(Path(directory).name)
        return read(directory, identity, is_settled=is_settled)

    monkeypatch.setattr(include_search, "_read", count)
    search = IncludeSearch()
    pattern = f"{glob.escape(str(tree))}/**/*.yaml"
    first = search.find(pattern)
    assert len(listed) == 6
    listed.clear()
    assert search.find(pattern) == first
    assert listed == []
    write(tree, "d/e/new.yaml")
    assert search.find(pattern) == sorted([*first, f"{tree}/d/e/new.yaml"])
    assert listed == ["e"]
    (tree / "d/e/new.yaml").unlink()
    assert search.find(pattern) == first
    assert listed == ["e", "e"]


def test_a_directory_whose_modification_time_is_set_back_is_listed_again(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    search, pattern = IncludeSearch(), f"{tree}/d/*.yaml"
    os.utime(tree / "d", (0, 0))  # as tar and rsync restore it
    assert search.find(pattern) == [f"{tree}/d/a.yaml"]
    write(tree, "d/b.yaml")
    os.utime(tree / "d", (0, 0))
    assert search.find(pattern) == [f"{tree}/d/a.yaml", f"{tree}/d/b.yaml"]


def test_a_directory_that_was_listed_just_after_a_change_is_listed_again(tree: Path) -> None:
    search, pattern = IncludeSearch(), f"{tree}/d/*.yaml"
    status = (tree / "d").stat()
    assert search.find(pattern) == [f"{tree}/d/a.yaml"]
    write(tree, "d/b.yaml")
    os.utime(tree / "d", ns=(status.st_atime_ns, status.st_mtime_ns))  # as if within one tick of the clock
    assert search.find(pattern) == [f"{tree}/d/a.yaml", f"{tree}/d/b.yaml"]
