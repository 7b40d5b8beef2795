"""The file changes under load: only the changed entries are affected, and an invalid file changes nothing.

The quick versions of the slow cases are in ``tests/integration/test_reload.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import FigureRecorder
from tests.integration.test_reload import LiveReloadHarness, Pair, document, visitors
from tests.support.peers import Target, exchange
from tests.support.ports import free_port
from tests.support.processes import ProcessHarness
from tests.support.scale import IS_FULL_SCALE
from tests.support.waiting import wait_until

CHANGE_NOTICED_S = 5.0
"""Seconds within which a change of the file must be noticed: the promised two, and allowance for a busy machine."""
PAIRS = 50
ROUNDS = 3 if IS_FULL_SCALE else 1


def is_served_by(pair: Pair, target: Target) -> bool:
    """Whether a visitor of the pair reaches this target."""
    return exchange(pair.visitors, b"x") == b"x" and target.accepted > 0


def two_pairs(harness: ProcessHarness) -> tuple[Pair, Pair]:
    """Return one pair of each direction."""
    target = harness.start_target()
    return Pair("one", "reverse", target), Pair("two", "forward", target)


@pytest.mark.case("file truncated, invalid, renamed away", deadline=90)
def test_an_invalid_file_changes_nothing_and_is_shown(harness: ProcessHarness, record_figure: FigureRecorder) -> None:
    """Every visitor is served, the generation stays, ``ps`` shows the place; restoring the file is no change.

    Seen to fail: with an empty manifest applied instead of the invalid file refused, the tunnels drain and visitors
    are refused.
    """
    pairs = two_pairs(harness)
    daemon = LiveReloadHarness(harness, {**pairs[0].entries(), **pairs[1].entries()})
    good, number, links = daemon.file.read_text(), daemon.generation, daemon.links()
    away = daemon.file.with_suffix(".bak")
    worst = 0.0
    invalidations: list[Callable[[], object]] = [
        lambda: os.truncate(daemon.file, len(good) // 2),
        lambda: os.truncate(daemon.file, 0),
        lambda: daemon.file.write_text(good.replace("server://", "sever://", 1)),
        lambda: daemon.file.rename(away),
    ]
    with visitors(*pairs) as there:
        for _ in range(ROUNDS):
            for invalidate in invalidations if IS_FULL_SCALE else invalidations[::3]:
                invalidate()
                began = time.monotonic()
                wait_until(lambda: not daemon.config["ok"], within=CHANGE_NOTICED_S, what="the error is shown")
                worst = max(worst, time.monotonic() - began)
                assert daemon.config["error"].startswith(f"{daemon.file}:")
                assert (daemon.generation, daemon.links()) == (number, links)
                daemon.file.write_text(good)
                wait_until(lambda: daemon.config["ok"], within=CHANGE_NOTICED_S, what="the error is gone")
                assert (daemon.generation, daemon.links()) == (number, links)
        served = there.served
    record_figure(f"shown within {worst:.1f} s, {served} visits served, none failed")


@pytest.mark.slow
@pytest.mark.case("file replaced by rename and by a swapped symlink", deadline=90)
def test_a_replaced_file_or_symlink_is_applied(harness: ProcessHarness, record_figure: FigureRecorder) -> None:
    """As editors do it, and as Kubernetes does it (``..data`` points to another directory); no visitor is refused.

    Seen to fail: with file events of the file's own name alone, and without the periodic check, a swapped symlink is
    never noticed.
    """
    one, two = two_pairs(harness)
    daemon = LiveReloadHarness(harness, {**one.entries(), **two.entries()})
    directory = daemon.file.parent
    worst = 0.0

    def replace_by_rename(text: str) -> None:
        replacement = daemon.file.with_suffix(".new")
        replacement.write_text(text)
        replacement.rename(daemon.file)

    def replace_by_symlink(text: str) -> None:
        volume = directory / f"..{time.monotonic_ns()}"
        volume.mkdir()
        (volume / daemon.file.name).write_text(text)
        link, fresh = directory / "..data", directory / "..data_tmp"
        fresh.symlink_to(volume.name)
        fresh.rename(link)
        if not daemon.file.is_symlink():
            daemon.file.with_suffix(".link").symlink_to(Path("..data", daemon.file.name))
            daemon.file.with_suffix(".link").rename(daemon.file)

    with visitors(two) as there:
        for swap in [replace_by_rename, replace_by_symlink, replace_by_symlink] * ROUNDS:
            number = daemon.generation
            one.target = harness.start_target()
            time.sleep(1.5)  # the watcher has finished with the previous change
            swap(document({**one.entries(), **two.entries()}))
            worst = max(worst, daemon.applied(number + 1, within=CHANGE_NOTICED_S))
            wait_until(partial(is_served_by, one, one.target), within=5, what="the new target serves")
        served = there.served
    record_figure(f"applied within {worst:.1f} s, {served} visits to the other tunnel served, none failed")


@pytest.mark.slow
@pytest.mark.case("one of many reloaded under traffic", deadline=150)
def test_a_change_of_one_entry_does_not_affect_the_others(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """The target of one entry changes repeatedly under visitors of all others: none of them sees a reset.

    Seen to fail: with every entry treated as changed, all links are new after the first save.
    """
    target = harness.start_target()
    pairs = [Pair(f"pair-{n}", ("reverse", "forward")[n % 2], target, min_pool_capacity=2) for n in range(PAIRS)]
    edited, *others = pairs
    tunnels = {name: entry for pair in pairs for name, entry in pair.entries().items()}
    daemon = LiveReloadHarness(harness, tunnels)
    daemon.is_up(within=30)
    links = daemon.links()
    worst = 0.0
    with visitors(*others) as there:
        for _ in range(3):
            edited.target = harness.start_target()
            tunnels |= edited.entries()
            number = daemon.generation
            daemon.file.write_text(document(tunnels))
            worst = max(worst, daemon.applied(number + 1, within=CHANGE_NOTICED_S))
            wait_until(partial(is_served_by, edited, edited.target), within=10, what="the new target serves")
        served = there.served
    after = daemon.links()
    assert {name: after[name] for name in tunnels if name not in edited.entries()} == {
        name: links[name] for name in tunnels if name not in edited.entries()
    }
    record_figure(f"{2 * PAIRS - 1} unchanged, applied within {worst:.1f} s, {served} visits served, none failed")


@pytest.mark.slow
@pytest.mark.case("port in use at reload", deadline=60)
@pytest.mark.parametrize("workers", [0, 2], ids=["one process", "workers"])
def test_an_entry_whose_new_port_is_in_use_keeps_serving(
    harness: ProcessHarness, record_figure: FigureRecorder, workers: int
) -> None:
    """The entry reports the port in use and keeps serving on its old one; the other changes of the save are applied.

    Seen to fail: with the old engine drained before the new one has bound, its visitors are refused from then on.
    """
    one, two = two_pairs(harness)
    daemon = LiveReloadHarness(harness, {**one.entries(), **two.entries()}, workers)
    old, taken = one.visitor_port, harness.start_target()
    with visitors(one, two) as there:
        one.visitor_port = taken.port
        number = daemon.generation
        daemon.file.write_text(document({**one.entries(), **two.entries(log="warn")}))
        daemon.applied(number + 1, within=CHANGE_NOTICED_S)
        one.visitor_port = old
        seen = daemon.daemon.tunnel(one.ingress)
        assert seen["state"] == "up"
        assert f"127.0.0.1:{taken.port}" in seen["last_error"]
        result = daemon.reload()["results"][one.ingress]
        assert result["action"] == "rejected"
        served = there.served
    taken.close()
    assert daemon.reload()["results"][one.ingress]["action"] == "restarted"
    wait_until(
        lambda: exchange(("127.0.0.1", taken.port), b"x") == b"x", within=10, what="visitors are served on the new port"
    )
    record_figure(f"{result['detail'].partition(';')[0]}; {served} visits served, none failed")


@contextlib.contextmanager
def hanging_mount(place: Path) -> Generator[None]:
    """Mount a file system that never answers, as a dead file server: FUSE without a program that serves it."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"there is no FUSE here: {error.strerror}")
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"hangs", os.fsencode(place), b"fuse", 0, options):
            pytest.skip(f"cannot mount a file system here: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        libc.umount2(os.fsencode(place), 2)  # MNT_DETACH
        os.close(device)  # all that waits gets an error


@pytest.mark.slow
@pytest.mark.case("network file system that does not answer", deadline=90)
def test_a_file_system_that_does_not_answer_is_named_and_blocks_nothing(
    harness: ProcessHarness, record_figure: FigureRecorder
) -> None:
    """A key's directory hangs: ``reload`` names the file, ``ps`` answers, SIGTERM ends a daemon also during its start.

    Seen to fail: without the limit for one access ``reload`` gets no answer, the log says nothing, and a daemon that is
    being started has to be killed.
    """
    secrets = harness.directory / "secrets"
    secrets.mkdir()
    (secrets / "key").write_text("a-key-of-some-length-0123456789\n")
    url = f"server://127.0.0.1:{free_port()}/127.0.0.1:{free_port()}?key_file=secrets/key"
    daemon = harness.start_daemon({"t": url})
    daemon.wait_state("waiting", within=15)
    with hanging_mount(secrets):
        began = time.monotonic()
        reload = harness.start_command("reload", "--socket", str(daemon.socket))
        assert reload.wait_exit(within=25) == 2
        reported_s = time.monotonic() - began
        assert f"its file system has not answered for 10 s: {secrets}/key" in reload.log_text()
        assert daemon.tunnel()["state"] == "waiting"
    wait_until(lambda: daemon.status()["config"]["ok"], within=15, what="the file is read again")
    with hanging_mount(secrets):
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit(within=5) == 0
    with hanging_mount(secrets):
        starting = harness.start_command("up", str(daemon.file), "--no-tui")
        wait_until(lambda: len(list(Path(f"/proc/{starting.pid}/task").iterdir())) > 1, within=10)
        starting.signal(signal.SIGTERM)
        assert starting.wait_exit(within=5) == 0
    record_figure(f"named after {reported_s:.1f} s; SIGTERM obeyed at once, also during the start")
