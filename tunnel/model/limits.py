"""The limits of a link: what each end was configured with, and what both agree on. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnel.model.settings import Settings


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one end of a link was told about pool and visitors; None where nobody said anything."""

    pool_min: int | None = None
    pool_max: int | None = None
    visitors: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for both ends of a link."""

    pool_min: int
    pool_max: int
    visitors: int


def bounds_of(values: Settings) -> Bounds:
    """What this end was told about pool and visitors, as the other end shall know it."""
    given = values.given
    return Bounds(
        values.min_pool_capacity if "min_pool_capacity" in given else None,
        values.max_pool_capacity if "max_pool_capacity" in given else None,
        values.semaphore_limit if "semaphore_limit" in given else None,
    )


def defaults_of(values: Settings) -> Limits:
    """What holds where neither end was told anything."""
    return Limits(values.min_pool_capacity, values.max_pool_capacity, values.semaphore_limit)


def agree(ours: Bounds, theirs: Bounds, defaults: Limits) -> Limits:
    """The limits of a link from what its two ends were told.

    What only one end was told counts for both. Where both were: the larger minimum, the smaller maximum and the
    smaller number of visitors, because an end that sets a limit means to be protected by it.
    """

    def said(first: int | None, second: int | None) -> list[int]:
        return [value for value in (first, second) if value is not None]

    pool_max = min(said(ours.pool_max, theirs.pool_max), default=defaults.pool_max)
    pool_min = max(said(ours.pool_min, theirs.pool_min), default=defaults.pool_min)
    visitors = min(said(ours.visitors, theirs.visitors), default=defaults.visitors)
    return Limits(min(pool_min, pool_max), pool_max, visitors)
