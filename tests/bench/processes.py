"""Processes under measurement: started, observed through /proc, and always ended with all their children."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.model.options import OPTION_VARIABLES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_ENDING_S: Final = 2.0
_STEADY_S: Final = 3.0
_PROGRAM_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


class BenchError(Exception):
    """A measurement failed; the message is one sentence for the reader of the table."""


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process group that was started for a measurement, with its output in a file."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def check(self) -> None:
        """Raise BenchError with the last lines of output if the process has ended."""
        if self.process.returncode is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            output = f": {' / '.join(lines)}" if lines else ""
            raise BenchError(f"{self.name} ended with code {self.process.returncode}{output}")

    def cpu_seconds(self) -> float:
        """Return the CPU seconds, user and system, of the process and its children, including reaped ones."""
        return sum(_ticks(pid) for pid in _tree(self.process.pid)) / _TICKS

    def rss_bytes(self) -> int:
        """Return the resident bytes of the process and its children. Shared pages count for each process."""
        return sum(_rss(pid) for pid in _tree(self.process.pid))

    def descriptors(self) -> int:
        """Return the open files of the process and its children."""
        return sum(_descriptors(pid) for pid in _tree(self.process.pid))


@asynccontextmanager
async def run_process(
    name: str,
    command: Sequence[str],
    *,
    directory: Path,
    env: Mapping[str, str] | None = None,
    terminal: int | None = None,
) -> AsyncIterator[RunningProcess]:
    """Run the command as a process group of its own, which is ended when the block ends for any reason.

    ``terminal`` is the descriptor for input and output; without it there is no input, and the output goes to a file.
    """
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL if terminal is None else terminal,
                stdout=output if terminal is None else terminal,
                stderr=output if terminal is None else terminal,
                env=env,
                cwd=directory,
                start_new_session=True,  # Ctrl-C reaches only the benchmark, and the whole group can be ended
            )
        except OSError as error:
            raise BenchError(f"{name} cannot be started: {error.strerror}: {command[0]}") from None
    try:
        yield RunningProcess(name, process, log)
    finally:
        await _end(process)


async def steady_rss(ends: Sequence[RunningProcess]) -> list[int]:
    """Return the resident bytes of each process when they no longer change, or after a few seconds."""
    before: list[int] = []
    deadline = time.monotonic() + _STEADY_S
    while True:
        now = [end.rss_bytes() for end in ends]
        if now == before or time.monotonic() > deadline:
            return now
        before = now
        await asyncio.sleep(0.5)


async def run_and_read(command: Sequence[str], *, limit_s: float) -> str:
    """Return the output of a command, whatever its exit code. Raises BenchError after ``limit_s`` seconds."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(limit_s):
            output, _ = await process.communicate()
    except TimeoutError:
        raise BenchError(f"{Path(command[0]).name} did not end within {limit_s:.0f} s") from None
    finally:
        await _end(process)
    return output.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_S):
                await process.wait()
    finally:
        _signal_group(process.pid, signal.SIGKILL)  # processes that ignore SIGTERM, and orphaned children


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without settings of tunnels, so that default settings are measured."""
    return {name: value for name, value in os.environ.items() if name not in OPTION_VARIABLES} | dict(more or {})


def find_program(tool: str) -> str | None:
    """Return the path of an installed program; directories of system programs are searched too."""
    return shutil.which(tool, path=_PROGRAM_PATH)


def is_listening(port: int) -> bool:
    """Whether a socket listens on the TCP port, read from /proc without connecting."""
    wanted = f":{port:04X}"
    for table in ("net/tcp", "net/tcp6"):
        with suppress(FileNotFoundError), (_PROC / table).open() as rows:
            for row in rows:
                columns = row.split()
                if columns[1].endswith(wanted) and columns[3] == "0A":
                    return True
    return False


def _tree(root: int) -> list[int]:
    pids = [root]
    for pid in pids:  # the list grows while it is iterated
        for children in (_PROC / str(pid)).glob("task/*/children"):
            with suppress(OSError):
                pids += map(int, children.read_text().split())
    return pids


def _ticks(pid: int) -> int:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0
    return sum(
        map(int, stat.rpartition(")")[2].split()[11:15])
    )  # utime stime cutime cstime; the name may contain blanks


def _rss(pid: int) -> int:
    # smaps_rollup counts pages; VmRSS lags behind by up to 32 pages per core, which matters for 1,000 connections
    try:
        rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Rss:"))


def _descriptors(pid: int) -> int:
    with suppress(OSError):
        return sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    return 0
