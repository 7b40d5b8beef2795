"""The soak detects defects, explains only failures that its faults allow, and completes a short run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak.incident_log import FailedVisit, FaultWindow, IncidentLog
from tests.soak.readings import ProcessFigures, Reading, find_differences
from tests.soak.streams import CorruptError, CutError, TargetReports, VerifiedStream, VisitKind, serve_streams, visit
from tests.support.peers import Target, connect, receive_all, receive_exactly
from tests.support.processes import ROOT
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until

AT_REST = Reading(
    at=0.0,
    processes={"stable": ProcessFigures(sockets=20, pipes=4, other_files=9, threads=7, rss=60 << 20, tasks=28)},
    idle=64,
    capacity=64,
    active=0,
    up=16,
    links=16,
    time_wait=3,
    files=frozenset({"stable.sock"}),
)


def changed(**fields: int) -> Reading:
    return replace(AT_REST, processes={"stable": replace(AT_REST.processes["stable"], **fields)})


# --- comparison with the baseline ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (changed(sockets=23), "23 sockets, 20 sockets before"),
        (changed(pipes=60), "60 pipes"),
        (changed(other_files=11), "11 other files"),
        (changed(threads=12), "12 threads"),
        (changed(rss=77 << 20), "77.0 MiB, 60.0 MiB before"),
        (changed(close_wait=1), "1 close wait"),
        (changed(tasks=31), "31 tasks"),
        (replace(AT_REST, active=1), "1 visitors are reported"),
        (replace(AT_REST, up=15), "15 tunnels are up"),
        (replace(AT_REST, capacity=200), "capacity of 200"),
        (replace(AT_REST, idle=200), "hold 200"),
        (replace(AT_REST, time_wait=99), "99 connections in TIME_WAIT"),
        (replace(AT_REST, files=AT_REST.files | {"x"}), "new files: x"),
    ],
)
def test_a_resource_above_the_baseline_is_reported(now: Reading, words: str) -> None:
    assert find_differences(AT_REST, AT_REST, time_wait_expired=True) == []
    (fault,) = find_differences(AT_REST, now, time_wait_expired=True)
    assert words in fault


@pytest.mark.parametrize(
    ("began", "established", "ended", "by_cut", "by_refusal"),
    [
        (1.0, 2.0, 9.0, False, False),  # ended before the window
        (1.0, 2.0, 12.0, True, False),  # established before the window
        (1.0, None, 12.0, False, True),  # started before the window, not served yet
        (12.0, None, 13.0, False, True),  # started in the window
        (12.0, 12.5, 13.0, False, True),
        (21.0, None, 22.0, False, False),  # started after the window
    ],
)
def test_a_fault_window_explains_only_the_visits_it_may_fail(
    began: float, established: float | None, ended: float, *, by_cut: bool, by_refusal: bool
) -> None:
    failed = FailedVisit("t", "leave", began, established, ended, "reason")
    cut = FaultWindow("x", frozenset("t"), cuts=True, refuses=False, begin=10.0, end=20.0)
    refusal = replace(cut, cuts=False, refuses=True)
    assert (cut.explains(failed), refusal.explains(failed)) == (by_cut, by_refusal)
    assert not replace(cut, refuses=True).explains(replace(failed, tunnel="other"))


def test_overlapping_windows_count_once() -> None:
    incidents = IncidentLog()
    for begin, end, names in ((10.0, 20.0, "ab"), (15.0, 30.0, "a"), (90.0, 200.0, "a")):
        incidents.windows.append(FaultWindow("x", frozenset(names), cuts=True, refuses=True, begin=begin, end=end))
    assert incidents.fault_free_share("ab", 0.0, 100.0) == pytest.approx(1 - (30 + 10) / 200)


# --- verified streams -------------------------------------------------------------------------------------------------


def visit_target(kind: VisitKind, serve: Callable[[socket.socket], None] | None = None) -> TargetReports:
    """Run one visit to a target without a tunnel; ``serve`` replaces the default target."""
    target_reports = TargetReports()
    target = Target(serve or serve_streams(target_reports))
    try:
        with connect(target.address) as sock:
            visit(VerifiedStream(sock), kind, 7, 300_000, 500_000, target_reports, GUARD_S)
    finally:
        target.close()
    return target_reports


@pytest.mark.parametrize("kind", [kind for kind in VisitKind if kind is not VisitKind.LONG_LIVED])
def test_each_kind_of_visit_succeeds_without_a_tunnel(kind: VisitKind) -> None:
    assert not visit_target(kind).corruptions


def test_a_corrupted_stream_is_detected() -> None:
    def send_zeros(sock: socket.socket) -> None:
        receive_exactly(sock, 300_000)
        sock.sendall(bytes(500_000))
        receive_all(sock)  # closing before the visitor's end would send a reset

    with pytest.raises(CorruptError):
        visit_target(VisitKind.TARGET_CLOSES, send_zeros)


def test_a_truncated_stream_is_detected() -> None:
    def truncate(sock: socket.socket) -> None:
        VerifiedStream(sock).receive_end() if not sock.recv(400_000) else sock.shutdown(socket.SHUT_WR)

    with pytest.raises((CutError, OSError)):
        visit_target(VisitKind.VISITOR_HALF_CLOSES, truncate)


def test_an_end_of_stream_instead_of_a_reset_is_detected() -> None:
    one, other = socket.socketpair()
    with one, other:
        threading.Thread(target=other.shutdown, args=(socket.SHUT_WR,)).start()
        with pytest.raises(CutError, match="arrived as an end"):
            VerifiedStream(one).receive_reset()


# --- command ------------------------------------------------------------------------------------------------------


def start_soak(folder: Path, minutes: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.soak", "--seed", "1", "--report", str(folder)]
    environ = {**os.environ, "SOAK_MINUTES": minutes}
    return subprocess.Popen(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_short_soak_completes_without_a_defect(tmp_path: Path) -> None:
    process = start_soak(tmp_path, "0.15")
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stdout + stderr
    assert "verdict: good" in stdout
    page = (tmp_path / "soak.md").read_text()
    assert "stable: sockets" in page
    assert "<svg" in (tmp_path / "soak.svg").read_text()


def test_ctrl_c_ends_the_soak_with_a_report(tmp_path: Path) -> None:
    process = start_soak(tmp_path, "5")
    assert process.stderr is not None
    try:
        wait_until(lambda: "warm-up" in process.stderr.readline(), within=60, what="the soak has started")  # type: ignore[union-attr]  # checked above
        time.sleep(1)  # some of the warm-up
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "NOT COMPLETE" in stdout
    assert "Traceback" not in stderr
    assert (tmp_path / "soak.md").exists()
