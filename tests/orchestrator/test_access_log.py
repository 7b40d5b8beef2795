"""The access log: lines, the file with its thread, settings, and a daemon that writes one."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.access_log import AccessLog
from orchestrator.config.supervisor_settings import AccessLogSettings, SupervisorSettings
from orchestrator.process.access_log_file import AccessLogFile
from orchestrator.status.visitor_lines import VisitorLines, format_line
from tests.support.engine_parts import Events
from tests.support.waiting import wait_until, wait_until_async
from tunnel.model.spec import Proto
from tunnel.model.visitor_end import VisitorEnd, VisitorRecord

LINE = b'{"x": 1}\n'


def record(**changes: Any) -> VisitorRecord:  # noqa: ANN401  fields of a record
    values = {
        "id": "0123456789abcdef-1", "address": "192.0.2.1:1000", "proto": Proto.UDP,
        "target": "127.0.0.1:80", "link": "0123456789abcdef",
        "from_visitor": 1, "to_visitor": 2, "duration_s": 1.5, "end": VisitorEnd.VISITOR_CLOSED, "reason": None,
        "ended_at": 1_000_000.0,
    }  # fmt: skip
    return VisitorRecord(**{**values, **changes})


# --- lines ------------------------------------------------------------------------------------------------------------


@given(
    st.text(), st.none() | st.text(), st.none() | st.text(), st.none() | st.floats(-5, 1e6), st.sampled_from(VisitorEnd)
)
def test_a_line_is_one_json_object_whatever_names_and_reasons_hold(
    name: str, target: str | None, reason: str | None, duration_s: float | None, end: VisitorEnd
) -> None:
    line = format_line(name, record(target=target, reason=reason, duration_s=duration_s, end=end))
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    seen = json.loads(line)
    assert list(seen) == [
        "time", "tunnel", "id", "address", "proto", "target", "link", "bytes", "duration_s", "end", "reason",
    ]  # fmt: skip
    assert (seen["bytes"], seen["end"], seen["proto"]) == ({"in": 1, "out": 2}, end.value, "udp")
    assert (seen["duration_s"] is None) is (duration_s is None)
    assert duration_s is None or seen["duration_s"] >= 0
    if name.isprintable():
        assert seen["tunnel"] == name


async def test_visitors_are_gathered_and_passed_on_together() -> None:
    sent: list[tuple[bytes, int]] = []
    lines = VisitorLines(lambda data, count: sent.append((data, count)))
    for _ in range(250):
        lines.add("web", record())
    assert [count for _, count in sent] == [100, 100]
    await wait_until_async(lambda: sum(count for _, count in sent) == 250, "the rest follows soon")
    assert b"".join(data for data, _ in sent).count(b"\n") == 250
    lines.flush()
    assert len(sent) == 3


# --- the file ---------------------------------------------------------------------------------------------------------


class LogHarness:
    """A file of the access log, and the problems that it reports."""

    def __init__(self, path: Path, max_bytes: int = 0, keep: int = 2, **options: int) -> None:
        self.problems: list[str] = []
        self.log = AccessLogFile(path, max_bytes, keep, self.problems.append, **options)

    def write(self, *parts: bytes) -> None:
        for part in parts:
            count = self.log.lines + self.log.lost + part.count(b"\n")
            self.log.write(part, part.count(b"\n"))
            wait_until(lambda: self.log.lines + self.log.lost >= count)  # noqa: B023  at once


def test_a_file_is_rotated_by_its_size_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "visitors.log"
    harness = LogHarness(path, max_bytes=20)
    harness.write(*(f'{{"x": {number}}}\n'.encode() for number in range(7)))
    harness.log.close()
    texts = "".join(Path(f"{path}{name}").read_text() for name in ("", ".1", ".2"))
    files = [json.loads(line)["x"] for line in texts.splitlines()]
    assert files == [6, 4, 5, 2, 3]
    assert not Path(f"{path}.3").exists()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (harness.log.lines, harness.log.lost, harness.problems) == (7, 0, [])


def test_without_kept_files_the_old_one_is_removed(tmp_path: Path) -> None:
    harness = LogHarness(tmp_path / "v", max_bytes=10, keep=0)
    harness.write(LINE, LINE)
    harness.log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["v"]
    assert (tmp_path / "v").read_bytes() == LINE


def test_a_renamed_file_is_left_alone_after_it_is_reopened(tmp_path: Path) -> None:
    harness = LogHarness(tmp_path / "v")
    harness.write(LINE)
    (tmp_path / "v").rename(tmp_path / "old")
    harness.write(LINE)
    harness.log.reopen()
    harness.write(LINE)
    harness.log.close()
    assert ((tmp_path / "old").read_bytes(), (tmp_path / "v").read_bytes()) == (2 * LINE, LINE)


def test_a_line_that_was_cut_by_kill_9_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(LINE + b'{"x": ')
    harness = LogHarness(tmp_path / "v")
    harness.write(LINE)
    harness.log.close()
    assert (tmp_path / "v").read_bytes() == LINE + b'{"x": \n' + LINE


def test_a_file_that_cannot_be_opened_is_reported_before_the_first_line(tmp_path: Path) -> None:
    harness = LogHarness(tmp_path / "missing" / "v")
    harness.log.write(b"", 0)
    wait_until(lambda: harness.problems)
    harness.log.close()
    assert harness.problems[0].startswith(f"cannot write {tmp_path}/missing/v: no such file")
    assert (harness.log.lines, harness.log.lost) == (0, 0)


def test_a_full_disk_costs_lines_which_are_counted_and_reported_once() -> None:
    harness = LogHarness(Path("/dev/full"))
    harness.write(LINE, 2 * LINE, LINE)
    assert (harness.log.lines, harness.log.lost) == (0, 4)
    wait_until(lambda: bool(harness.problems))
    assert len(harness.problems) == 1
    assert "cannot write /dev/full" in harness.problems[0]
    harness.log.close()


def test_a_missing_directory_is_reported_and_so_is_its_return(tmp_path: Path) -> None:
    harness = LogHarness(tmp_path / "logs" / "v")
    harness.write(LINE)
    (tmp_path / "logs").mkdir()
    harness.write(LINE)
    wait_until(lambda: len(harness.problems) == 2)
    assert harness.problems[1] == ""
    assert (harness.log.lines, harness.log.lost) == (1, 1)
    harness.log.close()


def test_a_write_that_hangs_blocks_nothing_and_the_queue_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    write = os.write

    def hang(fd: int, data: bytes) -> int:
        if threading.current_thread().name == "access log":
            released.wait()
        return write(fd, data)

    monkeypatch.setattr(os, "write", hang)
    harness = LogHarness(tmp_path / "v", max_queued_bytes=10 * len(LINE))
    for _ in range(25):
        harness.log.write(LINE, 1)
    assert harness.log.lost == 15
    assert harness.problems == ["the file system does not take the lines in time; lines are lost"]
    released.set()
    harness.log.close()
    assert (tmp_path / "v").read_bytes() == 10 * LINE


def test_a_disk_that_is_too_slow_is_one_problem_until_no_line_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    permits = threading.Semaphore(0)
    write = os.write

    def write_slowly(fd: int, data: bytes) -> int:
        if threading.current_thread().name == "access log":
            permits.acquire()
        return write(fd, data)

    monkeypatch.setattr(os, "write", write_slowly)
    harness = LogHarness(tmp_path / "v", max_queued_bytes=5 * len(LINE))
    for written in range(4):
        for _ in range(6):
            harness.log.write(LINE, 1)
        permits.release()
        wait_until(lambda: harness.log.lines == written + 1)  # noqa: B023  at once
    assert harness.problems == ["the file system does not take the lines in time; lines are lost"]
    permits.release(10)
    wait_until(lambda: harness.problems[1:] == [""])
    harness.log.close()


def test_a_file_that_cannot_be_renamed_grows_and_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    harness = LogHarness(tmp_path / "v", max_bytes=len(LINE))
    harness.write(LINE, LINE)
    harness.log.close()
    assert (tmp_path / "v").read_bytes() == 2 * LINE
    assert harness.log.lost == 0
    assert [problem.rpartition("; ")[2] for problem in harness.problems] == ["it grows beyond max_size"]


def test_a_symbolic_link_stays_and_its_file_is_rotated(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "v").symlink_to(tmp_path / "disk" / "v")
    harness = LogHarness(tmp_path / "v", max_bytes=len(LINE))
    harness.write(LINE, LINE)
    harness.log.close()
    assert (tmp_path / "v").is_symlink()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["v", "v.1"]


# --- settings and the daemon's log ------------------------------------------------------------------------------------


def settings(value: object) -> AccessLogSettings | None:
    return SupervisorSettings.model_validate({"access_log": value}, context={"base": Path("/srv")}).access_log


def test_the_settings_name_a_file_or_the_log(tmp_path: Path) -> None:
    assert settings("visitors.log") == AccessLogSettings.model_construct(file=Path("/srv/visitors.log"))
    whole = settings({"file": "/v", "max_size": "2GB", "keep": "0"})
    assert whole is not None
    assert (whole.file, whole.max_size, whole.keep) == (Path("/v"), 2 * 10**9, 0)
    log = settings("log")
    assert log is not None
    assert log.file is None
    assert SupervisorSettings().access_log is None


@pytest.mark.parametrize(
    "value",
    [
        {"max_size": "1MB"},
        {"file": "v", "max_size": "1"},
        {"file": "v", "max_size": "1XB"},
        {"file": "v", "keep": "-1"},
    ],
)
def test_wrong_settings_are_refused(value: object) -> None:
    with pytest.raises(ValidationError, match=r"needs file:|too small|is not a size|is not a whole number"):
        settings(value)


async def test_without_a_file_the_lines_go_to_the_daemons_log() -> None:
    logged, events = Events(), Events()
    access_log = AccessLog(AccessLogSettings(), logged.append, events.event_log())
    access_log.add("web", record(reason="the target cannot be reached", end=VisitorEnd.FAILED))
    access_log.add_lines(format_line("db", record(address=None)).encode(), 1, 3)
    access_log.close()
    assert [event.tunnel for event in logged] == ["db", "web"]
    assert logged[0].text == "a visitor has left: visitor_closed, 1.5 s"
    assert "visitor 192.0.2.1:1000 has left: failed, 1.5 s: the target cannot be reached" in logged[1].text
    assert access_log.status() == (2, 3)


async def test_problems_are_events_and_so_is_their_end(tmp_path: Path) -> None:
    events = Events()
    to_file = settings(str(tmp_path / "x" / "v"))
    assert to_file is not None
    access_log = AccessLog(to_file, Events().append, events.event_log())
    access_log.add_lines(LINE, 1, 0)
    await wait_until_async(lambda: events.said("; lines are lost; visitors are not affected"))
    (tmp_path / "x").mkdir()
    access_log.add_lines(LINE, 1, 0)
    await wait_until_async(lambda: events.said("the problem is over; lines lost so far: 1"))
    access_log.close()
