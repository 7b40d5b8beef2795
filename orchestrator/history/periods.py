"""Hours, days and months in the local time zone of the daemon. Pure, apart from the time zone of the process.

Rows of the history are hours of UTC. Where the local offset is not a whole number of hours, an hour belongs to the day
in which it ends.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from orchestrator.history.traffic import HOUR_S, hour_of

MAX_DAYS: Final = 3660
"""The longest time that can be asked for."""


class Step(enum.StrEnum):
    """How traffic is summed up."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    TOTAL = "total"
    """one sum of the whole time"""


DEFAULT_DAYS: Final = {Step.HOUR: 1, Step.DAY: 30, Step.MONTH: 365, Step.TOTAL: 30}
"""The time that is shown if none is asked for."""


@dataclass(frozen=True, slots=True)
class Period:
    """One hour, day or month: the rows from ``first_hour`` up to, and without, ``end_hour``."""

    start: float
    """seconds since the epoch"""
    first_hour: int
    end_hour: int


def local_time(moment: float) -> datetime:
    """Return a time with the local offset from UTC."""
    return datetime.fromtimestamp(moment, UTC).astimezone()


def format_start(moment: float) -> str:
    """Return a time as RFC 3339 writes it, to the second, with the local offset from UTC."""
    return local_time(moment).isoformat(timespec="seconds")


def day_start(moment: float, days: int = 0) -> float:
    """Return the local midnight at or before a time, moved by a number of days."""
    local = local_time(moment)
    return (datetime(local.year, local.month, local.day) + timedelta(days=days)).timestamp()  # noqa: DTZ001  local time


def month_start(moment: float, months: int = 0) -> float:
    """Return the local start of the month of a time, moved by a number of months."""
    local = local_time(moment)
    number = local.year * 12 + local.month - 1 + months
    return datetime(number // 12, number % 12 + 1, 1).timestamp()  # noqa: DTZ001  local time


def periods(step: Step, days: int, now: float) -> list[Period]:
    """Return the periods of the last ``days`` days with the present one, the oldest first.

    One day is today, or for hours the last 24; months are whole, as many as the days touch.
    """
    end = hour_of(now) + 1
    if step is Step.HOUR:
        first = max(0, end - 24 * days)
        return [Period(float(hour * HOUR_S), hour, hour + 1) for hour in range(first, end)]
    start = day_start(now, 1 - days)
    if step is Step.TOTAL:
        return [Period(start, hour_of(start), end)]
    starts = []
    moment = start if step is Step.DAY else month_start(start)
    while moment <= now:
        starts.append(moment)
        moment = day_start(moment, 1) if step is Step.DAY else month_start(moment, 1)
    bounds = [*map(hour_of, starts), end]
    return [Period(at, bounds[i], max(bounds[i], bounds[i + 1])) for i, at in enumerate(starts)]
