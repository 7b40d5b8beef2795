"""Which tunnels are shown, and in which order: state filter, text filter, sort key."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import compress
from operator import is_not, itemgetter
from typing import TYPE_CHECKING, Any, Final

from tui.model.states import ALL, state_filters, states_of_filter
from tui.model.tunnels import Tunnel

if TYPE_CHECKING:
    from tui.model.messages import TunnelData

SortKey = Callable[[Tunnel], Any]
SortKeys = Mapping[str, SortKey]
"""The sort key of each column that can sort, by the column's name. ``name`` must be one of them."""

_FIELDS: Final[Mapping[str, Callable[[Tunnel], Iterable[str]]]] = {
    "host": lambda t: (t.host,),
    "name": lambda t: (t.label, t.name),
    "tag": lambda t: t.tags,
    "state": lambda t: (t.state,),
    "role": lambda t: (t.text("role"), t.text("direction")),
}
"""The fields that a term of the filter can name, as in ``host:edge-1``."""

_WILDCARDS: Final = frozenset("*?[")
NOT: Final = "!"
"""In front of a word of a filter: what does not match it is shown."""


@dataclass(frozen=True, slots=True)
class _Term:
    """A word of the filter: a part of any text or a pattern of a whole one, of one field if it names one."""

    pattern: str
    field: str = ""
    is_negated: bool = False


_MOVES_PER_SORT: Final = 16  # while at most one tunnel in so many has moved, each is moved on its own

_Rule = tuple[tuple[_Term, ...], ...]  # alternatives, each with terms that must all match


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user chose to see."""

    state_filter: str = ALL
    text: str = ""
    sort: str = "state"
    """the name of the column to sort by"""
    is_reversed: bool = False

    def next_sort(self, sorts: Sequence[str]) -> Selection:
        """Return this selection sorted by the next of the columns ``sorts``."""
        return replace(self, sort=sorts[(sorts.index(self.sort) + 1) % len(sorts)], is_reversed=False)

    def sorted_by(self, sort: str) -> Selection:
        """Return this selection sorted by a column, in reverse order if it is the present one."""
        return replace(self, sort=sort, is_reversed=self.sort == sort and not self.is_reversed)

    def next_state_filter(self, step: int, *, is_fleet: bool = False) -> Selection:
        """Return this selection with the next (1) or the previous (-1) filter by state."""
        names = state_filters(is_fleet=is_fleet)
        index = names.index(self.state_filter) if self.state_filter in names else 0
        return replace(self, state_filter=names[(index + step) % len(names)])


_Entry = tuple[Tunnel, str, tuple[Any, Any] | None]
"""A tunnel, its state, and its sort key if it is shown; a plain tuple, because thousands are made each second."""


class VisibleTunnels:
    """The tunnels to show, in order, and how many of all tunnels are in each state. Equal ones are ordered by name.

    The order is computed again only if a tunnel's place can have changed: of ten thousand tunnels a few hundred change
    in a second, and hardly one of them its place.
    """

    def __init__(self, sort_keys: SortKeys) -> None:
        self.tunnels: list[Tunnel] = []
        self.places: Mapping[str, int] = {}
        """the index of each tunnel, by name; a new object whenever it changes"""
        self._sort_keys = sort_keys
        self._by_state: Counter[str] = Counter()
        self._criteria: tuple[str, str, bool, _Rule] | None = None
        self._entries: dict[str, _Entry] = {}
        self._search_texts: dict[str, tuple[TunnelData, str]] = {}
        """what the filter searched of each tunnel, and the data that it was made of"""
        self._moved: set[str] = set()
        """the tunnels whose place may have changed since the last order"""
        self._source: Mapping[str, Tunnel] | None = None
        self._selection: Selection | None = None

    @property
    def state_counts(self) -> Mapping[str, int]:
        """How many tunnels are in each state."""
        return self._by_state

    def update(self, tunnels: Mapping[str, Tunnel], selection: Selection) -> None:
        """Select and order these tunnels. Costs nothing if neither argument has changed."""
        if tunnels is self._source and selection == self._selection:
            return
        candidates = _changed_tunnels(tunnels, self._source)
        self._source, self._selection = tunnels, selection
        rule = _parse_rule(selection.text, tunnels.values())
        criteria = (selection.state_filter, selection.sort, selection.is_reversed, rule)
        is_order_stale = criteria != self._criteria
        if is_order_stale:
            candidates = tunnels.items()
            self._criteria = criteria
            self._entries.clear()
            self._by_state.clear()
            if not rule:
                self._search_texts.clear()
        self._moved.clear()
        self._update_entries(candidates, selection, rule)
        is_order_stale |= self._remove_entries(tunnels)
        if is_order_stale or len(self._moved) * _MOVES_PER_SORT > len(self._entries) or selection.is_reversed:
            if is_order_stale or self._moved:
                self._sort(is_reversed=selection.is_reversed)
        elif self._moved:
            self._move()

    def _update_entries(self, candidates: Iterable[tuple[str, Tunnel]], selection: Selection, rule: _Rule) -> None:
        """Update the entries of tunnels that may have changed."""
        entries = self._entries
        states = states_of_filter(selection.state_filter)
        key, name_key = self._sort_keys[selection.sort], self._sort_keys["name"]
        for name, tunnel in candidates:
            old = entries.get(name)
            if old is not None and old[0] is tunnel:
                continue
            state = tunnel.state
            is_shown = (not states or state in states) and (not rule or _rule_matches(rule, tunnel, self._search_text))
            old_key = None if old is None else old[2]
            sort_key = (key(tunnel), name_key(tunnel) if old_key is None else old_key[1]) if is_shown else None
            entries[name] = (tunnel, state, sort_key)
            if old is None or old_key != sort_key:
                self._moved.add(name)
            elif sort_key is not None:
                self.tunnels[self.places[name]] = tunnel
            self._by_state[state] += 1
            if old is not None:
                self._by_state[old[1]] -= 1

    def _remove_entries(self, tunnels: Mapping[str, Tunnel]) -> bool:
        """Remove the entries of removed tunnels; return whether there were any."""
        if len(self._entries) == len(tunnels):
            return False
        for name in self._entries.keys() - tunnels.keys():
            _, state, _ = self._entries.pop(name)
            self._search_texts.pop(name, None)
            self._by_state[state] -= 1
        return True

    def _sort(self, *, is_reversed: bool) -> None:
        shown = [(sort_key, tunnel) for tunnel, _, sort_key in self._entries.values() if sort_key is not None]
        if is_reversed:  # equal ones stay in the order of their names
            shown.sort(key=lambda pair: pair[0][1])
            shown.sort(key=lambda pair: pair[0][0], reverse=True)
        else:
            shown.sort(key=itemgetter(0))
        self.tunnels = [tunnel for _, tunnel in shown]
        self.places = {tunnel.name: place for place, tunnel in enumerate(self.tunnels)}

    def _move(self) -> None:
        """Put a few tunnels in their places: to sort all of a large fleet takes ten times as long."""
        moved, entries = self._moved, self._entries
        self.tunnels = [tunnel for tunnel in self.tunnels if tunnel.name not in moved]
        for name in moved:
            tunnel, _, sort_key = entries[name]
            if sort_key is not None:
                insort(self.tunnels, tunnel, key=self._sort_key_of)
        self.places = {tunnel.name: place for place, tunnel in enumerate(self.tunnels)}

    def _sort_key_of(self, tunnel: Tunnel) -> Any:  # noqa: ANN401  it has the type of the column
        return self._entries[tunnel.name][2]

    def _search_text(self, tunnel: Tunnel) -> str:
        """Return the texts that the filter searches, which are made once: each letter typed searches all tunnels."""
        known = self._search_texts.get(tunnel.name)
        if known is None or known[0] is not tunnel.data:
            known = self._search_texts[tunnel.name] = tunnel.data, tunnel.search_text()
        return known[1]


def _changed_tunnels(
    tunnels: Mapping[str, Tunnel], before: Mapping[str, Tunnel] | None
) -> Iterable[tuple[str, Tunnel]]:
    """Return the tunnels that changed, perhaps with some that did not, but hardly ever all of them."""
    if before is None or tunnels.keys() != before.keys():
        return tunnels.items()
    return compress(tunnels.items(), map(is_not, tunnels.values(), before.values()))


def _parse_rule(text: str, tunnels: Iterable[Tunnel]) -> _Rule:
    """Parse the filter: ``a b|!c`` matches both a and b, or not c."""
    alternatives = [
        [term for word in part.split() if (term := _parse_term(word)).pattern or term.field]
        for part in text.casefold().split("|")
    ]
    return tuple(tuple(_complete_term(term, tunnels) for term in terms) for terms in alternatives if terms)


def _parse_term(word: str) -> _Term:
    """Return a term; one that is negated and still without a pattern, as while it is typed, matches everything."""
    is_negated = word.startswith(NOT)
    word = word.removeprefix(NOT)
    field, colon, pattern = word.partition(":")
    if not colon or field not in _FIELDS:
        return _Term(word, is_negated=is_negated)
    return _Term(pattern, field, is_negated and bool(pattern))


def _complete_term(term: _Term, tunnels: Iterable[Tunnel]) -> _Term:
    """``host:edge-1`` matches that host and not edge-10; while there is no such host, it matches as a prefix."""
    if not term.field or not _WILDCARDS.isdisjoint(term.pattern):
        return term
    values = _FIELDS[term.field]
    if any(term.pattern == value.casefold() for tunnel in tunnels for value in values(tunnel)):
        return term
    return replace(term, pattern=f"{term.pattern}*")


def _rule_matches(rule: _Rule, tunnel: Tunnel, search_text: Callable[[Tunnel], str]) -> bool:
    return any(all(_term_matches(term, tunnel, search_text) for term in terms) for terms in rule)


def _term_matches(term: _Term, tunnel: Tunnel, search_text: Callable[[Tunnel], str]) -> bool:
    pattern = term.pattern
    if term.field:
        is_match = any(matches_pattern(value, pattern) for value in _FIELDS[term.field](tunnel))
    else:
        is_match = pattern in search_text(tunnel) or (
            not _WILDCARDS.isdisjoint(pattern) and any(matches_pattern(v, pattern) for v in tunnel.search_values())
        )
    return is_match != term.is_negated


def matches_pattern(value: str, pattern: str) -> bool:
    """Return whether a text equals a pattern, in which ``*``, ``?`` and ``[0-9]`` stand for others as in a shell.

    The bracket of an IPv6 address, as in ``[::1]:*``, is literal too.
    """
    value = value.casefold()
    if _WILDCARDS.isdisjoint(pattern):
        return value == pattern
    return fnmatchcase(value, pattern) or ("[" in pattern and fnmatchcase(value, pattern.replace("[", "[[]")))
