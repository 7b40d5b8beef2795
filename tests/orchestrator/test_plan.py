"""A plan leads from any configuration to any other, describes each change, and never contains a key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.faults import Place
from orchestrator.config.file_set import FileSet
from orchestrator.config.load import load
from orchestrator.config.manifest import Entry, Manifest
from orchestrator.config.plan import Plan, diff_manifests, effective_settings, needs_engine
from orchestrator.config.supervisor_settings import SupervisorSettings
from tunnel.model.options import OPTIONS, OptionLayer, make_spec
from tunnel.model.url import parse_url

FILE = Path("tunnels.yaml")
EXAMPLES = {
    "log": ("debug", "warn"),
    "mode": ("reverse", "forward"),
    "data_port": ("tunnel", "4000"),
    "tls": ("0",),
    "key": ("hunter2", "correct horse"),
    "max_pool_capacity": ("64", "1024"),
    "report_interval": ("2s", "5s"),
}

urls = st.sampled_from(
    [
        "server://127.0.0.1:1001/127.0.0.1:80",
        "server://127.0.0.1:1002/127.0.0.1:80",
        "client://127.0.0.1:1001/127.0.0.1:81",
    ]
)
options = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in EXAMPLES.items()})


@st.composite
def entries(draw: st.DrawFn, name: str) -> Entry:
    return Entry(
        name=name,
        spec=make_spec(parse_url(draw(urls)), [OptionLayer("the entry", draw(options))]),
        enabled=draw(st.booleans()),
        tags=draw(st.sampled_from([(), ("prod",)])),
        files=draw(st.sampled_from([{}, {"tls_cert": "one"}, {"tls_cert": "other"}])),
        url="",
        origin=Place(FILE, draw(st.integers(1, 99))),
    )


def manifest(*entries: Entry, supervisor: SupervisorSettings | None = None) -> Manifest:
    def reload(*, content: bytes | None = None) -> Manifest:
        raise NotImplementedError

    return Manifest(
        path=FILE,
        supervisor=supervisor or SupervisorSettings(),
        entries=entries,
        sources=FileSet(path=FILE),
        reload=reload,
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True))
    return manifest(*[draw(entries(name)) for name in names])


def applied(old: Manifest, plan: Plan) -> dict[str, Entry]:
    """Return the entries of a configuration after the steps of the plan."""
    found = {entry.name: entry for entry in old.entries}
    for entry in plan.remove:
        del found[entry.name]
    for entry in plan.add:
        assert entry.name not in found
        found[entry.name] = entry
    for step in (*plan.restart, *plan.change):
        assert found[step.old.name] is step.old
        found[step.new.name] = step.new
    return found


@given(manifests(), manifests())
def test_a_plan_leads_from_the_old_configuration_to_the_new_one(old: Manifest, new: Manifest) -> None:
    assert applied(old, diff_manifests(old, new)) == {entry.name: entry for entry in new.entries}


@given(manifests(), manifests())
def test_every_name_occurs_once_in_a_plan(old: Manifest, new: Manifest) -> None:
    plan = diff_manifests(old, new)
    names = [entry.name for entry in (*plan.add, *plan.remove, *plan.leave)]
    names += [step.new.name for step in (*plan.restart, *plan.change)]
    assert sorted(names) == sorted({entry.name for entry in (*old.entries, *new.entries)})


@given(manifests(), manifests())
def test_every_change_is_described_without_the_key(old: Manifest, new: Manifest) -> None:
    plan = diff_manifests(old, new)
    for step in (*plan.restart, *plan.change):
        assert step.texts
        assert len(set(step.texts)) == len(step.texts)
    assert "hunter2" not in repr(plan)
    assert "correct horse" not in str(plan.as_json())


@given(manifests())
def test_the_plan_between_equal_configurations_is_empty(one: Manifest) -> None:
    moved = replace(one, entries=tuple(replace(e, origin=Place(FILE, 500)) for e in reversed(one.entries)))
    plan = diff_manifests(one, moved)
    assert plan.is_empty
    assert {entry.origin.line for entry in plan.leave} <= {500}


@given(entries("a"), options)
def test_only_live_options_and_tags_change_without_a_new_engine(entry: Entry, others: dict[str, str]) -> None:
    before = replace(entry, enabled=True)
    url = parse_url("server://127.0.0.1:1001/127.0.0.1:80")
    one = replace(before, spec=make_spec(url, [OptionLayer("the entry", {})]))
    other = replace(before, spec=make_spec(url, [OptionLayer("the entry", others)]), tags=("other",))
    assert needs_engine(one, other) is any(not OPTIONS[name].is_live for name in others)


def written(folder: Path, text: str) -> Manifest:
    file = folder / "tunnels.yaml"
    file.write_text(text)
    return load(file, {})


def plan_between(folder: Path, old: str, new: str) -> dict[str, Any]:
    """Return the plan, as JSON, between two lists of tunnels."""
    before, after = (written(folder, f"version: 1\ntunnels:\n{tunnels}") for tunnels in (old, new))
    return dict(diff_manifests(before, after).as_json())


def test_a_plan_lists_added_and_removed_tunnels(tmp_path: Path) -> None:
    plan = plan_between(
        tmp_path,
        "  gone: server://127.0.0.1:1004/127.0.0.1:84\n",
        "  come: server://127.0.0.1:1005/127.0.0.1:85\n",
    )
    nothing = {"restart": [], "change": [], "unchanged": 0, "warnings": []}
    assert plan == {"add": ["come"], "remove": ["gone"], **nothing}


@pytest.mark.parametrize(
    ("old", "new", "step", "changes"),
    [
        ("a:1,b:1", "b:1,c:1", "change", ["server c:1: added", "server a:1: removed"]),
        ("a:1", "a:1,b:1", "change", ["server b:1: added"]),
        ("a:1,b:1", "b:1,a:1", "change", ["servers: another order"]),
        ("a:1,b:1", "c:1", "restart", ["server c:1: added", "server a:1: removed", "server b:1: removed"]),
        ("a:1", "c:1", "restart", ["tunnel address: a:1 → c:1"]),
    ],
)
def test_other_servers_change_live_as_long_as_one_stays(
    tmp_path: Path, old: str, new: str, step: str, changes: list[str]
) -> None:
    lines = [f"  web: client://secret-of-web@{tunnel}/127.0.0.1:80\n" for tunnel in (old, new)]
    plan = plan_between(tmp_path, *lines)
    assert plan[step] == [{"name": "web", "changes": changes}]


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("['a:1', 'b:1']", "[{address: 'a:1', weight: 2}, 'b:1']", ["server a:1 → a:1 weight 2"]),
        ("['a:1', {address: 'b:1', backup: true}]", "['a:1', 'b:1']", ["server b:1 backup → b:1"]),
        ("['a:1', 'b:1']", "['a:1', 'b:1', {address: 'c:1', backup: true}]", ["server c:1 backup: added"]),
    ],
)
def test_the_shares_of_servers_change_live(tmp_path: Path, old: str, new: str, changes: list[str]) -> None:
    lines = [f"  web: {{url: 'client://k@a:1/127.0.0.1:80', servers: {servers}}}\n" for servers in (old, new)]
    assert plan_between(tmp_path, *lines)["change"] == [{"name": "web", "changes": changes}]


def test_equal_servers_of_the_file_and_of_the_url_are_no_change(tmp_path: Path) -> None:
    of_url = "  web: {url: 'client://k@a:1,b:1/127.0.0.1:80'}\n"
    of_file = "  web: {url: 'client://k@a:1/127.0.0.1:80', servers: ['a:1', {address: 'b:1', weight: 1}]}\n"
    assert plan_between(tmp_path, of_url, of_file)["unchanged"] == 1


def test_a_plan_describes_what_a_restarted_tunnel_changes(tmp_path: Path) -> None:
    plan = plan_between(
        tmp_path,
        '  a: {url: "server://127.0.0.1:1001/127.0.0.1:80", key: one, tags: [prod, eu]}\n',
        '  a: {url: "server://127.0.0.1:2001/127.0.0.1:81?data_port=tunnel", key: two}\n',
    )
    changes = [
        "tunnel address: 127.0.0.1:1001 → 127.0.0.1:2001",
        "target address: 127.0.0.1:80 → 127.0.0.1:81",
        "key: changed",
        "data_port: random → tunnel",
        "tags: [prod, eu] → []",
    ]
    assert plan["restart"] == [{"name": "a", "changes": changes}]
    assert (plan["change"], plan["unchanged"]) == ([], 0)


def test_a_plan_describes_what_changes_live(tmp_path: Path) -> None:
    plan = plan_between(
        tmp_path,
        '  b: {url: "server://127.0.0.1:1002/127.0.0.1:80?mode=forward", log: info}\n'
        "  c: server://127.0.0.1:1003/127.0.0.1:83\n",
        """
  b:
    url: server://127.0.0.1:1002/127.0.0.1:80?mode=forward&log=debug
    max_pool_capacity: 1024
    report_interval: 1s
  c: {url: "server://127.0.0.1:1003/127.0.0.1:83", enabled: false}
""",
    )
    changes = ["log: info → debug", "max_pool_capacity: 1024, now set explicitly", "report_interval: 5s → 1s"]
    disabled = {"name": "c", "changes": ["enabled: true → false"]}
    assert plan["change"] == [{"name": "b", "changes": changes}, disabled]
    assert (plan["restart"], plan["unchanged"]) == ([], 0)


def test_a_setting_that_needs_a_restart_of_the_daemon_is_a_warning(tmp_path: Path) -> None:
    old = written(tmp_path, "version: 1\nsupervisor: {drain_timeout: 5s, api: {socket: a.sock}}\n")
    new = written(
        tmp_path,
        """
version: 1
supervisor: {drain_timeout: 9s, workers: 2, api: {socket: b.sock}, mqtt: {url: "mqtt://broker"}}
""",
    )
    assert diff_manifests(old, new).warnings == (
        f"supervisor.api.socket: {tmp_path}/a.sock → {tmp_path}/b.sock takes effect when the daemon is restarted",
        "supervisor.workers: 0 → 2 takes effect when the daemon is restarted",
        "supervisor.mqtt: none → set takes effect when the daemon is restarted",
    )
    kept = effective_settings(old.supervisor, new.supervisor)
    assert (kept.drain_timeout, kept.workers) == (9.0, 0)
    assert diff_manifests(replace(new, supervisor=kept), new).warnings == diff_manifests(old, new).warnings
