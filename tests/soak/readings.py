"""What the two daemons hold: read from /proc and their API, and judged against how it was before."""

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

from tests.soak.house import POOL_MIN, End, SoakHarness

KERNEL: Final = 65.0
"""Seconds after which the kernel has forgotten every connection in TIME_WAIT."""

_TIME_WAIT: Final = "06"
_CLOSE_WAIT: Final = "08"
_MIB: Final = 1 << 20
_PIPES: Final = 2 * 16 + 2  # descriptors of the empty pipes that a process keeps, and a pair of its own


@dataclass(frozen=True, slots=True)
class Holding:
    """Processes of one kind together."""

    sockets: int = 0
    """without the idle data connections, which come and go with demand"""
    pipes: int = 0
    other_files: int = 0
    threads: int = 0
    rss: int = 0
    """bytes"""
    close_wait: int = 0
    tasks: int = 0
    """of the daemon's event loop; 0 where there is no telling"""
    idle: int = 0
    """data connections in its pools"""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at everything."""

    at: float
    holdings: Mapping[str, Holding]
    """by process: ``lasting``, ``mortal``, ``mortal's workers``"""
    idle: int
    """data connections in all pools of both daemons"""
    capacity: int
    """and how many they want"""
    active: int
    """visitors, as the daemons count them"""
    up: int
    """tunnels, of both daemons"""
    time_wait: int
    files: frozenset[str]


# What may be there beyond the baseline, by field of Holding: for each process of that kind.
_ALLOWED: Final = {
    "sockets": 2,
    "pipes": _PIPES,
    "other_files": 1,
    "threads": 4,  # helpers of the event loop are begun when they are first needed, up to a limit
    "rss": 16 * _MIB,
    "close_wait": 0,
    "tasks": 2,
}


class Reader:
    """Takes readings of one house."""

    def __init__(self, house: SoakHarness, directory: Path) -> None:
        self._house = house
        self._directory = directory
        self._ports = {
            port for tunnel in house.tunnels.values() for port in (tunnel.port, tunnel.door[1], tunnel.target_port)
        }

    def read(self) -> Reading | None:
        """A look; None while a daemon does not answer."""
        seen = {end.name: end.tunnels() for end in self._house.ends}
        if not all(seen.values()):
            return None
        tunnels = [tunnel for those in seen.values() for tunnel in those.values()]
        self._ports |= {int(t["data_addr"].rpartition(":")[2]) for t in tunnels if t["data_addr"]}
        table = list(_connections())
        waiting = {inode for _, state, inode in table if state == _CLOSE_WAIT}
        try:
            holdings = dict(self._holdings(waiting, seen))
        except OSError:  # a process that ended meanwhile
            return None
        return Reading(
            at=time.monotonic(),
            holdings=holdings,
            idle=sum(tunnel["pool"]["idle"] for tunnel in tunnels),
            capacity=sum(tunnel["pool"]["capacity"] for tunnel in tunnels),
            active=sum(tunnel["connections"]["active"] for tunnel in tunnels),
            up=sum(tunnel["state"] == "up" for tunnel in tunnels),
            time_wait=sum(state == _TIME_WAIT and bool(ports & self._ports) for ports, state, _ in table),
            files=frozenset(str(path.relative_to(self._directory)) for path in self._directory.rglob("*")),
        )

    def _holdings(
        self, waiting: set[str], seen: Mapping[str, Mapping[str, dict[str, dict[str, int]]]]
    ) -> Iterator[tuple[str, Holding]]:
        for end in self._house.ends:
            idle = sum(tunnel["pool"]["idle"] for tunnel in seen[end.name].values())
            workers = end.workers()
            yield end.name, _hold([end.daemon.pid], waiting, 0 if workers else idle, _tasks(end))
            if workers:
                yield f"{end.name}'s workers", _hold(workers, waiting, idle, 0)


def judge(baseline: Reading, now: Reading, *, kernel_forgot: bool) -> list[str]:
    """What has not returned to the baseline, in words."""
    found = []
    for name, before in baseline.holdings.items():
        after = now.holdings.get(name, Holding())
        many = 2 if name.endswith("workers") else 1
        for what, allowed in _ALLOWED.items():
            was, is_ = getattr(before, what), getattr(after, what)
            if what == "pipes":
                was = min(was, many * 2)  # the empty ones that are kept have their own limit
            if is_ > was + many * allowed:
                found.append(f"{name}: {_words(what, is_)}, {_words(what, was)} before")
    if now.active:
        found.append(f"visitors are said to be there: {now.active}, and nobody is")
    if now.up < baseline.up:
        found.append(f"{now.up} tunnels are up, {baseline.up} were before")
    if now.capacity > baseline.up * (POOL_MIN + 1):
        found.append(f"the pools want {now.capacity} idle data connections, at rest {baseline.up * POOL_MIN} would do")
    if now.idle > now.capacity + baseline.up * 2:
        found.append(f"the pools hold {now.idle} idle data connections and want {now.capacity}")
    if kernel_forgot and now.time_wait > baseline.time_wait + 20:
        found.append(f"{now.time_wait} connections in TIME_WAIT, {baseline.time_wait} before")
    if new := now.files - baseline.files:
        found.append(f"files that were not there: {', '.join(sorted(new))}")
    return found


def _words(field: str, value: int) -> str:
    if field == "rss":
        return f"{value / _MIB:.1f} MiB"
    return f"{value} {field.replace('_', ' ')}"


def _hold(pids: Iterable[int], waiting: set[str], idle: int, tasks: int) -> Holding:
    count: collections.Counter[str] = collections.Counter()
    threads = rss = 0
    for pid in pids:
        place = Path(f"/proc/{pid}/fd")
        for name in os.listdir(place):  # noqa: PTH208  a path object for each is the dearer half of this look
            with contextlib.suppress(FileNotFoundError):
                link = os.readlink(place / name)  # noqa: PTH115  as above
                kind = link.partition(":")[0]
                count[kind if kind in {"socket", "pipe"} else "other"] += 1
                count["close_wait"] += link[8:-1] in waiting
        status = Path(f"/proc/{pid}/status").read_text()
        threads += _number(status, "Threads")
        rss += _number(status, "VmRSS") * 1024
    return Holding(
        count["socket"] - idle, count["pipe"], count["other"], threads, rss, count["close_wait"], tasks, idle
    )


def _number(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0


def _tasks(end: End) -> int:
    try:
        page = end.ask("GET", "/metrics").decode()
    except OSError:
        return 0
    found = re.search(r"^nodepass_orch_tasks (\d+)", page, re.MULTILINE)
    return int(found[1]) if found else 0


def _connections() -> Iterator[tuple[set[int], str, str]]:
    """Ports, state and inode of every TCP connection of this network namespace."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), Path(f"/proc/net/{table}").open() as lines:
            next(lines, None)
            for line in lines:
                _, local, remote, state, *rest = line.split()
                yield {int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)}, state, rest[5]
