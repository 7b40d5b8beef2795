"""The faults that are injected while tunnels carry traffic. Each declares which visits it may fail."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from tests.soak.datagram_load import DatagramLoad
from tests.soak.harness import DRAIN_S, RECOVERY_S, SoakDaemon, SoakHarness, Tunnel, send_signal
from tests.soak.incident_log import IncidentLog
from tests.soak.load import SoakLoad
from tests.support.peers import connect
from tests.support.sockets import close_with_reset
from tests.support.waiting import wait_until

_BURST_VISITORS: Final = 120
_STRANGE_DATAGRAMS: Final = 100
_FALLBACK_S: Final = 4.0  # in which flows leave a path that does not answer, and the status shows that
_REPLACED_GRACE_S: Final = 3.0  # beyond DRAIN_S, until a replaced engine has ended on a busy machine

Fault = Callable[["FaultInjector"], None]


class FaultInjector:
    """Injects faults in two threads, one after the other in each: ``HARD`` faults and ``SOFT`` faults."""

    def __init__(
        self, harness: SoakHarness, load: SoakLoad, datagram_load: DatagramLoad, seed: int, pause: float
    ) -> None:
        self.harness = harness
        self.load = load
        self.datagram_load = datagram_load
        self.rng = random.Random(seed)
        self.variants = dict.fromkeys(
            ((daemon.name, name) for daemon in harness.daemons for name in harness.tunnels), 0
        )
        self._pause = pause
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def incidents(self) -> IncidentLog:
        return self.harness.incidents

    def start(self) -> None:
        """Start the threads that inject faults."""
        self._over.clear()
        soft = SOFT if self.harness.host is None else (*SOFT, block_udp)
        self._threads = [
            threading.Thread(target=self._cycle, args=(list(faults), pause), daemon=True)
            for faults, pause in ((HARD, 3 * self._pause), (soft, self._pause))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the current faults and inject no more."""
        self._over.set()
        for thread in self._threads:
            thread.join(4 * RECOVERY_S)

    def inject(self, fault: Fault) -> None:
        """Inject one fault and wait until it is over."""
        what = (fault.__doc__ or fault.__name__).splitlines()[0].rstrip(".")
        began = time.monotonic()
        try:
            fault(self)
        except Exception as error:  # noqa: BLE001  a fault that cannot be injected is a finding, and the run continues
            self.incidents.record_finding(f"{what}: {error!r}")
        self.incidents.record_fault(what, began)

    def _cycle(self, faults: list[Fault], pause: float) -> None:
        while True:
            self.rng.shuffle(faults)
            for fault in faults:
                if self._over.wait(self.rng.uniform(0, 2 * pause)):
                    return
                self.inject(fault)

    # --- used by the faults -----------------------------------------------------------------------------------------

    def any_tunnel(self) -> Tunnel:
        """Return a random tunnel."""
        return self.rng.choice(list(self.harness.tunnels.values()))

    def any_daemon(self) -> SoakDaemon:
        """Return a random daemon."""
        return self.rng.choice(self.harness.daemons)

    def wait(self, least: float, most: float) -> None:
        """Wait for a random time during which the fault lasts."""
        self._over.wait(self.rng.uniform(least, most))

    def reload(self, daemon: SoakDaemon) -> None:
        """Wait until the daemon has applied its file, which another fault may delay."""

        def is_done() -> bool:
            with contextlib.suppress(OSError, ValueError):
                answer = json.loads(daemon.request("POST", "/v1/reload"))
                return bool(answer.get("ok")) or daemon.lock.locked()  # while it is held, the file may be invalid
            return False

        wait_until(is_done, within=RECOVERY_S, what=f"{daemon.name} reloads its file")


def _wait_recovered(injector: FaultInjector, what: str, names: Iterable[str]) -> None:
    injector.harness.wait_recovered(what, names)


# --- hard: a process is killed or stopped ------------------------------------------------------------------


def kill_daemon(injector: FaultInjector) -> None:
    """kill -9 of a daemon."""
    daemon, names = injector.harness.unstable, list(injector.harness.tunnels)
    with injector.incidents.open_window("kill -9", names, cuts=True, refuses=True), daemon.lock:
        daemon.kill()
        injector.wait(0, 1.5)
        daemon.start()
        _wait_recovered(injector, "kill -9 of a daemon", names)


def kill_worker(injector: FaultInjector) -> None:
    """kill -9 of a worker."""
    daemon, names = injector.harness.unstable, list(injector.harness.tunnels)
    with injector.incidents.open_window("kill -9 of a worker", names, cuts=True, refuses=True), daemon.lock:
        if workers := daemon.workers():
            send_signal([injector.rng.choice(workers)], signal.SIGKILL)
        _wait_recovered(injector, "kill -9 of a worker", names)


def freeze_daemon(injector: FaultInjector) -> None:
    """SIGSTOP of a daemon."""
    daemon, names = injector.any_daemon(), list(injector.harness.tunnels)
    with injector.incidents.open_window("SIGSTOP", names, cuts=False, refuses=True), daemon.lock:
        resume = daemon.freeze()
        injector.wait(0.5, 6)
        resume()
        _wait_recovered(injector, "SIGSTOP of a daemon", names)


def freeze_worker(injector: FaultInjector) -> None:
    """SIGSTOP of a worker."""
    daemon, names = injector.harness.unstable, list(injector.harness.tunnels)
    with injector.incidents.open_window("SIGSTOP of a worker", names, cuts=False, refuses=True), daemon.lock:
        workers = daemon.workers()
        pids = [injector.rng.choice(workers)] if workers else []
        send_signal(pids, signal.SIGSTOP)
        injector.wait(0.5, 5)
        send_signal(pids, signal.SIGCONT)
        _wait_recovered(injector, "SIGSTOP of a worker", names)


def restart_daemon(injector: FaultInjector) -> None:
    """SIGTERM of a daemon, then a restart."""
    daemon, names = injector.harness.unstable, list(injector.harness.tunnels)
    with injector.incidents.open_window("SIGTERM", names, cuts=True, refuses=True), daemon.lock:
        daemon.process.signal(signal.SIGTERM)
        if code := daemon.process.wait_exit(within=RECOVERY_S):
            injector.incidents.record_finding(f"{daemon.name} ended with exit code {code} after SIGTERM")
        daemon.start()
        _wait_recovered(injector, "SIGTERM of a daemon", names)


# --- soft: actions of users and of the environment ---------------------------------------------------


def change_entry(injector: FaultInjector) -> None:
    """A changed entry that needs a new engine."""
    daemon, tunnel = injector.any_daemon(), injector.any_tunnel()
    key = daemon.name, tunnel.name
    injector.variants[key] += 1
    began = time.monotonic()
    closes = tunnel.is_published and daemon.name == tunnel.server_daemon  # until its client has published it again
    begin = began if closes else began + DRAIN_S - 0.5
    with injector.incidents.open_window("change", [tunnel.name], cuts=True, refuses=closes, begin=begin):
        daemon.save(**{tunnel.name: tunnel.entry(daemon.name, variant=injector.variants[key])})
        injector.reload(daemon)
        time.sleep(DRAIN_S + _REPLACED_GRACE_S)  # the drain of the replaced engine
    _wait_recovered(injector, "a change of an entry", [tunnel.name])


def change_limit(injector: FaultInjector) -> None:
    """A limit changed while the tunnel runs."""
    daemon, tunnel = injector.any_daemon(), injector.any_tunnel()
    before = daemon.entries[tunnel.name]
    daemon.save(**{tunnel.name: before | {"url": before["url"] + "&log=warn&semaphore_limit=900"}})
    injector.reload(daemon)
    daemon.save(**{tunnel.name: before})
    injector.reload(daemon)


def save_unchanged(injector: FaultInjector) -> None:
    """The file saved unchanged."""
    daemon = injector.any_daemon()
    daemon.save()
    injector.reload(daemon)


def save_invalid(injector: FaultInjector) -> None:
    """An invalid file, then the valid one."""
    daemon = injector.any_daemon()
    with daemon.lock:  # a process that starts with an invalid file ends, as it should
        daemon.write_invalid_file()
        injector.wait(0.2, 1)
        daemon.save()
    injector.reload(daemon)


def remove_entry(injector: FaultInjector) -> None:
    """An entry removed, then added again."""
    daemon, tunnel = injector.any_daemon(), injector.any_tunnel()
    entry = daemon.entries[tunnel.name]
    with injector.incidents.open_window("removal", [tunnel.name], cuts=True, refuses=True):
        daemon.save(**{tunnel.name: None})
        injector.reload(daemon)
        injector.wait(0, 1)
        daemon.save(**{tunnel.name: entry})
        injector.reload(daemon)
        time.sleep(DRAIN_S + _REPLACED_GRACE_S)
        _wait_recovered(injector, "the removal of an entry", [tunnel.name])


def restart_by_command(injector: FaultInjector) -> None:
    """A tunnel restarted by command."""
    daemon, tunnel = injector.any_daemon(), injector.any_tunnel()
    with injector.incidents.open_window("restart", [tunnel.name], cuts=True, refuses=True):
        wait_until(
            lambda: daemon.command("restart", tunnel.name).wait_exit(within=RECOVERY_S) == 0,
            within=RECOVERY_S,
            what=f"{daemon.name} accepts the command to restart {tunnel.name}",
        )
        time.sleep(DRAIN_S + _REPLACED_GRACE_S)
        _wait_recovered(injector, "a restart by command", [tunnel.name])


def lose_target(injector: FaultInjector) -> None:
    """A target that disappears and returns."""
    tunnel = injector.any_tunnel()
    with injector.incidents.open_window("target", [tunnel.name], cuts=True, refuses=True):
        lost = injector.rng.choice(injector.harness.services[tunnel.name])
        lost.close()
        injector.wait(0.5, 3)
        lost.start()
        _wait_recovered(injector, "the loss of a target", [tunnel.name])


def burst_of_visitors(injector: FaultInjector) -> None:
    """A burst of visitors."""
    tunnel = injector.any_tunnel()
    if tunnel.has_udp:
        injector.datagram_load.burst(tunnel, _BURST_VISITORS)
    if tunnel.has_tcp:
        injector.load.burst(tunnel, _BURST_VISITORS)


def send_unauthenticated(injector: FaultInjector) -> None:
    """Unauthenticated connections and datagrams to the tunnel port."""
    port = injector.any_tunnel().port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(_STRANGE_DATAGRAMS):
            sock.sendto(injector.rng.randbytes(injector.rng.randrange(1400)), ("127.0.0.1", port))
    connections: list[socket.socket] = []
    with contextlib.suppress(OSError):  # a refused connection is fine
        for number in range(30):
            connections.append(connect(("127.0.0.1", port), timeout=2))
            if number % 3:
                connections[-1].sendall(injector.rng.randbytes(200))
        injector.wait(0, 1)
    for connection in connections:
        close_with_reset(connection)


def block_udp(injector: FaultInjector) -> None:
    """The UDP port of a tunnel blocked, then opened again."""
    harness = injector.harness
    port = injector.rng.choice([tunnel.port for tunnel in harness.tunnels.values() if tunnel.udp_carrier == "auto"])
    affected = [tunnel for tunnel in harness.tunnels.values() if tunnel.port == port]
    auto = [tunnel.name for tunnel in affected if tunnel.udp_carrier == "auto"]
    without_fallback = [tunnel.name for tunnel in affected if tunnel.udp_carrier == "datagram"]
    incidents = injector.incidents
    with harness.stable.lock, harness.unstable.lock:  # a tunnel that needs datagrams does not recover meanwhile
        with incidents.open_window("blocked UDP", without_fallback, cuts=True, refuses=True):
            with harness.blocked_udp(port):
                with incidents.open_window("blocked UDP", auto, cuts=True, refuses=True):
                    wait_until(
                        lambda: harness.has_carrier(auto, "stream"),
                        within=_FALLBACK_S,
                        what="data connections are used",
                    )
                injector.wait(1, 6)
            _wait_recovered(injector, "the block of UDP", without_fallback)
        wait_until(lambda: harness.has_carrier(auto, "datagram"), within=RECOVERY_S, what="UDP travels as datagrams")


HARD: Final[tuple[Fault, ...]] = (kill_daemon, kill_worker, freeze_daemon, freeze_worker, restart_daemon)
SOFT: Final[tuple[Fault, ...]] = (
    change_entry,
    change_limit,
    save_unchanged,
    save_invalid,
    remove_entry,
    restart_by_command,
    lose_target,
    burst_of_visitors,
    send_unauthenticated,
)
