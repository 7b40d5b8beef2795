"""The recorder: from the counters of a supervisor to the file, whatever disk and clock do, and back as a report."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.history import database
from orchestrator.history import recorder as recorder_module
from orchestrator.history.database import HistoryError
from orchestrator.history.periods import Step
from orchestrator.history.recorder import TooManyCellsError, TrafficRecorder
from orchestrator.history.traffic import NO_TRAFFIC, Traffic
from tests.orchestrator.test_history import NOON
from tests.orchestrator.test_status_store import PLAIN
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.model.events import Event, EventKind
from tunnel.model.quota import Quota
from tunnel.model.snapshot import BytesView, QuotaView, Snapshot
from tunnel.model.spec import LogLevel


class Source:
    """A supervisor with counters that a test sets."""

    def __init__(self) -> None:
        self.history_hours = 400 * 24
        self.counters: dict[str, Traffic] = {"web": NO_TRAFFIC, "mail": NO_TRAFFIC}
        self.reads: list[str] = []
        self.limits: dict[str, Quota] = {}
        self.shown: dict[str, tuple[Any, str | None]] = {}

    def names(self) -> list[str]:
        return list(self.counters)

    def snapshot(self, name: str) -> Snapshot:
        self.reads.append(name)
        counted = self.counters[name]
        return replace(
            PLAIN,
            name=name,
            bytes=BytesView(from_visitors=counted.from_visitors, to_visitors=counted.to_visitors),
            connections=replace(PLAIN.connections, active=0, total=counted.visitors, failed=counted.failed),
        )

    def quotas(self) -> dict[str, Quota]:
        return self.limits

    def set_quota(self, name: str, quota: QuotaView | None, refusal: str | None) -> None:
        self.shown[name] = (quota, refusal)

    def serve(self, name: str, count: int = 1) -> None:
        self.counters[name] = self.counters[name].plus(Traffic(10 * count, 20 * count, count))


class RecorderHarness:
    """A recorder with its source, its clock and its events."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "web.history.db"
        self.source = Source()
        self.now = NOON
        self.events: list[Event] = []
        self.recorder = TrafficRecorder(self.source, self.path, self.events.append, clock=lambda: self.now)

    def serve(self, name: str = "web", count: int = 1) -> None:
        self.source.serve(name, count)
        self.recorder.mark_busy(name)

    async def flush(self) -> None:
        await self.recorder.collect()
        await self.recorder._start_flush()

    async def totals(self, step: Step = Step.TOTAL, days: int = 2) -> dict[str, int]:
        """Return the number of visitors in a report, by the name of the tunnel."""
        report = (await self.recorder.read(step, days, ())).as_json()
        return {tunnel["name"]: tunnel["total"]["visitors"] for tunnel in report["tunnels"]}

    def written(self) -> int:
        """Visitors in the file."""
        connection = sqlite3.connect(self.path)
        try:
            return int(connection.execute("SELECT COALESCE(SUM(visitors), 0) FROM traffic").fetchone()[0])
        finally:
            connection.close()

    def has_log(self) -> bool:
        """Whether SQLite has left its write-ahead log: the file was not closed."""
        return Path(f"{self.path}-wal").exists()

    def texts(self) -> list[str]:
        return [event.text for event in self.events]


@asynccontextmanager
async def hung_disk(recorder: TrafficRecorder) -> AsyncIterator[None]:
    """The thread of the file does nothing until the block ends."""
    released = threading.Event()

    def hang() -> None:
        released.wait(GUARD_S)

    recorder._calls.enqueue(hang)
    try:
        yield
    finally:
        released.set()


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RecorderHarness]:
    harness = RecorderHarness(tmp_path)
    yield harness
    with suppress(HistoryError):
        await harness.recorder.close()


async def test_the_events_of_a_start_have_no_tunnel_read_that_carried_nothing(harness: RecorderHarness) -> None:
    names = [f"t{number}" for number in range(200)]
    harness.source.counters = dict.fromkeys(names, NO_TRAFFIC)
    for name in names:
        for kind in (EventKind.STATE, EventKind.LISTEN, EventKind.LINK):
            harness.recorder.on_event(Event(ts=NOON, tunnel=name, level=LogLevel.INFO, kind=kind, text=""))
    await harness.recorder.collect()
    assert len(harness.source.reads) < 50
    harness.source.reads.clear()
    harness.source.counters["t150"] = Traffic(refused=1)
    harness.recorder.on_event(
        Event(ts=NOON, tunnel="t150", level=LogLevel.WARN, kind=EventKind.REFUSED, text="refused")
    )
    await harness.recorder.collect()
    assert "t150" in harness.source.reads


async def test_what_was_counted_is_written_in_each_interval(harness: RecorderHarness) -> None:
    running = asyncio.create_task(harness.recorder.run(interval_s=0.005))
    harness.serve(count=3)
    await wait_until_async(lambda: harness.path.exists() and (s := harness.recorder.status()) and s.last_write)
    harness.serve(count=2)
    await wait_until_async(lambda: harness.written() == 5)
    running.cancel()
    assert await harness.totals() == {"web": 5, "mail": 0}


async def test_the_end_writes_the_rest_and_closes_the_file(harness: RecorderHarness) -> None:
    harness.serve(count=7)
    await harness.recorder.close()
    assert harness.written() == 7
    assert not harness.has_log()
    assert harness.events == []


async def test_a_report_has_what_is_not_written_yet(harness: RecorderHarness) -> None:
    harness.serve()
    await harness.flush()
    harness.serve()
    assert await harness.totals() == {"web": 2, "mail": 0}
    assert harness.written() == 1


async def test_only_tunnels_that_may_have_carried_something_are_read(harness: RecorderHarness) -> None:
    harness.source.counters = dict.fromkeys((f"tunnel {number}" for number in range(300)), NO_TRAFFIC)
    await harness.recorder.collect(everything=True)
    harness.source.reads.clear()
    harness.serve("tunnel 250")
    await harness.recorder.collect()
    assert "tunnel 250" in harness.source.reads
    assert len(harness.source.reads) < 50
    assert (await harness.totals())["tunnel 250"] == 1


async def test_the_bytes_of_a_report_are_those_of_all_tunnels_in_both_directions(harness: RecorderHarness) -> None:
    harness.serve("web", 2)
    harness.serve("mail")
    assert (await harness.recorder.read(Step.DAY, 1, ())).bytes == 3 * 30


async def test_a_tunnel_that_is_removed_keeps_its_history_with_its_last_bytes(harness: RecorderHarness) -> None:
    harness.serve("mail", 2)
    await harness.flush()
    harness.source.serve("mail", 3)
    last = harness.source.snapshot("mail")
    del harness.source.counters["mail"]
    harness.recorder.on_removed("mail", last)
    assert await harness.totals() == {"web": 0, "mail": 5}
    harness.source.counters["mail"] = NO_TRAFFIC  # added again
    harness.serve("mail", 1)
    assert await harness.totals() == {"web": 0, "mail": 6}
    report = await harness.recorder.read(Step.DAY, 1, ["m*"])
    assert [(name, len(rows)) for name, _, rows in report.tunnels] == [("mail", 1)]


async def test_an_unknown_name_is_refused_and_a_removed_one_is_not(harness: RecorderHarness) -> None:
    with pytest.raises(LookupError, match="nope"):
        await harness.recorder.read(Step.DAY, 1, ["nope"])
    harness.recorder.on_removed("gone", replace(harness.source.snapshot("web"), bytes=BytesView(from_visitors=5)))
    (tunnel,) = (await harness.recorder.read(Step.HOUR, 1, ["gone"])).as_json()["tunnels"]
    assert (tunnel["present"], tunnel["total"]["in"]) == (False, 5)
    assert [row["in"] for row in tunnel["rows"]] == [5]


async def test_a_hung_disk_delays_nobody_and_is_reported_once(
    harness: RecorderHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_READ_TIMEOUT_S", 0.02)
    async with hung_disk(harness.recorder):
        running = asyncio.create_task(harness.recorder.run(interval_s=0.002))
        harness.serve(count=4)
        await wait_until_async(harness.texts)
        for _ in range(5):
            harness.serve()
            await harness.recorder.collect()
        with pytest.raises(HistoryError, match="the file does not answer in time"):
            await harness.totals()
        running.cancel()
        await harness.recorder.close(timeout_s=0.02)
        assert sum(text.startswith("traffic history: the disk does not answer") for text in harness.texts()) == 1
        assert "could not be written" in harness.texts()[-1]


async def test_a_full_disk_costs_nothing_once_there_is_room_again(
    harness: RecorderHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.serve(count=2)
    await harness.flush()
    original = database.write_rows

    def fail(*_: Any) -> None:  # noqa: ANN401  of any job
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(database, "write_rows", fail)
    for _ in range(5):
        harness.serve()
        await harness.flush()
    monkeypatch.setattr(database, "write_rows", original)
    status = harness.recorder.status()
    assert status is not None
    assert (status.failed_writes, status.pending_rows, status.lost_rows) == (5, 1, 0)
    await harness.flush()
    assert harness.written() == 7
    assert len(harness.texts()) == 2
    assert "database or disk is full; the tunnels are not affected" in harness.texts()[0]
    assert harness.texts()[1] == "the traffic history is written again"


async def test_a_damaged_file_is_reported_and_the_batch_goes_to_a_new_one(harness: RecorderHarness) -> None:
    harness.path.write_bytes(b"no database" * 1000)
    harness.serve(count=3)
    await harness.flush()
    assert harness.written() == 3
    assert "and a new file was started" in harness.texts()[0]


async def test_a_clock_that_is_set_back_is_reported_and_counting_goes_on(harness: RecorderHarness) -> None:
    harness.serve()
    await harness.flush()
    harness.now -= 2 * 3600
    harness.serve()
    await harness.flush()
    assert harness.texts() == ["the clock was set back by 7200 s; traffic is added to hours that were counted before"]
    harness.now += 2 * 3600
    assert await harness.totals() == {"web": 2, "mail": 0}


async def test_without_a_history_nothing_is_written_and_a_report_says_so(harness: RecorderHarness) -> None:
    harness.source.history_hours = 0
    harness.serve()
    await harness.flush()
    assert not harness.path.exists()
    assert harness.recorder.status() is None
    with pytest.raises(HistoryError, match="supervisor: history: 0"):
        await harness.totals()
    harness.source.history_hours = 24  # a reload: counting starts now
    harness.serve()
    assert await harness.totals() == {"web": 1, "mail": 0}


async def test_a_daemon_without_a_directory_records_nothing(tmp_path: Path) -> None:
    recorder = TrafficRecorder(Source(), None, lambda _: None)
    await recorder.collect()
    await recorder.close()
    with pytest.raises(HistoryError, match="no directory is usable"):
        await recorder.read(Step.DAY, 1, ())


async def test_a_report_is_bounded(harness: RecorderHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_CELLS", 40)
    await harness.recorder.read(Step.DAY, 20, ())
    with pytest.raises(TooManyCellsError, match="2 tunnels in 21 periods are more than one answer holds"):
        await harness.recorder.read(Step.DAY, 21, ())


async def test_a_defect_in_a_job_is_an_error_of_the_history_alone(
    harness: RecorderHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:  # noqa: ANN401  of any job
        raise KeyError("column")

    broken: Callable[..., None] = fail
    monkeypatch.setattr(database, "write_rows", broken)
    harness.serve()
    await harness.flush()
    assert harness.texts() == [
        "traffic history: 'column'; the tunnels are not affected, what is counted is written later"
    ]
