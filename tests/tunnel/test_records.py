"""Records: what is opened is what was sealed, in its order and up to a place; everything else is an error."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol import records
from tunnel.protocol.records import (
    CONNECTIONS_PER_KEY,
    HEADER_BYTES,
    MAX_CIPHERS,
    MAX_CONTENT_BYTES,
    MAX_RECORD_BYTES,
    OVERHEAD_BYTES,
    RECORDS_PER_KEY,
    USES_PER_KEY,
    LinkKeys,
    RecordDirection,
    RecordError,
    RecordPlace,
    RecordReader,
    RecordWriter,
    derive_record_key,
)

SECRET = bytes(range(32))
TO_SERVER, TO_CLIENT = TO_BOTH = tuple(RecordDirection)

contents = st.lists(st.binary(min_size=1, max_size=300), max_size=8)

IN_PLACE, COPIED = True, False
WAYS = pytest.mark.parametrize("ways", [(IN_PLACE,), (COPIED,), (IN_PLACE, COPIED)], ids=str)
"""The ways of the records of a stream, in turn: each is sealed, or opened, in a buffer or as an object of its own."""


def make_writer(
    ident: int = 7, use: int = 0, direction: RecordDirection = TO_SERVER, keys: LinkKeys | None = None
) -> RecordWriter:
    return RecordWriter(LinkKeys(SECRET) if keys is None else keys, ident, use, direction)


def make_reader(ident: int = 7, use: int = 0, direction: RecordDirection = TO_SERVER) -> RecordReader:
    return RecordReader(LinkKeys(SECRET), ident, use, direction)


def seal(writer: RecordWriter, content: bytes, way: bool = IN_PLACE) -> bytes:  # noqa: FBT001  one of two names
    if way is COPIED:
        return writer.seal_content(content)
    record = memoryview(bytearray(MAX_RECORD_BYTES))
    record[HEADER_BYTES : HEADER_BYTES + len(content)] = content
    return bytes(record[: writer.seal(record, 0, len(content))])


def seal_all(writer: RecordWriter, parts: list[bytes], ways: tuple[bool, ...] = (IN_PLACE,)) -> list[bytes]:
    return [
        *(seal(writer, part, way) for part, way in zip(parts, itertools.cycle(ways), strict=False)),
        writer.seal_end(),
    ]


def open_in_parts(reader: RecordReader, stream: bytes, sizes: list[int], ways: tuple[bool, ...] = (IN_PLACE,)) -> bytes:
    """Open a stream that arrives in parts of these sizes; return all content."""
    opened = b""
    at = 0
    for size, way in zip((*sizes, len(stream)), itertools.cycle(ways), strict=False):
        part = stream[at : at + size]
        at += size
        if way is COPIED:
            opened += reader.open_received(part)
        else:
            opened += b"".join(reader.open_all(memoryview(bytearray(reader.rest + part))))
    return opened


@WAYS
@given(parts=contents, sizes=st.lists(st.integers(0, 400), max_size=20))
def test_a_stream_is_opened_as_it_was_sealed_however_it_arrives(
    ways: tuple[bool, ...], parts: list[bytes], sizes: list[int]
) -> None:
    reader = make_reader()
    stream = b"".join(seal_all(make_writer(), parts, ways[::-1]))
    assert len(stream) == sum(map(len, parts)) + OVERHEAD_BYTES * (len(parts) + 1) + 2
    assert open_in_parts(reader, stream, sizes, ways) == b"".join(parts)
    assert reader.has_ended
    assert reader.rest == b""


@WAYS
@given(parts=contents, data=st.data())
def test_an_interfered_stream_gives_a_genuine_start_of_it_and_then_an_error(
    ways: tuple[bool, ...], parts: list[bytes], data: st.DataObject
) -> None:
    """Records are flipped, dropped, repeated, exchanged, cut or come from somewhere else."""
    sealed = seal_all(make_writer(), parts)
    place = data.draw(st.integers(0, len(sealed) - 1))
    tampered = list(sealed)
    match data.draw(st.sampled_from(["flip", "drop", "repeat", "exchange", "cut", "foreign"])):
        case "flip":
            flipped = bytearray(sealed[place])
            flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= data.draw(st.integers(1, 255))
            tampered[place] = bytes(flipped)
        case "drop":
            del tampered[place]
        case "repeat":
            tampered.insert(place, sealed[place])
        case "exchange":
            other = data.draw(st.integers(0, len(sealed) - 1))
            tampered[place], tampered[other] = sealed[other], sealed[place]
        case "cut":
            tampered[place:] = [sealed[place][: data.draw(st.integers(0, len(sealed[place]) - 1))]]
        case "foreign":
            ident, use, direction = data.draw(
                st.sampled_from([(8, 0, TO_SERVER), (7, 1, TO_SERVER), (7, 0, TO_CLIENT)])
            )
            tampered.insert(place, seal(make_writer(ident, use, direction), b"forged"))
    reader, opened = make_reader(), b""
    try:
        for record, way in zip(tampered, itertools.cycle(ways), strict=False):
            opened += open_in_parts(reader, record, [], (way,))
    except RecordError:
        assert b"".join(parts).startswith(opened)
    else:
        assert b"".join(parts).startswith(opened)
        assert not reader.has_ended or tampered == sealed, "a stream that is not whole was taken for complete"


@WAYS
@pytest.mark.parametrize("kind", [0, 20, 22, 24, 255])
def test_a_record_of_another_kind_is_refused(kind: int, ways: tuple[bool, ...]) -> None:
    with pytest.raises(RecordError, match="unknown kind"):
        open_in_parts(make_reader(), seal_raw(b"x" + bytes([kind])), [], ways)


@WAYS
@pytest.mark.parametrize("inner", [b"\x17", b"\x15", b"\x01\x15", b"\x02\x00\x15", b"\x01\x00\x00\x15"])
def test_an_empty_record_or_another_alert_is_refused(inner: bytes, ways: tuple[bool, ...]) -> None:
    with pytest.raises(RecordError):
        open_in_parts(make_reader(), seal_raw(inner), [], ways)


@WAYS
def test_a_record_with_one_changed_bit_is_refused(ways: tuple[bool, ...]) -> None:
    sealed = bytearray(seal_raw(b"x\x17"))
    sealed[-1] ^= 1
    with pytest.raises(RecordError, match="changed on the way"):
        open_in_parts(make_reader(), bytes(sealed), [], ways)


def seal_raw(inner: bytes) -> bytes:
    """Seal a record as a peer with the secret can, whatever it contains."""
    key, iv = derive_record_key(SECRET, 0, 0, TO_SERVER, 0)
    nonce = bytes(a ^ b for a, b in zip(iv, (7 << 64).to_bytes(12), strict=True))
    header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2)
    return header + AESGCM(key).encrypt(nonce, inner, header)


@pytest.mark.parametrize(
    "start",
    [b"\x16\x03\x03\x00\x20", b"\x17\x03\x01\x00\x20", b"\x17\x03\x03\x00\x11", b"\x17\x03\x03\x40\x12", b"GET /"],
)
@WAYS
def test_bytes_that_are_no_record_are_refused_by_their_header(start: bytes, ways: tuple[bool, ...]) -> None:
    with pytest.raises(RecordError, match="no record"):
        open_in_parts(make_reader(), start, [], ways)


@WAYS
def test_a_record_after_the_end_is_refused(ways: tuple[bool, ...]) -> None:
    writer, reader = make_writer(), make_reader()
    stream = writer.seal_end() + seal(writer, b"more")
    with pytest.raises(RecordError, match="after the end"):
        open_in_parts(reader, stream, [], ways)


@WAYS
def test_the_start_of_a_record_after_the_end_is_refused_at_once(ways: tuple[bool, ...]) -> None:
    with pytest.raises(RecordError, match="bytes after the end"):
        open_in_parts(make_reader(), make_writer().seal_end() + b"\x17\x03", [], ways)


@pytest.mark.parametrize("sealed_before", [0, RECORDS_PER_KEY - 1, RECORDS_PER_KEY])
def test_a_full_record_at_a_fixed_place_is_the_same_as_any_other(sealed_before: int) -> None:
    content = bytes(range(256)) * (MAX_CONTENT_BYTES // 256)
    buffer = memoryview(bytearray(3 * MAX_RECORD_BYTES))
    place = RecordPlace(buffer, MAX_RECORD_BYTES)
    place.content[:] = content
    at_place, anywhere = make_writer(), make_writer()
    for writer in (at_place, anywhere):
        for _ in range(sealed_before):
            seal(writer, b"x")
    at_place.seal_full(place)
    assert bytes(buffer) == bytes(MAX_RECORD_BYTES) + seal(anywhere, content) + bytes(MAX_RECORD_BYTES)


@given(st.integers(1, MAX_CONTENT_BYTES))
def test_a_record_has_the_size_of_its_content_and_the_overhead(size: int) -> None:
    content = b"x" * size
    record = seal(make_writer(), content)
    assert len(record) == size + OVERHEAD_BYTES <= MAX_RECORD_BYTES
    assert open_in_parts(make_reader(), record, []) == content


def test_every_block_of_streams_direction_and_generation_has_keys_of_its_own() -> None:
    places = itertools.product((7, 8), (0, 1), RecordDirection, (0, 1, 256))
    keys = [derive_record_key(SECRET, *place) for place in places]
    assert len({key for key, _ in keys}) == len({iv for _, iv in keys}) == len(keys) == 24
    assert derive_record_key(bytes(32), 7, 0, TO_SERVER, 0) not in keys


class RecordingCipher:
    """A cipher that notes what it was used with."""

    used: ClassVar[list[tuple[bytes, bytes]]] = []

    def __init__(self, key: bytes) -> None:
        self._key, self._cipher = key, AESGCM(key)

    def encrypt_into(self, nonce: bytes, data: memoryview, header: bytes, into: memoryview) -> int:
        self.used.append((self._key, nonce))
        return self._cipher.encrypt_into(nonce, data, header, into)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Keys and nonces that were used to seal records."""
    monkeypatch.setattr(RecordingCipher, "used", [])
    monkeypatch.setattr(records, "AESGCM", RecordingCipher)
    return RecordingCipher.used


def test_the_key_changes_after_its_records_and_no_nonce_repeats(used: list[tuple[bytes, bytes]]) -> None:
    writer, count = make_writer(), 2 * RECORDS_PER_KEY + 3
    for number in range(count):
        seal(writer, number.to_bytes(2))
    assert len(set(used)) == len(used) == count
    groups = [len(list(group)) for _, group in itertools.groupby(used, key=lambda pair: pair[0])]
    assert groups == [RECORDS_PER_KEY, RECORDS_PER_KEY, 3]


def test_both_ends_change_the_key_at_the_same_record() -> None:
    writer, reader, count = make_writer(), make_reader(), 2 * RECORDS_PER_KEY + 3
    sealed = b"".join(seal(writer, number.to_bytes(2)) for number in range(count))
    assert open_in_parts(reader, sealed, []) == b"".join(number.to_bytes(2) for number in range(count))


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 3000), st.integers(0, 40), st.sampled_from(TO_BOTH)),
        min_size=2,
        max_size=60,
        unique=True,
    )
)
def test_no_two_streams_of_a_link_use_the_same_key_and_nonce(streams: list[tuple[int, int, RecordDirection]]) -> None:
    keys, places = LinkKeys(SECRET), set[tuple[int, int]]()
    for ident, use, direction in streams:
        writer = make_writer(ident, use, direction, keys)
        for number in (0, RECORDS_PER_KEY - 1):
            places.add((writer._key.iv, writer._nonce ^ number))
    assert len(places) == 2 * len(streams)


def test_neighbouring_streams_share_a_cipher_and_others_do_not(used: list[tuple[bytes, bytes]]) -> None:
    keys = LinkKeys(SECRET)
    neighbours = [(0, 0), (CONNECTIONS_PER_KEY - 1, USES_PER_KEY - 1), (5, 3)]
    others = [(CONNECTIONS_PER_KEY, 0), (0, USES_PER_KEY)]
    for ident, use in neighbours + others:
        seal(make_writer(ident, use, keys=keys), b"x")
    assert len({key for key, _ in used[:3]}) == 1
    assert len({key for key, _ in used}) == 3


def test_a_link_keeps_a_bounded_number_of_keys_and_any_stream_works() -> None:
    keys = LinkKeys(SECRET)
    writers = [make_writer(ident * CONNECTIONS_PER_KEY, keys=keys) for ident in range(200)]
    assert len(keys) < 100
    for ident, writer in enumerate(writers):
        reader = make_reader(ident * CONNECTIONS_PER_KEY)
        assert open_in_parts(reader, seal(writer, b"first") + seal(writer, b"second"), []) == b"firstsecond"


def test_dropping_the_cipher_changes_nothing() -> None:
    writer, reader = make_writer(), make_reader()
    opened = b""
    for number in range(12):
        opened += open_in_parts(reader, seal(writer, bytes([number])), [])
        writer._key.drop_cipher()
        reader._key.drop_cipher()
    assert opened == bytes(range(12))


def test_a_process_keeps_only_the_latest_ciphers() -> None:
    writers = [make_writer(ident) for ident in range(2 * MAX_CIPHERS)]  # each of another link
    for writer in writers:
        seal(writer, b"first")
    assert [writer._key.cipher is not None for writer in writers] == [False] * MAX_CIPHERS + [True] * MAX_CIPHERS
    reader = make_reader(0)
    assert open_in_parts(reader, seal(make_writer(0), b"first") + seal(writers[0], b"second"), []) == b"firstsecond"


def test_a_key_stays_below_the_limit_of_the_cipher() -> None:
    assert CONNECTIONS_PER_KEY * USES_PER_KEY * RECORDS_PER_KEY < 2**24.5  # RFC 8446 §5.5, full records
