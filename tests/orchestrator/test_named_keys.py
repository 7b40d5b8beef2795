"""``keys:`` of a server entry: what is accepted, what is a fault, and what a plan says about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.load import load
from orchestrator.config.manifest import Manifest
from orchestrator.config.plan import diff_manifests
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.supervisor.tunnel_details import describe_tunnel
from tests.orchestrator.test_config import Folder, folder
from tunnel.model.keys import Key, NamedKey
from tunnel.model.options import KEY_VARIABLE

__all__ = ["folder"]

HOME, OFFICE = "hYd8k2Lw9qTz4Rv7", "pQ3mX8sN5cJ1bG6f"
URL = "server://127.0.0.1:1001/127.0.0.1:80"


def text(keys: str, url: str = URL, more: str = "", before: str = "") -> str:
    return f"version: 1\n{before}tunnels:\n  a: {{url: '{url}', keys: {keys}{more}}}\n"


def test_named_keys_are_sorted_and_replace_keys_of_weaker_places(folder: Folder) -> None:
    written = text(f"{{office: {OFFICE}, home: '${{HOME_KEY}}'}}", before="defaults: {key: another}\n")
    [entry] = folder.load(written, HOME_KEY=HOME, **{KEY_VARIABLE: "of the environment"}).entries
    assert entry.spec.named_keys == (NamedKey("home", Key(HOME)), NamedKey("office", Key(OFFICE)))
    assert (entry.spec.key, entry.spec.auth) == (None, "key")
    assert not entry.spec.is_exposed
    [entry] = folder.load(text(f"{{a: {OFFICE}}}", before="defaults: {auth: open}\n")).entries
    assert entry.spec.auth == "key"


@pytest.mark.parametrize(
    ("keys", "url", "more", "fault"),
    [
        (f"{{a: {HOME}}}", URL.replace("server", "client"), "", "keys: is for a server; a client has one key"),
        (f"{{a: {HOME}}}", URL.replace("//", "//k@"), "", "keys: and a single key exclude each other"),
        (f"{{a: {HOME}}}", URL, f", key: {OFFICE}", "keys: and a single key exclude each other"),
        (f"{{a: {HOME}}}", URL, ", auth: open", "keys: and auth: open exclude each other"),
        (f"{{a: {HOME}}}", f"{URL}?auth=open", "", "keys: and auth: open exclude each other"),
        ("{}", URL, "", "keys: takes a mapping of names to keys"),
        ("[a]", URL, "", "keys: takes a mapping of names to keys"),
        ("", URL, "", "keys: takes a mapping of names to keys"),
        ("{a: }", URL, "", "the key 'a' is empty"),
        ("{a: [x]}", URL, "", "the key 'a' takes one text"),
        ("{' a': x}", URL, "", "a name is a printable text without blanks at its ends"),
        ("{a: npk_abc}", URL, "", "the key 'a': the key starts with npk_ but is damaged"),
        ("{npk_abc: x}", URL, "", "the name of a key starts with npk_, as keys do; write NAME: KEY"),
        ("{'${NOPE}': x}", URL, "", "the environment variable NOPE is not set"),
        ("{a: '${NOT_SET}'}", URL, "", "the environment variable NOT_SET is not set"),
        (f"{{a: {HOME}, b: {HOME}}}", URL, "", "the keys 'a' and 'b' are the same; remove one"),
    ],
)
def test_a_fault_of_named_keys_has_its_place_and_shows_no_key(
    folder: Folder, keys: str, url: str, more: str, fault: str
) -> None:
    found = folder.faults(text(keys, url, more))
    assert len(found) == 1, found
    assert fault in found[0]
    assert found[0].startswith("3:")
    assert HOME not in found[0]


def test_a_server_has_a_bounded_number_of_keys(folder: Folder) -> None:
    def many(count: int) -> str:
        return text("{" + ", ".join(f"k{n}: the-key-number-{n:05}" for n in range(count)) + "}")

    assert len(folder.load(many(64)).entries[0].spec.named_keys) == 64
    [fault] = folder.faults(many(65))
    assert "has 65 keys; 64 at most" in fault


def manifest(directory: Path, keys: str) -> Manifest:
    path = directory / "tunnels.yaml"
    path.write_text(text(keys) if keys else f"version: 1\ntunnels: {{a: '{URL}'}}\n")
    return load(path, {})


def test_named_keys_change_live_and_a_plan_shows_their_names(tmp_path: Path) -> None:
    old = manifest(tmp_path, f"{{home: {HOME}, office: {OFFICE}, gone: {HOME}1}}")
    new = manifest(tmp_path, f"{{office: {HOME}, home: {HOME}2, new: {OFFICE}}}")
    plan = diff_manifests(old, new)
    assert (plan.restart, [change.new.name for change in plan.change]) == ((), ["a"])
    assert plan.change[0].texts == ("key gone: removed", "key home: changed", "key new: added", "key office: changed")
    assert HOME not in str(plan.as_json())
    assert diff_manifests(old, manifest(tmp_path, f"{{gone: {HOME}1, office: {OFFICE}, home: {HOME}}}")).is_empty


def test_the_step_from_no_names_to_named_keys_needs_another_engine(tmp_path: Path) -> None:
    open_, named = manifest(tmp_path, ""), manifest(tmp_path, f"{{home: {HOME}}}")
    for old, new in ((open_, named), (named, open_)):
        [change] = diff_manifests(old, new).restart
        assert change.texts == (f"key home: {'added' if new is named else 'removed'}",)


def test_the_settings_of_a_tunnel_name_its_keys_without_showing_them(tmp_path: Path) -> None:
    [entry] = manifest(tmp_path, f"{{office: {OFFICE}, home: {HOME}}}").entries
    shown = describe_tunnel(stopped_snapshot("a", entry.spec), entry, tmp_path)
    assert shown["settings"]["keys"] == {"value": "home, office", "source": "entry", "where": "tunnels.yaml:3:67"}
    assert HOME not in str(shown)


def test_a_weak_key_is_named_at_its_place(folder: Folder) -> None:
    found = [str(warning) for warning in folder.load(text(f"{{home: secret, office: {OFFICE}}}")).warnings]
    assert any("3:65: the key 'home': the key is weak" in line for line in found), found
    assert not any("office" in line for line in found)


def test_two_servers_that_share_a_named_key_are_a_warning(folder: Folder) -> None:
    second = f"  b: {{url: 'server://127.0.0.1:2002/127.0.0.1:81', keys: {{x: {HOME}}}}}\n"
    found = [str(w) for w in folder.load(text(f"{{home: {HOME}, office: {OFFICE}}}") + second).warnings]
    assert any("the servers 'a', 'b' share one key" in line for line in found)
    assert not any(HOME in line for line in found)


def test_the_advice_for_a_named_key_in_a_readable_file_can_be_followed(folder: Folder) -> None:
    found = [str(warning) for warning in folder.load(text(f"{{office: {OFFICE}}}")).warnings]
    [readable] = [line for line in found if "every user of this host can read it" in line]
    assert readable.endswith("or write NAME: ${VARIABLE}")
    assert "key_file:" not in readable
