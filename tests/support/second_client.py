"""A second client of the tunnel protocol, written from ``tunnel/protocol/PROTOCOL.md`` alone.

The client shares no code with ``tunnel``: a server that serves this client proves that the page is complete. The client
does what the page requires and nothing more: one link, a small pool, no reconnection.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import socket
import ssl
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tests.support import second_codec as codec
from tests.support.second_codec import (
    CutOffStreamError,
    DamagedStreamError,
    HostPort,
    RecordCipher,
    ServerFaultError,
)
from tests.support.second_lanes import Lane, SharedConnection, Stream


class ClientRefusedError(Exception):
    """The server refused the handshake; the message is the sentence that it sent."""


class CannotServeError(Exception):
    """A visitor cannot be served; the message is the reason."""


# Data connections


class ClearConnection:
    """A data connection without encryption, from its preface to its end."""

    def __init__(
        self, client: SecondClient, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.number, self.reader, self.writer = number, reader, writer
        self._client = client
        self._sent_bytes = 0

    async def receive(self) -> bytes:
        """Return the next bytes of the stream, or nothing at its end. Raises DamagedStreamError, ConnectionError."""
        return await self.reader.read(codec.MAX_CONTENT_BYTES)

    async def send(self, content: bytes) -> None:
        """Send bytes of the stream, at most MAX_CONTENT_BYTES."""
        self.write(content)
        await self.drain()

    def write(self, content: bytes) -> None:
        """Send bytes of the stream without waiting, at most MAX_CONTENT_BYTES."""
        self._sent_bytes += len(content)
        self.writer.write(content)

    async def drain(self) -> None:
        """Wait until more bytes can be sent."""
        await self.writer.drain()

    async def end(self) -> None:
        """Announce the end of this direction. The socket stays open: the server closes first."""
        self.announce_end()

    def announce_end(self) -> None:
        """Send ENDED, which a server accepts with and without encryption."""
        self._client.send_frame(codec.ENDED, struct.pack(">QQ", self.number, self._sent_bytes))

    async def close(self) -> None:
        """Close the socket after the server, when both directions have ended."""
        await self.reader.read()
        self.writer.close()

    def show_end(self) -> None:
        """Show the end of the socket."""
        self.writer.write_eof()

    def close_socket(self) -> None:
        """Close the socket without waiting."""
        self.writer.close()

    def reset(self) -> None:
        """Close the socket so that the server receives a RST."""
        reset(self.writer)

    def refuse(self, reason: str) -> None:
        """Say that the visitor cannot be served, and close the socket."""
        self._client.send_frame(codec.FAILED, self.number.to_bytes(8, "big") + reason.encode())
        self.writer.close()


class EncryptedConnection(ClearConnection):
    """A data connection whose streams are in records."""

    def __init__(
        self, client: SecondClient, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(client, number, reader, writer)
        self.sealer = RecordCipher(client.secret, number, codec.TO_SERVER)
        self.opener = RecordCipher(client.secret, number, codec.TO_CLIENT)

    async def receive(self) -> bytes:
        try:
            if not (header := await self.reader.read(1)):
                raise CutOffStreamError("the stream has no end record")
            header += await self.reader.readexactly(4)
            length = int.from_bytes(header[3:], "big")
            if header[:3] != b"\x17\3\3" or not 18 <= length <= 16401:
                raise DamagedStreamError("a header that is not allowed")
            kind, content = self.opener.open(header, await self.reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            raise DamagedStreamError("the socket ends inside a record") from error
        if kind == codec.END and content == codec.CLOSE_NOTIFY:
            return b""
        if kind != codec.DATA or not content:
            raise DamagedStreamError("a record of an unknown type, or without content")
        return content

    def write(self, content: bytes) -> None:
        self._sent_bytes += len(content)
        self.writer.write(self.sealer.seal(content))

    async def end(self) -> None:
        self.writer.write(self.sealer.seal_end())

    async def close(self) -> None:
        if await self.reader.read():
            self.reset()
            raise DamagedStreamError("a record after the end")
        self.writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a socket so that its peer receives a RST, unless the peer has reset the connection already."""
    if not writer.is_closing():
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def echo_upper_case(connection: Stream) -> None:
    """Serve a visitor: send back every byte in upper case, then the end of the stream."""
    while content := await connection.receive():
        await connection.send(content.upper())
    await connection.end()


# The client


@dataclass(frozen=True)
class ClientOptions:
    """What a user configures, and how visitors are served."""

    key: str = ""
    service: str = ""
    tls: int = 1
    mode: str = "auto"
    pool: int = 4
    mux: bool = False
    serve: Callable[[Stream], Awaitable[None]] = echo_upper_case


class SecondClient:
    """One link to a server, with its data connections."""

    def __init__(
        self, server: HostPort, options: ClientOptions, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server, self._options = server, options
        self._reader, self._writer = reader, writer
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections: dict[int, ClearConnection] = {}
        self.shared: dict[int, SharedConnection] = {}
        self.lanes: list[Lane] = []
        self._last_number = 0
        self.secret = b""
        self.welcome: dict[str, Any] = {}
        self.pooled: asyncio.Queue[int] = asyncio.Queue()
        self.visitors: list[HostPort | None] = []
        self.failures: list[Exception] = []
        self.pings_answered = 0

    async def authenticate(self) -> None:
        """Do the handshake. Raises ClientRefusedError, ServerFaultError."""
        transcript = codec.HandshakeHash(self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        key = codec.service_key(await asyncio.to_thread(codec.base_key, self._options.key), self._options.service)
        challenge = await self._receive_handshake(codec.CHALLENGE, transcript)
        if 2 not in json.loads(challenge)["versions"]:
            raise ServerFaultError("the server does not speak version 2")
        hello = codec.encode_frame(codec.HELLO, json.dumps(self._describe()).encode())
        transcript.add(hello)
        proof = codec.encode_frame(codec.PROOF, transcript.compute_proof(key, b"client"))
        transcript.add(proof)
        self._writer.write(hello + proof)
        self.welcome = json.loads(await self._receive_handshake(codec.WELCOME, transcript))
        expected = transcript.compute_proof(key, b"server")
        self.secret = transcript.compute_proof(key, b"link")
        if not hmac.compare_digest(expected, await self._receive_handshake(codec.PROOF, transcript)):
            raise ServerFaultError("the proof of the server is wrong")
        if self._options.tls and self.welcome["carrier"] != "encrypted":
            raise ServerFaultError("the server asks for a weaker carrier than the client")

    def _describe(self) -> dict[str, object]:
        options = self._options
        return {
            "version": 2,
            "features": ["mux"] if options.mux else [],
            "nonce": os.urandom(32).hex(),
            "service": options.service,
            "instance": os.urandom(8).hex(),
            "auth": "key" if options.key else "open",
            "mode": options.mode,
            "tls": options.tls,
        }

    async def _receive_handshake(self, kind: int, transcript: codec.HandshakeHash) -> bytes:
        received, payload = await self._receive_frame()
        if received == codec.REFUSED:
            raise ClientRefusedError(payload.decode())
        if received != kind:
            raise ServerFaultError(f"frame 0x{received:02x} instead of 0x{kind:02x}")
        transcript.add(codec.encode_frame(kind, payload))
        return payload

    async def _receive_frame(self) -> tuple[int, bytes]:
        kind, length = struct.unpack(">BH", await self._reader.readexactly(3))
        return kind, await self._reader.readexactly(length)

    def send_frame(self, kind: int, payload: bytes) -> None:
        """Send a frame on the control channel, if that is open."""
        if not self._writer.is_closing():
            self._writer.write(codec.encode_frame(kind, payload))

    def start(self) -> None:
        """Handle frames, and fill the pool."""
        self._start_task(self._handle_frames())
        for _ in range(self._options.pool):
            self._start_task(self._dial())

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except (OSError, EOFError, DamagedStreamError, ServerFaultError) as error:
                self.failures.append(error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _dial(self) -> None:
        self._last_number = number = self._last_number + 1
        port = self.welcome["data_port"] or self._server[1]
        reader, writer = await asyncio.open_connection(self._server[0], port)
        writer.write(codec.encode_preface(bytes.fromhex(self.welcome["link"]), number, self.secret))
        kind = EncryptedConnection if self.welcome["carrier"] == "encrypted" else ClearConnection
        self.connections[number] = kind(self, number, reader, writer)

    async def _handle_frames(self) -> None:
        while True:
            kind, payload = await self._receive_frame()
            if kind == codec.PING:
                self.send_frame(codec.PONG, payload)
                self.pings_answered += 1
            elif kind == codec.POOLED:
                for (number,) in struct.iter_unpack(">Q", payload):
                    self.pooled.put_nowait(number)
            elif kind == codec.LAUNCH:
                for number, visitor in codec.decode_launches(payload):
                    self.visitors.append(visitor)
                    self._start_task(self._serve(self.connections[number]))
                    self._start_task(self._dial())
            elif kind == codec.SHARED:
                self._share(self.connections[int.from_bytes(payload, "big")], self._serve_lane)
                self._start_task(self._dial())
            elif kind == codec.FAILED:
                self._handle_failed(int.from_bytes(payload[:8], "big"), payload[8:].decode())
            elif kind == codec.BYE:
                raise ServerFaultError(f"the server closes the link: {payload.decode()}")

    def _handle_failed(self, number: int, reason: str) -> None:
        failure = ConnectionAbortedError(reason)
        for lane in self.lanes:
            if lane.carrier and lane.carrier.number == number:
                lane.fail(failure)
        self.failures.append(failure)

    def _share(self, carrier: ClearConnection, accept: Callable[[Lane], None] | None = None) -> SharedConnection:
        shared = self.shared[carrier.number] = SharedConnection(carrier, self, accept)
        self._start_task(shared.run())
        return shared

    def _serve_lane(self, lane: Lane) -> None:
        self.lanes.append(lane)
        self.visitors.append(lane.visitor)
        self._start_task(self._serve(lane))

    async def _serve(self, connection: Stream) -> None:
        try:
            await self._options.serve(connection)
            await connection.close()
        except CannotServeError as error:
            connection.refuse(str(error))
        except (OSError, DamagedStreamError):
            connection.reset()
            raise

    def claim_connection(self, number: int) -> ClearConnection | None:
        """Return a data connection that the ingress has taken out of the pool, if it is there, and dial another one."""
        self._start_task(self._dial())
        return self.connections.get(number)

    async def take_connection(self) -> ClearConnection:
        """Take a data connection out of the pool. The direction has to be forward: this client is the ingress."""
        number = await self.pooled.get()
        self._start_task(self._dial())
        return self.connections[number]

    async def launch(self, visitor: HostPort | None) -> ClearConnection:
        """Use an idle connection for a visitor."""
        connection = await self.take_connection()
        self.send_frame(codec.LAUNCH, codec.encode_launch(connection.number, visitor))
        return connection

    async def share(self) -> SharedConnection:
        """Use an idle connection for lanes."""
        shared = self._share(await self.take_connection())
        shared.announce()
        await shared.wait_promised()
        return shared

    def open(self, shared: SharedConnection, visitor: HostPort | None = None) -> Lane:
        """Open the next lane for a visitor."""
        lane = shared.open(visitor)
        self.lanes.append(lane)
        return lane

    def close_link(self) -> None:
        """Close the control channel alone."""
        self._writer.close()

    async def close(self) -> None:
        """Close the link and all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in [self._writer, *(connection.writer for connection in self.connections.values())]:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(server: HostPort, options: ClientOptions) -> AsyncGenerator[SecondClient]:
    """Connect to a server's tunnel port and authenticate. Raises OSError, ClientRefusedError, ServerFaultError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    reader, writer = await asyncio.open_connection(*server, ssl=context)
    client = SecondClient(server, options, reader, writer)
    try:
        await client.authenticate()
        client.start()
        yield client
    finally:
        await client.close()
