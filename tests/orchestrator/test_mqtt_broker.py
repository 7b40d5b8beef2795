"""Brokers: URL, credentials, state, and the connection with its library."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.faults import ConfigError
from orchestrator.config.load import load
from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import Broker, BrokerError, BrokerState, BrokerStatus, connection_lost
from orchestrator.mqtt.broker_socket import BrokerSocket, PacketSplitter, ReceivedMessage
from orchestrator.mqtt.connection_report import ConnectionReporter, RetryPolicy
from orchestrator.mqtt.session import BrokerClient, ReceiveBuffer, RefusedPublication
from orchestrator.mqtt.topics import STATE, HostTopics
from orchestrator.supervisor.event_bus import EventBus
from tests.support.openapi import api_document
from tests.support.scale import GUARD_S, time_allowed
from tests.tunnel.test_connect_race import Blackhole

if TYPE_CHECKING:
    from tunnel.model.address import Address
    from tunnel.runtime.resolver import Candidate

NOW = 1_800_000_000.0
CONNACK = b"\x20\x03\x00\x00\x00"
MALFORMED = b"\x00\xff\xff\xff\xff\xff"


def test_a_url_gives_address_and_credentials() -> None:
    broker = Broker.from_url("mqtts://edge%2F1:p%40ss%3A@broker")
    assert (broker.host, broker.port, broker.is_tls) == ("broker", 8883, True)
    assert (broker.username, broker.password) == ("edge/1", "p@ss:")
    assert "p@ss" not in f"{broker} {broker!r}"
    assert str(broker) == "mqtts://broker:8883"
    assert str(Broker.from_url("mqtt://[::1]")) == "mqtt://[::1]:1883"
    assert Broker.from_url("mqtt://u@b", username="other", password="p").username == "u"


@pytest.mark.parametrize("url", ["", "broker", "http://b", "mqtt://", "mqtt://b:0", "mqtt://b:x", "mqtt://b/path",
                                 "mqtt://b?x=1", "mqtt://u:p@ss/word@b"])  # fmt: skip
def test_other_urls_are_rejected_without_showing_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="write mqtt://") as error:
        Broker.from_url(url)
    assert "p@ss" not in str(error.value)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("s3cret\n")
    assert Broker(host="b", port=1, password_file=tmp_path / "pw").load_secrets() == ("s3cret", None)
    (tmp_path / "own.pem").write_text("")
    for broken, sentence in (
        (Broker(host="b", port=1, password_file=tmp_path / "no"), "cannot read password_file .*/no: No such file"),
        (Broker(host="b", port=1, is_tls=True, ca=tmp_path / "pw"), "cannot use the broker's ca .*/pw: "),
        (Broker(host="b", port=1, is_tls=True, cert=tmp_path / "no"), "cert .*/no: there is no such file"),
        (
            Broker(host="b", port=1, is_tls=True, cert=tmp_path / "own.pem", cert_key=tmp_path / "no"),
            "cert_key .*/no: there is no such file",
        ),
    ):
        with pytest.raises(BrokerError, match=sentence) as error:
            broken.load_secrets()
        assert error.value.state is BrokerState.FAILED


def test_the_section_of_the_file_gives_the_broker(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(
        "version: 1\nsupervisor: {mqtt: {url: 'mqtts://b', username: u, password_file: pw, ca: ca.pem, cert: c.pem, "
        "cert_key: k.pem}}\n"
    )
    settings = load(file, {}).supervisor.mqtt
    assert settings is not None
    broker = Broker.from_settings(settings, {"NODEPASS_ORCH_MQTT_PASSWORD": "unused"})
    assert (broker.username, broker.password, broker.ca) == ("u", None, tmp_path / "ca.pem")
    assert (broker.cert, broker.cert_key) == (tmp_path / "c.pem", tmp_path / "k.pem")
    without = settings.model_copy(update={"password_file": None})
    assert Broker.from_settings(without, {"NODEPASS_ORCH_MQTT_PASSWORD": "used"}).password == "used"


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("url: mqtts://b, cert_key: k.pem", "cert_key: needs cert:"),
        ("url: mqtt://b, password_file: p", "password_file: needs username:"),
        ("url: mqtt://b, cert: c.pem", "cert: needs TLS, and the url has none; write mqtts://"),
        ("url: mqtt://b, discovery_prefix: nodepass-orch/x", "a discovery prefix is a topic such as homeassistant"),
        ("url: mqtt://b, discovery_prefix: a/#", "no wildcards"),
        ("url: mqtt://b, discovery: perhaps", "write true or false"),
    ],
)
def test_a_contradictory_section_is_a_fault_with_its_position(tmp_path: Path, section: str, why: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(f"version: 1\nsupervisor:\n  mqtt: {{{section}}}\n")
    with pytest.raises(ConfigError) as error:
        load(file, {})
    (fault,) = error.value.faults
    assert why in fault.message
    assert fault.place.line == 3


async def test_a_broker_that_hangs_up_once_is_not_treated_as_version_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.mqtt.session.STEP_TIMEOUT_S", 10 * GUARD_S)
    versions: list[int] = []
    connack = b""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        versions.append((await reader.readexactly(9))[8])
        if connack:
            writer.write(connack)
            await reader.read()
        writer.close()

    async def lose_logins(times: int) -> None:
        for _ in range(times):
            with pytest.raises(BrokerError, match="does not answer as an MQTT broker") as error:
                async with client.session():
                    pass
            assert error.value.state is BrokerState.REFUSED

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        client = BrokerClient(Broker(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
        began = time.monotonic()
        await lose_logins(4)
        assert versions == [5, 5, 4, 5]
        connack = b"\x20\x03\x00\x00\x00"
        async with client.session():
            pass
        connack = b""
        await lose_logins(4)
        assert versions[5:] == [5, 5, 5, 5], "it is known to speak version 5"
    assert time.monotonic() - began < GUARD_S, "each loss is noticed at once, not after the timeout for CONNACK"


def test_the_status_keeps_the_time_of_the_last_change_of_state() -> None:
    now = [NOW]
    status = BrokerStatus(lambda: now[0])
    first = status.info("mqtt://broker", "edge-1")
    assert (first.state, first.reason) == ("connecting", None)
    now[0] += 5
    assert status.set_state(BrokerState.REFUSED, "not allowed")
    assert not status.set_state(BrokerState.REFUSED, "not allowed")
    now[0] += 5
    assert status.set_state(BrokerState.REFUSED, "neither")
    shown = status.info("mqtt://broker", "edge-1")
    assert (shown.state, shown.reason) == ("refused", "neither")
    assert payloads.parse_timestamp(shown.since) == NOW + 5, "another reason is not another state"
    assert status.set_state(BrokerState.ONLINE)
    assert status.is_online
    described = api_document()["components"]["schemas"]["Broker"]["properties"]["state"]["enum"]
    assert described == ["off", *(state.value for state in BrokerState)]


async def test_the_addresses_of_a_broker_race(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.closing(Blackhole()) as silent:
        candidates = [(socket.AF_INET, one.getsockname()) for one in (silent.listener, listener)]

        async def resolve(_: Address) -> list[Candidate]:
            return candidates

        monkeypatch.setattr("tunnel.runtime.resolver.resolve", resolve)
        monkeypatch.setattr("tunnel.runtime.sockets.is_loopback", lambda _: False)
        began = time.monotonic()
        connection = await BrokerSocket.connect(Broker(host="broker", port=1883), None)
        assert time.monotonic() - began < time_allowed(1), "not only after the first address has timed out"
        await connection.close()


# --- the packets of a broker ------------------------------------------------------------------------------------------

PUBLISH = b"\x32\x07\x00\x01a\x00\x07bc"  # with QoS 1
LONG_PUBLISH = b"\x32\xc8\x01" + bytes(200)


def feed(chunks: list[bytes]) -> tuple[bytes, int | None]:
    packets = PacketSplitter(lambda _: None, is_v5=True)
    return b"".join(map(packets.feed, chunks)), packets.code


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(st.lists(st.sampled_from([PUBLISH, LONG_PUBLISH, b"\xd0\x00"]), max_size=6), st.integers(1, 60))
def test_packets_for_the_library_pass_unchanged_however_they_are_cut(packets: list[bytes], size: int) -> None:
    data = b"".join(packets)
    assert feed(cut(data, size)) == (data, None)


@pytest.mark.parametrize(("disconnect", "code"), [(b"\xe0\x00", 0), (b"\xe0\x02\x8e\x00", 142)])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_disconnect_is_withheld_with_its_reason_code(disconnect: bytes, code: int, size: int) -> None:
    data = PUBLISH + LONG_PUBLISH + disconnect
    assert feed(cut(data, size)) == (PUBLISH + LONG_PUBLISH, code)


@pytest.mark.parametrize("first", [b"\x30", b"\x32"])
def test_a_malformed_length_is_passed_on_for_the_library_to_reject(first: bytes) -> None:
    malformed = first + b"\xff\xff\xff\xff\xff"
    assert feed([malformed, b"\xe0\x00"]) == (malformed + b"\xe0\x00", None)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("first", [b"\x30", b"\x32"])
def test_a_packet_that_is_too_long_is_withheld(first: bytes, size: int) -> None:
    packets = PacketSplitter(lambda _: None, is_v5=True)
    data = PUBLISH + first + b"\x80\x80\x80\x64" + bytes(2000)  # 209 million bytes
    passed = b"".join(map(packets.feed, cut(data, size)))
    assert (passed, packets.excess) == (PUBLISH, 100 << 21)


def publish_packet(sent: ReceivedMessage, properties: bytes) -> bytes:
    body = len(sent.topic.encode()).to_bytes(2, "big") + sent.topic.encode() + properties + sent.payload
    length = b""
    for shift in range(0, 28, 7):
        rest = len(body) >> shift
        length += bytes([rest & 0x7F | (0x80 if rest > 0x7F else 0)])
        if rest <= 0x7F:
            break
    return bytes([0x30 | sent.retain]) + length + body


sent_messages = st.builds(
    ReceivedMessage,
    st.text(st.characters(exclude_characters="+#", exclude_categories=["Cs"]), min_size=1, max_size=9),
    st.binary(max_size=9) | st.sampled_from([b"x" * 127, b"y" * 20_000]),
    st.booleans(),
)


packets_of_a_broker = st.lists(sent_messages | st.sampled_from([PUBLISH, b"\xd0\x00"]), max_size=6)


@given(packets=packets_of_a_broker, size=st.integers(1, 200), is_v5=st.booleans())
def test_messages_with_qos_0_are_delivered_and_the_rest_is_for_the_library(
    packets: list[ReceivedMessage | bytes], size: int, *, is_v5: bool
) -> None:
    received: list[ReceivedMessage] = []
    splitter = PacketSplitter(received.append, is_v5=is_v5)
    properties = b"\x05\x02\x00\x00\x00\x09" if is_v5 else b""
    data = b"".join(one if isinstance(one, bytes) else publish_packet(one, properties) for one in packets)
    passed = b"".join(map(splitter.feed, cut(data, size)))
    assert received == [one for one in packets if not isinstance(one, bytes)]
    assert passed == b"".join(one for one in packets if isinstance(one, bytes))


@pytest.mark.parametrize(
    "malformed",
    [b"\x30\x00", b"\x30\x01\x00", b"\x30\x02\x00\x00", b"\x30\x03\x00\x01a", b"\x30\x04\x00\x01a\x01",
     b"\x30\x04\x00\x01\xff\x00", b"\x30\x04\x00\x01#\x00", b"\x30\x04\x00\x01+\x00", b"\x30\x05\x00\x09abc",
     b"\x30\x08\x00\x01a\xff\xff\xff\xff\xff", b"\x34\x04\x00\x01a\x00", b"\x38\x04\x00\x01a\x00"],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 1000])
def test_messages_that_are_malformed_are_for_the_library_to_reject(malformed: bytes, size: int) -> None:
    received: list[ReceivedMessage] = []
    splitter = PacketSplitter(received.append, is_v5=True)
    passed = b"".join(map(splitter.feed, cut(PUBLISH + malformed + PUBLISH, size)))
    assert (passed, received) == (PUBLISH + malformed + PUBLISH, [])


@given(chunks=st.lists(st.binary(max_size=40), max_size=6), is_v5=st.booleans())
def test_random_bytes_are_passed_on_delivered_or_withheld(chunks: list[bytes], *, is_v5: bool) -> None:
    splitter = PacketSplitter(lambda _: None, is_v5=is_v5)
    assert sum(map(len, map(splitter.feed, chunks))) <= sum(map(len, chunks))


@pytest.mark.parametrize(
    ("code", "why"),
    [(139, "it is shutting down"), (149, "raise its limit of the packet size"), (151, "quota"), (152, "administrator"),
     (155, "QoS 1"), (222, "closed the connection: reason code 222")],
)  # fmt: skip
def test_the_reason_of_a_disconnect_is_told(code: int, why: str) -> None:
    error = connection_lost(Broker(host="broker", port=1883), code)
    assert why in str(error)
    assert f"reason code {code}" in str(error)


def test_a_broker_that_ends_connections_for_one_reason_is_asked_ever_more_seldom() -> None:
    policy = RetryPolicy(lambda _, high: high)
    broker = Broker(host="broker", port=1883)
    same = [policy.delay_after_error(connection_lost(broker, 149), 1.0, was_online=True) for _ in range(12)]
    assert same[0] < 2
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(same[1:8]))
    assert 300 <= max(same) < 311
    assert policy.delay_after_error(connection_lost(broker, 139), 1.0, was_online=True) < 11
    policy.delay_after_error(connection_lost(broker, 139), 1.0, was_online=True)
    assert policy.delay_after_error(connection_lost(broker, 139), 100.0, was_online=True) < 1, "it worked for a while"
    lost = [policy.delay_after_error(connection_lost(broker), 1.0, was_online=True) for _ in range(5)]
    assert max(lost) < 2, "a broker that restarts gives no reason"


def test_topics_that_the_broker_refuses_are_reported_until_it_accepts_them() -> None:
    bus, told = EventBus(), list[str]()
    bus.subscribe(lambda event: told.append(event.text))
    reporter = ConnectionReporter(bus, Broker(host="broker", port=1883, username="edge"), "edge")
    reporter.report_online()
    topics = [HostTopics("edge").of(STATE, name) for name in ("a", "b")]
    reporter.report_publications(topics, [RefusedPublication(topic, 135) for topic in topics])
    info = reporter.info()
    assert info.state == "refused"
    assert info.reason is not None
    for words in ("user 'edge' to write nodepass-orch/v1/edge/t/a/state and 1 other topic", "(reason code 135)"):
        assert words in info.reason
    reporter.report_publications(topics, [RefusedPublication(topic, 135) for topic in topics])
    assert [text for text in told if "to write" in text] == told[1:], "it is logged once"
    assert len(told) == 2
    reporter.report_publications(topics[:1], [None])
    assert reporter.info().state == "refused"
    reporter.report_publications(topics, [None, None])
    assert (reporter.info().state, reporter.info().reason) == ("online", None)
    discovery = [f"homeassistant/sensor/tunnel-{number}/config" for number in range(50)]
    reporter.report_publications(discovery, [RefusedPublication(topic, 151) for topic in discovery])
    assert "homeassistant/sensor/tunnel-0/config and 49 other topics: a quota is exceeded" in str(
        reporter.info().reason
    )
    assert len(told) == 3, "one line for all topics of the discovery"


async def test_a_loss_right_after_connack_is_noticed_at_once() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(9)
        writer.write(b"\x20\x03\x00\x00\x00\xe0\x02\x8e\x00")
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        client = BrokerClient(Broker(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
        with pytest.raises(BrokerError, match="another program uses our client id") as error:
            async with asyncio.timeout(GUARD_S), client.session():
                await asyncio.Event().wait()
        assert error.value.code == 142


@pytest.mark.parametrize(
    ("answer", "later"),
    [
        (CONNACK, b""),
        (CONNACK, MALFORMED),
        (CONNACK + MALFORMED, b""),
        (b"\x20\x03\x00\x87\x00", b""),  # not authorized
    ],
)
async def test_no_error_of_the_library_is_left_for_asyncio_to_report(answer: bytes, later: bytes) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await has_session.wait()
        writer.write(later)
        await reader.read()
        writer.close()

    has_session = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        client = BrokerClient(Broker(host="127.0.0.1", port=server.sockets[0].getsockname()[1]), is_reader=True)
        with contextlib.suppress(BrokerError):
            async with asyncio.timeout(GUARD_S), client.session():
                has_session.set()
                if later or answer != CONNACK:
                    await asyncio.Event().wait()
        has_session.set()
    gc.collect()
    assert reports == []


def message(topic: str, number: int) -> aiomqtt.Message:
    return aiomqtt.Message(topic, b"%d" % number, 0, retain=False, mid=number, properties=None)


async def test_of_waiting_messages_the_newest_on_each_topic_is_kept() -> None:
    buffer = ReceiveBuffer(keep_newest_only=True)
    for number in range(5):
        for topic in ("nodepass-orch/v1/h/t/a/stats", "nodepass-orch/v1/h/event"):
            buffer.put_nowait(message(topic, number))
    assert sorted(str(one.payload) for one in await buffer.get_all()) == sorted(
        map(str, (b"0", b"1", b"2", b"3", b"4", b"4"))
    )
    assert not buffer.qsize()


async def test_a_full_buffer_rejects_messages_until_they_are_read() -> None:
    buffer = ReceiveBuffer(2, keep_newest_only=False)
    for number in range(2):
        buffer.put_nowait(message("a/state", number))
    with pytest.raises(asyncio.QueueFull):
        buffer.put_nowait(message("a/state", 2))
    assert (await buffer.get()).payload == b"0"
    buffer.put_nowait(message("a/state", 3))
    assert [one.payload for one in await buffer.get_all()] == [b"1", b"3"]
