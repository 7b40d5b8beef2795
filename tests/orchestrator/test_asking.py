"""The commands that ask a daemon, as people and scripts use them: exit codes, stdout, stderr."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.commands import control
from orchestrator.process.socket_paths import default_sockets
from tests.orchestrator.test_cli import COMMAND, PATIENCE, Shell
from tests.support.waiting import wait_until

FILE = """version: 1
tunnels:
  edge-1: {url: client://127.0.0.1:9/127.0.0.1:1, client_cooldown: 1h}
  edge-2: {url: client://127.0.0.1:9/127.0.0.1:1, client_cooldown: 1h}
  "core [x]": {url: client://127.0.0.1:9/127.0.0.1:1, client_cooldown: 1h}
"""


class BackgroundDaemon(Shell):
    """A directory with a file, whose daemon can run in the background."""

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


@pytest.fixture
def house(tmp_path: Path) -> Iterator[BackgroundDaemon]:
    house = BackgroundDaemon(tmp_path)
    done = house.run("up", "-d")
    assert (done.returncode, done.stdout) == (0, "")
    yield house
    if house.run("down", "--now", "--wait").returncode == 1:  # read-only
        os.kill(house.pid(), signal.SIGTERM)
        wait_until(lambda: house.run("ps").returncode == 4)
    log = house.background_log()
    assert "Traceback" not in log, log
    assert "internal fault" not in log, log


def test_a_daemon_in_the_background(house: BackgroundDaemon) -> None:
    assert house.run("ps").returncode == 3
    pid = house.pid()
    assert os.getsid(pid) == pid, "it survives the terminal"
    again = house.run("up", "-d")
    assert (again.returncode, "a daemon is already running at" in again.stderr) == (1, True)
    assert "3 of 3 tunnels started" in house.background_log()
    log = next((house.path / "state" / "nodepass-orch").iterdir())
    assert log.stat().st_mode & 0o777 == 0o600
    assert house.run("down", "--wait").returncode == 0
    assert house.run("ps").returncode == 4
    assert house.run("up", "-d").returncode == 0, "it can be started again"


def test_what_a_dead_daemon_leaves_is_no_obstacle(house: BackgroundDaemon) -> None:
    pid = house.pid()
    with house.following("logs", "-f") as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(pid, signal.SIGKILL)
        assert process.wait(PATIENCE) == 4
    places = default_sockets(house.file, house.environ, os.geteuid())
    assert any(path.is_socket() for path in places), "the socket is stale"
    assert house.run("ps").returncode == 4
    assert house.run("up", "-d").returncode == 0
    assert house.pid() != pid


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    house = BackgroundDaemon(tmp_path)
    house.file.write_text("version: 1\nsupervisor: {api: {listen: '127.0.0.1:0', token_file: nowhere}}\n")
    done = house.run("up", "-d")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot read token_file nowhere: No such file or directory" in done.stderr
    house.file.write_text("version: 2\n")
    done = house.run("up", "-d")
    assert done.returncode == 2
    assert done.stderr.startswith("tunnels.yaml:1:10: ")


def test_steering_one_and_many(house: BackgroundDaemon) -> None:
    said: list[subprocess.CompletedProcess[str]] = []
    done = house.run("stop", "edge-*")
    assert (done.returncode, done.stdout) == (0, "edge-1: is stopped\nedge-2: is stopped\n")
    wait_until(lambda: house.states() == {"edge-1": "stopped", "edge-2": "stopped", "core [x]": "cooldown"})
    done = house.run("start", "--all", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["ok"], len(answer["results"])) == (0, True, 3)
    wait_until(lambda: set(house.states().values()) == {"cooldown"})
    done = house.run("drain", "core [x]", "--timeout", "100ms")
    assert done.stdout == "core [x]: is drained\n"
    wait_until(lambda: house.states()["core [x]"] == "stopped")
    expected = "edge-1: tries again now\nedge-2: tries again now\n"

    def retried() -> bool:
        said.append(house.run("retry", "--all"))
        return said[-1].stdout == expected

    wait_until(retried)  # neither of them may be trying just then
    assert said[-1].returncode == 1
    assert "core [x]: 'core [x]' has no cooldown to end: it is stopped" in said[-1].stderr
    done = house.run("restart", "edge-1", "egde-2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no tunnel is named 'egde-2'; did you mean 'edge-2'?" in done.stderr


def test_a_reload_and_its_plan(house: BackgroundDaemon) -> None:
    house.file.write_text("version: 1\ntunnels: {edge-1: nonsense}\n")
    for command in ("plan", "reload"):
        done = house.run(command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "tunnels.yaml:2:19: " in done.stderr
    assert house.run("ps").stderr.startswith(
        "nodepass-orch: the last valid configuration stays in force: tunnels.yaml:2:19"
    )
    assert len(house.states()) == 3
    house.file.write_text(FILE.replace("9/127.0.0.1:1, client", "9/127.0.0.1:2, client", 1).replace("edge-2", "edge-3"))
    done = house.run("reload", "--wait")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) >= 3
    assert set(house.states()) == {"edge-1", "edge-3", "core [x]"}
    answer = json.loads(house.run("reload", "--json").stdout)
    assert {result["action"] for result in answer["results"].values()} == {"unchanged"}


def test_a_plan_in_words() -> None:
    answer = {
        "add": ["a"], "remove": ["b"], "restart": [{"name": "c", "changes": ["key: changed", "tls: 0 → 1"]}],
        "change": [{"name": "d\n", "changes": []}],
    }  # fmt: skip
    assert list(control._plan_lines(answer)) == [
        "add a", "remove b", "restart c: key: changed; tls: 0 → 1", "change live d\\n",
    ]  # fmt: skip


def test_the_log_and_the_events(house: BackgroundDaemon) -> None:
    lines = house.run("logs").stdout.splitlines()
    assert any("nodepass-orch  3 of 3 tunnels started" in line for line in lines)
    assert all(" edge-1  " in line for line in house.run("logs", "edge-1").stdout.splitlines())
    assert len(house.run("logs", "-n", "2").stdout.splitlines()) == 2
    assert house.run("logs", "-n", "0").stdout == ""
    assert house.run("logs", "nobody").returncode == 1
    assert house.run("logs", "nobody-*").returncode == 1
    assert house.run("logs", "--level", "error").stdout == ""
    house.run("stop", "edge-1")
    events = [json.loads(line) for line in house.run("events", "--json").stdout.splitlines()]
    assert {event["kind"] for event in events} >= {"command", "state"}
    command = next(event for event in events if event["kind"] == "command")
    assert (command["tunnel"], command["text"], command["command"]) == ("edge-1", "stop: is stopped", "stop")


def test_following_ends_with_the_daemon(house: BackgroundDaemon) -> None:
    with (
        house.following("logs", "-f", "-n", "1", "edge-*", "--json") as logs,
        house.following("events", "-f") as events,
    ):
        assert logs.stdout is not None
        assert events.stdout is not None
        assert json.loads(logs.stdout.readline())["tunnel"].startswith("edge-")
        events.stdout.readline()
        assert house.run("down").returncode == 0
        for process in (logs, events):
            out, talk = process.communicate(timeout=PATIENCE)
            assert (process.returncode, "draining" in out, "the daemon has ended" in talk) == (0, True, True)


def test_ctrl_c_ends_what_follows_without_a_word(house: BackgroundDaemon) -> None:
    for arguments in (["logs", "-f"], ["ps", "--watch"], ["events", "-f"]):
        with house.following(*arguments) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, talk = process.communicate(timeout=PATIENCE)
            assert (process.returncode, talk) == (-signal.SIGINT, "")


def test_watching_in_a_pipe(house: BackgroundDaemon) -> None:
    with house.following("ps", "--watch", "--json", "edge-1") as process:
        assert process.stdout is not None
        for _ in range(2):
            (tunnel,) = json.loads(process.stdout.readline())["tunnels"]
            assert tunnel["name"] == "edge-1"
        house.run("down", "--wait")
        assert process.wait(PATIENCE) == 4


def test_a_reader_who_has_enough_is_no_fault(house: BackgroundDaemon) -> None:
    with house.following("ps", "--watch") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 1


def test_read_only(tmp_path: Path) -> None:
    house = BackgroundDaemon(tmp_path)
    assert house.run("up", "-d", "--read-only", "--socket", "my.sock").returncode == 0
    house.environ["NODEPASS_ORCH_SOCKET"] = "my.sock"
    pid = house.pid()
    for arguments in (["stop", "edge-1"], ["reload"], ["down"]):
        done = house.run(*arguments)
        assert done.returncode == 1
        assert "this daemon takes no commands: it was started with --read-only" in done.stderr
    assert house.run("logs").returncode == 0
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: house.run("ps").returncode == 4)


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
def test_names_are_completed(
    house: BackgroundDaemon, shell: str, variables: dict[str, str], expected: list[str]
) -> None:
    def completed() -> list[str]:
        done = house.run(_NODEPASS_ORCH_COMPLETE=f"{shell}_complete", **variables)
        return [line.replace("\\", "") for line in done.stdout.splitlines()]

    wait_until(lambda: completed() == expected)  # a tunnel may be connecting for a moment


def test_completion_without_a_daemon_is_silent(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "nodepass-orch stop e", "COMP_CWORD": "2"}
    done = Shell(tmp_path).run(_NODEPASS_ORCH_COMPLETE="bash_complete", **words)
    assert (done.stdout.strip(), done.stderr) == ("", "")
