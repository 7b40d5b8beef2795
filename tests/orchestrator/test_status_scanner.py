"""Which tunnels a scan reads, and when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.status.scanner import MIN_QUIET, QUIET_ROUND_S, ScanSchedule, StatusScanner
from orchestrator.status.store import snapshot_store
from tests.orchestrator.test_status_store import named
from tunnel.model.snapshot import ConnectionsView

if TYPE_CHECKING:
    from collections.abc import Collection

    from tunnel.model.snapshot import Snapshot

INTERVAL_S = 0.25


def test_quiet_tunnels_are_read_in_turn_and_marked_ones_always() -> None:
    names = [f"t{number}" for number in range(500)]
    schedule = ScanSchedule[str]()
    assert schedule.due(names, (), INTERVAL_S) == names, "the store knows none of them"
    rounds = []
    for _ in range(int(QUIET_ROUND_S / INTERVAL_S)):
        schedule.mark("t7")
        rounds.append(schedule.due(names, names, INTERVAL_S))
    assert all("t7" in due for due in rounds)
    assert {name for due in rounds for name in due} == set(names)
    assert max(map(len, rounds)) <= MIN_QUIET + 1
    schedule.mark("gone")
    due = schedule.due(names, names, INTERVAL_S)
    assert due == [name for name in names if name in due], "in their order, and only those there are"


def test_a_few_tunnels_are_all_read_by_every_scan() -> None:
    names = [f"t{number}" for number in range(30)]
    schedule = ScanSchedule[str]()
    assert [schedule.due(names, names, INTERVAL_S) for _ in range(3)] == [names] * 3


def test_after_a_long_silence_all_are_read() -> None:
    names = [f"t{number}" for number in range(500)]
    assert ScanSchedule[str]().due(names, names, QUIET_ROUND_S) == names


class Tunnels:
    """Tunnels that note when they are read."""

    def __init__(self, *names: str) -> None:
        self.present = {name: named(name) for name in names}
        self.read: list[str] = []

    def names(self) -> Collection[str]:
        return self.present.keys()

    def facts(self, name: str) -> Snapshot | None:
        self.read.append(name)
        return self.present.get(name)

    def build_snapshot(self, name: str, facts: Snapshot) -> Snapshot:
        assert facts.name == name
        return facts


async def test_a_scan_reads_busy_tunnels_every_time() -> None:
    tunnels = Tunnels(*(f"t{number}" for number in range(200)))
    tunnels.present["t199"] = replace(tunnels.present["t199"], connections=ConnectionsView(active=1, limit=9))
    scanner = StatusScanner(store := snapshot_store(), tunnels)
    await scanner.scan()
    assert store.snapshots() == tuple(tunnels.present.values())
    await scanner.scan()
    for _ in range(3):
        tunnels.read.clear()
        await scanner.scan()
        assert "t199" in tunnels.read
        assert len(tunnels.read) < 100


async def test_what_is_gone_leaves_the_store_with_the_scan() -> None:
    tunnels = Tunnels("a", "b")
    scanner = StatusScanner(store := snapshot_store(), tunnels)
    await scanner.scan_all()
    del tunnels.present["a"]
    await scanner.scan()
    assert list(store) == ["b"]


async def test_callers_that_come_while_a_scan_runs_share_the_next_one() -> None:
    tunnels = Tunnels(*(f"t{number}" for number in range(30)))
    scanner = StatusScanner(snapshot_store(), tunnels)
    await asyncio.gather(scanner.scan(), scanner.scan(), scanner.scan())
    assert len(tunnels.read) == 30
    running = asyncio.create_task(scanner.scan())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tunnels.read.clear()
    tunnels.present["t0"] = named("t0", rtt_ms=9.0)
    await asyncio.gather(scanner.scan(), scanner.scan())
    assert running.done()
    assert tunnels.read.count("t0") == 1, "it changed after the first scan had passed it"
