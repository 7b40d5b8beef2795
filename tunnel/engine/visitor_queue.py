"""The visitors of an ingress that wait for a data connection."""

from __future__ import annotations

import socket
from collections import deque
from typing import TYPE_CHECKING, Final

from tunnel.engine.visitor_list import format_packed
from tunnel.model.visitors import QUEUED, VisitorView
from tunnel.protocol.visitor_address import pack_address
from tunnel.runtime import sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunnel.model.visitors import VisitorSelector

MAX_RELAUNCHES: Final = 3
"""How often a visitor is given to another link, as ``retries`` of HAProxy."""


def describe_queued(visitor: socket.SocketType, peer: object) -> VisitorView:
    """Return the view of a visitor that is not forwarded, whose address is ``peer``."""
    address, proto = format_packed(pack_address(peer)), sockets.PROTOS[visitor.type]
    return VisitorView(None, address, None, 0, 0, None, None, QUEUED, proto)


class VisitorQueue(deque[tuple[socket.SocketType, object, float]]):
    """Visitors with their addresses and deadlines, the longest wait first. The ingress owns their sockets.

    A deque with methods, because every new visitor looks whether it is empty.
    """

    def __init__(self) -> None:
        super().__init__()
        # By descriptor, and with the address: the number of another visitor's descriptor may be the same later.
        self._launches: dict[int, tuple[object, int]] = {}

    def views(self) -> list[VisitorView]:
        """Return the visitors as observers see them."""
        return [describe_queued(visitor, peer) for visitor, peer, _ in self]

    def take_selected(self, selector: VisitorSelector) -> Iterator[tuple[socket.SocketType, object]]:
        """Remove the selected visitors, and yield them."""
        for entry in list(self):
            visitor, peer, _ = entry
            if selector.selects(None, pack_address(peer)):
                self.remove(entry)
                yield visitor, peer

    def count_launch(self, visitor: socket.SocketType, peer: object) -> bool:
        """Note that a launch of a visitor has failed; return whether it may be launched once more."""
        known = self._launches.get(visitor.fileno(), (peer, 0))
        launches = known[1] + 1 if known[0] == peer else 1
        self._launches[visitor.fileno()] = peer, launches
        return launches <= MAX_RELAUNCHES

    def was_launched(self, visitor: socket.SocketType, peer: object) -> bool:
        """Whether a visitor has been launched, and counted, before."""
        return self._launches.get(visitor.fileno(), (None, 0))[0] == peer
