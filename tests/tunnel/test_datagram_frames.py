"""Datagrams in a stream, in the clear and in records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.carriers import create_carrier
from tunnel.model.spec import Carrier
from tunnel.protocol.datagram_frames import (
    MAX_DATAGRAM_BYTES,
    READY,
    DatagramFrameError,
    DatagramReader,
    encode_datagrams,
)
from tunnel.protocol.records import LinkKeys, RecordDirection, RecordError, RecordWriter
from tunnel.runtime.reactor import BUFFER_SIZE

SECRET = bytes(range(32))
datagrams = st.lists(st.binary(max_size=40) | st.integers(0, 3000).map(bytes), max_size=8)
sizes = st.integers(1, 5000)


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def test_a_stream_of_datagrams_has_each_behind_its_length() -> None:
    assert encode_datagrams([b"one", b"", b"three"]) == b"\0\3one\0\0\0\5three"


@given(datagrams, sizes)
def test_datagrams_arrive_as_they_were_sent_in_whatever_pieces(sent: list[bytes], size: int) -> None:
    reader = DatagramReader()
    found = [one.tobytes() for piece in pieces(encode_datagrams(sent), size) for one in reader.split(piece)]
    assert found == sent


def test_the_longest_datagram_is_read_and_a_longer_one_refused() -> None:
    [longest] = DatagramReader().split(encode_datagrams([bytes(MAX_DATAGRAM_BYTES)]))
    assert longest == bytes(MAX_DATAGRAM_BYTES)
    with pytest.raises(DatagramFrameError, match="a datagram that is too long"):
        DatagramReader().split((MAX_DATAGRAM_BYTES + 1).to_bytes(2))


@pytest.mark.parametrize("carrier", list(Carrier))
@given(batches=st.lists(datagrams, max_size=4), size=sizes)
def test_each_carrier_brings_the_datagrams_of_both_ends(
    carrier: Carrier, batches: list[list[bytes]], size: int
) -> None:
    scratch = memoryview(bytearray(BUFFER_SIZE))
    client, server = (
        create_carrier(carrier, SECRET, scratch, is_client=one).create_codec(7, 0) for one in (True, False)
    )
    for sender, receiver in ((client, server), (server, client)):
        reader = DatagramReader()
        stream = b"".join(sender.seal(encode_datagrams(batch)) for batch in batches)
        found = [
            one.tobytes()
            for piece in pieces(stream, size)
            for content in receiver.open(memoryview(bytearray(piece)))
            for one in reader.split(content)
        ]
        assert found == [one for batch in batches for one in batch]


def test_the_end_of_a_stream_is_no_part_of_datagrams() -> None:
    codec = create_carrier(Carrier.ENCRYPTED, SECRET, memoryview(bytearray(BUFFER_SIZE)), is_client=False).create_codec(
        7, 0
    )
    end = RecordWriter(LinkKeys(SECRET), 7, 0, RecordDirection.TO_SERVER).seal_end()
    with pytest.raises(RecordError, match="the end of a stream that has none"):
        codec.open(memoryview(bytearray(end)))


def test_a_reader_that_awaits_it_accepts_that_the_egress_is_ready_once() -> None:
    stream = encode_datagrams((b"before",)) + READY + encode_datagrams((b"behind",))
    reader = DatagramReader(awaits_ready=True)
    assert [bytes(one) for one in reader.split(stream)] == [b"before", b"behind"]
    assert reader.is_ready
    for other in (reader, DatagramReader()):
        with pytest.raises(DatagramFrameError, match="too long"):
            other.split(READY)
