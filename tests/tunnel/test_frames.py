"""Frames: complete after any segmentation, bounded, as the table says, and a ProtocolError for anything else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tunnel.protocol
from tunnel.model.balancer import MAX_WEIGHT
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.tunnel_test import TargetTimes
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frame_codec import Frame, FrameDecoder, encode_frame, encode_message, encode_numbers, encode_parts
from tunnel.protocol.frames import (
    FRAMES,
    CapacityChanged,
    ConnectionsFreed,
    ConnectionsPooled,
    ConnectionsRetired,
    Goodbye,
    Kind,
    Launch,
    LimitsAnnounced,
    Ping,
    Pong,
    QueueLength,
    ShareChanged,
    StreamsEnded,
    TargetStatus,
    UdpLaunch,
    VisitorFailed,
    encode_launch,
    frame_table,
)
from tunnel.protocol.handshake_messages import Refusal
from tunnel.protocol.payloads import MAX_NUMBERS, FrameMessage, decode_text
from tunnel.protocol.tunnel_test_messages import TargetTest, TargetTested

idents = st.integers(0, (1 << 64) - 1)
texts = st.text(max_size=900)
numbers = st.integers(0, (1 << 32) - 2)
bounds = st.builds(ConfiguredLimits, *[st.none() | st.integers(1, (1 << 32) - 2)] * 3)
id_lists = st.lists(idents, max_size=40).map(tuple)
launch_lists = st.lists(st.tuples(idents, st.binary(max_size=255)), max_size=9).map(tuple)

exact_messages: st.SearchStrategy[FrameMessage] = st.one_of(
    st.builds(Launch, launch_lists),
    st.builds(UdpLaunch, launch_lists),
    st.builds(ConnectionsPooled, id_lists),
    st.builds(ConnectionsRetired, id_lists),
    st.builds(ConnectionsFreed, id_lists),
    st.builds(StreamsEnded, st.lists(st.tuples(idents, idents), max_size=9).map(tuple)),
    st.builds(Ping, idents),
    st.builds(Pong, idents),
    st.builds(QueueLength, numbers),
    st.builds(CapacityChanged, numbers, numbers),
    st.builds(LimitsAnnounced, bounds),
    st.builds(ShareChanged, st.integers(0, MAX_WEIGHT), st.booleans()),
    st.builds(TargetTest, idents),
    st.builds(
        TargetTested,
        idents,
        st.integers(0, 65535),
        st.builds(
            TargetTimes,
            st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=300),
            st.booleans(),
            *[st.none() | st.integers(0, (1 << 32) - 2).map(lambda number: number / 1_000_000)] * 3,
            st.none() | st.just("it refused the connection"),
        ),
    ),
)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from(Kind))
    row = FRAMES[kind]
    return kind, draw(st.binary(min_size=row.min_bytes, max_size=max(row.min_bytes, min(row.max_bytes, 60))))


@given(st.lists(frames(), max_size=12), st.lists(st.integers(1, 40), min_size=1))
def test_frames_are_the_same_however_the_stream_is_segmented(sent: list[Frame], sizes: list[int]) -> None:
    stream = b"".join(encode_frame(kind, payload) for kind, payload in sent)
    decoder, received, position, turn = FrameDecoder(), list[Frame](), 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        received += decoder.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert received == sent
    assert FrameDecoder().feed(stream) == sent


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_bytes_give_frames_or_a_protocol_error_and_little_is_held(pieces: list[bytes]) -> None:
    decoder = FrameDecoder()
    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            for kind, payload in decoder.feed(piece):
                assert FRAMES[kind].min_bytes <= len(payload) <= FRAMES[kind].max_bytes
            assert len(decoder._rest) <= 3 + max(row.max_bytes for row in FRAMES.values())


@given(st.sampled_from(Kind), st.data())
def test_any_payload_of_a_valid_length_has_a_meaning_or_is_a_protocol_error(kind: Kind, data: st.DataObject) -> None:
    row = FRAMES[kind]
    payload = data.draw(st.binary(min_size=row.min_bytes, max_size=max(row.min_bytes, min(row.max_bytes, 600))))
    with contextlib.suppress(ProtocolError):
        row.message.decode(payload)


def test_every_kind_has_a_row_and_every_payload_class_one_kind() -> None:
    assert list(FRAMES) == [row.kind for row in FRAMES.values()] == sorted(Kind)
    assert len({row.message for row in FRAMES.values()}) == len(FRAMES)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_frame_keeps_to_its_length(kind: Kind) -> None:
    row = FRAMES[kind]
    for length in {row.min_bytes, row.max_bytes}:
        assert FrameDecoder().feed(encode_frame(kind, b"x" * length)) == [(kind, b"x" * length)]
    for length in {row.min_bytes - 1, row.max_bytes + 1} - {-1}:
        with pytest.raises(ValueError, match=f"{kind.name} frame of {length} bytes"):
            encode_frame(kind, b"x" * length)
        with pytest.raises(ProtocolError, match=f"{kind.name} frame of {length} bytes"):
            FrameDecoder().feed(bytes([kind]) + length.to_bytes(2))


def test_an_unknown_frame_is_rejected_by_its_header() -> None:
    for number in set(range(256)) - set(Kind):
        with pytest.raises(ProtocolError, match=f"unknown frame 0x{number:02x}"):
            FrameDecoder().feed(bytes([number, 0, 0]))


def test_the_protocol_document_has_the_table_of_all_frames() -> None:
    document = Path(tunnel.protocol.__path__[0], "PROTOCOL.md").read_text(encoding="utf-8")
    assert frame_table() in document, f"replace the table in PROTOCOL.md by:\n{frame_table()}"


# --- payloads -----------------------------------------------------------------------------------------------------


@given(exact_messages)
@example(StreamsEnded(((7, 1 << 40), (8, 0))))
@example(ConnectionsFreed((1, 2)))
def test_messages_of_numbers_round_trip(message: FrameMessage) -> None:
    [(kind, payload)] = FrameDecoder().feed(encode_message(message))
    assert FRAMES[kind].message.decode(payload) == message


@given(st.lists(idents, max_size=40) | st.just(list(range(3 * MAX_NUMBERS + 2))))
def test_a_list_of_ids_takes_as_many_frames_as_it_needs(ids: list[int]) -> None:
    received = FrameDecoder().feed(encode_numbers(Kind.POOLED, ids))
    assert len(received) == -(-len(ids) // MAX_NUMBERS)
    assert [ident for _, payload in received for ident in ConnectionsPooled.decode(payload).idents] == ids


def test_no_pair_is_split_between_two_frames() -> None:
    pairs = [(n, n * n) for n in range(MAX_NUMBERS + 1)]
    received = FrameDecoder().feed(encode_numbers(Kind.ENDED, [number for pair in pairs for number in pair]))
    assert [pair for _, payload in received for pair in StreamsEnded.decode(payload).ends] == pairs


@given(st.lists(st.binary(max_size=18), max_size=40), st.integers(0, 2000))
@example(addresses=[], more=2000)
def test_launches_take_as_few_frames_as_hold_them(addresses: list[bytes], more: int) -> None:
    launches = [(ident, address) for ident, address in enumerate([*addresses, *[bytes(18)] * more])]
    parts = [encode_launch(ident, address) for ident, address in launches]
    received = FrameDecoder().feed(b"".join(encode_parts(Kind.LAUNCH, parts)))
    assert [launch for _, payload in received for launch in Launch.decode(payload).launches] == launches
    assert len(received) <= 1 + sum(map(len, parts)) // (FRAMES[Kind.LAUNCH].max_bytes - 27)


@pytest.mark.parametrize(
    ("message", "payload"),
    [(ConnectionsPooled, b"123456789"), (StreamsEnded, bytes(8)), (Launch, bytes(8)), (Launch, bytes(8) + b"\1")],
)
def test_a_list_that_is_cut_off_is_a_protocol_error(message: type[FrameMessage], payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="cut off"):
        message.decode(payload)


def test_a_time_that_is_too_long_for_the_frame_is_clipped() -> None:
    whole = TargetTested(7, 0, TargetTimes("db:5432", False, None, 1e6, None, None))
    assert TargetTested.decode(whole.encode()).times.dial_s == ((1 << 32) - 2) / 1_000_000


def test_a_bound_of_zero_is_rejected() -> None:
    """It would stop the ingress from accepting, without any message."""
    for zero in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ProtocolError, match="bound"):
            LimitsAnnounced.decode(b"".join(value.to_bytes(4) for value in zero))


@pytest.mark.parametrize("payload", [b"\x01\x01\0", b"\0\1\2"])
def test_a_share_beyond_the_greatest_weight_or_a_strange_backup_is_a_protocol_error(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="an invalid share"):
        ShareChanged.decode(payload)


def test_a_queue_that_is_too_long_for_the_frame_is_clipped() -> None:
    assert QueueLength.decode(QueueLength(1 << 40).encode()).count == (1 << 32) - 1


sentences: list[tuple[Callable[[str], FrameMessage], Callable[[Any], str | None]]] = [
    (lambda text: VisitorFailed(7, text), lambda message: str(message.reason)),
    (Goodbye, lambda message: str(message.reason)),
    (Refusal, lambda message: str(message.reason)),
    (TargetStatus, lambda message: message.error),
]


@given(st.sampled_from(sentences), texts)
def test_sentences_arrive_safe_to_print_and_short(
    sentence: tuple[Callable[[str], FrameMessage], Callable[[Any], str | None]], text: str
) -> None:
    make, get_text = sentence
    [(kind, payload)] = FrameDecoder().feed(encode_message(make(text)))
    received = get_text(FRAMES[kind].message.decode(payload))
    assert received is not None
    safe = "".join(char if char.isprintable() else " " for char in text)
    assert received.isprintable()
    assert safe.startswith(received) or (not safe and received == "no reason given")
    assert len(received) >= min(len(safe), 128)


def test_a_target_that_answers_has_no_error() -> None:
    assert TargetStatus.decode(TargetStatus(None).encode()) == TargetStatus(None)


@given(st.binary(max_size=100))
def test_text_from_the_peer_cannot_control_a_terminal(payload: bytes) -> None:
    text = decode_text(payload)
    assert text.isprintable()
    assert len(text) <= len(payload)
