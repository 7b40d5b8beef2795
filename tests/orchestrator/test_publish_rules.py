"""``publish:`` in the file: the rules of a server, the port of a client, and every fault at its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.faults import ConfigError
from orchestrator.config.load import load
from orchestrator.config.manifest import Manifest
from orchestrator.config.plan import diff_manifests
from tunnel.model.address import Address
from tunnel.model.publishing import PortRange, PublishRule
from tunnel.model.rate import Rate

KEY = "npk_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoNtm-wx"
OTHER = "a third key that is long enough"
HEAD = "version: 1\ntunnels:\n"


def server(publish: str, url: str = "server://0.0.0.0:10101", keys: str = "{alice: '${A}', bob: '${B}'}") -> str:
    return f"{HEAD}  gw:\n    url: {url}\n    keys: {keys}\n    publish: {publish}\n"


def read(tmp_path: Path, text: str) -> Manifest:
    file = tmp_path / "tunnels.yaml"
    file.write_text(text)
    return load(file, {"A": "a key that is long enough for this", "B": "another key, also long enough", "P": "90000"})


def faults(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    return "\n".join(f"{fault.place.line}:{fault.place.column}: {fault.message}" for fault in caught.value.faults)


def test_the_smallest_rule_has_the_host_of_the_tunnel_and_defaults(tmp_path: Path) -> None:
    [entry] = read(tmp_path, server('{ports: 8000-8999, services: "team-*"}')).entries
    [rule] = entry.spec.publish_rules
    assert rule == PublishRule(host="0.0.0.0", ports=(PortRange(8000, 8999),), services=("team-*",))
    assert entry.spec.target_text == "0.0.0.0:8000-8999"
    assert entry.url == "server://0.0.0.0:10101"


def test_rules_may_differ_by_key(tmp_path: Path) -> None:
    text = (
        "[{keys: alice, address: '::1', ports: [80, '8000-8001,9000'], services: [web, api], max_services: 3,"
        " visitors: 5, rate: 1mbit, grace: 1m30s}, {keys: [bob], address: gateway, ports: 443, services: '*'}]"
    )
    [entry] = read(tmp_path, server(text)).entries
    first, second = entry.spec.publish_rules
    assert first.ports == (PortRange(80, 80), PortRange(8000, 8001), PortRange(9000, 9000))
    assert (first.host, first.services, first.keys) == ("::1", ("web", "api"), ("alice",))
    assert (first.max_services, first.visitors, first.rate, first.grace_s) == (3, 5, Rate(1_000_000), 90.0)
    assert (second.host, second.keys) == ("gateway", ("bob",))


@pytest.mark.parametrize(
    ("publish", "fault"),
    [
        ("[]", "6:14: publish: takes a rule or a list"),
        ("[8080]", "6:15: each rule of publish is a mapping"),
        ("{ports: 80}", "6:14: a rule of publish needs services"),
        ("{services: a}", "6:14: a rule of publish needs ports"),
        ("{ports: 80, services: a, port: 1}", "6:39: unknown key 'port' in a rule of publish"),
        ("{ports: 0, services: a}", "6:22: ports: '0' is not a port or a range"),
        ("{ports: '${P}', services: a}", "ports: '${P}' is not a port or a range"),
        ("{ports: 80, services: 'a b'}", "services: 'a b' is not the name of a service"),
        ("{ports: 80, services: a, keys: carol}", "6:45: the entry has no key named 'carol'; its keys are alice, bob"),
        ("{ports: 80, services: a, address: 'a b'}", "address: 'a b' is neither an IP address nor a host"),
        ("{ports: 80, services: a, max_services: 0}", "max_services: "),
        ("{ports: 80, services: a, grace: 5}", "grace: "),
        ("{ports: 80, services: a, rate: []}", "rate takes one text"),
        ("8080", "publish=PORT is an option of a client"),
        ("x", "publish: not a port or ADDR:PORT"),
    ],
)
def test_a_fault_in_a_rule_is_reported_at_its_place(tmp_path: Path, publish: str, fault: str) -> None:
    url = "server://0.0.0.0:10101/127.0.0.1:1" if publish in {"8080", "x"} else "server://0.0.0.0:10101"
    assert fault in faults(tmp_path, server(publish, url))


RULE = "{ports: 80, services: a}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (server(RULE, "server://0.0.0.0:10101/127.0.0.1:1"), "has no target; remove it from the URL"),
        (server(RULE, "server://0.0.0.0:0"), "needs a tunnel port that is not 0"),
        (server(RULE, "server://0.0.0.0:10101?service=a"), "has no service= or mode= of its own"),
        (server(RULE + "\n    mode: reverse"), "has no service= or mode= of its own"),
        (server(RULE + "\n    targets: [db:1, db:2]"), "has no target; remove it"),
        (server(RULE[:-1] + ", rate: 1mbit}\n    proto: udp"), "6:14: rate of a rule limits TCP alone"),
        (server(RULE[:-1] + ", rate: 1mbit}\n    proto: both"), "remove it, or remove proto: both"),
        (server(RULE, "client://h:1", KEY), "publish: of a client is a port"),
        (f"{HEAD}  gw: {{url: server://0.0.0.0:1, key: {KEY}, publish: {RULE}}}", "publish: needs keys:"),
        (f"{HEAD}  gw: server://0.0.0.0:1", "the target address is missing"),
        (f"version: 1\nsupervisor: {{workers: 2}}\n{server(RULE)[11:]}", "publish: does not work with workers"),
        (f"version: 1\ndefaults: {{publish: 80}}\n{server(RULE)[11:]}", "unknown key 'publish' in defaults"),
        (
            f"{server(RULE)}  more:\n    url: server://0.0.0.0:10101\n    keys: {{c: {OTHER}}}\n    publish: {RULE}\n",
            "'gw' at tunnels.yaml:3:3 listens on 0.0.0.0:10101 already and lets clients publish; write the rules",
        ),
    ],
)
def test_an_entry_that_cannot_have_rules_is_a_fault(tmp_path: Path, text: str, fault: str) -> None:
    assert fault in faults(tmp_path, text).replace(f"{tmp_path}/", "")


def test_entries_with_services_share_the_port(tmp_path: Path) -> None:
    more = f"  web: server://{KEY}@0.0.0.0:10101/:8080?service=web\n  none: server://{KEY}@0.0.0.0:10101/:8081\n"
    assert len(read(tmp_path, server(RULE) + more).entries) == 3


def test_a_client_says_what_it_publishes_in_the_url_or_the_entry(tmp_path: Path) -> None:
    text = (
        f"{HEAD}  a: client://{KEY}@gw:10101/127.0.0.1:80?service=a&publish=8080\n"
        f"  b: {{url: 'client://gw:10101/127.0.0.1:80', key: {KEY}, service: b, publish: '0.0.0.0:81'}}\n"
    )
    assert [entry.spec.publish for entry in read(tmp_path, text).entries] == [Address("", 8080), Address("0.0.0.0", 81)]


def test_a_change_of_rules_keeps_the_engine_and_the_first_rule_needs_another(tmp_path: Path) -> None:
    none = read(tmp_path, server("", "server://0.0.0.0:10101/127.0.0.1:1").replace("    publish: \n", ""))
    one = read(tmp_path, server(RULE))
    other = read(tmp_path, server("{ports: 81, services: a}"))
    limit = read(tmp_path, server("{ports: 81, services: a, max_services: 2}"))
    assert [change.new.name for change in diff_manifests(none, one).restart] == ["gw"]
    [change] = diff_manifests(one, other).change
    assert change.texts == ("publish: 0.0.0.0:80 a → 0.0.0.0:81 a",)
    assert diff_manifests(other, limit).change[0].texts == ("publish: other keys or limits",)
