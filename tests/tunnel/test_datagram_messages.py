"""What datagrams between the two ends of a link contain."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.datagram_messages import (
    Answer,
    FlowDatagram,
    Probe,
    decode_content,
    encode_answer,
    encode_flow_datagram,
    encode_probe,
)
from tunnel.protocol.errors import ProtocolError

NUMBERS = st.integers(0, (1 << 64) - 1)


@given(number=NUMBERS, usable=st.booleans(), size=st.integers(0, 1400))
def test_a_probe_is_read_as_it_was_written_and_its_answer_is_not_longer(
    number: int, *, usable: bool, size: int
) -> None:
    content = encode_probe(number, is_usable=usable, size=size)
    probe = decode_content(content)
    assert probe == Probe(number, usable, len(content))
    assert isinstance(probe, Probe)
    answer = encode_answer(probe)
    assert len(answer) == len(content) >= size
    assert decode_content(answer) == Answer(number)


@given(NUMBERS, st.binary(max_size=50))
def test_a_datagram_of_a_flow_is_read_as_it_was_written(flow: int, datagram: bytes) -> None:
    content = decode_content(encode_flow_datagram(flow, datagram))
    assert isinstance(content, FlowDatagram)
    assert (content.flow, bytes(content.content)) == (flow, datagram)


@given(st.binary(max_size=30))
def test_any_content_is_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_content(content)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\1" * 9, b"\2" * 8, b"\3" * 8, b"\4" * 40])
def test_short_content_and_that_of_an_unknown_kind_are_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError, match="unknown kind"):
        decode_content(content)
