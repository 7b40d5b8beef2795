"""Tunnels in workers: one that dies interrupts its own tunnels briefly, and none outlives the supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.peers import Address, Target, connect, round_trip, time_to_first_byte
from tests.support.ports import free_port
from tests.support.processes import Command, Daemon, ProcessHarness
from tests.support.scale import GUARD_S, IS_FULL_SCALE
from tests.support.waiting import wait_until

PROMISE = 3.0
"""Seconds after the death of a worker until its tunnels serve again."""
FREEZE = 20.0 if IS_FULL_SCALE else 2.0
LOAD = 8 if IS_FULL_SCALE else 3
"""Visitors at once at each tunnel, each with one connection that lasts and short ones."""


class WorkersHarness:
    """Four servers on two workers, and their clients in a process of their own."""

    def __init__(self, harness: ProcessHarness, direction: str) -> None:
        self.harness = harness
        self.target: Target = harness.start_target()
        self.doors: dict[str, Address] = {}
        self.servers: dict[str, str] = {}
        servers, clients = self.servers, {}
        for name in ("a", "b", "c", "d"):
            tunnel, door = free_port(), free_port()
            entrance, exit_ = f"127.0.0.1:{door}", f"127.0.0.1:{self.target.port}"
            ends = (entrance, exit_) if direction == "reverse" else (exit_, entrance)
            servers[name] = f"server://abcdefgh@127.0.0.1:{tunnel}/{ends[0]}?mode={direction}"
            clients[name] = f"client://abcdefgh@127.0.0.1:{tunnel}/{ends[1]}"
            self.doors[name] = ("127.0.0.1", door)
        self.daemon: Daemon = harness.start_daemon(servers, supervisor={"workers": 2})
        self.clients = harness.start_daemon(clients, name="clients")
        for name in servers:
            self.daemon.wait_state("up", name=name, within=10)
            self.clients.wait_state("up", name=name, within=10)

    @property
    def workers(self) -> dict[int, int]:
        """The process of each worker, as the log has it."""
        said = re.findall(r"worker (\d+) runs as process (\d+)", self.daemon.log_text())
        return {int(number): int(pid) for number, pid in said}

    def rewrite(self, **changed: str) -> None:
        """Save the servers' file with other URLs."""
        content = json.loads(self.daemon.file.read_text())
        self.servers |= changed
        content["tunnels"] = self.servers
        self.daemon.file.write_text(json.dumps(content))

    def command(self, *arguments: str) -> Command:
        """A command to the servers' daemon, once it has ended well."""
        command = self.harness.start_command(*arguments, "--socket", str(self.daemon.socket))
        assert command.wait_exit() == 0, command.log_text()
        return command

    def names(self, worker: int) -> list[str]:
        return [tunnel["name"] for tunnel in self.daemon.status()["tunnels"] if tunnel["worker"] == worker]


class Visitors:
    """Come and stay, come and go, and count whatever goes wrong."""

    def __init__(self, doors: list[Address]) -> None:
        self.served = 0
        self.faults: list[str] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=visit, args=(door,), daemon=True)
            for door in doors
            for visit in (self._stay, self._come_and_go)
            for _ in range(LOAD)
        ]
        for thread in self._threads:
            thread.start()

    def _stay(self, door: Address) -> None:
        with self._noted(), connect(door) as sock:
            while not self._over.wait(0.01):
                self._ask(sock)

    def _come_and_go(self, door: Address) -> None:
        while not self._over.wait(0.02):
            with self._noted(), connect(door) as sock:
                self._ask(sock)

    def _ask(self, sock: socket.socket) -> None:
        token = os.urandom(64)
        if round_trip(sock, token) == token:
            self.served += 1
        else:
            raise ConnectionError("the stream ended")

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.faults.append(repr(error))

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * GUARD_S)


def lives(pid: int) -> bool:
    """Whether a thread of a process still runs, so that its sockets may be open.

    The first thread of a killed process may be a zombie while others, which share its descriptors, have not ended.
    """
    return any(map(_is_running, Path(f"/proc/{pid}/task").glob("*/stat")))


def _is_running(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def gone(house: WorkersHarness, pids: list[int], *, within: float) -> None:
    wait_until(lambda: not any(map(lives, pids)), within=within, what=f"no worker is left of {house.workers}")


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_a_killed_worker_is_replaced_and_the_others_are_not_affected(harness: ProcessHarness, direction: str) -> None:
    house = WorkersHarness(harness, direction)
    mine, others = house.names(1), house.names(2)
    assert len(mine) == len(others) == 2
    links = {name: house.daemon.tunnel(name)["link"] for name in others}
    visitors = harness.close_at_end(Visitors([house.doors[name] for name in others]))
    wait_until(lambda: visitors.served > 50, within=10, what="there is traffic")
    before = house.workers
    os.kill(before[1], signal.SIGKILL)
    for name in mine:
        time_to_first_byte(house.doors[name], within=PROMISE)
    served = visitors.served
    wait_until(lambda: visitors.served > served + 50, within=10, what="traffic goes on")
    visitors.close()
    assert visitors.faults == []
    for name in others:
        shown = house.daemon.tunnel(name)
        assert (shown["link"], shown["restarts"], shown["worker"]) == (links[name], 0, 2)
    for name in mine:
        shown = house.daemon.wait_state("up", name=name)
        assert (shown["restarts"], shown["worker"]) == (1, 1)
        assert "worker 1 was killed by SIGKILL" in shown["last_error"]
    assert house.workers[2] == before[2]
    assert house.workers[1] != before[1]


@pytest.mark.slow
def test_a_worker_that_is_killed_repeatedly_is_replaced_each_time(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    (name, *_) = house.names(1)
    for _ in range(3):
        pid = house.workers[1]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: house.workers[1] != pid, within=PROMISE, what="there is another worker")  # type: ignore[misc]  # mypy does not infer defaults of lambdas
        time_to_first_byte(house.doors[name], within=PROMISE)
    wait_until(lambda: house.daemon.tunnel(name)["restarts"] == 3, within=5, what="each of them is counted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_signal_to_the_group_drains_and_leaves_no_orphan(
    harness: ProcessHarness, number: signal.Signals
) -> None:
    house = WorkersHarness(harness, "reverse")
    pids = list(house.workers.values())
    with connect(house.doors["a"]) as visitor:
        assert round_trip(visitor, b"before") == b"before"
        for pid in pids:
            os.kill(pid, number)
        house.daemon.signal(number)
        house.daemon.wait_state("draining", name="a")
        assert round_trip(visitor, b"during") == b"during"
    assert house.daemon.wait_exit(within=5) == 0
    gone(house, pids, within=0.5)
    assert "disconnected" not in house.daemon.log_text()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_supervisor_leaves_no_orphan(harness: ProcessHarness, *, stopped: bool) -> None:
    house = WorkersHarness(harness, "reverse")
    pids = list(house.workers.values())
    if stopped:
        os.kill(pids[0], signal.SIGSTOP)
    house.daemon.kill()
    gone(house, pids, within=2)
    for door in house.doors.values():
        socket.create_server(door).close()


def test_a_second_process_signal_ends_even_a_worker_that_hangs(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    pids = list(house.workers.values())
    os.kill(pids[0], signal.SIGSTOP)
    house.daemon.signal(signal.SIGTERM)
    house.daemon.wait_for_log("shutting down")
    house.daemon.signal(signal.SIGTERM)
    assert house.daemon.wait_exit(within=8) == 0
    gone(house, pids, within=0.5)


def test_a_supervisor_that_hangs_affects_no_visitor_and_no_worker(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    visitors = harness.close_at_end(Visitors(list(house.doors.values())))
    wait_until(lambda: visitors.served > 50, within=10, what="there is traffic")
    pids = house.workers
    house.daemon.signal(signal.SIGSTOP)
    time.sleep(FREEZE)  # how long the supervisor is frozen
    served = visitors.served
    wait_until(lambda: visitors.served > served + 50, within=10, what="traffic goes on without the supervisor")
    house.daemon.signal(signal.SIGCONT)
    counted = house.daemon.tunnel("a")["connections"]["total"]
    wait_until(
        lambda: house.daemon.tunnel("a")["connections"]["total"] > counted, within=5, what="it counts visitors again"
    )
    visitors.close()
    assert visitors.faults == []
    assert house.workers == pids
    assert "not answer" not in house.daemon.log_text()


@pytest.mark.slow
def test_a_worker_that_hangs_is_reported_and_replaced(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    mine, others = house.names(1), house.names(2)
    os.kill(house.workers[1], signal.SIGSTOP)
    wait_until(
        lambda: "worker 1 has not answered" in (house.daemon.tunnel(mine[0])["reason"] or ""),
        within=6,
        what="its silence is shown",
    )
    assert house.daemon.tunnel(others[0])["reason"] is None
    time_to_first_byte(house.doors[others[0]], within=1)
    house.daemon.wait_for_log("worker 1 did not answer for 15 s and was killed", within=20)
    for name in mine:
        time_to_first_byte(house.doors[name], within=PROMISE)


def test_keys_are_on_no_command_line_and_in_no_log(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    for pid in house.workers.values():
        assert b"abcdefgh" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    os.kill(house.workers[1], signal.SIGKILL)
    house.daemon.wait_for_log("worker 1 was killed")
    assert "abcdefgh" not in house.daemon.log_text()


def test_a_worker_may_open_as_many_files_as_the_system_allows(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    for pid in house.workers.values():
        row = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in line)
        soft, hard = row.split()[3:5]
        assert soft == hard


def test_a_changed_entry_is_applied_in_its_worker_and_the_others_are_not_affected(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "forward")
    other_target = harness.start_target()
    links = {name: house.daemon.tunnel(name)["link"] for name in "bcd"}
    home = house.daemon.tunnel("a")["worker"]
    visitors = harness.close_at_end(Visitors([house.doors[name] for name in "bcd"]))
    wait_until(lambda: visitors.served > 50, within=10, what="there is traffic")
    with connect(house.doors["a"]) as visitor:
        assert round_trip(visitor, b"before") == b"before"
        house.rewrite(a=house.servers["a"].replace(f":{house.target.port}?", f":{other_target.port}?"))
        wait_until(lambda: house.daemon.status()["generation"] == 2, within=5, what="the file is applied")

        def is_elsewhere() -> bool:
            time_to_first_byte(house.doors["a"], within=PROMISE)  # the old link serves new visitors until it is closed
            return other_target.accepted > 0

        wait_until(is_elsewhere, within=PROMISE, what="visitors reach the new target")
        assert round_trip(visitor, b"after") == b"after"
    assert house.daemon.wait_state("up", name="a")["worker"] == home
    visitors.close()
    assert visitors.faults == []
    assert {name: house.daemon.tunnel(name)["link"] for name in "bcd"} == links
    assert house.daemon.tunnel("a")["restarts"] == 0


def test_a_port_that_is_taken_leaves_the_old_engine_in_its_worker(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    link = house.daemon.tunnel("a")["link"]
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        house.rewrite(a=re.sub(r":\d+/", f":{port}/", house.servers["a"]))
        assert "in use" in house.daemon.wait_for_log("failed|rejected")
    time_to_first_byte(house.doors["a"], within=1)
    assert house.daemon.tunnel("a")["link"] == link


def test_settings_are_changed_live_in_workers(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    link = house.daemon.tunnel("a")["link"]
    house.rewrite(a=f"{house.servers['a']}&signal_queue_limit=77")
    wait_until(lambda: house.daemon.tunnel("a")["signals"]["limit"] == 77, within=5, what="the new limit holds")
    assert house.daemon.tunnel("a")["link"] == link


def test_commands_reach_tunnels_in_workers(harness: ProcessHarness) -> None:
    house = WorkersHarness(harness, "reverse")
    house.command("stop", "a", "b")
    house.daemon.wait_state("stopped", name="a")
    house.daemon.wait_state("stopped", name="b")
    time_to_first_byte(house.doors["c"], within=1)
    house.command("start", "a", "b")
    house.command("restart", "c")
    for name in "abc":
        time_to_first_byte(house.doors[name], within=PROMISE)
    assert "WORKER" in house.command("ps").stdout_text()


def test_a_shutdown_before_the_workers_have_started_prints_no_error(harness: ProcessHarness) -> None:
    url = f"client://127.0.0.1:{free_port()}/127.0.0.1:1"
    daemon = harness.start_daemon({"t": url}, supervisor={"workers": 2})
    daemon.wait_for_log("1 of 1 tunnel started", within=10)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait_exit(within=5) == 0
