"""``import``: files of nodepass, frp and rathole become files that ``check`` accepts; the rest is listed."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.authoring import frp, nodepass, rathole
from orchestrator.authoring.draft import MAX_DRAFTS, Draft, WrittenFile, clean_name, join_address, write_file
from orchestrator.authoring.source import ForeignFile, ImportFileError
from orchestrator.commands import command_line
from orchestrator.config.load import load
from tests.support.peers import exchange, receive_all
from tests.support.ports import free_port
from tests.support.processes import running_harness
from tests.support.waiting import wait_until
from tunnel.model.keys import encode_key

SAMPLES = Path(__file__).parent / "imported"
PROXY = '[[proxies]]\nname = "p"\nlocalPort = 1\nremotePort = 2\n'
FRESH_KEY = encode_key(bytes(range(32)))
IMPORTS = [
    ("frp", ["frps.toml", "frpc.toml"]),
    ("frp", ["frps.ini", "frpc.ini"]),
    ("frp", ["frpc-environment.toml"]),
    ("frp", ["frpc-ranges.toml"]),
    ("frp", ["frpc.yaml"]),
    ("rathole", ["rathole-server.toml", "rathole-client.toml"]),
    ("rathole", ["rathole-both.toml"]),
    ("rathole", ["rathole-odd.toml"]),
    ("nodepass", ["nodepass.sh"]),
    ("nodepass", ["nodepass-compose.yaml"]),
    ("nodepass", ["nodepass-instances.json"]),
]


def source(text: str, name: str = "frpc.toml") -> ForeignFile:
    return ForeignFile(name, text)


def run_import(program: str, names: list[str], directory: Path) -> int:
    directory.mkdir()
    files = [str(SAMPLES / name) for name in names]
    return command_line.run(["import", program, *files, "--directory", str(directory)])


def entries(path: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load(path.read_text())["tunnels"]
    return found


def from_frp(text: str, name: str = "frpc.toml") -> tuple[list[Draft], list[str]]:
    one = source(text, name)
    (drafts,) = frp.translate([one], lambda: FRESH_KEY).clients.values()
    return drafts, [str(note) for note in one.notes]


# --- the samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "names"), IMPORTS, ids=lambda value: "+".join(value) if isinstance(value, list) else value
)
def test_what_is_imported_passes_check_and_only_its_owner_reads_it(
    program: str, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_import(program, names, tmp_path / "out") == 0
    reported = capsys.readouterr().out
    found = sorted((tmp_path / "out").iterdir())
    assert found
    for path in found:
        manifest = load(path, {"FRP_TOKEN": FRESH_KEY, "TUNNEL_KEY": FRESH_KEY})
        assert manifest.entries
        assert path.stat().st_mode & 0o777 == 0o600
        assert f"wrote {path} (" in reported


def test_an_import_lists_what_it_leaves_out_with_the_place_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_import("frp", ["frps.toml", "frpc.toml"], tmp_path / "out")
    listed = capsys.readouterr().err
    for place, reason in (
        ("frpc.toml:10", "transport.protocol: the carrier is TCP here"),
        ("frpc.toml:28", "proxy 'database' transport.useCompression: data is not compressed here"),
        ("frpc.toml:55", "proxy 'shop': is left out: visitors are not routed by host name"),
        ("frpc.toml:61", "proxy 'docker': is left out: there are no plugins"),
        ("frpc.toml:69", "proxy 'any': is left out: it has no remotePort"),
        ("frpc.toml:74", "visitor 'camera': is left out: a tunnel between two clients"),
        ("frps.toml:7", "allowPorts: is not needed"),
    ):
        assert f"{place}: {reason}" in listed
    assert "lantern" not in listed, "a token is not shown"
    assert "# Left out, or different:" in (tmp_path / "out" / "client.yaml").read_text()


def test_a_proxy_of_frp_becomes_an_entry_at_each_end(tmp_path: Path) -> None:
    run_import("frp", ["frps.toml", "frpc.toml"], tmp_path / "out")
    server, client = (entries(tmp_path / "out" / name) for name in ("server.yaml", "client.yaml"))
    assert server["office.database"] == {
        "url": "server://0.0.0.0:7001/127.0.0.1:6432",
        "key": "tJ4-quiet-harbour-91-lantern",
        "service": "office.database",
    }
    assert client["office.database"] == {
        "url": "client://tunnel.example.org:7001/10.20.0.5:5432",
        "key": "tJ4-quiet-harbour-91-lantern",
        "service": "office.database",
        "proxy": "v2",
        "check": "tcp",
        "inter": "10s",
        "check_timeout": "3s",
        "fall": 4,
        "min_pool_capacity": 4,
        "log": "debug",
    }
    assert client["office.api-1"]["targets"] == ["10.20.0.11:8080", "10.20.0.12:8080"]
    assert client["office.api-1"]["check"] == "http:/ready"
    assert "office.api-2" not in client


def test_a_range_of_an_ini_file_becomes_one_entry_for_each_port(tmp_path: Path) -> None:
    run_import("frp", ["frps.ini", "frpc.ini"], tmp_path / "out")
    server = entries(tmp_path / "out" / "server.yaml")
    assert [server[name]["url"] for name in ("games_0", "games_2")] == [
        "server://[::]:7000/[::]:37015",
        "server://[::]:7000/[::]:37020",
    ]


def test_keys_from_variables_stay_variables(tmp_path: Path) -> None:
    run_import("frp", ["frpc-environment.toml"], tmp_path / "frp")
    run_import("nodepass", ["nodepass-compose.yaml"], tmp_path / "nodepass")
    client = entries(tmp_path / "frp" / "client.yaml")
    assert (client["web"]["key"], client["idle"]["enabled"]) == ("${FRP_TOKEN}", False)
    tunnels = entries(tmp_path / "nodepass" / "tunnels.yaml")
    assert tunnels["gate"]["key"] == "${TUNNEL_KEY}"
    manifest = load(tmp_path / "nodepass" / "tunnels.yaml", {"TUNNEL_KEY": FRESH_KEY})
    key = next(entry.spec.key for entry in manifest.entries if entry.name == "edge")
    assert key is not None
    assert key.reveal() == "pa$word-of-some-length-7"


def test_a_section_may_have_any_name() -> None:
    one = source("[common]\nserver_addr = h\n[range:a[(+]\nlocal_port = x\nremote_port = 1\n", "frpc.ini")
    frp.translate([one])
    assert [str(note) for note in one.notes] == [
        "frpc.ini:3: proxy 'a[(+': is left out: its ports are not numbers and ranges of them"
    ]


def test_both_ends_of_frp_without_a_token_share_a_fresh_key(tmp_path: Path) -> None:
    run_import("frp", ["frpc.yaml"], tmp_path / "out")
    keys = {entries(tmp_path / "out" / name)["web"]["key"] for name in ("server.yaml", "client.yaml")}
    assert len(keys) == 1
    assert str(keys.pop()).startswith("npk_")


def test_nodepass_options_and_variables_are_translated(tmp_path: Path) -> None:
    run_import("nodepass", ["nodepass.sh"], tmp_path / "shell")
    run_import("nodepass", ["nodepass-instances.json"], tmp_path / "master")
    shell = entries(tmp_path / "shell" / "tunnels.yaml")
    assert set(shell) == {"server-10101", "client-10102", "client-10101"}
    assert shell["server-10101"] == {
        "url": "server://0.0.0.0:10101/0.0.0.0:8080",
        "key": "a-long-secret-42-heron",
        "log": "info",
        "mode": "reverse",
        "max_pool_capacity": 512,
        "semaphore_limit": 900,
    }
    client = shell["client-10102"]
    assert (client["auth"], client["idle_timeout"], client["proxy"]) == ("open", "10m", "v1")
    assert (client["report_interval"], client["client_cooldown"]) == ("10s", "3s")
    master = entries(tmp_path / "master" / "tunnels.yaml")
    assert master["shop"]["tags"] == ["region=eu", "owner=shop"]
    assert (master["shop-2"]["enabled"], master["shop-2"]["targets"]) == (False, ["10.0.0.1:80", "10.0.0.2:80"])


# --- traffic ----------------------------------------------------------------------------------------------------------


def answer_or_echo(sock: socket.socket) -> None:
    """Answer a check over HTTP; send anything else back."""
    data = sock.recv(1 << 16)
    if data.startswith(b"GET "):
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    elif data:
        sock.sendall(data + receive_all(sock))
    sock.shutdown(socket.SHUT_WR)


def is_served(port: int, payload: bytes) -> bool:
    """Whether the target's answer arrives; it may start with a PROXY header, which the target sends back too."""
    try:
        return exchange(("127.0.0.1", port), payload).endswith(payload)
    except OSError:
        return False


def test_imported_files_of_frp_and_rathole_carry_traffic(tmp_path: Path) -> None:
    ends: dict[str, dict[str, dict[str, object]]] = {"server": {}, "client": {}}
    ports: dict[str, int] = {}
    with running_harness(tmp_path) as harness:
        target = harness.start_target(answer_or_echo)
        other = harness.start_target(answer_or_echo)
        for program, names in IMPORTS[:7]:
            run_import(program, names, tmp_path / names[0])
            for end, found in ends.items():
                for name, entry in entries(tmp_path / names[0] / f"{end}.yaml").items():
                    tunnel = str(entry["url"]).rpartition("/")[0]
                    tunnel_port = ports.setdefault(f"{names[0]} tunnel {tunnel.rpartition(':')[2]}", free_port())
                    visitors = ports.setdefault(f"{names[0]} {name}", free_port())
                    host = "127.0.0.1" if end == "client" else tunnel.partition("://")[2].rpartition(":")[0]
                    where = f"127.0.0.1:{target.port}" if end == "client" else f"127.0.0.1:{visitors}"
                    entry["url"] = f"{end}://{host}:{tunnel_port}/{where}"
                    if "targets" in entry:
                        entry["targets"] = [where, f"127.0.0.1:{other.port}"]
                    if "mode" not in entry:
                        entry["mode"] = "reverse"
                    found[f"{names[0]} {name}"] = entry
        for end, found in ends.items():
            (tmp_path / f"{end}.yaml").write_text(json.dumps({"version": 1, "tunnels": found}))
            socket_path = str(tmp_path / f"{end}.sock")
            variables = {"FRP_TOKEN": FRESH_KEY, "XDG_STATE_HOME": str(tmp_path / "state")}
            harness.start_command(
                "up", str(tmp_path / f"{end}.yaml"), "--no-tui", "--socket", socket_path, env=variables
            )
        enabled = [name for name, entry in ends["client"].items() if entry.get("enabled", True)]
        assert len(enabled) >= 17
        for name in enabled:
            served = partial(is_served, ports[name], name.encode())
            wait_until(served, f"the entry {name!r} carries traffic", within=10)


# --- single rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("translate", "text", "name", "sentence"),
    [
        (frp.translate, "a = 1\nb = ?\n", "frpc.toml", "frpc.toml:2: this is not TOML"),
        (frp.translate, "{{ range }}", "frpc.toml", "expand such templates ({{ … }}) first"),
        (frp.translate, "- a\n- b\n", "frpc.yaml", "a mapping is expected"),
        (frp.translate, "a: [", "frpc.yaml", "frpc.yaml:1: this is not YAML"),
        (frp.translate, "{", "frpc.json", "frpc.json:1:2: this is not JSON"),
        (frp.translate, "bindPort = 7000\n", "frps.toml", "name their files as well: import frp FRPS FRPC…"),
        (frp.translate, "a = 1\n[common]\n", "frpc.ini", "frpc.ini:1: a [section] is missing before this line"),
        (frp.translate, "[common]\n = 3\n", "frpc.ini", "frpc.ini:2: this is not a line of an INI file"),
        (rathole.translate, "[clint]\n", "r.toml", "it has neither [server] nor [client]"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    translate: Callable[[list[ForeignFile]], object], text: str, name: str, sentence: str
) -> None:
    with pytest.raises(ImportFileError, match=re.escape(sentence)):
        translate([source(text, name)])


def test_two_servers_of_frp_are_not_imported_at_once() -> None:
    with pytest.raises(ImportFileError, match="import one server at a time"):
        frp.translate([source("bindPort = 1", "a.toml"), source("bindPort = 2", "b.toml")])


def test_clients_of_one_server_share_its_file() -> None:
    texts = [f'serverAddr = "h"\nserverPort = {port}\n{PROXY.replace("2", str(port))}' for port in (7000, 7009)]
    sources = [source("bindPort = 7000", "frps.toml"), source(texts[0], "a.toml"), source(texts[1], "b.toml")]
    found = frp.translate(sources, lambda: FRESH_KEY)
    assert [draft.url for draft in found.server] == [
        "server://0.0.0.0:7000/0.0.0.0:7000",
        "server://0.0.0.0:7000/0.0.0.0:7009",
    ]
    assert set(found.clients) == {"a.toml", "b.toml"}
    assert "7009 differs from the bindPort of frps, 7000" in str(sources[2].notes[0])
    assert "both have the same address" not in str(sources[1].notes)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ('type = "udp"\nlocalPort = 1\nremotePort = 2', None),
        ('type = "http"', "visitors are not routed by host name"),
        ('type = "xtcp"', "a tunnel between two clients"),
        ("localPort = 70000\nremotePort = 1", "'70000' is not a number from 1 to 65535"),
        ('localPort = "{{ x }}"', "is not a number"),
        ("localPort = [1]", "localPort: is not a text"),
        (
            'localPort = 1\nremotePort = 2\ntransport.bandwidthLimit = "lots"',
            "transport.bandwidthLimit: is left out: it is not a number",
        ),
        ("localPort = 1\nremotePort = 2\nnovelty = 1", "novelty: has no counterpart"),
        ("localPort = 1\nremotePort = 2\nmetadatas.a = 'b'", "only plugins of frps use it"),
    ],
)
def test_each_setting_of_a_proxy_that_has_no_counterpart_is_noted(lines: str, sentence: str | None) -> None:
    _, notes = from_frp(f'serverAddr = "h"\n[[proxies]]\nname = "p"\n{lines}\n')
    assert sentence is None or any("proxy 'p'" in note and sentence in note for note in notes)


@pytest.mark.parametrize(("limit", "rate"), [("1MB", "8388kbit"), ("512KB", "4194kbit"), ("1.5MB", "12582kbit")])
def test_a_limit_of_the_bandwidth_becomes_a_rate(limit: str, rate: str) -> None:
    (draft,), notes = from_frp(f'auth.token = "t"\n{PROXY}transport.bandwidthLimit = "{limit}"\n')
    assert (draft.options["rate"], notes) == (rate, [])
    (draft,), notes = from_frp(
        f"[common]\ntoken = t\n[p]\nlocal_port = 1\nremote_port = 2\nbandwidth_limit = {limit}\n", "frpc.ini"
    )
    assert (draft.options["rate"], notes) == (rate, [])


@pytest.mark.parametrize(
    ("setting", "left", "sentence"),
    [
        ("", {}, None),
        ('transport.bandwidthLimit = "1MB"', {}, "limits of the bandwidth are for TCP here"),
        ('transport.proxyProtocolVersion = "v1"', {}, "for UDP there is v2 alone"),
        ('transport.proxyProtocolVersion = "v2"', {"proxy": "v2"}, "the header is before each datagram"),
    ],
)
def test_a_udp_proxy_of_frp_is_translated_without_what_is_for_tcp_alone(
    setting: str, left: dict[str, str], sentence: str | None
) -> None:
    (draft,), notes = from_frp(f'auth.token = "{FRESH_KEY}"\n{PROXY}type = "udp"\n{setting}\n')
    assert draft.options == {"key": FRESH_KEY, "service": "p", "proto": "udp", **left}
    assert len(notes) == (sentence is not None)
    assert all(str(sentence) in note for note in notes)
    assert written(draft).drafts, "check accepts the entry"


def test_a_udp_service_of_rathole_is_translated() -> None:
    text = f'[client]\nremote_addr = "h:1"\n[client.services.d]\ntype = "udp"\ntoken = "{FRESH_KEY}"\n'
    one = source(text + 'local_addr = "127.0.0.1:53"\n', "client.toml")
    ((draft,),) = rathole.translate([one]).clients.values()
    assert (draft.options["proto"], one.notes) == ("udp", [])
    assert written(draft).drafts, "check accepts the entry"


def test_a_disabled_proxy_of_frp_becomes_a_disabled_entry() -> None:
    drafts, _ = from_frp(f'auth.token = "t"\n{PROXY}enabled = false\n')
    assert [draft.enabled for draft in drafts] == [False]


# --- groups of frp ----------------------------------------------------------------------------------------------------


def member(name: str, target_port: int, group: str = "g", more: str = "") -> str:
    """Return a proxy of a group at the port 2."""
    return (
        f'[[proxies]]\nname = "{name}"\nlocalPort = {target_port}\nremotePort = 2\n'
        f'loadBalancer.group = "{group}"\nloadBalancer.groupKey = "k"\n{more}'
    )


def translate_clients(*texts: str, token: str = FRESH_KEY) -> tuple[frp.Translation, list[str]]:
    heads = [f'auth.token = "{token}"\n'] + [f'auth.token = "{FRESH_KEY}"\n'] * (len(texts) - 1)
    sources = [source(head + text, f"{name}.toml") for head, text, name in zip(heads, texts, "abcd", strict=False)]
    return frp.translate(sources), [str(note) for one in sources for note in one.notes]


def test_a_group_of_several_files_becomes_one_server_with_several_clients() -> None:
    found, notes = translate_clients(member("one", 3), member("two", 4) + member("three", 5), member("four", 6))
    (server,) = found.server
    assert (server.options["service"], server.options["clients"]) == ("one", "3")
    clients = {name: [(draft.name, draft.url, draft.targets) for draft in each] for name, each in found.clients.items()}
    assert clients == {
        "a.toml": [("one", "client://127.0.0.1:7000/127.0.0.1:3", [])],
        "b.toml": [("two", "client://127.0.0.1:7000/127.0.0.1:4", ["127.0.0.1:4", "127.0.0.1:5"])],
        "c.toml": [("four", "client://127.0.0.1:7000/127.0.0.1:6", [])],
    }
    assert {draft.options["service"] for drafts in found.clients.values() for draft in drafts} == {"one"}
    assert notes == []
    for drafts in (found.server, *found.clients.values()):
        assert len(written(*drafts).drafts) == len(drafts), "check accepts all entries"


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (member("two", 4, "h"), "b.toml:3: proxy 'two': is left out: its remotePort is that of 'one'"),
        (member("two", 4).replace('"k"', '"l"'), "its loadBalancer.groupKey is another one"),
        (member("two", 4, more="enabled = false\n"), "it is disabled, and all proxies of a group have one entry"),
    ],
)
def test_a_proxy_that_does_not_belong_to_the_group_at_its_port_is_left_out(second: str, sentence: str) -> None:
    found, notes = translate_clients(member("one", 3), second)
    assert (len(found.server), found.clients["b.toml"]) == (1, [])
    assert "clients" not in found.server[0].options
    assert any(sentence in note for note in notes)


def test_a_client_of_a_group_needs_the_token_of_the_first() -> None:
    found, notes = translate_clients(member("one", 3), member("two", 4), token="another-token")
    assert found.clients["b.toml"] == []
    assert "its token is another one" in notes[0]


def test_targets_of_one_group_have_the_settings_of_the_first() -> None:
    _, notes = translate_clients(member("one", 3) + member("two", 4, more='healthCheck.type = "tcp"\n'))
    assert notes == ["a.toml:9: proxy 'two': is a target of 'one', whose settings apply to all its targets"]


# --- authentication and states ----------------------------------------------------------------------------------------


def test_another_way_of_authentication_gives_a_fresh_key() -> None:
    (draft,), notes = from_frp(f'auth.method = "oidc"\nauth.token = "t"\n{PROXY}')
    assert draft.options["key"] == FRESH_KEY
    assert "auth.method: 'oidc' has no counterpart; the key stands alone" in notes[0]


def test_a_token_file_becomes_a_key_file() -> None:
    text = 'auth.tokenSource.type = "file"\nauth.tokenSource.file.path = "/etc/frp/token"\n'
    (draft,), _ = from_frp(text + PROXY)
    assert draft.options["key_file"] == "/etc/frp/token"


def translate_nodepass(text: str, name: str = "start.sh") -> tuple[list[Draft], list[str]]:
    one = source(text, name)
    drafts = nodepass.translate(one)
    return drafts, [str(note) for note in one.notes]


def test_a_variable_of_nodepass_without_a_counterpart_is_noted() -> None:
    text = (
        "NP_TCP_DIAL_TIMEOUT=9s NP_POOL_GET_TIMEOUT=1s REPORT_INTERVAL=2s OTHER=1 nodepass client://k@h:1/h:2?noudp=1"
    )
    (draft,), notes = translate_nodepass(text)
    assert draft.options["report_interval"] == "2s"
    assert notes == [
        "start.sh:1: NP_TCP_DIAL_TIMEOUT is left out: see dial_timeout, at the end that dials the target",
        "start.sh:1: NP_POOL_GET_TIMEOUT is left out: it has no counterpart",
    ]
    compose = "services:\n  a:\n    environment: {NP_NEW: 1}\n    command: client://k@h:1/h:2?noudp=1\n"
    _, notes = translate_nodepass(compose, "compose.yaml")
    assert notes == ["compose.yaml:2: NP_NEW is left out: it has no counterpart"]


def test_a_variable_of_nodepass_whose_value_is_a_variable_is_noted() -> None:
    _, notes = translate_nodepass("NP_REPORT_INTERVAL=${EVERY:-5s} nodepass client://k@h:1/h:2?noudp=1")
    assert "has REPORT_INTERVAL from a variable, which is left out: write its value as report_interval:" in notes[0]


def test_a_url_of_nodepass_for_udp_keeps_what_udp_has() -> None:
    (draft,), notes = translate_nodepass(f"nodepass client://{FRESH_KEY}@h:1/h:2?notcp=1&rate=50&proxy=1")
    assert draft.options == {"key": FRESH_KEY, "proto": "udp"}
    assert [note.partition(" has ")[2] for note in notes] == [
        "rate=, which is left out: limits of the bandwidth are for TCP here"
    ]
    assert written(draft).drafts, "check accepts the entry"
    (draft,), _ = translate_nodepass("nodepass client://k@h:1/h:2?rate=50")
    assert draft.options["rate"] == "50mbit"


def test_the_reasons_are_listed_when_no_instance_has_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "instances.json").write_text('[{"id": "a", "url": ""}, {"id": "b", "url": "server:// "}]')
    assert command_line.run(["import", "nodepass", str(tmp_path / "instances.json")]) == 2
    listed = capsys.readouterr().err
    assert "instances.json: instance 1: the instance has no URL of a server or client" in listed
    assert "there is no URL of nodepass" in listed


def test_the_state_of_a_master_is_asked_for_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nodepass.gob").write_bytes(b"\x0c\xff\x00\x01")
    assert command_line.run(["import", "nodepass", str(tmp_path / "nodepass.gob")]) == 2
    assert "/api/v1/instances > instances.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "code", "sentence"),
    [
        (b"\xff\xfe", 1, "it is not UTF-8 text"),
        (b"nothing here\n", 2, "there is no URL of nodepass"),
        (b"nodepass master://h:1/api\n", 1, "nothing could be translated, so no file is written"),
    ],
)
def test_an_import_without_a_result_writes_nothing(
    content: bytes, code: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").write_bytes(content)
    assert command_line.run(["import", "nodepass", str(tmp_path / "old"), "--directory", str(tmp_path)]) == code
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


# --- what is written --------------------------------------------------------------------------------------------------


def written(*drafts: Draft) -> WrittenFile:
    return write_file(drafts, ["made by a test"])


def test_an_entry_that_check_rejects_is_left_out_with_its_reason() -> None:
    good = Draft("a", "client://h:1/h:2", "old:1", {"auth": "open"})
    bad = Draft("b", "client://h:0/h:2", "old:2", {"auth": "open"})
    file = written(good, bad)
    assert [draft.name for draft in file.drafts] == ["a"]
    assert [str(note) for note in file.notes] == [
        "old:2: is left out: a client cannot connect to port 0; write the server's port"
    ]


def test_an_entry_that_clashes_with_another_names_the_place_of_both_in_the_source() -> None:
    drafts = [Draft(name, "server://127.0.0.1:1/127.0.0.1:2", f"a.toml:{name}", {"key": FRESH_KEY}) for name in "34"]
    (note,) = written(*drafts).notes
    assert note.place == "a.toml:4"
    assert "'3' at a.toml:3 listens on" in note.text


def test_a_url_that_is_none_is_rejected_in_no_time() -> None:
    """A pattern that tries every way to read the variables would take longer than the universe has."""
    text = json.dumps([{"url": "server://" + "${a}" * 200 + " "}])
    instances = source(text, "instances.json")
    with pytest.raises(ImportFileError, match="there is no URL of nodepass"):
        nodepass.translate(instances)
    assert [note.text for note in instances.notes] == ["the instance has no URL of a server or client"]


def test_names_are_unique_and_many_entries_are_bounded() -> None:
    drafts = [Draft("web", f"client://h:1/h:{port}", "old:1", {"auth": "open"}) for port in range(2, MAX_DRAFTS + 4)]
    file = written(*drafts[:3])
    assert [draft.name for draft in file.drafts] == ["web", "web-2", "web-3"]
    assert {clean_name(text) for text in (" ", "..", "server://x")} == {"tunnel"}
    assert join_address("::1", 7) == join_address("[::1]", "7") == "[::1]:7"


def test_a_weak_token_is_noted() -> None:
    file = written(Draft("a", "client://h:1/h:2", "old:1", {"key": "secret"}))
    assert "the key is weak" in str(file.notes[0])


@given(st.text(max_size=40), st.text(max_size=40), st.lists(st.text(max_size=20), max_size=2))
@example("", "\x85", ["\u2028"])
@settings(max_examples=25, deadline=None)
def test_any_text_in_a_name_a_key_or_a_tag_survives_the_file(name: str, key: str, tags: list[str]) -> None:
    file = written(Draft(name, "client://h:1/h:2", "old:1", {"key": key}, tags=tags))
    if file.drafts:
        (entry,) = load(Path("x.yaml"), {}, content=file.text.encode()).entries
        assert entry.spec.key is not None
        assert entry.spec.key.reveal() == key
        assert list(entry.tags) == tags
    else:
        assert file.notes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70000) | st.text(max_size=12) | st.sampled_from(["tcp", "udp", "h:1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    re.findall(
        r"\w+",
        "serverAddr serverPort proxies visitors auth start name type localPort remotePort healthCheck plugin services "
        "server client bind_addr remote_addr local_addr token transport url id alias meta tags command environment",
    )
)
TREES = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)


@given(
    st.dictionaries(KEYS, TREES, max_size=5),
    st.binary(max_size=200),
    st.sampled_from(["json", "yaml", "ini", "toml", "sh"]),
)
@settings(max_examples=30, deadline=None)
def test_no_input_ends_an_import_with_a_traceback(tree: dict[str, object], raw: bytes, suffix: str) -> None:
    for text in (json.dumps(tree), raw.decode("utf-8", "replace"), "[common]\n" + raw.decode("latin-1")):
        one = source(text, f"old.{suffix}")
        with contextlib.suppress(ImportFileError):
            frp.translate([one])
        with contextlib.suppress(ImportFileError):
            rathole.translate([one])
        with contextlib.suppress(ImportFileError):
            written(*nodepass.translate(one))


RANGES = """\
serverAddr = "{{ .Envs.SERVER }}"
auth.token = "{{ .Envs.TOKEN }}"
{{- range $_, $v := parseNumberRangePair "6000-6001,6007" "7100-7101,7107" }}
[[proxies]]
name = "tcp-{{ $v.First }}"
type = "tcp"
localPort = {{ $v.First }}
remotePort = {{ $v.Second }}
transport.useCompression = true
{{- end }}
{{ range $number, $port := parseNumberRange "53" }}
[[proxies]]
name = "udp{{ $number }}"
type = "udp"
localPort = {{ $port }}
remotePort = {{ $port }}
{{ end }}
[[proxies]]
name = "last"
type = "stcp"
"""


def test_ranges_and_variables_of_templates_are_expanded() -> None:
    one = source(RANGES, "frpc.toml")
    (drafts,) = frp.translate([one], environ={"SERVER": "frp.example.org"}).clients.values()
    assert {draft.name: draft.url for draft in drafts} == {
        **{f"tcp-{port}": f"client://frp.example.org:7000/127.0.0.1:{port}" for port in (6000, 6001, 6007)},
        "udp0": "client://frp.example.org:7000/127.0.0.1:53",
    }
    assert {str(draft.options["key"]) for draft in drafts} == {"${TOKEN}"}
    notes = [str(note) for note in one.notes]
    assert notes[0].startswith("frpc.toml:9: proxy 'tcp-6000' transport.useCompression: ")
    assert notes[-1].startswith("frpc.toml:19: proxy 'last': is left out: a tunnel between two clients")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('serverAddr = "{{ .Envs.SERVER }}"', "frpc.toml:1: the variable SERVER is not set; name its value: SERVER=…"),
        ('\n{{ range $v := parseNumberRange "1-" }}\n{{ end }}', "frpc.toml:2: a range has one list of at most"),
        ('{{ range $v := parseNumberRangePair "1-2" "1" }}\n{{ end }}', "or two equally long ones, as in 6000-6006"),
        ('{{ range $v := parseNumberRange "1-70000" }}\n{{ end }}', "frpc.toml:1: a range has one list of at most"),
        ('{{ range $v := parseNumberRange "1-1000" }}\n' + "x" * 9000, "frpc.toml:1: the ranges make more than 4 MiB"),
        ('{{ range $v := parseNumberRange "1-9" }}\na = 1\n= 2\n{{ end }}', "frpc.toml:3: this is not TOML"),
    ],
)
def test_a_template_that_cannot_be_expanded_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ImportFileError) as caught:
        frp.translate([source(text, "frpc.toml")])
    assert message in str(caught.value)


@given(st.text(alphabet='{}- $v:=".Envs0123456789\n', max_size=60))
def test_any_template_is_expanded_or_refused_with_a_sentence(text: str) -> None:
    with contextlib.suppress(ImportFileError):
        frp.translate([source('{{ range $v := parseNumberRange "1-3" }}\n' + text, "frpc.toml")])
