"""The command palette: everything that keys do, by name, and the verbs with the names of tunnels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from tui.acting import VERBS
from tui.keys import DEEDS, shown_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tui.keys import Deed

_MOST: Final = 40
_LOOKING: Final = ("show", "copy")


def commands(query: str, names: Iterable[str], *, is_read_only: bool) -> list[tuple[str, str]]:
    """The (verb, tunnel) that a query may mean, the likeliest first. Pure.

    ``restart db`` means a verb and a part of a name; ``db`` alone means showing the tunnel.
    """
    verbs = _LOOKING if is_read_only else (*VERBS, *_LOOKING)
    word, _, rest = query.strip().casefold().partition(" ")
    meant = [verb for verb in verbs if verb.startswith(word)]
    part, whole = rest.strip(), query.strip().casefold()
    found = [
        (not name.casefold().startswith(wanted), verb, name)
        for verb, wanted in [*((verb, part) for verb in meant), *([("show", whole)] if "show" not in meant else [])]
        for name in names
        if wanted in name.casefold()
    ]
    found.sort(key=lambda entry: entry[0])
    return [(verb, name) for _, verb, name in found[:_MOST]]


class Steered(Protocol):
    """A screen that has these commands."""

    @property
    def names(self) -> Sequence[str]:
        """The names of all tunnels."""

    @property
    def keys(self) -> Mapping[str, str]:
        """The keys of each deed."""

    @property
    def is_read_only(self) -> bool:
        """Whether commands are barred."""

    def do(self, deed: str) -> None:
        """What a key does, by the deed's name."""

    def tell(self, verb: str, name: str) -> None:
        """A command, or a look, for one tunnel."""


class Commands(Provider):
    """Asked by Textual's palette."""

    @property
    def _main(self) -> Steered:
        return cast("Steered", self.screen)  # no other screen names these commands as its own

    def _deeds(self) -> list[Deed]:
        return [deed for deed in DEEDS if deed.name != "commands" and not (deed.is_command and self._main.is_read_only)]

    def _told(self, deed: Deed) -> Content:
        """What it does, and by which key it is done without the palette."""
        return Content.assemble(deed.help, (f"  {shown_keys(self._main.keys[deed.name])}", "$text-muted"))

    async def discover(self) -> Hits:
        """What there is, before anything is typed."""
        for deed in self._deeds():
            yield DiscoveryHit(self._told(deed), partial(self._main.do, deed.name), deed.help)

    async def search(self, query: str) -> Hits:
        """What a query may mean."""
        main = self._main
        words = query.casefold().split()
        for deed in self._deeds():
            if all(word in f"{deed.name} {deed.help}".casefold() for word in words):
                yield Hit(0.25, self._told(deed), partial(main.do, deed.name), deed.help)
        found = commands(query, main.names, is_read_only=main.is_read_only)
        for rank, (verb, name) in enumerate(found):
            text = f"{verb} {name}"
            yield Hit(1.0 - rank / (2 * _MOST), Content(text), partial(main.tell, verb, name), text)
