"""The commands that query and control a running daemon: exit codes, stdout, stderr."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.commands import control
from orchestrator.process.socket_paths import default_sockets
from orchestrator.status.json_types import PlanJson
from tests.support.shell import COMMAND, COMMAND_TIMEOUT_S, CommandShell
from tests.support.waiting import wait_until

FILE = """version: 1
tunnels:
  edge-1: {url: client://127.0.0.1:9/127.0.0.1:1, client_cooldown: 1h}
  edge-2: {url: client://127.0.0.1:9/127.0.0.1:1, client_cooldown: 1h}
  "core [x]": {url: client://127.0.0.1:9/127.0.0.1:1, client_cooldown: 1h}
"""


class DaemonShell(CommandShell):
    """Runs commands in a directory with a file whose daemon runs in the background."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.file = path / "tunnels.yaml"
        self.file.write_text(FILE)
        self.environ["XDG_STATE_HOME"] = str(path / "state")

    def states(self) -> dict[str, str]:
        return {tunnel["name"]: tunnel["state"] for tunnel in json.loads(self.run("ps", "--json").stdout)["tunnels"]}

    def pid(self) -> int:
        return int(json.loads(self.run("ps", "--json").stdout)["pid"])

    def background_log(self) -> str:
        (log,) = (self.path / "state" / "nodepass-orch").glob("*.log")
        return log.read_text()

    @contextlib.contextmanager
    def following(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.path,
            env=self.environ,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def daemon_in_background(path: Path) -> Iterator[DaemonShell]:
    daemon = DaemonShell(path)
    done = daemon.run("up", "-d")
    assert (done.returncode, done.stdout) == (0, "")
    yield daemon
    if daemon.run("down", "--now", "--wait").returncode == 1:  # read-only
        os.kill(daemon.pid(), signal.SIGTERM)
        wait_until(lambda: daemon.run("ps").returncode == 4)
    log = daemon.background_log()
    assert "Traceback" not in log, log
    assert "internal fault" not in log, log


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonShell]:
    with daemon_in_background(tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonShell]:
    """One daemon for the tests that only read from it."""
    with daemon_in_background(tmp_path_factory.mktemp("shared")) as daemon:
        yield daemon


def test_up_detach_returns_when_the_daemon_runs_in_the_background(daemon: DaemonShell) -> None:
    assert daemon.run("ps").returncode == 3
    pid = daemon.pid()
    assert os.getsid(pid) == pid, "it survives the terminal"
    again = daemon.run("up", "-d")
    assert (again.returncode, f"a daemon is already running {daemon.file} (process " in again.stderr) == (1, True)
    assert "3 of 3 tunnels started" in daemon.background_log()
    log = next((daemon.path / "state" / "nodepass-orch").iterdir())
    assert log.stat().st_mode & 0o777 == 0o600
    assert daemon.run("down", "--wait").returncode == 0
    assert daemon.run("ps").returncode == 4
    assert daemon.run("up", "-d").returncode == 0, "it can be started again"


def test_up_detach_says_which_tunnels_failed_at_their_first_attempt(tmp_path: Path) -> None:
    daemon = DaemonShell(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon.file.write_text(
            "version: 1\ntunnels:\n  idle: {url: 'server://127.0.0.1:0/127.0.0.1:1', enabled: false}\n"
            f"  bad: server://127.0.0.1:0/127.0.0.1:{port}?mode=reverse\n"
        )
        done = daemon.run("up", "-d")
    assert daemon.run("down", "--now", "--wait").returncode == 0
    assert done.returncode == 0, "the daemon runs, and tries again"
    assert f"not in order yet: bad (cooldown: cannot listen on 127.0.0.1:{port}" in done.stderr


def test_a_daemon_starts_despite_the_stale_socket_of_a_killed_one(daemon: DaemonShell) -> None:
    pid = daemon.pid()
    with daemon.following("logs", "-F") as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(pid, signal.SIGKILL)
        assert process.wait(COMMAND_TIMEOUT_S) == 4
    places = default_sockets(daemon.file, daemon.environ, os.geteuid())
    assert any(path.is_socket() for path in places), "the socket is stale"
    assert daemon.run("ps").returncode == 4
    assert daemon.run("up", "-d").returncode == 0
    assert daemon.pid() != pid


def test_a_failed_start_in_the_background_prints_the_reason(tmp_path: Path) -> None:
    daemon = DaemonShell(tmp_path)
    daemon.file.write_text("version: 1\nsupervisor: {api: {listen: '127.0.0.1:0', token_file: nowhere}}\n")
    done = daemon.run("up", "-d")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot read token_file {tmp_path}/nowhere: No such file or directory" in done.stderr
    daemon.file.write_text("version: 2\n")
    done = daemon.run("up", "-d")
    assert done.returncode == 2
    assert done.stderr.startswith("tunnels.yaml:1:10: ")


def test_commands_act_on_names_patterns_and_all_tunnels(daemon: DaemonShell) -> None:
    said: list[subprocess.CompletedProcess[str]] = []
    done = daemon.run("stop", "edge-*")
    assert (done.returncode, done.stdout) == (0, "edge-1: stopping\nedge-2: stopping\n")
    wait_until(lambda: daemon.states() == {"edge-1": "stopped", "edge-2": "stopped", "core [x]": "cooldown"})
    done = daemon.run("start", "--all", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"], len(answer["results"])) == (0, True, 3)
    wait_until(lambda: set(daemon.states().values()) == {"cooldown"})
    done = daemon.run("drain", "core [x]", "--timeout", "100ms")
    assert done.stdout == "core [x]: draining\n"
    wait_until(lambda: daemon.states()["core [x]"] == "stopped")
    expected = "edge-1: retrying now\nedge-2: retrying now\n"

    def retried() -> bool:
        said.append(daemon.run("retry", "--all"))
        return said[-1].stdout == expected

    wait_until(retried)  # a tunnel that is connecting has no cooldown to end
    assert said[-1].returncode == 1
    assert "core [x]: there is no cooldown to end: the tunnel is stopped\n" in said[-1].stderr
    done = daemon.run("restart", "edge-1", "egde-2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no tunnel is named 'egde-2'; did you mean 'edge-2'?" in done.stderr


def test_plan_and_apply_take_a_candidate(daemon: DaemonShell) -> None:
    before = daemon.file.read_text()
    candidate = daemon.file.with_name("next.yaml")
    candidate.write_text("version: 1\ntunnels: {edge-1: nonsense}\n")
    for command in ("plan", "apply"):
        done = daemon.run(command, "next.yaml")
        assert (done.returncode, done.stdout) == (2, "")
        assert "next.yaml:2:19: this is not a tunnel URL" in done.stderr
    assert daemon.run("ps").stderr == ""
    candidate.write_text(before.replace("edge-2", "edge-3"))
    planned = daemon.run("plan", "next.yaml")
    assert (planned.returncode, planned.stdout) == (0, "add edge-3\nremove edge-2\n")
    assert "edge-2" in daemon.states()
    done = daemon.run("apply", "next.yaml", "--wait")
    assert done.returncode == 0
    assert "added edge-3" in done.stdout
    wait_until(lambda: "edge-2" not in daemon.states(), what="the removed entry ends")
    assert daemon.file.read_text() == candidate.read_text()
    assert daemon.run("plan", "nothere.yaml").returncode == 2


def test_plan_and_reload_report_faults_and_changes(daemon: DaemonShell) -> None:
    daemon.file.write_text("version: 1\ntunnels: {edge-1: nonsense}\n")
    for command in ("plan", "reload"):
        done = daemon.run(command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "tunnels.yaml:2:19: " in done.stderr
    assert daemon.run("ps").stderr.startswith(
        f"nodepass-orch: the last valid configuration stays in force: {daemon.file}:2:19"
    )
    assert len(daemon.states()) == 3
    assert [daemon.run("ps", *option).returncode for option in ((), ("--strict",))] == [3, 2]
    daemon.file.write_text(
        FILE.replace("9/127.0.0.1:1, client", "9/127.0.0.1:2, client", 1).replace("edge-2", "edge-3")
    )
    done = daemon.run("reload", "--wait")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 3
    assert set(daemon.states()) == {"edge-1", "edge-3", "core [x]"}
    answer = json.loads(daemon.run("reload", "--json").stdout)
    assert {result["action"] for result in answer["results"].values()} == {"unchanged"}


def test_a_plan_has_one_line_for_each_step() -> None:
    plan: PlanJson = {
        "ok": True, "error": None, "add": ["a"], "remove": ["b"],
        "restart": [{"name": "c", "changes": ["key: changed", "tls: 1 → 0"]}],
        "change": [{"name": "d\n", "changes": []}], "unchanged": 0, "warnings": [], "finishing": [],
    }  # fmt: skip
    assert list(control._plan_lines(plan)) == [
        "add a", "remove b", "restart c: key: changed; tls: 1 → 0", "change live d\\n",
    ]  # fmt: skip
    plan["finishing"] = [
        {"name": "b", "visitors": 1, "timeout_s": 5.0},
        {"name": "c", "visitors": 2, "timeout_s": 90.0},
    ]
    assert list(control._plan_lines(plan))[1:3] == [
        "remove b: 1 visitor may finish, for 5s at most",
        "restart c: key: changed; tls: 1 → 0; 2 visitors may finish, for 1m30s at most",
    ]


def test_logs_and_events_print_the_past(daemon: DaemonShell) -> None:
    lines = daemon.run("logs").stdout.splitlines()
    assert any("nodepass-orch  3 of 3 tunnels started" in line for line in lines)
    assert all(" edge-1  " in line for line in daemon.run("logs", "edge-1").stdout.splitlines())
    assert len(daemon.run("logs", "-n", "2").stdout.splitlines()) == 2
    assert daemon.run("logs", "-n", "0").stdout == ""
    assert daemon.run("logs", "nobody").returncode == 1
    assert daemon.run("logs", "nobody-*").returncode == 1
    assert daemon.run("logs", "--level", "error").stdout == ""
    daemon.run("stop", "edge-1")
    events = [json.loads(line) for line in daemon.run("events", "--json").stdout.splitlines()]
    assert {event["kind"] for event in events} >= {"command", "state"}
    command = next(event for event in events if event["kind"] == "command")
    assert (command["tunnel"], command["text"], command["command"]) == ("edge-1", "stop: stopping", "stop")


def test_a_command_that_follows_ends_with_the_daemon(daemon: DaemonShell) -> None:
    with (
        daemon.following("logs", "-F", "-n", "1", "edge-*", "--json") as logs,
        daemon.following("events", "-F") as events,
    ):
        assert logs.stdout is not None
        assert events.stdout is not None
        assert json.loads(logs.stdout.readline())["tunnel"].startswith("edge-")
        events.stdout.readline()
        assert daemon.run("down").returncode == 0
        for process in (logs, events):
            out, talk = process.communicate(timeout=COMMAND_TIMEOUT_S)
            assert (process.returncode, "draining" in out, "the daemon has ended" in talk) == (0, True, True)


def test_ctrl_c_ends_a_command_that_follows_silently(shared_daemon: DaemonShell) -> None:
    for arguments in (["logs", "-F"], ["ps", "--watch"], ["events", "-F"]):
        with shared_daemon.following(*arguments) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, talk = process.communicate(timeout=COMMAND_TIMEOUT_S)
            assert (process.returncode, talk) == (-signal.SIGINT, "")


def test_ps_watch_prints_one_json_line_a_second_to_a_pipe(daemon: DaemonShell) -> None:
    with daemon.following("ps", "--watch", "--json", "edge-1") as process:
        assert process.stdout is not None
        for _ in range(2):
            (tunnel,) = json.loads(process.stdout.readline())["tunnels"]
            assert tunnel["name"] == "edge-1"
        daemon.run("down", "--wait")
        assert process.wait(COMMAND_TIMEOUT_S) == 4


def test_a_closed_pipe_ends_the_command_silently(shared_daemon: DaemonShell) -> None:
    with shared_daemon.following("ps", "--watch") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(COMMAND_TIMEOUT_S) == 1


def test_a_read_only_daemon_rejects_commands(tmp_path: Path) -> None:
    daemon = DaemonShell(tmp_path)
    assert daemon.run("up", "-d", "--read-only", "--socket", "my.sock").returncode == 0
    daemon.environ["NODEPASS_ORCH_SOCKET"] = "my.sock"
    pid = daemon.pid()
    for arguments in (["stop", "edge-1"], ["reload"], ["down"]):
        done = daemon.run(*arguments)
        assert done.returncode == 1
        assert "this daemon takes no commands: it was started with --read-only" in done.stderr
    assert daemon.run("logs").returncode == 0
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: daemon.run("ps").returncode == 4)


@pytest.mark.parametrize(
    ("shell", "variables", "expected"),
    [
        ("bash", {"COMP_WORDS": "nodepass-orch stop edge-1 e", "COMP_CWORD": "3"}, ["plain,edge-2"]),
        ("zsh", {"COMP_WORDS": "nodepass-orch ps co", "COMP_CWORD": "2"}, ["plain", "core [x]", "client, cooldown"]),
        (
            "fish",
            {"COMP_WORDS": "nodepass-orch logs edge-2", "COMP_CWORD": "edge-2"},
            ["plain,edge-2\tclient, cooldown"],
        ),
    ],
)
def test_completion_offers_the_names_of_tunnels(
    shared_daemon: DaemonShell, shell: str, variables: dict[str, str], expected: list[str]
) -> None:
    def completed() -> list[str]:
        done = shared_daemon.run(_NODEPASS_ORCH_COMPLETE=f"{shell}_complete", **variables)
        return [line.replace("\\", "") for line in done.stdout.splitlines()]

    wait_until(lambda: completed() == expected)  # a tunnel may be connecting for a moment


def test_completion_without_a_daemon_prints_nothing(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "nodepass-orch stop e", "COMP_CWORD": "2"}
    done = CommandShell(tmp_path).run(_NODEPASS_ORCH_COMPLETE="bash_complete", **words)
    assert (done.stdout.strip(), done.stderr) == ("", "")
