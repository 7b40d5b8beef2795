"""The phases of a soak: warm-up, quiet with the baseline, load with faults, quiet again, and the verdict."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.soak.datagram_load import DatagramLoad
from tests.soak.faults import FaultInjector
from tests.soak.harness import SoakDaemon, SoakHarness
from tests.soak.incident_log import FailedVisit, IncidentLog
from tests.soak.load import SoakLoad
from tests.soak.losses import LossFigures, explain_losses
from tests.soak.readings import TIME_WAIT_S, Reading, ReadingCollector, find_differences
from tests.soak.streams import VisitKind
from tests.support.namespaces import Host
from tests.support.waiting import wait_until

LONG_RUN_S: Final = 240.0
"""Runs of at least so many seconds also wait until all connections have left TIME_WAIT."""

_SAMPLE_INTERVAL_S: Final = 1.0  # seconds between samples
_SETTLE_TIMEOUT_S: Final = 60.0  # seconds within which everything must settle: pools shrink slowly


@dataclass(frozen=True, slots=True)
class Sample:
    """A reading, or None if a daemon did not answer, and the number of visits so far."""

    at: float
    reading: Reading | None
    served: int
    failed: int


@dataclass(frozen=True, slots=True)
class DatagramRecord:
    """The results of the UDP tunnels."""

    sent: dict[str, int] = field(default_factory=dict)
    """datagrams of visitors by tunnel"""
    answered: dict[str, int] = field(default_factory=dict)
    """those whose answer has arrived in time, by tunnel"""
    late: int = 0
    """those whose answer has arrived later"""
    losses: LossFigures = field(default_factory=LossFigures)


@dataclass(slots=True)
class Record:
    """The results of a run."""

    incidents: IncidentLog
    began: float
    served: dict[str, int] = field(default_factory=dict)
    failed: list[FailedVisit] = field(default_factory=list)
    bytes_verified: int = 0
    corruptions: list[str] = field(default_factory=list)
    datagrams: DatagramRecord = field(default_factory=DatagramRecord)
    samples: list[Sample] = field(default_factory=list)
    baseline: Reading | None = None
    last: Reading | None = None
    ended: float = 0.0
    fault_free_share: float = 0.0
    """the share of the time under load in which no fault could explain a failed visit"""
    is_complete: bool = False

    @property
    def unexplained(self) -> list[FailedVisit]:
        """The failed visits that no fault explains."""
        return self.incidents.unexplained(self.failed)

    @property
    def is_good(self) -> bool:
        """Whether the run completed without a defect."""
        lost = self.datagrams.losses.unexplained
        return self.is_complete and not (self.corruptions or self.incidents.findings or self.unexplained or lost)


class Soak:
    """One run in its own directory; ``report_progress`` receives a line at the start of each phase."""

    def __init__(
        self, directory: Path, seed: int, seconds: float, report_progress: Callable[[str], None], host: Host | None
    ) -> None:
        """``host`` is the network namespace of this process, if the soak has one of its own."""
        self._directory = directory
        self._seconds = seconds
        self._report_progress = report_progress
        self._incidents = IncidentLog()
        self.record = Record(self._incidents, time.monotonic())
        self._over = threading.Event()
        self._harness = SoakHarness(directory, self._incidents, host)
        self._report_progress(f"two daemons with {len(self._harness.tunnels)} tunnels have been started")
        self._load = SoakLoad(self._harness, seed)
        self._datagrams = DatagramLoad(self._harness, seed)
        pause = min(2.0, seconds / 20)
        self._faults = FaultInjector(self._harness, self._load, self._datagrams, seed, pause)
        self._collector = ReadingCollector(self._harness, directory)

    def run(self) -> Record:
        """All of it; Ctrl-C daemons it with what is known so far."""
        sampling = threading.Thread(target=self._sample, daemon=True)
        try:
            self._harness.wait_recovered("the start", self._harness.tunnels)
            sampling.start()
            warm_up = min(120.0, self._seconds * 0.2)
            self._under_load(warm_up, "warm-up")
            self.record.baseline = self._quiet(lambda now: find_differences(now, now, time_wait_expired=False))
            began = time.monotonic()
            self._under_load(self._seconds - warm_up, "soak")
            self.record.fault_free_share = self._incidents.fault_free_share(
                self._harness.tunnels, began, time.monotonic()
            )
            self.record.last = self._quiet(self._against_baseline)
            self._shut_down()
            self.record.is_complete = True
        except KeyboardInterrupt:
            self._report_progress("interrupted: the report covers the run so far")
        finally:
            self._over.set()
            self._harness.close()
            self._finish_record()
        return self.record

    def _under_load(self, seconds: float, what: str) -> None:
        self._report_progress(f"{what}: {seconds:.0f} s of visitors and faults")
        self._load.start()
        self._datagrams.start()
        self._faults.start()
        try:
            time.sleep(seconds)
        finally:
            self._faults.stop()
            self._load.stop()
            self._datagrams.stop()

    def _quiet(self, judged: Callable[[Reading], list[str]]) -> Reading | None:
        """Wait until nothing is wrong and return the reading; else record what is wrong and return the last reading."""
        min_quiet_s = TIME_WAIT_S if self._seconds >= LONG_RUN_S else 0.0
        self._report_progress(f"quiet: at most {min_quiet_s + _SETTLE_TIMEOUT_S:.0f} s")
        began = time.monotonic()
        last: list[Reading] = []
        faults: list[str] = ["a daemon does not answer"]

        def is_settled() -> bool:
            nonlocal faults
            if (now := self._collector.read()) is not None:
                last[:] = [now]
                faults = judged(now)
            else:
                faults = ["a daemon does not answer"]
            time.sleep(0.1)
            return not faults and time.monotonic() - began >= min_quiet_s

        try:
            wait_until(is_settled, within=min_quiet_s + _SETTLE_TIMEOUT_S, what="all resources have settled")
        except AssertionError:
            for fault in faults:
                self._incidents.record_finding(f"{time.monotonic() - began:.0f} s after the last visitor: {fault}")
        return last[0] if last else None

    def _against_baseline(self, now: Reading) -> list[str]:
        if self.record.baseline is None:
            return ["there is no baseline"]
        return find_differences(self.record.baseline, now, time_wait_expired=self._seconds >= LONG_RUN_S)

    def _shut_down(self) -> None:
        for daemon in self._harness.daemons:
            workers = daemon.workers()
            code = daemon.command("down", "--wait").wait_exit(within=20)
            if code or daemon.process.wait_exit(within=5):
                self._incidents.record_finding(
                    f"{daemon.name} did not end with status 0: `down --wait` returned {code}"
                )
            if left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
                self._incidents.record_finding(f"{daemon.name} has ended and left processes: {left}")
            for name in (daemon.process.socket, daemon.process.socket.with_name(f"{daemon.process.socket.name}.lock")):
                if name.exists():
                    self._incidents.record_finding(f"{daemon.name} has ended and left {name.name}")
        temporary = self._directory / "tmpdir"
        for left_file in temporary.iterdir():
            self._incidents.record_finding(f"a temporary file was left: {left_file.name}")

    def _finish_record(self) -> None:
        record = self.record
        record.ended = time.monotonic()
        record.served, record.failed, record.bytes_verified = (
            dict(self._load.served),
            list(self._load.failed),
            self._load.bytes_verified,
        )
        record.bytes_verified += self._datagrams.bytes_verified
        if self._datagrams.brief_visits:
            record.served["udp_brief"] = self._datagrams.brief_visits
        record.datagrams = DatagramRecord(
            dict(self._datagrams.sent),
            dict(self._datagrams.answered),
            self._datagrams.late,
            explain_losses(self._datagrams.losses, self._incidents.windows, self._harness.drop_log.drops()),
        )
        record.corruptions = list(self._harness.target_reports.corruptions)
        if record.is_complete:
            for kind in VisitKind:
                if not record.served.get(kind.name.lower()):
                    self._incidents.record_finding(f"no visit of the kind {kind.name.lower()} succeeded")
            for name, tunnel in self._harness.tunnels.items():
                if tunnel.has_udp and not record.datagrams.answered.get(name):
                    self._incidents.record_finding(f"no datagram of {name} was answered")
        for daemon in self._harness.daemons:
            self._check_log(daemon)
        if record.is_complete:
            self._check_access_log(self._harness.stable)

    def _check_log(self, daemon: SoakDaemon) -> None:
        for line in daemon.process.log_text().splitlines():
            if any(word in line for word in ("Traceback", "never retrieved", "Warning:", "never awaited")):
                self._incidents.record_finding(f"{daemon.name} logged: {line.strip()[:200]}")

    def _check_access_log(self, daemon: SoakDaemon) -> None:
        """The daemon that was never killed has logged visitors of every tunnel, and as many as succeeded at least."""
        lines = [json.loads(line) for line in daemon.access_log.read_text().splitlines()]
        names = {tunnel.access_log_name for tunnel in self._harness.tunnels.values()}
        if missing := names - {line["tunnel"] for line in lines}:
            self._incidents.record_finding(f"the access log has no visitor of {', '.join(sorted(missing))}")
        if len(lines) < (served := sum(self.record.served.values())):
            self._incidents.record_finding(f"the access log has {len(lines)} lines of {served} visitors")

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_INTERVAL_S):
            served, failed = self._load.served.total(), len(self._load.failed)
            self.record.samples.append(Sample(time.monotonic(), self._collector.read(), served, failed))
