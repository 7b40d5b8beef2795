"""The two ends of a data connection, for each carrier: the handshake completes only between the right two."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator

import pytest

from tests.support.engine_parts import no_descriptor_leak, other_pem, server_context
from tests.support.sockets import tcp_pair
from tunnel.carriers import create_accept_carrier, create_dial_carrier
from tunnel.carriers.base import AcceptCarrier, DataHandshake, DialCarrier
from tunnel.model.spec import Carrier
from tunnel.protocol.preface import PREFACE_SIZE, decode_preface
from tunnel.runtime.tls import TlsError, presented_certificate

SECRET = secrets.token_bytes(32)
both = pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "encrypted"])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with no_descriptor_leak():
        ends = tcp_pair()
        yield ends
        for end in ends:
            end.close()


def create_carriers(
    *, is_encrypted: bool, certificate: bytes | None = None, server_secret: bytes = SECRET
) -> tuple[DialCarrier, AcceptCarrier]:
    context, kind = server_context(), Carrier.TLS if is_encrypted else Carrier.TCP
    return (
        create_dial_carrier(kind, SECRET, certificate or presented_certificate(context)),
        create_accept_carrier(kind, server_secret, context),
    )


def exchange(
    pair: tuple[socket.socket, socket.socket], dialling: DialCarrier, accepting: AcceptCarrier, ident: int
) -> tuple[DataHandshake, DataHandshake]:
    """Run both sides of the handshake of one data connection."""
    ours, theirs = pair
    dial = dialling.start_dial(ours, ident)
    assert decode_preface(SECRET, theirs.recv(PREFACE_SIZE)) == ident
    accept = accepting.start_accept(ident)
    for _ in range(4):
        if not accept.is_complete:
            accept.advance(theirs)
        if not dial.is_complete:
            dial.advance(ours)
    return dial, accept


@both
def test_both_sides_complete_the_handshake(pair: tuple[socket.socket, socket.socket], *, is_encrypted: bool) -> None:
    dial, accept = exchange(pair, *create_carriers(is_encrypted=is_encrypted), ident=7)
    assert dial.is_complete
    assert accept.is_complete
    assert dial.stream.has_buffered_input is accept.stream.has_buffered_input is is_encrypted


def test_a_client_rejects_another_certificate_than_the_control_channels(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    other = presented_certificate(server_context(other_pem))
    with pytest.raises(TlsError, match="another certificate than the control channel"):
        exchange(pair, *create_carriers(is_encrypted=True, certificate=other), ident=7)


def test_a_server_rejects_a_proof_made_with_another_secret(pair: tuple[socket.socket, socket.socket]) -> None:
    carriers = create_carriers(is_encrypted=True, server_secret=secrets.token_bytes(32))
    with pytest.raises(TlsError, match="a wrong proof inside TLS"):
        exchange(pair, *carriers, ident=7)


def test_a_server_rejects_what_is_not_tls(pair: tuple[socket.socket, socket.socket]) -> None:
    _, accepting = create_carriers(is_encrypted=True)
    ours, theirs = pair
    ours.send(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TlsError, match="the TLS handshake failed"):
        accepting.start_accept(7).advance(theirs)


@pytest.mark.parametrize("is_server", [True, False], ids=["server", "client"])
def test_a_peer_that_sends_bytes_without_end_before_its_handshake_is_rejected(
    pair: tuple[socket.socket, socket.socket], *, is_server: bool
) -> None:
    dialing, accepting = create_carriers(is_encrypted=True)
    ours, theirs = pair
    handshake = accepting.start_accept(7) if is_server else dialing.start_dial(theirs, 7)
    ignored = b"\x14\x03\x03\x00\x01\x01" * 1000 if is_server else b"\x16\x03\x03\x00\x04\x00\x00\x00\x00" * 1000
    sent = 0
    with pytest.raises(TlsError):  # noqa: PT012  it ends with the bytes that are too many
        while sent < 1 << 20:
            with contextlib.suppress(BlockingIOError):
                sent += ours.send(ignored)
            handshake.advance(theirs)
    assert sent <= 1 << 19


def test_a_client_that_closes_during_the_handshake_is_rejected(pair: tuple[socket.socket, socket.socket]) -> None:
    _, accepting = create_carriers(is_encrypted=True)
    ours, theirs = pair
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(TlsError, match="closed the connection"):
        accepting.start_accept(7).advance(theirs)
