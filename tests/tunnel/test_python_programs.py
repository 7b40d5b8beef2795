"""Child processes of Python: how they are started, and where they import from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tunnel.runtime import python_programs
from tunnel.runtime.python_programs import file_command, import_paths, module_command, python_environment

ROOT = str(Path(__file__).resolve().parents[2])
LIBRARY = str(Path(os.__file__).parent)


def test_commands_do_not_import_from_the_working_directory() -> None:
    assert module_command("tunnel.x", "1") == [sys.executable, "-P", "-m", "tunnel.x", "1"]
    assert file_command("/x.py") == [sys.executable, "-P", "/x.py"]


def test_the_program_is_added_only_where_it_precedes_the_standard_library() -> None:
    assert import_paths([], ["/scripts", ROOT, LIBRARY], "/") == [ROOT]
    assert import_paths([], ["/scripts", LIBRARY, ROOT], "/") == []


def test_entries_that_depend_on_the_working_directory_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    given = ["", ".", "relative", str(tmp_path), str(tmp_path / "link"), "/libraries", ROOT]
    assert import_paths(given, [ROOT, LIBRARY], str(tmp_path.resolve())) == [ROOT, "/libraries"]


def test_the_environment_has_no_variable_without_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [LIBRARY])
    assert python_environment({"PYTHONPATH": ".:", "A": "b"}) == {"A": "b"}
    assert python_environment({"PYTHONPATH": "/x"}) == {"PYTHONPATH": "/x"}


def test_a_removed_working_directory_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()
    assert python_programs._working_directory() == ""
