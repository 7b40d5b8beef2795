"""The frames of a shared connection: encoded and decoded, in parts of any size, within the bounds of the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tunnel.protocol
from tunnel.model.visitors import CONNECTION_IDS, lane_ident, split_lane_ident, visitor_id
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.frames import Sender
from tunnel.protocol.lane_frames import (
    LANE_FRAMES,
    LAST_LANE,
    LaneDecoder,
    LaneFrameSpec,
    LaneKind,
    encode_lane_frame,
    lane_frame_table,
)

numbers = st.integers(0, LAST_LANE)


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, LaneKind, bytes]:
    """Any frame that the ingress may send."""
    row = draw(st.sampled_from([row for row in LANE_FRAMES.values() if row.sender is not Sender.EGRESS]))
    size = draw(st.integers(row.min_bytes, min(row.max_bytes, 300)))
    return draw(numbers), row.kind, draw(st.binary(min_size=size, max_size=size))


@given(sent=st.lists(frames(), max_size=8), data=st.data())
def test_frames_are_found_in_whatever_parts_they_arrive(
    sent: list[tuple[int, LaneKind, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(encode_lane_frame(*frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder, found = LaneDecoder(is_ingress=False), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += decoder.feed(stream[start:end])
    assert found == sent


@pytest.mark.parametrize("kind", LaneKind)
def test_a_frame_of_a_wrong_length_is_refused(kind: LaneKind) -> None:
    row = LANE_FRAMES[kind]
    for size in {row.min_bytes - 1, row.max_bytes + 1} - {-1}:
        with pytest.raises(ProtocolError, match=rf"a {kind.name} frame of {size} bytes"):
            LaneDecoder(is_ingress=row.sender is Sender.EGRESS).feed(encode_lane_frame(1, kind, bytes(size)))


@pytest.mark.parametrize("kind", [0, 10, 255])
@pytest.mark.parametrize("is_ingress", [True, False])
def test_an_unknown_frame_is_refused(kind: int, *, is_ingress: bool) -> None:
    with pytest.raises(ProtocolError, match=f"a frame {kind} "):
        LaneDecoder(is_ingress=is_ingress).feed(bytes([0, 0, 0, 1, kind, 0, 0]))


@pytest.mark.parametrize("row", LANE_FRAMES.values(), ids=lambda row: row.kind.name)
def test_a_frame_that_the_other_end_may_not_send_is_refused(row: LaneFrameSpec) -> None:
    frame = encode_lane_frame(1, row.kind, bytes(row.min_bytes))
    for is_ingress, receiver in ((True, Sender.INGRESS), (False, Sender.EGRESS)):
        decoder = LaneDecoder(is_ingress=is_ingress)
        if row.sender is receiver:
            with pytest.raises(ProtocolError, match="which the other end may not send"):
                decoder.feed(frame)
        else:
            assert decoder.feed(frame) == [(1, row.kind, bytes(row.min_bytes))]


@given(connection=st.integers(1, (1 << 64) - 1), number=numbers)
def test_a_lane_has_a_name_that_no_data_connection_has(connection: int, number: int) -> None:
    name = lane_ident(connection, number)
    assert 1 << 63 <= name < 1 << 64
    assert split_lane_ident(name) == (connection & CONNECTION_IDS, number)
    assert visitor_id("5c0a7f678b76a357", name, 0) == f"5c0a7f678b76a357-{connection & CONNECTION_IDS}.{number}"


def test_the_protocol_document_has_the_table_of_all_lane_frames() -> None:
    document = Path(tunnel.protocol.__file__).with_name("PROTOCOL.md").read_text()
    assert lane_frame_table() in document, f"replace the table in PROTOCOL.md by:\n{lane_frame_table()}"
