"""``help``, other names of commands, and hints that name the daemons that run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from orchestrator import table
from orchestrator.column_meanings import COLUMN_MEANINGS
from orchestrator.commands import command_line, common
from orchestrator.commands.help_figures import COUNTER_REMEDIES
from orchestrator.process import daemon_lock
from orchestrator.process.running_daemon import RunningDaemon
from tui.format import columns
from tunnel.model.options import OPTIONS
from tunnel.model.snapshot import CountersView
from tunnel.model.state import STATES


@pytest.mark.parametrize(
    ("topic", "sentence"),
    [
        ([], "nodepass-orch help TOPIC explains"),
        (["ps"], "Usage: nodepass-orch ps"),
        (["status"], "Usage: nodepass-orch ps"),
        (["fleet", "ps"], "Usage: nodepass-orch fleet ps"),
        (["idle_timeout"], "changes while the tunnel runs"),
        (["Report-Interval"], "environment: REPORT_INTERVAL"),
        (["drain_timeout"], "in the file's supervisor: section"),
        (["drain-timeout"], "visitors of changed, removed and stopped tunnels may finish"),
        (["mode"], "a change restarts the tunnel"),
        (["cooldown"], "the last attempt failed"),
        (["url"], "nodepass-orch 'client://KEY@server-host:10101/127.0.0.1:3000'"),
        (["exit-codes"], "no daemon answers"),
        (["check"], "Usage: nodepass-orch check"),
        (["check"], "how targets are checked"),
        (["wrong", "key"], "nodepass-orch keygen"),
        (["refused"], "REFUSED, a column of ps: Visitors that this end has refused"),
        (["refused"], "visitors-refused: the end that accepts visitors"),
        (["visitors", "are", "refused"], "per_address   it has max_per_address"),
        (["From", "Visitors"], "FROM VISITORS, a column of ps: Bytes that came"),
        (["published-by"], "PUBLISHED BY, a column of ps"),
        (["pool"], "POOL, a column of ps and top: Idle data connections"),
        (["links"], "LINKS, a column of ps"),
        (["links"], "counters.links in ps --json: Links that were established."),
        (["signals"], "SIGNALS, a column of top"),
        (["limit"], "refused.limit in ps --json"),
        (["dropped_datagrams"], "counters.dropped_datagrams in ps --json: UDP datagrams dropped"),
        (["dropped-datagrams"], "net.core.rmem_max"),
        (["proto"], "PROTO, a column of ps"),
        (["proto"], "a change restarts the tunnel"),
        (["Refused", "handshake"], "Compare key and service in the two files"),
        (["cooldown"], "nodepass-orch retry"),
        (["log"], "events of this level"),
        (["log"], "journalctl -u nodepass-orch"),
        (["logs"], "a file in the state directory"),
        (["port", "in", "use"], "ss -ltnp"),
    ],
)
def test_help_explains_a_topic(topic: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["help", *topic]) == 0
    assert sentence in capsys.readouterr().out


def test_help_lists_every_option_and_every_state(capsys: pytest.CaptureFixture[str]) -> None:
    for topic, words in (("options", OPTIONS), ("states", STATES)):
        assert command_line.run(["help", topic]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words)
        assert "`" not in shown


def test_every_column_and_every_counter_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    shown_by = {row.title: set(row.screens) for row in COLUMN_MEANINGS}
    in_ps, in_top = set(table.TITLES), {column.title for column in columns.COLUMNS}
    assert shown_by == {
        title: {*(["ps"] * (title in in_ps)), *(["top"] * (title in in_top))} for title in in_ps | in_top
    }
    counters = {each.name for each in fields(CountersView)}
    assert set(COUNTER_REMEDIES) <= counters
    for title in shown_by:
        assert command_line.run(["help", *title.split()]) == 0
        assert f"{title}, a column of" in capsys.readouterr().out
    assert command_line.run(["help", "columns"]) == command_line.run(["help", "counters"]) == 0
    shown = capsys.readouterr().out
    assert all(title in shown for title in shown_by)
    assert all(f"counters.{name} in" in shown for name in counters)


@pytest.mark.parametrize(("topic", "hint"), [("modes", "did you mean 'mode'?"), ("x y", "help lists the commands")])
def test_help_on_something_unknown_gives_a_hint(topic: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["help", *topic.split()]) == 2
    assert hint in capsys.readouterr().err


def test_version_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["version"]) == command_line.run(["--version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_a_command_without_its_daemon_names_those_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NODEPASS_ORCH_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "tunnels.yaml").touch()
    others = [RunningDaemon(7, Path("/srv/my file.yaml"), None), RunningDaemon(8, Path("/srv/b.yaml"), None)]
    for running, hint in (
        ([], "start one with: nodepass-orch up"),
        (others[:1], "up; another daemon runs: -f '/srv/my file.yaml'"),
        (others, "up; other daemons run: -f '/srv/my file.yaml', -f /srv/b.yaml"),
    ):
        monkeypatch.setattr(daemon_lock, "list_daemons", lambda *_, running=running: running)
        assert command_line.run(["ps"]) == common.EXIT_NO_DAEMON
        assert hint in capsys.readouterr().err
    assert command_line.run(["ps", "-f", "a b.yaml"]) == common.EXIT_NO_DAEMON
    assert "start one with: nodepass-orch up 'a b.yaml'" in capsys.readouterr().err


def test_a_fleet_without_a_broker_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NODEPASS_ORCH_MQTT", raising=False)
    assert command_line.run(["fleet", "ps"]) == 2
    assert "name the broker: --mqtt mqtt://HOST, or NODEPASS_ORCH_MQTT" in capsys.readouterr().err
