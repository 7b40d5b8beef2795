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

from tests.soak.datagrams import MIN_BYTES, DatagramTarget, DatagramVisitor, encode_datagram
from tests.soak.incident_log import FailedVisit, FaultWindow, IncidentLog
from tests.soak.losses import DatagramLoss, DropLog, explain_losses
from tests.soak.readings import ProcessFigures, Reading, find_differences
from tests.soak.streams import CorruptError, CutError, TargetReports, VerifiedStream, VisitKind, serve_streams, visit
from tests.support.peers import Target, connect, receive_all, receive_exactly
from tests.support.ports import free_port
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
        (changed(rss=81 << 20), "81.0 MiB, 60.0 MiB before"),
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


# --- datagrams --------------------------------------------------------------------------------------------------------


def serve_echo(answer: Callable[[bytes], bytes | None]) -> tuple[DatagramVisitor, socket.socket]:
    """Return a visitor that has sent one datagram, and the socket of the target, which has sent an answer."""
    target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    target.bind(("127.0.0.1", 0))
    target.settimeout(GUARD_S)
    visitor = DatagramVisitor(7, "t", target.getsockname())
    visitor.send([1200])
    datagram, peer = target.recvfrom(9999)
    assert peer[0] == "127.64.0.7"
    if (answered := answer(datagram)) is not None:
        target.sendto(answered, peer)
    return visitor, target


def test_the_answers_of_a_target_are_verified_and_counted() -> None:
    reports, port = TargetReports(), free_port()
    target = DatagramTarget(port, reports)
    target.start()
    try:
        with DatagramVisitor(1, "t", ("127.0.0.1", port)) as visitor:
            visitor.send([MIN_BYTES, 300, 300, 1200, 40_000])

            def is_answered() -> bool:
                visitor.receive()
                return visitor.answered == 5

            wait_until(is_answered, "all datagrams are answered")
            assert (visitor.sent, visitor.unanswered, visitor.bytes_verified) == (5, 0, 2 * (MIN_BYTES + 41_800))
            visitor.sock.send(b"strange")
            wait_until(lambda: reports.corruptions, "the target reports a strange datagram")
    finally:
        target.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (encode_datagram(7, 0, 1200, is_answer=True)[:-1], "wrong bytes, or a wrong length"),
        (encode_datagram(7, 0, 1200, is_answer=True)[:-1] + b"?", "wrong bytes, or a wrong length"),
        (encode_datagram(7, 0, 1200, is_answer=False), "wrong bytes, or a wrong length"),
        (encode_datagram(8, 0, 1200, is_answer=True), "received an answer for visitor 8"),
        (encode_datagram(7, 0, 1100, is_answer=True), "received 1100 bytes for the 1200"),
        (encode_datagram(7, 3, 1200, is_answer=True), "datagram 3 of 1 twice"),
        (b"", "of 0 bytes was not sent"),
    ],
)
def test_an_answer_that_was_not_sent_is_detected(answer: bytes, words: str) -> None:
    visitor, target = serve_echo(lambda _datagram: answer)
    with visitor, target, pytest.raises(CorruptError, match=words):
        visitor.receive()


def test_an_answer_that_arrives_after_its_time_counts_as_late() -> None:
    visitor, target = serve_echo(lambda _datagram: encode_datagram(7, 0, 1200, is_answer=True))
    with visitor, target:
        assert visitor.expire(time.monotonic(), lost_after_s=9.0) is None
        loss = visitor.expire(time.monotonic() + 10, lost_after_s=9.0)
        assert loss is not None
        assert loss.count == 1
        visitor.receive()
        assert (visitor.answered, visitor.late, visitor.unanswered, loss.count) == (0, 1, 0, 0)


def test_datagrams_are_explained_by_a_fault_or_by_as_many_that_an_end_has_counted() -> None:
    window = FaultWindow("x", frozenset("a"), cuts=True, refuses=True, begin=10.0, end=20.0)
    losses = [
        DatagramLoss("a", 5, 19.0, 22.0),  # in the fault
        DatagramLoss("a", 7, 30.0, 33.0),  # four of them are counted
        DatagramLoss("b", 2, 12.0, 15.0),  # counted
        DatagramLoss("b", 1, 40.0, 43.0),  # counted too early
    ]
    drops = [DatagramLoss("a", 4, 29.0, 31.0), DatagramLoss("b", 9, 13.0, 14.0)]
    found = explain_losses(losses, [window], drops)
    assert (found.in_faults, found.counted) == (5, 6)
    assert found.unexplained == (DatagramLoss("a", 3, 30.0, 33.0), DatagramLoss("b", 1, 40.0, 43.0))


def test_dropped_datagrams_are_noted_when_a_counter_grows_or_begins_again() -> None:
    log = DropLog()
    for at, name, count in ((1.0, "a", 0), (2.0, "a", 3), (3.0, "a", 3), (4.0, "a", 1), (5.0, "a-second", 2)):
        log.note("stable", {name: {"counters": {"dropped_datagrams": count}}}, at)
    assert log.drops() == [
        DatagramLoss("a", 3, 1.0, 2.0),
        DatagramLoss("a", 1, 3.0, 4.0),
        DatagramLoss("a", 2, 5.0, 5.0),
    ]


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
