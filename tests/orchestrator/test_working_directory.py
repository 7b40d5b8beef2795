"""Child processes import nothing from the directory in which a command is started, whatever lies there."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.commands import background
from tests.support.shell import COMMAND_TIMEOUT_S, ROOT, CommandShell
from tests.support.waiting import wait_until
from tui import launch
from tunnel.runtime.python_programs import module_command

MODULES = ("aiohttp", "asyncio", "cryptography", "orchestrator", "queue", "ssl", "textual", "tunnel", "tui", "yaml")
COMMAND = [sys.executable, "-P", "-m", "tui.cli"]  # the console script does not import from the directory either
FILE = """version: 1
supervisor: {workers: 1}
tunnels:
  with-certificate: server://127.0.0.1:0/127.0.0.1:9?mode=forward
"""


class HostileDirectory(CommandShell):
    """A directory with modules that leave a mark when they are imported, and an empty entry in PYTHONPATH."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.mark = path / "executed"
        for name in MODULES:
            text = f"open({str(self.mark)!r}, 'a').write({name!r} + '\\n')\nraise SystemExit('executed')\n"
            (path / f"{name}.py").write_text(text)
        (path / "tunnels.yaml").write_text(FILE)
        self.environ |= {"XDG_STATE_HOME": str(path / "state"), "PYTHONSAFEPATH": ""}

    def run_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S,
            cwd=self.path, env=self.environ, stdin=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> HostileDirectory:
    return HostileDirectory(tmp_path)


def test_a_daemon_in_the_background_imports_nothing_from_there(hostile: HostileDirectory) -> None:
    done = hostile.run_command("up", "-d")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    try:
        wait_until(lambda: "waiting" in hostile.run_command("ps").stdout, what="worker and certificate work")
    finally:
        hostile.run_command("down", "--now", "--wait")
    assert not hostile.mark.exists()


@contextlib.contextmanager
def hostile_environment(hostile: HostileDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.chdir(hostile.path)
        patch.setenv("PYTHONPATH", f":{ROOT}:.:{hostile.path}")
        yield


def test_the_demonstration_in_the_background_imports_nothing_from_there(
    hostile: HostileDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile_environment(hostile, monkeypatch), background.run_demo() as demo:
        assert demo.socket.is_socket()
    assert demo.exit_code == 0
    assert not hostile.mark.exists()


def test_the_dashboard_for_browsers_imports_nothing_from_there(
    hostile: HostileDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile_environment(hostile, monkeypatch):
        command = launch._shell_command(module_command("tui.cli", "top", "--socket", "/nowhere.sock"))
        done = subprocess.run(["/bin/sh", "-c", command], check=False, capture_output=True, text=True)
    assert (done.returncode, "no daemon answers at /nowhere.sock" in done.stderr) == (4, True), done.stderr
    assert not hostile.mark.exists()
