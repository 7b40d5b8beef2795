"""Measures limits of the rate with iperf3: how exact they are, and how evenly they are shared among visitors."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.support.ports import free_ports

from . import loads
from .processes import BenchError
from .report import Goal, Metric, Sheet
from .section import Sample, Section, Trial
from .targets import target
from .visitor_features import start_pair

if TYPE_CHECKING:
    from collections.abc import Sequence


class Case(NamedTuple):
    """One limit, and the visitors that send as fast as they can."""

    option: str
    """``rate``, of all visitors together, or ``visitor_rate``, of each"""
    mbit: int
    visitors: int

    @property
    def key(self) -> str:
        """The name of its metrics."""
        return f"rates.{self.option}_{self.mbit}_{self.visitors}"

    @property
    def label(self) -> str:
        """What the table calls it."""
        return f"{self.option} {self.mbit:,} Mbit/s, {self.visitors} visitor{'s' * (self.visitors > 1)}"

    @property
    def expected_mbit(self) -> int:
        """What all visitors together are allowed."""
        return self.mbit * (self.visitors if self.option == "visitor_rate" else 1)


CASES: Final = (
    *(Case("rate", mbit, visitors) for mbit in (1, 100, 1000, 5000) for visitors in (1, 8, 100)),
    Case("visitor_rate", 10, 8),
)
MEASURED_S: Final = 10
"""Seconds of each measurement."""

_SETTLING_S: Final = 3  # the initial burst is over, and buffers are full
_METRICS: Final = tuple(
    metric
    for case in CASES
    for metric in (
        Metric(case.key, f"{case.label}: off by, %", 1, Goal(5.0, ratio=False)),
        *(
            [Metric(f"{case.key}_low", "  the slowest visitor, of the mean", 2, Goal(0.8, at_least=True, ratio=False))]
            if case.visitors > 1
            else []
        ),
    )
)


def section(program: Sequence[str]) -> Section:
    """Return the section: each case for ``MEASURED_S`` seconds, in the clear and encrypted."""
    carriers = {"plain": 0, "encrypted": 1}
    plotted = (Case("rate", 100, 8).key,)
    sheet = Sheet(metrics=_METRICS, variants=tuple(carriers), judged=tuple(carriers), plotted=plotted)
    trials = tuple(
        Trial("rates", name, partial(_measure, tuple(program), tls), ("iperf3",)) for name, tls in carriers.items()
    )
    return Section(name="rates", title="Limits of the rate", sheet=sheet, trials=trials, max_rounds=1)


async def _measure(program: Sequence[str], tls: int, _: int) -> Sample:
    values = {}
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        for number, case in enumerate(CASES):
            (port,) = free_ports(1)
            command = ("iperf3", "-s", "-B", "127.0.0.1", "-p", str(port))
            limit = {case.option: f"{case.mbit}mbit"}
            pair = start_pair(program, directory / str(number), port, options=limit, supervisor={}, tls=tls)
            async with target(port, directory, *command), pair as (_daemon, ingress):
                load = await loads.bulk(
                    ingress, streams=case.visitors, seconds=MEASURED_S, omitted_s=_SETTLING_S, buffer="16K"
                )
            if not all(load.streams_gbit_s):
                raise BenchError(f"{case.label}: a visitor got nothing through")
            values[case.key] = 100 * abs(load.gbit_s * 1000 / case.expected_mbit - 1)
            if case.visitors > 1:
                values[f"{case.key}_low"] = min(load.streams_gbit_s) * case.visitors / sum(load.streams_gbit_s)
    return Sample(values)
