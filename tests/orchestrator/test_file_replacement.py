"""The writer of small files that others may read at the same time."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.process.file_replacement import replace_file
from tunnel.model.files import find_stuck_access


def test_a_replaced_symbolic_link_stays_a_link_and_a_failure_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "there" / "real.yaml"
    target.parent.mkdir()
    target.write_text("old")
    link = tmp_path / "tunnels.yaml"
    link.symlink_to("there/real.yaml")
    replace_file(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("orchestrator.process.file_replacement.os.fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        replace_file(link, b"newer")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["real.yaml"]


def test_the_write_of_a_file_is_noted_as_an_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, found = tmp_path / "tunnels.yaml", list[str | None]()
    file.write_text("old")
    monkeypatch.setattr(
        "orchestrator.process.file_replacement.os.fsync", lambda _: found.append(find_stuck_access(-1.0))
    )
    replace_file(file, b"new")
    assert found == [str(file)]


def test_a_new_file_is_for_its_user_alone_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "columns.yaml"
    replace_file(file, b"first")
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    replace_file(file, b"second")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"second", 0o640)
