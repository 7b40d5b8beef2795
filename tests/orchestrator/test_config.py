"""Loading the configuration file: what it may contain, and every fault at its place."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.faults import ConfigError
from orchestrator.config.load import load
from orchestrator.config.manifest import Manifest, addresses_conflict
from orchestrator.config.schema import json_schema
from tests.support.engine_parts import pem
from tests.support.strategies import recognisable_keys
from tunnel.model.address import Address
from tunnel.model.keys import Key
from tunnel.model.options import KEY_VARIABLE
from tunnel.model.spec import DataTls, LogLevel, Mode, Role

ROOT = Path(__file__).parent.parent.parent
KEY = "0bQWtbo5m2kY8wSfXc3HrLZ1vN7pTdEa"
SAMPLES = sorted(p for p in ROOT.glob("configs/**/*.yaml") if p.name != "compose.yaml")


class Folder:
    """A folder of files; ``load`` reads tunnels.yaml of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str | bytes, name: str = "tunnels.yaml") -> None:
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def load(self, text: str | bytes | None = None, **environ: str) -> Manifest:
        if text is not None:
            self.write(text)
        return load(self.path / "tunnels.yaml", {KEY_VARIABLE: KEY, **environ})

    def faults(self, text: str | bytes | None = None, **environ: str) -> list[str]:
        """Each fault as ``LINE:COLUMN: message``, or with the file's name where that is another one."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, **environ)
        return [str(f).removeprefix(f"{self.path}/").removeprefix("tunnels.yaml:") for f in caught.value.faults]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_the_example_of_the_contract_is_valid(folder: Folder) -> None:
    folder.write("version: 1\ntunnels: {c: 'client://h:1/h:2'}", "tunnels.d/more.yaml")
    manifest = folder.load(
        """
version: 1
supervisor:                      # all optional
  api: np.sock
  metrics: 127.0.0.1:9464
  drain_timeout: 30s
  workers: 0
  mqtt: {url: "mqtt://broker:1883", host: edge-1, username: edge-1, password_file: pw, ca: ca.pem, commands: true}
defaults: {min_pool_capacity: 16, log: info}
include: [tunnels.d/*.yaml]
tunnels:
  web: server://0.0.0.0:10101/internal-web:3000?log=debug
  db:
    url: client://server-host:10101/0.0.0.0:5432
    key: ${DB_KEY}               # ${NAME} and ${NAME:-default} anywhere; or key_file:
    max_pool_capacity: 256
    enabled: true
    tags: [prod]
""",
        DB_KEY="k3y",
    )
    web, db, more = manifest.entries
    assert (web.spec.role, web.spec.log, web.spec.settings.min_pool_capacity) == (Role.SERVER, LogLevel.DEBUG, 16)
    assert (db.spec.key, db.spec.settings.max_pool_capacity, db.tags) == (Key("k3y"), 256, ("prod",))
    assert (more.name, more.spec.settings.min_pool_capacity) == ("c", 16)
    assert (web.origin.line, web.origin.column) == (12, 3)
    section = manifest.supervisor
    assert section.api.socket == folder.path / "np.sock"
    assert (section.metrics, section.drain_timeout) == (Address("127.0.0.1", 9464), 30.0)
    assert section.mqtt is not None
    assert section.mqtt.commands is True
    assert {path.name for path in manifest.sources.files} == {"tunnels.yaml", "more.yaml"}


def test_a_list_of_entries_equals_a_mapping_of_entries(folder: Folder) -> None:
    mapping = folder.load(
        "version: 1\ntunnels:\n  a: {url: 'server://:1/h:2', tags: [x]}\n  b: {url: 'server://:3/h:4'}"
    )
    listed = folder.load(
        "version: 1\ntunnels:\n- {name: a, url: 'server://:1/h:2', tags: [x]}\n- {name: b, url: 'server://:3/h:4'}"
    )
    assert mapping.entries == listed.entries


def test_entries_are_equal_if_they_need_the_same_engine(folder: Folder) -> None:
    before = folder.load("version: 1\ntunnels:\n  a: server://:1/h:2\n  b: server://:3/h:4")
    after = folder.load(
        "# moved\nversion: '1'\ndefaults: {semaphore_limit: 7}\ntunnels:\n\n"
        "  b: server://:3/h:4\n  a:\n    url: server://:1/h:2\n    semaphore_limit: 1024"
    )
    old = {entry.name: entry for entry in before.entries}
    new = {entry.name: entry for entry in after.entries}
    assert old["b"] != new["b"]
    assert old["a"].spec.settings.semaphore_limit == new["a"].spec.settings.semaphore_limit


@pytest.mark.parametrize(
    "text", ["version: 1", "version: 1\ntunnels:", "version: 1\ntunnels: {}", "version: 1\ntunnels: []"]
)
def test_a_file_without_tunnels_is_valid(folder: Folder, text: str) -> None:
    assert folder.load(text).entries == ()


def test_the_url_overrides_the_entry_the_defaults_and_the_environment(folder: Folder) -> None:
    text = """
version: 1
defaults: {semaphore_limit: 3, signal_buffer: 3, report_interval: 3s}
tunnels:
  a:
    url: server://:1/h:2?semaphore_limit=1
    semaphore_limit: 2
    signal_buffer: 2
"""
    environ = {"SEMAPHORE_LIMIT": "4", "SIGNAL_BUFFER": "4", "REPORT_INTERVAL": "4s", "SHUTDOWN_TIMEOUT": "4s"}
    settings = folder.load(text, **environ).entries[0].spec.settings
    chosen = (settings.semaphore_limit, settings.signal_buffer, settings.report_interval, settings.shutdown_timeout)
    assert chosen == (1, 2, 3.0, 4.0)


def test_the_log_level_of_the_command_line_applies_where_the_file_has_none(folder: Folder) -> None:
    folder.write("version: 1\ntunnels:\n  a: server://:1/h:2\n  b: server://:3/h:4?log=error")
    levels = [entry.spec.log for entry in load(folder.path / "tunnels.yaml", {KEY_VARIABLE: KEY}, "debug").entries]
    assert levels == [LogLevel.DEBUG, LogLevel.ERROR]


def test_a_scalar_is_the_text_of_the_file(folder: Folder) -> None:
    entry = folder.load(
        "version: 1\ntunnels:\n  0123:\n    url: server://:1/h:2\n"
        "    key: 0123\n    mode: 2\n    tls: 1\n    tags: [yes, 1.0]"
    ).entries[0]
    assert (entry.name, entry.spec.key, entry.tags) == ("0123", Key("0123"), ("yes", "1.0"))
    assert (entry.spec.mode, entry.spec.data_tls) == (Mode.FORWARD, DataTls.ENCRYPTED)


def test_variables_are_replaced_by_their_values_or_defaults(folder: Folder) -> None:
    text = """
version: ${V:-1}
tunnels:
  ${HOST}-web:
    url: server://:${PORT:-1}/${TARGET}
    key: a$$b${EMPTY:-}$c
    tags: ["${HOST}"]
"""
    entry = folder.load(text, HOST="edge", TARGET="web:3000", PORT="").entries[0]
    assert (entry.name, str(entry.spec.tunnel), str(entry.spec.target)) == ("edge-web", ":1", "web:3000")
    assert (entry.spec.key, entry.tags) == (Key("a$b$c"), ("edge",))


def test_file_names_are_relative_to_the_file_that_contains_them(folder: Folder) -> None:
    folder.write("outer\n", "a.key")
    folder.write("inner\n", "d/a.key")
    folder.write("version: 1\ntunnels: {in: {url: 'server://:3/h:4', key_file: a.key}}", "d/x.yaml")
    manifest = folder.load("version: 1\ninclude: d/*.yaml\ntunnels:\n  out: server://:1/h:2?key_file=a.key")
    assert [entry.spec.key for entry in manifest.entries] == [Key("outer"), Key("inner")]


def test_the_defaults_of_an_included_file_apply_to_its_entries_only(folder: Folder) -> None:
    folder.write("defaults: {signal_buffer: 2}\ntunnels: {b: 'server://:3/h:4'}", "x.yaml")
    manifest = folder.load(
        "version: 1\ninclude: x.yaml\ndefaults: {signal_buffer: 1, semaphore_limit: 9}\ntunnels: {a: 'server://:1/h:2'}"
    )
    found = [(e.spec.settings.signal_buffer, e.spec.settings.semaphore_limit) for e in manifest.entries]
    assert found == [(1, 9), (2, 9)]


def test_merge_keys_copy_the_keys_of_an_alias(folder: Folder) -> None:
    manifest = folder.load(
        "version: 1\ntunnels:\n  a: &a {url: 'server://:1/h:2', tags: [x]}\n  b: {<<: *a, url: 'server://:3/h:4'}"
    )
    assert [(str(e.spec.tunnel), e.tags) for e in manifest.entries] == [(":1", ("x",)), (":3", ("x",))]


def test_a_name_may_contain_any_printable_text(folder: Folder) -> None:
    names = ["[red]bold[/]", "x" * 200, "表の名前", "a b", "${}"[:1], "edge+1#2"]
    body = "".join(f"  {name!r}: server://:{port}/h:1\n" for port, name in enumerate(names, 100))
    assert [entry.name for entry in folder.load(f"version: 1\ntunnels:\n{body}").entries] == names


def test_all_faults_of_a_file_are_reported_together(folder: Folder) -> None:
    text = """\
version: 1
defaults:
  report_interval: 5
tunnels:
  a: server://0.0.0.0:10101/h:1?sempahore_limit=3
  b:
    url: client://h:99999/0.0.0.0:5432
  c:
    url: client://h:1/h:2
    mode: sideways
  a: server://:5/h:6
  d: {urll: "server://:7/h:8"}
"""
    assert folder.faults(text) == [
        "3:20: report_interval: '5' is not a duration with its unit; did you mean 5s?",
        "5:33: unknown option 'sempahore_limit'; did you mean 'semaphore_limit'?",
        "7:21: the port '99999' of the tunnel address is not a number from 0 to 65535",
        "10:11: mode: 'sideways' is not one of auto, 0, reverse, 1, forward, 2",
        "11:3: duplicate key 'a' (first defined in line 5); remove one",
        "12:7: unknown key 'urll' in an entry; did you mean 'url'?",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "1:1: the file is empty"),
        ("# nothing\n", "1:1: the file is empty"),
        ("- a\n- b", "1:1: a mapping is expected here"),
        ("version: 1\n---\nversion: 1", "2:1: a second YAML document starts here"),
        ("tunnels:", "1:1: version: is missing"),
        ("version: 2", "1:10: version '2' is not supported; write version: 1"),
        ("version: 1\ntunels: {}", "2:1: unknown key 'tunels' in a file of tunnels; did you mean 'tunnels'?"),
        ("version: 1\ntunnels: web", "2:10: tunnels: takes a mapping NAME: URL"),
        ("version: 1\ntunnels: {a: [x]}", "2:14: an entry is a URL or a mapping"),
        ("version: 1\ntunnels: {a: {enabled: true}}", "2:14: the entry has no url: (url: server://… or client://…)"),
        ("version: 1\ntunnels: [{url: 'server://:1/h:2'}]", "2:11: the entry has no name:"),
        ("version: 1\ntunnels: ['server://:1/h:2']", "2:12: an entry of a list is a mapping"),
        ("version: 1\ntunnels: {a: }", "2:14: url is empty"),
        ("version: 1\ntunnels: {a: {url: 'server://:1/h:2', enabled: perhaps}}", "2:48: enabled: write true or false"),
        ("version: 1\ntunnels: {a: {url: 'server://:1/h:2', tags: {x: y}}}", "2:45: tags takes a list of texts"),
        ("version: 1\ntunnels: {a: {url: 'server://:1/h:2', log: [x]}}", "2:44: log takes one text"),
        ("version: 1\ntunnels: {a: {url: 'server://:1/h:2', key: }}", "2:44: key is empty"),
        ("version: 1\ntunnels: {'a\\tb ': 'server://:1/h:2'}", "2:12: a name is a printable text"),
        ("version: 1\ntunnels: {'..': 'server://:1/h:2'}", "2:12: '..' cannot be a name"),
        ("version: 1\ntunnels: {server://:1/h:2: }", "2:11: a name is missing before this URL"),
        (f"version: 1\ntunnels: {{{'x' * 201}: 'server://:1/h:2'}}", "2:11: a name has at most 200 characters"),
        ("version: 1\nsupervisor: {worker: 1}", "2:14: unknown key 'worker' in supervisor; did you mean 'workers'?"),
        ("version: 1\nsupervisor: {workers: -1}", "2:23: workers: '-1' is not a whole number from 0 to 256"),
        ("version: 1\nsupervisor: {drain_timeout: 30}", "2:29: drain_timeout: '30' is not a duration"),
        ("version: 1\nsupervisor: {metrics: here}", "2:23: metrics: the address 'here' has no port"),
        ("version: 1\nsupervisor: {mqtt: {host: a}}", "2:20: url: is missing in supervisor.mqtt"),
        ("version: 1\nsupervisor: {mqtt: {url: 'mqtt://u:p@b'}}", "2:27: mqtt.url: the URL of a broker contains"),
        ("version: 1\nsupervisor: {api: {soket: x}}", "2:20: unknown key 'soket' in supervisor.api; did you"),
        ("version: 1\nsupervisor: {api: {listen: ':1'}}", "2:19: api: listen: needs token_file:, because"),
        ("version: 1\nsupervisor: {api: [x]}", "2:19: api: a mapping is expected here"),
        ("version: 1\nsupervisor: x", "2:13: supervisor: takes a mapping"),
        ("version: 1\ndefaults: x", "2:11: defaults: takes a mapping"),
        ("version: 1\ndefaults: {url: x}", "2:12: unknown key 'url' in defaults"),
        ("version: 1\ninclude: nothere.yaml", "2:10: there is no file 'nothere.yaml' to include"),
        ("version: 1\ntunnels: {a: *b}", "2:14: no anchor &b is defined before this alias"),
        ("version: 1\ntunnels: &t {a: *t}", "2:17: the alias *t is inside the node that it refers to"),
        ("version: !!python/object:os.system 1", "1:10: the tag 'tag:yaml.org,2002:python/object:os.syst"),
        ("version: 1\n? {a: b}\n: c", "2:3: a key must be a text"),
        ("version: 1\ntunnels:\n\ta: b", "3:1: this is not YAML"),
        ("version: 1\ntunnels: {a: ${X}}", "2:15: this is not YAML: "),
        ("version: 1\ntunnels: {a: 'server://:1/h:2", "2:30: this is not YAML"),
        ("version: 1\ntunnels: {a: '${X'}", "2:14: this ${ is not ${NAME} or ${NAME:-default}"),
        ("version: 1\ntunnels: {a: '${X}'}", "2:14: the environment variable X is not set"),
        ("[" * 100 + "]" * 100, "1:34: this is nested deeper than 32 levels"),
        ("version: 1\ntunnels:\n  a: server://:1/h:2?min_pool_capacity=9&max_pool_capacity=3", "3:22: min_pool"),
        ("version: 1\ntunnels:\n  a: server://:1/h:2?tls=1&log=loud", "3:28: log: 'loud' is not one of"),
        ("version: 1\ntunnels:\n  a: {url: 'server://:1/h:2', tls_cert: x}", "3:13: tls_cert and tls_key go together"),
        ("version: 1\ntunnels:\n  a: server://k@:1/h:2?key_file=tunnels.yaml", "3:24: the URL has a key and"),
        ("version: 1\ntunnels:\n  a: server://:1/h:2?tls_cert=no.pem&tls_key=tunnels.yaml", "3:22: tls_cert: cannot"),
        ("version: 1\ntunnels:\n  a: {url: 'server://:1/h:2', key_file: no}", "3:41: key_file: cannot read"),
        ("version: 1\ntunnels:\n  a: {url: 'server://:1/h:2', key_file: no, key: x}", "3:41: key_file: "),
    ],
)  # fmt: skip
def test_each_fault_is_one_sentence_at_its_place(folder: Folder, text: str, fault: str) -> None:
    found = folder.faults(text)
    assert len(found) == 1, found
    assert found[0].startswith(fault), found[0]
    assert "\n" not in found[0]


def test_a_file_that_is_not_utf_8_text_is_a_fault(folder: Folder) -> None:
    assert folder.faults(b"version: 1\nx: \xff") == ["2:4: the file is not UTF-8 text; save it as UTF-8"]
    assert folder.faults(b"version: 1\nx: \x07") == ["2:4: the file contains the control character U+0007; remove it"]
    assert folder.load(b"\xef\xbb\xbfversion: 1").entries == ()
    assert "larger than 4 MiB" in folder.faults(b"#" * (5 << 20))[0]


def test_a_missing_file_and_a_directory_are_faults(folder: Folder) -> None:
    assert folder.faults()[0].startswith("1:1: there is no such file")
    (folder.path / "tunnels.yaml").mkdir()
    assert folder.faults() == ["1:1: cannot read the file: it is a directory, not a regular file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_a_fault(folder: Folder) -> None:
    folder.write("version: 1")
    (folder.path / "tunnels.yaml").chmod(0)
    assert folder.faults() == ["1:1: cannot read the file: Permission denied"]


def test_aliases_that_expand_to_too_many_keys_are_a_fault(folder: Folder) -> None:
    lines = ["version: 1", "a0: &a0 {" + ", ".join(f"k{i}: v" for i in range(1000)) + "}"]
    lines += [f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 20)}]}}" for i in range(20)]
    assert any("more than 200000 values" in fault for fault in folder.faults("\n".join(lines)))


def test_faults_of_included_files_name_them(folder: Folder) -> None:
    folder.write("tunnels:\n  a: server://:1/h:x\n", "d/one.yaml")
    folder.write("supervisor: {}\ninclude: [x]\n", "d/two.yaml")
    assert folder.faults("version: 1\ninclude: [d/*.yaml]") == [
        "d/one.yaml:2:20: the port 'x' of the target address is not a number from 0 to 65535",
        "d/two.yaml:1:1: unknown key 'supervisor' in an included file; known are version, defaults, tunnels",
        "d/two.yaml:2:1: unknown key 'include' in an included file; known are version, defaults, tunnels",
    ]


def test_a_file_that_matches_twice_or_itself_is_read_once(folder: Folder) -> None:
    folder.write("tunnels: {b: 'server://:3/h:4'}", "b.yaml")
    manifest = folder.load("version: 1\ninclude: ['*.yaml', b.yaml]\ntunnels: {a: 'server://:1/h:2'}")
    assert [entry.name for entry in manifest.entries] == ["a", "b"]


def test_a_name_may_not_occur_in_two_files(folder: Folder) -> None:
    folder.write("tunnels: {a: 'server://:3/h:4'}", "b.yaml")
    (fault,) = folder.faults("version: 1\ninclude: b.yaml\ntunnels: {a: 'server://:1/h:2'}")
    assert re.fullmatch(r"b\.yaml:1:11: duplicate tunnel name 'a' \(first defined at .*tunnels\.yaml:3:11\)", fault)


def test_a_port_of_udp_is_another_one_than_that_of_tcp(folder: Folder) -> None:
    text = (
        "version: 1\ntunnels:\n  a: server://:1/127.0.0.1:2?service=a\n  b: server://:1/127.0.0.1:2?service=b&proto=udp"
    )
    assert len(folder.load(text).entries) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("server://0.0.0.0:1/h:2", "server://127.0.0.1:1/h:3"),
        ("server://:1/h:2", "server://[::1]:1/h:3"),
        ("server://127.0.0.1:1/127.0.0.1:2", "server://127.0.0.1:3/127.0.0.1:2"),
        ("server://127.0.0.1:1/127.0.0.1:2", "server://127.0.0.1:2/h:3"),
        ("server://127.0.0.1:1/h:2", "client://h:7/127.0.0.1:1?mode=forward"),
        ("server://:1/127.0.0.1:2?proto=udp", "client://h:7/127.0.0.1:2?mode=forward&proto=udp"),
        ("server://:1/127.0.0.1:2?proto=both", "client://h:7/127.0.0.1:2?mode=forward&proto=udp"),
        ("server://:1/127.0.0.1:2?proto=tcp", "client://h:7/127.0.0.1:2?mode=forward&proto=both"),
        ("server://:1/127.0.0.1:2?proto=both&service=a", "server://:1/127.0.0.1:2?proto=both&service=b"),
        ("server://127.0.0.1:1/h:2?data_port=5", "server://localhost:5/h:2"),
    ],
)
def test_two_enabled_entries_cannot_listen_on_one_address(folder: Folder, one: str, other: str) -> None:
    text = f"version: 1\ntunnels:\n  a: {one}\n  b: {other}"
    (fault,) = folder.faults(text)
    assert fault.startswith("4:3: the tunnel would listen on ")
    assert "'a' at " in fault
    assert len(folder.load(text.replace(other, f"{{url: '{other}', enabled: false}}")).entries) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("server://127.0.0.1:1/h:2", "server://127.0.0.2:1/h:2"),
        ("server://127.0.0.1:0/h:2", "server://127.0.0.1:0/h:2"),
        ("client://h:7/127.0.0.1:2", "client://h:8/127.0.0.1:2"),
        ("server://0.0.0.0:1/h:2", "server://[::1]:1/h:2"),
    ],
)
def test_entries_on_different_addresses_do_not_conflict(folder: Folder, one: str, other: str) -> None:
    assert len(folder.load(f"version: 1\ntunnels:\n  a: {one}\n  b: {other}").entries) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("server://:1/h:2?service=a", "server://:1/h:3?service=b"),
        ("server://:1/h:2", "server://:1/h:3?service=b"),
        ("server://:1/h:2?service=a&data_port=9&tls=0", "server://:1/h:3?service=b&data_port=9&tls=1"),
        ("server://:1/h:2?service=a&proto=udp", "server://:1/h:3?service=b&proto=both"),
        ("server://:1/h:2?proto=udp&udp_carrier=stream", "server://:3/127.0.0.1:1?service=b&proto=udp"),
        ("server://:1/h:2?proto=udp", "server://:3/127.0.0.1:2?service=b"),
        ("server://h.test:1/h:2?service=a&data_port=tunnel", "server://h.test:1/h:2?service=b&data_port=tunnel"),
    ],
)
def test_servers_of_different_services_share_a_tunnel_port(folder: Folder, one: str, other: str) -> None:
    assert len(folder.load(f"version: 1\ntunnels:\n  a: {one}\n  b: {other}").entries) == 2


@pytest.mark.parametrize(
    ("one", "other", "place", "says"),
    [
        ("server://:1/h:2?service=a", "server://:1/h:3?service=a", "4:3", "give each a service of its own (service=,"),
        ("server://:1/h:2", "server://:1/h:3", "4:3", "to share the port, give each a service of its own"),
        ("server://:1/h:2?service=a", "server://[::]:1/h:3?service=b", "4:3", "write its address in the same way"),
        ("server://:1/h:2?data_port=5", "server://:9/h:3?service=b&data_port=5", "4:3", "listens on :5 already"),
        ("server://:1/127.0.0.1:2", "server://:1/127.0.0.1:2?service=b", "4:3", "listens on 127.0.0.1:2 already"),
        ("server://:1/h:2?data_port=1", "server://:7/h:3", "3:3", "would listen on :1 twice"),
        (
            "server://:1/127.0.0.1:2?proto=udp",
            "server://:3/127.0.0.1:1?service=b&proto=udp",
            "4:3",
            "listens on :1 (UDP) already; 'a' carries datagrams between client and server there: take another port, or",
        ),
        (
            "server://:3/127.0.0.1:1?service=b&proto=udp",
            "server://:1/127.0.0.1:2?proto=both",
            "4:3",
            "write udp_carrier: stream in the entry of 'b'",
        ),
        (
            "server://:1/127.0.0.1:5?proto=both",
            "server://:2/127.0.0.1:5?service=b&proto=both",
            "4:3",
            "would listen on 127.0.0.1:5 (TCP and UDP), but 'a' at ",
        ),
        (
            "server://:1/127.0.0.1:5",
            "server://:2/127.0.0.1:5?service=b&proto=both",
            "4:3",
            "listens on 127.0.0.1:5 (TCP) already",
        ),
        ("server://:1/h:2?proto=udp", "server://:1/h:3?proto=udp", "4:3", "on :1 (TCP and UDP) already; to share the"),
        (
            "server://:1/h:2?data_port=5",
            "server://:1/h:3?service=b&data_port=6",
            "4:32",
            "data_port: 6 here and 5 for 'a' at",
        ),
        ("server://:1/h:2?data_port=5", "server://:1/h:3?service=b", "4:3", "servers that share the port :1 need the"),
    ],
)
def test_servers_that_cannot_share_a_port_are_reported(
    folder: Folder, one: str, other: str, place: str, says: str
) -> None:
    (fault,) = folder.faults(f"version: 1\ntunnels:\n  a: {one}\n  b: {other}")
    assert fault.startswith(f"{place}: ")
    assert says in fault


def test_servers_that_share_a_port_need_one_certificate(folder: Folder) -> None:
    folder.write(pem(), "both.pem")
    url, more = "server://:1/h:2?service=a", "server://:1/h:3?service=b"
    own = f"{{url: '{url}', tls_cert: both.pem, tls_key: both.pem}}"
    faults = folder.faults(f"version: 1\ntunnels:\n  a: {own}\n  b: {more}")
    assert [fault.split(": ")[1] for fault in faults] == ["tls_cert", "tls_key"]
    both = own.replace(url, more)
    assert len(folder.load(f"version: 1\ntunnels:\n  a: {own}\n  b: {both}").entries) == 2


def test_five_hundred_services_on_one_port_are_checked_quickly(folder: Folder) -> None:
    lines = "".join(f"  s{n}: server://127.0.0.1:1/127.0.0.1:{n + 10}?service=s{n}&data_port=9\n" for n in range(500))
    assert len(folder.load(f"version: 1\ntunnels:\n{lines}").entries) == 500


hosts = st.sampled_from(["", "0.0.0.0", "::", "127.0.0.1", "::1", "localhost", "example.org", "10.0.0.1"])
places = st.builds(Address, hosts, st.integers(0, 2))


@given(places, places)
def test_address_conflicts_are_symmetric_and_need_a_port(one: Address, other: Address) -> None:
    assert addresses_conflict(one, other) == addresses_conflict(other, one)
    assert addresses_conflict(one, one) == (one.port != 0)
    if one.port != other.port:
        assert not addresses_conflict(one, other)


def test_an_invalid_variable_is_reported_once(folder: Folder) -> None:
    text = "version: 1\ntunnels:\n  a: server://:1/h:2\n  b: server://:3/h:4"
    assert folder.faults(text, SIGNAL_BUFFER="lots") == [
        "1:1: the environment variable SIGNAL_BUFFER: 'lots' is not a whole number"
    ]


@given(key=recognisable_keys, where=st.integers(0, 6))
def test_no_fault_contains_a_key(tmp_path_factory: pytest.TempPathFactory, key: str, where: int) -> None:
    texts = [
        f"version: 1\ntunnels:\n  a: server://{key}@h:x/h:2",
        f"version: 1\ntunnels:\n  a: {{url: 'server://{key}@:1/h:2', key_file: x, lgo: y}}",
        f"version: 1\ntunnels:\n  a: {{url: 'server://:1/h:2', key: {key}, enabled: {{}}}}",
        f"version: 1\ntunnels:\n  server://{key}@:1/h:2:\n",
        f"version: 1\ntunnels:\n  - server://{key}@:1/h:2\n",
        f"version: 1\nserver://{key}@:1/h:2: x\n",
        f"version: 1\ntunnels: server://{key}@:1/h:2\n",
    ]
    faults = Folder(tmp_path_factory.mktemp("f")).faults(texts[where])
    assert faults
    assert not any(key in fault for fault in faults)


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_content_of_a_file_is_a_manifest_or_faults(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    folder = Folder(tmp_path_factory.mktemp("f"))
    folder.write(text if isinstance(text, bytes) else text.encode(errors="replace"))
    with pytest.raises(ConfigError) as caught:
        folder.load()
    assert all("\n" not in str(fault) for fault in caught.value.faults)


@pytest.mark.parametrize(
    ("entry", "environ"),
    [
        ("server://0.0.0.0:1/127.0.0.1:2", {}),
        ("server://127.0.0.1:1/h:2", {}),
        ("client://h:1/127.0.0.1:2", {}),
        ("client://127.0.0.1:1/:2", {}),
        ("{url: 'server://:1/h:2', enabled: false}", {}),
        ("{url: 'server://:1/h:2', auth: key}", {}),
        ("server://:1/h:2", {KEY_VARIABLE: ""}),
        ("server://:1/h:2", {KEY_VARIABLE: "  "}),
    ],
)
def test_in_a_file_a_tunnel_beyond_loopback_without_a_key_is_a_fault(
    folder: Folder, entry: str, environ: dict[str, str]
) -> None:
    text = f"version: 1\ntunnels:\n  a: {entry}"
    [fault] = folder.faults(text, **{KEY_VARIABLE: "", **environ})
    assert re.match(r"3:\d+: the tunnel has no key, and other hosts can reach it; .* or write auth: open$", fault)


def test_in_a_file_a_tunnel_on_loopback_needs_no_key(folder: Folder) -> None:
    text = "version: 1\ntunnels:\n  a: server://127.0.0.2:1/127.0.0.1:2?auth=key&log=warn"
    assert folder.load(text, **{KEY_VARIABLE: ""}).entries[0].spec.key is None


@pytest.mark.parametrize(
    "text",
    [
        "tunnels: {a: 'server://:1/h:2?auth=open'}",
        "tunnels: {a: {url: 'server://:1/h:2', auth: open}}",
        "defaults: {auth: Open}\ntunnels: {a: 'server://:1/h:2'}",
    ],
)
def test_auth_open_allows_a_tunnel_without_a_key_and_drops_the_key_of_a_weaker_place(folder: Folder, text: str) -> None:
    for key in ("", KEY):
        manifest = folder.load(f"version: 1\n{text}", **{KEY_VARIABLE: key})
        assert (manifest.entries[0].spec.key, manifest.entries[0].spec.auth) == (None, "open")
        assert manifest.warnings == ()


def test_a_key_of_an_entry_overrides_auth_open_of_the_defaults(folder: Folder) -> None:
    text = f"version: 1\ndefaults: {{auth: open}}\ntunnels: {{a: {{url: 'server://:1/h:2', key: {KEY}}}}}"
    assert folder.load(text).entries[0].spec.key == Key(KEY)


@pytest.mark.parametrize(
    "text",
    [
        "tunnels: {a: 'server://k@:1/h:2?auth=open'}",
        "tunnels: {a: {url: 'server://k@:1/h:2', auth: open}}",
        "tunnels: {a: {url: 'server://:1/h:2?auth=open', key: k}}",
        "tunnels: {a: {url: 'server://:1/h:2', auth: open, key: k}}",
        "defaults: {auth: open, key: k}\ntunnels: {a: 'server://:1/h:2'}",
    ],
)
def test_a_key_and_auth_open_in_one_place_are_a_fault(folder: Folder, text: str) -> None:
    [fault] = folder.faults(f"version: 1\n{text}")
    assert fault.endswith(("exclude each other; keep one", "a key and auth: open; keep one"))


@pytest.mark.parametrize(
    "text",
    [
        "tunnels: {a: {url: 'server://:1/h:2', key: '${K}'}}",
        "tunnels: {a: {url: 'server://:1/h:2', key_file: nothere}}",
        "tunnels: {a: {url: 'server://:1/h:2', auth: opne}}",
        "defaults: {key: '${K}'}\ntunnels: {a: 'server://:1/h:2', b: 'server://:3/h:2'}",
    ],
)
def test_a_faulty_key_is_one_fault(folder: Folder, text: str) -> None:
    [fault] = folder.faults(f"version: 1\n{text}", **{KEY_VARIABLE: ""})
    assert "has no key" not in fault


@pytest.mark.parametrize("key", ["${K}", "${K:-}", "${K:-${L}}", "${L:-${K:-}}", "", "~"])
@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize(
    "text",
    [
        "tunnels: {a: {url: 'server://:1/h:2', key: \"KEY\"}}",
        "tunnels: {a: {url: 'server://:1/h:2', key: KEY}}",
        "tunnels: {a: {url: 'server://:1/h:2', key_file: \"KEY\"}}",
        'tunnels: {a: "server://KEY@:1/h:2"}',
        "defaults: {key: \"KEY\"}\ntunnels: {a: 'server://:1/h:2'}",
    ],
)
def test_an_empty_or_unset_variable_for_a_key_never_opens_a_tunnel(
    folder: Folder, text: str, key: str, value: str | None
) -> None:
    environ = {} if value is None else {"K": value, "L": value}
    if key == "~" and ('"KEY"' in text or "KEY@" in text):
        pytest.skip("a key of one character, not an empty value")
    assert folder.faults("version: 1\n" + text.replace("KEY", key), **{KEY_VARIABLE: "", **environ})


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_samples_are_valid(path: Path) -> None:
    names = ("WEB_KEY", "BACKEND_KEY", "WEB_APP_KEY", "HOME_KEY", "OFFICE_KEY", "ALICE_KEY", "BUILD_KEY")
    manifest = load(path, {name: KEY + name for name in (KEY_VARIABLE, *names)})
    assert manifest.entries
    assert manifest.warnings == ()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_sample_names_its_schema_and_conforms_to_it(path: Path) -> None:
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
    assert named
    _schema_validator((path.parent / named[1]).resolve()).validate(yaml.safe_load(path.read_text()))


@functools.cache
def _schema_validator(path: Path) -> Any:  # noqa: ANN401  jsonschema has no types
    """Check a schema, which takes longer than all the samples, and return its validator."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(path.read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return validator(schema)


def test_the_schema_in_configs_equals_the_output_of_the_command() -> None:
    assert json.loads((ROOT / "configs/tunnels.schema.json").read_text()) == json_schema()


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("server://:1/h:2?tls_ca=ca.pem", "tls_ca verifies nothing without tls=2"),
        ("server://:8080/:8080", "the tunnel and the target have the same address, :8080"),
        ("server://localhost:8080/127.0.0.1:8080", "the tunnel and the target have the same address, 127.0.0.1:8080"),
        ("client://0.0.0.0:8080/127.0.0.1:8080", "the tunnel and the target have the same address, 127.0.0.1:8080"),
    ],
)
def test_options_that_cannot_work_together_are_faults(folder: Folder, url: str, fault: str) -> None:
    assert fault in folder.faults(f"version: 1\ntunnels:\n  a: {url}")[0]


@pytest.mark.parametrize("option", ["key_file", "tls_ca"])
def test_a_fifo_named_by_an_option_is_a_fault_at_its_place(folder: Folder, option: str) -> None:
    os.mkfifo(folder.path / "fifo")
    text = f"version: 1\ntunnels:\n  a: {{url: 'client://h:1/:2', tls: 2, {option}: fifo}}"
    [fault] = folder.faults(text)
    assert fault.startswith("3:")
    assert "it is a FIFO, not a regular file" in fault


def test_a_fifo_among_the_included_files_is_a_fault(folder: Folder) -> None:
    os.mkfifo(folder.path / "fifo.yaml")
    [fault] = folder.faults("version: 1\ninclude: [fifo.yaml]\ntunnels: {}")
    assert "it is a FIFO, not a regular file" in fault


def test_an_empty_value_under_a_key_of_several_lines_is_reported_in_one(folder: Folder) -> None:
    faults = folder.faults("version: 1\nsupervisor: {mqtt: {url: 'mqtt://b', ho\n\n\n  st}}\ntunnels: {}\n")
    assert any("is empty; give it a value or remove the line" in fault for fault in faults), faults
    assert not any("\n" in fault for fault in faults), faults
