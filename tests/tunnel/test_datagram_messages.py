"""What datagrams between the two ends of a link contain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.datagram_messages import (
    Probe,
    ProbeAnswer,
    encode_answer,
    encode_flow_header,
    encode_probe,
    sort_contents,
)

NUMBERS = st.integers(0, (1 << 64) - 1)


@given(number=NUMBERS, usable=st.booleans(), size=st.integers(0, 1400))
def test_a_probe_is_read_as_it_was_written_and_its_answer_is_not_longer(
    number: int, *, usable: bool, size: int
) -> None:
    content = encode_probe(number, is_usable=usable, size=size)
    [probe] = sort_contents([content])[1]
    assert probe == Probe(number, usable, len(content))
    assert isinstance(probe, Probe)
    answer = encode_answer(probe)
    assert len(answer) == len(content) >= size
    assert sort_contents([answer]) == ({}, [ProbeAnswer(number)])


@given(st.lists(st.tuples(NUMBERS | st.integers(0, 2), st.binary(max_size=50))))
def test_the_datagrams_of_each_flow_are_read_as_they_were_written(datagrams: list[tuple[int, bytes]]) -> None:
    flows, messages = sort_contents([encode_flow_header(flow) + datagram for flow, datagram in datagrams])
    assert messages == []
    assert flows == {flow: [each for other, each in datagrams if other == flow] for flow, _ in datagrams}


@given(st.lists(st.binary(max_size=30)))
def test_any_contents_are_read_or_left_out(contents: list[bytes]) -> None:
    flows, messages = sort_contents(contents)
    assert sum(map(len, flows.values())) + len(messages) <= len(contents)


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\1" * 9, b"\2" * 8, b"\3" * 8, b"\4" * 40])
def test_short_content_and_that_of_an_unknown_kind_are_left_out(content: bytes) -> None:
    assert sort_contents([content, encode_flow_header(7) + b"x", content]) == ({7: [b"x"]}, [])
