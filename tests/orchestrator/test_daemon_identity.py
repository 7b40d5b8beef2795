"""A daemon is found, and no second one is started, whatever happens to its socket, its links and its environment."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import NoDaemonError
from orchestrator.commands import common
from orchestrator.process import daemon_lock
from orchestrator.process.running_daemon import RunningDaemon
from tests.support.shell import COMMAND, CommandShell
from tests.support.waiting import wait_until

TUNNEL = "version: 1\ntunnels:\n  {name}: {{url: client://127.0.0.1:9/127.0.0.1:1, client_cooldown: 1h}}\n"


class LinkedFile(CommandShell):
    """A directory ``current`` that is a link to a release, as a deployment or a Kubernetes ConfigMap has it."""

    def __init__(self, path: Path, runtime: Path) -> None:
        super().__init__(path)
        self.environ |= {"XDG_STATE_HOME": str(path / "state"), "XDG_RUNTIME_DIR": str(runtime)}
        self.file = path / "current" / "tunnels.yaml"
        for release in ("first", "second"):
            (path / release).mkdir()
            (path / release / "tunnels.yaml").write_text(TUNNEL.format(name=release))
        self.link("first")

    def link(self, release: str) -> None:
        """Point the link at a release, in one step."""
        (self.path / "new").symlink_to(release)
        (self.path / "new").replace(self.path / "current")

    def assert_no_second_daemon(self, pid: int, **environ: str) -> None:
        again = self.run("up", "-d", str(self.file), **environ)
        assert (again.returncode, f"(process {pid})" in again.stderr) == (1, True), again.stderr

    def names(self, **environ: str) -> list[str]:
        done = self.run("ps", "-f", str(self.file), **environ)
        assert done.returncode == 3, done.stderr
        return [line.split()[0] for line in done.stdout.splitlines()[1:]]


@pytest.fixture
def linked(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> LinkedFile:
    return LinkedFile(tmp_path, tmp_path_factory.mktemp("r"))  # short: a socket's path has at most 107 bytes


@pytest.fixture
def pid(linked: LinkedFile) -> Iterator[int]:
    with linked.running("up", "--no-tui", str(linked.file)) as process:
        wait_until(lambda: "1 of 1 tunnel" in linked.log())
        yield process.pid


def test_a_daemon_is_found_after_its_links_were_changed(linked: LinkedFile, pid: int) -> None:
    assert linked.names() == ["first"]
    linked.link("second")
    wait_until(lambda: linked.names() == ["second"])
    linked.assert_no_second_daemon(pid)
    at_release = linked.run("ps", "-f", "second/tunnels.yaml")
    assert "second" in at_release.stdout, "another name of the same file finds the daemon"


def test_a_removed_socket_is_created_again(linked: LinkedFile, pid: int) -> None:
    runtime = Path(linked.environ["XDG_RUNTIME_DIR"])
    (socket,) = runtime.glob("*.sock")
    socket.unlink()
    assert linked.names() == ["first"], "the command waits for the new socket"
    shutil.rmtree(runtime)  # the end of a login session
    linked.assert_no_second_daemon(pid)
    try:
        assert linked.names(XDG_RUNTIME_DIR=str(linked.path / "other")) == ["first"]
        assert linked.run("down", "-f", str(linked.file), "--wait").returncode == 0
        assert "a new one listens at" in linked.log()
    finally:
        (Path("/tmp") / f"nodepass-orch-{os.getuid()}" / socket.name).unlink(missing_ok=True)  # noqa: S108  its last resort
    gone = linked.run("ps", "-f", str(linked.file))
    assert (gone.returncode, "start one with: nodepass-orch up" in gone.stderr) == (4, True)


def test_a_wrong_socket_is_answered_with_the_right_one(linked: LinkedFile, pid: int) -> None:
    wrong = linked.run("ps", "-f", str(linked.file), "--socket", "wrong.sock")
    assert (wrong.returncode, f"the daemon (process {pid}) of {linked.file} is at " in wrong.stderr) == (4, True)
    assert "nodepass-orch up" not in wrong.stderr


def test_a_daemon_without_its_socket_yet_is_no_reason_to_start_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    daemon = RunningDaemon(7, tmp_path / "tunnels.yaml", tmp_path / "its.sock")
    monkeypatch.setattr(daemon_lock, "find_daemon_at", lambda *_: None)  # not yet, when the command asks first
    monkeypatch.setattr(daemon_lock, "find_daemon", lambda *_: daemon)
    with pytest.raises(NoDaemonError, match=r"its\.sock; the daemon \(process 7\) .* has not opened its socket yet"):
        common.make_client(tmp_path / "its.sock", daemon.file).status()


def test_a_file_named_like_a_lock_is_left_alone(linked: LinkedFile) -> None:
    mine = linked.path / "my.sock.lock"
    mine.write_text("mine")
    with linked.running("up", "--no-tui", str(linked.file), "--socket", "my.sock") as process:
        wait_until(lambda: linked.run("ps", "--socket", "my.sock").returncode == 3)
        (linked.path / "other.yaml").write_text("version: 1\n")
        other = linked.run("up", "--no-tui", "other.yaml", "--socket", "my.sock")
        assert (other.returncode, "another daemon uses my.sock" in other.stderr) == (1, True)
        process.terminate()
        process.wait(20)
    assert mine.read_text() == "mine"
    assert not (linked.path / "my.sock").exists()


def test_commands_without_a_file_use_the_only_daemon(tmp_path: Path) -> None:
    for name in ("one", "two", "empty"):
        (tmp_path / name).mkdir()
    one, two, empty = shells = [CommandShell(tmp_path / name) for name in ("one", "two", "empty")]
    for shell in shells:
        shell.environ |= {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_RUNTIME_DIR": str(tmp_path / "one" / "run")}
    for shell in (one, two):
        (shell.path / "tunnels.yaml").write_text(TUNNEL.format(name=shell.path.name))
    assert (empty.run("ls").stdout, empty.run("ps").returncode) == ("", 4)
    with one.running("up", "--no-tui") as first:
        wait_until(lambda: "1 of 1 tunnel" in one.log())
        assert "one " in empty.run("ps").stdout
        assert two.run("ps").returncode == 4, "a directory with a file means that file"
        listed = json.loads(empty.run("ls", "--json").stdout)
        assert [(row["pid"], row["file"]) for row in listed] == [(first.pid, str(one.path / "tunnels.yaml"))]
        assert sum(listed[0]["tunnels"].values()) == 1
        with two.running("up", "--no-tui"):
            wait_until(lambda: "1 of 1 tunnel" in two.log())
            assert len(empty.run("ls").stdout.splitlines()) == 3
            many = empty.run("ps")
            assert (many.returncode, "2 daemons run; name the file of one: -f " in many.stderr) == (4, True)
            assert empty.run("down", "--wait", str(two.path / "tunnels.yaml")).returncode == 0
        assert "two files are named" in empty.run("down", "a.yaml", "-f", "b.yaml").stderr


def test_a_daemon_follows_its_path_when_its_working_directory_is_replaced(tmp_path: Path) -> None:
    shell = CommandShell(tmp_path)
    app = tmp_path / "app"
    for name in ("app", "next"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tunnels.yaml").write_text(TUNNEL.format(name=name))

    def ps() -> str:
        return shell.run("ps", "-f", str(app / "tunnels.yaml")).stdout

    with shell.running("up", "--no-tui", "tunnels.yaml", command=["env", "-C", str(app), *COMMAND]):
        wait_until(lambda: "app" in ps())
        shutil.rmtree(app)
        (tmp_path / "next").rename(app)
        wait_until(lambda: "next" in ps())
