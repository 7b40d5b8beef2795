"""The fuzz targets: each accepts any bytes and raises only if the code that reads them violates a property.

Documented errors of a reader are allowed. Any other exception is a finding, and so is a failed assertion here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from orchestrator.authoring import frp, nodepass, rathole
from orchestrator.authoring.draft import Draft, write_file
from orchestrator.authoring.source import ForeignFile, ImportFileError
from orchestrator.config import document
from orchestrator.config.document import MappingNode, Node, SequenceNode
from orchestrator.config.faults import ConfigError, Fault
from orchestrator.config.load import load
from orchestrator.config.variables import VariableBudget, VariableError, substitute
from orchestrator.link_routes import link_routes, route_texts
from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker_socket import PacketSplitter, ReceivedMessage
from orchestrator.mqtt.commands import CommandRefusedError, CommandValidator
from orchestrator.mqtt.fleet import Fleet
from orchestrator.mqtt.ownership import DuplicateHostError, HostOwnership
from orchestrator.mqtt.payloads import DaemonRun, ResponsePayload, StatusPayload
from orchestrator.mqtt.topics import RESPONSE, STATE, HostTopics, ParsedTopic, parse
from orchestrator.table import format_table
from tunnel.forwarding.lanes import Lane
from tunnel.model.errors import InvalidValueError, OptionError, UrlError
from tunnel.model.limits import ConfiguredLimits, Limits
from tunnel.model.options import OptionLayer, format_options, make_spec
from tunnel.model.rate import MAX_BITS_PER_S, MIN_BITS_PER_S, RateType
from tunnel.model.spec import DataTls, Mode, ProxyVersion
from tunnel.model.url import parse_url
from tunnel.model.visitor_option_types import NetworksType
from tunnel.protocol.datagram_frames import DatagramFrameError, DatagramReader, encode_datagrams
from tunnel.protocol.datagram_messages import (
    Probe,
    ProbeAnswer,
    encode_answer,
    encode_flow_header,
    encode_probe,
    sort_contents,
)
from tunnel.protocol.datagram_records import DatagramOpener, DatagramRecordError, DatagramSealer
from tunnel.protocol.errors import HandshakeRefusedError, ProtocolError
from tunnel.protocol.frame_codec import Frame, FrameDecoder, encode_frame, encode_message
from tunnel.protocol.frames import FRAMES, Goodbye, Kind, TargetStatus, VisitorFailed
from tunnel.protocol.handshake import ClientHandshake, ServerHandshake
from tunnel.protocol.handshake_messages import Challenge, Hello, Refusal, Welcome
from tunnel.protocol.heartbeat import Heartbeat
from tunnel.protocol.http_check import read_status
from tunnel.protocol.keys import BaseKey
from tunnel.protocol.lane_frames import WINDOW_BYTES, LaneDecoder, LaneFrame, LaneKind, encode_lane_frame
from tunnel.protocol.preface import PREFACE_SIZE, check_preface, decode_preface, encode_preface
from tunnel.protocol.proxy_header import ProxyHeaderError, encode_header, parse_header
from tunnel.protocol.records import MAX_RECORD_BYTES, LinkKeys, RecordDirection, RecordError, RecordReader
from tunnel.protocol.replay import ReplayWindow
from tunnel.protocol.session import Negotiation, Session, SessionRole
from tunnel.protocol.tunnel_test_messages import TargetTested
from tunnel.protocol.visitor_address import pack_address

Target = Callable[[bytes], None]

NOW: Final = 1_800_000_000.0
SECRET: Final = bytes(range(32))
KEY: Final = BaseKey(bytes(range(32)))
CERTIFICATE: Final = b"the server's certificate as DER"
RECORD_CONTENTS: Final = (b"first", b"x" * 200, b"last")
"""What the seeds of ``data_records`` contain, before the end of the stream."""
MAX_INPUT_BYTES: Final = {
    "frames": 4096,
    "handshake": 2100,
    "preface": 200,
    "records": 600,
    "lanes": 600,
    "datagrams": 600,
    "link_datagrams": 600,
    "proxy_header": 600,
    "networks": 600,
    "rates": 60,
    "url": 2048,
    "yaml": 4096,
    "variables": 1024,
    "mqtt": 2048,
    "broker_packets": 600,
    "http_check": 300,
    "imports": 1500,
}
"""Maximum size of an input for each target."""


# --- frames -------------------------------------------------------------------------------------------------------


def control_frames(data: bytes) -> None:
    """Bytes of a control channel, cut into pieces; the first byte gives their size."""
    if not data:
        return
    step, stream = data[0] + 1, data[1:]
    decoder, received, error = FrameDecoder(), list[Frame](), False
    for start in range(0, len(stream), step):
        try:
            received += decoder.feed(stream[start : start + step])
        except ProtocolError:
            error = True
            break
        assert len(decoder._rest) < 3 + max(row.max_bytes for row in FRAMES.values()), "more is held than one frame"
    again = b"".join(encode_frame(kind, payload) for kind, payload in received)
    assert stream.startswith(again), "the decoded frames are not those that were sent"
    if not error:
        assert len(again) + len(decoder._rest) == len(stream), "bytes were lost"
        assert FrameDecoder().feed(stream) == received, "the result depends on how the stream is cut"
    for kind, payload in received:
        with contextlib.suppress(ProtocolError):
            _check_payload(kind, payload)
    _check_session(received)


def _check_payload(kind: Kind, payload: bytes) -> None:
    message = FRAMES[kind].message.decode(payload)
    match message:
        case VisitorFailed(ident, reason):
            _check_sentence(reason, payload[8:])
            assert VisitorFailed.decode(message.encode()).ident == ident
        case TargetStatus(error):
            assert (error is None) is bool(payload[0])
        case TargetTested(ident, left, times):
            assert (times.target + (times.error or "")).isprintable()
            again = TargetTested.decode(message.encode())
            assert (again.ident, again.left, again.times[:5]) == (ident, left, times[:5])
        case Refusal(reason) | Goodbye(reason):
            _check_sentence(reason, payload)
        case Challenge() | Hello() | Welcome():
            assert FRAMES[kind].message.decode(message.encode()) == message
        case _:
            assert encode_message(message) == encode_frame(kind, payload), f"decoding changes a {kind.name} frame"


def _check_sentence(text: str, payload: bytes) -> None:
    assert text.isprintable(), "it can control a terminal"
    assert len(text) <= len(payload)


def _check_session(received: list[Frame]) -> None:
    """Each end of an open link handles the frames or rejects them with a ProtocolError."""
    for is_client in (True, False):
        for is_ingress in (True, False):
            negotiation = Negotiation(ConfiguredLimits(), ConfiguredLimits(), Limits(8, 1024, 1024))
            session = Session(SessionRole(is_client, is_ingress), negotiation, Heartbeat(5.0, 0.0), lambda: None)
            for kind, payload in received:
                with contextlib.suppress(ProtocolError):
                    session.receive_frame(kind, payload, 1.0)
            limits = session.limits
            assert 0 < limits.pool_min <= limits.pool_max
            assert limits.visitors > 0
            FrameDecoder().feed(session.data_to_send())


# --- handshake and preface ----------------------------------------------------------------------------------------


def handshake(data: bytes) -> None:
    """A greeting and a proof from a peer without the key, received by a server or by a client."""
    if not data:
        return
    greeting, proof = data[1:-32], data[-32:]
    if len(greeting) > FRAMES[Kind.HELLO].max_bytes:  # the decoder rejects longer ones
        return
    with contextlib.suppress(ProtocolError):
        if data[0] % 3 == 0:
            server = ServerHandshake("web", CERTIFICATE, features=("reuse",))
            server.challenge()
            server.receive_hello(greeting)
            _check_refused(lambda: server.receive_proof(proof, [KEY, BaseKey(bytes(32), is_open=True)]))
            return
        client = ClientHandshake(KEY, "web", CERTIFICATE, features=("reuse",))
        if data[0] % 3 == 1:
            client.receive_challenge(greeting)
            return
        client.receive_challenge(b'{"features":["reuse"],"nonce":"' + b"0" * 64 + b'","versions":[2]}')
        client.hello(instance="me", mode=Mode.AUTO, tls=DataTls.OFF, bounds=ConfiguredLimits())
        client.receive_welcome(greeting)
        welcome = client._welcome
        assert welcome is not None
        assert welcome.data_port is None or (type(welcome.data_port) is int and 0 < welcome.data_port < 65_536)
        assert len(bytes.fromhex(welcome.link)) == 8
        assert all(name.isprintable() for name in welcome.features)
        _check_refused(lambda: client.receive_proof(proof))


def _check_refused(prove: Callable[[], object]) -> None:
    try:
        prove()
    except HandshakeRefusedError:
        return
    raise AssertionError("a peer without the key is accepted")


def preface(data: bytes) -> None:
    """The start of a data connection, and ids that may repeat."""
    if len(data) < PREFACE_SIZE:
        return
    start, ids = data[:PREFACE_SIZE], data[PREFACE_SIZE:]
    try:
        link, ident, mac = decode_preface(start)
        check_preface(SECRET, ident, mac)
    except ProtocolError:
        link, ident = start[4:12], int.from_bytes(start[12:20])
        assert encode_preface(link, SECRET, ident) != start, "a genuine preface is refused"
    else:
        assert encode_preface(link, SECRET, ident) == start, "a forged preface is accepted"
    assert decode_preface(encode_preface(link, SECRET, ident))[:2] == (link, ident)
    window, accepted = ReplayWindow(64), set[int]()
    for at in range(0, len(ids) - 7, 8):
        number = int.from_bytes(ids[at : at + 8])
        if window.accept(number):
            assert number not in accepted, "an id is accepted twice"
            accepted.add(number)
        assert len(window) <= 128, "the window grows"


# --- visitors -----------------------------------------------------------------------------------------------------


def proxy_header(data: bytes) -> None:
    """The start of a balancer's connection, as it grows byte by byte: a result is final, and one header is taken."""
    for end in range(len(data) + 1):
        try:
            found = parse_header(data[:end])
        except ProxyHeaderError:
            break
        if found is not None:
            assert end == found.size, "a header was complete earlier, or takes bytes of the visitor"
            assert parse_header(data) == found, "what follows a header changes it"
            if found.source is not None:
                packed = pack_address(found.source)
                for version in (ProxyVersion.V1, ProxyVersion.V2):
                    again = parse_header(encode_header(version, packed, ("10.0.0.1", 80), found.unique_id))
                    assert again is not None
                    assert pack_address(again.source) == packed
            break


def networks(data: bytes) -> None:
    """A list of networks: printed it is the same list, and it contains its own ends."""
    kind = NetworksType()
    try:
        found = kind.parse(data.decode("latin-1"), Path())
    except InvalidValueError:
        return
    assert kind.parse(kind.format(found), Path()) == found
    for first, _ in found.networks:
        assert first in found
    assert b"" not in found


def rates(data: bytes) -> None:
    """A rate: printed it is the same rate, within its range, and the pattern of the schema accepts both texts."""
    kind = RateType()
    pattern = re.compile(str(kind.json_schemas()[0]["pattern"]))
    text = data.decode("latin-1")
    try:
        found = kind.parse(text, Path())
    except InvalidValueError:
        return
    assert kind.parse(kind.format(found), Path()) == found
    assert pattern.search(kind.format(found))
    assert found is None or MIN_BITS_PER_S <= found.bits_per_s <= MAX_BITS_PER_S


# --- URL ----------------------------------------------------------------------------------------------------------


def data_records(data: bytes) -> None:
    """The stream of an encrypted data connection, which arrives in parts of a size."""
    if not data:
        return
    size, stream = data[0] or 256, data[1:]
    reader, opened, genuine = (
        RecordReader(LinkKeys(SECRET), 7, 0, RecordDirection.TO_SERVER),
        b"",
        b"".join(RECORD_CONTENTS),
    )
    with contextlib.suppress(RecordError):
        for at in range(0, len(stream), size):
            part = stream[at : at + size]
            if at // size % 2:
                opened += reader.open_received(part)
            else:
                opened += b"".join(reader.open_all(memoryview(bytearray(reader.rest + part))))
            assert genuine.startswith(opened), "bytes that nobody has sealed"
            assert len(reader.rest) < MAX_RECORD_BYTES, "an incomplete record grows"
        assert not reader.has_ended or opened == genuine, "a stream that is not whole was taken for complete"


class _LaneOwner:
    """A shared connection that sends nothing."""

    ident = 7
    is_congested = False

    def __init__(self) -> None:
        self.lanes: dict[int, Lane] = {}
        self.sent: list[bytes] = []

    def send(self, frame: bytes) -> None:
        """Keep a frame, so that the target can see it."""
        self.sent.append(frame)

    def forget(self, lane: Lane) -> None:
        """Forget a lane, which is closed."""
        self.lanes.pop(lane.number, None)


def lanes(data: bytes) -> None:
    """The frames of a shared connection, which arrive in parts of a size, and the lanes that they open."""
    if not data:
        return
    size, stream = data[0] or 256, data[1:]
    decoder, owner, found = LaneDecoder(is_ingress=bool(size & 1)), _LaneOwner(), list[LaneFrame]()
    with contextlib.suppress(ProtocolError):
        for at in range(0, len(stream), size):
            found += decoder.feed(stream[at : at + size])
    again = b"".join(encode_lane_frame(number, LaneKind(kind), payload) for number, kind, payload in found)
    assert stream.startswith(again), "frames that the stream does not have"
    for number, kind, payload in found:
        if kind == LaneKind.OPEN:
            owner.lanes[number] = Lane(cast("Any", owner), number, payload)
        elif (lane := owner.lanes.get(number)) is not None:
            _feed_lane(lane, kind, payload)
    assert not owner.sent, "a lane without a relay has answered"


def _feed_lane(lane: Lane, kind: int, payload: bytes) -> None:
    """Pass a frame to a lane that no relay has yet: it keeps a window of bytes at most."""
    if kind == LaneKind.DATA and lane.may_receive:
        is_allowed = lane.receive(payload)
        assert not is_allowed or lane.received <= WINDOW_BYTES, "more than a window is kept"
    elif kind == LaneKind.END and lane.may_receive:
        lane.receive_end()
    elif kind == LaneKind.RESET:
        lane.receive_reset()
    elif kind == LaneKind.MOVED:
        lane.receive_move()
    elif kind == LaneKind.CREDIT:
        assert not lane.receive_credit(int.from_bytes(payload)), "credit for what was not sent"


def datagrams(data: bytes) -> None:
    """The datagrams in a stream, which arrives in parts of a size: what is read is what the stream consists of."""
    if not data:
        return
    size, stream = data[0] or 256, data[1:]
    reader, found = DatagramReader(), []
    with contextlib.suppress(DatagramFrameError):
        for at in range(0, len(stream), size):
            found += [datagram.tobytes() for datagram in reader.split(stream[at : at + size])]
    assert stream.startswith(encode_datagrams(found)), "datagrams that the stream does not have"


def link_datagrams(data: bytes) -> None:
    """Datagrams between client and server: any bytes, each behind its length, and each again, among genuine ones."""
    sealer = DatagramSealer(bytes(8), SECRET, RecordDirection.TO_SERVER)
    opener = DatagramOpener(SECRET, RecordDirection.TO_SERVER)
    opened = 0
    while data:
        size, datagram, data = data[0], data[1 : data[0] + 1], data[data[0] + 1 :]
        with contextlib.suppress(DatagramRecordError):
            opener.open(datagram)
            raise AssertionError("a datagram without the key is accepted")
        genuine = sealer.seal(datagram)
        changed = bytearray(genuine)
        changed[size % len(changed)] ^= 1 + size % 255
        for each in (bytes(changed), genuine, genuine):
            with contextlib.suppress(DatagramRecordError):
                assert opener.open(each) == datagram, "the content has changed"
                opened += 1
        assert opener.highest == sealer.next_number - 1
        flows, messages = sort_contents([datagram])
        for flow, inner in flows.items():
            assert encode_flow_header(flow) + b"".join(inner) == datagram
        for message in messages:
            match message:
                case Probe(number, is_usable, length):
                    assert len(encode_answer(message)) <= length == len(datagram)
                    again = encode_probe(number, is_usable=is_usable, size=length)
                    assert sort_contents([again]) == ({}, [message])
                case ProbeAnswer(number):
                    assert datagram[1:9] == number.to_bytes(8)
    assert opened == sealer.next_number, "a genuine datagram is lost or accepted twice"


def url(data: bytes) -> None:
    """Parse a URL and make a spec of it."""
    text = data.decode(errors="surrogateescape")
    try:
        found = parse_url(text)
    except UrlError as error:
        assert 0 <= error.offset <= len(text), "the position of the error is outside the text"
        assert "\n" not in str(error)
        assert len(str(error)) < 400, "the message repeats long input"
        return
    again = parse_url(found.revealed())
    assert again == found, "the URL differs after writing and parsing"
    assert again.values() == found.values()
    assert found.key is None or "***@" in found.masked()
    if "_file" in text or "tls_" in text:  # it would read files of this machine
        return
    try:
        spec = make_spec(found)
    except UrlError as error:
        assert 0 <= error.offset <= len(text), "the position of the error is outside the text"
        return
    except OptionError as error:
        raise AssertionError("an error of the URL is reported elsewhere") from error
    values = {name: value for name, value in format_options(spec).items() if name not in found.values()}
    assert make_spec(found, [OptionLayer("formatted", values)]) is not None


# --- YAML ---------------------------------------------------------------------------------------------------------

_PLACE: Final = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}.yaml"
_ENVIRON: Final = {"SET": "value", "EMPTY": "", "SECRET": "Tr0ub4dor&3"}


def yaml(data: bytes) -> None:
    """Read a file of tunnels: its tree and its manifest."""
    faults: list[Fault] = []
    try:
        text = document.decode_text(_PLACE, data)
        root = document.parse_document(_PLACE, text, _ENVIRON, faults)
    except ConfigError as error:
        assert error.faults, "an error without a fault"
        for fault in error.faults:
            _check_place(fault, data)
        return
    for fault in faults:
        _check_place(fault, data)
    if root is not None:
        _check_depth(root, 0)
    if any(
        word in data for word in (b"include", b"_file", b"tls_", b"ca", b"\\")
    ):  # it would read files of this machine
        return
    _PLACE.write_bytes(data)
    try:
        manifest = load(_PLACE, _ENVIRON)
    except ConfigError as error:
        assert error.faults, "an error without a fault"
        for fault in error.faults:
            _check_place(fault, data)
    else:
        assert len({entry.name for entry in manifest.entries}) == len(manifest.entries)
        again = load(_PLACE, _ENVIRON)
        assert again.entries == manifest.entries, "a second read gives another result"
    finally:
        _PLACE.unlink()


def variables(data: bytes) -> None:
    """Replace the variables of a text."""
    text = data.decode(errors="replace")
    escaped = text.replace("$", "$$")
    assert substitute(escaped, _ENVIRON, VariableBudget()).value == text, "an escaped text is changed"
    try:
        found = substitute(text, _ENVIRON, VariableBudget())
    except VariableError as error:
        assert "$" in text, "a text without variables is a fault"
        assert _ENVIRON["SECRET"] not in str(error), "a fault shows the value of a variable"
        assert len(str(error)) < 300, "the message repeats long input"
        return
    assert "$" in text or found.value == text
    assert all(text[offset] == "$" for offset in found.bare_dollars)


def _check_place(fault: Fault, data: bytes) -> None:
    assert _ENVIRON["SECRET"] not in fault.message, "a fault shows the value of a variable"
    breaks = sum(map(data.count, (b"\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe2\x80\xa9")))
    assert 1 <= fault.place.line <= breaks + 2, (
        "the line does not exist"
    )  # the end of a file is the line after the last
    assert fault.place.column >= 1
    assert "\n" not in fault.message, "the message has several lines"


def _check_depth(node: Node, depth: int) -> None:
    assert depth <= 33, "the tree is nested deeper than allowed"
    if isinstance(node, MappingNode) and depth < 8:  # aliases multiply nodes: deeper levels would take too long
        for key, value in node:
            assert key.value is not None
            _check_depth(value, depth + 1)
    elif isinstance(node, SequenceNode) and depth < 8:
        for item in node.items[:8]:
            _check_depth(item, depth + 1)


# --- MQTT ---------------------------------------------------------------------------------------------------------

_KINDS: Final = ("status", "info", "event", "cmd", "state", "stats", "rsp")


def mqtt(data: bytes) -> None:
    """Read topic, null byte and payload; without a null byte, use the payload for all kinds of topics."""
    topic, separator, payload = data.partition(b"\0")
    spot = parse(topic.decode(errors="replace")) if separator else None
    payload = payload if separator else data
    spots = [spot] if spot else [ParsedTopic("edge-1", kind, "web") for kind in _KINDS]
    if spot and spot.kind == "state":
        assert parse(HostTopics(spot.host).of(STATE, spot.name)) == spot, "a topic differs after formatting"
    _check_command(payload)
    fleet = Fleet()
    for found in spots:
        for is_retained in (True, False):
            fleet.apply_message(found, payload, NOW, NOW, is_retained=is_retained)
    _render_fleet(fleet)
    _check_ownership(payload, zlib.crc32(data))


def broker_packets(data: bytes) -> None:
    """Bytes of a broker, cut into pieces; the first byte gives their size, and its lowest bit the version."""
    if not data:
        return
    step, is_v5, stream = (data[0] >> 1) + 1, bool(data[0] & 1), data[1:]
    outcomes = []
    for size in (step, max(1, len(stream))):
        received: list[ReceivedMessage] = []
        splitter = PacketSplitter(received.append, is_v5=is_v5)
        passed = b"".join(splitter.feed(stream[at : at + size]) for at in range(0, len(stream), size))
        outcomes.append((passed, received, splitter.code, splitter.excess))
    assert outcomes[0] == outcomes[1], "the pieces matter"
    passed, received, *_ = outcomes[0]
    assert len(passed) + sum(len(one.payload) for one in received) <= len(stream), "bytes that the broker has not sent"


def _check_command(payload: bytes) -> None:
    validator = CommandValidator("boot-1", max_remembered_ids=4)
    try:
        command = validator.parse(payload, is_retained=False, now=NOW)
    except CommandRefusedError as refused:
        assert refused.reply is None or HostTopics("h").of(RESPONSE, refused.reply).count("/") == 4
        json.loads(payloads.encode(ResponsePayload.failed(refused.id, str(refused)).as_json()))
        return
    assert command.timeout is None or 0 <= command.timeout < 1e9
    with contextlib.suppress(CommandRefusedError):
        validator.parse(payload, is_retained=False, now=NOW)
        raise AssertionError("a command is accepted twice")


def _render_fleet(fleet: Fleet) -> None:
    hosts = [host.as_json(NOW, NOW) for host in fleet]
    for host, shown in zip(fleet, hosts, strict=True):
        assert isinstance(host.label, str)
        format_table(shown["tunnels"], columns=None, paint=lambda text, _: text)
        json.dumps(shown, allow_nan=False)
    routes = link_routes(fleet, NOW)
    assert bool(route_texts(routes)) == bool(routes)
    for route in routes:
        json.dumps(route.as_json())


def _check_ownership(payload: bytes, number: int) -> None:
    word = payloads.decode(payload)
    if word is None:
        return
    status = StatusPayload.from_json(word) or StatusPayload()
    run = DaemonRun(("a-instance", "b-instance")[number >> 1 & 1], "boot-1", NOW - 1)
    ownership = HostOwnership(run, "edge-1")
    if number & 4:
        ownership.confirm_published()
    if number & 8:
        ownership.begin_watching(NOW)
    with contextlib.suppress(DuplicateHostError):
        ownership.receive_status(status, NOW, is_retained=bool(number & 1))
        ownership.note_message(status.boot, NOW)
        ownership.check_free()
    ownership.is_occupied(NOW)


# --- the answer to a health check ---------------------------------------------------------------------------------


def http_check(data: bytes) -> None:
    """The answer of a target, in pieces: its status depends on the bytes alone, not on how they arrive."""
    seen: list[int] = []
    for size in range(len(data) + 1):
        try:
            status = read_status(data[:size])
        except ProtocolError:
            assert not seen, "an answer that had a status is refused"
            return
        if status is not None:
            assert 200 <= status <= 599, "a status that does not end an answer"
            seen.append(status)
    assert len(set(seen)) <= 1, "the status changes with what follows"
    assert not seen or read_status(data) == seen[0], "a status is forgotten"


# --- files of other programs --------------------------------------------------------------------------------------


def imports(data: bytes) -> None:
    """A file of another program; the first byte chooses its language. What is translated passes ``check``."""
    suffix = ("toml", "ini", "yaml", "json", "sh")[data[0] % 5] if data else "toml"
    text = data[1:].decode("utf-8", "replace")
    readers: tuple[Callable[[ForeignFile], list[Draft]], ...] = (
        lambda source: frp.translate([source]).server,
        lambda source: [draft for drafts in rathole.translate([source]).clients.values() for draft in drafts],
        nodepass.translate,
    )
    for read in readers:
        with contextlib.suppress(ImportFileError):
            written = write_file(read(ForeignFile(f"old.{suffix}", text)), ["a comment"])
            assert len({draft.name for draft in written.drafts}) == len(written.drafts)


TARGETS: Final[dict[str, Target]] = {
    "frames": control_frames,
    "handshake": handshake,
    "preface": preface,
    "records": data_records,
    "lanes": lanes,
    "datagrams": datagrams,
    "link_datagrams": link_datagrams,
    "proxy_header": proxy_header,
    "networks": networks,
    "rates": rates,
    "url": url,
    "yaml": yaml,
    "variables": variables,
    "mqtt": mqtt,
    "broker_packets": broker_packets,
    "http_check": http_check,
    "imports": imports,
}
