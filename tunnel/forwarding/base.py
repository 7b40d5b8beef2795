"""What happens between a visitor and a target: the interface of forwarders, and what they may ask of their users.

A forwarder connects the near side (a visitor's socket at the ingress, a target's at the egress) with a data connection.
There is one for TCP (``tunnel.forwarding.tcp``) and one for UDP (``tunnel.forwarding.udp``).

To add a forwarder: one module like that one, and its choice in ``tunnel.forwarding.create_forwarder``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from tunnel.forwarding.flow import ByteCounter, Flow
    from tunnel.forwarding.tcp import Relay
    from tunnel.model.spec import Proto
    from tunnel.model.visitor_end import VisitorEnd


class NearCounters(NamedTuple):
    """What a forwarder counts at the near side of one end."""

    from_near: ByteCounter
    """bytes that come from visitors or targets"""
    to_near: ByteCounter
    """bytes that go to them"""
    dropped: ByteCounter
    """lost datagrams"""


class StreamCodec(Protocol):
    """The bytes of datagrams on a data connection, as the carrier of its link has them. Keeps what is incomplete."""

    def seal(self, content: bytes) -> bytes | bytearray:
        """Return what is sent for some content."""

    def seal_frames(self, content: bytes) -> bytes | bytearray:
        """Return what is sent for frames of a shared connection, which are mostly small."""

    def open_frames(self, received: bytes) -> bytes:
        """Return the content in what was received, in one piece. Raises ProtocolError."""

    def open(self, received: memoryview) -> Sequence[memoryview]:
        """Return the content in what was received, in pieces. Raises ProtocolError."""


class FlowSource(Protocol):
    """The carrier of a link, as a forwarder sees it: it makes the flows of a relay over one of its data connections."""

    def create_flows(
        self,
        relay: Relay,
        near: socket.SocketType,
        far: socket.SocketType,
        from_near: ByteCounter,
        to_near: ByteCounter,
    ) -> tuple[Flow, Flow]:
        """Create the flows of a relay between ``near`` and this data connection on ``far``: from near, and to near."""

    def create_codec(self, ident: int, use: int) -> StreamCodec:
        """Create what carries datagrams over a data connection; ``use`` is which visitor of it this is, from 0."""


class UsedConnection(Protocol):
    """What carries a visitor between the two ends: a data connection, or a lane in a shared one."""

    ident: int
    """what names it on the control channel"""
    visitor_address: bytes
    """the visitor's address as LAUNCH carries it; empty if unknown"""
    events: int
    """all event bits of the other end's side that were reported and no relay has handled yet"""

    @property
    def use(self) -> int:
        """Which visitor of a data connection it is, from 0."""

    @property
    def proto(self) -> Proto:
        """What the visitor speaks."""

    def create_flows(
        self, relay: Relay, near: socket.SocketType, from_near: ByteCounter, to_near: ByteCounter
    ) -> tuple[Flow, Flow]:
        """Create the flows of a relay between ``near`` and the other end: from near, and to near."""

    def watch(self, handler: Callable[[int], None] | None) -> None:
        """Call ``handler`` with the events of the other end's side until a relay starts; None: only gather them."""

    def close(self) -> None:
        """Close it, before a relay has it."""

    def reset(self) -> None:
        """Close it so that the other end sees a reset, before a relay has it."""


class OwnedConnection(UsedConnection, Protocol):
    """A data connection that one visitor has."""

    sock: socket.SocketType
    flow_source: FlowSource
    end_offset: int | None
    """bytes that it carries in all, if the other end has announced that before a relay has it"""


class FlowEnd(Protocol):
    """The relay of a UDP flow, which receives what comes on the path of its link."""

    def receive_from_path(self, datagrams: Sequence[bytes]) -> None:
        """Pass on datagrams of the other end."""


class FlowPath(Protocol):
    """What carries the datagrams of a link's UDP flows as datagrams, while they get through."""

    @property
    def is_usable(self) -> bool:
        """Whether flows send on the path now."""

    @property
    def carries_all(self) -> bool:
        """Whether what the path does not carry is dropped, and not sent on the data connection; not after the link."""

    @property
    def max_datagram(self) -> int:
        """The longest datagram that the path carries."""

    def add_flow(self, ident: int, flow: FlowEnd) -> None:
        """Pass what arrives for a flow to its relay; ``ident`` is the id of its data connection."""

    def remove_flow(self, ident: int) -> None:
        """Forget a flow, which has ended."""

    def note_sent_by_stream(self) -> None:
        """Note that a datagram of a flow is sent on its data connection, although the path is usable."""

    def note_received_by_stream(self) -> None:
        """Note that a datagram of a flow has arrived on its data connection, although the path is usable."""

    def send(self, ident: int, datagrams: Sequence[bytes]) -> Sequence[bytes]:
        """Send datagrams of a flow, each of ``max_datagram`` bytes at most; return those that were not sent."""


class RelayLink(Protocol):
    """The link, as its forwarded visitors see it."""

    ident: str
    """public random id of the link"""

    @property
    def is_client(self) -> bool:
        """Whether this is the client's end."""

    @property
    def is_lost(self) -> bool:
        """Whether it is closed: nothing comes over it any more."""

    @property
    def announces_ends(self) -> bool:
        """Whether ``send_stream_ended`` sends anything: not at a server without reuse, and not after the link."""

    @property
    def has_announced_ends(self) -> bool:
        """Whether the other end announces the ends of its streams over the link; not after the link."""

    def send_stream_ended(self, ident: int, total: int) -> bool:
        """Announce that a data connection carries ``total`` bytes in all; return whether that was done.

        The end that closes a TCP connection first keeps its port for a minute (TIME_WAIT, RFC 9293 §3.6.1). A client
        that did so with 28,000 ephemeral ports could serve some 470 visitors a second. So the client announces the end
        unless an encrypted record has, and the server, which uses a single port anyway, closes first.
        """

    @property
    def reuses(self) -> bool:
        """Whether a data connection serves another visitor after one that has left in order."""

    @property
    def datagram_path(self) -> FlowPath | None:
        """What carries the datagrams of UDP flows without a data connection, if there is such a path."""

    def fail_visitor(self, ident: int, reason: str) -> None:
        """Report to the ingress that a visitor cannot be served any more; ``reason`` is a sentence."""

    def take_back(self, relay: ForwardedVisitor, sock: socket.SocketType) -> None:
        """Take over the socket of the data connection of a visitor that has left in order."""


class ForwardedVisitor(Protocol):
    """One visitor that is being forwarded. Owns the near side and the data connection until it is closed."""

    proto: ClassVar[Proto]
    """what the visitor speaks"""

    @property
    def id(self) -> str:
        """The visitor's id, the same at both ends."""

    ident: int
    """the id of its data connection"""
    link: RelayLink
    """the link that it was started on; it may be lost by now"""
    visitor_address: bytes
    """the visitor's address as LAUNCH carries it; empty if unknown"""
    started_at: float
    """on the monotonic clock"""
    use: int
    is_open: bool
    is_freed: bool
    """whether the egress has reported that it may use the data connection again"""
    keepalive_enabled: bool

    @property
    def activity(self) -> int:
        """A number that grows with each byte or datagram that goes either way, while the visitor is connected."""

    def start(self, near_events: int | None, far_events: int) -> None:
        """Start to forward. The events are those of the two sockets so far; None: near is not registered yet."""

    def set_end_offset(self, total: int) -> None:
        """Note that the data connection carries ``total`` bytes in all, as the other end of the link has announced."""

    def note_freed(self) -> None:
        """Note that the egress may use the data connection again."""

    def on_link_lost(self) -> None:
        """Continue without the link."""

    def enable_keepalive(self) -> None:
        """Enable keepalive on both connections, once the visitor has been here for a while."""

    def describe_visitor(self) -> str:
        """Return the visitor's address as text."""

    def describe_near(self) -> str | None:
        """Return the address of the peer on the near side, the visitor's or the target's, as text; None: unknown."""

    @property
    def flows(self) -> tuple[Flow, ...]:
        """The flows from near and to near, while the visitor is connected; none if it has no streams of bytes."""

    def passed(self) -> tuple[int, int]:
        """Return the bytes that came from the near side, and those that went to it, while the visitor is connected."""

    def unanswered_s(self) -> float | None:
        """Return the seconds since the last sign of a peer that leaves data unacknowledged; None if both answer."""

    @property
    def is_data_unanswered(self) -> bool:
        """Whether it is the other end of the tunnel that leaves data unacknowledged, on the data connection."""

    def close(self, cause: VisitorEnd | None = None) -> None:
        """Disconnect the visitor; the access log names the cause. Calling it twice is allowed."""

    def abort(self, cause: VisitorEnd | None = None) -> None:
        """Disconnect the visitor so that both peers see a reset. Calling it twice is allowed."""

    def release_near(self) -> socket.SocketType | None:
        """End without a trace if nothing was forwarded either way; return the near side, which the caller owns then.

        The reactor no longer watches it. None: something was forwarded, and nothing has changed. The owner is not
        notified.
        """

    def fail(self, reason: str) -> None:
        """Disconnect the visitor, because the target was not reached; ``reason`` is a sentence."""


class ForwardingOwner(Protocol):
    """The object that started to forward a visitor."""

    def on_relay_closed(self, relay: ForwardedVisitor) -> None:
        """Both sockets are closed, or will be at the end of the batch."""

    def on_relay_finished(self, relay: ForwardedVisitor, sock: socket.SocketType) -> None:
        """The visitor has left in order; ``sock``, its data connection, belongs to the owner now."""

    def on_relay_moved(self, relay: Relay, data: OwnedConnection) -> None:
        """The visitor continues on a data connection of its own, whose id and use the relay has from now on."""

    def on_flows_changed(self, relay: Relay) -> None:
        """The relay has other flows from now on."""

    def on_relay_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """The visitor was disconnected because of a defect; called after ``on_relay_closed``."""

    def on_target_unreachable(self, relay: ForwardedVisitor, reason: str) -> None:
        """The target of a connected visitor has turned out to be unreachable; ``reason`` is a sentence."""

    def on_stream_error(self, relay: ForwardedVisitor, error: Exception) -> None:
        """What arrived on the data connection was changed on the way; the visitor is disconnected next."""


class Forwarder(Protocol):
    """Forwards the visitors of one tunnel."""

    def create(
        self, data: UsedConnection, link: RelayLink, near: socket.SocketType, owner: ForwardingOwner
    ) -> ForwardedVisitor:
        """Take over ``near`` and the data connection's socket; ``start`` begins to forward."""
