"""Sealed datagrams: lost, repeated, reordered, forged, cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.datagram_records import (
    OVERHEAD_BYTES,
    WINDOW,
    DatagramOpener,
    DatagramRecordError,
    DatagramSealer,
)
from tunnel.protocol.records import RecordDirection

SECRET, LINK = bytes(range(32)), bytes(range(8))
TO_SERVER = RecordDirection.TO_SERVER


def sealed(count: int, first: int = 0) -> list[bytes]:
    sealer = DatagramSealer(LINK, SECRET, TO_SERVER, first)
    return [sealer.seal(b"%d" % n) for n in range(count)]


@given(st.permutations(range(40)), st.sets(st.integers(0, 39)), st.integers(0, 1 << 26))
def test_within_the_window_each_datagram_is_opened_once_in_any_order(
    order: list[int], lost: set[int], first: int
) -> None:
    opener, sent = DatagramOpener(SECRET, TO_SERVER), sealed(40, first % (1 << 24))
    for n in (each for each in order if each not in lost):
        assert opener.open(sent[n]) == b"%d" % n
        with pytest.raises(DatagramRecordError, match="came before"):
            opener.open(sent[n])


def test_a_datagram_behind_the_window_is_dropped() -> None:
    opener, sent = DatagramOpener(SECRET, TO_SERVER), sealed(WINDOW + 1)
    assert opener.highest == -1
    assert opener.open(sent[WINDOW]) == b"%d" % WINDOW
    assert opener.open(sent[1]) == b"1"
    with pytest.raises(DatagramRecordError, match="too old"):
        opener.open(sent[0])
    assert opener.highest == WINDOW


@given(st.integers(0, 8 * (OVERHEAD_BYTES + 4) - 1))
def test_a_changed_bit_is_noticed_and_changes_nothing(bit: int) -> None:
    datagram = bytearray(DatagramSealer(LINK, SECRET, TO_SERVER).seal(b"true"))
    datagram[bit // 8] ^= 1 << bit % 8
    opener = DatagramOpener(SECRET, TO_SERVER)
    with pytest.raises(DatagramRecordError):
        opener.open(bytes(datagram))
    assert opener.highest == -1


@given(st.binary(max_size=80))
def test_any_bytes_are_dropped(data: bytes) -> None:
    with pytest.raises(DatagramRecordError):
        DatagramOpener(SECRET, TO_SERVER).open(data)


def test_keys_change_without_a_message_and_late_datagrams_still_pass() -> None:
    sealer, opener = DatagramSealer(LINK, SECRET, TO_SERVER, (1 << 24) - 2), DatagramOpener(SECRET, TO_SERVER)
    sent = [sealer.seal(b"%d" % n) for n in range(4)]
    assert [opener.open(sent[n]) for n in (0, 2, 1, 3)] == [b"0", b"2", b"1", b"3"]
    late = DatagramSealer(LINK, SECRET, TO_SERVER, 1 << 25).seal(b"next")
    assert opener.open(late) == b"next"
    far = DatagramSealer(LINK, SECRET, TO_SERVER, 1 << 40).seal(b"far")
    with pytest.raises(DatagramRecordError, match="too far ahead"):
        opener.open(far)


def test_the_other_direction_has_other_keys() -> None:
    datagram = DatagramSealer(LINK, SECRET, RecordDirection.TO_CLIENT).seal(b"x")
    with pytest.raises(DatagramRecordError, match="does not belong here"):
        DatagramOpener(SECRET, TO_SERVER).open(datagram)


def test_a_datagram_names_its_link_and_its_number() -> None:
    sealer = DatagramSealer(LINK, SECRET, TO_SERVER, 3)
    assert sealer.seal(b"")[:16] == LINK + (3).to_bytes(8)
    assert sealer.next_number == 4


def test_a_datagram_that_is_too_short_is_dropped() -> None:
    with pytest.raises(DatagramRecordError, match="too short"):
        DatagramOpener(SECRET, TO_SERVER).open(bytes(OVERHEAD_BYTES - 1))
