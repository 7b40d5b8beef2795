"""Sections of trials, and the sample that a trial returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .report import Sheet


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
