"""The soak itself: it sees what it shall see, explains no more than it may, and a short one runs to its end."""

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

from tests.soak.chronicle import Chronicle, Visit, Window
from tests.soak.readings import Holding, Reading, judge
from tests.soak.streams import CorruptError, CutError, Ledger, Manner, Talk, serving, visit
from tests.support.peers import Target, connect, receive_all, receive_exactly
from tests.support.processes import ROOT
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until

AT_REST = Reading(
    at=0.0,
    holdings={"lasting": Holding(sockets=20, pipes=4, other_files=9, threads=7, rss=60 << 20, tasks=28)},
    idle=64,
    capacity=64,
    active=0,
    up=16,
    time_wait=3,
    files=frozenset({"lasting.sock"}),
)


def changed(**fields: int) -> Reading:
    return replace(AT_REST, holdings={"lasting": replace(AT_REST.holdings["lasting"], **fields)})


# --- the judgement ----------------------------------------------------------------------------------------------------


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
        (replace(AT_REST, active=1), "visitors are said to be there: 1"),
        (replace(AT_REST, up=15), "15 tunnels are up"),
        (replace(AT_REST, capacity=200), "want 200"),
        (replace(AT_REST, idle=200), "hold 200"),
        (replace(AT_REST, time_wait=99), "99 connections in TIME_WAIT"),
        (replace(AT_REST, files=AT_REST.files | {"x"}), "files that were not there: x"),
    ],
)
def test_what_does_not_return_is_named(now: Reading, words: str) -> None:
    assert judge(AT_REST, AT_REST, kernel_forgot=True) == []
    (fault,) = judge(AT_REST, now, kernel_forgot=True)
    assert words in fault


@pytest.mark.parametrize(
    ("began", "established", "ended", "by_cut", "by_refusal"),
    [
        (1.0, 2.0, 9.0, False, False),  # over before it
        (1.0, 2.0, 12.0, True, False),  # was there when it began
        (1.0, None, 12.0, False, True),  # had come, and was not served yet
        (12.0, None, 13.0, False, True),  # came meanwhile
        (12.0, 12.5, 13.0, False, True),
        (21.0, None, 22.0, False, False),  # came after it
    ],
)
def test_a_window_explains_what_it_may(
    began: float, established: float | None, ended: float, *, by_cut: bool, by_refusal: bool
) -> None:
    failed = Visit("t", "leave", began, established, ended, "why")
    cut = Window("x", frozenset("t"), cuts=True, refuses=False, begin=10.0, end=20.0)
    refusal = replace(cut, cuts=False, refuses=True)
    assert (cut.explains(failed), refusal.explains(failed)) == (by_cut, by_refusal)
    assert not replace(cut, refuses=True).explains(replace(failed, tunnel="other"))


def test_windows_that_overlap_cover_their_time_once() -> None:
    chronicle = Chronicle()
    for begin, end, names in ((10.0, 20.0, "ab"), (15.0, 30.0, "a"), (90.0, 200.0, "a")):
        chronicle.windows.append(Window("x", frozenset(names), cuts=True, refuses=True, begin=begin, end=end))
    assert chronicle.spared("ab", 0.0, 100.0) == pytest.approx(1 - (30 + 10) / 200)


# --- the conversation -------------------------------------------------------------------------------------------------


def meet(manner: Manner, between: Callable[[socket.socket], None] | None = None) -> Ledger:
    """One visit without a tunnel; ``between`` may be the target instead."""
    ledger = Ledger()
    target = Target(between or serving(ledger))
    try:
        with connect(target.address) as sock:
            visit(Talk(sock), manner, 7, 300_000, 500_000, ledger, GUARD_S)
    finally:
        target.close()
    return ledger


@pytest.mark.parametrize("manner", [manner for manner in Manner if manner is not Manner.STAY])
def test_each_manner_of_a_visit(manner: Manner) -> None:
    assert not meet(manner).corrupt


def test_a_stream_that_is_not_as_sent_is_noticed() -> None:
    def lie(sock: socket.socket) -> None:
        receive_exactly(sock, 300_000)
        sock.sendall(bytes(500_000))
        receive_all(sock)  # an end of ours before his would be a reset

    with pytest.raises(CorruptError):
        meet(Manner.ANSWER, lie)


def test_a_stream_that_is_cut_off_is_noticed() -> None:
    def stop(sock: socket.socket) -> None:
        Talk(sock).hear_end() if not sock.recv(400_000) else sock.shutdown(socket.SHUT_WR)

    with pytest.raises((CutError, OSError)):
        meet(Manner.HALF, stop)


def test_an_end_instead_of_a_reset_is_noticed() -> None:
    one, other = socket.socketpair()
    with one, other:
        threading.Thread(target=other.shutdown, args=(socket.SHUT_WR,)).start()
        with pytest.raises(CutError, match="arrived as an end"):
            Talk(one).hear_reset()


# --- the command ------------------------------------------------------------------------------------------------------


def soak(folder: Path, minutes: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.soak", "--seed", "1", "--report", str(folder)]
    environ = {**os.environ, "SOAK_MINUTES": minutes}
    return subprocess.Popen(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_short_soak_runs_to_its_end_and_finds_nothing(tmp_path: Path) -> None:
    process = soak(tmp_path, "0.15")
    printed, said = process.communicate(timeout=240)
    assert process.returncode == 0, printed + said
    assert "the verdict: good" in printed
    page = (tmp_path / "soak.md").read_text()
    assert "lasting: sockets" in page
    assert "<svg" in (tmp_path / "soak.svg").read_text()


def test_ctrl_c_ends_it_with_the_report_so_far(tmp_path: Path) -> None:
    process = soak(tmp_path, "5")
    assert process.stderr is not None
    try:
        wait_until(lambda: "warm-up" in process.stderr.readline(), within=60, what="it is under way")  # type: ignore[union-attr]  # checked above
        time.sleep(1)  # in the midst of it
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "NOT COMPLETE" in printed
    assert "Traceback" not in said
    assert (tmp_path / "soak.md").exists()
