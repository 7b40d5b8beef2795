"""The daemon as a service manager sees it: its messages, its signals, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.process.service_manager import Notifier
from tests.support.shell import COMMAND, COMMAND_TIMEOUT_S, CommandShell

FILE = "version: 1\ntunnels:\n  lonely: client://127.0.0.1:9/127.0.0.1:1\n"


class Manager:
    """Listens where NOTIFY_SOCKET points."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.received: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(0.1)

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> None:
        with contextlib.suppress(TimeoutError):
            self.received += self._socket.recv(65536).decode().split("\n")

    def until(self, wanted: str, count: int = 1) -> None:
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while sum(line.startswith(wanted) for line in self.received) < count:
            assert time.monotonic() < deadline, f"{wanted} was not received among {self.received}"
            self.receive()


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify") if request.param == "file" else f"@nodepass-test-{os.getpid()}")
    yield manager
    manager.close()


def test_the_service_manager_is_notified_from_start_to_end(manager: Manager, tmp_path: Path) -> None:
    shell = CommandShell(tmp_path)
    (tmp_path / "tunnels.yaml").write_text(FILE)
    shell.environ |= {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"}
    with shell.running("up", "--no-tui") as daemon:
        manager.until("READY=1")
        assert shell.run("ps").returncode == 3, "it was ready when it said so"
        manager.until("WATCHDOG=1", 3)
        manager.until("STATUS=0 of 1 tunnel up, 0 visitors")
        (tmp_path / "tunnels.yaml").write_text(FILE + "  other: client://127.0.0.1:9/127.0.0.1:1\n")
        daemon.send_signal(signal.SIGHUP)
        manager.until("RELOADING=1")
        manager.until("MONOTONIC_USEC=")
        manager.until("READY=1", 2)
        assert "other" in shell.run("ps").stdout
        daemon.send_signal(signal.SIGTERM)
        manager.until("STOPPING=1")
        assert daemon.wait(COMMAND_TIMEOUT_S) == 0
    order = [line for line in manager.received if not line.startswith(("WATCHDOG", "STATUS", "MONOTONIC"))]
    assert order == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_the_watchdog_of_another_process_is_ignored(tmp_path: Path) -> None:
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_interval_s is None
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_interval_s == 1.0
    assert Notifier({"WATCHDOG_USEC": "nonsense"}).watchdog_interval_s is None
    for address in ("", str(tmp_path / "missing"), "@missing", "/" + "x" * 200):
        Notifier({"NOTIFY_SOCKET": address}).send_ready()


def test_an_unchanged_status_is_sent_once(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for text in ("1 up", "1 up", "2 up"):
        notifier.send_status(text)
    manager.until("STATUS=", 2)
    manager.receive()
    assert manager.received == ["STATUS=1 up", "STATUS=2 up"]


def test_sighup_with_an_invalid_file_or_during_shutdown_does_no_harm(tmp_path: Path) -> None:
    shell = CommandShell(tmp_path)
    (tmp_path / "tunnels.yaml").write_text(FILE)
    with shell.running("up", "--no-tui") as daemon:
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while shell.run("ps").returncode == 4 and time.monotonic() < deadline:
            pass
        (tmp_path / "tunnels.yaml").write_text("nonsense: [")
        daemon.send_signal(signal.SIGHUP)
        while '"ok": false' not in shell.run("ps", "--json").stdout:
            assert time.monotonic() < deadline
        assert f"the last valid configuration stays in force: {tmp_path}/tunnels.yaml:2:1: " in shell.run("ps").stderr
        daemon.terminate()
        daemon.send_signal(signal.SIGHUP)
        assert daemon.wait(COMMAND_TIMEOUT_S) == 0
    assert (
        subprocess.run([*COMMAND, "ps"], check=False, capture_output=True, cwd=tmp_path, env=shell.environ).returncode
        == 4
    )
