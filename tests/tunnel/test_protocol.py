"""Frames and prefaces: whole again after any cutting, bounded, and a ProtocolError for anything else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol import frames
from tunnel.protocol.frames import LIMITS, Frame, FrameDecoder, Kind, ProtocolError, ReplayWindow

kinds = st.sampled_from(Kind)
idents = st.integers(0, (1 << 64) - 1)
secrets = st.binary(min_size=32, max_size=32)
texts = st.text(max_size=900)
numbers = st.integers(0, (1 << 32) - 2)


@st.composite
def whole_frames(draw: st.DrawFn) -> Frame:
    kind = draw(kinds)
    return kind, draw(st.binary(max_size=min(LIMITS[kind], 60)))


@given(st.lists(whole_frames(), max_size=12), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_out_as_they_went_in_however_they_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(frames.encode(kind, payload) for kind, payload in sent)
    decoder, heard, position, turn = FrameDecoder(), list[Frame](), 0, 0
    while position < len(stream):
        step = cuts[turn % len(cuts)]
        heard += decoder.feed(stream[position : position + step])
        position, turn = position + step, turn + 1
    assert heard == sent
    assert FrameDecoder().feed(stream) == sent


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_bytes_give_frames_or_a_protocol_error_and_little_is_held(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            for kind, payload in decoder.feed(piece):
                assert len(payload) <= LIMITS[kind]
            assert len(decoder._rest) <= 3 + max(LIMITS.values())


DECODERS = (
    frames.decode_greeting,
    frames.decode_ids,
    frames.decode_ended,
    frames.decode_stamp,
    frames.decode_queued,
    frames.decode_capacity,
    frames.decode_bounds,
    frames.decode_failed,
    frames.decode_target,
    frames.decode_text,
)


@given(st.binary(max_size=600), st.sampled_from(DECODERS))
def test_any_payload_has_a_meaning_or_is_a_protocol_error(payload: bytes, decode: object) -> None:
    assert callable(decode)
    with contextlib.suppress(ProtocolError):
        decode(payload)


def test_every_frame_has_a_limit_and_keeps_to_it() -> None:
    assert set(LIMITS) == set(Kind)
    for kind, limit in LIMITS.items():
        whole = frames.encode(Kind(kind), b"x" * limit)
        assert FrameDecoder().feed(whole) == [(kind, b"x" * limit)]
        with pytest.raises(ValueError, match=f"holds at most {limit} bytes"):
            frames.encode(Kind(kind), b"x" * (limit + 1))
        with pytest.raises(ProtocolError, match=rf"{Kind(kind).name} frame of {limit + 1} bytes"):
            FrameDecoder().feed(bytes([kind]) + (limit + 1).to_bytes(2))


def test_an_unknown_frame_is_refused_by_its_head() -> None:
    for number in set(range(256)) - set(Kind):
        with pytest.raises(ProtocolError, match=f"unknown frame 0x{number:02x}"):
            FrameDecoder().feed(bytes([number, 0, 0]))


@given(st.lists(idents, max_size=40), st.sampled_from([Kind.LAUNCH, Kind.POOLED, Kind.RETIRED]))
def test_ids_round_trip(ids: list[int], kind: Kind) -> None:
    heard = FrameDecoder().feed(frames.encode_ids(kind, ids))
    assert [i for got, payload in heard for i in frames.decode_ids(payload) if got is kind] == ids


def test_more_ids_than_one_frame_holds_take_several() -> None:
    ids = list(range(3 * frames.IDS_PER_FRAME + 1))
    heard = FrameDecoder().feed(frames.encode_ids(Kind.LAUNCH, ids))
    assert len(heard) == 4
    assert [i for _, payload in heard for i in frames.decode_ids(payload)] == ids
    with pytest.raises(ProtocolError, match="cut off"):
        frames.decode_ids(b"123456789")


@given(st.lists(st.tuples(idents, idents), max_size=3) | st.just([(7, 9)] * (frames.IDS_PER_FRAME + 1)))
def test_ends_round_trip_and_no_pair_is_torn(ends: list[tuple[int, int]]) -> None:
    heard = FrameDecoder().feed(frames.encode_ended(ends))
    assert [pair for kind, payload in heard for pair in frames.decode_ended(payload) if kind is Kind.ENDED] == ends
    with pytest.raises(ProtocolError, match="cut off"):
        frames.decode_ended(bytes(8))


@given(idents, numbers, numbers, st.tuples(*[st.none() | st.integers(1, (1 << 32) - 2)] * 3))
def test_numbers_round_trip(stamp: int, one: int, two: int, bounds: tuple[int | None, ...]) -> None:
    [(_, payload)] = FrameDecoder().feed(frames.encode_stamp(Kind.PING, stamp))
    assert frames.decode_stamp(payload) == stamp
    [(_, payload)] = FrameDecoder().feed(frames.encode_queued(one))
    assert frames.decode_queued(payload) == one
    [(_, payload)] = FrameDecoder().feed(frames.encode_capacity(one, two))
    assert frames.decode_capacity(payload) == (one, two)
    [(_, payload)] = FrameDecoder().feed(frames.encode_bounds(bounds))
    assert frames.decode_bounds(payload) == bounds


def test_no_other_end_can_set_a_bound_of_zero() -> None:
    """It would shut the entrance without a word."""
    for zero in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ProtocolError, match="bound"):
            frames.decode_bounds(b"".join(value.to_bytes(4) for value in zero))


@given(idents, texts)
def test_sentences_arrive_safe_to_print_and_short(ident: int, text: str) -> None:
    safe = "".join(char if char.isprintable() else " " for char in text)
    [(_, payload)] = FrameDecoder().feed(frames.encode_failed(ident, text))
    got, said = frames.decode_failed(payload)
    assert got == ident
    assert safe.startswith(said)
    assert said.isprintable()
    assert len(said) >= min(len(safe), 128)
    [(_, payload)] = FrameDecoder().feed(frames.encode_text(Kind.BYE, text))
    assert frames.decode_text(payload) == said


@given(st.binary(max_size=100))
def test_what_another_end_says_can_do_nothing_to_a_terminal(payload: bytes) -> None:
    said = frames.decode_text(payload)
    assert said.isprintable()
    assert len(said) <= len(payload)


@given(st.none() | texts)
def test_the_targets_state_round_trips(trouble: str | None) -> None:
    [(_, payload)] = FrameDecoder().feed(frames.encode_target(trouble))
    said = frames.decode_target(payload)
    assert (said is None) is (trouble is None)
    for cut_off in (frames.decode_target, frames.decode_failed):
        with pytest.raises(ProtocolError, match="cut off"):
            cut_off(b"")


@given(secrets, secrets, idents, st.integers(0, frames.PREFACE_SIZE - 1), st.integers(1, 255))
def test_a_preface_is_genuine_whole_or_not_at_all(secret: bytes, other: bytes, ident: int, at: int, flip: int) -> None:
    genuine = frames.encode_preface(secret, ident)
    assert len(genuine) == frames.PREFACE_SIZE
    assert genuine[0] != frames.TLS_HANDSHAKE_BYTE
    assert frames.decode_preface(secret, genuine) == ident
    forged = bytearray(genuine)
    forged[at] ^= flip
    with pytest.raises(ProtocolError):
        frames.decode_preface(secret, bytes(forged))
    if other != secret:
        with pytest.raises(ProtocolError, match="wrong MAC"):
            frames.decode_preface(other, genuine)
    assert frames.data_tls_proof(secret, ident) not in genuine


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(1, 20))
def test_once_lets_each_id_pass_once_within_its_window(ids: list[int], window: int) -> None:
    once, passed = ReplayWindow(window), set[int]()
    for ident in ids:
        highest = max(passed, default=-1)
        fresh = ident > highest or (ident not in passed and highest - ident < window)
        assert once.accept(ident) is fresh
        if fresh:
            passed.add(ident)


@given(st.lists(idents, max_size=30))
def test_once_holds_little_whatever_the_ids(ids: list[int]) -> None:
    once = ReplayWindow(64)
    for ident in ids:
        once.accept(ident)
        assert once._seen.bit_length() <= 64
        assert not once.accept(ident)
