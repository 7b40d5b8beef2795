"""What runs out: descriptors, places for strangers, the disk; and what many relays cost. The tunnels serve on."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.faults.conftest import Figure
from tests.faults.loads import Crowd, cpu_seconds, descriptors, want_descriptors
from tests.integration.harness import NOTHING, Stage, until
from tests.integration.peers import Address, ask, connect, exchange, first_byte
from tests.ports import free_port
from tests.scale import FULL

TABLE = 100
"""Descriptors that the end whose table is full may have."""
IDLERS = 10_000 if FULL else 2_000
RELAYS = (1_000, 2_000, 4_000) if FULL else (200, 400, 800)


@pytest.mark.case("descriptor table full", deadline=60)
@pytest.mark.parametrize("limited", ["server", "client"])
@pytest.mark.parametrize("direction", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_descriptors(stage: Stage, figure: Figure, direction: str, limited: str) -> None:
    """More visitors than one end has descriptors for: some are served, nothing spins, others come in when they leave.

    Without the reserve (``descriptors._spare`` always 0) an entrance takes visitors until no data connection can be
    accepted any more, serves eight or none, and never again; an exit has no descriptor left for targets; of neither
    does ``ps`` answer, and the local API's accept fails a hundred times a second.
    """
    tight = ("prlimit", f"--nofile={TABLE}:{TABLE}")
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    visitors = ("127.0.0.1", visitor_port)
    ends = [f"127.0.0.1:{visitor_port}", f"127.0.0.1:{target.port}"]
    if direction == "forward":
        ends.reverse()
    urls = {
        "server": f"server://127.0.0.1:{port}/{ends[0]}?mode={direction}",
        "client": f"client://127.0.0.1:{port}/{ends[1]}",
    }
    daemons = {
        role: stage.up({"t": url}, name=role, prefix=tight if role == limited else ()) for role, url in urls.items()
    }
    full = daemons[limited]
    for daemon in daemons.values():
        daemon.is_in("up", within=15)
    with contextlib.ExitStack() as leaving:
        crowd = [leaving.enter_context(connect(visitors)) for _ in range(TABLE)]
        for visitor in crowd:
            visitor.sendall(b"x")
        until(lambda: target.active >= TABLE // 5, within=10, what=f"{target.active} are served, a fifth at least")
        until(lambda: "almost none left" in (full.tunnel()["last_error"] or ""), within=5, what="ps shows the reason")
        time.sleep(0.5)  # whatever was under way has found its place
        served, before, began = target.active, cpu_seconds(full.pid), time.monotonic()
        time.sleep(1)  # the time over which is measured
        used = (cpu_seconds(full.pid) - before) / (time.monotonic() - began)
        assert used < 0.3, f"{used:.2f} s of a processor in one second at rest"
        assert descriptors(full.pid) <= TABLE
    full.says("almost none left")
    back = first_byte(visitors, within=10)  # who had no data connection is waited for, for five seconds
    until(lambda: full.tunnel()["connections"]["active"] == 0, within=10, what="all have left")
    figure(f"{served} of {TABLE} served at once, {used * 100:.0f} % of a core, back after {back:.1f} s")


@pytest.mark.case("idle unauthenticated connections", deadline=60)
def test_idlers(stage: Stage, figure: Figure) -> None:
    """Silent connections from many addresses; the rightful client is in nevertheless, and they cost little.

    With ``strangers.IN_ALL`` enormous every idler keeps a descriptor of the server; with newcomers refused instead of
    the oldest dismissed (``Strangers.admit`` dismissing the stranger it was given) the client waits for ten seconds.
    """
    want_descriptors(IDLERS + 500)
    target = stage.target()
    port, visitor_port = free_port(), free_port()
    server = stage.up({"t": f"server://abcdefgh@127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode=reverse"}, name="server")
    server.is_in("waiting", within=15)
    before = server.rss()
    with contextlib.ExitStack() as closing:
        for number in range(IDLERS):
            idler = closing.enter_context(socket.socket())
            idler.bind((f"127.0.{number // 250 % 250}.{number % 250 + 1}", 0))
            idler.setblocking(False)
            idler.connect_ex(("127.0.0.1", port))
        client = stage.up({"t": f"client://abcdefgh@127.0.0.1:{port}/127.0.0.1:{target.port}"}, name="client")
        client.says("tunnels started", within=10)
        took = first_byte(("127.0.0.1", visitor_port), within=2)
        until(
            lambda: server.tunnel()["refused"]["silent"] >= IDLERS - 1_024 - 10,
            within=15,
            what="all have come, and the oldest were sent away",
        )
        grown, held = server.rss() - before, descriptors(server.pid)
    assert held < 1_024 + 200
    assert grown < 8 << 20
    figure(f"{IDLERS}: client serves after {took:.2f} s, {held} descriptors, {grown / 1024:.0f} KB more")


@pytest.mark.case("memory of many relays", deadline=120)
@pytest.mark.parametrize("direction", ["reverse", *(["forward"] if FULL else [])])
def test_many_relays(stage: Stage, figure: Figure, direction: str) -> None:
    """So many relayed connections, each of which has carried something; each costs both ends together a few KB.

    With a buffer of its own for each relay (``Flow._view`` a new ``b"x" * BUFFER_SIZE``) a connection costs 500 KB.
    """
    want_descriptors(2 * RELAYS[-1] + 500)
    target = stage.keep(Crowd())
    port, visitor_port = free_port(), free_port()
    ends = [f"127.0.0.1:{visitor_port}", f"127.0.0.1:{target.port}"]
    if direction == "forward":
        ends.reverse()
    limits = f"semaphore_limit={RELAYS[-1] + 100}"
    server = stage.up({"t": f"server://127.0.0.1:{port}/{ends[0]}?mode={direction}&{limits}"}, name="server")
    client = stage.up({"t": f"client://127.0.0.1:{port}/{ends[1]}?{limits}"}, name="client")
    for daemon in (server, client):
        daemon.is_in("up", within=15)
    visitors: Address = ("127.0.0.1", visitor_port)
    with contextlib.ExitStack() as leaving:
        staying = [leaving.enter_context(connect(visitors)) for _ in range(RELAYS[0] // 10)]
        seen: list[tuple[int, int]] = [(0, server.rss() + client.rss())]
        for count in RELAYS:
            for number in range(len(staying), count):
                staying.append(leaving.enter_context(connect(visitors)))
                assert ask(staying[-1], number.to_bytes(4, "big")) == number.to_bytes(4, "big")
            seen.append((count, server.rss() + client.rss()))
    costs = [(after - before) / (more - fewer) / 1024 for (fewer, before), (more, after) in itertools.pairwise(seen)]
    assert all(cost < 10 for cost in costs), costs
    noise = 1.0 if FULL else 4.0  # KB each that memory taken in large pieces makes of so few
    assert costs[-1] < 2 * max(costs[0], noise), f"each costs more, the more there are: {costs}"
    until(lambda: server.tunnel()["connections"]["active"] == 0, within=20, what="all have left")
    shown = ", ".join(f"{count}: {cost:.1f}" for count, cost in zip(RELAYS, costs, strict=True))
    figure(f"KB each at both ends together, {shown}")


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Generator[Path]:
    """A disk of its own that is soon full."""
    if os.geteuid() != 0:
        pytest.skip("a disk of its own needs root")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk of its own here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.case("disk full, log and state", deadline=60)
def test_disk(stage: Stage, figure: Figure) -> None:
    """File, log and state directory are on a full disk: visitors notice nothing, the reason is said where it can be.

    Without the count of ``LogWriter._write`` (an OSError that loses nothing and is no trouble) nothing ever tells of
    the lines that are missing; with the error raised the log's thread dies, and the log stays silent when there is room
    again.
    """
    with small_disk(stage.directory / "small", "64k") as disk:
        target = stage.target()
        port, visitor_port = free_port(), free_port()
        visitors = ("127.0.0.1", visitor_port)
        on_disk = stage.keep(Stage(disk))
        urls = {
            "s": f"server://127.0.0.1:{port}/127.0.0.1:{visitor_port}?mode=reverse",
            "c": f"client://127.0.0.1:{port}/127.0.0.1:{target.port}",
        }
        nobody = {"mqtt": {"url": f"mqtt://127.0.0.1:{free_port()}"}}  # no host: an id wants to be kept
        (disk / "state").mkdir()
        ballast = disk / "ballast"
        fill_first = (
            "sh",
            "-c",
            f'cat /dev/zero > {ballast} 2>/dev/null; exec "$@"',
            "sh",
        )  # its file is there by then
        daemon = on_disk.up(urls, supervisor=nobody, env={"STATE_DIRECTORY": str(disk / "state")}, prefix=fill_first)
        first_byte(visitors, within=15)
        assert daemon.said() == ""
        for _ in range(20):
            daemon.signal(signal.SIGHUP)  # each reload is a line
            assert exchange(visitors, b"x" * 1000) == b"x" * 1000
        said = logs(stage, daemon.socket)
        assert sum("the log cannot be written: no space left on device" in line for line in said) == 1
        assert sum("cannot keep this host's id in" in line for line in said) == 1
        assert list((disk / "state").iterdir()) == [], "half an id is left"
        ballast.unlink()
        daemon.signal(signal.SIGHUP)
        lost = daemon.says(r"\d+ lines of this log lost: no space left on device", within=5)
        daemon.says("generation 1 stays")
        assert exchange(visitors, b"after") == b"after"
        daemon.signal(signal.SIGTERM)
        assert daemon.ends() == 0
        figure(lost.split("  ")[-1])


def logs(stage: Stage, socket: Path) -> list[str]:
    """What a daemon still remembers of its log."""
    command = stage.run("logs", "-n", "500", "--socket", str(socket), env=NOTHING)
    assert command.ends(within=20) == 0
    return command.printed().splitlines()
