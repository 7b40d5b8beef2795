"""Which tunnels are shown, and in which order: pills, filter, sort. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import compress
from operator import is_not
from typing import Any, Final

from orchestrator.mqtt.fleet import GONE, SILENT
from tui.model import Tunnel
from tunnel.model.state import State

ALL: Final = "all"
_GONE_PILL: Final = "gone"

PILLS: Final[tuple[tuple[str, frozenset[str]], ...]] = (
    (ALL, frozenset()),
    ("up", frozenset({State.UP})),
    ("connecting", frozenset({State.CONNECTING, State.STARTING, State.WAITING})),
    ("cooldown", frozenset({State.COOLDOWN})),
    ("failed", frozenset({State.FAILED})),
    ("stopped", frozenset({State.STOPPED, State.DRAINING})),
    (_GONE_PILL, frozenset({GONE, SILENT})),
)
"""The filters by state: each with the states it lets through. Every state is in one of them."""


def pills(*, is_fleet: bool) -> list[str]:
    """The names of the filters that make sense: hosts can be gone in a fleet only."""
    return [name for name, _ in PILLS if is_fleet or name != _GONE_PILL]


URGENCY: Final[dict[str, int]] = {
    state: rank
    for rank, state in enumerate(
        (
            State.FAILED,
            State.COOLDOWN,
            GONE,
            SILENT,
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
    "host": lambda t: t.host.casefold(),
    "name": lambda t: (t.label.casefold(), t.host.casefold()),
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

_FIELDS: Final[Mapping[str, Callable[[Tunnel], Iterable[str]]]] = {
    "host": lambda t: (t.host,),
    "tag": lambda t: map(str, t.data.get("tags") or ()),
    "state": lambda t: (t.state,),
}
"""What a word of the filter can be about, as in ``host:edge-1``."""

_Term = tuple[str, str]  # field, pattern; without a field: a part of anything
_Rule = tuple[tuple[_Term, ...], ...]  # one of these, each with all of its terms


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user chose to see."""

    pill: str = ALL
    text: str = ""
    sort: str = "state"
    is_reversed: bool = False

    def next_sort(self, *, is_fleet: bool = False) -> Selection:
        """The same, sorted by the next column."""
        sorts = [sort for sort in SORTS if is_fleet or sort != "host"]
        return replace(self, sort=sorts[(sorts.index(self.sort) + 1) % len(sorts)], is_reversed=False)

    def sorted_by(self, sort: str) -> Selection:
        """The same, sorted by a column, the other way round where it is sorted by that already."""
        return replace(self, sort=sort, is_reversed=self.sort == sort and not self.is_reversed)

    def next_pill(self, step: int, *, is_fleet: bool = False) -> Selection:
        """The same with the pill beside the chosen one."""
        names = pills(is_fleet=is_fleet)
        place = names.index(self.pill) if self.pill in names else 0
        return replace(self, pill=names[(place + step) % len(names)])


class Shortlist:
    """The tunnels to show, in order, and how many each pill lets through; equal ones by name, so that no row jumps.

    It is made anew only where something differs: of ten thousand tunnels a few hundred change in a second, and hardly
    one of them its place.
    """

    def __init__(self) -> None:
        self.tunnels: list[Tunnel] = []
        self.places: Mapping[str, int] = {}
        """where in it each of them stands, by name; another object where that has changed"""
        self._by_state: Counter[str] = Counter()
        self._by: tuple[str, str, bool, _Rule] | None = None
        self._known: dict[str, tuple[Tunnel, str, tuple[Any, Any] | None]] = {}
        """each tunnel with its state, and with what it is sorted by if it is chosen"""
        self._of: Mapping[str, Tunnel] | None = None
        self._selection: Selection | None = None

    @property
    def counts(self) -> dict[str, int]:
        """How many tunnels each pill lets through."""
        counts = {name: sum(self._by_state[state] for state in states) for name, states in PILLS}
        return {**counts, ALL: self._by_state.total()}

    def update(self, tunnels: Mapping[str, Tunnel], selection: Selection) -> None:
        """Choose from these."""
        if tunnels is self._of and selection == self._selection:
            return
        others = _others(tunnels, self._of)
        self._of, self._selection = tunnels, selection
        rule = _rule(selection.text, tunnels.values())
        by = (selection.pill, selection.sort, selection.is_reversed, rule)
        is_other = by != self._by
        if is_other:
            others = tunnels.items()
            self._by = by
            self._known.clear()
            self._by_state.clear()
        known, is_moved = self._known, is_other
        states, key, name_key = dict(PILLS)[selection.pill], _KEYS[selection.sort], _KEYS["name"]
        for name, tunnel in others:
            old = known.get(name)
            if old is not None and old[0] is tunnel:
                continue
            state = tunnel.state
            is_in = (not states or state in states) and _lets(rule, tunnel)
            rank = (key(tunnel), name_key(tunnel)) if is_in else None
            known[name] = (tunnel, state, rank)
            if old is None or old[2] != rank:
                is_moved = True
            elif rank is not None:
                self.tunnels[self.places[name]] = tunnel
            self._by_state[state] += 1
            if old is not None:
                self._by_state[old[1]] -= 1
        if len(known) != len(tunnels):
            for name in known.keys() - tunnels.keys():
                self._by_state[known.pop(name)[1]] -= 1
            is_moved = True
        if is_moved:
            self._arrange()

    def _arrange(self) -> None:
        chosen = [(rank, tunnel) for tunnel, _, rank in self._known.values() if rank is not None]
        chosen.sort(key=lambda entry: entry[0][1])
        chosen.sort(key=lambda entry: entry[0][0], reverse=self._by is not None and self._by[2])
        self.tunnels = [tunnel for _, tunnel in chosen]
        self.places = {tunnel.name: place for place, tunnel in enumerate(self.tunnels)}


def _others(tunnels: Mapping[str, Tunnel], before: Mapping[str, Tunnel] | None) -> Iterable[tuple[str, Tunnel]]:
    """Those that are not as they were, and perhaps some more; hardly ever all of them."""
    if before is None or tunnels.keys() != before.keys():
        return tunnels.items()
    return compress(tunnels.items(), map(is_not, tunnels.values(), before.values()))


def _rule(text: str, tunnels: Iterable[Tunnel]) -> _Rule:
    """The filter taken apart: ``a b|c`` means both a and b, or c."""
    either = [[_term(word) for word in part.split()] for part in text.casefold().split("|")]
    return tuple(tuple(_exact(term, tunnels) for term in terms) for terms in either if terms)


def _term(word: str) -> _Term:
    field, colon, pattern = word.partition(":")
    return (field, pattern) if colon and field in _FIELDS else ("", word)


def _exact(term: _Term, tunnels: Iterable[Tunnel]) -> _Term:
    """``host:edge-1`` is that host, not edge-10; but as long as there is no such host, those that begin so."""
    field, pattern = term
    if not field or any(sign in pattern for sign in "*?["):
        return term
    values = _FIELDS[field]
    if any(pattern == value.casefold() for tunnel in tunnels for value in values(tunnel)):
        return term
    return field, f"{pattern}*"


def _lets(rule: _Rule, tunnel: Tunnel) -> bool:
    return not rule or any(all(_matches(term, tunnel) for term in terms) for terms in rule)


def _matches(term: _Term, tunnel: Tunnel) -> bool:
    field, pattern = term
    if not field:
        return pattern in tunnel.searched()
    return any(fnmatchcase(value.casefold(), pattern) for value in _FIELDS[field](tunnel))
