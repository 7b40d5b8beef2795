"""Shared connections of a client that was written from the protocol's page alone, and of a server of this project."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import replace

import pytest

from tests.integration.test_second_client import (
    PAYLOAD,
    ServedTunnel,
    exchange,
    receive_until_reset,
    serving,
    visiting,
)
from tests.support.ports import free_port
from tests.support.processes import running_harness
from tests.support.second_client import CannotServeError, ClientOptions, SecondClient, echo_upper_case, reset
from tests.support.second_lanes import (
    CREDIT,
    DATA,
    END,
    FAILED,
    LAST,
    MOVED,
    OPEN,
    RESET,
    WANTED,
    Lane,
    SharedConnection,
    Stream,
    encode_lane_frame,
)
from tests.support.waiting import wait_until_async

LANES = ClientOptions(mux=True, pool=6)
LANES_TCP = replace(LANES, tls=0)
TARGET_RESETS: list[str] = []


def echo_or_reset(sock: socket.socket) -> None:
    """Be a target that echoes, resets at the request ``reset``, and notes resets."""
    try:
        while part := sock.recv(1 << 16):
            if part == b"reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            sock.sendall(part)
        sock.shutdown(socket.SHUT_WR)
    except ConnectionResetError:
        TARGET_RESETS.append("reset")
        raise


@pytest.fixture(scope="module")
def tunnels(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, ServedTunnel]]:
    """Start one server process with all tunnels."""
    tunnels = {
        "lanes-tcp": ServedTunnel(LANES_TCP, server_options="&mux=1"),
        "lanes-encrypted": ServedTunnel(LANES, server_options="&mux=1"),
        "forward-lanes-tcp": ServedTunnel(LANES_TCP, mode="forward", server_options="&mux=1"),
        "forward-lanes-encrypted": ServedTunnel(LANES, mode="forward", server_options="&mux=1"),
        "no-lanes": ServedTunnel(LANES, server_options="&mux=0"),
    }
    no_target = ServedTunnel(LANES, mode="forward", server_options="&mux=1")
    with running_harness(tmp_path_factory.mktemp("second-client")) as harness:
        target = harness.start_target(echo_or_reset)
        urls = {name: tunnel.url(target.address) for name, tunnel in tunnels.items()}
        urls["no-target"] = no_target.url(("127.0.0.1", free_port()))
        tunnels["no-target"] = no_target
        server = harness.start_daemon(urls)
        for name in tunnels:
            server.wait_state("waiting", name=name)
        yield tunnels


@pytest.fixture(params=["lanes-tcp", "lanes-encrypted"])
def lanes(request: pytest.FixtureRequest, tunnels: dict[str, ServedTunnel]) -> ServedTunnel:
    """Return a reverse tunnel with shared connections, once for each carrier."""
    return tunnels[request.param]


@pytest.fixture(params=["forward-lanes-tcp", "forward-lanes-encrypted"])
def forward_lanes(request: pytest.FixtureRequest, tunnels: dict[str, ServedTunnel]) -> ServedTunnel:
    """Return a forward tunnel with shared connections, once for each carrier."""
    return tunnels[request.param]


@contextlib.asynccontextmanager
async def serving_lanes(
    tunnel: ServedTunnel, serve: Callable[[Stream], Awaitable[None]] = echo_upper_case
) -> AsyncGenerator[SecondClient]:
    """Connect a second client. The link's first visitor, on a data connection of its own, has come and gone."""

    async def serve_lane(stream: Stream) -> None:
        await (serve if isinstance(stream, Lane) else echo_upper_case)(stream)

    async with serving(tunnel, serve_lane) as client:
        assert client.welcome["features"] == ["mux"]
        assert await exchange(tunnel.visitors, b"first") == b"FIRST"
        assert not client.lanes
        yield client


@contextlib.asynccontextmanager
async def a_lane(tunnel: ServedTunnel) -> AsyncGenerator[tuple[SecondClient, SharedConnection, Lane]]:
    """Connect a second client that is the ingress, and open a lane that works."""
    async with serving(tunnel) as client:
        shared = await client.share()
        lane = client.open(shared)
        await lane.send(b"a")
        assert await lane.receive() == b"a"
        yield client, shared, lane


async def exchange_in(lane: Lane, payload: bytes) -> bytes:
    """Return the answer to a payload and an end."""

    async def send() -> None:
        await lane.send(payload)
        await lane.end()

    sending, answer = asyncio.create_task(send()), b""
    while content := await lane.receive():
        answer += content
    await sending
    await lane.close()
    return answer


async def test_a_server_that_does_not_share_has_not_the_feature(tunnels: dict[str, ServedTunnel]) -> None:
    async with serving(tunnels["no-lanes"]) as client:
        answers = [await exchange(tunnels["no-lanes"].visitors, b"hello") for _ in range(3)]
        assert (answers, client.welcome["features"], client.lanes) == ([b"HELLO"] * 3, [], [])


async def test_many_visitors_are_in_one_shared_connection(lanes: ServedTunnel) -> None:
    requests = [b"visitor %d" % number * 100 for number in range(40)]
    async with serving_lanes(lanes) as client:
        async with visiting(lanes.visitors) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"HELLO"
            assert client.lanes[0].visitor == writer.get_extra_info("sockname")
        answers = await asyncio.gather(*(exchange(lanes.visitors, request) for request in requests))
        assert answers == [request.upper() for request in requests]
        assert (len(client.lanes), len(client.shared), client.failures) == (41, 1, [])


async def test_frames_of_lanes_may_be_split_anywhere(lanes: ServedTunnel) -> None:
    async def answer_in_parts(stream: Stream) -> None:
        assert isinstance(stream, Lane)
        stream.shared.max_part = 5
        await echo_upper_case(stream)

    async with serving_lanes(lanes, answer_in_parts):
        assert await exchange(lanes.visitors, PAYLOAD[:5000]) == PAYLOAD[:5000].upper()


async def test_a_visitor_in_a_lane_may_send_after_the_clients_end(lanes: ServedTunnel) -> None:
    received = bytearray()

    async def end_at_once(stream: Stream) -> None:
        assert isinstance(stream, Lane)
        await stream.send(b"220 ready")
        await stream.end()
        await stream.wait_for_move()
        while content := await stream.receive():
            received.extend(content)

    async with serving_lanes(lanes, end_at_once) as client, visiting(lanes.visitors) as (reader, writer):
        assert await reader.read() == b"220 ready"
        writer.write(PAYLOAD)
        writer.write_eof()
        await wait_until_async(lambda: client.lanes[0].is_over, "the client has received the request")
        assert client.failures == []
    assert received == PAYLOAD


async def test_an_answer_after_the_end_of_a_visitor_in_a_lane_moves(lanes: ServedTunnel) -> None:
    async def answer_at_the_end(stream: Stream) -> None:
        while await stream.receive():
            pass
        await stream.send(PAYLOAD * 20)
        await stream.end()

    async with serving_lanes(lanes, answer_at_the_end) as client, visiting(lanes.visitors) as (reader, writer):
        writer.write_eof()
        await wait_until_async(lambda: client.lanes and client.lanes[0].carrier, "the visitor moves")
        assert client.lanes[0].is_wanted
        assert await reader.read() == PAYLOAD * 20
        assert client.failures == []


async def test_bulk_moves_and_arrives_unchanged(lanes: ServedTunnel) -> None:
    async def echo_in_lane_and_beside(stream: Stream) -> None:
        assert isinstance(stream, Lane)
        await stream.send((await stream.receive()).upper())
        await stream.wait_for_move()
        await echo_upper_case(stream)

    async def visit() -> bytes:
        async with visiting(lanes.visitors) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"HELLO"
            writer.write(PAYLOAD)
            writer.write_eof()
            return await reader.read()

    async with serving_lanes(lanes, echo_in_lane_and_beside) as client:
        assert await asyncio.gather(*(visit() for _ in range(3))) == [PAYLOAD.upper()] * 3
        assert [lane.sent for lane in client.lanes] == [5] * 3
        assert (len(client.shared), client.failures) == (1, [])


async def test_ended_of_the_egress_may_arrive_before_moved(lanes: ServedTunnel) -> None:
    received = bytearray()

    async def answer_beside(stream: Stream) -> None:
        assert isinstance(stream, Lane)
        await stream.send(b"in the lane, ")
        release = stream.shared.hold()
        await stream.wait_for_move()
        assert stream.carrier
        await stream.send(b"beside")
        stream.carrier.announce_end()
        await asyncio.sleep(0.1)
        release()
        while content := await stream.receive():
            received.extend(content)

    async with serving_lanes(lanes, answer_beside) as client, visiting(lanes.visitors) as (reader, writer):
        writer.write(PAYLOAD)
        assert await reader.read() == b"in the lane, beside"
        writer.write_eof()
        await wait_until_async(lambda: client.lanes[0].is_over, "the visitor has left")
        assert client.failures == []
    assert received == PAYLOAD


async def test_a_visitor_who_does_not_read_delays_no_other(lanes: ServedTunnel) -> None:
    async def pour(stream: Stream) -> None:
        if await stream.receive() == b"pour":
            await stream.send(PAYLOAD * 60)
        await stream.end()

    async with serving_lanes(lanes, pour) as client, visiting(lanes.visitors) as (reader, writer):
        writer.write(b"pour")
        await wait_until_async(lambda: client.lanes and client.lanes[0].is_wanted, "the window is used up")
        assert await asyncio.gather(*(exchange(lanes.visitors, b"hello") for _ in range(10))) == [b""] * 10
        writer.write_eof()
        assert await reader.read() == PAYLOAD * 60


async def test_a_reset_is_passed_on_in_a_lane(lanes: ServedTunnel) -> None:
    async def reset_at_request(stream: Stream) -> None:
        while content := await stream.receive():
            if content == b"reset":
                raise ConnectionAbortedError
            await stream.send(content.upper())

    async with serving_lanes(lanes, reset_at_request) as client:
        assert await receive_until_reset(lanes.visitors, b"reset") == b""
        async with visiting(lanes.visitors) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"HELLO"
            reset(writer)
        await wait_until_async(lambda: len(client.failures) == 2, "the lane is reset")
        assert isinstance(client.failures[1], ConnectionResetError)
        assert len(client.shared) == 1


async def test_a_lane_that_cannot_be_served_disconnects_its_visitor(lanes: ServedTunnel) -> None:
    async def refuse(stream: Stream) -> None:
        raise CannotServeError("no such host")

    async with serving_lanes(lanes, refuse) as client, visiting(lanes.visitors) as (reader, _):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert (len(client.lanes), len(client.shared), client.failures) == (1, 1, [])


async def test_a_move_to_a_lost_connection_disconnects_the_visitor(
    lanes: ServedTunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_lanes(lanes) as client, visiting(lanes.visitors) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        monkeypatch.setattr(client, "claim_connection", lambda _: None)
        with contextlib.suppress(ConnectionError):
            writer.write(PAYLOAD)
            while await reader.read(1 << 16):
                pass
        await wait_until_async(lambda: client.failures, "the client has failed the visitor")
        assert await exchange(lanes.visitors, b"again") == b"AGAIN"
        assert len(client.shared) == 1


@pytest.mark.parametrize("is_refused", [True, False])
async def test_a_lane_that_the_egress_closes_before_moved_arrives(
    lanes: ServedTunnel, monkeypatch: pytest.MonkeyPatch, *, is_refused: bool
) -> None:
    moved_to: list[int] = []
    async with serving_lanes(lanes) as client, visiting(lanes.visitors) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        lane = client.lanes[0]
        handle = lane.handle

        def close_before(kind: int, payload: bytes) -> None:
            if kind != MOVED:
                handle(kind, payload)
                return
            moved_to.append(int.from_bytes(payload, "big"))
            if is_refused:
                lane.refuse("too late")
            else:
                lane.reset()

        monkeypatch.setattr(lane, "handle", close_before)
        with contextlib.suppress(ConnectionError):
            writer.write(PAYLOAD * 5)
            while await reader.read(1 << 16):
                pass
        assert lane.failure, "the visitor has not moved"
        with contextlib.suppress(ConnectionError):
            await client.connections[moved_to[0]].reader.read()
        assert await exchange(lanes.visitors, b"again") == b"AGAIN"
        assert len(client.shared) == 1


async def test_a_visitor_stays_in_its_lane_without_the_link(lanes: ServedTunnel) -> None:
    async with serving_lanes(lanes) as client, visiting(lanes.visitors) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        shared = client.lanes[0].shared
        client.close_link()
        await wait_until_async(lambda: shared.is_last, "the server sends LAST")
        writer.write(PAYLOAD)
        assert await reader.readexactly(len(PAYLOAD)) == PAYLOAD.upper()
        writer.write_eof()
        assert await reader.read() == b""
        await shared.ended.wait()
        assert not client.lanes[0].failure


def moved(number: int) -> bytes:
    """Return the payload of MOVED."""
    return number.to_bytes(8, "big")


VIOLATIONS: dict[str, Callable[[Lane], list[tuple[int, int, bytes]]]] = {
    "DATA beyond the window": lambda lane: [(lane.number, DATA, bytes(16384))] * 1500,
    "DATA after END": lambda lane: [(lane.number, END, b""), (lane.number, DATA, b"x")],
    "DATA of a lane that was not opened": lambda lane: [(99, DATA, b"x")],
    "END of a lane that was not opened": lambda lane: [(99, END, b"")],
    "END after END": lambda lane: [(lane.number, END, b""), (lane.number, END, b"")],
    "CREDIT of a lane that was not opened": lambda lane: [(99, CREDIT, b"\0\0\0\1")],
    "unknown kind": lambda lane: [(lane.number, 10, b"")],
    "kind 0": lambda lane: [(lane.number, 0, b"")],
    "OPEN": lambda lane: [(lane.number, OPEN, b"")],
    "too much CREDIT": lambda lane: [(lane.number, CREDIT, (lane.sent + 1).to_bytes(4, "big"))],
    "CREDIT of 0": lambda lane: [(lane.number, CREDIT, bytes(4))],
    "CREDIT of 0 in lane 0": lambda lane: [(0, CREDIT, bytes(4))],
    "MOVED of a lane that was not opened": lambda lane: [(99, MOVED, bytes(8))],
    "MOVED of seven bytes": lambda lane: [(lane.number, MOVED, bytes(7))],
    "CREDIT of three bytes": lambda lane: [(lane.number, CREDIT, bytes(3))],
    "DATA that is too long": lambda lane: [(lane.number, DATA, bytes(16385))],
}
OF_EGRESS: dict[str, Callable[[Lane], list[tuple[int, int, bytes]]]] = {
    **VIOLATIONS,
    "OPEN of another lane": lambda lane: [(50, OPEN, b"")],
    "LAST": lambda lane: [(0, LAST, b"")],
    "MOVED that does not answer one": lambda lane: [(lane.number, MOVED, moved(2))],
    "WANTED of one byte": lambda lane: [(lane.number, WANTED, b"x")],
    "FAILED of 513 bytes": lambda lane: [(lane.number, FAILED, bytes(513))],
}
OF_INGRESS: dict[str, Callable[[Lane], list[tuple[int, int, bytes]]]] = {
    **VIOLATIONS,
    "OPEN of a used number": lambda lane: [(lane.number, RESET, b""), (lane.number, OPEN, b"")],
    "OPEN after LAST": lambda lane: [(0, LAST, b""), (50, OPEN, b"")],
    "LAST of a lane": lambda lane: [(lane.number, LAST, b"")],
    "CREDIT of lane 0": lambda lane: [(0, CREDIT, b"\0\0\0\1")],
    "WANTED": lambda lane: [(lane.number, WANTED, b"")],
    "FAILED": lambda lane: [(lane.number, FAILED, b"no")],
}
AFTER_MOVED: dict[str, Callable[[Lane], tuple[int, int, bytes]]] = {
    "DATA": lambda lane: (lane.number, DATA, b"x"),
    "END": lambda lane: (lane.number, END, b""),
    "MOVED": lambda lane: (lane.number, MOVED, moved(lane.moved_to)),
}


async def violate(shared: SharedConnection, frames: list[tuple[int, int, bytes]]) -> None:
    """Send frames, and wait until the server closes the shared connection."""
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(frames), 10):
            shared.write(b"".join(encode_lane_frame(*frame) for frame in frames[start : start + 10]))
            await shared.carrier.drain()
    async with asyncio.timeout(5):
        await shared.ended.wait()


@pytest.mark.parametrize("violation", OF_EGRESS)
async def test_a_violation_by_the_egress_closes_the_shared_connection_alone(
    lanes: ServedTunnel, violation: str
) -> None:
    async with serving_lanes(lanes) as client, visiting(lanes.visitors) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        client.lanes[0].is_trusting = True
        await violate(client.lanes[0].shared, OF_EGRESS[violation](client.lanes[0]))
        assert await exchange(lanes.visitors, b"again") == b"AGAIN"
        assert len(client.shared) == 2


@pytest.mark.parametrize("violation", OF_INGRESS)
async def test_a_violation_by_the_ingress_closes_the_shared_connection_alone(
    forward_lanes: ServedTunnel, violation: str
) -> None:
    async with a_lane(forward_lanes) as (client, shared, lane):
        lane.is_trusting = True
        await violate(shared, OF_INGRESS[violation](lane))
        assert await exchange_in(client.open(await client.share()), b"again") == b"again"


@pytest.mark.parametrize("frame", [*AFTER_MOVED, "MOVED of another id"])
async def test_a_violation_by_the_egress_at_a_move_closes_the_shared_connection_alone(
    lanes: ServedTunnel, frame: str
) -> None:
    async with serving_lanes(lanes) as client, visiting(lanes.visitors) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        lane = client.lanes[0]
        lane.answers_moves = False
        writer.write(PAYLOAD)
        await wait_until_async(lambda: lane.moved_to, "the server moves the visitor")
        if violation := AFTER_MOVED.get(frame):
            frames = [(lane.number, DATA, b"y"), (lane.number, MOVED, moved(lane.moved_to)), violation(lane)]
        else:
            frames = [(lane.number, MOVED, moved(lane.moved_to + 1))]
        await violate(lane.shared, frames)
        assert await exchange(lanes.visitors, b"again") == b"AGAIN"
        assert len(client.shared) == 2


@pytest.mark.parametrize("frame", AFTER_MOVED)
async def test_a_violation_by_the_ingress_at_a_move_closes_the_shared_connection_alone(
    forward_lanes: ServedTunnel, frame: str
) -> None:
    async with a_lane(forward_lanes) as (client, shared, lane):
        lane.moved_to = (await client.take_connection()).number
        frames = [(lane.number, DATA, b"y"), (lane.number, MOVED, moved(lane.moved_to)), AFTER_MOVED[frame](lane)]
        await violate(shared, frames)
        assert await exchange_in(client.open(await client.share()), b"again") == b"again"


async def test_an_ingress_opens_lanes_and_closes_its_shared_connection(forward_lanes: ServedTunnel) -> None:
    async with a_lane(forward_lanes) as (client, shared, lane):
        visitors = [("192.0.2.1", 4000), ("2001:db8::1", 4000), None] * 10
        opened = [client.open(shared, visitor) for visitor in visitors]
        requests = [b"visitor %d" % number * 100 for number in range(30)]
        assert await asyncio.gather(*map(exchange_in, opened, requests)) == requests
        shared.send_last()
        assert await exchange_in(lane, b"b") == b"b"
        await shared.ended.wait()
        assert client.failures == []


async def test_the_visitors_of_an_ingress_move(forward_lanes: ServedTunnel) -> None:
    async with a_lane(forward_lanes) as (client, shared, lane):
        exchanges = [asyncio.create_task(exchange_in(each, PAYLOAD)) for each in (lane, client.open(shared))]
        await wait_until_async(lambda: lane.sent > 1000, "the lane is in use")
        await lane.move()
        assert [await each for each in exchanges] == [PAYLOAD, PAYLOAD]
        assert client.failures == []


async def test_ended_of_the_ingress_may_arrive_before_moved(forward_lanes: ServedTunnel) -> None:
    async with a_lane(forward_lanes) as (client, shared, _):
        release = shared.hold()
        lane = client.open(shared)
        await lane.send(b"hello")
        carrier = await lane.move()
        await lane.send(b" world")
        carrier.announce_end()
        await asyncio.sleep(0.1)
        release()
        answer = b""
        while content := await lane.receive():
            answer += content
        assert answer == b"hello world"
        await lane.close()
        assert client.failures == []


async def test_a_lane_moves_after_the_end_of_the_ingress(forward_lanes: ServedTunnel) -> None:
    async with a_lane(forward_lanes) as (client, _, lane):
        await lane.send(b"hello")
        await lane.end()
        await lane.move()
        assert await lane.receive() == b"hello"
        await lane.close()
        assert client.failures == []


async def test_moved_of_a_lane_that_is_complete_is_ignored(forward_lanes: ServedTunnel) -> None:
    async with a_lane(forward_lanes) as (client, shared, lane):
        assert await exchange_in(lane, b"b") == b"b"
        await lane.move()
        assert await exchange_in(client.open(shared), b"again") == b"again"
        await lane.close()
        assert (lane.has_received_moved, client.failures) == (False, [])


async def test_a_server_resets_a_lane_that_moves_to_a_lost_connection(forward_lanes: ServedTunnel) -> None:
    async with a_lane(forward_lanes) as (client, shared, lane):
        await lane.send_lane_frame(MOVED, moved(1 << 40))
        with pytest.raises(ConnectionResetError):
            await lane.receive()
        assert shared.lanes == {}
        assert await exchange_in(client.open(shared), b"again") == b"again"


async def test_a_server_that_cannot_serve_a_lane_sends_the_reason(tunnels: dict[str, ServedTunnel]) -> None:
    async with serving(tunnels["no-target"]) as client:
        shared = await client.share()
        for lane in (client.open(shared), client.open(shared)):
            with pytest.raises(ConnectionAbortedError, match="refused"):
                await lane.receive()
        assert (shared.lanes, client.failures) == ({}, [])


async def test_resets_are_passed_on_to_and_from_a_target(forward_lanes: ServedTunnel) -> None:
    async with a_lane(forward_lanes) as (client, shared, lane):
        TARGET_RESETS.clear()
        lane.reset()
        await wait_until_async(lambda: TARGET_RESETS, "the target is reset")
        other = client.open(shared)
        await other.send(b"reset")
        with pytest.raises(ConnectionResetError):
            await other.receive()
        assert await exchange_in(client.open(shared), b"again") == b"again"


async def test_a_server_wants_a_long_answer_to_move(forward_lanes: ServedTunnel) -> None:
    async with a_lane(forward_lanes) as (_, _, lane):
        sending = asyncio.create_task(lane.send(PAYLOAD))
        await wait_until_async(lambda: lane.is_wanted, "the server sends WANTED")
        await sending
        await lane.move()
        assert await exchange_in(lane, b"") == PAYLOAD
