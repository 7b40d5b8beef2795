"""Malicious ends that have the key: they authenticate correctly and send arbitrary bytes afterwards."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

from tests.support.interception import interception_contexts
from tests.support.peers import SOCKET_TIMEOUT_S, Address, connect
from tunnel.model.keys import Key
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import Carrier, DataTls, Direction, Mode
from tunnel.protocol.frame_codec import FrameDecoder
from tunnel.protocol.frames import Kind
from tunnel.protocol.handshake import ClientHandshake, ServerHandshake
from tunnel.protocol.handshake_messages import Welcome
from tunnel.protocol.keys import BaseKey, compute_base_key


class _FrameReader:
    """Reads the frames of one TLS connection."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self._decoder = FrameDecoder()
        self._frames: list[tuple[Kind, bytes]] = []

    def receive(self, kind: Kind) -> bytes:
        """The payload of the next frame, which has to be of ``kind``."""
        while not self._frames:
            data = self.sock.recv(1 << 16)
            if not data:
                raise ConnectionError("the other end closed the connection")
            self._frames += self._decoder.feed(data)
        got, payload = self._frames.pop(0)
        assert got is kind, f"{got.name}: {payload!r}"
        return payload


class HostileClient:
    """A link with a real server, to be abused. ``welcome`` and ``secret`` are those of the link."""

    def __init__(self, server: Address, key: str, certificates: tuple[Path, Path], *, data_tls: bool = False) -> None:
        as_client = interception_contexts(*certificates)[1]
        self.sock = as_client.wrap_socket(connect(server), server_hostname="localhost")
        try:
            self.welcome, self.secret = self._authenticate(Key(key), data_tls=data_tls)
        except BaseException:
            self.sock.close()
            raise

    def _authenticate(self, key: Key, *, data_tls: bool) -> tuple[Welcome, bytes]:
        reader = _FrameReader(self.sock)
        base = BaseKey(compute_base_key(key))
        handshake = ClientHandshake(base, "", self.sock.getpeercert(binary_form=True) or b"")
        handshake.receive_challenge(reader.receive(Kind.CHALLENGE))
        self.sock.sendall(
            handshake.hello(
                instance=secrets.token_hex(8),
                mode=Mode.AUTO,
                tls=DataTls.ENCRYPTED if data_tls else DataTls.OFF,
                bounds=ConfiguredLimits(),
            )
        )
        handshake.receive_welcome(reader.receive(Kind.WELCOME))
        return handshake.receive_proof(reader.receive(Kind.PROOF))

    @property
    def link(self) -> bytes:
        """The id of the link, as its prefaces have it."""
        return bytes.fromhex(self.welcome.link)

    def close(self) -> None:
        """Close the control channel."""
        self.sock.close()


class HostileServer:
    """A port on which every client that knows the key gets a link, and then what ``attack`` sends to it.

    While it runs, ``attack`` may accept data connections from ``listener``.
    """

    def __init__(
        self,
        key: str,
        certificates: tuple[Path, Path],
        attack: Callable[[socket.socket], None],
        welcome: Welcome | None = None,
    ) -> None:
        """``welcome``: what it decides for each link, whatever the client wants."""
        self._welcome = welcome
        self._key = BaseKey(compute_base_key(Key(key)))
        self._context = interception_contexts(*certificates)[0]
        self._certificate = ssl.PEM_cert_to_DER_cert(certificates[0].read_text())
        self._attack = attack
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.links = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and wait for the thread."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(SOCKET_TIMEOUT_S)
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            plain.settimeout(SOCKET_TIMEOUT_S)
            with plain:
                try:
                    self._serve(plain)
                except (OSError, AssertionError):
                    continue

    def _serve(self, plain: socket.socket) -> None:
        if plain.recv(1, socket.MSG_PEEK) != b"\x16":
            return  # a data connection: not served
        with self._context.wrap_socket(plain, server_side=True) as sock:
            reader = _FrameReader(sock)
            handshake = ServerHandshake("", self._certificate)
            sock.sendall(handshake.challenge())
            handshake.receive_hello(reader.receive(Kind.HELLO))
            handshake.receive_proof(reader.receive(Kind.PROOF), [self._key])
            frames, _ = handshake.welcome(
                self._welcome
                or Welcome(
                    link=secrets.token_hex(8),
                    direction=Direction.REVERSE,
                    data_port=None,
                    carrier=Carrier.TCP,
                    bounds=ConfiguredLimits(),
                )
            )
            sock.sendall(frames)
            self.links += 1
            self._attack(sock)
