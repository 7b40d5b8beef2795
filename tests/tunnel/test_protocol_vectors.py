"""The test vectors of PROTOCOL.md: this program and a computation from the page agree with each of them."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest

from tests.tunnel.protocol_vectors import FILE, SECTIONS, compute_sections
from tunnel.model.errors import InvalidValueError
from tunnel.model.keys import Key, encode_key
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.spec import DataTls, Mode
from tunnel.protocol.frames import Launch, Sender, encode_launch
from tunnel.protocol.handshake import ClientHandshake, ServerHandshake
from tunnel.protocol.handshake_messages import Challenge, Hello, Welcome
from tunnel.protocol.keys import BaseKey, compute_base_key, service_key
from tunnel.protocol.lane_frames import LANE_FRAMES, LaneDecoder, LaneKind, encode_lane_frame
from tunnel.protocol.preface import check_preface, decode_preface, encode_preface
from tunnel.protocol.records import (
    HEADER_BYTES,
    OVERHEAD_BYTES,
    LinkKeys,
    RecordDirection,
    RecordReader,
    RecordWriter,
    derive_record_key,
)
from tunnel.protocol.visitor_address import pack_address, unpack_address

Vector = dict[str, Any]  # JSON

VECTORS: dict[str, Any] = json.loads(FILE.read_text())
_HEADER = 3  # bytes of type and length


def key_of(text: str | None) -> BaseKey:
    return BaseKey(compute_base_key(None if text is None else Key(text)), is_open=text is None)


def test_the_file_has_what_the_page_says() -> None:
    assert {name: VECTORS[name] for name in SECTIONS} == json.loads(json.dumps(compute_sections()))


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda vector: repr(vector["key"]))
def test_keys(vector: Vector) -> None:
    assert key_of(vector["key"]).secret.hex() == vector["base_key"]
    if (vector["key"] or "").startswith("npk_"):
        assert encode_key(bytes.fromhex(vector["base_key"])) == vector["key"]


@pytest.mark.parametrize("text", VECTORS["damaged_keys"])
def test_damaged_keys(text: str) -> None:
    with pytest.raises(InvalidValueError, match="damaged"):
        Key(text)


@pytest.mark.parametrize("vector", VECTORS["services"], ids=lambda vector: repr(vector["service"]))
def test_services(vector: Vector) -> None:
    assert service_key(bytes.fromhex(vector["base_key"]), vector["service"]).hex() == vector["service_key"]


@pytest.mark.parametrize("vector", VECTORS["handshakes"], ids=lambda vector: repr(vector["service"]))
def test_a_server_completes_the_recorded_handshake(vector: Vector) -> None:
    frames = {name: bytes.fromhex(frame) for name, frame in vector["frames"].items()}
    server = ServerHandshake(vector["service"], bytes.fromhex(vector["certificate"]), features=("reuse", "later"))
    server._transcript.add(frames["challenge"])
    server.receive_hello(frames["hello"][_HEADER:])
    server.receive_proof(frames["client_proof"][_HEADER:], [key_of(vector["key"])])
    assert server.negotiate_features() == ("reuse",)
    with mock.patch.object(Welcome, "encode", return_value=frames["welcome"][_HEADER:]):
        answer, secret = server.welcome(Welcome.decode(frames["welcome"][_HEADER:]))
    assert answer == frames["welcome"] + frames["server_proof"]
    assert secret.hex() == vector["link_secret"]


@pytest.mark.parametrize("vector", VECTORS["handshakes"], ids=lambda vector: repr(vector["service"]))
def test_a_client_completes_the_recorded_handshake(vector: Vector) -> None:
    frames = {name: bytes.fromhex(frame) for name, frame in vector["frames"].items()}
    client = ClientHandshake(
        key_of(vector["key"]), vector["service"], bytes.fromhex(vector["certificate"]), features=("reuse",)
    )
    client.receive_challenge(frames["challenge"][_HEADER:])
    assert Challenge.decode(frames["challenge"][_HEADER:]).versions == (2, 3)
    with mock.patch.object(Hello, "encode", return_value=frames["hello"][_HEADER:]):
        sent = client.hello(instance="any", mode=Mode.AUTO, tls=DataTls.ENCRYPTED, bounds=ConfiguredLimits())
    assert sent == frames["hello"] + frames["client_proof"]
    client.receive_welcome(frames["welcome"][_HEADER:])
    welcome, secret = client.receive_proof(frames["server_proof"][_HEADER:])
    assert welcome.link == "00112233aabbccdd"
    assert secret.hex() == vector["link_secret"]


@pytest.mark.parametrize("vector", VECTORS["preface"], ids=lambda vector: str(vector["id"]))
def test_prefaces(vector: Vector) -> None:
    link, secret, preface = (bytes.fromhex(vector[name]) for name in ("link", "link_secret", "preface"))
    assert encode_preface(link, secret, vector["id"]) == preface
    sent_link, ident, mac = decode_preface(preface)
    assert (sent_link, ident) == (link, vector["id"])
    check_preface(secret, ident, mac)


def _record_id(vector: Vector) -> str:
    return f"direction {vector['direction']}, use {vector['use']}, number {vector.get('number', 0)}"


@pytest.mark.parametrize("vector", VECTORS["records"]["keys"], ids=_record_id)
def test_record_keys(vector: Vector) -> None:
    direction = RecordDirection(vector["direction"])
    secret, ident, use, number = bytes.fromhex(vector["link_secret"]), vector["id"], vector["use"], vector["number"]
    key, iv = derive_record_key(secret, ident // 1024, use // 16, direction, number // 1024)
    assert key.hex() == vector["key"]
    place = (ident % 1024).to_bytes(4) + (use % 16).to_bytes(4) + (number % 1024).to_bytes(4)
    assert bytes(a ^ b for a, b in zip(iv, place, strict=True)).hex() == vector["nonce"]


@pytest.mark.parametrize("vector", VECTORS["records"]["streams"], ids=_record_id)
def test_records_that_are_objects_of_their_own(vector: Vector) -> None:
    direction = RecordDirection(vector["direction"])
    parts = LinkKeys(bytes.fromhex(vector["link_secret"])), vector["id"], vector["use"], direction
    writer, reader = RecordWriter(*parts), RecordReader(*parts)
    for content, record in zip(vector["contents"], vector["records"], strict=True):
        assert writer.seal_content(bytes.fromhex(content)).hex() == record
        assert reader.open_received(bytes.fromhex(record)).hex() == content
    assert writer.seal_end().hex() == vector["end"]
    assert reader.open_received(bytes.fromhex(vector["end"])) == b""
    assert reader.has_ended


@pytest.mark.parametrize("vector", VECTORS["records"]["streams"], ids=_record_id)
def test_records(vector: Vector) -> None:
    direction = RecordDirection(vector["direction"])
    parts = LinkKeys(bytes.fromhex(vector["link_secret"])), vector["id"], vector["use"], direction
    writer, reader = RecordWriter(*parts), RecordReader(*parts)
    for content, record in zip(vector["contents"], vector["records"], strict=True):
        plain = bytes.fromhex(content)
        buffer = bytearray(len(plain) + OVERHEAD_BYTES)
        buffer[HEADER_BYTES : HEADER_BYTES + len(plain)] = plain
        assert writer.seal(memoryview(buffer), 0, len(plain)) == len(buffer)
        assert buffer.hex() == record
    assert writer.seal_end().hex() == vector["end"]
    stream = bytearray.fromhex("".join([*vector["records"], vector["end"]]))
    assert [content.hex() for content in reader.open_all(memoryview(stream))] == vector["contents"]
    assert reader.has_ended


@pytest.mark.parametrize("vector", VECTORS["launch"], ids=lambda vector: str(vector["visitor"]))
def test_launches(vector: Vector) -> None:
    visitor, entry = vector["visitor"], bytes.fromhex(vector["entry"])
    address = pack_address(None if visitor is None else tuple(visitor))
    assert encode_launch(vector["id"], address) == entry
    assert Launch.decode(entry).launches == ((vector["id"], address),)
    if visitor is not None:
        assert unpack_address(address) == (visitor[0].removeprefix("::ffff:").partition("%")[0], visitor[1])


@pytest.mark.parametrize("vector", VECTORS["lanes"], ids=lambda vector: f"{vector['kind']} {vector['lane']}")
def test_frames_of_lanes(vector: Vector) -> None:
    lane, kind, payload = vector["lane"], LaneKind[vector["kind"]], bytes.fromhex(vector["payload"])
    frame = bytes.fromhex(vector["frame"])
    assert encode_lane_frame(lane, kind, payload) == frame
    is_ingress = LANE_FRAMES[kind].sender is Sender.EGRESS
    assert LaneDecoder(is_ingress=is_ingress).feed(frame) == [(lane, kind, payload)]
