"""The rules about visitors in a file: lists, the ends where they act, plans, and what readers are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from orchestrator.config.plan import diff_manifests
from orchestrator.config.schema import json_schema
from orchestrator.mqtt.payloads import EventPayload
from orchestrator.process.logformat import as_json, as_text, format_json_event
from orchestrator.supervisor.tunnel_details import describe_tunnel
from tests.orchestrator.test_config import Folder, folder
from tests.orchestrator.test_metrics import page, snapshot
from tunnel.model.errors import UrlError
from tunnel.model.events import VISITOR, Event, EventKind
from tunnel.model.options import make_spec
from tunnel.model.snapshot import RefusedView
from tunnel.model.spec import LogLevel
from tunnel.model.url import parse_url
from tunnel.model.visitor_option_types import NetworksType

if TYPE_CHECKING:
    from tunnel.model.networks import NetworkSet

__all__ = ["folder"]

INGRESS = "server://127.0.0.1:1001/127.0.0.1:80?mode=reverse"
EGRESS = "client://127.0.0.1:1001/127.0.0.1:80?mode=reverse"


def networks(text: str) -> NetworkSet:
    return NetworksType().parse(text, Path())


def entry(*lines: str, url: str = INGRESS) -> str:
    return "\n".join(["version: 1", "tunnels:", "  web:", f"    url: {url}", *(f"    {line}" for line in lines)])


@pytest.mark.parametrize(
    "written",
    [
        "[10.0.0.0/8, '2001:db8::/32']",
        "10.0.0.0/8, 2001:db8::/32",
        "10.0.0.0/8 2001:db8::/32",
        "[\"${OFFICE}\", '2001:db8::/32']",
        "${BOTH}",
    ],
)
def test_a_list_is_written_with_commas_or_as_a_list_with_variables(folder: Folder, written: str) -> None:
    text = entry(f"allow: {written}")
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(text), json_schema())
    manifest = folder.load(text, OFFICE="10.0.0.0/8", BOTH="10.0.0.0/8,2001:db8::/32")
    assert manifest.entries[0].spec.allow == networks("10.0.0.0/8,2001:db8::/32")


def test_a_url_has_lists_with_commas(folder: Folder) -> None:
    manifest = folder.load(entry(url=f"{INGRESS}&deny=10.0.0.0/8,::1&rate_new=0.5&max_per_address=3"))
    spec = manifest.entries[0].spec
    assert (spec.deny, spec.rate_new, spec.max_per_address) == (networks("10.0.0.0/8,::1"), 0.5, 3)


def test_each_faulty_element_is_reported_at_its_place(folder: Folder) -> None:
    faults = folder.faults(entry("deny:", "- 10.0.0.0/8", "- 10.0.0.1/8", "- ${SECRET}"), SECRET="word")
    assert faults == [
        "7:7: deny: '10.0.0.1/8' is an address with a prefix; write 10.0.0.0/8 or 10.0.0.1",
        "8:7: deny: '${SECRET}' is not a network, as in 192.0.2.0/24 or 2001:db8::/32",
    ]


@pytest.mark.parametrize("written", ["[]", "", "{a: b}", "[[10.0.0.1]]"])
def test_a_list_without_networks_is_a_fault(folder: Folder, written: str) -> None:
    [fault] = folder.faults(entry(f"allow: {written}"))
    assert "allow" in fault


def test_other_options_take_no_list(folder: Folder) -> None:
    [fault] = folder.faults(entry("rate_new: [1]"))
    assert fault.endswith("rate_new takes one text, not a list or a mapping")


def test_an_entry_replaces_a_list_of_the_defaults(folder: Folder) -> None:
    folder.write(entry("allow: none") + "\ndefaults:\n  allow: 10.0.0.0/8\n  deny: 10.1.0.0/16\n")
    spec = folder.load().entries[0].spec
    assert not spec.allow
    assert spec.deny == networks("10.1.0.0/16")


def test_a_rule_at_the_other_end_is_a_fault_at_its_place(folder: Folder) -> None:
    way_out = "acts at the end that accepts visitors, which is the server here; write it there"
    assert folder.faults(entry("allow: 10.0.0.0/8", url=EGRESS)) == [f"5:12: allow {way_out}"]
    assert folder.faults(entry(url=f"{EGRESS}&rate_new=1")) == [f"4:{len(EGRESS) + 11}: rate_new {way_out}"]
    with pytest.raises(UrlError, match="max_per_address acts at the end that accepts visitors"):
        make_spec(parse_url(f"{EGRESS}&max_per_address=1"))


def test_defaults_may_have_rules_that_some_entries_cannot_use(folder: Folder) -> None:
    manifest = folder.load(entry(url=EGRESS) + "\ndefaults: {allow: 10.0.0.0/8}")
    assert not any("allow" in warning.message for warning in manifest.warnings)


def test_a_server_whose_target_shows_that_it_dials_is_warned_about_its_rules(folder: Folder) -> None:
    manifest = folder.load(entry("allow: 10.0.0.0/8", url="server://127.0.0.1:1001/192.0.2.1:80"))
    [warning] = manifest.warnings
    assert warning.message.startswith("allow acts at the end that accepts visitors, which is the client here")
    assert warning.message.endswith("; write it there, or set mode: the target address decides in auto")


def test_a_rate_of_each_visitor_that_is_not_below_that_of_all_is_warned_about(folder: Folder) -> None:
    [warning] = folder.load(entry("visitor_rate: 100mbit", "rate: 100mbit")).warnings
    assert str(warning).endswith(
        "tunnels.yaml:5:19: visitor_rate 100mbit has no effect: rate 100mbit limits all visitors together to that or "
        "less; lower it, or remove it"
    )
    assert not folder.load(entry("visitor_rate: 10mbit", "rate: 100mbit")).warnings


@pytest.mark.parametrize(
    ("proto", "option", "other"),
    [("tcp", "udp_timeout: 2s", "UDP"), ("tcp", "udp_carrier: stream", "UDP"), ("udp", "reuse: 1", "TCP")],
)
def test_an_option_for_visitors_that_an_entry_does_not_have_is_warned_about(
    folder: Folder, proto: str, option: str, other: str
) -> None:
    [warning] = folder.load(entry(option, f"proto: {proto}")).warnings
    text = f"{option.partition(':')[0]} has no effect with proto={proto}, because it concerns visitors of {other}"
    assert str(warning).endswith(
        f"tunnels.yaml:5:{option.index(' ') + 6}: {text}; remove it, or write proto=both at both ends"
    )
    assert not folder.load(entry(option, "proto: both")).warnings
    assert not folder.load(f"{entry(f'proto: {proto}')}\ndefaults: {{{option}}}").warnings


def test_a_rate_that_is_none_is_a_fault_at_its_place(folder: Folder) -> None:
    assert folder.faults(entry("rate: 0mbit", "visitor_rate: 10Mbps")) == [
        "5:11: rate: '0mbit' would stop all visitors; write none for no limit",
        "6:19: visitor_rate: '10Mbps' could mean bits or bytes; write mbit, or MB/s",
    ]


def test_rates_change_live_and_a_plan_names_the_change(folder: Folder) -> None:
    old = folder.load(entry("rate: 10MB/s"))
    plan = diff_manifests(old, folder.load(entry("rate: 1gbit", "visitor_rate: 1mbit")))
    assert not plan.restart
    assert plan.change[0].texts == ("rate: 10MB/s → 1gbit", "visitor_rate: none → 1mbit")


def test_rules_change_live_and_a_plan_names_the_change(folder: Folder) -> None:
    old = folder.load(entry("deny: 10.0.0.1"))
    many = ", ".join(f"10.0.0.{number}" for number in range(100))
    plan = diff_manifests(old, folder.load(entry(f"deny: {many}", "max_per_address: 5", "rate_new: 2")))
    assert not plan.restart
    assert plan.change[0].texts == (
        "deny: 100 networks, 99 added and 0 removed",
        "max_per_address: 0 → 5",
        "rate_new: 0 → 2",
    )


def test_the_details_of_a_tunnel_show_the_number_of_networks_instead_of_a_long_list(folder: Folder) -> None:
    [found] = folder.load(entry("deny:", *(f"- 10.0.{n >> 8}.{n & 255}" for n in range(10_000)))).entries
    settings = describe_tunnel(snapshot(), found, folder.path)["settings"]
    assert settings["deny"] == {"value": "10000 networks", "source": "entry", "where": "tunnels.yaml:6:5"}


def test_metrics_have_the_refused_visitors_by_reason_where_they_are_known() -> None:
    text, _ = page(snapshot("a", refused=RefusedView(allow=3, per_address=0, rate=1)), snapshot("b"))
    lines = [line for line in text.splitlines() if line.startswith("nodepass_orch_tunnel_refused_visitors_total")]
    assert lines == [
        'nodepass_orch_tunnel_refused_visitors_total{reason="allow",tunnel="a"} 3.0',
        'nodepass_orch_tunnel_refused_visitors_total{reason="per_address",tunnel="a"} 0.0',
        'nodepass_orch_tunnel_refused_visitors_total{reason="rate",tunnel="a"} 1.0',
    ]


def test_the_address_of_a_visitor_is_in_logs_and_never_on_the_broker() -> None:
    event = Event(
        ts=0.0, tunnel="web", level=LogLevel.INFO, kind=EventKind.REFUSED, text="a visitor was refused: its address is "
        "in deny", data={"reason": "allow", VISITOR: "192.0.2.7:4711"},
    )  # fmt: skip
    assert as_text(event).endswith("its address is in deny [192.0.2.7:4711]")
    assert format_json_event(json.loads(as_json(event))) == as_text(event)
    published = json.dumps(EventPayload(event, "boot").as_json())
    assert "192.0.2.7" not in published
    assert '"reason": "allow"' in published
