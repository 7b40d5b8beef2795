"""One daemon for each file, whatever differs between the environments in which it is started."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.process import announcement, daemon_lock
from orchestrator.process.announcement import Announcement, query_announcement
from orchestrator.process.daemon_lock import (
    DaemonRunningError,
    find_daemon,
    find_daemon_at,
    hold_daemon_lock,
    hold_socket_lock,
    list_daemons,
)
from orchestrator.process.running_daemon import RunningDaemon
from tests.support.shell import ROOT

ME = os.getuid()
HOLDER = """
    import os, sys, time
    from pathlib import Path
    from orchestrator.process.daemon_lock import hold_daemon_lock
    with hold_daemon_lock(Path(sys.argv[1]), os.environ, os.getuid()) as lock:
        lock.record_socket(Path("/its.sock"))
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "tunnels.yaml"
    file.write_text("version: 1\n")
    return file


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_lock, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(announcement, "_QUERY_TIMEOUT_S", 0.05)


@contextlib.contextmanager
def held_elsewhere(file: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock of a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_holder_of_a_lock_is_known_with_its_process_and_socket(file: Path, environ: dict[str, str]) -> None:
    assert find_daemon(file, environ, ME) is None
    with held_elsewhere(file, environ) as process:
        expected = RunningDaemon(process.pid, file, Path("/its.sock"))
        assert find_daemon(file, environ, ME) == expected
        assert list_daemons(environ, ME) == [expected]
        assert find_daemon_at(Path("/its.sock"), environ, ME) == expected
        assert find_daemon_at(Path("/other.sock"), environ, ME) is None
        why = f"already running .* \\(process {process.pid}\\) at /its.sock; end it with: nodepass-orch down -f"
        with pytest.raises(DaemonRunningError, match=why), hold_daemon_lock(file, environ, ME):
            pass  # pragma: no cover
    assert find_daemon(file, environ, ME) is None, "the kernel has released the lock of the killed process"
    with hold_daemon_lock(file, environ, ME):
        pass
    assert list((Path(environ["XDG_STATE_HOME"]) / "nodepass-orch").iterdir()) == []


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_RUNTIME_DIR", "HOME", "STATE_DIRECTORY"])
def test_no_variable_allows_a_second_daemon(file: Path, environ: dict[str, str], tmp_path: Path, variable: str) -> None:
    with held_elsewhere(file, environ) as process:
        other = environ | {variable: str(tmp_path / "other")}
        found = find_daemon(file, other, ME)
        assert found is not None
        assert found.pid == process.pid
        with pytest.raises(DaemonRunningError, match=str(process.pid)), hold_daemon_lock(file, other, ME):
            pass  # pragma: no cover


def test_a_deleted_lock_file_allows_no_second_daemon(file: Path, environ: dict[str, str]) -> None:
    with held_elsewhere(file, environ) as process:
        for lock in (Path(environ["XDG_STATE_HOME"]) / "nodepass-orch").iterdir():
            lock.unlink()
        with pytest.raises(DaemonRunningError, match=str(process.pid)), hold_daemon_lock(file, environ, ME):
            pass  # pragma: no cover


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_another_name_of_the_file_allows_no_second_daemon(
    file: Path, environ: dict[str, str], tmp_path: Path, link: str
) -> None:
    alias = tmp_path / "alias.yaml"
    alias.symlink_to(file) if link == "symbolic" else alias.hardlink_to(file)
    with held_elsewhere(file, environ):
        with pytest.raises(DaemonRunningError, match=f"alias.yaml as {file}"), hold_daemon_lock(alias, environ, ME):
            pass  # pragma: no cover
        found = find_daemon(alias, environ, ME)
        assert found is not None
        assert found.socket == Path("/its.sock")


def test_daemons_of_different_files_run_together_but_share_no_socket(
    file: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    socket = tmp_path / "np.sock"
    with (
        hold_daemon_lock(file, environ, ME),
        hold_daemon_lock(tmp_path / "other.yaml", environ, ME),
        hold_socket_lock(socket, environ, ME),
        pytest.raises(DaemonRunningError, match=f"another daemon uses {socket}"),
        hold_socket_lock(socket, environ, ME),
    ):
        pass  # pragma: no cover


def test_without_a_directory_the_announcement_prevents_a_second_daemon(
    monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "blocked").write_text("")
    monkeypatch.setattr(daemon_lock, "state_directories", lambda _environ, _uid: [tmp_path / "blocked" / "x"])
    with (
        hold_daemon_lock(file, {}, ME),
        pytest.raises(DaemonRunningError, match=f"already running .* \\(process {os.getpid()}\\)"),
        hold_daemon_lock(file, {}, ME),
    ):
        pass  # pragma: no cover


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b"\xff", b'{"pid": "x", "file": 1, "socket": null}'])
def test_a_record_that_cannot_be_read_tells_nothing(record: bytes) -> None:
    assert RunningDaemon.from_bytes(record) == RunningDaemon()


async def test_an_announcement_answers_with_the_record(file: Path) -> None:
    record = RunningDaemon(1, file, Path("/its.sock"))
    assert query_announcement(file) is None
    with Announcement(file) as own:
        own.answer = record.as_bytes()
        with own.answering(), Announcement(file) as second:
            assert not second.is_unique
            found = await asyncio.to_thread(query_announcement, file)
    assert found == RunningDaemon(os.getpid(), file, Path("/its.sock")), "the process id is that of the kernel"
    assert query_announcement(file) is None


def test_what_another_user_announces_is_not_used_but_prevents_a_second_daemon(
    file: Path, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_elsewhere(file, environ) as process:
        monkeypatch.setattr(announcement, "_trusted_users", lambda _file: {ME + 1})
        other = environ | {"XDG_STATE_HOME": str(tmp_path / "other")}
        assert find_daemon(file, other, ME) == RunningDaemon(process.pid, file, is_foreign=True)
        with (
            pytest.raises(DaemonRunningError, match=f"another user .*: kill {process.pid}"),
            hold_daemon_lock(file, other, ME),
        ):
            pass  # pragma: no cover


async def test_a_daemon_whose_record_did_not_fit_the_disk_is_found_with_its_socket(
    file: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)
    monkeypatch.setattr(announcement, "_QUERY_TIMEOUT_S", 5.0)
    with hold_daemon_lock(file, environ, ME) as lock, lock.announcement.answering():
        lock.record_socket(Path("/its.sock"))
        found = await asyncio.to_thread(find_daemon, file, environ, ME)
    assert found == RunningDaemon(os.getpid(), file, Path("/its.sock"))
