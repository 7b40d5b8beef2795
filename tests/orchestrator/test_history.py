"""The traffic history without a daemon: counters, periods, and the file with everything that can happen to it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.faults import ConfigError
from orchestrator.config.load import load
from orchestrator.config.plan import effective_settings
from orchestrator.config.supervisor_settings import SupervisorSettings
from orchestrator.history import database
from orchestrator.history.database import GRADUAL_HOURS, MAX_BAD_FILES, MIGRATIONS, HistoryError, HistoryFile
from orchestrator.history.periods import Period, Step, day_start, month_start, periods
from orchestrator.history.traffic import NO_TRAFFIC, Baselines, PendingRows, Traffic, hour_of, sum_traffic

NOON = datetime(2026, 11, 28, 12, 30, tzinfo=UTC).timestamp()
HOUR = hour_of(NOON)
ALWAYS = [Period(0.0, 0, 1 << 40)]
ONE = Traffic(1, 2, 1)

counts = st.tuples(*[st.integers(0, 1 << 50)] * 5).map(Traffic._make)


@pytest.fixture(params=["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


# --- counters ---------------------------------------------------------------------------------------------------------


@given(st.lists(counts, max_size=8))
def test_what_is_added_between_readings_sums_up_to_the_counters(added: list[Traffic]) -> None:
    baselines, total, seen = Baselines(), NO_TRAFFIC, NO_TRAFFIC
    for more in added:
        total = total.plus(more)
        seen = seen.plus(baselines.advance("web", total))
    assert seen == total == sum_traffic(added)


def test_an_engine_that_cannot_be_read_for_a_moment_does_not_count_twice() -> None:
    baselines = Baselines()
    readings = [Traffic(500), NO_TRAFFIC, Traffic(600)]
    assert [baselines.advance("web", reading).bytes for reading in readings] == [500, 0, 100]


def test_a_tunnel_that_was_removed_and_added_again_starts_from_zero() -> None:
    baselines = Baselines()
    baselines.advance("web", Traffic(500))
    baselines.forget("web")
    assert baselines.advance("web", Traffic(20)) == Traffic(20)
    baselines.retain(["other"])
    assert "web" not in baselines


def test_rows_that_were_not_written_are_added_to_those_that_came_meanwhile() -> None:
    pending = PendingRows(max_rows=2)
    pending.add(("web", 1), ONE)
    taken = pending.take_all()
    pending.add(("web", 1), ONE)
    pending.put_back(taken)
    assert pending.rows == {("web", 1): Traffic(2, 4, 2)}


def test_when_there_is_no_room_the_oldest_rows_are_lost_and_counted() -> None:
    pending = PendingRows(max_rows=2)
    for hour in range(5):
        pending.add(("web", hour), ONE)
    assert list(pending.rows) == [("web", 3), ("web", 4)]
    assert pending.lost == 3


# --- periods ----------------------------------------------------------------------------------------------------------


@given(step=st.sampled_from(Step), days=st.integers(1, 800), now=st.floats(1e9, 4e9))
def test_periods_follow_each_other_without_a_gap_up_to_now(step: Step, days: int, now: float) -> None:
    found = periods(step, days, now)
    assert found[-1].end_hour == hour_of(now) + 1
    assert all(one.end_hour == other.first_hour for one, other in pairwise(found))
    assert all(one.first_hour == hour_of(one.start) for one in found)


@pytest.mark.usefixtures("zone")
def test_days_and_months_are_local() -> None:
    for moment in (NOON, datetime(2026, 3, 29, 1, 30, tzinfo=UTC).timestamp()):  # a day with 23 hours in Europe
        for start, length_h in (
            (day_start(moment), (23, 24, 25)),
            (month_start(moment), range(28 * 24 - 1, 31 * 24 + 2)),
        ):
            local = datetime.fromtimestamp(start)  # noqa: DTZ006  the local time is what is tested
            assert (local.hour, local.minute) == (0, 0)
            end = day_start(moment, 1) if len(length_h) == 3 else month_start(moment, 1)
            assert start <= moment < end
            assert round((end - start) / 3600) in length_h


def test_one_day_is_today_and_one_day_of_hours_the_last_24() -> None:
    assert len(periods(Step.DAY, 1, NOON)) == 1
    assert len(periods(Step.HOUR, 1, NOON)) == 24
    assert [datetime.fromtimestamp(p.start).month for p in periods(Step.MONTH, 60, NOON)] == [9, 10, 11]  # noqa: DTZ006  local
    assert len(periods(Step.TOTAL, 90, NOON)) == 1


# --- the file ---------------------------------------------------------------------------------------------------------


class FileHarness:
    """A history file in a directory."""

    def __init__(self, path: Path) -> None:
        self.file = HistoryFile(path / "state" / "web.history.db", lambda: NOON)

    def write(self, rows: dict[tuple[str, int], Traffic]) -> None:
        self.file.run(lambda c: database.write_rows(c, rows))

    def read(self, *names: str, wanted: list[Period] | None = None) -> list[dict[str, Traffic]]:
        return self.file.run(lambda c: database.read_periods(c, wanted or ALWAYS, names))

    def prune(self, kept_hours: int, now_hour: int = HOUR) -> None:
        self.file.run(lambda c: database.prune(c, now_hour, kept_hours))

    def hours(self) -> list[int]:
        return self.file.run(lambda c: [hour for (hour,) in c.execute("SELECT DISTINCT hour FROM traffic")])

    def bad_files(self) -> list[str]:
        return sorted(path.name for path in self.file.path.parent.glob("*.bad-*Z"))


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[FileHarness]:
    harness = FileHarness(tmp_path)
    yield harness
    harness.file.close()


def test_rows_of_one_tunnel_and_hour_are_added_up(harness: FileHarness) -> None:
    for _ in range(3):
        harness.write({("web", HOUR): Traffic(1, 2, 3, 4, 5), ("mail", HOUR): ONE})
    assert harness.read("web") == [{"web": Traffic(3, 6, 9, 12, 15)}]
    assert harness.read("web", "mail") == [{"web": Traffic(3, 6, 9, 12, 15), "mail": Traffic(3, 6, 3)}]
    assert harness.read("nope") == [{}]
    assert harness.file.run(database.read_names) == ["mail", "web"]


def test_the_file_survives_its_process(harness: FileHarness) -> None:
    harness.write({("web", HOUR): ONE})
    other = HistoryFile(harness.file.path)  # the first one is not closed: what a killed process leaves
    assert other.run(lambda c: database.read_hours(c, "web", HOUR)) == {HOUR: 3}
    assert other.run(lambda c: database.read_hours(c, "web", HOUR + 1)) == {}
    other.close()


def test_only_its_owner_can_read_the_file(harness: FileHarness) -> None:
    harness.write({("web", HOUR): ONE})
    assert {path.stat().st_mode & 0o777 for path in harness.file.path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["a b%2F [red]", "tünnel 通", "\ud800", "quote ' ; --", "nul \0 inside"])
def test_a_tunnel_may_have_any_name(harness: FileHarness, name: str) -> None:
    harness.write({(name, HOUR): ONE})
    assert harness.read(name) == [{name: ONE}]


@given(
    rows=st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(HOUR - 50, HOUR)), counts, max_size=12),
    bounds=st.lists(st.integers(HOUR - 60, HOUR + 5), min_size=2, max_size=5, unique=True).map(sorted),
)
def test_sums_of_periods_are_those_of_their_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[tuple[str, int], Traffic], bounds: list[int]
) -> None:
    harness = FileHarness(tmp_path_factory.mktemp("history"))
    harness.write(rows)
    wanted = [Period(0.0, one, other) for one, other in pairwise(bounds)]
    found = harness.read("a", "b", "c", wanted=wanted)
    harness.file.close()
    for period, totals in zip(wanted, found, strict=True):
        for name in "abc":
            inside = [
                counted
                for (of, hour), counted in rows.items()
                if of == name and period.first_hour <= hour < period.end_hour
            ]
            assert totals.get(name, NO_TRAFFIC) == sum_traffic(inside)


def test_old_rows_are_removed_and_with_them_the_names_of_former_tunnels(harness: FileHarness) -> None:
    harness.write({("old", HOUR - 30): ONE, ("web", HOUR - 24): ONE, ("web", HOUR - 23): ONE, ("web", HOUR): ONE})
    harness.prune(24)
    assert harness.hours() == [HOUR - 23, HOUR]
    assert harness.file.run(database.read_names) == ["web"]


def test_a_clock_that_is_wrong_for_a_moment_does_not_empty_the_file(harness: FileHarness) -> None:
    harness.write({("web", HOUR - ago): ONE for ago in range(200)})
    harness.prune(400 * 24, now_hour=HOUR + 100 * 365 * 24)
    assert len(harness.hours()) == 200 - GRADUAL_HOURS


def test_a_shorter_limit_takes_effect_at_once(harness: FileHarness) -> None:
    harness.write({("web", HOUR - ago): ONE for ago in range(200)})
    harness.prune(400 * 24)
    harness.prune(24)
    assert len(harness.hours()) == 24


@pytest.mark.parametrize("damage", [b"this is no database" * 300, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_kept_and_a_new_one_started(harness: FileHarness, damage: bytes) -> None:
    harness.file.path.parent.mkdir()
    harness.file.path.write_bytes(damage)
    harness.write({("web", HOUR): ONE})
    assert harness.read("web") == [{"web": ONE}]
    assert harness.bad_files() == ["web.history.db.bad-20261128T123000Z"]
    assert harness.file.path.with_name(harness.bad_files()[0]).read_bytes() == damage
    (note,) = harness.file.notes
    assert "is damaged" in note
    assert "it is kept as web.history.db.bad-20261128T123000Z, and a new file was started" in note


def test_a_file_that_is_damaged_while_it_is_open_is_replaced(harness: FileHarness) -> None:
    harness.write({(f"tunnel {number}", HOUR): ONE for number in range(2000)})
    harness.file.run(lambda c: None)
    harness.file.close()
    size = harness.file.path.stat().st_size
    with harness.file.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    harness.write({("web", HOUR): ONE})
    assert harness.read("web") == [{"web": ONE}]
    assert len(harness.bad_files()) == 1


def test_a_file_that_is_overwritten_while_it_is_open_is_replaced(harness: FileHarness) -> None:
    harness.write({("web", HOUR): ONE})
    with harness.file.path.open("r+b") as file:
        file.write(b"scribbled over" * 10)
    harness.write({("web", HOUR): ONE})
    assert harness.read("web") == [{"web": ONE}]
    assert "is damaged (its header was overwritten)" in harness.file.notes[0]


def test_a_defect_of_this_program_is_no_damage_of_the_file(harness: FileHarness) -> None:
    harness.write({("web", HOUR): ONE})
    with pytest.raises(HistoryError, match="number of bindings"):
        harness.file.run(lambda c: c.execute("SELECT ?"))
    assert not harness.bad_files()
    assert harness.read("web") == [{"web": ONE}]


def test_a_file_whose_tables_were_dropped_is_replaced(harness: FileHarness) -> None:
    harness.file.run(lambda c: c.execute("DROP TABLE traffic"))
    harness.write({("web", HOUR): ONE})
    assert len(harness.bad_files()) == 1


def test_a_file_of_a_later_version_is_left_alone(harness: FileHarness) -> None:
    harness.file.run(lambda c: c.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}"))
    harness.file.close()
    harness.write({("web", HOUR): ONE})
    assert f"was written by a later version of this program (schema {len(MIGRATIONS) + 1})" in harness.file.notes[0]
    with sqlite3.connect(harness.file.path.with_name(harness.bad_files()[0])) as kept:
        assert kept.execute("SELECT COUNT(*) FROM traffic").fetchone() == (0,)
    kept.close()


def test_a_schema_is_migrated_step_by_step(harness: FileHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.write({("web", HOUR): ONE})
    harness.file.close()
    later = (*MIGRATIONS, "ALTER TABLE tunnel ADD COLUMN note TEXT; CREATE TABLE more (one INTEGER)")
    monkeypatch.setattr(database, "MIGRATIONS", later)
    assert harness.read("web") == [{"web": ONE}]
    assert harness.file.run(lambda c: c.execute("SELECT note FROM tunnel").fetchall()) == [(None,)]
    assert harness.file.run(lambda c: c.execute("PRAGMA user_version").fetchone()) == (2,)


def test_only_some_damaged_files_are_kept(harness: FileHarness) -> None:
    for day in range(MAX_BAD_FILES + 2):
        harness.file = HistoryFile(harness.file.path, partial(float, NOON + day * 86400))
        harness.file.path.parent.mkdir(exist_ok=True)
        harness.file.path.write_bytes(b"no database, once more" * 100)
        harness.write({("web", HOUR): ONE})
        harness.file.close()
    assert [name[-16:-8] for name in harness.bad_files()] == ["20261130", "20261201", "20261202"]


def test_a_file_that_was_removed_is_created_again(harness: FileHarness) -> None:
    harness.write({("web", HOUR): ONE})
    harness.file.path.unlink()
    harness.write({("web", HOUR): ONE})
    assert harness.read("web") == [{"web": ONE}]
    assert "was removed or replaced" in harness.file.notes[0]


def test_a_backup_that_replaces_the_open_file_is_read_as_it_is(harness: FileHarness) -> None:
    """The log of the former file is still in the directory, and SQLite would apply it to the backup."""
    names = [f"tunnel {number}" for number in range(100)]
    backup = HistoryFile(harness.file.path.with_name("backup.db"))
    backup.run(lambda c: database.write_rows(c, {(name, HOUR): Traffic(7) for name in names}))
    backup.close()
    harness.write({(name, HOUR): ONE for name in names})
    backup.path.replace(harness.file.path)
    harness.write({("web", HOUR): ONE})
    assert harness.read("web", *names) == [{"web": ONE, **dict.fromkeys(names, Traffic(7))}]


@pytest.mark.parametrize(
    "statements",
    [
        "PRAGMA user_version = -1",
        "DROP TABLE tunnel; CREATE TABLE tunnel (id INTEGER PRIMARY KEY, name NOT NULL UNIQUE, last_hour INTEGER)",
        "DROP TABLE traffic; CREATE VIEW traffic AS SELECT 1 AS hour",
    ],
)
def test_a_file_with_the_tables_of_another_program_is_kept_and_a_new_one_started(
    harness: FileHarness, statements: str
) -> None:
    """Its columns may contain anything, such as a name that is no text."""
    harness.write({("web", HOUR): ONE})
    harness.file.close()
    with contextlib.closing(sqlite3.connect(harness.file.path)) as connection:
        connection.executescript(statements)
    harness.write({("mail", HOUR): ONE})
    assert harness.read("mail") == [{"mail": ONE}]
    assert "was written by another program" in harness.file.notes[0]


def test_a_directory_that_cannot_be_written_is_an_error_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in the place of the directory")
    with pytest.raises(HistoryError, match=r"web\.history\.db: File exists"):
        FileHarness(tmp_path).write({("web", HOUR): ONE})


def test_a_file_that_another_program_locks_is_written_later(
    harness: FileHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_TIMEOUT_S", 0.01)
    harness.write({("web", HOUR): ONE})
    harness.file.close()
    with sqlite3.connect(harness.file.path, isolation_level=None) as tool:
        tool.execute("BEGIN IMMEDIATE")
        with pytest.raises(HistoryError, match="database is locked"):
            harness.write({("web", HOUR): ONE})
        tool.execute("ROLLBACK")
    tool.close()
    harness.write({("web", HOUR): ONE})
    assert harness.read("web") == [{"web": ONE.plus(ONE)}]


def test_a_query_that_takes_too_long_is_interrupted(harness: FileHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.write({(f"tunnel {number}", HOUR - number % 50): ONE for number in range(3000)})
    monkeypatch.setattr(database, "_QUERY_TIMEOUT_S", -1.0)
    monkeypatch.setattr(database, "_STEPS_PER_CHECK", 10)
    with pytest.raises(HistoryError, match="the query takes too long; ask for fewer days, or for one tunnel"):
        harness.read("tunnel 1", "tunnel 2")
    assert harness.bad_files() == []


# --- the setting ------------------------------------------------------------------------------------------------------


def supervisor_history(path: Path, value: str) -> SupervisorSettings:
    file = path / "tunnels.yaml"
    file.write_text(f"version: 1\nsupervisor: {{history: {value}}}\ntunnels: {{}}\n")
    return load(file, {}).supervisor


@pytest.mark.parametrize(
    ("written", "hours", "shown"),
    [("0", 0, "0"), ("400d", 9600, "400d"), ("48h", 48, "2d"), ("5h", 5, "5h"), ("' 90d '", 2160, "90d")],
)
def test_the_time_to_keep_traffic_is_days_or_hours(tmp_path: Path, written: str, hours: int, shown: str) -> None:
    limit = supervisor_history(tmp_path, written).history
    assert (limit.hours, str(limit)) == (hours, shown)


@pytest.mark.parametrize("written", ["400", "0d", "4000d", "1y", "-1d", "no", "1.5d"])
def test_another_time_is_a_fault_that_names_what_is_possible(tmp_path: Path, written: str) -> None:
    with pytest.raises(ConfigError) as caught:
        supervisor_history(tmp_path, written)
    assert f"history: {written!r} is not a time to keep traffic: 0, or a number of days" in str(caught.value.faults[0])


def test_the_time_to_keep_traffic_changes_with_a_reload(tmp_path: Path) -> None:
    old, new = supervisor_history(tmp_path, "0"), supervisor_history(tmp_path, "30d")
    assert effective_settings(old, new).history.hours == 720
    assert SupervisorSettings().history.hours == 9600
