"""``targets:`` and ``servers:`` of an entry: what is accepted, what is a fault, and what a plan says about a change."""

from __future__ import annotations

from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # the package has no types
import pytest
import yaml

from orchestrator.config.plan import diff_manifests
from orchestrator.config.schema import json_schema
from tests.orchestrator.test_config import Folder, folder
from tunnel.model.address import Address
from tunnel.model.targets import TargetSpec

__all__ = ["folder"]

URL = "client://127.0.0.1:1001/0.0.0.0:5432"


def text(targets: str, url: str = URL, more: str = "") -> str:
    return f"version: 1\ntunnels:\n  a: {{url: '{url}', targets: {targets}{more}}}\n"


def test_targets_replace_the_one_of_the_url(folder: Folder) -> None:
    written = text("[{address: db-1:5432, weight: 2}, {address: '${SECOND}', backup: yes}, '[::1]:5432']")
    [entry] = folder.load(written, SECOND="db-2:5432").entries
    assert entry.spec.targets == (
        TargetSpec(Address("db-1", 5432), 2),
        TargetSpec(Address("db-2", 5432), 1, is_backup=True),
        TargetSpec(Address("::1", 5432)),
    )
    assert entry.spec.target == Address("db-1", 5432)
    assert entry.url == URL


@pytest.mark.parametrize("end", ["", "/", "?mode=reverse"])
def test_an_entry_with_targets_needs_none_in_its_url(folder: Folder, end: str) -> None:
    written = text("[a:1, b:2]", url=f"client://127.0.0.1:1001{end}")
    [entry] = folder.load(written).entries
    assert entry.spec.target_text == "a:1,b:2"
    assert entry.url == f"client://127.0.0.1:1001/a:1,b:2{end.removeprefix('/')}"
    jsonschema.validate(yaml.safe_load(written), json_schema())
    [fault] = folder.faults("version: 1\ntunnels: {a: 'client://127.0.0.1:1001'}")
    assert "the target address is missing; write client://TUNNEL_ADDR/TARGET_ADDR" in fault


def test_targets_of_the_url_are_a_group_as_well(folder: Folder) -> None:
    [entry] = folder.load(text("[a:1]", url="client://127.0.0.1:1001/b:1,c:2")).entries
    assert (entry.spec.targets, entry.spec.target) == ((), Address("a", 1))
    [entry] = folder.load("version: 1\ntunnels: {a: 'client://127.0.0.1:1001/127.0.0.1:1,127.0.0.1:2'}").entries
    assert entry.spec.target_text == "127.0.0.1:1,127.0.0.1:2"


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        ("", "targets: takes a list of targets, as in [{address: db-1:5432}"),
        ("[]", "3:61: targets: takes a list of targets"),
        ("db-1:5432", "3:61: targets: takes a list of targets"),
        ("[[a]]", "3:62: a target is an address or a mapping with address:, not a list"),
        ("[{weight: 2}]", "3:62: the target has no address:"),
        ("[{address: }]", "the address of a target is empty"),
        ("[{address: db-1}]", "3:72: the target address 'db-1' has no port; write host:port"),
        ("['db-1:99999']", "the port '99999' of the target address is not a number from 0 to 65535"),
        ("['db-1:0']", "the target 'db-1:0' is dialled, so its port cannot be 0"),
        ("['a:1', {address: 'a:1'}]", "3:69: the target a:1 is given twice; remove one"),
        ("[{address: 'a:1', weight: 257}]", "weight: 257 is out of range; it must lie between 0 and 256"),
        ("[{address: 'a:1', weight: '${W}'}]", "weight: '${W}' is not a whole number"),
        ("[{address: 'a:1', weight: [1]}]", "weight takes one text, not a list or a mapping"),
        ("[{address: 'a:1', backup: maybe}]", "backup: write true or false"),
        ("[{address: 'a:1', wieght: 2}]", "unknown key 'wieght' in a target; did you mean 'weight'?"),
        ("[{address: '${A}'}]", "… in the target address is neither a host name nor an IP address"),
        ("[{address: 'a:1', weight: 0}, {address: 'b:1', weight: 0}]", "every target has the weight 0"),
        (f"[{', '.join(f'a:{port}' for port in range(1, 67))}]", "targets: has 66 targets; 64 at most"),
    ],
)
def test_a_fault_of_targets_has_its_place(folder: Folder, targets: str, fault: str) -> None:
    [found] = folder.faults(text(targets), W="s3cret", A="s3 cret:1")
    assert fault in found
    assert "s3" not in found


def test_the_schema_describes_targets() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    good = yaml.safe_load(text("[{address: 'db-1:5432', weight: 2}, {address: '${A}', backup: true}, 'db-3:1']"))
    assert validator.is_valid(good)
    for bad in ("[]", "[{weight: 2}]", "[{address: 'a:1', weight: 300}]", "[{address: 'a:1', other: 2}]", "x"):
        assert not validator.is_valid(yaml.safe_load(text(bad))), bad


def changes_between(folder: Folder, before: str, after: str) -> tuple[str, tuple[str, ...]]:
    """Return whether the entry is restarted or changed, and what the plan says about it."""
    old = folder.load(before)
    plan = diff_manifests(old, folder.load(after))
    assert len(plan.restart) + len(plan.change) == 1
    kind = "restart" if plan.restart else "change"
    return kind, (plan.restart or plan.change)[0].texts


def test_members_weights_and_checks_change_live(folder: Folder) -> None:
    before = text("[{address: 'a:1'}, {address: 'b:1'}]")
    after = text("[{address: 'b:1', weight: 3}, {address: 'c:1', backup: true}]", more=", check: off, balance: first")
    assert changes_between(folder, before, after) == (
        "change",
        (
            "target a:1: removed",
            "target b:1 → b:1 weight 3",
            "target c:1 backup: added",
            "balance: roundrobin → first",
            "check: auto → off",
        ),
    )
    assert changes_between(folder, before, text("['b:1', 'a:1']")) == ("change", ("targets: another order",))


def test_one_target_becomes_several_live_unless_the_direction_changes(folder: Folder) -> None:
    several = text("['a:1', 'b:1']")
    kind, texts = changes_between(folder, text("['a:1']"), several)
    assert (kind, texts) == ("change", ("target b:1: added",))
    kind, texts = changes_between(folder, several, text("['a:1']"))
    assert (kind, texts) == ("change", ("target b:1: removed",))
    kind, texts = changes_between(folder, text("['a:1']"), text("['b:1']"))
    assert (kind, texts) == ("restart", ("target address: a:1 → b:1",))
    server = URL.replace("client", "server")
    local = text("['127.0.0.1:1']", url=server)  # in auto, a server accepts visitors on an address of its own
    kind, _ = changes_between(folder, local, text("['127.0.0.1:1', '127.0.0.1:2']", url=server))
    assert kind == "restart"


def test_wildcard_targets_are_named(folder: Folder) -> None:
    [warning] = folder.load(text("['a:1', ':2']")).warnings
    assert "dials its target address :2, which means this host" in str(warning)
    assert Path(folder.path).exists()


# --- servers ----------------------------------------------------------------------------------------------------------


def server_text(servers: str, url: str = URL) -> str:
    return f"version: 1\ntunnels:\n  a: {{url: '{url}', key: secret-of-a, servers: {servers}}}\n"


def test_servers_replace_the_tunnel_address_of_the_url(folder: Folder) -> None:
    written = server_text("['site-a:1', {address: 'site-b:1', weight: 2}, {address: 'site-c:1', backup: yes}]")
    [entry] = folder.load(written).entries
    assert entry.spec.tunnel_text == "site-a:1,site-b:1,site-c:1"
    assert list(map(str, entry.spec.server_shares)) == ["site-a:1", "site-b:1 weight 2", "site-c:1 backup"]
    [entry] = folder.load(server_text("[{address: 'site-a:1', weight: 5}]")).entries
    assert (entry.spec.tunnel_text, entry.spec.server_shares) == ("site-a:1", ())


@pytest.mark.parametrize(
    ("servers", "fault"),
    [
        ("site-a:1", "servers: takes a list of servers, as in [{address: site-a:10101, weight: 2}"),
        ("['site-a']", "the server address 'site-a' has no port; write host:port"),
        ("['site-a:0']", "the server 'site-a:0' is dialled, so its port cannot be 0"),
        ("['a:1', 'a:1']", "the server a:1 is given twice; remove one"),
        ("['a:1', 'A:1']", "the server A:1 is given twice"),
        ("[{address: 'a:1', weight: 0}, {address: 'b:1', weight: 0}]", "every server has the weight 0"),
        ("[{address: 'a:1', bakcup: true}]", "unknown key 'bakcup' in a server; did you mean 'backup'?"),
        (f"[{', '.join(f'a:{port}' for port in range(1, 19))}]", "servers: has 18 servers; 16 at most"),
    ],
)
def test_a_fault_of_servers_has_its_place(folder: Folder, servers: str, fault: str) -> None:
    [found] = folder.faults(server_text(servers))
    assert fault in found


def test_servers_are_a_clients_and_their_shares_need_a_client_that_accepts_visitors(folder: Folder) -> None:
    [found] = folder.faults(server_text("['a:1']", "server://127.0.0.1:1/127.0.0.1:2"))
    assert "servers: is for a client; a server listens on one tunnel address" in found
    shares = "['a:1', {address: 'b:1', weight: 2}]"
    [found] = folder.faults(server_text(shares, f"{URL}?mode=reverse"))
    assert "remove weight and backup, or write mode=forward" in found
    assert folder.load(server_text(shares, f"{URL}?mode=forward")).entries


def test_the_schema_describes_servers() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(yaml.safe_load(server_text("['a:1', {address: 'b:1', weight: 2, backup: true}]")))
    for bad in ("[]", "[{weight: 2}]", "[{address: 'a:1', weight: 300}]", "x"):
        assert not validator.is_valid(yaml.safe_load(server_text(bad))), bad
