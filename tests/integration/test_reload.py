"""The file changes while traffic flows: changed tunnels change, and the others are not affected."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.peers import Address, Target, connect, echo, exchange, receive_all, round_trip
from tests.support.ports import free_port
from tests.support.processes import Daemon, ProcessHarness
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until

PROMPT = 1.0
"""Seconds from a save to what it changes."""

PAIRS = 50

Tunnels = dict[str, Any]
in_workers = pytest.mark.parametrize("workers", [0, 2])
both_directions = pytest.mark.parametrize("direction", ["reverse", "forward"])


class Pair:
    """The two entries of a tunnel, in one file."""

    def __init__(self, name: str, direction: str, target: Target, **options: object) -> None:
        self.name = name
        self.direction = direction
        self.port, self.visitor_port = free_port(), free_port()
        self.options = options
        self.target = target

    @property
    def visitors(self) -> Address:
        """The addresses for visitors."""
        return "127.0.0.1", self.visitor_port

    @property
    def exit(self) -> str:
        """The entry that dials the target."""
        return f"{self.name}-{'client' if self.direction == 'reverse' else 'server'}"

    @property
    def ingress(self) -> str:
        """The entry that accepts visitors."""
        return f"{self.name}-{'server' if self.direction == 'reverse' else 'client'}"

    def entries(self, **options: object) -> Tunnels:
        """The entries of both ends."""
        entrance, exit_ = f"127.0.0.1:{self.visitor_port}", f"127.0.0.1:{self.target.port}"
        ends = (entrance, exit_) if self.direction == "reverse" else (exit_, entrance)
        urls = {
            "server": f"server://127.0.0.1:{self.port}/{ends[0]}?mode={self.direction}",
            "client": f"client://127.0.0.1:{self.port}/{ends[1]}",
        }
        return {
            f"{self.name}-{role}": {"url": url, "key": "abcdefgh", **self.options, **options}
            for role, url in urls.items()
        }


class LiveReloadHarness:
    """A daemon, its file, and how the file is saved."""

    def __init__(self, harness: ProcessHarness, tunnels: Tunnels, workers: int = 0, **more: Any) -> None:  # noqa: ANN401  what YAML can say
        self.daemon: Daemon = harness.start_daemon({}, name="house", supervisor={"workers": workers})
        self.file = self.daemon.file
        wait_until(self.answers, within=15, what="the daemon answers")
        self.file.write_text(document(tunnels, **more))
        self.applied(2, within=10)
        self.is_up()

    def answers(self) -> bool:
        """Whether the daemon does."""
        with contextlib.suppress(OSError):
            return self.generation == 1
        return False

    def save(self, tunnels: Tunnels, how: Callable[[Path, str], object] = Path.write_text, **more: Any) -> float:  # noqa: ANN401  as above
        """Seconds until the daemon has applied it."""
        before = self.generation
        how(self.file, document(tunnels, **more))
        return self.applied(before + 1)

    def applied(self, generation: int, *, within: float = PROMPT) -> float:
        """Seconds until that generation is there."""
        began = time.monotonic()
        wait_until(
            lambda: self.generation >= generation, within=within, what=f"generation {generation} of {self.config}"
        )
        return time.monotonic() - began

    def wrong(self, what: str) -> str:
        """The error that the daemon shows, once it does."""
        wait_until(lambda: not self.config["ok"], within=PROMPT, what=what)
        return str(self.config["error"])

    def descriptors(self) -> int:
        """How many the daemon has open."""
        return len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))

    @property
    def generation(self) -> int:
        return int(self.daemon.status()["generation"])

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.daemon.status()["config"])

    def states(self) -> dict[str, str]:
        return {tunnel["name"]: tunnel["state"] for tunnel in self.daemon.status()["tunnels"]}

    def links(self) -> dict[str, str]:
        return {tunnel["name"]: tunnel["link"] for tunnel in self.daemon.status()["tunnels"]}

    def limits(self) -> dict[str, int]:
        return {tunnel["name"]: tunnel["pool"]["max"] for tunnel in self.daemon.status()["tunnels"]}

    def is_up(self, *, within: float = 20.0) -> None:
        """Wait until every tunnel is."""
        wait_until(lambda: set(self.states().values()) == {"up"}, within=within, what=f"all up: {self.states()}")

    def reload(self) -> dict[str, Any]:
        """Ask for it, as the command does."""
        answer = subprocess.run(
            ["curl", "-sS", "-X", "POST", "--unix-socket", self.daemon.socket, "http://localhost/v1/reload"],
            check=True,
            capture_output=True,
            timeout=GUARD_S,
        )
        found: dict[str, Any] = json.loads(answer.stdout)
        return found


class Visitors:
    """A lasting connection to each address, and short ones; each failure is recorded."""

    def __init__(self, addresses: Sequence[Address], *, comers: int = 2) -> None:
        self.failures: list[str] = []
        self.served = 0
        self._leaving = threading.Event()
        addresses = list(addresses)
        works = [(self._stay, address) for address in addresses]
        works += [(self._come_and_go, addresses[start:] + addresses[:start]) for start in range(comers)]  # type: ignore[misc]  # each takes its own
        self._threads = [threading.Thread(target=self._try, args=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """End the load; every visitor was served."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(2 * GUARD_S)
        assert self.failures == []
        assert self.served > len(self._threads)

    def _try(self, work: Callable[[Any], None], where: object) -> None:
        try:
            work(where)
        except Exception as error:  # noqa: BLE001  whatever it is, it is a visitor who was not served
            self.failures.append(f"{work.__name__} at {where}: {error!r}")

    def _stay(self, address: Address) -> None:
        with connect(address) as sock:
            while not self._leaving.wait(0.1):
                token = os.urandom(64)
                assert round_trip(sock, token) == token
                self.served += 1
            sock.shutdown(1)
            assert receive_all(sock) == b""

    def _come_and_go(self, addresses: Sequence[Address]) -> None:
        for address in itertools.cycle(addresses):
            if self._leaving.is_set():
                return
            token = os.urandom(64)
            assert exchange(address, token) == token, address
            self.served += 1


@contextlib.contextmanager
def visitors(*pairs: Pair) -> Generator[Visitors]:
    """Traffic through these, before, during and after what the test does."""
    there = Visitors([pair.visitors for pair in pairs])
    wait_until(lambda: there.served > 2 * len(pairs), within=10, what=f"traffic; {there.failures}")
    try:
        yield there
        so_far = there.served
        wait_until(lambda: there.served > so_far + 2 * len(pairs), within=10, what=f"traffic goes on; {there.failures}")
    finally:
        there.leave()


def connections_to(port: int) -> set[str]:
    """Both ends of the established connections to a port of this host."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"{line[1]} {line[2]}" for line in lines if line[2].endswith(f":{port:04X}") and line[3] == "01"}


def document(tunnels: Mapping[str, object], **more: object) -> str:
    """A file of tunnels, one a line."""
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in {"version": 1, **more}.items()]
    return "".join(lines) + "tunnels:\n" + "".join(f"  {json.dumps(n)}: {json.dumps(e)}\n" for n, e in tunnels.items())


@pytest.fixture
def pairs(harness: ProcessHarness) -> tuple[Pair, Pair]:
    """One of each direction."""
    target = harness.start_target()
    return Pair("one", "reverse", target), Pair("two", "forward", target)


@in_workers
def test_an_edit_of_three_of_many_tunnels_affects_only_them(harness: ProcessHarness, workers: int) -> None:
    target, other = harness.start_target(), harness.start_target()
    crowd = [Pair(f"pair-{n}", ("reverse", "forward")[n % 2], target, min_pool_capacity=2) for n in range(PAIRS)]
    edited, shrunk, quiet, *others = crowd
    tunnels: Tunnels = {}
    for pair in crowd:
        tunnels |= pair.entries()
    house = LiveReloadHarness(harness, tunnels, workers)
    links = house.links()
    data_port = int(house.daemon.tunnel(f"{quiet.name}-server")["data_addr"].rpartition(":")[2])
    idle = wait_until(lambda: len(found := connections_to(data_port)) >= 2 and found, within=5, what="its pool is full")

    edited.target = other
    tunnels |= edited.entries()
    del tunnels[shrunk.exit]
    new = Pair("new", "reverse", target)
    tunnels |= {new.exit: new.entries()[new.exit]}
    lines = document(tunnels).splitlines(keepends=True)
    text = "".join(line if "pair-0" in line or "new" in line else f"# said anew\n{line}" for line in lines)
    with visitors(*others):
        house.file.write_text(text)
        house.applied(3)
        results = house.reload()["results"]  # at once: it tells what the watcher has just done
        wait_until(
            lambda: exchange(edited.visitors, b"x") == b"x" and other.accepted > 0, within=5, what="the new target"
        )
    assert connections_to(data_port) == idle
    touched = {*edited.entries(), *shrunk.entries(), *new.entries()}
    assert {n: link for n, link in house.links().items() if n not in touched} == {
        n: link for n, link in links.items() if n not in touched
    }
    assert shrunk.exit not in house.states()
    done = {name: result["action"] for name, result in results.items() if result["action"] != "unchanged"}
    assert done == {edited.exit: "restarted", shrunk.exit: "removed", new.exit: "added"}
    assert len(results) == 2 * PAIRS + 1
    said = house.daemon.wait_for_log(r"generation 3: ")
    assert f"1 added, 1 removed, 1 restarted, {2 * PAIRS - 2} unchanged" in said


@both_directions
@pytest.mark.parametrize("end", ["ingress", "exit"])
def test_a_changed_tunnel_refuses_no_visitor(harness: ProcessHarness, direction: str, end: str) -> None:
    pair = Pair("web", direction, harness.start_target())
    house = LiveReloadHarness(harness, pair.entries(), supervisor={"drain_timeout": "20s"})
    name = pair.ingress if end == "ingress" else pair.exit
    with visitors(pair):
        for level in (0, 1, 0):
            entries = pair.entries()
            house.save(entries | {name: {**entries[name], "tls": level}}, supervisor={"drain_timeout": "20s"})
            house.is_up(within=5)


@both_directions
def test_an_entry_with_another_name_refuses_no_visitor(harness: ProcessHarness, direction: str) -> None:
    pair = Pair("web", direction, harness.start_target())
    house = LiveReloadHarness(harness, pair.entries(), supervisor={"drain_timeout": "20s"})
    with visitors(pair):
        pair.name = "www"
        house.save(pair.entries(), supervisor={"drain_timeout": "20s"})
        wait_until(lambda: house.states()["www-server"] == house.states()["www-client"] == "up", within=5, what="up")


def by_vim(*options: str) -> Callable[[Path, str], None]:
    def save(file: Path, text: str) -> None:
        new = file.with_suffix(".txt")
        new.write_text(text)
        settings = [word for option in ("nocompatible", *options) for word in ("-c", f"set {option}")]
        command = ["vim", "-es", "-u", "NONE", "-i", "NONE", *settings, "-c", f"%!cat {new}", "-c", "wq", str(file)]
        subprocess.run(command, check=True, timeout=20)

    return save


def by_mv(file: Path, text: str) -> None:
    new = file.with_suffix(".txt")
    new.write_text(text)
    subprocess.run(["mv", new, file], check=True, timeout=10)


def by_cp(file: Path, text: str) -> None:
    new = file.with_suffix(".txt")
    new.write_text(text)
    subprocess.run(["cp", new, file], check=True, timeout=10)


needs_vim = pytest.mark.skipif(not shutil.which("vim"), reason="vim is not installed")


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(by_vim("backupcopy=no"), marks=needs_vim, id="vim that renames"),
        pytest.param(by_vim("backupcopy=yes"), marks=needs_vim, id="vim in place"),
        pytest.param(by_mv, id="mv"),
        pytest.param(by_cp, id="cp"),
    ],
)
def test_every_way_to_save_is_applied(
    harness: ProcessHarness, pairs: tuple[Pair, Pair], save: Callable[[Path, str], None]
) -> None:
    one, two = pairs
    house = LiveReloadHarness(harness, {**one.entries(), **two.entries()})
    with visitors(two):
        one.target = harness.start_target()
        house.save({**one.entries(), **two.entries()}, save)
        wait_until(
            lambda: exchange(one.visitors, b"x") == b"x" and one.target.accepted > 0, within=5, what="new target"
        )


def test_a_file_edited_by_sed_in_place_is_applied(harness: ProcessHarness, pairs: tuple[Pair, Pair]) -> None:
    one, two = pairs
    house = LiveReloadHarness(harness, {**one.entries(), **two.entries()})
    new = harness.start_target()
    with visitors(two):
        number = house.generation
        subprocess.run(["sed", "-i", f"/{one.exit}/s/{one.target.port}/{new.port}/", house.file], check=True)
        house.applied(number + 1)
        wait_until(lambda: exchange(one.visitors, b"x") == b"x" and new.accepted > 0, within=5, what="the new target")


def test_equal_content_makes_no_generation(harness: ProcessHarness, pairs: tuple[Pair, Pair]) -> None:
    house = LiveReloadHarness(harness, pairs[0].entries())
    number, links = house.generation, house.links()
    by_cp(house.file, house.file.read_text())
    by_mv(house.file, house.file.read_text())
    os.utime(house.file)
    time.sleep(1.0)  # as long as a change would take at the most
    assert (house.generation, house.links()) == (number, links)


def test_swapped_links_as_in_kubernetes_are_applied(harness: ProcessHarness, pairs: tuple[Pair, Pair]) -> None:
    one, two = pairs
    folder = harness.directory / "config"
    folder.mkdir()

    def swap(number: int, tunnels: Tunnels) -> None:
        version = folder / f"..2026_{number}"
        version.mkdir()
        (version / "tunnels.yaml").write_text(document(tunnels))
        (folder / "..data_tmp").symlink_to(version.name)
        (folder / "..data_tmp").rename(folder / "..data")
        for old in folder.glob("..2026_*"):
            if old != version:
                shutil.rmtree(old)

    swap(1, two.entries())
    file = folder / "tunnels.yaml"
    file.symlink_to("..data/tunnels.yaml")
    command = harness.start_command("up", str(file), "--no-tui", "--socket", str(harness.directory / "linked.sock"))
    command.wait_for_log("two-server .*→ up", within=10)
    with visitors(two):
        swap(2, {**two.entries(), **one.entries()})
        command.wait_for_log("generation 2: 2 added, 2 unchanged", within=PROMPT)
        swap(3, two.entries())
        command.wait_for_log("generation 3: 2 removed, 2 unchanged", within=PROMPT)


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (lambda text: text[: len(text) * 2 // 3], r":\d+:\d+: "),
        (lambda _: "", r":1:1: the file is empty"),
        (lambda text: text.replace("tunnels:", "tunels:"), r":2:1: unknown key 'tunels'.*did you mean 'tunnels'"),
        (lambda text: text.replace("client://", "clnt://"), r":4:\d+: unknown scheme"),
        (None, r":1:1: there is no such file"),
    ],
    ids=["half-written", "empty", "unknown key", "invalid", "deleted"],
)
def test_an_invalid_file_changes_nothing(
    harness: ProcessHarness, pairs: tuple[Pair, Pair], spoil: Callable[[str], str] | None, place: str
) -> None:
    tunnels = {**pairs[0].entries(), **pairs[1].entries()}
    house = LiveReloadHarness(harness, tunnels)
    good, number, links = house.file.read_text(), house.generation, house.links()
    with visitors(*pairs):
        if spoil is None:
            house.file.unlink()
        else:
            house.file.write_text(spoil(good))
        error = house.wrong("the error is shown")
        assert error.startswith(str(house.file))
        house.daemon.wait_for_log(
            f"ERROR .* the file is not applied, generation {number} stays in force: .*{place}", within=PROMPT
        )
        assert (house.generation, house.links()) == (number, links)
        house.file.write_text(good)
        wait_until(lambda: house.config["ok"], within=PROMPT, what="the error is gone")
    assert (house.generation, house.links()) == (number, links)


def test_a_file_is_not_read_while_it_is_being_written(harness: ProcessHarness, pairs: tuple[Pair, Pair]) -> None:
    tunnels = {**pairs[0].entries(), **pairs[1].entries()}
    house = LiveReloadHarness(harness, tunnels)
    number = house.generation
    lines = document(tunnels, defaults={"log": "warn"}).splitlines(keepends=True)
    with visitors(*pairs):
        with house.file.open("w") as stream:
            for line in lines:  # each of which leaves a file that would be valid
                stream.write(line)
                stream.flush()
                time.sleep(0.4)
            assert house.generation == number
        house.applied(number + 1)
        assert len(house.states()) == 4


def test_an_included_file_is_applied_on_every_change(harness: ProcessHarness, pairs: tuple[Pair, Pair]) -> None:
    one, two = pairs
    house = LiveReloadHarness(harness, two.entries(), include=["more/*.yaml"])
    (house.file.parent / "more").mkdir()
    inner = house.file.parent / "more/inner.yaml"
    with visitors(two):
        number = house.generation
        inner.write_text(document(one.entries()))
        house.applied(number + 1, within=2 + PROMPT)  # the watcher must notice the new directory first
        house.is_up()
        one.target = harness.start_target()
        inner.write_text(document(one.entries()))
        house.applied(number + 2)
        wait_until(
            lambda: exchange(one.visitors, b"x") == b"x" and one.target.accepted > 0, within=5, what="new target"
        )
        inner.write_text("tunnels: [")
        fault = f"{inner}:2:1: this is not YAML"
        wait_until(lambda: fault in house.wrong("the included file's fault"), within=PROMPT, what="its place is shown")
        inner.unlink()
        house.applied(number + 3)
        wait_until(lambda: set(house.states()) == set(two.entries()), within=5, what="the included ones have drained")


@in_workers
def test_an_entry_whose_port_is_taken_is_rejected(
    harness: ProcessHarness, pairs: tuple[Pair, Pair], workers: int
) -> None:
    one, two = pairs
    house = LiveReloadHarness(harness, {**one.entries(), **two.entries()}, workers)
    old, taken = (
        one.visitor_port,
        harness.close_at_end(Target(echo, listener=socket.create_server(("127.0.0.1", free_port())))),
    )
    with visitors(one, two):
        one.visitor_port = taken.port
        tunnels = {**one.entries(), **two.entries(log="warn")}
        house.save(tunnels)
        one.visitor_port = old
        seen = house.daemon.tunnel(one.ingress)
        assert seen["state"] == "up"
        assert f"127.0.0.1:{taken.port}" in seen["last_error"]
        result = house.reload()["results"][one.ingress]
        assert result["action"] == "rejected"
        assert "in use" in result["detail"]
    taken.close()
    assert house.reload()["results"][one.ingress]["action"] == "restarted"
    wait_until(lambda: exchange(("127.0.0.1", taken.port), b"x") == b"x", within=5, what="the port at last")


@in_workers
def test_two_tunnels_swap_their_ports(harness: ProcessHarness, pairs: tuple[Pair, Pair], workers: int) -> None:
    one, two = pairs
    two.target = harness.start_target()
    house = LiveReloadHarness(harness, {**one.entries(), **two.entries()}, workers)
    one.visitor_port, two.visitor_port = two.visitor_port, one.visitor_port
    house.save({**one.entries(), **two.entries()})
    house.is_up()
    for pair in (one, two):
        before = pair.target.accepted
        assert exchange(pair.visitors, b"mine") == b"mine"
        assert pair.target.accepted == before + 1


def test_twenty_saves_in_two_seconds_end_with_the_last(harness: ProcessHarness, pairs: tuple[Pair, Pair]) -> None:
    one, two = pairs
    house = LiveReloadHarness(harness, {**one.entries(), **two.entries()}, supervisor={"drain_timeout": "1s"})
    targets = [harness.start_target() for _ in range(20)]
    with visitors(two):
        time.sleep(0.5)
        descriptors = house.descriptors()
        for one.target in targets:
            house.file.write_text(document({**one.entries(), **two.entries()}, supervisor={"drain_timeout": "1s"}))
            time.sleep(0.1)
        wanted = f"127.0.0.1:{targets[-1].port}"
        wait_until(lambda: house.daemon.tunnel(one.exit)["target_addr"] == wanted, within=PROMPT, what="the last save")
        wait_until(
            lambda: exchange(one.visitors, b"x") == b"x" and targets[-1].accepted > 0, within=5, what="the last target"
        )
        wait_until(
            lambda: house.descriptors() <= descriptors + 8,
            within=10,
            what=f"no descriptor is left over from {descriptors}",
        )


@in_workers
def test_limits_and_level_change_without_touching_a_connection(
    harness: ProcessHarness, pairs: tuple[Pair, Pair], workers: int
) -> None:
    tunnels = {**pairs[0].entries(), **pairs[1].entries()}
    house = LiveReloadHarness(harness, tunnels, workers)
    links = house.links()
    with visitors(*pairs):
        changed = {**pairs[0].entries(max_pool_capacity=5, log="debug"), **pairs[1].entries(max_pool_capacity=6)}
        house.save(changed, defaults={"report_interval": "4s"})
        wanted = {**dict.fromkeys(pairs[0].entries(), 5), **dict.fromkeys(pairs[1].entries(), 6)}
        wait_until(lambda: house.limits() == wanted, within=2, what=f"{house.limits()} are {wanted}")
    assert house.links() == links
    house.daemon.wait_for_log("4 changed")


def test_a_removed_tunnel_drains(harness: ProcessHarness, pairs: tuple[Pair, Pair]) -> None:
    one, two = pairs
    both = {**one.entries(), **two.entries()}
    house = LiveReloadHarness(harness, both, supervisor={"drain_timeout": "20s"})
    with visitors(two), connect(one.visitors) as staying:
        assert round_trip(staying, b"before") == b"before"
        house.save(two.entries(), supervisor={"drain_timeout": "20s"})
        assert house.states()[one.ingress] == "draining"
        with pytest.raises(ConnectionRefusedError):
            connect(one.visitors)
        assert round_trip(staying, b"after") == b"after"
        staying.shutdown(1)
        assert receive_all(staying) == b""
        wait_until(lambda: set(house.states()) == set(two.entries()), within=5, what="they are gone with their visitor")


def test_sighup_reads_the_file_again(harness: ProcessHarness, pairs: tuple[Pair, Pair]) -> None:
    house = LiveReloadHarness(harness, pairs[0].entries())
    house.daemon.signal(signal.SIGHUP)
    house.daemon.wait_for_log(r"no change \(generation 2\)")
