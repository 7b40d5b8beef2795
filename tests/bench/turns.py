"""Compares two variants that run at the same time: the loads alternate between them.

A machine that changes from minute to minute changes both figures of a ratio then, and both variants have processes that
are as old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TURNS: Final = 4


async def measure_ratios(
    measure_base: Callable[[], Awaitable[float]], measure_variant: Callable[[], Awaitable[float]]
) -> list[float]:
    """Measure both a few times, each first in every second turn; return the variant's figure divided by the base's."""
    ratios = []
    for turn in range(TURNS):
        if turn % 2 == 0:
            base, figure = await measure_base(), await measure_variant()
        else:
            figure, base = await measure_variant(), await measure_base()
        ratios.append(figure / base)
    return ratios
