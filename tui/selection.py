"""Which tunnels are shown, and in which order: pills, filter, sort. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tui.model import Tunnel
from tunnel.state import State

ALL: Final = "all"

PILLS: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    (ALL, frozenset()),
    ("up", frozenset({State.UP})),
    ("connecting", frozenset({State.CONNECTING, State.STARTING, State.WAITING})),
    ("cooldown", frozenset({State.COOLDOWN})),
    ("failed", frozenset({State.FAILED})),
    ("stopped", frozenset({State.STOPPED, State.DRAINING})),
)
"""The filters by state: each with the states it lets through. Every state is in one of them."""

URGENCY: Final[dict[str, int]] = {
    state: rank
    for rank, state in enumerate(
        (
            State.FAILED,
            State.COOLDOWN,
            State.CONNECTING,
            State.STARTING,
            State.DRAINING,
            State.WAITING,
            State.UP,
            State.STOPPED,
        )
    )
}
"""The order by state: what somebody should look at comes first."""

_KEYS: Final[Mapping[str, Callable[[Tunnel], Any]]] = {
    "state": lambda t: URGENCY.get(t.state, -1),
    "name": lambda t: t.name.casefold(),
    "role": lambda t: (t.text("role"), t.text("direction")),
    "address": lambda t: t.text("tunnel_addr"),
    "pool": lambda t: t.count("pool", "idle"),
    "signals": lambda t: -t.count("signals", "queued"),
    "visitors": lambda t: -t.active,
    "out": lambda t: -t.rate_out,
    "in": lambda t: -t.rate_in,
    "rtt": lambda t: -(t.rtt_ms or 0.0),
}
SORTS: Final = tuple(_KEYS)
"""What the table can be sorted by; numbers have the highest first, but the pool, where few is what one looks for."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user chose to see."""

    pill: str = ALL
    text: str = ""
    sort: str = SORTS[0]
    is_reversed: bool = False

    def next_sort(self) -> Selection:
        """The same, sorted by the next column."""
        return replace(self, sort=SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)], is_reversed=False)

    def sorted_by(self, sort: str) -> Selection:
        """The same, sorted by a column, the other way round where it is sorted by that already."""
        return replace(self, sort=sort, is_reversed=self.sort == sort and not self.is_reversed)

    def next_pill(self, step: int) -> Selection:
        """The same with the pill beside the chosen one."""
        names = [name for name, _ in PILLS]
        return replace(self, pill=names[(names.index(self.pill) + step) % len(names)])

    def apply(self, tunnels: Iterable[Tunnel]) -> list[Tunnel]:
        """The tunnels to show, in order; equal ones by name, so that rows do not jump about."""
        states = dict(PILLS)[self.pill]
        words = [word.strip() for word in self.text.casefold().split("|") if word.strip()]
        chosen = [
            tunnel
            for tunnel in tunnels
            if (not states or tunnel.state in states) and (not words or _matches(tunnel, words))
        ]
        chosen.sort(key=_KEYS["name"])
        if self.sort != "name" or self.is_reversed:
            chosen.sort(key=_KEYS[self.sort], reverse=self.is_reversed)
        return chosen


def _matches(tunnel: Tunnel, words: Iterable[str]) -> bool:
    searched = tunnel.searched()
    return any(word in searched for word in words)


def tally(tunnels: Iterable[Tunnel]) -> dict[str, int]:
    """How many tunnels each pill lets through."""
    by_state: dict[str, int] = {}
    for tunnel in tunnels:
        by_state[tunnel.state] = by_state.get(tunnel.state, 0) + 1
    counts = {name: sum(by_state.get(state, 0) for state in states) for name, states in PILLS}
    counts[ALL] = sum(by_state.values())
    return counts
