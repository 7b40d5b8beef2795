"""The session of an open link: two exchange frames without I/O, and each accepts only what its peer may send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.model.limits import ConfiguredLimits, Limits
from tunnel.model.spec import Proto
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frame_codec import FrameDecoder, encode_frame, encode_message
from tunnel.protocol.frames import (
    FRAMES,
    CapacityChanged,
    ConnectionsFreed,
    ConnectionsPooled,
    ConnectionsRetired,
    Goodbye,
    Kind,
    Launch,
    Phase,
    Ping,
    Pong,
    QueueLength,
    Sender,
    ShareChanged,
    StreamsEnded,
    TargetStatus,
    UdpLaunch,
    VisitorFailed,
)
from tunnel.protocol.heartbeat import Heartbeat
from tunnel.protocol.payloads import MAX_NUMBERS
from tunnel.protocol.session import LimitsChanged, Negotiation, Session, SessionEvent, SessionRole
from tunnel.protocol.tunnel_test_messages import TargetTest

DEFAULTS = Limits(8, 1024, 1024)
ROLES = [SessionRole(is_client, is_ingress) for is_client in (True, False) for is_ingress in (True, False)]
START = 1000.0

idents = st.integers(0, (1 << 64) - 1)


@dataclass
class End:
    """One session, and how often it announced output."""

    role: SessionRole
    outputs: int = 0
    decoder: FrameDecoder = field(default_factory=FrameDecoder)

    def __post_init__(self) -> None:
        negotiation = Negotiation(ConfiguredLimits(), ConfiguredLimits(), DEFAULTS)
        self.session = Session(self.role, negotiation, Heartbeat(5.0, START), self._count_output)

    def _count_output(self) -> None:
        self.outputs += 1

    def receive(self, data: bytes, now: float = START) -> list[SessionEvent]:
        events = [self.session.receive_frame(kind, payload, now) for kind, payload in self.decoder.feed(data)]
        return [event for event in events if event is not None]


def pair(*, client_is_ingress: bool = False) -> tuple[End, End]:
    """The sessions of a client and its server."""
    return End(SessionRole(True, client_is_ingress)), End(SessionRole(False, not client_is_ingress))


Send = Callable[[Session], None]


@pytest.mark.parametrize(
    ("is_client", "is_ingress", "send", "event"),
    [
        (None, True, lambda session: session.send_launch(7, b"at", Proto.TCP), Launch(((7, b"at"),))),
        (None, True, lambda session: session.send_launch(7, b"at", Proto.UDP), UdpLaunch(((7, b"at"),))),
        (None, True, lambda session: session.send_retired([7, 8]), ConnectionsRetired((7, 8))),
        (None, False, lambda session: session.send_visitor_failed(7, "gone"), VisitorFailed(7, "gone")),
        (None, False, lambda session: session.send_target_status("gone"), TargetStatus("gone")),
        (False, None, lambda session: session.send_pooled(7), ConnectionsPooled((7,))),
        (False, None, lambda session: session.send_queue_length(3), QueueLength(3)),
        (True, None, lambda session: session.send_capacity(9, 2), CapacityChanged(9, 2)),
        (True, None, lambda session: session.send_share(3, is_backup=True), ShareChanged(3, is_backup=True)),
        (True, None, lambda session: session.send_stream_ended(7, 1 << 40), StreamsEnded(((7, 1 << 40),))),
        (None, None, lambda session: session.send_goodbye("it shuts down"), Goodbye("it shuts down")),
        (None, None, lambda session: session.send_limits(ConfiguredLimits(visitors=3), DEFAULTS), LimitsChanged()),
    ],
)
def test_each_call_arrives_as_one_event(
    is_client: bool | None,  # noqa: FBT001  a parameter of the case; None: both
    is_ingress: bool | None,  # noqa: FBT001  as above
    send: Send,
    event: SessionEvent,
) -> None:
    for role in ROLES:
        if is_client in {None, role.is_client} and is_ingress in {None, role.is_ingress}:
            sender, receiver = End(role), End(SessionRole(not role.is_client, not role.is_ingress))
            send(sender.session)
            assert sender.outputs == 1
            assert receiver.receive(sender.session.data_to_send()) == [event]
            assert sender.session.data_to_send() == b""


@pytest.mark.parametrize("role", ROLES)
def test_frames_that_the_peer_may_not_send_are_protocol_errors(role: SessionRole) -> None:
    peer = {
        Sender.BOTH: True,
        Sender.CLIENT: not role.is_client,
        Sender.SERVER: role.is_client,
        Sender.INGRESS: not role.is_ingress,
        Sender.EGRESS: role.is_ingress,
    }
    for row in FRAMES.values():
        payload = b"\0\x01\x01" if row.kind is Kind.SHARE else b"\x01" * row.min_bytes
        if row.phase is Phase.OPEN and peer[row.sender]:
            End(role).receive(encode_frame(row.kind, payload))
        else:
            with pytest.raises(ProtocolError, match=f"may not send a {row.kind.name} frame"):
                End(role).receive(encode_frame(row.kind, payload))


@given(
    st.lists(
        st.tuples(st.sampled_from(["launch", "udp", "retire", "pool", "end", "free", "flush"]), idents), max_size=60
    )
)
@example(steps=[(step, ident) for step in ("launch", "udp", "free", "retire", "pool", "end") for ident in (1, 2)])
def test_batches_lose_and_reorder_nothing(steps: list[tuple[str, int]]) -> None:
    client, server = pair()  # reverse: the server is the ingress
    sent, received = list[tuple[str, int]](), list[tuple[str, int]]()
    calls: dict[str, Callable[[int], None]] = {
        "launch": lambda ident: server.session.send_launch(ident, b"address", Proto.TCP),
        "udp": lambda ident: server.session.send_launch(ident, b"address", Proto.UDP),
        "retire": lambda ident: server.session.send_retired([ident]),
        "pool": server.session.send_pooled,
        "free": client.session.send_freed,
        "end": lambda ident: client.session.send_stream_ended(ident, ident // 2),
    }
    for step, ident in [*steps, ("flush", 0)]:
        if step == "flush":
            for event in client.receive(server.session.data_to_send()) + server.receive(client.session.data_to_send()):
                received += facts(event)
        else:
            calls[step](ident)
            sent.append((step, ident))
    for step in calls:
        assert [ident for name, ident in received if name == step] == [ident for name, ident in sent if name == step]


def facts(event: SessionEvent) -> list[tuple[str, int]]:
    match event:
        case UdpLaunch(launches):
            return [("udp", ident) for ident, address in launches if address == b"address"]
        case Launch(launches):
            return [("launch", ident) for ident, address in launches if address == b"address"]
        case ConnectionsRetired(ids):
            return [("retire", ident) for ident in ids]
        case ConnectionsFreed(ids):
            return [("free", ident) for ident in ids]
        case ConnectionsPooled(ids):
            return [("pool", ident) for ident in ids]
        case StreamsEnded(ends):
            return [("end", ident) for ident, total in ends if total == ident // 2]
    raise AssertionError(event)


def test_only_the_latest_queue_length_is_sent() -> None:
    client, server = pair()
    for count in (3, 9, 0):
        server.session.send_queue_length(count)
    assert client.receive(server.session.data_to_send()) == [QueueLength(0)]


def test_everything_of_a_turn_is_announced_once_and_leaves_in_one_piece() -> None:
    _, server = pair()
    for ident in range(500):
        server.session.send_pooled(ident)
        server.session.send_launch(ident, b"", Proto.TCP)
    server.session.send_retired([])
    server.session.send_ping(START)
    assert server.outputs == 1
    kinds = [kind for kind, _ in FrameDecoder().feed(server.session.data_to_send())]
    assert kinds == [Kind.PING, Kind.POOLED, Kind.LAUNCH], "confirmations go before the launches that name them"
    server.session.send_launch(1, b"", Proto.TCP)
    assert server.outputs == 2


def test_a_batch_larger_than_a_frame_is_several_events() -> None:
    client, server = pair()
    for ident in range(MAX_NUMBERS + 1):
        server.session.send_pooled(ident)
    events = client.receive(server.session.data_to_send())
    assert [len(event.idents) for event in events if isinstance(event, ConnectionsPooled)] == [MAX_NUMBERS, 1]


def test_goodbye_comes_after_launches_and_before_later_frames() -> None:
    client, server = pair()
    server.session.send_launch(7, b"", Proto.TCP)
    server.session.send_goodbye("it shuts down")
    server.session.send_launch(8, b"", Proto.TCP)
    assert client.receive(server.session.data_to_send()) == [
        Launch(((7, b""),)),
        Goodbye("it shuts down"),
        Launch(((8, b""),)),
    ]


def test_a_ping_is_answered_and_measures_the_round_trip() -> None:
    client, server = pair()
    client.session.send_ping(START)
    assert server.receive(client.session.data_to_send()) == []
    assert server.outputs == 1, "the answer waits to be sent"
    [event] = client.receive(server.session.data_to_send(), now=START + 0.25)
    assert isinstance(event, Pong)
    assert client.session.heartbeat.round_trip_s == pytest.approx(0.25, abs=1e-6)
    assert server.session.heartbeat.round_trip_s is None


def test_a_peer_that_pings_without_end_is_not_answered() -> None:
    _, server = pair()
    ping = encode_message(Ping(1))
    server.receive(ping * 4000)
    with pytest.raises(ProtocolError, match="sends pings too often"):
        server.receive(ping)
    server.receive(ping * 1000, now=START + 1)  # as often as with the shortest interval


def test_a_peer_that_requests_tests_without_end_ends_the_link() -> None:
    client, server = pair()
    for _ in range(20):
        server.session.send(TargetTest(7))
        assert client.receive(server.session.data_to_send()) == [TargetTest(7)]
    server.session.send(TargetTest(7))
    with pytest.raises(ProtocolError, match="requests tests too often"):
        client.receive(server.session.data_to_send())


bounds = st.builds(ConfiguredLimits, *[st.none() | st.integers(1, 1 << 20)] * 3)


@given(st.lists(st.tuples(st.booleans(), bounds), max_size=6))
def test_both_ends_have_the_same_limits_after_every_change(changes: list[tuple[bool, ConfiguredLimits]]) -> None:
    client, server = pair()
    for is_client, ours in changes:
        sender, receiver = (client, server) if is_client else (server, client)
        sender.session.send_limits(ours, DEFAULTS)
        assert receiver.receive(sender.session.data_to_send()) == [LimitsChanged()]
        assert sender.session.limits == receiver.session.limits


def test_the_state_of_the_target_and_of_the_pool_is_known_at_both_ends() -> None:
    client, server = pair(client_is_ingress=True)
    server.session.send_target_status("it refused the connection")
    client.session.send_capacity(16, 4)
    client.receive(server.session.data_to_send())
    server.receive(client.session.data_to_send())
    for end in (client, server):
        assert end.session.target_error == "it refused the connection"
        assert (end.session.wanted_idle, end.session.dialing) == (16, 4)
    server.session.send_target_status(None)
    client.receive(server.session.data_to_send())
    assert client.session.target_error is None


def test_a_change_of_the_dials_in_progress_alone_is_not_sent() -> None:
    client, _ = pair()
    client.session.send_capacity(16, 4)
    client.session.data_to_send()
    client.session.send_capacity(16, 5)
    assert client.outputs == 1
    assert client.session.dialing == 5
