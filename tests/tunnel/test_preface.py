"""The preface of data connections, and the window against its replay."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.handshake_messages import LINK_ID_BYTES
from tunnel.protocol.preface import (
    PREFACE_SIZE,
    TLS_HANDSHAKE_BYTE,
    check_preface,
    decode_preface,
    encode_preface,
)
from tunnel.protocol.replay import ReplayWindow

idents = st.integers(0, (1 << 64) - 1)
links = st.binary(min_size=LINK_ID_BYTES, max_size=LINK_ID_BYTES)
secrets = st.binary(min_size=32, max_size=32)


@given(links, secrets, secrets, idents, st.integers(0, PREFACE_SIZE - 1), st.integers(1, 255))
def test_a_preface_is_accepted_only_unchanged_and_with_the_secret_of_its_link(
    link: bytes, secret: bytes, other: bytes, ident: int, at: int, mask: int
) -> None:
    genuine = encode_preface(link, secret, ident)
    assert len(genuine) == PREFACE_SIZE
    assert genuine[0] != TLS_HANDSHAKE_BYTE
    assert check(link, secret, genuine) == ident
    forged = bytearray(genuine)
    forged[at] ^= mask
    with pytest.raises(ProtocolError):
        check(link, secret, bytes(forged))
    if other != secret:
        with pytest.raises(ProtocolError, match="wrong MAC"):
            check(link, other, genuine)


def check(link: bytes, secret: bytes, data: bytes) -> int:
    """Check a preface as a server with one link does; return the id of the data connection."""
    named, ident, mac = decode_preface(data)
    if named != link:
        raise ProtocolError("another link")
    check_preface(secret, ident, mac)
    return ident


def test_other_protocols_are_rejected_by_the_magic() -> None:
    with pytest.raises(ProtocolError, match="neither a client nor a data connection"):
        decode_preface(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n".ljust(PREFACE_SIZE)[:PREFACE_SIZE])


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 20))
@example(ids=[0, 1, 5, 3, 3, 0], size=4)
def test_an_id_is_accepted_once_and_only_within_the_window(ids: list[int], size: int) -> None:
    window, accepted = ReplayWindow(size), set[int]()
    for ident in ids:
        highest = max(accepted, default=-1)
        is_new = ident > highest or (ident not in accepted and highest - ident < size)
        assert window.accept(ident) is is_new
        if is_new:
            accepted.add(ident)


@given(st.lists(idents, max_size=30))
@example(ids=[100, 300, 500])
def test_the_replay_window_needs_little_memory_whatever_the_ids(ids: list[int]) -> None:
    window = ReplayWindow(64)
    for ident in ids:
        window.accept(ident)
        assert len(window) <= 128
        assert not window.accept(ident)
