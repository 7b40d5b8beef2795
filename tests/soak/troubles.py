"""What happens to the tunnels while they carry traffic. Each trouble says which visits it may cost, and no others."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from tests.soak.chronicle import Chronicle
from tests.soak.house import DRAIN, HEALING, End, SoakHarness, Tunnel, send_signal
from tests.soak.load import Load
from tests.support.peers import connect
from tests.support.sockets import close_with_reset
from tests.support.waiting import wait_until

_BURST: Final = 120
_GRACE: Final = 3.0  # seconds beyond DRAIN until an engine that was replaced is gone on a busy machine

Trouble = Callable[["Troublemaker"], None]


class Troublemaker:
    """Makes troubles, one after the other in each of two threads: ``HARD`` ones and ``SOFT`` ones go on at once."""

    def __init__(self, house: SoakHarness, load: Load, seed: int, pause: float) -> None:
        self.house = house
        self.load = load
        self.dice = random.Random(seed)
        self.variants = dict.fromkeys(((end.name, name) for end in house.ends for name in house.tunnels), 0)
        self._pause = pause
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def chronicle(self) -> Chronicle:
        return self.house.chronicle

    def start(self) -> None:
        """Begin."""
        self._over.clear()
        self._threads = [
            threading.Thread(target=self._cycle, args=(list(troubles), pause), daemon=True)
            for troubles, pause in ((HARD, 3 * self._pause), (SOFT, self._pause))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish the present troubles, and make no more."""
        self._over.set()
        for thread in self._threads:
            thread.join(4 * HEALING)

    def make(self, trouble: Trouble) -> None:
        """One of them, to its end."""
        what = (trouble.__doc__ or trouble.__name__).splitlines()[0].rstrip(".")
        began = time.monotonic()
        try:
            trouble(self)
        except Exception as error:  # noqa: BLE001  a trouble that could not be made is told, and the run goes on
            self.chronicle.found(f"{what}: {error!r}")
        self.chronicle.took(what, began)

    def _cycle(self, troubles: list[Trouble], pause: float) -> None:
        while True:
            self.dice.shuffle(troubles)
            for trouble in troubles:
                if self._over.wait(self.dice.uniform(0, 2 * pause)):
                    return
                self.make(trouble)

    # --- for the troubles -----------------------------------------------------------------------------------------

    def any_tunnel(self) -> Tunnel:
        """One of the eight."""
        return self.dice.choice(list(self.house.tunnels.values()))

    def any_end(self) -> End:
        """One of the two."""
        return self.dice.choice(self.house.ends)

    def wait(self, least: float, most: float) -> None:
        """Some time, during which the trouble lasts."""
        self._over.wait(self.dice.uniform(least, most))

    def reload(self, end: End) -> None:
        """Until the daemon has done what its file says: another trouble may hold it up."""

        def is_done() -> bool:
            with contextlib.suppress(OSError):
                end.ask("POST", "/v1/reload")
                return True
            return False

        wait_until(is_done, within=HEALING, what=f"{end.name} reloads its file")


def _healed(maker: Troublemaker, what: str, names: Iterable[str]) -> None:
    maker.house.heal(what, names)


# --- hard: a process is no more, or stands still ------------------------------------------------------------------


def kill_an_end(maker: Troublemaker) -> None:
    """kill -9 of one end."""
    end, names = maker.house.mortal, list(maker.house.tunnels)
    with maker.chronicle.window("kill -9", names, cuts=True, refuses=True), end.lock:
        end.kill()
        maker.wait(0, 1.5)
        end.start()
        _healed(maker, "kill -9 of one end", names)


def kill_a_worker(maker: Troublemaker) -> None:
    """kill -9 of a worker."""
    end, names = maker.house.mortal, list(maker.house.tunnels)
    with maker.chronicle.window("kill -9 of a worker", names, cuts=True, refuses=True), end.lock:
        if workers := end.workers():
            send_signal([maker.dice.choice(workers)], signal.SIGKILL)
        _healed(maker, "kill -9 of a worker", names)


def freeze_an_end(maker: Troublemaker) -> None:
    """SIGSTOP of one end."""
    end, names = maker.any_end(), list(maker.house.tunnels)
    with maker.chronicle.window("SIGSTOP", names, cuts=False, refuses=True), end.lock:
        go_on = end.freeze()
        maker.wait(0.5, 6)
        go_on()
        _healed(maker, "SIGSTOP of one end", names)


def freeze_a_worker(maker: Troublemaker) -> None:
    """SIGSTOP of a worker."""
    end, names = maker.house.mortal, list(maker.house.tunnels)
    with maker.chronicle.window("SIGSTOP of a worker", names, cuts=False, refuses=True), end.lock:
        workers = end.workers()
        pids = [maker.dice.choice(workers)] if workers else []
        send_signal(pids, signal.SIGSTOP)
        maker.wait(0.5, 5)
        send_signal(pids, signal.SIGCONT)
        _healed(maker, "SIGSTOP of a worker", names)


def end_and_start(maker: Troublemaker) -> None:
    """SIGTERM of one end, and another start."""
    end, names = maker.house.mortal, list(maker.house.tunnels)
    with maker.chronicle.window("SIGTERM", names, cuts=True, refuses=True), end.lock:
        end.daemon.signal(signal.SIGTERM)
        if code := end.daemon.wait_exit(within=HEALING):
            maker.chronicle.found(f"{end.name} ended with exit code {code} after SIGTERM")
        end.start()
        _healed(maker, "SIGTERM of one end", names)


# --- soft: what its users do, and what the world around it does ---------------------------------------------------


def change_an_entry(maker: Troublemaker) -> None:
    """An entry is changed, and gets another engine."""
    end, tunnel = maker.any_end(), maker.any_tunnel()
    key = end.name, tunnel.name
    maker.variants[key] += 1
    began = time.monotonic()
    with maker.chronicle.window("change", [tunnel.name], cuts=True, refuses=False, begin=began + DRAIN - 0.5):
        end.save(**{tunnel.name: tunnel.url(end.name, variant=maker.variants[key])})
        maker.reload(end)
        time.sleep(DRAIN + _GRACE)  # those of the former engine have so long
    _healed(maker, "a change of an entry", [tunnel.name])


def change_a_limit(maker: Troublemaker) -> None:
    """A limit is changed while the tunnel runs."""
    end, tunnel = maker.any_end(), maker.any_tunnel()
    before = end.urls[tunnel.name]
    end.save(**{tunnel.name: before + "&log=warn&semaphore_limit=900"})
    maker.reload(end)
    end.save(**{tunnel.name: before})
    maker.reload(end)


def save_the_same(maker: Troublemaker) -> None:
    """The file is saved as it was."""
    end = maker.any_end()
    end.save()
    maker.reload(end)


def spoil_the_file(maker: Troublemaker) -> None:
    """The file is spoiled, and mended."""
    end = maker.any_end()
    end.spoil()
    maker.wait(0.2, 1)
    end.save()
    maker.reload(end)


def remove_an_entry(maker: Troublemaker) -> None:
    """An entry is removed, and added again."""
    end, tunnel = maker.any_end(), maker.any_tunnel()
    url = end.urls[tunnel.name]
    with maker.chronicle.window("removal", [tunnel.name], cuts=True, refuses=True):
        end.save(**{tunnel.name: None})
        maker.reload(end)
        maker.wait(0, 1)
        end.save(**{tunnel.name: url})
        maker.reload(end)
        time.sleep(DRAIN + _GRACE)
        _healed(maker, "the removal of an entry", [tunnel.name])


def restart_by_command(maker: Troublemaker) -> None:
    """A tunnel is restarted by command."""
    end, tunnel = maker.any_end(), maker.any_tunnel()
    with maker.chronicle.window("restart", [tunnel.name], cuts=True, refuses=True):
        wait_until(
            lambda: end.command("restart", tunnel.name).wait_exit(within=HEALING) == 0,
            within=HEALING,
            what=f"{end.name} takes the command to restart {tunnel.name}",
        )
        time.sleep(DRAIN + _GRACE)
        _healed(maker, "a restart by command", [tunnel.name])


def lose_a_target(maker: Troublemaker) -> None:
    """A target vanishes, and returns."""
    tunnel = maker.any_tunnel()
    with maker.chronicle.window("target", [tunnel.name], cuts=True, refuses=True):
        maker.house.services[tunnel.name].close()
        maker.wait(0.5, 3)
        maker.house.services[tunnel.name].start()
        _healed(maker, "the loss of a target", [tunnel.name])


def come_all_at_once(maker: Troublemaker) -> None:
    """A burst of visitors."""
    maker.load.burst(maker.any_tunnel(), _BURST)


def send_strangers(maker: Troublemaker) -> None:
    """Strangers at the tunnel port."""
    port = maker.any_tunnel().port
    strangers: list[socket.socket] = []
    with contextlib.suppress(OSError):  # whatever becomes of them
        for number in range(30):
            strangers.append(connect(("127.0.0.1", port), timeout=2))
            if number % 3:
                strangers[-1].sendall(maker.dice.randbytes(200))
        maker.wait(0, 1)
    for stranger in strangers:
        close_with_reset(stranger)


HARD: Final[tuple[Trouble, ...]] = (kill_an_end, kill_a_worker, freeze_an_end, freeze_a_worker, end_and_start)
SOFT: Final[tuple[Trouble, ...]] = (
    change_an_entry,
    change_a_limit,
    save_the_same,
    spoil_the_file,
    remove_an_entry,
    restart_by_command,
    lose_a_target,
    come_all_at_once,
    send_strangers,
)
