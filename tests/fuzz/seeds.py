"""Write encoded messages and their edge cases into the corpus: ``python -m tests.fuzz.seeds``.

The URLs and files of the corpus are written by hand and not changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from orchestrator.mqtt import payloads
from orchestrator.mqtt.payloads import (
    DaemonRun,
    InfoPayload,
    ResponsePayload,
    StatePayload,
    StatsPayload,
    StatusPayload,
)
from orchestrator.mqtt.topics import COMMAND, INFO, RESPONSE, STATE, STATS, STATUS, HostTopics
from orchestrator.status.contract import ConfigStatus, DaemonInfo
from orchestrator.supervisor.runner import stopped_snapshot
from tests.fuzz.targets import NOW, RECORD_CONTENTS, SECRET
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.options import make_spec
from tunnel.model.spec import ProxyVersion
from tunnel.model.times import format_timestamp
from tunnel.model.tunnel_test import TargetTimes
from tunnel.model.url import parse_url
from tunnel.protocol.datagram_frames import encode_datagrams
from tunnel.protocol.datagram_messages import encode_flow_header, encode_probe
from tunnel.protocol.datagram_records import DatagramSealer
from tunnel.protocol.frame_codec import encode_frame, encode_message
from tunnel.protocol.frames import (
    FRAMES,
    CapacityChanged,
    Goodbye,
    Kind,
    Launch,
    LimitsAnnounced,
    Ping,
    QueueLength,
    ShareChanged,
    StreamsEnded,
    TargetStatus,
    UdpLaunch,
    VisitorFailed,
)
from tunnel.protocol.handshake_messages import Challenge, Refusal
from tunnel.protocol.lane_frames import CREDIT, LaneKind, encode_lane_frame
from tunnel.protocol.payloads import FrameMessage
from tunnel.protocol.preface import encode_preface
from tunnel.protocol.proxy_header import SIGNATURE, crc32c, encode_header
from tunnel.protocol.records import HEADER_BYTES, TAG_BYTES, LinkKeys, RecordDirection, RecordWriter
from tunnel.protocol.tunnel_test_messages import TargetTest, TargetTested
from tunnel.protocol.visitor_address import pack_address

CORPUS: Final = Path(__file__).parent / "corpus"

_NONCE: Final = "0" * 64
_PROOF: Final = bytes(32)

Seeds = Iterator[tuple[str, bytes]]


def _frames() -> Seeds:
    messages: dict[str, FrameMessage] = {
        "challenge": Challenge((2,), ("reuse",), _NONCE),
        "ids": Launch(((1, b""), (2, bytes(6)), (1 << 63, bytes(18)))),
        "udp-ids": UdpLaunch(((3, bytes(6)), (4, bytes(18)))),
        "ended": StreamsEnded(((7, 1 << 40), (8, 0))),
        "ping": Ping(42),
        "queued": QueueLength(3),
        "capacity": CapacityChanged(16, 2),
        "bounds": LimitsAnnounced(ConfiguredLimits(8, None, 1024)),
        "share": ShareChanged(256, is_backup=True),
        "failed": VisitorFailed(9, "it refused the connection"),
        "target-fine": TargetStatus(None),
        "target-gone": TargetStatus("no answer"),
        "test": TargetTest(7),
        "tested": TargetTested(7, 1, TargetTimes("db:5432", True, 0.001, 0.002, None, None)),
        "tested-failed": TargetTested(7, 0, TargetTimes("[::1]:9", False, None, None, None, "it refused")),
        "bye": Goodbye("ends \x1b[2J here"),
        "refused": Refusal("the handshake was refused"),
    }
    parts = {name: encode_message(message) for name, message in messages.items()}
    for name, part in parts.items():
        yield name, b"\xff" + part
    yield "all-in-one", b"\xff" + b"".join(parts.values())
    yield "all-byte-by-byte", b"\0" + b"".join(parts.values())
    yield "cut-off", b"\x04" + b"".join(parts.values())[:-3]
    yield "unknown-kind", b"\xff\x7f\0\0"
    yield "too-long", b"\xff" + bytes([Kind.PING]) + (FRAMES[Kind.PING].max_bytes + 1).to_bytes(2)
    yield "empty-ids", b"\xff" + encode_frame(Kind.POOLED)
    yield "half-an-id", b"\xff" + encode_frame(Kind.POOLED, b"1234")
    yield "share-too-great", b"\xff" + encode_frame(Kind.SHARE, b"\xff\xff\2")
    yield "bound-of-zero", b"\xff" + encode_frame(Kind.BOUNDS, bytes(12))


def _handshake() -> Seeds:
    hello = {
        "version": 2, "features": ["reuse", "later"], "nonce": _NONCE, "service": "web", "instance": "me",
        "auth": "key", "mode": "auto", "tls": 1,
        "pool_min": 1, "pool_max": None, "visitors": 9,
    }  # fmt: skip
    welcome = {
        "features": ["reuse"], "link": "6f1c" * 4, "direction": "reverse", "data_port": 40_000, "carrier": "encrypted",
        "pool_min": None, "pool_max": 64, "visitors": None,
    }  # fmt: skip
    challenge = {"versions": [2, 3], "features": ["reuse"], "nonce": _NONCE}
    for name, role, fields in (
        ("hello", 0, hello),
        ("hello-forward", 0, {**hello, "mode": "forward", "auth": "open"}),
        ("hello-odd-bounds", 0, {**hello, "pool_min": True, "visitors": 1 << 32}),
        ("hello-control-character", 0, {**hello, "instance": "\x1b[2J"}),
        ("hello-version", 0, {**hello, "version": 3}),
        ("hello-tls-true", 0, {**hello, "tls": True}),
        ("hello-long-service", 0, {**hello, "service": "s" * 65}),
        ("hello-many-features", 0, {**hello, "features": ["f"] * 17}),
        ("hello-publish", 0, {**hello, "features": ["publish"], "publish": "192.0.2.1:8080"}),
        ("hello-publish-name", 0, {**hello, "publish": "gateway:8080"}),
        ("challenge", 1, challenge),
        ("challenge-version", 1, {**challenge, "versions": [1, 3]}),
        ("challenge-no-version", 1, {**challenge, "versions": []}),
        ("challenge-nonce", 1, {**challenge, "nonce": "0"}),
        ("welcome", 2, welcome),
        ("welcome-other-feature", 2, {**welcome, "features": ["later"]}),
        ("welcome-no-port", 2, {**welcome, "data_port": None}),
        ("welcome-port-true", 2, {**welcome, "data_port": True}),
        ("welcome-port-65536", 2, {**welcome, "data_port": 65_536}),
    ):
        yield name, bytes([role]) + json.dumps(fields).encode() + _PROOF
    yield "deep", b"\0" + b"[" * 500 + _PROOF
    yield "long-number", b'\0{"nonce":' + b"9" * 800 + b"}" + _PROOF
    yield "not-utf-8", b'\0{"nonce":"\xff"}' + _PROOF


def _preface() -> Seeds:
    genuine = encode_preface(bytes(8), SECRET, 7)
    yield "genuine", genuine
    yield "forged", genuine[:-1] + bytes([genuine[-1] ^ 1])
    yield "other-magic", b"GET " + genuine[4:]
    yield "ids-in-order", genuine + b"".join(n.to_bytes(8) for n in range(8))
    yield "ids-again", genuine + b"".join(n.to_bytes(8) for n in (5, 5, 3, 100, 5, 36, 37, (1 << 64) - 1, 1))


def _http_check() -> Seeds:
    yield "ok", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    yield "hints", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 503 Service Unavailable\r\n\r\n"
    yield "bare-lines", b"HTTP/1.0 204\nX: y\n\n"
    yield "no-http", b"220 mail ESMTP\r\n"
    yield "odd-status", b"HTTP/1.1 999 \r\n\r\n"


def _proxy_headers() -> Seeds:
    target = ("10.0.0.1", 80)
    for name, address in {"ipv4": ("192.0.2.7", 4711), "ipv6": ("2001:db8::7", 4711)}.items():
        for version in (ProxyVersion.V1, ProxyVersion.V2):
            yield f"{version.value}-{name}", encode_header(version, pack_address(address), target, b"id-1") + b"GET /"
    for version in (ProxyVersion.V1, ProxyVersion.V2):
        yield f"{version.value}-unknown", encode_header(version, b"", target, b"")
    checked = SIGNATURE + b"\x21\x11\0\x13" + bytes(12) + b"\3\0\4" + bytes(4)
    yield "v2-checksum", checked[:-4] + crc32c(checked).to_bytes(4)
    yield "v2-unix", SIGNATURE + b"\x21\x31\0\xd8" + bytes(216)
    yield "v1-longest", b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n"


def _networks() -> Seeds:
    yield "mixed", b"10.0.0.0/8, 192.0.2.7 2001:db8::/32,::ffff:198.51.100.0/120"
    yield "nested", b"0.0.0.0/0,10.0.0.0/8,10.1.0.0/16,::/0"
    yield "host-bits", b"10.0.0.1/8"
    yield "none", b"none"


def _rates() -> Seeds:
    yield "bits", b"100mbit"
    yield "bits-per-second", b" 1.5 Gbit/s"
    yield "bytes", b"10MB/s"
    yield "binary", b"0.5GiB/s"
    yield "ambiguous", b"10Mb"
    yield "zero", b"0kbit"
    yield "none", b"none"


def _records() -> Seeds:
    writer = RecordWriter(LinkKeys(SECRET), 7, 0, RecordDirection.TO_SERVER)
    sealed = []
    for content in RECORD_CONTENTS:
        record = bytearray(HEADER_BYTES) + content + bytes(1 + TAG_BYTES)
        writer.seal(memoryview(record), 0, len(content))
        sealed.append(bytes(record))
    end = writer.seal_end()
    yield "whole", b"\0" + b"".join(sealed) + end
    yield "byte-by-byte", b"\1" + b"".join(sealed) + end
    yield "dropped", b"\0" + sealed[0] + sealed[2] + end
    yield "repeated", b"\0" + sealed[0] + sealed[0]
    yield "cut-off", b"\x20" + b"".join(sealed)[:-1]
    yield "no-record", b"\0GET / HTTP/1.1\r\n\r\n"
    yield "after-the-end", b"\0" + b"".join(sealed) + end + end


def _lanes() -> Seeds:
    opened = encode_lane_frame(1, LaneKind.OPEN, pack_address(("192.0.2.1", 40000)))
    content = encode_lane_frame(1, LaneKind.DATA, b"first") + encode_lane_frame(1, LaneKind.DATA, b"x" * 200)
    end = encode_lane_frame(1, LaneKind.END)
    credit = encode_lane_frame(1, LaneKind.CREDIT, CREDIT.pack(16384))
    yield "whole", b"\0" + opened + content + end
    yield "byte-by-byte", b"\1" + opened + content + end
    yield (
        "two-lanes",
        b"\0" + opened + encode_lane_frame(2, LaneKind.OPEN) + content + encode_lane_frame(2, LaneKind.RESET),
    )
    yield "credit", b"\x20" + opened + credit + encode_lane_frame(0, LaneKind.CREDIT, CREDIT.pack(1))
    yield "after-the-end", b"\0" + opened + end + content
    yield "cut-off", b"\x20" + opened + content[:-1]
    yield "unknown", b"\0" + opened + b"\0\0\0\1\x07\0\0"
    yield "last", b"\0" + encode_lane_frame(0, LaneKind.LAST) + opened
    yield "moved", b"\0" + opened + content + encode_lane_frame(1, LaneKind.MOVED, bytes(7) + b"\x09")
    yield "of-the-egress", b"\1" + encode_lane_frame(1, LaneKind.WANTED) + encode_lane_frame(1, LaneKind.FAILED, b"why")


def _datagrams() -> Seeds:
    stream = encode_datagrams((b"first", b"", b"x" * 300, b"last"))
    yield "whole", b"\0" + stream
    yield "byte-by-byte", b"\1" + stream
    yield "cut-off", b"\x20" + stream[:-1]
    yield "too-long", b"\0" + stream + b"\xff\xff"


def _link_datagrams() -> Seeds:
    sealer = DatagramSealer(bytes(8), SECRET, RecordDirection.TO_SERVER)
    contents = encode_probe(0, is_usable=False, size=90), encode_flow_header(7) + b"question"
    yield "contents", b"".join(bytes([len(each)]) + each for each in (*contents, b"", b"\2" + bytes(8)))
    sealed = [sealer.seal(each) for each in contents]
    yield "forged", b"".join(bytes([len(each)]) + each[:-1] + b"?" for each in sealed)
    yield "cut-off", b"".join(bytes([len(each) - 1]) + each[:-1] for each in sealed)


def _broker_packets() -> Seeds:
    plain, retained = b"\x30\x06\x00\x01a\x00bc", b"\x31\x0b\x00\x01a\x05\x02\x00\x00\x00\x09b"
    acknowledged, answer = b"\x32\x07\x00\x01a\x00\x07bc", b"\xd0\x00"
    yield "messages", b"\x09" + plain + acknowledged + retained + answer
    yield "disconnect", b"\x05" + plain + b"\xe0\x02\x8e\x00" + plain
    yield "too-long", b"\x05" + acknowledged + b"\x30\x80\x80\x80\x64" + bytes(20)
    yield "malformed", b"\xff" + b"\x30\x08\x00\x01a\xff\xff\xff\xff\xff" + plain


def _mqtt() -> Seeds:
    run, topics = DaemonRun("a-instance", "boot-2", NOW), HostTopics("edge-1")
    moment = format_timestamp(NOW)
    at_home = stopped_snapshot("web", make_spec(parse_url("server://127.0.0.1:10101/127.0.0.1:8080")))
    seen = {**at_home.as_json(), "since": moment}
    daemon = DaemonInfo(
        generation=1,
        pid=1,
        config=ConfigStatus(path="tunnels.yaml", ok=True, loaded_at=moment),
        version="1",
        host="edge-1",
        read_only=False,
        started_at=moment,
    )
    info = replace(
        InfoPayload.of_run(run, daemon, moment, tunnels=1, commands=True, discovery=None),
        bytes_today=1 << 30,
        bytes_month=1 << 40,
    )
    state = StatePayload(seen, run.boot, 1, moment).as_json()
    command, web = topics.of(COMMAND), topics.of(STATE, "web")
    messages: tuple[tuple[str, str, Mapping[str, object]], ...] = (
        ("birth", topics.of(STATUS), StatusPayload.of_run(run, moment, online=True).as_json()),
        ("will", topics.of(STATUS), StatusPayload.of_run(run, moment, online=False).as_json()),
        ("info", topics.of(INFO), info.as_json()),
        ("state", web, state),
        ("state-linked", web, {**state, "link": "6f1c", "state": "up", "direction": "reverse"}),
        ("state-bare", web, {k: v for k, v in state.items() if k not in {"reason", "worker"}}),
        ("state-strange-name", topics.of(STATE, "a/b +#"), {**state, "name": "a/b +#"}),
        ("stats", topics.of(STATS, "web"), StatsPayload(seen, run.boot, moment).as_json()),
        ("command", command, {"v": 1, "id": "c1", "op": "restart", "target": "web", "timeout": 3}),
        ("command-reload", command, {"v": 1, "id": "c2", "op": "reload", "reply": "me", "boot": "boot-1"}),
        ("command-exp", command, {"v": 1, "id": "c3", "op": "stop", "target": "*", "exp": moment}),
        ("command-exp-number", command, {"v": 1, "id": "c4", "op": "stop", "target": "*", "exp": NOW + 9}),
        ("answer", topics.of(RESPONSE, "me"), ResponsePayload("c1", {"name": "web"}).as_json()),
    )
    for name, topic, payload in messages:
        yield name, topic.encode() + b"\0" + payloads.encode(payload)
    yield "taken-back", topics.of(STATUS).encode() + b"\0"
    yield "other-topic", b"nodepass-orch/v2/x/status\0{}"
    yield "payload-alone", payloads.encode(state)
    yield "exp-without-end", b'{"v":1,"id":"c5","op":"stop","target":"*","exp":1' + b"0" * 400 + b"}"
    yield "exp-not-a-number", b'{"v":1,"id":"c6","op":"stop","target":"*","exp":NaN}'
    yield "deep", b'{"v":' + b"[" * 1500


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """Yield target, name and content of every encoded input."""
    for target, made in (
        ("frames", _frames()),
        ("handshake", _handshake()),
        ("preface", _preface()),
        ("records", _records()),
        ("lanes", _lanes()),
        ("datagrams", _datagrams()),
        ("link_datagrams", _link_datagrams()),
        ("proxy_header", _proxy_headers()),
        ("networks", _networks()),
        ("rates", _rates()),
        ("mqtt", _mqtt()),
        ("broker_packets", _broker_packets()),
        ("http_check", _http_check()),
    ):
        for name, data in made:
            yield target, name, data


def main() -> None:
    """Write the encoded inputs into the corpus."""
    for target, name, data in seeds():
        file = CORPUS / target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


if __name__ == "__main__":
    main()
