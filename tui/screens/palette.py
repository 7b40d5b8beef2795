"""The command palette: every action by name, and the verbs with the names of tunnels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from orchestrator.process.terminal_text import printable
from tui.format.confirmations import VERBS
from tui.model.keys import ACTIONS, display_keys
from tui.model.selection import matches_pattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tui.model.keys import Action

_MAX_HITS: Final = 40
_READ_ONLY_VERBS: Final = ("show", "copy")
_ACTION_SCORE: Final = 0.25
"""Textual orders hits by scores from 0 to 1: actions come after tunnels."""


def find_commands(query: str, names: Iterable[str], *, is_read_only: bool) -> list[tuple[str, str]]:
    """Return the (verb, tunnel) that match a query, the best first.

    ``restart db`` is a verb and a part of a name, or a pattern of one; ``db`` alone shows the tunnel.
    """
    verbs = _READ_ONLY_VERBS if is_read_only else (*VERBS, *_READ_ONLY_VERBS)
    word, _, rest = query.strip().casefold().partition(" ")
    matching = [(verb, rest.strip()) for verb in verbs if verb.startswith(word)]
    if "show" not in (verb for verb, _ in matching):
        matching.append(("show", query.strip().casefold()))
    found = [
        (not name.casefold().startswith(part), verb, name)
        for verb, part in matching
        for name in names
        if part in name.casefold() or matches_pattern(name, part)
    ]
    found.sort(key=lambda entry: entry[0])
    return [(verb, name) for _, verb, name in found[:_MAX_HITS]]


class PaletteTarget(Protocol):
    """A screen that has these commands."""

    @property
    def tunnel_names(self) -> Sequence[str]:
        """The names of all tunnels."""

    @property
    def action_keys(self) -> Mapping[str, str]:
        """The keys of each action."""

    @property
    def is_read_only(self) -> bool:
        """Whether commands are blocked."""

    def run_key_action(self, name: str) -> None:
        """Run an action by its name."""

    def run_verb(self, verb: str, name: str) -> None:
        """Run a verb for one tunnel."""


class CommandProvider(Provider):
    """Textual's palette requests the commands here."""

    @property
    def _target(self) -> PaletteTarget:
        return cast("PaletteTarget", self.screen)  # only the main screen has this provider

    def _actions(self) -> list[Action]:
        is_read_only = self._target.is_read_only
        return [action for action in ACTIONS if action.name != "commands" and not (action.is_command and is_read_only)]

    def _help_with_key(self, action: Action) -> Content:
        keys = display_keys(self._target.action_keys[action.name])
        return Content.assemble(action.help, (f"  {keys}", "$text-muted"))

    async def discover(self) -> Hits:
        """Yield all actions, before anything is typed."""
        for action in self._actions():
            run = partial(self._target.run_key_action, action.name)
            yield DiscoveryHit(self._help_with_key(action), run, action.help)

    async def search(self, query: str) -> Hits:
        """Yield the actions and the verbs with tunnels that match a query."""
        target = self._target
        words = query.casefold().split()
        for action in self._actions():
            if all(word in f"{action.name} {action.help}".casefold() for word in words):
                run = partial(target.run_key_action, action.name)
                yield Hit(_ACTION_SCORE, self._help_with_key(action), run, action.help)
        found = find_commands(query, target.tunnel_names, is_read_only=target.is_read_only)
        for rank, (verb, name) in enumerate(found):
            text = printable(f"{verb} {name}")
            score = 1.0 - rank / (2 * _MAX_HITS)
            yield Hit(score, Content(text), partial(target.run_verb, verb, name), text)
