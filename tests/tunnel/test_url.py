from __future__ import annotations

import pickle
import re
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.strategies import addresses, recognisable_keys, urls
from tunnel.model.address import Address, parse_address
from tunnel.model.errors import UrlError
from tunnel.model.keys import Key
from tunnel.model.spec import Role
from tunnel.model.url import TunnelUrl, looks_like_url, parse_url

SEED_URLS = [
    "server://10.1.0.1:10101/10.1.0.1:8080?log=debug",
    "server://0.0.0.0:10101/0.0.0.0:8080?log=debug",
    "server://0.0.0.0:10101/0.0.0.0:8080",
    "client://10.1.0.1:10101/127.0.0.1:8080?log=warn",
    "client://server-host:10101/0.0.0.0:8080",
    "client://server-host:10101/0.0.0.0:8080?log=debug",
    "server://0.0.0.0:10101/internal-web:3000",
    "client://server-host:10101/0.0.0.0:3000",
    "server://0.0.0.0:10101/db-server:5432",
    "client://server-host:10101/0.0.0.0:5432",
    "server://0.0.0.0:10101/api-gateway:8080",
    "server://0.0.0.0:10101/backend:8080",
    "client://nodepass-server:10101/0.0.0.0:8080",
    "server://0.0.0.0:10101/web-app:3000?log=debug",
    "server://0.0.0.0:10101/app:8080",
    "server://0.0.0.0:10101/service:8080",
]
"""Every URL in the description of the original program."""


@given(urls())
def test_a_formatted_url_parses_to_the_same_parts(url: TunnelUrl) -> None:
    again = parse_url(url.revealed())
    assert again == url
    assert again.values() == url.values()


@given(addresses)
def test_a_formatted_address_parses_to_the_same_address(address: Address) -> None:
    assert parse_address(str(address)) == address


def test_a_host_name_may_be_international() -> None:
    assert parse_address("bücher.example:80") == Address("bücher.example", 80)
    with pytest.raises(UrlError, match="neither a host name nor an IP address"):
        parse_address(f"{'ü' * 70}.example:80")


@pytest.mark.parametrize("text", SEED_URLS)
def test_the_examples_of_the_original_keep_their_text(text: str) -> None:
    url = parse_url(text)
    assert url.masked() == url.revealed() == text
    assert url.key is None


def test_a_url_is_parsed_into_its_parts() -> None:
    url = parse_url("client://k%40y@[2001:db8::1]:10101/:8080?log=warn&tls_cert=/etc/a%20b.pem")
    assert url.role is Role.CLIENT
    assert url.tunnel == Address("2001:db8::1", 10101)
    assert url.target == Address("", 8080)
    assert url.key == Key("k@y")
    assert url.values() == {"log": "warn", "tls_cert": "/etc/a b.pem"}


@pytest.mark.parametrize("key", ["a/b", "a@b", "a:b", "a#b", "/", "@@"])
def test_a_key_may_be_written_without_escapes(key: str) -> None:
    url = parse_url(f"server://{key}@h:1/t:2")
    assert url.key == Key(key)
    assert (url.tunnel, url.target) == (Address("h", 1), Address("t", 2))


def test_the_case_of_the_scheme_and_a_final_slash_do_not_matter() -> None:
    assert parse_url("SERVER://a:1/b:2/") == parse_url("server://a:1/b:2")


@pytest.mark.parametrize(
    ("text", "spot", "words"),
    [
        ("", "", "server://"),
        ("http://a:1/b:2", "http", "unknown scheme"),
        ("master://a:1/api", "master", "nodepass-orch up FILE runs all tunnels of a file"),
        ("server:/a:1/b:2", "server", "server://"),
        ("server://a:1", "", "target address is missing; write server://"),
        ("server://a:1/", "", "target address is missing; write server://"),
        ("client://a:1/", "", "target address is missing; write client://"),
        ("client:///b:2", "/b:2", "tunnel address is missing; write client://"),
        ("server:///b:2", "/b:2", "tunnel address is missing"),
        ("server://a/b:2", "a/b", "has no port"),
        ("server://a:1/b", "b", "has no port"),
        ("server://a:x/b:2", "x", "not a number from 0 to 65535"),
        ("server://a:/b:2", "/b:2", "not a number from 0 to 65535"),
        ("server://a:1/b:65536", "65536", "not a number from 0 to 65535"),
        ("server://a:1/b:-1", "-1", "not a number from 0 to 65535"),
        ("server://a:1/b:00000000099999", "00000000099999", "not a number from 0 to 65535"),
        ("server://a:1/b:" + "0" * 5000, "0" * 5000, "not a number from 0 to 65535"),
        ("server://a:1/b:٣", "٣", "not a number from 0 to 65535"),
        ("client://a:0/b:2", "a:0", "port 0"),
        ("server://::1:1/b:2", "::1:1", "[::1]:1"),
        ("server://[::1/b:2", "[::1", "[IPv6]:port"),
        ("server://[::1]/b:2", "[::1]", "[IPv6]:port"),
        ("server://[1.2.3.4]:1/b:2", "1.2.3.4", "not an IPv6 address"),
        ("server://[::1]:x/b:2", "x", "not a number from 0 to 65535"),
        ("server://300.1.1.1:1/b:2", "300.1.1.1", "not an IPv4 address"),
        ("server://1.2.3:1/b:2", "1.2.3", "not an IPv4 address"),
        ("server://a..b:1/b:2", "a..b", "neither a host name nor an IP address"),
        ("server://-a:1/b:2", "-a", "neither a host name nor an IP address"),
        ("server://a:1/b!:2", "b!", "neither a host name nor an IP address"),
        ("server://a:1/b:2,", "", "comma without a target address"),
        ("server://a:1/b:2,,c:3", ",c:3", "comma without a target address"),
        ("server://a:1/,b:2", ",b:2", "target address is missing"),
        ("server://a:1/b:2,c", "c", "has no port"),
        ("server://a:1/b:2 ", " ", "must not contain blanks"),
        ("server://a:1/\tb:2", "\t", "must not contain blanks"),
        ("server://@a:1/b:2", "@a", "empty"),
        ("server://%zz@a:1/b:2", "%zz", "%25"),
        ("server://%ff@a:1/b:2", "%ff", "UTF-8"),
        ("server://a:1/b:2?log", "log", "name=value"),
        ("server://a:1/b:2?=x", "=x", "name=value"),
        ("server://a:1/b:2?log=info&log=warn", "log=warn", "twice"),
        ("server://a:1/b:2?log=info&&mode=%", "mode", "%25"),
        ("server://a:1/b:2?log=%ff", "log", "UTF-8"),
    ],
)
def test_a_fault_is_reported_with_its_place_and_the_way_out(text: str, spot: str, words: str) -> None:
    with pytest.raises(UrlError, match=re.escape(words)) as caught:
        parse_url(text)
    assert 0 <= caught.value.offset <= len(text)
    assert text[caught.value.offset :].startswith(spot)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_a_url_longer_than_the_limit_is_rejected() -> None:
    with pytest.raises(UrlError, match="longer than"):
        parse_url("server://" + "a" * 100_000 + ":1/b:2")


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_url_error(text: str) -> None:
    for candidate in (text, f"server://{text}", f"client://a:1/{text}", f"server://a:1/b:2?{text}"):
        try:
            url = parse_url(candidate)
        except UrlError as error:
            assert str(error)  # noqa: PT017  either outcome is right
            assert 0 <= error.offset <= len(candidate)  # noqa: PT017  as above
        else:
            assert parse_url(url.revealed()) == url


@given(recognisable_keys, st.data())
def test_no_message_about_a_broken_url_contains_the_key(key: str, data: st.DataObject) -> None:
    whole = f"server://{key}@10.0.0.1:10101/db:5432?log=info&mode=auto"
    start = data.draw(st.integers(0, len(whole)))
    width = data.draw(st.integers(0, 4))
    filling = data.draw(st.text("@/:?&=%[] x1é", max_size=3))
    broken = whole[:start] + filling + whole[start + width :]
    assume("@" in broken)  # without one, nothing tells a key from a host
    try:
        shown = parse_url(broken).masked()
    except UrlError as error:
        shown = str(error)
    assert key[:12] not in shown or key not in broken
    assert key not in shown


@pytest.mark.parametrize(
    "text",
    [
        "server://{half}/{half}?{half}@h:1/t:2",
        "server://{half}:1/{half}:2?{half}@h:1/t:2",
        "server://{half}:1/t:2?{half}=x@h:1/t:2",
        "server://{half}?x@h:1/t:2",
        "{half}@server://h:1/t:2",
        "server://{half}:x/t:2?@",
    ],
)
def test_no_message_contains_a_half_of_a_key_with_a_bare_question_mark(text: str) -> None:
    half = "Zq7Wm2Rk9"
    with pytest.raises(UrlError) as caught:
        parse_url(text.format(half=half))
    assert half not in str(caught.value)


@given(recognisable_keys, urls())
def test_a_printed_url_never_contains_its_key(key: str, url: TunnelUrl) -> None:
    secret = TunnelUrl(url.role, url.tunnel, url.target, Key(key), ())
    for text in (repr(secret), str(secret), secret.masked(), f"{secret}"):
        assert key not in text
    assert "***@" in secret.masked()
    assert f"{quote(key)}@" in secret.revealed()
    assert pickle.loads(pickle.dumps(secret)).key == Key(key)  # noqa: S301  our own bytes


def test_a_text_with_a_scheme_looks_like_a_url() -> None:
    assert looks_like_url("server://x")
    assert looks_like_url("http://x")
    assert not looks_like_url("tunnels.yaml")


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("[fe80::1%eth0]:80", "fe80::1%eth0"),
        ("[fe80::1%25eth0]:80", "fe80::1%eth0"),
        ("[::ffff:127.0.0.1]:80", "127.0.0.1"),
        ("[::ffff:7f00:1]:80", "127.0.0.1"),
        ("[::1]:80", "::1"),
    ],
)
def test_zones_and_mapped_addresses_have_one_form(text: str, host: str) -> None:
    assert parse_address(text) == Address(host, 80)
    assert parse_address(str(parse_address(text))) == Address(host, 80)


@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255", "[ff02::1]", "[::ffff:224.0.0.1]"])
def test_an_address_that_tcp_cannot_use_is_a_fault(host: str) -> None:
    with pytest.raises(UrlError, match="is a multicast or broadcast address"):
        parse_address(f"{host}:80")
