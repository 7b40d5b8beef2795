"""What of the tunnels is to be told now: state on change and now and again, numbers as they change. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt.payloads import STATS
from tunnel.model.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

REPEAT: Final = 30.0
"""Seconds after which a state that did not change is told again."""
SETTLING: Final = 2.0
"""Seconds after a change until the retained state is told once more: its numbers have come to rest by then."""
GAP: Final = 1.0
"""Seconds, at the least, between two states of a tunnel: one that fails and tries again is not a flood."""
STATS_EVERY: Final = 2.0
"""Seconds, at the least, between two statistics of a tunnel."""

_NUMBERS: Final = frozenset({*STATS, "refused"})
_LASTING: Final = tuple(field.name for field in fields(Snapshot) if field.name not in _NUMBERS)


@dataclass(frozen=True, slots=True)
class _Told:
    """What was told of one tunnel, and when the next is due."""

    lasting: tuple[object, ...]
    numbers: tuple[object, ...]
    repeat_at: float
    stats_at: float
    free_at: float
    is_settled: bool = False
    whole: Snapshot | None = None
    """the snapshot of which nothing is left to tell"""


@dataclass(frozen=True, slots=True)
class Due:
    """What to tell now."""

    states: tuple[Snapshot, ...]
    stats: tuple[Snapshot, ...]
    removed: tuple[str, ...]


class Pacing:
    """Remembers what a reader has been told of each tunnel. Moments are seconds of one monotonic clock."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._told: dict[str, _Told] = {}
        self._uniform = uniform

    def forget(self) -> None:
        """Whoever was told knows nothing any more."""
        self._told.clear()

    def next(self, snapshots: Iterable[Snapshot], now: float) -> Due:
        """What is due at ``now``; it counts as told."""
        states, stats = [], []
        known, self._told = self._told, {}
        for seen in snapshots:
            told = known.pop(seen.name, None)
            if told is not None and told.whole is seen and now < told.repeat_at:
                self._told[seen.name] = told  # nearly always, where there are hundreds
                continue
            lasting, numbers = _lasting(seen), _numbers(seen)
            if told is None:
                told = _Told(lasting, numbers, now + SETTLING, now + STATS_EVERY, now + GAP)
                states.append(seen)
            elif told.lasting != lasting and now >= told.free_at:
                told = replace(told, lasting=lasting, repeat_at=now + SETTLING, free_at=now + GAP, is_settled=False)
                states.append(seen)
            elif now >= told.repeat_at:
                # those that changed all at once are spread from here on
                wait = REPEAT if told.is_settled else self._uniform(REPEAT / 2, REPEAT)
                told = replace(told, lasting=lasting, repeat_at=now + wait, free_at=now + GAP, is_settled=True)
                states.append(seen)
            elif told.numbers != numbers and now >= told.stats_at:
                told = replace(told, numbers=numbers, stats_at=now + STATS_EVERY)
                stats.append(seen)
            is_whole = (told.lasting, told.numbers) == (lasting, numbers)
            self._told[seen.name] = replace(told, whole=seen if is_whole else None)
        return Due(tuple(states), tuple(stats), tuple(known))


def _lasting(seen: Snapshot) -> tuple[object, ...]:
    return tuple(getattr(seen, name) for name in _LASTING)


def _numbers(seen: Snapshot) -> tuple[Any, ...]:
    """What makes new statistics worth telling: neither the clock of a cooldown nor the noise of a round trip."""
    return (seen.pool, seen.signals, seen.connections, seen.bytes, seen.cooldown.attempt)
