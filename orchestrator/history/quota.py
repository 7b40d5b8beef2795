"""How much of its quota a tunnel has used, and when that changes. Pure."""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from orchestrator.history.periods import format_start, month_start
from orchestrator.history.traffic import HOUR_S, hour_of
from tunnel.model.quota import describe_size
from tunnel.model.snapshot import QuotaView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunnel.model.quota import Quota

_REARM: Final = 0.05
"""A warning is repeated after the used part has fallen this far below its threshold."""


KEPT_HOURS: Final = 31 * 24
"""Hours before the period that are kept, because the clock may be set back."""


class QuotaLevel(enum.Enum):
    """How far a quota is used; the value is the part from which on a level holds."""

    FREE = 0.0
    NEARLY_USED = 0.8
    ALMOST_USED = 0.95
    USED_UP = 1.0


def first_hour(quota: Quota, now: float) -> int:
    """Return the hour from which on traffic counts."""
    return _month_of(hour_of(now))[0] if quota.days is None else hour_of(now) - 24 * quota.days + 1


@lru_cache(16)
def _month_of(hour: int) -> tuple[int, float]:
    """Return the first hour of the month of an hour, and when that month ends; a thousand accounts share the answer."""
    return hour_of(month_start(hour * HOUR_S)), month_start(hour * HOUR_S, 1)


_format_until = lru_cache(256)(format_start)


class QuotaAccount:
    """The traffic of one tunnel in the period of its quota, by hour. Hours of the future do not count."""

    def __init__(self, quota: Quota, hours: Mapping[int, int], level: QuotaLevel | None = None) -> None:
        """``hours`` has the bytes of each hour of the period, as far as they are recorded.

        ``level`` is that of the account that this one replaces.
        """
        self.quota = quota
        self._hours = dict(hours)
        self._period = (0, -1)  # the first and the last hour of which ``_sum`` is the sum
        self._sum = 0
        self.level = level or QuotaLevel.FREE
        self._is_new = level is None

    def add(self, hour: int, count: int) -> None:
        """Count bytes of an hour."""
        self._hours[hour] = self._hours.get(hour, 0) + count
        if self._period[0] <= hour <= self._period[1]:
            self._sum += count

    def used(self, now: float) -> int:
        """Return the bytes of the present period."""
        period = (first_hour(self.quota, now), hour_of(now))
        if period != self._period:
            self._move_to(period)
        return self._sum

    def _move_to(self, period: tuple[int, int]) -> None:
        """Sum up another period; an hour later that costs a few steps, however long the period is."""
        hours, (old_first, old_last), (first, last) = self._hours, self._period, period
        self._period = period
        if old_first <= first <= old_last <= last and first - old_first + last - old_last < len(hours):
            self._sum += sum(hours.get(hour, 0) for hour in range(old_last + 1, last + 1))
            self._sum -= sum(hours.get(hour, 0) for hour in range(old_first, first))
            hours.pop(first - KEPT_HOURS, None)
        else:
            self._hours = {hour: count for hour, count in hours.items() if hour >= first - KEPT_HOURS}
            self._sum = sum(count for hour, count in self._hours.items() if first <= hour <= last)

    def until(self, now: float) -> float | None:
        """Return when a calendar month ends; of rolling days, when a quota that is used up has room again."""
        quota = self.quota
        if quota.days is None:
            return _month_of(hour_of(now))[1]
        used, first = self.used(now), first_hour(quota, now)
        if used < quota.limit:
            return None
        for hour in sorted(hour for hour in self._hours if hour >= first):
            used -= self._hours[hour]
            if used < quota.limit:
                return float((hour + 24 * quota.days) * HOUR_S)
        return None

    def view(self, now: float) -> QuotaView:
        """Return what the status shows."""
        until = self.until(now)
        return QuotaView(
            used=self.used(now), limit=self.quota.limit, until=None if until is None else _format_until(until)
        )

    def refusal(self, now: float) -> str | None:
        """Return why new visitors are refused; None while the quota has room."""
        if self.used(now) < self.quota.limit:
            return None
        until = self.until(now)
        return f"the quota {self.quota} is used up" + ("" if until is None else f" until {_format_until(until)}")

    def advance_level(self, now: float) -> tuple[QuotaLevel, QuotaLevel]:
        """Return the level before and now; the first call starts from what was recorded.

        A level is left with some distance, so that rolling days do not repeat a warning. USED_UP is left at once.
        """
        part = self.used(now) / self.quota.limit
        reached = max((level for level in QuotaLevel if part >= level.value), key=lambda level: level.value)
        before = self.level
        if self._is_new:
            self._is_new = False
            before = min(reached, QuotaLevel.ALMOST_USED, key=lambda level: level.value)
        elif before is not QuotaLevel.USED_UP and reached.value < before.value and part > before.value - _REARM:
            reached = before
        self.level = reached
        return before, reached


def describe_level(account: QuotaAccount, level: QuotaLevel, now: float) -> str:
    """Return the sentence of an event."""
    quota, used = account.quota, account.used(now)
    part = f"{100 * used // quota.limit} % of the quota {quota} are used, {describe_size(used)}"
    if level is QuotaLevel.USED_UP:
        return f"{account.refusal(now)}: new visitors are refused, present ones may finish"
    return part if level is not QuotaLevel.FREE else f"the quota has room again: {part}"
