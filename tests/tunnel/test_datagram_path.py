"""UDP flows in datagrams between client and server: pairs of engines over real sockets, whose datagrams get lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import pytest

from tests.support.engine_parts import no_descriptor_leak, shared_parts
from tests.support.ports import free_port
from tests.support.waiting import run_loop_turns, wait_until_async
from tests.tunnel.test_engine import RunningEngine, client_spec, running_engine, server_spec
from tests.tunnel.test_udp import Peer, peer, udp_echo, udp_pair, visitors_at, wait_snapshot
from tunnel.engine.context import EngineContext
from tunnel.engine.datagram_path import MAX_FLOW_DATAGRAM_BYTES, ClientPath, DatagramPath, ServerPath
from tunnel.engine.link import Link
from tunnel.forwarding.udp import VisitorRelay
from tunnel.model.snapshot import LinkView
from tunnel.model.spec import DATAGRAMS, DataTls, Direction, Mode, Proto, UdpCarrier
from tunnel.model.state import State
from tunnel.protocol import path_probing
from tunnel.protocol.datagram_messages import MAX_SEALED_BYTES
from tunnel.protocol.datagram_records import OVERHEAD_BYTES, DatagramSealer
from tunnel.protocol.records import RecordDirection
from tunnel.runtime.link_datagrams import LinkDatagramSocket, Origin

DATAGRAM, STREAM = UdpCarrier.DATAGRAM.value, UdpCarrier.STREAM.value
Pair = tuple[RunningEngine, RunningEngine]


SENT: Counter[DatagramPath] = Counter()
"""Datagrams of flows that each path has sent, without its probes and answers."""


def _count_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    send = DatagramPath.send

    def count(self: DatagramPath, ident: int, datagrams: Sequence[bytes]) -> Sequence[bytes]:
        SENT[self] += len(datagrams)
        return send(self, ident, datagrams)

    SENT.clear()
    monkeypatch.setattr(DatagramPath, "send", count)


@pytest.fixture
async def shared(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineContext]:
    """Engines whose paths find out ten times as fast whether they work."""
    for name in ("ACTIVE_INTERVAL_S", "SEARCH_INTERVAL_S", "SLOW_SEARCH_INTERVAL_S", "UNANSWERED_S"):
        monkeypatch.setattr(path_probing, name, getattr(path_probing, name) / 10)
    monkeypatch.setattr(path_probing, "SERVER_UNPROBED_S", path_probing.SERVER_UNPROBED_S / 10)
    _count_sent(monkeypatch)
    with no_descriptor_leak():
        async with shared_parts() as parts:
            yield parts


def link_of(one: RunningEngine) -> Link:
    link = one.engine._links.first
    assert link is not None
    return link


def client_path(pair: Pair) -> ClientPath:
    path = link_of(pair[1]).datagram_path
    assert isinstance(path, ClientPath)
    return path


def server_path(pair: Pair) -> ServerPath:
    path = link_of(pair[0]).datagram_path
    assert isinstance(path, ServerPath)
    return path


def view(one: RunningEngine) -> LinkView:
    return one.engine.snapshot().links[0]


async def wait_carrier(pair: Pair, carrier: str) -> None:
    for one in pair:
        await wait_snapshot(one, lambda seen: seen.links[0].udp_carrier == carrier)


@contextmanager
def lost_datagrams(
    monkeypatch: pytest.MonkeyPatch, *, to_server: bool = True, to_client: bool = True
) -> Iterator[None]:
    """Lose what is sent between client and server, as a firewall does."""
    send = LinkDatagramSocket.send

    def lose(self: LinkDatagramSocket, datagrams: Sequence[bytes], start: int, origin: Origin | None) -> int:
        return 1 if (to_server if origin is None else to_client) else send(self, datagrams, start, origin)

    with monkeypatch.context() as patch:
        patch.setattr(LinkDatagramSocket, "send", lose)
        yield


async def exchange_over_path(pair: Pair, visitor: Peer) -> None:
    """Exchange datagrams until one goes over the path, and its answer returns over the path."""
    paths = client_path(pair), server_path(pair)
    for _ in range(50):
        before = [SENT[path] for path in paths]
        await visitor.exchange(b"which way?")
        if all(SENT[path] > was for path, was in zip(paths, before, strict=True)):
            return
    raise AssertionError("no datagram goes over the path")


@pytest.mark.parametrize(
    ("direction", "tls"), [(Direction.REVERSE, DataTls.ENCRYPTED), (Direction.FORWARD, DataTls.OFF)]
)
async def test_a_flow_uses_the_path(shared: EngineContext, direction: Direction, tls: DataTls) -> None:
    options: dict[str, object] = {"data_tls": tls}
    async with (
        udp_echo() as target,
        udp_pair(shared, target, direction=direction, server=options, client=options) as pair,
    ):
        await wait_carrier(pair, DATAGRAM)
        assert all(view(one).udp_reason is None for one in pair)
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
            await wait_snapshot(pair[0], lambda seen: seen.bytes.from_visitors == seen.bytes.to_visitors > 0)


@pytest.mark.parametrize(
    ("direction", "to_server", "to_client"),
    [(Direction.FORWARD, True, True), (Direction.REVERSE, True, False), (Direction.REVERSE, False, True)],
)
async def test_a_flow_survives_the_loss_of_the_path_and_its_return(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch, direction: Direction, *, to_server: bool, to_client: bool
) -> None:
    async with udp_echo() as target, udp_pair(shared, target, direction=direction) as pair:
        await wait_carrier(pair, DATAGRAM)
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
            with lost_datagrams(monkeypatch, to_server=to_server, to_client=to_client):
                visitor.sock.send(b"lost, and both ends notice")
                await wait_carrier(pair, STREAM)
                assert view(pair[1]).udp_reason == "the server's answers do not arrive"
                assert view(pair[0]).udp_reason in {
                    "the client's datagrams do not arrive",
                    "this server's answers do not reach the client",
                }
                while await visitor.exchange(b"still here") != b"still here":
                    pass  # an answer to what was sent before
            await wait_carrier(pair, DATAGRAM)
            await exchange_over_path(pair, visitor)
        assert pair[0].engine.snapshot().connections.total == 1


async def test_without_udp_between_the_ends_flows_use_their_data_connections(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lost_datagrams(monkeypatch):
        async with udp_echo() as target, udp_pair(shared, target) as pair:
            with peer(to=visitors_at(pair)) as visitor:
                assert await visitor.exchange(b"x") == b"x"
            assert [view(one).udp_carrier for one in pair] == [STREAM, STREAM]
            assert view(pair[0]).udp_reason == "no datagram of the client has arrived yet"
            assert view(pair[1]).udp_reason == "no answer of the server has arrived yet"


async def test_an_idle_end_that_only_receives_notices_the_loss_as_well(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_probing, "SERVER_SILENT_S", 0.3)
    monkeypatch.setattr(path_probing, "KEEPALIVE_INTERVAL_S", 0.1)
    async with udp_pair(shared, "127.0.0.1:9") as pair:
        await wait_carrier(pair, DATAGRAM)
        with lost_datagrams(monkeypatch, to_client=False):
            await wait_carrier(pair, STREAM)


async def test_a_datagram_of_any_size_passes(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        await wait_carrier(pair, DATAGRAM)
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
            for size in (0, MAX_FLOW_DATAGRAM_BYTES, MAX_FLOW_DATAGRAM_BYTES + 1, 60_000):
                before, large = SENT[server_path(pair)], bytes(n % 251 for n in range(size))
                assert await visitor.exchange(large) == large
                assert (SENT[server_path(pair)] > before) is (size <= MAX_FLOW_DATAGRAM_BYTES)


async def test_a_path_whose_mtu_shrinks_leaves_larger_datagrams_to_the_data_connection(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, longest = LinkDatagramSocket.send, MAX_SEALED_BYTES - 400

    def send_short(self: LinkDatagramSocket, datagrams: Sequence[bytes], start: int, origin: Origin | None) -> int:
        if len(datagrams[start]) > longest:
            raise OSError(90, "Message too long")  # EMSGSIZE
        return send(self, datagrams, start, origin)

    async with udp_echo() as target, udp_pair(shared, target) as pair:
        await wait_carrier(pair, DATAGRAM)
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
            monkeypatch.setattr(LinkDatagramSocket, "send", send_short)
            visitor.sock.send(bytes(1200))
            await wait_until_async(lambda: server_path(pair).max_datagram == 1199, "the server knows the new size")
            assert pair[0].engine.snapshot().counters.dropped_datagrams == 1
            visitor.sock.send(bytes(1200))  # by the data connection; the answer is lost, and its sender learns it
            await wait_until_async(lambda: client_path(pair).max_datagram == 1199, "the client knows the new size")
            assert await visitor.exchange(bytes(1200)) == bytes(1200)


async def test_the_server_follows_a_client_whose_port_changes(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        await wait_carrier(pair, DATAGRAM)
        client, server = client_path(pair), server_path(pair)
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
            before = server._origin
            assert client._socket is not None
            client._socket.close()
            client.start()  # on another port
            await exchange_over_path(pair, visitor)
            assert before is not None
            assert server._origin is not None
            assert server._origin.peer != before.peer


async def test_a_stranger_gets_no_answer_and_does_not_move_the_path(shared: EngineContext) -> None:
    async with udp_pair(shared, "127.0.0.1:9") as pair:
        await wait_carrier(pair, DATAGRAM)
        server, link = server_path(pair), link_of(pair[0])
        genuine = DatagramSealer(link.wire_id, link.secret, RecordDirection.TO_SERVER).seal(b"\1" + bytes(20))
        origin = server._origin
        with peer(to=pair[0].engine.snapshot().tunnel_addr) as stranger:
            for datagram in (
                b"",
                b"x",
                bytes(1400),
                link.wire_id,
                link.wire_id + bytes(1000),
                genuine,  # number 0, which was used
                DatagramSealer(link.wire_id, b"?" * 32, RecordDirection.TO_SERVER, 100).seal(b"\1" + bytes(20)),
            ):
                stranger.sock.send(datagram)
            # What comes behind them is handled after them.
            marker = DatagramSealer(link.wire_id, link.secret, RecordDirection.TO_SERVER, 500)
            stranger.sock.send(marker.seal(b"\7 is of an unknown kind"))
            stranger.sock.send(marker.seal(b"\1" + bytes(9)))
            answer = await stranger.receive()
            assert len(answer) == OVERHEAD_BYTES + 10
            with pytest.raises(BlockingIOError):
                stranger.sock.recv(2000)
            assert server._origin is not origin  # it had the secret


async def test_reordered_and_repeated_datagrams_are_passed_once(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = LinkDatagramSocket.send
    held: list[tuple[LinkDatagramSocket, bytes, Origin | None]] = []

    def swap(self: LinkDatagramSocket, datagrams: Sequence[bytes], start: int, origin: Origin | None) -> int:
        held.append((self, datagrams[start], origin))
        if len(held) == 2:
            for sock, datagram, to in (held[1], held[0], held[1], held[0]):
                send(sock, [datagram], 0, to)
            held.clear()
        return 1

    with peer() as target:
        async with udp_pair(shared, target.address) as pair:
            await wait_carrier(pair, DATAGRAM)
            with peer(to=visitors_at(pair)) as visitor:
                visitor.sock.send(b"first")
                await target.receive()
                [flow] = server_path(pair)._flows.values()
                assert isinstance(flow, VisitorRelay)
                await wait_until_async(lambda: flow._is_far_ready, "the flow is ready")
                monkeypatch.setattr(LinkDatagramSocket, "send", swap)
                for number in range(20):
                    visitor.sock.send(b"%d" % number)
                got = [await target.receive() for _ in range(18)]
                await run_loop_turns(20)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        got.append(target.sock.recv(100))
                assert len(set(got)) == len(got)


async def test_with_the_carrier_datagram_nothing_goes_over_data_connections(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, object] = {"udp_carrier": UdpCarrier.DATAGRAM}
    async with udp_echo() as target, udp_pair(shared, target, server=options, client=options) as pair:
        await wait_until_async(lambda: client_path(pair).is_usable and server_path(pair).is_usable, "the path is up")
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
            dropped = pair[0].engine.snapshot().counters.dropped_datagrams
            visitor.sock.send(bytes(MAX_FLOW_DATAGRAM_BYTES + 1))
            await wait_snapshot(pair[0], lambda seen: seen.counters.dropped_datagrams == dropped + 1)
            with lost_datagrams(monkeypatch):
                visitor.sock.send(b"lost on the way")
                await wait_until_async(lambda: not server_path(pair).is_usable, "the server notices")
                visitor.sock.send(b"dropped")
                await wait_snapshot(pair[0], lambda seen: seen.counters.dropped_datagrams == dropped + 2)
            assert view(pair[0]).udp_carrier == DATAGRAM
            assert view(pair[0]).udp_reason is not None


@pytest.mark.parametrize("at_server", [True, False])
async def test_an_end_without_datagrams_has_streams_and_a_carrier_that_it_lacks_is_an_error(
    shared: EngineContext, *, at_server: bool
) -> None:
    without: dict[str, object] = {"udp_carrier": UdpCarrier.STREAM}
    ends = (without, None) if at_server else (None, without)
    async with udp_echo() as target, udp_pair(shared, target, server=ends[0], client=ends[1]) as pair:
        assert [view(one).udp_carrier for one in pair] == [STREAM, STREAM]
        assert [view(one).udp_reason for one in pair] == [None, None]
        with peer(to=visitors_at(pair)) as visitor:
            assert await visitor.exchange(b"x") == b"x"
    only: dict[str, object] = {"udp_carrier": UdpCarrier.DATAGRAM}
    common: dict[str, Any] = {"proto": Proto.UDP, "mode": Mode.REVERSE}
    at_one, at_other = common | (without if at_server else only), common | (only if at_server else without)
    async with running_engine(shared, server_spec("127.0.0.1:0", **at_one)) as one:
        await one.wait_state(State.WAITING)
        async with running_engine(shared, client_spec(one, "127.0.0.1:9", **at_other)) as other:
            await wait_snapshot(other, lambda seen: "udp_carrier=datagram" in (seen.reason or ""))


@pytest.mark.parametrize("carrier", [UdpCarrier.AUTO, UdpCarrier.DATAGRAM])
async def test_a_tunnel_port_whose_udp_port_is_in_use_has_streams(shared: EngineContext, carrier: UdpCarrier) -> None:
    with peer(port=free_port()) as other_program:
        options: dict[str, Any] = {"udp_carrier": carrier, "proto": Proto.UDP, "mode": Mode.REVERSE}
        async with running_engine(shared, server_spec("127.0.0.1:0", other_program.address, **options)) as one:
            await wait_snapshot(one, lambda seen: seen.state is State.WAITING)
            assert any("UDP cannot travel as datagrams" in event.text for event in one.events)
            async with running_engine(shared, client_spec(one, "127.0.0.1:9", **options)) as other:
                if carrier is UdpCarrier.AUTO:
                    await other.wait_state(State.UP)
                    assert DATAGRAMS not in link_of(other).features
                else:
                    await wait_snapshot(other, lambda seen: "cannot be opened" in (seen.reason or ""))


async def test_flows_that_are_left_after_their_link_use_their_data_connections(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        await wait_carrier(pair, DATAGRAM)
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
            before = link_of(pair[0])
            before.close("as after a loss of the control channel")
            await wait_snapshot(pair[0], lambda seen: seen.link not in {None, before.ident})
            await wait_carrier(pair, DATAGRAM)
            assert await visitor.exchange(b"x") == b"x"
            assert pair[0].engine.snapshot().connections.total == 1


@pytest.mark.parametrize("tunnel", ["0.0.0.0:0", "[::1]:0", "[::]:0"])
async def test_datagrams_travel_between_all_kinds_of_addresses(shared: EngineContext, tunnel: str) -> None:
    async with udp_echo() as target, udp_pair(shared, target, tunnel=tunnel) as pair:
        await wait_carrier(pair, DATAGRAM)


async def test_a_client_that_gets_no_udp_socket_has_streams(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> LinkDatagramSocket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("tunnel.engine.datagram_path.connect_link_socket", fail)
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        assert view(pair[1]).udp_reason == "no UDP socket can be opened: Too many open files"
        with peer(to=visitors_at(pair)) as visitor:
            assert await visitor.exchange(b"x") == b"x"


async def test_a_defect_in_a_path_ends_the_engine_of_its_link(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    async with udp_pair(shared, "127.0.0.1:9") as pair:
        await wait_carrier(pair, DATAGRAM)
        monkeypatch.setattr(ServerPath, "_note_genuine", fail)
        client_path(pair)._probe()
        await asyncio.wait({pair[0].task})
        assert isinstance(pair[0].task.exception(), ZeroDivisionError)


async def test_an_idle_path_is_probed_at_long_intervals(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        await wait_carrier(pair, DATAGRAM)
        client = client_path(pair)
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
        rest_s = path_probing.KEEPALIVE_INTERVAL_S / 2
        await wait_until_async(lambda: client._prober.next_probe_at - monotonic() > rest_s, "the path is idle")
        number = client._sealer.next_number
        await asyncio.sleep(4 * path_probing.ACTIVE_INTERVAL_S)
        assert client._sealer.next_number == number


async def test_a_tunnel_port_that_is_closed_leaves_flows_to_their_data_connections(shared: EngineContext) -> None:
    async with udp_echo() as target, udp_pair(shared, target) as pair:
        await wait_carrier(pair, DATAGRAM)
        with peer(to=visitors_at(pair)) as visitor:
            await exchange_over_path(pair, visitor)
            server_path(pair)._port.close()
            assert not server_path(pair).is_usable
            await wait_snapshot(pair[1], lambda seen: seen.links[0].udp_carrier == STREAM)
            assert await visitor.exchange(b"still here") == b"still here"
