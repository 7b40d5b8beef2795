"""The present links of an engine, and what they come to together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.model.limits import configured_limits, default_limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.engine.link import Link
    from tunnel.engine.tunnel_end import TunnelEnd
    from tunnel.model.snapshot_builder import LinkFacts
    from tunnel.model.spec import TunnelSpec


class LinkSet:
    """Links in the order of their start: several at a server with several clients, or a client with several servers."""

    def __init__(self) -> None:
        self._links: dict[Link, None] = {}

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(tuple(self._links))  # a caller may close links, which removes them

    def __contains__(self, link: object) -> bool:
        return link in self._links

    @property
    def first(self) -> Link | None:
        """The link that has been present for the longest time."""
        return next(iter(self._links), None)

    def add(self, link: Link) -> None:
        """Add a link whose handshake is complete."""
        self._links[link] = None

    def remove(self, link: Link) -> None:
        """Remove a link that is closed."""
        del self._links[link]

    def set_drained(self, ident: str, *, is_drained: bool) -> None:
        """Give a link no new visitors while there are others, or new ones again; nothing happens if it is gone."""
        for link in self._links:
            if link.ident == ident:
                link.is_drained = is_drained

    def apply_settings(self, spec: TunnelSpec) -> None:
        """Use the settings of a changed spec; no connection is closed."""
        values = spec.settings
        for link in self:
            link.update_limits(configured_limits(values), default_limits(values))
            link.set_report_interval(values.report_interval)
            link.channel.set_read_size(values.signal_buffer)
            if link.is_client:
                link.update_share(spec.weight, is_backup=spec.backup)

    def max_visitors(self, default: int) -> int:
        """Return the greatest number of visitors that a link allows; ``default`` without links."""
        return max((link.session.limits.visitors for link in self._links), default=default)

    def note_usable(self) -> bool:
        """Return whether a link can serve visitors; each link keeps its answer."""
        return True in [link.note_usable() for link in self._links]

    @property
    def dial_error(self) -> str | None:
        """Why data connections cannot be dialled, as the first link that cannot dial them says."""
        return next((link.dial_error for link in self._links if link.dial_error is not None), None)

    @property
    def idle(self) -> int:
        """Number of idle data connections."""
        return sum(len(link.pool) for link in self._links)

    @property
    def dialing(self) -> int:
        """Number of data connections that are being dialled."""
        return sum(link.session.dialing for link in self._links)

    @property
    def capacity(self) -> int:
        """Number of idle data connections that the clients want."""
        return sum(link.session.wanted_idle for link in self._links)

    def facts(self, end: TunnelEnd | None) -> tuple[LinkFacts, ...]:
        """Return what a snapshot shows of the links, whose visitors are at this end."""
        return tuple(link.facts(end) for link in self._links)
