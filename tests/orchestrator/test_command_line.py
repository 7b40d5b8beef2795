"""The commands that need no daemon: exit codes, data on stdout, messages on stderr, and never a traceback."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.config.example import SMALLEST_FILE
from tests.support.ports import free_port
from tests.support.shell import COMMAND, COMMAND_TIMEOUT_S, CommandShell
from tests.support.waiting import wait_until
from tunnel.model.options import OPTION_NAMES

FILE = "version: 1\ntunnels:\n  here: server://127.0.0.1:{a}/127.0.0.1:{b}\n  there: client://127.0.0.1:{a}/127.0.0.1:{c}\n"


@pytest.fixture
def shell(tmp_path: Path) -> CommandShell:
    return CommandShell(tmp_path)


@pytest.fixture
def file(shell: CommandShell) -> Path:
    path = shell.path / "tunnels.yaml"
    path.write_text(FILE.format(a=free_port(), b=free_port(), c=free_port()))
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["chek"], 2, "unknown command 'chek'; did you mean 'check'?"),
        (["status"], 4, "no daemon answers at"),
        (["list", "--jsno"], 2, "Did you mean '--json'?"),
        (["show"], 2, "unknown command 'show'; did you mean 'ps'?"),
        (["shutdown"], 2, "unknown command 'shutdown'; did you mean 'down'?"),
        (["server:/x"], 2, "a URL looks like server://"),
        (["ps", "--jsno"], 2, "No such option"),
        (["up"], 2, f"in this directory; name another file, or create this one: {SMALLEST_FILE}"),
        (["check"], 2, "there is no tunnels.yaml in this directory"),
        (["up", "server://s3cret@h:1/h:2"], 2, "to run a single tunnel: nodepass-orch 'server://***@h:1/h:2'"),
        (["up", "--detach"], 2, "there is no tunnels.yaml in this directory"),
        (["ps"], 4, "no daemon answers at"),
        *((arguments, 4, "no daemon answers at") for arguments in (
            ["ps", "--watch"], ["down", "--wait"], ["start", "web"], ["stop", "--all"], ["restart", "edge-*"],
            ["drain", "--all", "--json"], ["retry", "x"], ["reload", "--wait"], ["plan"], ["logs", "-F"], ["events"])),
        (["stop"], 2, "name the tunnels or use --all: nodepass-orch stop NAME…"),
        (["stop", "web", "--all"], 2, "name the tunnels or use --all"),
        (["stop", "web", "--timeout", "5"], 2, "'5' is not a duration with its unit; did you mean 5s?"),
        (["ps", "--socket", "x" * 200], 1, "longer than 107 bytes"),
        (["demo", "--duration", "-1"], 2, "--duration"),
        (["completion", "tcsh"], 2, "tcsh"),
        (["server://s3cret@h:x/h:2"], 2, "the port 'x' of the tunnel address is not a number"),
        (["server://h:1/h:2", "more"], 2, "takes no further arguments"),
        (["server://h:1/h:2?lgo=debug"], 2, "unknown option 'lgo'; did you mean 'log'?"),
    ],
)  # fmt: skip
def test_a_wrong_command_prints_one_sentence_and_sets_the_exit_code(
    shell: CommandShell, arguments: list[str], code: int, sentence: str
) -> None:
    done = shell.run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert "s3cret" not in done.stderr


def test_the_fault_in_a_url_is_marked(shell: CommandShell) -> None:
    done = shell.run("server://s3cret-and-long@127.0.0.1:1/h:2x")
    _, url, mark = done.stderr.rstrip("\n").split("\n")
    assert url[mark.index("^") :].startswith("2x")


def test_an_invalid_environment_variable_is_reported(shell: CommandShell) -> None:
    done = shell.run("server://127.0.0.1:1/h:2", REPORT_INTERVAL="5")
    assert done.returncode == 2
    assert "REPORT_INTERVAL in the environment: '5' is not a duration with its unit; did you mean 5s?" in done.stderr


def test_help_and_version_are_printed_to_stdout(shell: CommandShell) -> None:
    for arguments in (["--help"], ["-h"], ["up", "--help"], ["--version"]):
        done = shell.run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout
    done = shell.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


def test_keygen_prints_a_new_key_without_characters_to_escape(shell: CommandShell) -> None:
    one, other = (shell.run("keygen").stdout.strip() for _ in range(2))
    assert one != other
    assert len(one) == 52
    assert one.replace("-", "").replace("_", "").isalnum()


def test_the_schema_has_every_option(shell: CommandShell) -> None:
    schema = json.loads(shell.run("schema").stdout)
    assert set(schema["properties"]) == {"version", "supervisor", "defaults", "include", "tunnels"}
    assert set(schema["$defs"]["defaults"]["properties"]) == {*OPTION_NAMES, "key"} - {"publish"}
    of_entry = {"key", "keys", "url", "enabled", "tags", "targets", "servers"}
    assert set(schema["$defs"]["entry"]["properties"]) == {*OPTION_NAMES, *of_entry}
    assert set(schema["$defs"]["supervisor"]["properties"]) == {
        "api",
        "metrics",
        "drain_timeout",
        "workers",
        "mqtt",
        "history",
        "access_log",
    }


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_completion_script(shell: CommandShell, name: str) -> None:
    done = shell.run("completion", name)
    assert "nodepass-orch" in done.stdout
    words = {"COMP_WORDS": "nodepass-orch ch", "COMP_CWORD": "1"}
    assert "check" in shell.run(_NODEPASS_ORCH_COMPLETE="bash_complete", **words).stdout


def test_a_missing_choice_is_reported_in_one_line(shell: CommandShell) -> None:
    done = shell.run("completion")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "bash, zsh, fish" in done.stderr
    assert "\\t" not in done.stderr


def test_named_keys_without_their_variable_are_reported_once(shell: CommandShell, file: Path) -> None:
    entry = 'e: {url: "server://0.0.0.0:1009/127.0.0.1:1", keys: {a: "${NOPE}"}}'
    file.write_text(f"version: 1\ntunnels:\n  {entry}\n")
    done = shell.run("check")
    assert done.returncode == 2
    assert done.stdout.count("\n") == 1
    assert "NOPE is not set" in done.stdout


@pytest.mark.parametrize("command", ["check", "up", "plan"])
def test_completion_offers_files(shell: CommandShell, command: str) -> None:
    words = {"COMP_WORDS": f"nodepass-orch {command} t", "COMP_CWORD": "2"}
    assert shell.run(_NODEPASS_ORCH_COMPLETE="bash_complete", **words).stdout == "file,t\n"


def test_the_example_of_the_messages_is_a_valid_file(shell: CommandShell) -> None:
    (shell.path / "tunnels.yaml").write_text(SMALLEST_FILE, encoding="utf-8")
    done = shell.run("check")
    assert (done.returncode, done.stderr) == (0, "nodepass-orch: tunnels.yaml is valid: 1 tunnel\n")


def test_check_prints_every_fault_with_its_place(shell: CommandShell, file: Path) -> None:
    done = shell.run("check")
    assert (done.returncode, done.stdout) == (0, "")
    file.write_text("version: 1\ntunnels:\n  a: server://0.0.0.0:1/h:2\n")
    assert shell.run("check").stdout.startswith(
        "tunnels.yaml:3:6: the tunnel has no key, and other hosts can reach it;"
    )
    file.write_text("version: 1\ntunnels:\n  a: server://short@0.0.0.0:1/h:2\n")
    assert shell.run("check").stdout.startswith("tunnels.yaml:3:3: warning: the key is weak")
    assert shell.run("check").returncode == 0
    assert shell.run("check", "--strict").returncode == 2
    answer = json.loads(shell.run("check", "--json").stdout)
    assert (answer["ok"], answer["tunnels"], answer["faults"]) == (True, 1, [])
    file.write_text("version: 1\ntunnels:\n  a: server://0.0.0.0:1/h:x\n  b: nonsense\n")
    done = shell.run("check")
    assert done.returncode == 2
    assert [line.split(" ")[0] for line in done.stdout.splitlines()] == ["tunnels.yaml:3:27:", "tunnels.yaml:4:6:"]
    answer = json.loads(shell.run("check", "--json").stdout)
    assert [(fault["line"], fault["column"]) for fault in answer["faults"]] == [(3, 27), (4, 6)]
    assert shell.run("up", "--no-tui").stderr == done.stdout
    file.write_text("version: 1\ntunnels:\n  a: server://short@0.0.0.0:1/h:2\n  b: nonsense\n")
    fault, *warnings = shell.run("check").stdout.splitlines()
    assert fault.startswith("tunnels.yaml:4:6: ")
    assert any(line.startswith("tunnels.yaml:3:3: warning: the key is weak") for line in warnings)
    shown = json.loads(shell.run("check", "--json").stdout)
    assert (len(shown["faults"]), len(shown["warnings"])) == (1, len(warnings))


def test_up_runs_tunnels_that_ps_lists_until_down(shell: CommandShell, file: Path) -> None:
    with shell.running("up", "--no-tui") as daemon:
        status = shell.wait_all_up()
        assert [tunnel["name"] for tunnel in status["tunnels"]] == ["here", "there"]
        assert (status["pid"], status["config"]["path"]) == (daemon.pid, str(file))
        assert len({tunnel["link"] for tunnel in status["tunnels"]}) == 1

        table = shell.run("ps")
        assert table.returncode == 0
        assert [line.split()[0] for line in table.stdout.splitlines()] == ["NAME", "here", "there"]
        assert "\x1b" not in table.stdout
        assert len(shell.run("ps", "he*").stdout.splitlines()) == 2
        assert shell.run("ps", "nobody").returncode == 1

        second = shell.run("up", "--no-tui")
        assert second.returncode == 1
        assert f"a daemon is already running {file} (process " in second.stderr

        done = shell.run("down", "--wait")
        assert (done.returncode, done.stdout) == (0, "")
        assert daemon.wait(COMMAND_TIMEOUT_S) == 0
    assert list((shell.path / "run").iterdir()) == []
    assert shell.run("ps").returncode == 4


def test_up_wait_returns_when_every_enabled_tunnel_is_up(shell: CommandShell, file: Path) -> None:
    done = shell.run("up", "--wait", "-f", str(file))
    try:
        assert (done.returncode, shell.run("ps").returncode) == (0, 0), done.stderr
    finally:
        assert shell.run("down", "--now", "--wait").returncode == 0
    file.write_text("version: 1\ntunnels: {lonely: 'client://127.0.0.1:9/127.0.0.1:1'}\n")
    done = shell.run("up", "--wait", "--timeout", "100ms")
    try:
        assert done.returncode == 1
        assert re.search(r"after 0\.1 s it has not brought up lonely \(\w+: [^)]+\)", done.stderr), done.stderr
        assert shell.run("ps").returncode == 3, "the daemon runs all the same"
    finally:
        assert shell.run("down", "--now", "--wait").returncode == 0


@pytest.mark.parametrize("printed", ["the daemon runs in the background", "not up yet: lonely (cooldown: "])
def test_up_wait_prints_the_first_reason_and_if_interrupted_that_the_daemon_keeps_running(
    shell: CommandShell, file: Path, printed: str
) -> None:
    file.write_text("version: 1\ntunnels: {lonely: 'client://127.0.0.1:9/127.0.0.1:1'}\n")
    try:
        with shell.running("up", "--wait") as command:
            wait_until(lambda: printed in shell.log(), within=COMMAND_TIMEOUT_S)
            command.send_signal(signal.SIGINT)
            assert command.wait(COMMAND_TIMEOUT_S) == 130
        assert "interrupted; the daemon keeps running, end it with: nodepass-orch down -f " in shell.log()
        assert shell.run("ps").returncode == 3
    finally:
        assert shell.run("down", "--now", "--wait").returncode == 0


def test_a_place_is_relative_and_other_paths_in_its_fault_stay(shell: CommandShell, file: Path) -> None:
    file.write_text(f"version: 1\ntunnels: {{a: 'server://127.0.0.1:1/h:2?key_file={shell.path}/x'}}\n")
    done = shell.run("up", "--no-tui")
    assert done.stderr.startswith("tunnels.yaml:2:")
    assert f"{shell.path}/x" in done.stderr


def test_ps_has_exit_code_3_if_a_tunnel_is_not_up(shell: CommandShell, file: Path) -> None:
    file.write_text(file.read_text().replace("there: client", "there: {enabled: false, url: 'client").rstrip() + "'}\n")
    with shell.running("up", "--no-tui", "--log-format", "json") as daemon:
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while (done := shell.run("ps")).returncode == 4 and time.monotonic() < deadline:
            pass
        assert done.returncode == 3
        assert "disabled in the file" in done.stdout
        daemon.terminate()
        assert daemon.wait(COMMAND_TIMEOUT_S) == 0
    assert {json.loads(line)["tunnel"] for line in shell.log().splitlines()} >= {"", "here"}


def test_commands_find_the_socket_that_the_file_names(shell: CommandShell, file: Path) -> None:
    file.write_text(file.read_text().replace("tunnels:", "supervisor: {api: mine.sock}\ntunnels:"))
    with shell.running("up", "--no-tui"):
        shell.wait_all_up()
        assert shell.run("ps", "--socket", "mine.sock").returncode == 0
        assert shell.run("ps", NODEPASS_ORCH_SOCKET="mine.sock").returncode == 0
        assert shell.run("down", "--wait").returncode == 0
    assert not (shell.path / "mine.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("mode", ["file", "url"])
def test_a_process_signal_drains_and_ends_with_exit_code_0(
    shell: CommandShell, file: Path, number: int, mode: str
) -> None:
    server = f"{file.read_text().split('here: ')[1].split()[0]}?log=debug"
    arguments = ["up", "--no-tui", str(file)] if mode == "file" else [server]
    with shell.running(*arguments) as process:
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while "listening on" not in shell.log() and time.monotonic() < deadline:
            assert process.poll() is None, shell.log()
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(COMMAND_TIMEOUT_S) == 0
    assert "stopped" in shell.log()


@pytest.mark.parametrize("delay", [0.005, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("mode", ["up", "url", "demo", "check"])
def test_ctrl_c_at_any_moment_prints_no_traceback(shell: CommandShell, file: Path, delay: float, mode: str) -> None:
    arguments = {
        "up": ["up", "--no-tui", str(file)],
        "url": ["client://127.0.0.1:9/127.0.0.1:1"],
        "demo": ["demo"],
        "check": ["check", str(file)],
    }[mode]
    # Until the first line of the program runs, the interpreter handles Ctrl-C and prints a traceback.
    program = "import sys; from orchestrator.cli import main; print('x', flush=True); sys.exit(main())"
    with shell.running(*arguments, command=[sys.executable, "-c", program]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)  # the moment is the test's subject; there is nothing to wait for
        process.send_signal(signal.SIGINT)
        assert process.wait(COMMAND_TIMEOUT_S) in {0, -signal.SIGINT}
    assert "KeyboardInterrupt" not in shell.log()


def test_a_single_url_imports_no_heavy_library(shell: CommandShell) -> None:
    program = """
import sys
import orchestrator.cli, orchestrator.single
heavy = {"click", "aiohttp", "pydantic", "yaml", "http.client", "textual"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, env=shell.environ
    )
    assert done.returncode == 0, done.stderr


def test_the_control_commands_import_no_heavy_library(shell: CommandShell) -> None:
    program = """
import sys
import orchestrator.commands.command_line
heavy = {"aiohttp", "pydantic", "yaml", "cryptography"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, env=shell.environ
    )
    assert done.returncode == 0, done.stderr


def test_the_demonstration_ends_after_its_duration_with_a_summary(shell: CommandShell) -> None:
    done = shell.run("demo", "--no-tui", "--duration", "8")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()}
    for name in ("web", "web-1", "web-2", "shop", "shop-client", "files", "files-client", "dns", "dns-client"):
        direction, state, visitors, came, went = rows[name][1:6]
        assert (direction, state) == ("forward" if name.startswith("files") else "reverse", "up")
        assert int(visitors) > 0
        assert came != "0B" != went
    assert rows["refused-client"][2] == "cooldown"
    assert "refused" in " ".join(rows["refused-client"])
    served = r"requests were answered, 0 failed; (\d+) visitors? of refused-client w.*; (\d+) visitors? of web w"
    unserved = re.search(served, done.stdout)
    assert unserved is not None
    assert min(map(int, unserved.groups())) > 0


def test_a_full_disk_is_reported_with_a_sentence(shell: CommandShell) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "schema"], check=False, stdout=full, stderr=subprocess.PIPE, text=True, env=shell.environ
        )
    assert done.returncode == 1
    assert "cannot write the output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["ps"], ["check"]])
def test_a_forked_command_does_what_one_in_a_new_interpreter_does(
    shell: CommandShell, file: Path, arguments: list[str]
) -> None:
    file.write_text(f"{file.read_text()}  more: server://:1\n")
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=shell.path, env=shell.environ
    )
    forked = shell.run(*arguments)
    assert (forked.returncode, forked.stdout, forked.stderr) == (done.returncode, done.stdout, done.stderr)
