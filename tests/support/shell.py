"""Runs the command as its users do: in a process, with exit code, stdout and stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.fork_server import can_fork, run_forked
from tests.support.scale import GUARD_S

if TYPE_CHECKING:
    from orchestrator.status.json_types import StatusJson

ROOT = Path(__file__).parents[2]
COMMAND_TIMEOUT_S = 2 * GUARD_S
COMMAND = [sys.executable, "-m", "orchestrator.cli"]


class CommandShell:
    """Runs commands in a directory of their own, with their own runtime directory; no output may hold a traceback."""

    def __init__(self, path: Path) -> None:
        self.path = path
        runtime = path / "run"
        runtime.mkdir(mode=0o700)
        self.environ = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(runtime),
            "XDG_STATE_HOME": str(path / "state"),  # commands without a file look there for the only daemon
            "PYTHONWARNINGS": "error",
        }

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, without input; the process is forked where that makes no difference."""
        env = self.environ | environ
        if can_fork(env):
            done = run_forked(arguments, cwd=self.path, env=env, timeout_s=COMMAND_TIMEOUT_S)
        else:
            done = subprocess.run(
                [*COMMAND, *arguments],
                check=False,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                cwd=self.path,
                env=env,
                stdin=subprocess.DEVNULL,
            )
        assert "Traceback" not in done.stderr
        assert "Warning" not in done.stderr
        return done

    @contextmanager
    def running(self, *arguments: str, command: Sequence[str] = COMMAND) -> Iterator[subprocess.Popen[bytes]]:
        log = self.path / "log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, *arguments], stdout=subprocess.PIPE, stderr=stderr, cwd=self.path, env=self.environ
            )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
            assert "Traceback" not in self.log()

    def log(self) -> str:
        return (self.path / "log").read_text()

    def wait_all_up(self) -> StatusJson:
        """Wait until every tunnel is up. Returns the status."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while (done := self.run("ps", "--json")).returncode != 0:
            assert time.monotonic() < deadline, f"not up in time: {done.stdout} {done.stderr} {self.log()}"
        status: StatusJson = json.loads(done.stdout)
        return status
