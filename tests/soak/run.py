"""The course of a soak: warm-up, quiet, the baseline; load and troubles; quiet again, and the verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.soak.chronicle import Chronicle, Visit
from tests.soak.house import End, SoakHarness
from tests.soak.load import Load
from tests.soak.readings import KERNEL, Reader, Reading, judge
from tests.soak.streams import Manner
from tests.soak.troubles import Troublemaker
from tests.support.waiting import wait_until

LONG: Final = 240.0
"""Seconds of load from which on a run also waits until the kernel has forgotten all connections."""

_EVERY: Final = 1.0  # seconds between two samples
_SETTLING: Final = 60.0  # seconds that everything has to come to rest: pools shrink slowly


@dataclass(frozen=True, slots=True)
class Sample:
    """A reading, None where a daemon did not answer, and the visitors so far."""

    at: float
    reading: Reading | None
    served: int
    failed: int


@dataclass(slots=True)
class Record:
    """All that a run leaves."""

    chronicle: Chronicle
    began: float
    served: dict[str, int] = field(default_factory=dict)
    failed: list[Visit] = field(default_factory=list)
    carried: int = 0
    corrupt: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    baseline: Reading | None = None
    last: Reading | None = None
    ended: float = 0.0
    spared: float = 0.0
    """the share of the time under load in which no visit had an excuse"""
    is_complete: bool = False

    @property
    def unexplained(self) -> list[Visit]:
        """Failed visits for which there is no reason."""
        return self.chronicle.unexplained(self.failed)

    @property
    def is_good(self) -> bool:
        """The verdict."""
        return self.is_complete and not (self.corrupt or self.chronicle.findings or self.unexplained)


class Soak:
    """One run in a directory of its own; ``talk`` gets a line whenever something begins."""

    def __init__(self, directory: Path, seed: int, seconds: float, talk: Callable[[str], None]) -> None:
        self._directory = directory
        self._seconds = seconds
        self._talk = talk
        self._chronicle = Chronicle()
        self.record = Record(self._chronicle, time.monotonic())
        self._over = threading.Event()
        self._talk("starting two daemons with eight tunnels")
        self._house = SoakHarness(directory, self._chronicle)
        self._load = Load(self._house, seed)
        self._troubles = Troublemaker(self._house, self._load, seed, pause=min(2.0, seconds / 20))
        self._reader = Reader(self._house, directory)

    def run(self) -> Record:
        """All of it; Ctrl-C ends it with what is known so far."""
        sampling = threading.Thread(target=self._sample, daemon=True)
        try:
            self._house.heal("the start", self._house.tunnels)
            sampling.start()
            warm_up = min(120.0, self._seconds * 0.2)
            self._under_load(warm_up, "warm-up")
            self.record.baseline = self._quiet(lambda now: judge(now, now, kernel_forgot=False))
            began = time.monotonic()
            self._under_load(self._seconds - warm_up, "soak")
            self.record.spared = self._chronicle.spared(self._house.tunnels, began, time.monotonic())
            self.record.last = self._quiet(self._against_baseline)
            self._shut_down()
            self.record.is_complete = True
        except KeyboardInterrupt:
            self._talk("interrupted: this is the report so far")
        finally:
            self._over.set()
            self._house.close()
            self._take_down()
        return self.record

    def _under_load(self, seconds: float, what: str) -> None:
        self._talk(f"{what}: {seconds:.0f} s of visitors and troubles")
        self._load.start()
        self._troubles.start()
        try:
            time.sleep(seconds)
        finally:
            self._troubles.stop()
            self._load.stop()

    def _quiet(self, judged: Callable[[Reading], list[str]]) -> Reading | None:
        """The reading in which nothing is wrong any more, or the last one; then its faults are findings."""
        least = KERNEL if self._seconds >= LONG else 0.0
        self._talk(f"quiet: at the most {least + _SETTLING:.0f} s")
        began = time.monotonic()
        last: list[Reading] = []
        faults: list[str] = ["a daemon does not answer"]

        def is_settled() -> bool:
            nonlocal faults
            if (now := self._reader.read()) is not None:
                last[:] = [now]
                faults = judged(now)
            else:
                faults = ["a daemon does not answer"]
            time.sleep(0.1)
            return not faults and time.monotonic() - began >= least

        try:
            wait_until(is_settled, within=least + _SETTLING, what="all is quiet")
        except AssertionError:
            for fault in faults:
                self._chronicle.found(f"{time.monotonic() - began:.0f} s after the last visitor: {fault}")
        return last[0] if last else None

    def _against_baseline(self, now: Reading) -> list[str]:
        if self.record.baseline is None:
            return ["there is no baseline"]
        return judge(self.record.baseline, now, kernel_forgot=self._seconds >= LONG)

    def _shut_down(self) -> None:
        for end in self._house.ends:
            workers = end.workers()
            code = end.command("down", "--wait").wait_exit(within=20)
            if code or end.daemon.wait_exit(within=5):
                self._chronicle.found(f"{end.name} did not end well: `down --wait` gave {code}")
            if left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
                self._chronicle.found(f"{end.name} is gone and has left processes: {left}")
            for name in (end.daemon.socket, end.daemon.socket.with_name(f"{end.daemon.socket.name}.lock")):
                if name.exists():
                    self._chronicle.found(f"{end.name} is gone and has left {name.name}")
        temporary = self._directory / "tmpdir"
        for left_file in temporary.iterdir():
            self._chronicle.found(f"a temporary file was left: {left_file.name}")

    def _take_down(self) -> None:
        record = self.record
        record.ended = time.monotonic()
        record.served, record.failed, record.carried = (
            dict(self._load.served),
            list(self._load.failed),
            self._load.carried,
        )
        record.corrupt = list(self._house.ledger.corrupt)
        if record.is_complete:
            for manner in Manner:
                if not record.served.get(manner.name.lower()):
                    self._chronicle.found(f"no visit of the manner {manner.name.lower()} was ever served")
        for end in self._house.ends:
            self._look_at_log(end)

    def _look_at_log(self, end: End) -> None:
        for line in end.daemon.log_text().splitlines():
            if any(word in line for word in ("Traceback", "never retrieved", "Warning:", "never awaited")):
                self._chronicle.found(f"{end.name} said: {line.strip()[:200]}")

    def _sample(self) -> None:
        while not self._over.wait(_EVERY):
            served, failed = self._load.served.total(), len(self._load.failed)
            self.record.samples.append(Sample(time.monotonic(), self._reader.read(), served, failed))
