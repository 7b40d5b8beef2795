"""What can be measured: sections of trials, each with the figures that it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .report import Sheet


@dataclass(frozen=True, slots=True)
class Sample:
    """What one visit measured: metric to value, and what went wrong meanwhile, in words.

    ``skipped`` names figures that cannot be had here, and says why.
    """

    values: dict[str, float]
    errors: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """One variant under one measurement; ``take`` gets the seconds that each load shall last."""

    measurement: str
    variant: str
    take: Callable[[int], Awaitable[Sample]]
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """Trials that belong on one sheet, in the order in which a round takes them."""

    name: str
    title: str
    sheet: Sheet
    trials: tuple[Trial, ...]
    most_rounds: int = 1000
    """after which another round would tell little and take long"""
