"""The client of the local API: it waits for a busy daemon, and knows when the process has ended."""

from __future__ import annotations

import contextlib
import socket as sockets
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import ApiClient, NoDaemonError
from orchestrator.process.running_daemon import RunningDaemon
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"pid": 1}'


@contextlib.contextmanager
def listening_with_full_backlog(path: Path) -> Iterator[sockets.socket]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(sockets.socket(sockets.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(sockets.socket(sockets.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(str(path))
        yield listener


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    with listening_with_full_backlog(tmp_path / "s") as listener:

        def answer_all() -> None:
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(0.05)
                        with contextlib.suppress(TimeoutError):
                            connection.recv(1000)
                            connection.sendall(ANSWER)

        timer = threading.Timer(0.1, answer_all)
        timer.start()
        assert ApiClient(tmp_path / "s", GUARD_S).status()["pid"] == 1
        listener.shutdown(sockets.SHUT_RDWR)
        timer.join()


def test_a_backlog_that_stays_full_is_named(tmp_path: Path) -> None:
    with (
        listening_with_full_backlog(tmp_path / "s"),
        pytest.raises(NoDaemonError, match="does not answer in time: too many connections wait for it"),
    ):
        ApiClient(tmp_path / "s", 0.1).status()


def test_a_daemon_has_ended_when_its_process_has_and_not_before(tmp_path: Path) -> None:
    program = f"""
        import os, socket, sys
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[1])
        listener.listen()
        print("listening", flush=True)
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall({ANSWER!r})
        listener.close()
        os.unlink(sys.argv[1])
        sys.stdin.read()
    """
    socket = tmp_path / "s"
    command = [sys.executable, "-c", textwrap.dedent(program), str(socket)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        client = ApiClient(socket, GUARD_S)
        client.status()
        wait_until(lambda: not socket.exists())
        assert not client.wait_until_ended(0.1)
        process.communicate()
        assert client.wait_until_ended(GUARD_S)


def test_a_daemon_that_runs_is_never_answered_with_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.client._SOCKET_TIMEOUT_S", 0.1)
    daemon = RunningDaemon(7, Path("/t.yaml"), tmp_path / "elsewhere")
    client = ApiClient(tmp_path / "s", GUARD_S, locate=lambda: daemon)
    with pytest.raises(NoDaemonError) as raised:
        client.status()
    assert "the daemon (process 7) of /t.yaml runs, but nothing listens at its socket" in str(raised.value)
    assert "kill 7" in str(raised.value)
    assert "nodepass-orch up" not in str(raised.value)


def test_a_daemon_of_another_user_is_named(tmp_path: Path) -> None:
    client = ApiClient(tmp_path / "s", locate=lambda: RunningDaemon(7, Path("/t.yaml"), is_foreign=True))
    with pytest.raises(NoDaemonError, match=r"process 7.* belongs to another user"):
        client.status()


def test_without_a_visible_process_the_socket_and_the_lock_are_watched(tmp_path: Path) -> None:
    answers = iter([RunningDaemon(), None])
    client = ApiClient(tmp_path / "s", locate=lambda: next(answers))
    assert client.wait_until_ended(GUARD_S)
