"""The access log while its disk is full, and while another program rotates its file."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import FigureRecorder
from tests.faults.test_resources import daemon_log, small_disk
from tests.support.files import text_of
from tests.support.peers import Address, exchange
from tests.support.ports import free_port
from tests.support.processes import Daemon, ProcessHarness
from tests.support.waiting import wait_until


def start_with_access_log(harness: ProcessHarness, log: Path, workers: int = 0) -> tuple[Daemon, Address]:
    """Start both ends of a tunnel in a daemon with an access log; return it, and the address for visitors."""
    target = harness.start_target()
    port, visitor_port = free_port(), free_port()
    urls = {
        "t": f"server://127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode=reverse",
        "c": f"client://127.0.0.1:{port}/127.0.0.1:{target.port}",
    }
    daemon = harness.start_daemon(urls, supervisor={"access_log": str(log), "workers": workers})
    daemon.wait_state("up", within=15)
    return daemon, ("127.0.0.1", visitor_port)


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text_of(log).splitlines()]


@pytest.mark.case("access log: disk full", deadline=60)
def test_a_full_disk_costs_lines_of_the_access_log_and_nothing_else(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """A full disk under the access log costs lines, which are counted, and no visitor.

    Seen to fail: without the count of what a write has lost, the event at the end says that 0 were lost; with the
    error raised, the thread ends, and nothing says that lines are lost.
    """
    with small_disk(harness.directory / "small", "64k") as disk:
        log, ballast = disk / "visitors.log", disk / "ballast"
        daemon, visitors = start_with_access_log(harness, log)
        assert exchange(visitors, b"before") == b"before"
        wait_until(lambda: len(lines_of(log)) == 2, within=5, what="both ends have logged the visitor")
        _fill(ballast)
        for _ in range(50):
            assert exchange(visitors, b"x" * 1000) == b"x" * 1000
        what = "access log: cannot write"
        wait_until(lambda: any(what in line for line in daemon_log(harness, daemon.socket)), within=5, what=what)
        ballast.unlink()
        assert exchange(visitors, b"after") == b"after"
        lost = daemon.wait_for_log(r"access log: the problem is over; lines lost so far: \d+", within=5)
        count = int(lost.rpartition(": ")[2].split()[0])
        assert 0 < count <= 100
        assert exchange(visitors, b"last") == b"last"
        wait_until(lambda: sum(one["bytes"]["in"] == 4 for one in lines_of_whole(log)) == 2, within=5, what="the last")
        assert daemon.log_text().count(what) == 1
        record_figure(f"{count} of 100 lines lost, no visitor disturbed")


def lines_of_whole(log: Path) -> list[dict[str, Any]]:
    """The lines that are complete: the full disk may have cut one."""
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


@pytest.mark.case("access log: rotated by another program, workers", deadline=60)
def test_workers_lines_go_to_one_file_which_sighup_opens_again(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """A rotation as by logrotate: each visitor has a line per end, in the old file or the new one, with one id.

    Seen to fail: without the call after SIGHUP, the line of the second visitor appears in the renamed file.
    """
    log, renamed = harness.directory / "visitors.log", harness.directory / "visitors.log.old"
    daemon, visitors = start_with_access_log(harness, log, workers=2)
    assert exchange(visitors, b"hello") == b"hello"
    wait_until(lambda: len(lines_of(log)) == 2, within=5, what="both ends have logged the visitor")
    one, other = lines_of(log)
    assert {one["tunnel"], other["tunnel"]} == {"t", "c"}
    assert one["id"] == other["id"]
    assert (one["bytes"], one["end"]) == ({"in": 5, "out": 5}, "visitor_closed")
    log.rename(renamed)
    daemon.signal(signal.SIGHUP)
    daemon.wait_for_log(r"no change \(generation 1\)", within=5)
    assert exchange(visitors, b"again") == b"again"
    wait_until(lambda: len(lines_of(log)) == 2, within=5, what="the new file has both lines")
    assert len(lines_of(renamed)) == 2
    record_figure(f"2 lines in each of 2 files, id {one['id']}")
