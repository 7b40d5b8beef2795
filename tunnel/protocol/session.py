"""One end of an open link, without I/O: received frames become messages, method calls become bytes to send.

The owner (``engine.link``) passes every frame to ``receive_frame`` and the resulting event to the parts it concerns.
When ``on_output`` is called, it takes ``data_to_send`` at the end of the turn: frames of one turn leave in one write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tunnel.model.limits import negotiate_limits
from tunnel.model.spec import Proto
from tunnel.model.token_bucket import TokenBucket
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frame_codec import encode_message, encode_numbers, encode_parts
from tunnel.protocol.frames import (
    FRAMES,
    CapacityChanged,
    Goodbye,
    Kind,
    LimitsAnnounced,
    Phase,
    Ping,
    Pong,
    QueueLength,
    Sender,
    ShareChanged,
    TargetStatus,
    VisitorFailed,
    encode_launch,
)
from tunnel.protocol.payloads import FrameMessage
from tunnel.protocol.tunnel_test_messages import TargetTest

if TYPE_CHECKING:
    from tunnel.model.limits import ConfiguredLimits, Limits
    from tunnel.protocol.heartbeat import Heartbeat

_CHANGES_PER_S: Final = 4.0  # from the peer; an egress sends two a second at most
_CHANGES_AT_ONCE: Final = 20
_PINGS_PER_S: Final = 2000.0  # from the peer: more than the shortest interval needs
_PINGS_AT_ONCE: Final = 4000


@dataclass(frozen=True, slots=True)
class LimitsChanged:
    """The limits of the link were negotiated again; ``Session.limits`` has them."""


SessionEvent = FrameMessage | LimitsChanged
"""What ``receive_frame`` returns. One event for each frame: a batch of ids is one event."""

_Decoder = Callable[[bytes], FrameMessage]


@dataclass(frozen=True, slots=True)
class SessionRole:
    """Which of the two ends this is."""

    is_client: bool
    is_ingress: bool

    @property
    def peer_senders(self) -> frozenset[Sender]:
        """The roles of the other end."""
        return frozenset(
            {
                Sender.BOTH,
                Sender.SERVER if self.is_client else Sender.CLIENT,
                Sender.EGRESS if self.is_ingress else Sender.INGRESS,
            }
        )


@cache
def _decoders(role: SessionRole) -> dict[Kind, _Decoder]:
    """The decoder of each frame that the peer may send, for one of four roles."""
    senders = role.peer_senders
    rows = [row for row in FRAMES.values() if row.phase is Phase.OPEN and row.sender in senders]
    return {row.kind: row.message.decode for row in rows}


@dataclass(frozen=True, slots=True)
class Negotiation:
    """The values from which the limits of a link follow."""

    ours: ConfiguredLimits
    theirs: ConfiguredLimits
    defaults: Limits

    @property
    def limits(self) -> Limits:
        """What holds at both ends."""
        return negotiate_limits(self.ours, self.theirs, self.defaults)


class Session:
    """The state of one end of a link, as far as the peer knows it."""

    def __init__(
        self, role: SessionRole, negotiation: Negotiation, heartbeat: Heartbeat, on_output: Callable[[], None]
    ) -> None:
        """``on_output`` is called when there is something to send for the first time since ``data_to_send``."""
        self.role = role
        self.heartbeat = heartbeat
        self.limits = negotiation.limits
        self.wanted_idle = 0
        """idle data connections that the client wants"""
        self.dialing = 0
        """data connections that the client dials, as far as this end knows"""
        self.target_error: str | None = None
        """why the egress cannot reach the target; None when it can"""
        self._negotiation = negotiation
        self._on_output = on_output
        self._is_output_due = False
        self._out: list[bytes] = []
        self._pooled: list[int] = []
        self._launches: list[bytes] = []
        self._udp_launches: list[bytes] = []
        self._launches_of = {Proto.TCP: self._launches, Proto.UDP: self._udp_launches}
        self._stream_ends: list[int] = []  # id and bytes in turn
        self._freed: list[int] = []
        self._uses: list[bytes] = []  # frames that name connections, which the other end has to know by then
        self._retired: list[int] = []
        self._queue_length: int | None = None
        self._decoders = _decoders(role)
        self._target_changes = TokenBucket(_CHANGES_PER_S, _CHANGES_AT_ONCE, 0.0)
        self._pings = TokenBucket(_PINGS_PER_S, _PINGS_AT_ONCE, 0.0)
        self._tests = TokenBucket(_CHANGES_PER_S, _CHANGES_AT_ONCE, 0.0)
        self._limit_changes = TokenBucket(_CHANGES_PER_S, _CHANGES_AT_ONCE, 0.0)
        self._share_changes = TokenBucket(_CHANGES_PER_S, _CHANGES_AT_ONCE, 0.0)

    # --- receiving ------------------------------------------------------------------------------------------------

    def receive_frame(self, kind: Kind, payload: bytes, now: float) -> SessionEvent | None:
        """Process one frame from the peer. Raises ProtocolError if the frame is not allowed or malformed."""
        decode = self._decoders.get(kind)
        if decode is None:
            raise ProtocolError(f"the other end may not send a {kind.name} frame now")
        message = decode(payload)
        change = self._STATE_CHANGES.get(type(message))  # nearly all frames have none
        return message if change is None else change(self, message, now)

    def _answer_ping(self, ping: Ping, now: float) -> None:
        if not self._pings.take_token(now):
            raise ProtocolError("the other end sends pings too often")
        self.send(Pong(ping.stamp))

    def _note_pong(self, pong: Pong, now: float) -> Pong:
        self.heartbeat.note_pong(pong.stamp, now)
        return pong

    def _note_capacity(self, capacity: CapacityChanged, _now: float) -> CapacityChanged:
        self.wanted_idle, self.dialing = capacity.wanted, capacity.dialing
        return capacity

    def _note_target(self, status: TargetStatus, now: float) -> TargetStatus:
        self._check_rate(self._target_changes, "the status of its target", now)
        self.target_error = status.error
        return status

    def _note_share(self, share: ShareChanged, now: float) -> ShareChanged:
        self._check_rate(self._share_changes, "its share of the visitors", now)
        return share

    def _note_test(self, test: TargetTest, now: float) -> TargetTest:
        if not self._tests.take_token(now):
            raise ProtocolError("the other end requests tests too often")
        return test

    def _note_limits(self, announced: LimitsAnnounced, now: float) -> LimitsChanged:
        self._check_rate(self._limit_changes, "its configured limits", now)
        self._negotiate(Negotiation(self._negotiation.ours, announced.limits, self._negotiation.defaults))
        return LimitsChanged()

    _STATE_CHANGES: ClassVar[Mapping[type, Callable[[Session, Any, float], SessionEvent | None]]] = MappingProxyType(
        {
            Ping: _answer_ping,
            Pong: _note_pong,
            CapacityChanged: _note_capacity,
            TargetStatus: _note_target,
            LimitsAnnounced: _note_limits,
            ShareChanged: _note_share,
            TargetTest: _note_test,
        }
    )
    """How frames change the state of the session, and the event that follows. Any: the class that is the key."""

    @staticmethod
    def _check_rate(bucket: TokenBucket, subject: str, now: float) -> None:
        """End a link whose peer makes this end change its state, and log that, all the time."""
        if not bucket.take_token(now):
            raise ProtocolError(f"the other end changes {subject} too often")

    # --- sending --------------------------------------------------------------------------------------------------

    def data_to_send(self) -> bytes:
        """All frames that wait, in the order in which the peer has to receive them."""
        self._is_output_due = False
        out = self._out
        if self._pooled:  # before the launches, which may name these ids
            out.append(encode_numbers(Kind.POOLED, self._pooled))
            self._pooled.clear()
        if self._uses:
            out += self._uses
            self._uses.clear()
        if self._launches:
            out += encode_parts(Kind.LAUNCH, self._launches)
            self._launches.clear()
        if self._udp_launches:
            out += encode_parts(Kind.LAUNCH_UDP, self._udp_launches)
            self._udp_launches.clear()
        if self._stream_ends:
            out.append(encode_numbers(Kind.ENDED, self._stream_ends))
            self._stream_ends.clear()
        if self._freed:
            out.append(encode_numbers(Kind.FREED, self._freed))
            self._freed.clear()
        if self._retired:
            out.append(encode_numbers(Kind.RETIRED, self._retired))
            self._retired.clear()
        if self._queue_length is not None:
            out.append(encode_message(QueueLength(self._queue_length)))
            self._queue_length = None
        data = b"".join(out)
        out.clear()
        return data

    def send(self, message: FrameMessage) -> None:
        """Send one message after those that wait already. Lists of ids have methods of their own, which gather."""
        self._out.append(encode_message(message))
        if not self._is_output_due:
            self._announce_output()

    def send_use(self, message: FrameMessage) -> None:
        """Send a message that uses a data connection in another way than for one visitor."""
        self._uses.append(encode_message(message))
        if not self._is_output_due:
            self._announce_output()

    def send_launch(self, ident: int, address: bytes, proto: Proto) -> None:
        """Ask the egress to dial the target for the visitor on this data connection.

        ``address`` is packed; ``proto`` is what the visitor speaks, TCP or UDP.
        """
        self._launches_of[proto].append(encode_launch(ident, address))
        if not self._is_output_due:
            self._announce_output()

    def send_pooled(self, ident: int) -> None:
        """Confirm to the client that the server has this data connection in its pool."""
        self._pooled.append(ident)
        if not self._is_output_due:
            self._announce_output()

    def send_freed(self, ident: int) -> None:
        """Report to the ingress that this data connection may serve another visitor."""
        self._freed.append(ident)
        if not self._is_output_due:
            self._announce_output()

    def send_stream_ended(self, ident: int, total: int) -> None:
        """Announce to the other end that the stream of a data connection has ``total`` bytes."""
        self._stream_ends += (ident, total)
        if not self._is_output_due:
            self._announce_output()

    def send_retired(self, idents: list[int]) -> None:
        """Report to the egress that these idle data connections are closed."""
        if idents:
            self._retired += idents
            if not self._is_output_due:
                self._announce_output()

    def send_queue_length(self, count: int) -> None:
        """Report to the client how many visitors wait at the server."""
        self._queue_length = count
        if not self._is_output_due:
            self._announce_output()

    def send_capacity(self, wanted: int, dialing: int) -> None:
        """Report to the server how many idle connections are wanted. A change of ``dialing`` alone is not sent."""
        is_changed = wanted != self.wanted_idle
        self.wanted_idle, self.dialing = wanted, dialing
        if is_changed:
            self.send(CapacityChanged(wanted, dialing))

    def send_visitor_failed(self, ident: int, reason: str) -> None:
        """Report to the ingress that the visitor of this data connection cannot be served."""
        self.send(VisitorFailed(ident, reason))

    def send_target_status(self, error: str | None) -> None:
        """Report to the ingress whether the target can be reached."""
        self.target_error = error
        self.send(TargetStatus(error))

    def send_limits(self, ours: ConfiguredLimits, defaults: Limits) -> None:
        """Use other configured values at this end, negotiate again, and send them to the peer."""
        self._negotiate(Negotiation(ours, self._negotiation.theirs, defaults))
        self.send(LimitsAnnounced(ours))

    def send_share(self, weight: int, *, is_backup: bool) -> None:
        """Report to the server which share of the visitors this client is to get."""
        self.send(ShareChanged(weight, is_backup))

    def send_ping(self, now: float) -> None:
        """Ask the peer for a Pong."""
        self.send(Ping(int(now * 1e9)))

    def send_goodbye(self, reason: str) -> None:
        """Ask the peer to close the link. It comes after all that was sent before, so launches still count."""
        self._out.append(self.data_to_send())
        self.send(Goodbye(reason))

    def _negotiate(self, negotiation: Negotiation) -> None:
        self._negotiation = negotiation
        self.limits = negotiation.limits

    def _announce_output(self) -> None:
        self._is_output_due = True
        self._on_output()
