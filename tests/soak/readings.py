"""Resources of the two daemons, read from /proc and their API and compared with a baseline."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.soak.harness import POOL_MIN, SoakDaemon, SoakHarness

TIME_WAIT_S: Final = 65.0
"""Seconds after which the kernel has removed every connection in TIME_WAIT."""

_STATE_TIME_WAIT: Final = "06"
_STATE_CLOSE_WAIT: Final = "08"
_MIB: Final = 1 << 20
_KEPT_PIPE_DESCRIPTORS: Final = 2 * 16 + 2  # empty pipes kept for reuse, and the pipe of the event loop


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Resources of all processes of one kind together."""

    sockets: int = 0
    """without idle data connections, whose number follows the demand"""
    pipes: int = 0
    other_files: int = 0
    threads: int = 0
    rss: int = 0
    """bytes"""
    close_wait: int = 0
    tasks: int = 0
    """of the daemon's event loop; 0 if unknown"""
    idle: int = 0
    """idle data connections in its pools"""


@dataclass(frozen=True, slots=True)
class Reading:
    """Resources of both daemons at one time."""

    at: float
    processes: Mapping[str, ProcessFigures]
    """by process: ``stable``, ``unstable``, ``unstable's workers``"""
    idle: int
    """idle data connections in all pools of both daemons"""
    capacity: int
    """the capacity of all pools together"""
    active: int
    """visitors as the daemons count them"""
    up: int
    """tunnels that are up, of both daemons"""
    links: int
    """links, each counted at both ends: a pool each"""
    time_wait: int
    files: frozenset[str]


# Allowed growth over the baseline, by field of ProcessFigures, for each process of a kind.
_ALLOWED_GROWTH: Final = {
    "sockets": 2,
    "pipes": _KEPT_PIPE_DESCRIPTORS,
    "other_files": 1,
    "threads": 4,  # the event loop starts helper threads on demand, up to a limit
    "rss": 20 * _MIB,  # with what a daemon keeps of the events of seventeen tunnels: 9,000 take 6 MiB
    "close_wait": 0,
    "tasks": 2,
}


class ReadingCollector:
    """Collects readings of one harness."""

    def __init__(self, harness: SoakHarness, directory: Path) -> None:
        self._harness = harness
        self._directory = directory
        self._ports = {
            port
            for tunnel in harness.tunnels.values()
            for port in (tunnel.port, tunnel.visitor_address[1], *tunnel.target_ports)
        }

    def read(self) -> Reading | None:
        """Return a reading, or None while a daemon does not answer."""
        seen = {daemon.name: daemon.tunnels() for daemon in self._harness.daemons}
        for name, those in seen.items():
            self._harness.drop_log.note(name, those, time.monotonic())
        if not all(seen.values()):
            return None
        tunnels = [tunnel for those in seen.values() for tunnel in those.values()]
        self._ports |= {int(t["data_addr"].rpartition(":")[2]) for t in tunnels if t["data_addr"]}
        table = list(_connections())
        waiting = {inode for _, state, inode in table if state == _STATE_CLOSE_WAIT}
        try:
            processes = dict(self._process_figures(waiting, seen))
        except OSError:  # a process ended while it was read
            return None
        return Reading(
            at=time.monotonic(),
            processes=processes,
            idle=sum(tunnel["pool"]["idle"] for tunnel in tunnels),
            capacity=sum(tunnel["pool"]["capacity"] for tunnel in tunnels if tunnel["links"]),
            active=sum(tunnel["connections"]["active"] for tunnel in tunnels),
            up=sum(tunnel["state"] == "up" for tunnel in tunnels),
            links=sum(len(tunnel["links"]) for tunnel in tunnels),
            time_wait=sum(state == _STATE_TIME_WAIT and bool(ports & self._ports) for ports, state, _ in table),
            files=frozenset(str(path.relative_to(self._directory)) for path in self._directory.rglob("*")),
        )

    def _process_figures(
        self, waiting: set[str], seen: Mapping[str, Mapping[str, dict[str, dict[str, int]]]]
    ) -> Iterator[tuple[str, ProcessFigures]]:
        for daemon in self._harness.daemons:
            idle = sum(tunnel["pool"]["idle"] for tunnel in seen[daemon.name].values())
            workers = daemon.workers()
            yield daemon.name, _read_figures([daemon.process.pid], waiting, 0 if workers else idle, _tasks(daemon))
            if workers:
                yield f"{daemon.name}'s workers", _read_figures(workers, waiting, idle, 0)


def find_differences(baseline: Reading, now: Reading, *, time_wait_expired: bool) -> list[str]:
    """Return a sentence for each resource that has not returned to the baseline."""
    found = []
    for name, before in baseline.processes.items():
        after = now.processes.get(name, ProcessFigures())
        process_count = 2 if name.endswith("workers") else 1
        for what, allowed in _ALLOWED_GROWTH.items():
            was, is_ = getattr(before, what), getattr(after, what)
            if what == "pipes":
                was = min(was, process_count * 2)  # empty pipes kept for reuse are allowed for separately
            if is_ > was + process_count * allowed:
                found.append(f"{name}: {_format(what, is_)}, {_format(what, was)} before")
    if now.active:
        found.append(f"{now.active} visitors are reported, but none is connected")
    if now.up < baseline.up:
        found.append(f"{now.up} tunnels are up, {baseline.up} were before")
    if now.capacity > baseline.links * (POOL_MIN + 1):
        found.append(
            f"the pools have a capacity of {now.capacity} idle connections, at rest {baseline.links * POOL_MIN} suffice"
        )
    if now.idle > now.capacity + baseline.up * 2:
        found.append(f"the pools hold {now.idle} idle data connections with a capacity of {now.capacity}")
    if time_wait_expired and now.time_wait > baseline.time_wait + 20:
        found.append(f"{now.time_wait} connections in TIME_WAIT, {baseline.time_wait} before")
    if new := now.files - baseline.files:
        found.append(f"new files: {', '.join(sorted(new))}")
    return found


def _format(field: str, value: int) -> str:
    if field == "rss":
        return f"{value / _MIB:.1f} MiB"
    return f"{value} {field.replace('_', ' ')}"


def _read_figures(pids: Iterable[int], waiting: set[str], idle: int, tasks: int) -> ProcessFigures:
    count: collections.Counter[str] = collections.Counter()
    threads = rss = 0
    for pid in pids:
        place = Path(f"/proc/{pid}/fd")
        for name in os.listdir(place):  # noqa: PTH208  path objects would double the cost of a reading
            with contextlib.suppress(FileNotFoundError):
                link = os.readlink(place / name)  # noqa: PTH115  path objects would double the cost of a reading
                kind = link.partition(":")[0]
                count[kind if kind in {"socket", "pipe"} else "other"] += 1
                count["close_wait"] += link[8:-1] in waiting
        status = Path(f"/proc/{pid}/status").read_text()
        threads += _number(status, "Threads")
        rss += _number(status, "VmRSS") * 1024
    return ProcessFigures(
        count["socket"] - idle, count["pipe"], count["other"], threads, rss, count["close_wait"], tasks, idle
    )


def _number(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0


def _tasks(daemon: SoakDaemon) -> int:
    try:
        page = daemon.request("GET", "/metrics").decode()
    except OSError:
        return 0
    found = re.search(r"^nodepass_orch_tasks (\d+)", page, re.MULTILINE)
    return int(found[1]) if found else 0


def _connections() -> Iterator[tuple[set[int], str, str]]:
    """Yield ports, state and inode of every TCP connection in this network namespace."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), Path(f"/proc/net/{table}").open() as lines:
            next(lines, None)
            for line in lines:
                _, local, remote, state, *rest = line.split()
                yield {int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)}, state, rest[5]
