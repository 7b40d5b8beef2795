"""Processes under measurement: started, watched through /proc, and always ended, with everything they started."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tunnel.model.settings import NAMES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_ENDING_S: Final = 2.0
_STEADY_S: Final = 3.0
_OF_TESTS: Final = 21_000
_found_lately: Final[deque[int]] = deque(maxlen=3000)
_SEARCHED: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


class BenchError(Exception):
    """Something could not be measured; the message is one sentence for whoever reads the table."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process group that was started for a measurement; what it says goes to a file."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def check(self) -> None:
        """Raises BenchError with its last words if it has ended."""
        if self.process.returncode is not None:
            words = self.log.read_text(errors="replace").strip().splitlines()[-3:]
            said = f": {' / '.join(words)}" if words else ""
            raise BenchError(f"{self.name} ended with code {self.process.returncode}{said}")

    def cpu_seconds(self) -> float:
        """CPU seconds it has used, user and system, with its children, the reaped ones included."""
        return sum(_ticks(pid) for pid in _tree(self.process.pid)) / _TICKS

    def rss_bytes(self) -> int:
        """Resident bytes, with its children. Pages shared between them count for each."""
        return sum(_rss(pid) for pid in _tree(self.process.pid))

    def descriptors(self) -> int:
        """Open files, with its children."""
        return sum(_descriptors(pid) for pid in _tree(self.process.pid))


@asynccontextmanager
async def running(
    name: str,
    command: Sequence[str],
    *,
    directory: Path,
    env: Mapping[str, str] | None = None,
    terminal: int | None = None,
) -> AsyncIterator[Running]:
    """The command as a process group of its own, which is gone when the block is left, however it is left.

    ``terminal`` is the descriptor that it reads and writes; without one it reads nothing, and its words are kept.
    """
    log = directory / f"{name}.log"
    with log.open("wb") as words:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL if terminal is None else terminal,
                stdout=words if terminal is None else terminal,
                stderr=words if terminal is None else terminal,
                env=env,
                cwd=directory,
                start_new_session=True,  # Ctrl-C reaches us alone, and the whole group can be ended
            )
        except OSError as error:
            raise BenchError(f"{name} cannot be started: {error.strerror}: {command[0]}") from None
    try:
        yield Running(name, process, log)
    finally:
        await _end(process)


async def steady_rss(ends: Sequence[Running]) -> list[int]:
    """Resident bytes of each, once they have stopped moving (or after some seconds)."""
    before: list[int] = []
    deadline = time.monotonic() + _STEADY_S
    while True:
        now = [end.rss_bytes() for end in ends]
        if now == before or time.monotonic() > deadline:
            return now
        before = now
        await asyncio.sleep(0.5)


async def output_of(command: Sequence[str], *, limit_s: float) -> str:
    """What the command writes to stdout, whatever code it ends with. Raises BenchError after ``limit_s`` seconds."""
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
        _signal_group(process.pid, signal.SIGKILL)  # the deaf ones, and children whose parent left before them


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def plain_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment without the settings of tunnels: default settings are measured."""
    return {name: value for name, value in os.environ.items() if name.lower() not in NAMES} | dict(more or {})


def find(tool: str) -> str | None:
    """The path of an installed program; the directories of system programs are searched besides PATH."""
    return shutil.which(tool, path=_SEARCHED)


def listening(port: int) -> bool:
    """Whether something listens on the TCP port, found out without connecting to it."""
    wanted = f":{port:04X}"
    for table in ("net/tcp", "net/tcp6"):
        with suppress(FileNotFoundError), (_PROC / table).open() as rows:
            for row in rows:
                columns = row.split()
                if columns[1].endswith(wanted) and columns[3] == "0A":
                    return True
    return False


def free_ports(number: int) -> tuple[int, ...]:
    """Different TCP ports of 127.0.0.1 that nobody uses, not even a connection in TIME_WAIT.

    From below the ephemeral range: a port found by binding to 0 is soon somebody's source port under load. From below
    those of the tests, too, which may run beside it. What was found a short while ago is not found again: who asked for
    it may not listen there yet.
    """
    lowest_ephemeral = int((_PROC / "sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = list(range(min(10_000, lowest_ephemeral // 2), min(_OF_TESTS, lowest_ephemeral)))
    random.shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if port in _found_lately:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == number:
            _found_lately.extend(found)
            return tuple(found)
    raise BenchError(f"no {number} free ports below {min(_OF_TESTS, lowest_ephemeral)}")


def _tree(root: int) -> list[int]:
    pids = [root]
    for pid in pids:  # grows while it is walked
        for children in (_PROC / str(pid)).glob("task/*/children"):
            with suppress(OSError):
                pids += map(int, children.read_text().split())
    return pids


def _ticks(pid: int) -> int:
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0
    return sum(map(int, stat.rpartition(")")[2].split()[11:15]))  # utime stime cutime cstime; the name may hold blanks


def _rss(pid: int) -> int:
    # smaps_rollup counts pages; VmRSS lags behind by up to 32 pages a core, which is much for 1,000 connections
    try:
        rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Rss:"))


def _descriptors(pid: int) -> int:
    with suppress(OSError):
        return sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    return 0
