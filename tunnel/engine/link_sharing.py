"""The shared connections of one link, and whether its visitors are to share one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tunnel.model.spec import Mux

if TYPE_CHECKING:
    from tunnel.engine.control_channel import ControlChannel
    from tunnel.engine.pool import DataConnection
    from tunnel.engine.shared_connection import SharedConnection

_NEAR_S: Final = 0.002  # the round trip within which visitors share a connection: a lost packet is repaired at once
_FAR_S: Final = 0.005  # and beyond which they stop to


class LinkSharing:
    """Knows the shared connections, which outlive the link; the end of the tunnel owns them."""

    def __init__(self, mux: Mux, channel: ControlChannel) -> None:
        """``mux`` is what both ends allow."""
        self.current: SharedConnection | None = None
        """at an ingress: the one in which lanes are opened"""
        self._mux = mux
        self._channel = channel
        self._round_trip_s: float | None = None
        self._connections: dict[int, SharedConnection] = {}  # by their ids

    @property
    def is_wanted(self) -> bool:
        """Whether visitors are to share a data connection; with ``auto`` the answer is as old as the last ping."""
        if self._mux is not Mux.AUTO:
            return self._mux is Mux.ON
        if self._round_trip_s is None:
            self._round_trip_s = self._channel.min_round_trip_s()
        return self._round_trip_s is not None and self._round_trip_s <= _NEAR_S

    @property
    def lane_count(self) -> int | None:
        """Visitors that share a data connection now; None unless both ends allow that."""
        return None if self._mux is Mux.OFF else sum(map(len, self._connections.values()))

    def add(self, shared: SharedConnection) -> None:
        """Find the lanes of this connection from now on."""
        self._connections[shared.ident] = shared

    def remove(self, shared: SharedConnection) -> None:
        """Forget a connection, which is closed."""
        self._connections.pop(shared.ident, None)
        if self.current is shared:
            self.current = None

    def find_moved(self, ident: int) -> DataConnection | None:
        """Return the data connection with this id if a visitor moves to it."""
        found = (shared.moved.get(ident) for shared in self._connections.values())
        return next((data for data in found if data is not None), None)

    def check(self) -> None:
        """Let new visitors share another connection if this one is stalled, and none if the other end is far now."""
        self._round_trip_s = self._channel.min_round_trip_s() if self._mux is Mux.AUTO else None
        for one in list(self._connections.values()):
            one.check()
        shared = self.current
        if shared is None:
            return
        if (self._round_trip_s or 0.0) > _FAR_S:
            shared.retire()
        if not shared.may_grow:
            self.current = None

    def end(self) -> None:
        """Let the visitors finish: the link is lost, and new ones do not come any more."""
        self.current = None
        for shared in list(self._connections.values()):
            shared.on_link_lost()
