"""A client that was written from the protocol's page alone works with a server of this project."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import dataclass, field, replace

import pytest

from tests.support.peers import Address
from tests.support.ports import free_port
from tests.support.processes import running_harness
from tests.support.scale import GUARD_S
from tests.support.second_client import (
    ClientOptions,
    ClientRefusedError,
    EncryptedConnection,
    SecondClient,
    connected,
    echo_upper_case,
    reset,
)
from tests.support.second_lanes import Stream
from tests.support.waiting import wait_until_async

TEXT_KEY = "Zq7Wm2Rk9xTv4Lp8"
PAYLOAD = random.Random(5).randbytes(200_000)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class ServedTunnel:
    """A tunnel of the server under test, and the options of a client that is right for this tunnel."""

    client: ClientOptions
    mode: str = "reverse"
    server_options: str = ""
    port: int = field(default_factory=free_port)
    visitors: Address = field(default_factory=lambda: ("127.0.0.1", free_port()))

    def url(self, target: Address) -> str:
        """Return the server's URL."""
        client, far = self.client, self.visitors if self.mode == "reverse" else target
        user = f"{client.key}@" if client.key else ""
        service = f"&service={client.service}" if client.service else ""
        options = f"mode={self.mode}&tls={client.tls}{service}{self.server_options}"
        return f"server://{user}127.0.0.1:{self.port}/{far[0]}:{far[1]}?{options}"


def tunnels_of_server(key: str) -> dict[str, ServedTunnel]:
    """Return the tunnels that the server has; ``key`` was made by the program."""
    return {
        "tcp": ServedTunnel(ClientOptions(tls=0)),
        "encrypted": ServedTunnel(ClientOptions()),
        "forward-tcp": ServedTunnel(ClientOptions(tls=0), mode="forward"),
        "forward-encrypted": ServedTunnel(ClientOptions(), mode="forward"),
        "text-key": ServedTunnel(ClientOptions(key=TEXT_KEY)),
        "generated-key": ServedTunnel(ClientOptions(key=key)),
        "service": ServedTunnel(ClientOptions(service="web")),
        "key-and-service": ServedTunnel(ClientOptions(key=key, service="web")),
        "key-and-service-tcp": ServedTunnel(ClientOptions(key=key, service="web", tls=0)),
        "many-pings": ServedTunnel(ClientOptions(), server_options="&report_interval=50ms"),
    }


def echo(sock: socket.socket) -> None:
    """Be a target that echoes."""
    while part := sock.recv(1 << 16):
        sock.sendall(part)
    sock.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def tunnels(tmp_path_factory: pytest.TempPathFactory) -> Generator[dict[str, ServedTunnel]]:
    """Start one server process with all tunnels."""
    with running_harness(tmp_path_factory.mktemp("second-client")) as harness:
        keygen = harness.start_command("keygen")
        assert keygen.wait_exit() == 0
        tunnels = tunnels_of_server(keygen.stdout_text().strip())
        target = harness.start_target(echo)
        server = harness.start_daemon({name: tunnel.url(target.address) for name, tunnel in tunnels.items()})
        for name in tunnels:
            server.wait_state("waiting", name=name)
        yield tunnels


@pytest.fixture(params=["tcp", "encrypted"])
def tunnel(request: pytest.FixtureRequest, tunnels: dict[str, ServedTunnel]) -> ServedTunnel:
    """Return a reverse tunnel without a key, once for each carrier."""
    return tunnels[request.param]


@contextlib.asynccontextmanager
async def serving(
    tunnel: ServedTunnel, serve: Callable[[Stream], Awaitable[None]] = echo_upper_case
) -> AsyncGenerator[SecondClient]:
    """Connect a second client, and wait until the server has a data connection of this client."""
    options = replace(tunnel.client, serve=serve)
    async with asyncio.timeout(GUARD_S), connected(("127.0.0.1", tunnel.port), options) as client:
        await wait_until_async(lambda: not client.pooled.empty(), "a data connection is in the server's pool")
        yield client


@contextlib.asynccontextmanager
async def visiting(visitors: Address) -> AsyncGenerator[Streams]:
    """Connect a visitor, and close its connection at the end."""
    reader, writer = await asyncio.open_connection(*visitors)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def exchange(visitors: Address, payload: bytes) -> bytes:
    """Return the answer to a payload and a half-close; a visitor sends and receives at the same time."""
    async with visiting(visitors) as (reader, writer):
        writer.write(payload)
        writer.write_eof()
        return await reader.read()


async def receive_until_reset(visitors: Address, request: bytes) -> bytes:
    """Send a request, and return all bytes that arrive before the connection is reset.

    A stream of asyncio would drop the bytes that arrive together with the reset.
    """
    loop, received = asyncio.get_running_loop(), b""
    with socket.socket() as visitor:
        visitor.setblocking(False)
        await loop.sock_connect(visitor, visitors)
        await loop.sock_sendall(visitor, request)
        try:
            while part := await loop.sock_recv(visitor, 1 << 16):
                received += part
        except ConnectionResetError:
            return received
    pytest.fail(f"the visitor received {received!r} and an ordinary end")


@pytest.mark.parametrize(
    ("name", "carrier"),
    [
        ("tcp", "tcp"),
        ("encrypted", "encrypted"),
        ("text-key", "encrypted"),
        ("generated-key", "encrypted"),
        ("service", "encrypted"),
        ("key-and-service", "encrypted"),
        ("key-and-service-tcp", "tcp"),
    ],
)
async def test_a_visitor_receives_the_echo(tunnels: dict[str, ServedTunnel], name: str, carrier: str) -> None:
    async with serving(tunnels[name]) as client:
        assert client.welcome["carrier"] == carrier
        assert await exchange(tunnels[name].visitors, b"hello") == b"HELLO"


async def test_a_wrong_key_and_a_wrong_service_are_refused_with_the_same_sentence(
    tunnels: dict[str, ServedTunnel],
) -> None:
    tunnel = tunnels["key-and-service"]
    right, sentences = tunnel.client, set()
    for wrong in (
        replace(right, key=TEXT_KEY),
        replace(right, key=""),
        replace(right, service="other"),
        replace(right, service=""),
        replace(right, key="", service=""),
    ):
        with pytest.raises(ClientRefusedError) as refused:
            async with asyncio.timeout(GUARD_S), connected(("127.0.0.1", tunnel.port), wrong):
                pass
        sentences.add(str(refused.value))
    assert len(sentences) == 1, "the sentence shows the reason"


async def test_several_visitors_at_once_receive_their_own_bytes(tunnel: ServedTunnel) -> None:
    requests = [b"visitor %d" % number * 100 for number in range(20)]
    async with serving(tunnel) as client:
        answers = await asyncio.gather(*(exchange(tunnel.visitors, request) for request in requests))
        assert answers == [request.upper() for request in requests]
        assert client.failures == []


async def test_two_hundred_kilobytes_arrive_unchanged(tunnel: ServedTunnel) -> None:
    async with serving(tunnel):
        assert await exchange(tunnel.visitors, PAYLOAD) == PAYLOAD.upper()


async def test_an_answer_that_starts_after_the_visitors_end_arrives(tunnel: ServedTunnel) -> None:
    async def answer_at_the_end(connection: Stream) -> None:
        request = b""
        while content := await connection.receive():
            request += content
        await connection.send(request.upper())
        await connection.end()

    async with serving(tunnel, answer_at_the_end):
        assert await exchange(tunnel.visitors, b"hello") == b"HELLO"


async def test_a_visitor_may_send_after_the_clients_end(tunnel: ServedTunnel) -> None:
    received = bytearray()

    async def end_at_once(connection: Stream) -> None:
        await connection.send(b"220 ready\r\n")
        await connection.end()
        while content := await connection.receive():
            received.extend(content)

    async with serving(tunnel, end_at_once), visiting(tunnel.visitors) as (reader, writer):
        assert await reader.read() == b"220 ready\r\n"
        writer.write(PAYLOAD)
        writer.write_eof()
        await wait_until_async(lambda: len(received) >= len(PAYLOAD), "the client has received the request")
    assert received == PAYLOAD


async def test_a_launch_has_the_address_of_the_visitors_socket(tunnel: ServedTunnel) -> None:
    async with serving(tunnel) as client, visiting(tunnel.visitors) as (_, writer):
        await wait_until_async(lambda: client.visitors, "the client receives LAUNCH")
        assert client.visitors == [writer.get_extra_info("sockname")]


async def test_a_visitors_reset_reaches_the_client_as_a_reset(tunnel: ServedTunnel) -> None:
    async with serving(tunnel) as client:
        async with visiting(tunnel.visitors) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"HELLO"
            reset(writer)
        await wait_until_async(lambda: client.failures, "the stream fails")
        assert isinstance(client.failures[0], ConnectionResetError)


async def test_a_reset_of_the_client_reaches_the_visitor_as_a_reset(tunnel: ServedTunnel) -> None:
    async def reset_at_once(connection: Stream) -> None:
        raise ConnectionAbortedError

    async with serving(tunnel, reset_at_once):
        assert await receive_until_reset(tunnel.visitors, b"hello") == b""


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(0, id="type of the header"),
        pytest.param(5, id="content"),
        pytest.param(-17, id="type of the content"),
        pytest.param(-1, id="tag"),
    ],
)
async def test_a_record_with_a_flipped_bit_resets_the_visitor_and_is_not_delivered(
    tunnels: dict[str, ServedTunnel], place: int
) -> None:
    async def answer_damaged(connection: Stream) -> None:
        assert isinstance(connection, EncryptedConnection)
        request = await connection.receive()
        record = bytearray(connection.sealer.seal(request.upper()))
        record[place] ^= 1
        connection.writer.write(record)
        await connection.end()

    tunnel = tunnels["encrypted"]
    async with serving(tunnel, answer_damaged):
        assert await receive_until_reset(tunnel.visitors, b"hello") == b""


async def test_an_encrypted_stream_that_ends_without_its_record_resets_the_visitor(
    tunnels: dict[str, ServedTunnel],
) -> None:
    async def end_without_a_record(connection: Stream) -> None:
        await connection.send(await connection.receive())
        assert isinstance(connection, EncryptedConnection)
        connection.show_end()
        await connection.receive()

    tunnel = tunnels["encrypted"]
    async with serving(tunnel, end_without_a_record):
        assert await receive_until_reset(tunnel.visitors, b"hello") == b"hello"


@pytest.mark.parametrize("name", ["forward-tcp", "forward-encrypted"])
async def test_the_second_client_is_the_ingress_of_a_forward_tunnel(
    tunnels: dict[str, ServedTunnel], name: str
) -> None:
    async with serving(tunnels[name]) as client:
        for visitor in (("192.0.2.1", 4000), ("2001:db8::1", 4000), None):
            connection = await client.launch(visitor)
            await connection.send(b"hello")
            await connection.end()
            answer = b""
            while content := await connection.receive():
                answer += content
            assert answer == b"hello"
            await connection.close()


async def test_a_client_that_answers_pings_keeps_its_link(tunnels: dict[str, ServedTunnel]) -> None:
    tunnel = tunnels["many-pings"]
    async with serving(tunnel) as client:
        await wait_until_async(lambda: client.pings_answered >= 6, "six pings, twice the time to close the link")
        assert await exchange(tunnel.visitors, b"hello") == b"HELLO"
        assert client.failures == []
