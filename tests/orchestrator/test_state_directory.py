"""Which file is meant, and where what belongs to it is stored: without a home directory too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.process import state_directory
from orchestrator.process.state_directory import (
    absolute_path,
    file_key,
    find_state_directory,
    private_directory,
    state_directories,
    usable_directories,
)

ME = os.getuid()
UNKNOWN_USER = 4_000_000_000


def test_the_state_directory_follows_the_service_manager() -> None:
    assert find_state_directory({"STATE_DIRECTORY": "/s:/t", "XDG_STATE_HOME": "/x"}, 0) == Path("/s")
    assert find_state_directory({"XDG_STATE_HOME": "/x"}, 0) == Path("/x/nodepass-orch")
    assert find_state_directory({"HOME": "/h"}, 0) == Path("/var/lib/nodepass-orch")
    assert find_state_directory({"HOME": "/h"}, 1000) == Path("/h/.local/state/nodepass-orch")


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "relative"}, {"XDG_STATE_HOME": "relative"}])
def test_a_user_without_a_home_directory_has_a_defined_place(environ: dict[str, str]) -> None:
    assert find_state_directory(environ, UNKNOWN_USER) == private_directory(UNKNOWN_USER)
    assert all(path.is_absolute() for path in state_directories(environ, UNKNOWN_USER))


def test_another_home_directory_does_not_hide_the_registered_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_directory, "_registered_home", lambda _uid: "/registered")
    assert Path("/registered/.local/state/nodepass-orch") in state_directories({"HOME": "/h"}, 1000)
    assert Path("/registered/.local/state/nodepass-orch") in state_directories({"HOME": "/h"}, 0)


def test_a_directory_that_cannot_be_created_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    candidates = [tmp_path / "file" / "below", tmp_path / "good" / "below"]
    assert list(usable_directories(candidates, ME)) == [tmp_path / "good" / "below"]
    assert (tmp_path / "good" / "below").stat().st_mode & 0o777 == 0o700


def test_a_link_that_is_pointed_elsewhere_is_the_same_file(tmp_path: Path) -> None:
    current = tmp_path / "current"
    keys = set()
    for release in ("1", "2"):
        (tmp_path / release).mkdir()
        current.unlink(missing_ok=True)
        current.symlink_to(release)
        keys.add(file_key(current / "tunnels.yaml"))
    assert len(keys) == 1


def test_dots_are_removed_as_the_kernel_follows_them(tmp_path: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "below")
    assert absolute_path(tmp_path / "real" / ".." / "t.yaml") == tmp_path / "t.yaml"
    assert absolute_path(tmp_path / "link" / ".." / "t.yaml") == tmp_path / "real" / "t.yaml"
    assert absolute_path(Path("/../../t.yaml")) == Path("/t.yaml")


def test_the_working_directory_is_the_one_that_the_shell_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    assert absolute_path(Path("t.yaml")) == tmp_path / "current" / "t.yaml"
    for wrong in ("/", "relative", "", str(tmp_path / "missing")):
        monkeypatch.setenv("PWD", wrong)
        assert absolute_path(Path("t.yaml")) == tmp_path / "release" / "t.yaml"
