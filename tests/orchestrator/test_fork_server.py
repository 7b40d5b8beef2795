"""The fork server of the tests: what its processes share works in a new interpreter, too, and it leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fork_server import PRELOADED, can_fork
from tests.support.scale import GUARD_S
from tests.support.shell import ROOT
from tests.support.waiting import wait_until

_OWNER = """
import os, signal
from pathlib import Path
from tests.support.fork_server import fork_server, run_forked
assert run_forked(["--version"], cwd=Path.cwd(), env=dict(os.environ), timeout_s=60).returncode == 0
print(fork_server().pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("module", sorted({name for names in PRELOADED.values() for name in names}))
def test_a_preloaded_module_can_be_the_first_import_and_gives_no_warning(module: str) -> None:
    """A fork has imported all of them in one order, before its own filters for warnings apply."""
    environ = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=2 * GUARD_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_server_ends_when_its_test_process_is_killed() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, cwd=ROOT, env=environ) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert _is_running(pid)
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not _is_running(pid), what="the fork server ends")


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # init may not have reaped it


def test_a_variable_that_is_read_at_the_start_needs_a_new_interpreter_even_if_the_test_process_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert can_fork(dict(os.environ))
    monkeypatch.setenv("PYTHONDEVMODE", "1")
    assert not can_fork(dict(os.environ))
