"""What a server lets clients publish, what a client asks for, and how the handshake carries it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tunnel.test_handshake import CERTIFICATE, KEY, Exchange, server_of
from tunnel.model.address import Address
from tunnel.model.errors import InvalidValueError, UrlError
from tunnel.model.limits import ConfiguredLimits
from tunnel.model.options import make_spec
from tunnel.model.publishing import (
    PortRange,
    PublishRule,
    PublishType,
    is_publishable_name,
    parse_port_range,
)
from tunnel.model.spec import PUBLISH, DataTls, Mode
from tunnel.model.url import parse_url
from tunnel.protocol.errors import ProtocolError
from tunnel.protocol.handshake import ClientHandshake
from tunnel.protocol.handshake_messages import Hello

BASE = Path()
PUBLISH_TYPE = PublishType()


@given(st.integers(1, 65_535), st.integers(1, 65_535))
def test_a_range_of_ports_contains_its_ends(one: int, other: int) -> None:
    first, last = sorted((one, other))
    ports = parse_port_range(f"{first}-{last}")
    assert first in ports
    assert last in ports
    assert first - 1 not in ports
    assert last + 1 not in ports
    assert parse_port_range(str(ports)) == ports
    assert parse_port_range(str(first)) == PortRange(first, first)


@pytest.mark.parametrize("text", ["", "0", "65536", "9-8", "1-", "-1", "a", "1-2-3", "0-5", "1-65536", "٣"])
def test_what_is_no_range_of_ports_is_refused(text: str) -> None:
    with pytest.raises(InvalidValueError, match="is not a port or a range of ports"):
        parse_port_range(text)


@pytest.mark.parametrize(
    ("host", "wanted", "is_permitted"),
    [
        ("0.0.0.0", "", True),
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "::1", False),
        ("", "::1", True),
        ("::", "127.0.0.1", True),
        ("::1", "0:0::1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("gateway", "", True),
        ("gateway", "127.0.0.1", False),
        ("0.0.0.0", "gateway", False),
    ],
)
def test_a_rule_permits_its_host_and_a_wildcard_each_address(host: str, wanted: str, *, is_permitted: bool) -> None:
    rule = PublishRule(host=host, ports=(PortRange(1, 2),), services=("*",))
    assert rule.permits_host(wanted) is is_permitted


def test_a_rule_is_for_all_keys_or_for_some() -> None:
    ports = (PortRange(8000, 8999), PortRange(9443, 9443))
    rule = PublishRule(host="::1", ports=ports, services=("team-*", "web"))
    assert str(rule) == "[::1]:8000-8999,9443 team-*,web"
    assert rule.permits_key("any")
    assert [name for name in ("team-a", "web", "webs", "Team-a") if rule.permits_service(name)] == ["team-a", "web"]
    assert [port for port in (7999, 8000, 9000, 9443) if rule.permits_port(port)] == [8000, 9443]
    some = PublishRule(host="", ports=ports, services=("*",), keys=("a",))
    assert some.permits_key("a")
    assert not some.permits_key("b")


@pytest.mark.parametrize(
    ("value", "address", "text"),
    [
        (8080, Address("", 8080), "8080"),
        (" 8080 ", Address("", 8080), "8080"),
        (":8080", Address("", 8080), "8080"),
        ("192.0.2.1:80", Address("192.0.2.1", 80), "192.0.2.1:80"),
        ("[::1]:80", Address("::1", 80), "[::1]:80"),
    ],
)
def test_a_client_asks_for_a_port_or_an_address(value: object, address: Address, text: str) -> None:
    assert PUBLISH_TYPE.parse(value, BASE) == address
    assert PUBLISH_TYPE.format(address) == text
    assert PUBLISH_TYPE.parse(text, BASE) == address


@pytest.mark.parametrize(
    "value", [True, None, "", "nothing", "0", "99999", "host:80", "1.2.3.4", "::1:80", "224.0.0.1:80"]
)
def test_what_is_no_address_of_a_server_is_refused(value: object) -> None:
    with pytest.raises(InvalidValueError, match=r"not a port|is not a port from 1"):
        PUBLISH_TYPE.parse(value, BASE)


def test_a_client_may_say_that_it_publishes_nothing() -> None:
    assert PUBLISH_TYPE.parse("None", BASE) is None
    assert PUBLISH_TYPE.format(None) == "none"


def test_only_simple_names_are_published() -> None:
    assert all(map(is_publishable_name, ("a", "team-web", "1.2_3")))
    assert not any(map(is_publishable_name, ("", ".", "..", "-a", "a/b", "a b", "a\n", "é")))


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("server://:1/127.0.0.1:2?service=a&publish=80", "publish=PORT is an option of a client"),
        ("client://h:1/127.0.0.1:2?publish=80", "publish needs a service="),
        ("client://h:1/127.0.0.1:2?service=a&publish=80&mode=forward", "which mode=forward does not do"),
    ],
)
def test_publish_that_cannot_work_is_refused(url: str, fault: str) -> None:
    with pytest.raises(UrlError, match=fault):
        make_spec(parse_url(url))


def test_a_client_that_publishes_wants_the_feature() -> None:
    spec = make_spec(parse_url("client://h:1/127.0.0.1:2?service=a&publish=80"))
    assert PUBLISH in spec.features
    assert spec.publish == Address("", 80)
    assert PUBLISH not in make_spec(parse_url("client://h:1/127.0.0.1:2?service=a")).features


@pytest.mark.parametrize("text", ["server://k@0.0.0.0:1", "server://k@0.0.0.0:1/"])
def test_only_a_server_that_lets_clients_publish_needs_no_target(text: str) -> None:
    url = parse_url(text, needs_target=False)
    assert not url.has_target
    assert url.masked() == "server://***@0.0.0.0:1"
    assert parse_url("server://:1/:2", needs_target=False).has_target
    with pytest.raises(UrlError, match="the target address is missing"):
        parse_url(text)


def hello_fields() -> dict[str, object]:
    hello = Hello.decode(_a_hello().encode())
    return dict(json.loads(hello.encode()))


def _a_hello(publish: Address | None = None) -> Hello:
    return Hello(
        version=2, nonce="ab" * 32, service="s", instance="i", auth="key", mode=Mode.AUTO, tls=DataTls.ENCRYPTED,
        bounds=ConfiguredLimits(), publish=publish,
    )  # fmt: skip


def test_the_greeting_contains_what_the_client_publishes() -> None:
    for address in (None, Address("", 8080), Address("::1", 8080)):
        assert Hello.decode(_a_hello(address).encode()).publish == address
    assert "publish" not in hello_fields()


@pytest.mark.parametrize("value", [None, 8080, "", "0", "host:80", "x" * 81])
def test_a_greeting_with_another_address_is_refused(value: object) -> None:
    payload = json.dumps({**hello_fields(), "publish": value}).encode()
    with pytest.raises(ProtocolError, match="a greeting without a valid publish"):
        Hello.decode(payload)


def test_a_server_that_ignores_what_is_published_is_refused() -> None:
    client = ClientHandshake(KEY, "", CERTIFICATE, features=(PUBLISH,))
    with pytest.raises(ProtocolError, match="the server lets no client publish on this port"):
        Exchange(client=client).complete()


def test_a_server_knows_before_the_proof_whether_a_client_publishes() -> None:
    server = server_of()
    assert not server.wants_publishing
    server.receive_hello(_a_hello().encode())
    assert not server.wants_publishing
    server = server_of()
    server.receive_hello(_a_hello(Address("", 1)).encode())
    assert server.wants_publishing
