"""Visitors of all manners at every tunnel, and the record of those that were not served."""

from __future__ import annotations

import collections
import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.soak.chronicle import Visit
from tests.soak.house import SoakHarness, Tunnel
from tests.soak.streams import CorruptError, CutError, Manner, Talk, stay, visit
from tests.support.peers import connect

PATIENCE: Final = 30.0
"""Seconds of silence after which a visitor gives up."""
KEPT: Final = 200_000
"""Failed visits that are remembered one by one."""

_BULK: Final = 12 << 20  # bytes of a bulk stream at the most
_SHORT: Final = (Manner.LEAVE, Manner.ANSWER)
_ODD: Final = (Manner.HALF, Manner.EARLY, Manner.RESET, Manner.SLAM)


class Load:
    """Threads that visit; each tunnel has one that stays, one that comes and goes, and one with odd manners."""

    def __init__(self, house: SoakHarness, seed: int) -> None:
        self.failed: list[Visit] = []
        self.served: collections.Counter[str] = collections.Counter()
        self.carried = 0
        """bytes of all verified streams, both directions"""
        self._house = house
        self._random = random.Random(seed)
        self._seeds = itertools.count(2)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Let them come."""
        self._over.clear()
        tunnels = list(self._house.tunnels.values())
        work = [(turn, tunnel) for tunnel in tunnels for turn in (self._stay, self._come_and_go, self._be_odd)]
        self._threads = [
            threading.Thread(target=self._repeat, args=(turn, (tunnel,), random.Random(self._random.random())))
            for turn, tunnel in work
        ]
        bulk = random.Random(self._random.random())
        self._threads.append(threading.Thread(target=self._repeat, args=(self._carry, tuple(tunnels), bulk)))
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """Let everybody finish and come no more."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)

    def burst(self, tunnel: Tunnel, count: int) -> None:
        """So many visitors at once."""
        threads = [
            threading.Thread(target=self.visit, args=(tunnel, Manner.ANSWER, 100, 2_000), daemon=True)
            for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE)

    def visit(self, tunnel: Tunnel, manner: Manner, up: int, down: int) -> bool:
        """One visit; whether it was served."""
        seed = next(self._seeds)

        def go(talk: Talk) -> int:
            visit(talk, manner, seed, up, down, self._house.ledger, PATIENCE)
            return up + down

        return self._noted(tunnel, manner, go)

    def _repeat(
        self, turn: Callable[[Tunnel, random.Random], bool], tunnels: tuple[Tunnel, ...], dice: random.Random
    ) -> None:
        while not self._over.is_set():
            if not turn(dice.choice(tunnels), dice):
                self._over.wait(0.25)

    def _come_and_go(self, tunnel: Tunnel, dice: random.Random) -> bool:
        self._over.wait(dice.uniform(0, 0.1))
        sizes = dice.choice(((10, 100), (500, 20_000), (8_000, 300)))
        return self.visit(tunnel, dice.choice(_SHORT), *sizes)

    def _be_odd(self, tunnel: Tunnel, dice: random.Random) -> bool:
        self._over.wait(dice.uniform(0, 0.4))
        manner = dice.choice(_ODD)
        down = dice.randrange(1, 1_000 if manner is Manner.SLAM else 300_000)  # a reset may overtake what precedes it
        return self.visit(tunnel, manner, dice.randrange(1, 60_000 if manner is Manner.RESET else 300_000), down)

    def _carry(self, tunnel: Tunnel, dice: random.Random) -> bool:
        self._over.wait(dice.uniform(0, 1))
        return self.visit(tunnel, Manner.BULK, dice.randrange(1, _BULK), dice.randrange(1, _BULK))

    def _stay(self, tunnel: Tunnel, dice: random.Random) -> bool:
        seed = next(self._seeds)
        carried = 0

        def sizes() -> tuple[int, int]:
            nonlocal carried
            up, down = dice.randrange(1, 5_000), dice.randrange(1, 20_000)
            carried += up + down
            return up, down

        def go(talk: Talk) -> int:
            stay(talk, seed, sizes, lambda: not self._over.wait(dice.uniform(0.02, 0.2)))
            return carried

        return self._noted(tunnel, Manner.STAY, go)

    def _noted(self, tunnel: Tunnel, manner: Manner, go: Callable[[Talk], int]) -> bool:
        began = time.monotonic()
        talk: Talk | None = None
        try:
            with connect(tunnel.door, timeout=PATIENCE) as sock:
                talk = Talk(sock)
                carried = go(talk)
        except CorruptError as error:
            self._house.ledger.corrupt.append(f"at a visitor of {tunnel.name} ({manner.name.lower()}): {error}")
            return False
        except (CutError, OSError) as error:
            established = talk.established if talk else None
            failed = Visit(
                tunnel.name, manner.name.lower(), began, established, time.monotonic(), str(error) or repr(error)
            )
            with self._lock:
                if len(self.failed) < KEPT:
                    self.failed.append(failed)
            return False
        with self._lock:
            self.served[manner.name.lower()] += 1
            self.carried += carried
        return True
