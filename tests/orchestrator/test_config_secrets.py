"""Secrets: messages show what the file contains, never the value of a variable; and warnings about keys."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.faults import ConfigError
from orchestrator.config.load import load
from tests.orchestrator.test_config import KEY, Folder, folder
from tunnel.model.options import KEY_VARIABLE

__all__ = ["folder"]

WEB = "server://127.0.0.1:1/127.0.0.1:2"
PLACES = (
    "version: ${S}",
    "${S}: 1\nversion: 1",
    "version: 1\nsupervisor: {workers: '${S}'}",
    "version: 1\nsupervisor: {drain_timeout: '${S}'}",
    "version: 1\nsupervisor: {drain_timeout: '${S}s'}",
    "version: 1\nsupervisor: {metrics: '${S}'}",
    "version: 1\nsupervisor: {metrics: 'a.b:${S}'}",
    "version: 1\nsupervisor: {'${S}': x}",
    "version: 1\nsupervisor: {api: {listen: '[${S}]:1', token_file: x}}",
    "version: 1\nsupervisor: {mqtt: {url: '${S}'}}",
    "version: 1\nsupervisor: {mqtt: {url: 'mqtt://h/${S}'}}",
    "version: 1\nsupervisor: {mqtt: {url: 'mqtt://h', host: '/${S}'}}",
    "version: 1\nsupervisor: {mqtt: {url: 'mqtt://h', username: u, password_file: '${S}'}}",
    "version: 1\nsupervisor: {mqtt: {url: 'mqtt://h', discovery: '${S}'}}",
    "version: 1\nsupervisor: {mqtt: {url: 'mqtts://h', ca: 'x${S}'}}",
    "version: 1\ninclude: '${S}.yaml'",
    "version: 1\ndefaults: {log: '${S}'}",
    "version: 1\ndefaults: {'${S}': info}",
    "version: 1\ndefaults: {key_file: '${S}'}",
    "version: 1\ntunnels: {a: '${S}'}",
    "version: 1\ntunnels: {a: {url: 'client://h:1/h:2', keys: {k: '${S}'}}}",
    "version: 1\ntunnels: {a: {url: 'server://h:1/h:2', keys: {k: '${S}', l: '${S}'}}}",
    "version: 1\ntunnels: {a: {url: 'server://h:1/h:2', keys: {k: 'npk_${S}'}}}",
    "version: 1\ntunnels: {a: {url: 'server://h:1/h:2', keys: {'${S}': ''}}}",
    "version: 1\ntunnels: {a: {url: 'server://h:1/h:2', keys: {' ${S}': x}}}",
    "version: 1\ntunnels: {a: {url: 'server://h:1/h:2', keys: {'npk_${S}': x}}}",
    "version: 1\ntunnels: {a: {url: 'server://h:1/h:2', keys: '${S}'}}",
    "version: 1\ntunnels: {a: {url: 'server://h:1/h:2', key: 'npk_${S}'}}",
    "version: 1\ntunnels: {a: {url: 'server://h:1/h:2', service: 'x ${S}'}}",
    "version: 1\ntunnels: {a: 'server://h:1/h:2?service=x%20${S}'}",
    "version: 1\ntunnels: {a: 'server://npk_${S}@h:1/h:2'}",
    "version: 1\ntunnels: {a: '${S}://h:1/h:2'}",
    "version: 1\ntunnels: {a: 'server://${S}/h:2'}",
    "version: 1\ntunnels: {a: 'server://h:${S}/h:2'}",
    "version: 1\ntunnels: {a: 'server://h:1/h:${S}'}",
    "version: 1\ntunnels: {a: 'server://[${S}]:1/h:2'}",
    "version: 1\ntunnels: {a: 'server://h:1/-${S}:2'}",
    "version: 1\ntunnels: {a: 'server://:1/h:2?log=${S}'}",
    "version: 1\ntunnels: {a: 'server://:1/h:2?${S}=1'}",
    "version: 1\ntunnels: {a: 'server://:1/h:2?${S}'}",
    "version: 1\ntunnels: {a: 'server://:1/h:2?data_port=${S}&key_file=${S}'}",
    "version: 1\ntunnels: {\"x\\t${S}\": 'server://:1/h:2'}",
    "version: 1\ntunnels: {a: {url: 'server://:1/h:2', '${S}': 1}}",
    "version: 1\ntunnels: {a: {url: 'server://:1/h:2', enabled: '${S}'}}",
    *(
        f"version: 1\ntunnels: {{a: {{url: 'server://:1/h:2', {name}: '${{S}}'}}}}"
        for name in ("mode", "log", "tls", "auth", "data_port", "key_file", "semaphore_limit", "report_interval")
    ),
    "version: 1\ntunnels: {a: {url: 'server://:1/h:2', tls_cert: '${S}', tls_key: '${S}'}}",
    "version: 1\ntunnels: {a: {url: 'client://h:1/h:2', tls: 2, tls_ca: '${S}'}}",
    "version: 1\ntunnels: [{name: '${S}', url: 'server://:1/h:2'}, {name: '${S}', url: 'server://:3/h:4'}]",
)


PRINTABLE = st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" ")
"""What ``str.isprintable`` accepts."""


@pytest.mark.parametrize("text", PLACES)
@pytest.mark.parametrize("secret", ["Sup3rS3cr3tValue", "Sup3rS3cr3t/V@lue=x", "9876543210987"])
def test_a_fault_never_shows_the_value_of_a_variable(folder: Folder, text: str, secret: str) -> None:
    faults = folder.faults(text, S=secret)
    for part in (secret, secret.lower(), secret[:8], secret[-8:]):
        assert not any(part in fault for fault in faults), faults


@given(secret=st.text(PRINTABLE, min_size=6), where=st.sampled_from(PLACES))
def test_no_secret_whatever_it_is_gets_into_a_fault(
    tmp_path_factory: pytest.TempPathFactory, secret: str, where: str
) -> None:
    path = tmp_path_factory.mktemp("f") / "tunnels.yaml"
    secret = "Qz" + secret.replace("\0", "") + "zQ"
    path.write_text(where)
    with contextlib.suppress(ConfigError):
        assert load(path, {"S": secret, KEY_VARIABLE: KEY}).warnings == ()
        return
    with pytest.raises(ConfigError) as caught:
        load(path, {"S": secret, KEY_VARIABLE: KEY})
    assert "Qz" not in str(caught.value)


def test_a_fault_quotes_the_text_of_the_file(folder: Folder) -> None:
    text = (
        "version: 1\ntunnels:\n  a: {url: 'server://:1/h:2', mode: 'x${S}', log: '${L:-loud}'}\n  b: server://${S}/h:2"
    )
    assert folder.faults(text, S="s3cret") == [
        "3:37: mode: 'x${S}' is not one of auto, 0, reverse, 1, forward, 2",
        "3:51: log: '${L:-loud}' is not one of debug, info, warn, error, fatal",
        "4:6: the tunnel address … has no port; write host:port; the URL is written 'server://${S}/h:2'",
    ]


def test_a_dollar_before_a_name_is_a_warning_that_does_not_quote_the_text(folder: Folder) -> None:
    manifest = folder.load(f"version: 1\ntunnels:\n  a:\n    url: {WEB}\n    key: $DB_KEY-{KEY}")
    [readable, warning] = manifest.warnings
    assert str(warning).endswith(":5:10: this $ is not replaced: a variable is written ${NAME}, and a dollar $$")
    assert "contains a key" in readable.message


# --- warnings about keys ----------------------------------------------------------------------------------------------


def warnings(folder: Folder, text: str, **environ: str) -> list[str]:
    """Each warning as ``LINE:COLUMN: message``."""
    found = folder.load(text, **environ).warnings
    return [str(w).removeprefix(f"{folder.path}/tunnels.yaml:") for w in found]


@pytest.mark.parametrize("key", ["a", "KEY", "changeme", "password1234567"[:15], "aaaaaaaaaaaaaaaaaaaaaaaaa", "  x  "])
def test_a_weak_key_is_a_warning_where_it_is_written(folder: Folder, key: str) -> None:
    words = "the key is weak: it can be found by trial"
    of_entry = f"version: 1\ntunnels:\n  a:\n    url: {WEB}\n    key: '${{K}}'"
    [found] = warnings(folder, of_entry, K=key)
    assert found.startswith(f"5:10: {words}")
    [found] = warnings(folder, "version: 1\ndefaults: {key: '${K}'}\ntunnels: {a: '" + WEB + "'}", K=key)
    assert found.startswith(f"2:17: {words}")
    [found] = warnings(folder, f"version: 1\ntunnels: {{a: '{WEB}'}}", **{KEY_VARIABLE: key})
    assert found.startswith(f"1:1: the environment variable {KEY_VARIABLE}: {words}")
    folder.write(key, "k")
    (folder.path / "k").chmod(0o600)
    if key.strip():
        [found] = warnings(folder, f"version: 1\ntunnels: {{a: '{WEB}?key_file=k'}}")
        assert words in found


def test_a_weak_key_that_another_one_replaces_is_no_warning_at_the_strong_one(folder: Folder) -> None:
    weak = WEB.replace("server://", "server://weak@")
    text = f"version: 1\ndefaults: {{key: '${{K}}'}}\ntunnels: {{a: '{weak}'}}"
    found = [warning for warning in warnings(folder, text, K=KEY) if "the key is weak" in warning]
    assert [warning.partition(":")[0] for warning in found] == ["3"], "not at the strong key in line 2"
    folder.write("weak", "k")
    (folder.path / "k").chmod(0o600)
    (folder.path / "more.yaml").write_text(f"defaults: {{key_file: k}}\ntunnels: {{a: '{WEB}'}}")
    shown = "".join(warnings(folder, "version: 1\ndefaults: {key: '${K}'}\ninclude: [more.yaml]", K=KEY))
    assert "the key is weak" in shown
    assert "2:17:" not in shown


def test_a_key_of_keygen_is_not_weak(folder: Folder) -> None:
    assert warnings(folder, f"version: 1\ntunnels: {{a: '{WEB}'}}") == []


@pytest.mark.parametrize(("mode", "reader"), [(0o644, "every user of this host"), (0o640, "its group"), (0o600, None)])
def test_a_file_of_a_secret_that_others_can_read_is_a_warning(folder: Folder, mode: int, reader: str | None) -> None:
    for name in ("key", "token", "password"):
        folder.write(KEY, name)
        (folder.path / name).chmod(mode)
    text = (
        "version: 1\nsupervisor: {api: {token_file: token},\n"
        "  mqtt: {url: 'mqtt://h', username: u, password_file: password}}\n"
        f"defaults: {{key_file: key}}\ntunnels: {{a: '{WEB}'}}"
    )
    found = warnings(folder, text)
    assert [line.partition(": ")[0] for line in found] == (["2:32", "3:55", "4:22"] if reader else [])
    assert all(f"{reader} can read it" in line for line in found)


@pytest.mark.parametrize(
    ("entry", "is_literal"),
    [
        (f"{{url: '{WEB}', key: {KEY}}}", True),
        (f"server://{KEY}@127.0.0.1:1/127.0.0.1:2", True),
        (f"{{url: '{WEB}', key: '${{K}}'}}", False),
        ("'server://${K}@127.0.0.1:1/127.0.0.1:2'", False),
        (f"{WEB}", False),
    ],
)
def test_a_readable_file_with_a_literal_key_is_a_warning(folder: Folder, entry: str, *, is_literal: bool) -> None:
    folder.write(f"version: 1\ntunnels:\n  a: {entry}")
    file = folder.path / "tunnels.yaml"
    file.chmod(0o644)
    found = warnings(folder, file.read_text(), K=KEY)
    assert ["the file contains a key, and every user of this host can read it" in line for line in found] == (
        [True] if is_literal else []
    )
    file.chmod(0o640)
    assert folder.load(K=KEY).warnings == ()


@pytest.mark.parametrize(
    "entry",
    [
        "{url: 'server://${K}@127.0.0.1:1/127.0.0.1:2', key: '${K}'}",
        "{url: 'server://${K}@127.0.0.1:1/127.0.0.1:2', key_file: k}",
        f"{{url: '{WEB}?key_file=k', key: '${{K}}'}}",
    ],
)
def test_a_second_key_of_one_entry_is_a_warning(folder: Folder, entry: str) -> None:
    folder.write(KEY, "k")
    (folder.path / "k").chmod(0o600)
    [found] = warnings(folder, f"version: 1\ntunnels:\n  a: {entry}", K=KEY)
    assert found.endswith("this key is not used, because the URL has one; keep one of them")


def test_two_servers_or_two_clients_with_one_key_are_a_warning(folder: Folder) -> None:
    pair = f"  a: {WEB}\n  b: client://127.0.0.1:1/127.0.0.1:3\n"
    assert warnings(folder, f"version: 1\ntunnels:\n{pair}") == []
    [found] = warnings(folder, f"version: 1\ntunnels:\n{pair}  c: server://127.0.0.1:4/127.0.0.1:5")
    assert found.startswith("5:3: the servers 'a', 'c' share one key, so a peer of one can pass for a peer of another")
    many = "".join(f"  c{n}: client://127.0.0.1:{n}/127.0.0.1:9\n" for n in range(10, 20))
    [found] = warnings(folder, f"version: 1\ntunnels:\n{many}")
    assert "'c14' and 5 more share one key" in found


def test_one_key_for_several_services_is_no_warning(folder: Folder) -> None:
    lines = "".join(f"  s{n}: server://127.0.0.1:{n}/127.0.0.1:9{n}{{}}\n" for n in (1, 2, 3))
    assert warnings(folder, "version: 1\ntunnels:\n" + lines.format(*(f"?service={n}" for n in "abc"))) == []
    [found] = warnings(folder, "version: 1\ntunnels:\n" + lines.format("?service=a", "?service=b", "?service=b"))
    assert found.startswith("5:3: the servers 's2', 's3' share one key")
    assert "give each a service of its own (service=, the same at both ends) or a key of its own" in found


# --- addresses that cannot be what was meant --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("client://h:1/0.0.0.0:80?mode=reverse", "dials its target address 0.0.0.0:80, which means this host"),
        ("client://h:1/[::]:80?mode=reverse", "dials its target address [::]:80, which means this host"),
        ("client://h:1/:80?mode=1", "dials its target address :80, which means this host"),
        ("server://:1/0.0.0.0:80?mode=forward", "dials its target address 0.0.0.0:80, which means this host"),
        ("client://0.0.0.0:1/127.0.0.1:80", "dials its tunnel address 0.0.0.0:1, which means this host"),
        ("client://:1/127.0.0.1:80", "dials its tunnel address :1, which means this host"),
        ("client://h:1/0.0.0.0:80", None),
        ("client://h:1/0.0.0.0:80?mode=forward", None),
        ("server://:1/0.0.0.0:80", None),
    ],
)
def test_a_wildcard_address_that_is_dialled_is_a_warning(folder: Folder, url: str, words: str | None) -> None:
    found = warnings(folder, f"version: 1\ntunnels:\n  a: {url}")
    assert len(found) == (words is not None)
    assert words is None or (words in found[0] and found[0].startswith("3:3: 'a' "))


@pytest.mark.parametrize("address", ["224.0.0.1:80", "255.255.255.255:80", "[ff02::1]:80", "239.1.2.3:1"])
@pytest.mark.parametrize("url", ["server://:1/{}", "client://{}/127.0.0.1:1", "server://{}/h:1"])
def test_an_address_that_tcp_cannot_use_is_a_fault(folder: Folder, url: str, address: str) -> None:
    [fault] = folder.faults(f"version: 1\ntunnels:\n  a: {url.format(address)}")
    assert "is a multicast or broadcast address, which TCP cannot use" in fault
