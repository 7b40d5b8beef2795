"""Quotas: what counts in which period, when a user is warned, and when visitors are refused and served again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.faults import ConfigError
from orchestrator.config.load import load
from orchestrator.history.periods import month_start
from orchestrator.history.quota import KEPT_HOURS, QuotaAccount, QuotaLevel, first_hour
from orchestrator.history.traffic import hour_of
from tests.orchestrator.test_history import HOUR, NOON
from tests.orchestrator.test_history_recorder import RecorderHarness, hung_disk
from tests.support.waiting import wait_until_async
from tunnel.model.events import EventKind
from tunnel.model.quota import Quota
from tunnel.model.spec import LogLevel

DAY_S = 86400.0
MONTHLY = Quota(1000)
WEEKLY = Quota(1000, 7)
END_OF_MONTH = month_start(NOON, 1)


# --- the account ------------------------------------------------------------------------------------------------------


def test_a_monthly_quota_counts_from_the_first_of_the_month() -> None:
    first = hour_of(month_start(NOON))
    account = QuotaAccount(MONTHLY, {first - 1: 5000, first: 10, HOUR: 20, HOUR + 1: 7000})
    assert account.used(NOON) == 30
    assert account.until(NOON) == END_OF_MONTH
    assert account.used(END_OF_MONTH + 1) == 0


def test_rolling_days_count_whole_hours_back() -> None:
    oldest = HOUR - 7 * 24 + 1
    account = QuotaAccount(WEEKLY, {oldest - 1: 5000, oldest: 10, HOUR: 20})
    assert account.used(NOON) == 30
    assert account.until(NOON) is None
    assert account.refusal(NOON) is None


def test_rolling_days_have_room_again_when_the_oldest_hours_leave() -> None:
    account = QuotaAccount(WEEKLY, {HOUR - 100: 300, HOUR - 50: 300, HOUR: 600})
    until = account.until(NOON)
    assert until == (HOUR - 100 + 7 * 24) * 3600
    assert account.refusal(until - 1) is not None
    assert account.refusal(until) is None


@given(
    hours=st.dictionaries(st.integers(HOUR - 400, HOUR + 400), st.integers(0, 100), max_size=30),
    moves=st.lists(st.integers(-300, 300), max_size=12),
    days=st.none() | st.integers(1, 10),
)
def test_the_sum_is_that_of_the_period_however_the_clock_moves(
    hours: dict[int, int], moves: list[int], days: int | None
) -> None:
    quota, now = Quota(1000, days), NOON
    account, everything = QuotaAccount(quota, hours), dict(hours)
    latest_first = 0
    for move in moves:
        now += move * 3600
        hour = hour_of(now)
        account.add(hour, 3)
        everything[hour] = everything.get(hour, 0) + 3
        first = first_hour(quota, now)
        if first <= latest_first - KEPT_HOURS:  # hours far before a period are forgotten
            account, latest_first = QuotaAccount(quota, everything), first
        latest_first = max(latest_first, first)
        assert account.used(now) == sum(count for h, count in everything.items() if first <= h <= hour)


def test_each_threshold_is_passed_once() -> None:
    account = QuotaAccount(WEEKLY, {})
    levels = []
    for _ in range(12):
        account.add(HOUR, 100)
        levels.append(account.advance_level(NOON)[1])
    assert levels == [QuotaLevel.FREE] * 7 + [QuotaLevel.NEARLY_USED] * 2 + [QuotaLevel.USED_UP] * 3


def test_a_warning_is_not_repeated_while_the_part_moves_around_its_threshold() -> None:
    account = QuotaAccount(WEEKLY, {HOUR - 167: 30, HOUR: 790})
    account.advance_level(NOON)
    assert account.advance_level(NOON + 3600) == (QuotaLevel.NEARLY_USED, QuotaLevel.NEARLY_USED)  # 79 %
    assert account.advance_level(NOON + 8 * DAY_S)[1] is QuotaLevel.FREE


def test_what_was_recorded_before_the_start_is_no_news_except_a_refusal() -> None:
    account = QuotaAccount(WEEKLY, {HOUR: 900})
    assert account.advance_level(NOON) == (QuotaLevel.NEARLY_USED, QuotaLevel.NEARLY_USED)
    account = QuotaAccount(WEEKLY, {HOUR: 1000})
    assert account.advance_level(NOON) == (QuotaLevel.ALMOST_USED, QuotaLevel.USED_UP)


# --- the recorder -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[RecorderHarness]:
    harness = RecorderHarness(tmp_path)
    harness.source.limits = {"web": MONTHLY}
    yield harness
    await harness.recorder.close()


def quota_texts(harness: RecorderHarness) -> list[tuple[LogLevel, str]]:
    return [(event.level, event.text) for event in harness.events if event.kind is EventKind.QUOTA]


async def settle(harness: RecorderHarness) -> None:
    """Check the quotas, and wait until those that are new have been read."""
    await harness.recorder.check_quotas()
    flushing = harness.recorder._flushing
    if flushing is not None:
        await flushing
    await harness.recorder.check_quotas()


async def test_warnings_come_at_80_and_95_percent_and_then_visitors_are_refused(harness: RecorderHarness) -> None:
    await settle(harness)
    assert harness.source.shown["web"][0].used == 0
    for count in (26, 1, 4, 1, 1, 1, 5):  # each visitor has 30 bytes
        harness.serve(count=count)
        await harness.recorder.check_quotas()
    until = datetime.fromtimestamp(END_OF_MONTH).astimezone().isoformat()
    assert quota_texts(harness) == [
        (LogLevel.WARN, "81 % of the quota 1kB/month are used, 810 B"),
        (LogLevel.WARN, "96 % of the quota 1kB/month are used, 960 B"),
        (
            LogLevel.WARN,
            f"the quota 1kB/month is used up until {until}: new visitors are refused, present ones may finish",
        ),
    ]
    view, refusal = harness.source.shown["web"]
    assert (view.used, view.limit, view.until) == (1170, 1000, until)
    assert refusal == f"the quota 1kB/month is used up until {until}"
    assert {event.tunnel for event in harness.events} == {"web"}


async def test_the_next_month_is_served_again(harness: RecorderHarness) -> None:
    await settle(harness)
    harness.serve(count=50)
    await harness.recorder.check_quotas()
    assert harness.source.shown["web"][1] is not None
    harness.now = END_OF_MONTH + 1
    await harness.recorder.check_quotas()
    view, refusal = harness.source.shown["web"]
    assert (view.used, refusal) == (0, None)
    assert quota_texts(harness)[-1] == (
        LogLevel.INFO, "the quota has room again: 0 % of the quota 1kB/month are used, 0 B",
    )  # fmt: skip


async def test_what_was_used_survives_a_restart_of_the_daemon(harness: RecorderHarness, tmp_path: Path) -> None:
    await settle(harness)
    harness.serve(count=40)
    await harness.recorder.check_quotas()
    await harness.recorder.close()
    later = RecorderHarness(tmp_path)
    later.source.limits = {"web": MONTHLY}
    later.serve(count=1)  # before the history is read
    await settle(later)
    assert later.source.shown["web"][0].used == 41 * 30
    assert later.source.shown["web"][1] is not None
    assert len(quota_texts(later)) == 1
    await later.recorder.close()


async def test_a_quota_changes_live(harness: RecorderHarness) -> None:
    await settle(harness)
    harness.serve(count=40)
    await harness.recorder.check_quotas()
    harness.source.limits = {"web": Quota(5000), "mail": WEEKLY}
    await settle(harness)
    view, refusal = harness.source.shown["web"]
    assert (view.used, view.limit, refusal) == (1200, 5000, None)
    assert quota_texts(harness)[-1][1].startswith("the quota has room again: 24 % of the quota 5kB/month")
    assert harness.source.shown["mail"][0].used == 0
    harness.source.limits = {}
    await harness.recorder.check_quotas()
    assert harness.source.shown == {"web": (None, None), "mail": (None, None)}


async def test_only_busy_tunnels_are_read_for_their_quotas(harness: RecorderHarness) -> None:
    await settle(harness)
    harness.source.reads.clear()
    for _ in range(5):
        await harness.recorder.check_quotas()
    assert harness.source.reads == []


async def test_with_a_hung_disk_a_quota_counts_from_the_start(harness: RecorderHarness) -> None:
    async with hung_disk(harness.recorder):
        running = asyncio.create_task(harness.recorder.run(interval_s=0.002, quota_interval_s=0.001))
        await wait_until_async(harness.texts)
        harness.serve(count=40)
        await wait_until_async(lambda: harness.source.shown["web"][1])
        assert harness.source.shown["web"][0].used == 1200
        running.cancel()


async def test_a_damaged_file_does_not_forget_what_this_daemon_counted(harness: RecorderHarness) -> None:
    await settle(harness)
    harness.serve(count=40)
    await harness.flush()
    harness.path.unlink()
    harness.path.write_bytes(b"no database" * 1000)
    harness.serve(count=1)
    await harness.flush()
    await harness.recorder.check_quotas()
    assert [text.startswith("the quota") for text in harness.texts()].count(True) == 1
    assert harness.source.shown["web"][0].used == 41 * 30


# --- the file ---------------------------------------------------------------------------------------------------------


def faults_of(path: Path, history: str, quota: str) -> list[str]:
    file = path / "tunnels.yaml"
    entry = f'{{url: "server://127.0.0.1:1/127.0.0.1:2", auth: open, quota: {quota}}}'
    file.write_text(f"version: 1\nsupervisor: {{history: {history}}}\ntunnels:\n  web: {entry}\n")
    try:
        load(file, {})
    except ConfigError as error:
        return [str(fault).removeprefix(f"{path}/") for fault in error.faults]
    return []


def test_a_quota_needs_a_history_that_is_long_enough(tmp_path: Path) -> None:
    (fault,) = faults_of(tmp_path, "0", "5GB/month")
    text = "the quota 5GB/month of 'web' needs a longer history, and supervisor: history: records nothing"
    assert fault == f"tunnels.yaml:4:69: {text}; write history: 31d or more, or remove the quota"
    assert "supervisor: history: keeps 10d; write history: 12d or more" in faults_of(tmp_path, "10d", "5GB/12d")[0]
    assert faults_of(tmp_path, "12d", "5GB/12d") == []
    assert faults_of(tmp_path, "0", "none") == []
