from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given

from tests.support.strategies import loopback, recognisable_keys
from tunnel.model.address import Address
from tunnel.model.combinations import check_combinations
from tunnel.model.errors import UrlError
from tunnel.model.keys import Key
from tunnel.model.options import make_spec
from tunnel.model.servers import ServerShare
from tunnel.model.url import parse_url


@given(recognisable_keys)
def test_no_way_of_printing_a_key_shows_its_secret(secret: str) -> None:
    key = Key(secret)
    shown = [repr(key), str(key), f"{key}", f"{key!r:>40}", repr([key]), repr({"key": key}), "%s" % key]  # noqa: UP031  every way there is
    assert not any(secret in text for text in shown)
    assert not hasattr(key, "__dict__")
    assert key.reveal() == secret


def test_keys_can_be_pickled_and_compared() -> None:
    key = Key("a secret")
    for other in (copy.deepcopy(key), pickle.loads(pickle.dumps(key)), Key("a secret")):  # noqa: S301  our own bytes
        assert other == key
        assert hash(other) == hash(key)
    assert key != Key("another")
    assert key != "a secret"


def test_an_empty_key_is_rejected() -> None:
    with pytest.raises(ValueError, match="empty"):
        Key("")


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "0:0:0:0:0:0:0:0"])
def test_wildcard_addresses_mean_every_interface(host: str) -> None:
    assert Address(host, 1).is_wildcard
    assert not Address(host, 1).is_loopback


@given(loopback)
def test_loopback_addresses_are_reachable_from_this_host_only(host: str) -> None:
    assert Address(host, 1).is_loopback
    assert not Address(host, 1).is_wildcard


@pytest.mark.parametrize(
    ("text", "exposed"),
    [
        ("server://127.0.0.1:1/127.0.0.1:2", False),
        ("server://[::1]:1/localhost:2", False),
        ("server://key@0.0.0.0:1/0.0.0.0:2", False),
        ("server://0.0.0.0:1/127.0.0.1:2", True),
        ("server://127.0.0.1:1/:2", True),
        ("client://server-host:1/127.0.0.1:2", True),
    ],
)
def test_a_tunnel_without_a_key_is_exposed_unless_it_is_on_loopback(text: str, *, exposed: bool) -> None:
    assert make_spec(parse_url(text)).is_exposed is exposed


def test_each_role_has_its_own_cooldown() -> None:
    options = "server_cooldown=3s&client_cooldown=4s"
    assert make_spec(parse_url(f"server://a:1/b:2?{options}")).cooldown == 3.0
    assert make_spec(parse_url(f"client://a:1/b:2?{options}")).cooldown == 4.0


def test_a_spec_can_be_pickled_with_its_key() -> None:
    spec = make_spec(parse_url("server://secret@127.0.0.1:1/[::1]:2?report_interval=1s"))
    again = pickle.loads(pickle.dumps(spec))  # noqa: S301  our own bytes
    assert again == spec
    assert again.key.reveal() == "secret"


def test_shares_of_servers_need_a_client_that_accepts_visitors() -> None:
    plain = make_spec(parse_url("client://a:1,b:2/127.0.0.1:3?mode=reverse"))
    first, second = plain.tunnels
    check_combinations(dataclasses.replace(plain, server_shares=(ServerShare(first), ServerShare(second))))
    for share in (ServerShare(second, weight=3), ServerShare(second, is_backup=True)):
        with pytest.raises(UrlError, match="remove weight and backup, or write mode=forward"):
            check_combinations(dataclasses.replace(plain, server_shares=(ServerShare(first), share)))


@pytest.mark.parametrize(
    ("weight", "is_backup", "text"),
    [(1, False, "a:1"), (3, False, "a:1 weight 3"), (0, True, "a:1 weight 0 backup"), (1, True, "a:1 backup")],
)
def test_a_server_is_shown_with_its_share(weight: int, text: str, *, is_backup: bool) -> None:
    (address,) = make_spec(parse_url("client://a:1/127.0.0.1:3")).tunnels
    assert str(ServerShare(address, weight, is_backup)) == text
