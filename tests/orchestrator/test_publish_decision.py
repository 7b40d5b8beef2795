"""Which requests of clients are granted: a function of rules, present tunnels and the request."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.address_claims import ClaimTable, address_claims
from orchestrator.config.faults import Place
from orchestrator.config.manifest import Entry
from orchestrator.supervisor.publish_decision import decide, find_rule
from tunnel.model.address import Address, parse_address
from tunnel.model.keys import Key, NamedKey
from tunnel.model.options import make_spec
from tunnel.model.publishing import PortRange, PublishRequest, PublishRule
from tunnel.model.rate import Rate
from tunnel.model.spec import Mode, Role, TunnelSpec
from tunnel.model.url import parse_url

PLACE = Place(Path("tunnels.yaml"))
KEYS = tuple(NamedKey(name, Key(f"the long key of {name}")) for name in ("alice", "bob", "carol"))
RULE = PublishRule(host="0.0.0.0", ports=(PortRange(8000, 8003),), services=("team-*",), keys=("alice", "bob"))
SPEC = TunnelSpec(
    role=Role.SERVER, tunnel=Address("0.0.0.0", 10101), target=Address("", 0), mode=Mode.REVERSE, named_keys=KEYS,
    publish_rules=(replace(RULE, max_services=2),),
)  # fmt: skip
SERVER = Entry(name="gw", spec=SPEC, tags=("t",), url="", origin=PLACE)


def file_entry(name: str, url: str, *, enabled: bool = True) -> Entry:
    return Entry(name=name, spec=make_spec(parse_url(url)), enabled=enabled, url=url, origin=PLACE)


def request(service: str = "team-a", where: str = ":8000", key: str = "alice") -> PublishRequest:
    return PublishRequest(key, service, parse_address(where))


def granted(found: Entry | str) -> Entry:
    assert isinstance(found, Entry), found
    return found


def test_a_published_tunnel_has_the_options_of_its_server_and_the_key_of_its_client() -> None:
    rule = replace(RULE, visitors=7, rate=Rate(1_000_000))
    server = replace(SERVER, spec=replace(SPEC, publish_rules=(rule,), clients=3))
    entry = granted(decide(server, request(), [server]))
    assert (entry.name, entry.publisher, entry.tags) == ("gw/team-a", "gw", ("t",))
    spec = entry.spec
    assert (spec.service, spec.target, spec.clients) == ("team-a", Address("0.0.0.0", 8000), 3)
    assert (spec.published_by, spec.named_keys, spec.publish_rules) == ("alice", KEYS[:1], ())
    assert (spec.settings.semaphore_limit, spec.rate) == (7, Rate(1_000_000))
    assert find_rule(server.spec, request()) is rule
    assert find_rule(server.spec, request(service="other")) is None


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(service="../x"), "its name may have letters, digits"),
        (request(key="carol"), "the key carol may publish nothing here"),
        (request(service="other"), "may not publish a service named other"),
        (request(where=":9000"), "may not publish team-a on port 9000"),
        (request(where="[::1]:8000"), r"may not publish team-a on \[::1\]:8000"),
        (request(service="team-file"), "the name gw/team-file is taken by a tunnel of the server's file"),
        (request(service="team-svc"), "the service team-svc is taken by a tunnel of the server's file"),
        (request(where=":8001"), "0.0.0.0:8001 is in use by a tunnel of the server's file"),
        (request(where=":8002"), "0.0.0.0:8002 is in use by another published service"),
        (request(service="team-bob", where=":8003"), "published by the client with another key"),
    ],
)
def test_a_request_is_refused_with_the_reason(asked: PublishRequest, reason: str) -> None:
    present = [
        SERVER,
        file_entry("gw/team-file", "server://:20000/:20001?service=x"),
        file_entry("svc", "server://0.0.0.0:10101/:20002?service=team-svc"),
        file_entry("port", "server://:20003/127.0.0.1:8001?mode=reverse"),
        file_entry("off", "server://:20004/127.0.0.1:8000?mode=reverse", enabled=False),
        granted(decide(SERVER, request("team-bob", ":8002", "bob"), [SERVER])),
    ]
    found = decide(SERVER, asked, present)
    assert isinstance(found, str)
    assert re.search(reason, found)
    granted(decide(SERVER, request(), present))


def test_a_revoked_key_publishes_nothing() -> None:
    server = replace(SERVER, spec=replace(SPEC, named_keys=KEYS[1:]))
    assert decide(server, request(), [server]) == "the key alice is none of gw"


def test_options_that_do_not_go_together_are_a_reason() -> None:
    server = replace(SERVER, spec=replace(SPEC, publish_rules=(replace(RULE, ports=(PortRange(10101, 10101),)),)))
    assert "the tunnel and the target have the same address" in str(decide(server, request(where=":10101"), [server]))


requests = st.builds(
    PublishRequest,
    st.sampled_from(["alice", "bob", "carol", "mallory"]),
    st.sampled_from(["team-a", "team-b", "team-c", "team-d", "other", "team-/"]),
    st.builds(Address, st.sampled_from(["", "127.0.0.1", "0.0.0.0", "::"]), st.integers(7999, 8004)),
)


@given(st.lists(requests, max_size=12))
def test_whatever_clients_ask_for_the_published_tunnels_obey_the_rules(asked: list[PublishRequest]) -> None:
    file = [SERVER, file_entry("f", "server://:1/127.0.0.1:8001?mode=reverse")]
    published: dict[str, Entry] = {}
    for each in asked:
        found = decide(SERVER, each, [*file, *published.values()])
        if isinstance(found, str):
            assert found
            continue
        before = published.get(found.name)
        assert before is None or before.spec.published_by == each.key_name
        published[found.name] = found
        assert granted(decide(SERVER, each, [*file, *published.values()])) == found, "asking again changes nothing"
    owners = [entry.spec.published_by for entry in published.values()]
    assert all(owner in {"alice", "bob"} and owners.count(owner) <= 2 for owner in owners)
    claims: ClaimTable[Entry] = ClaimTable()
    for entry in [*file, *published.values()]:
        for claim in address_claims(entry.spec):
            assert not list(claims.conflicts(claim)), claim
            claims.add(claim, entry)
    assert all(RULE.permits_port(entry.spec.target.port) for entry in published.values())
