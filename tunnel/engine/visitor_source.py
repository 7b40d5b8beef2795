"""What carries the visitors of an ingress, over which link: lanes while they move little, else data connections."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from tunnel.engine.link_group import LinkGroup
from tunnel.protocol.frames import ConnectionShared, TargetStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnel.engine.link import Link
    from tunnel.engine.pool import DataConnection
    from tunnel.engine.shared_connection import SharedConnection
    from tunnel.forwarding.lanes import Lane
    from tunnel.model.balancer import Balance
    from tunnel.model.events import EventLog

_STREAM: Final = int(socket.SOCK_STREAM)


class VisitorSource:
    """Takes lanes and data connections from one link, or from the one of several that is to have the visitor."""

    def __init__(
        self,
        count_visitors: Callable[[Link], int],
        add_shared: Callable[[Link, DataConnection], SharedConnection],
    ) -> None:
        """``add_shared`` makes a shared connection of a data connection, which it owns."""
        self._group = LinkGroup(count_visitors)
        self._link: Link | None = None  # if there is one alone
        self._add_shared = add_shared
        self.is_group = False
        """whether several links have visitors"""

    def configure(self, balance: Balance, slowstart_s: float) -> None:
        """Distribute visitors in this way from now on."""
        self._group.configure(balance, slowstart_s)

    def set_links(self, links: Iterable[Link]) -> None:
        """Choose among these links, except those that stop."""
        ready = sorted((link for link in links if not link.is_stopping), key=lambda link: link.rank)
        self._group.set_links(ready)
        self.is_group = len(ready) > 1
        self._link = None if self.is_group else next(iter(ready), None)

    def note_target(self, link: Link, status: TargetStatus, event_log: EventLog) -> None:
        """Stop or start to give visitors to one of several links."""
        self._group.note_target(link, status, event_log)

    def acquire(self, visitor: socket.SocketType, peer: object) -> tuple[Link, DataConnection | Lane] | None:
        """Return what carries a visitor, and its link; None where there is none."""
        if (link := self._link) is None:
            return self._group.acquire(peer, lambda chosen: self._take_from(chosen, visitor))
        data = self._take_from(link, visitor)
        return None if data is None else (link, data)

    def _take_from(self, link: Link, visitor: socket.SocketType) -> DataConnection | Lane | None:
        """Return a lane or an idle data connection of a link for a visitor; None where there is none."""
        shared, is_stream = link.sharing.current, visitor.type == _STREAM
        if shared is not None and is_stream and (lane := shared.create_lane()) is not None:
            return lane
        data = link.pool.acquire()
        if data is not None and shared is None and is_stream and link.sharing.is_wanted:
            self._share(link)
        return data

    def _share(self, link: Link) -> None:
        """Let the next visitors share a data connection, if there is another one."""
        data = link.pool.acquire()
        if data is not None:
            link.session.send_use(ConnectionShared(data.ident))
            link.note_used()
            link.sharing.current = self._add_shared(link, data)

    def move(self, link: Link, lane: Lane) -> None:
        """Let a visitor continue on a data connection of its own, if there is one."""
        if not lane.may_move or link.keeps_visitors or link.is_lost:
            return
        data = link.pool.acquire()
        if data is not None:
            link.note_used()
            lane.move_to(data)
