"""Sections of trials, and the sample that a trial returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from .report import Sheet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from .report import Metric


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one trial: values by metric, and errors as sentences.

    ``skipped`` maps figures that cannot be measured here to the reason.
    """

    values: dict[str, float]
    errors: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant under one measurement; ``run`` receives the duration of each load in seconds."""

    measurement: str
    variant: str
    run: Callable[[int], Awaitable[Sample]]
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """Trials that share one sheet, in the order of a round."""

    name: str
    title: str
    sheet: Sheet
    trials: tuple[Trial, ...]
    max_rounds: int = 1000
    """limit for sections whose rounds take long and add little"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counts:
    """A series of trials that differ in the number of something, of which the last one is judged."""

    section: str
    noun: str
    counts: tuple[int, ...]
    metrics: tuple[Metric, ...]
    plotted: tuple[str, ...]
    measure: Callable[[tuple[str, ...], int, int], Awaitable[Sample]]
    """gets the program, the count and the duration of each load in seconds"""
    is_compared: bool = False
    """whether figures are ratios to those of the first count"""
    tools: tuple[str, ...] = ()

    def make_section(self, title: str, program: Sequence[str], max_rounds: int = 1000) -> Section:
        """Return the section with a variant for each count."""
        names = tuple(f"{count:,} {self.noun}{'' if count == 1 else 's'}" for count in self.counts)
        sheet = Sheet(
            metrics=self.metrics,
            variants=names,
            judged=names[-1:],
            baseline=names[0] if self.is_compared else None,
            plotted=self.plotted,
        )
        trials = tuple(
            Trial(self.section, name, partial(self.measure, tuple(program), count), self.tools)
            for name, count in zip(names, self.counts, strict=True)
        )
        return Section(name=self.section, title=title, sheet=sheet, trials=trials, max_rounds=max_rounds)
