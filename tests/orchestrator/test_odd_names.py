"""Names of tunnels, directories and tags that break naive code: every command and route works with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator.commands import command_line
from orchestrator.commands.common import EXIT_NO_DAEMON, EXIT_NOT_UP
from orchestrator.json_text import json_text
from orchestrator.process.logformat import as_json
from tests.orchestrator.api_harness import run_api
from tests.support.shell import CommandShell
from tests.support.waiting import wait_until, wait_until_async
from tunnel.model.events import Event, EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.state import State

NAMES = (
    "x{y}", "{name}", "{name:.*}", "}{", "a/b", "/", "//", "%", "%2F", "100%25", "a b", "a+b", "web[1]", "*", "?", "#1",
    "ä€𝄞", "...", "-", "'\"\\", "a:b;c=d,e", "&x=1", "start", "n" * 100,
)  # fmt: skip
FILE = """version: 1
tunnels:
  web1: client://127.0.0.1:9/127.0.0.1:1?client_cooldown=1h
  web[1]: client://127.0.0.1:9/127.0.0.1:1?client_cooldown=1h
  x{y}: client://127.0.0.1:9/127.0.0.1:1?client_cooldown=1h
  spare: {url: "client://127.0.0.1:9/127.0.0.1:1", enabled: false, tags: ["${TAG}"]}
"""


async def test_every_valid_name_works_in_every_route(tmp_path: Path) -> None:
    entries = {name: f"client://127.0.0.1:9/127.0.0.1:{port}" for port, name in enumerate(NAMES, 10)}
    async with run_api(tmp_path, json.dumps({"version": 1, "tunnels": entries}, ensure_ascii=False)) as harness:
        assert {*harness.supervisor.names()} == {*NAMES}
        await wait_until_async(lambda: all(harness.state(name) is State.UP for name in NAMES))
        for name in NAMES:
            route = f"/v1/tunnels/{quote(name, safe='')}"
            assert (await harness.request("GET", route)).json["name"] == name
            for verb in ("stop", "start", "restart", "drain"):
                answer = await harness.request("POST", f"{route}/{verb}", "{}")
                assert (answer.status, answer.json["name"]) == (200, name), (name, verb, answer.body)
            assert (await harness.request("POST", f"{route}/retry")).status == 409
            assert (await harness.request("GET", f"/v1/logs?tunnel={quote(name, safe='')}")).status == 200


def test_commands_work_where_names_directories_and_tags_are_unusual(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / os.fsdecode(b"caf\xe9")
    directory.mkdir()
    shell = CommandShell(directory)
    shell.environ["TAG"] = os.fsdecode(b"\xfftag")
    (directory / "tunnels.yaml").write_text(FILE)
    socket = tmp_path / "socket"

    def run(*arguments: str) -> tuple[int, str]:
        code = command_line.run([*arguments, "--socket", str(socket)])
        out, err = capsys.readouterr()
        return code, out + err

    with shell.running("up", "--no-tui", "--socket", "../socket"):
        wait_until(lambda: run("ps")[0] != EXIT_NO_DAEMON)
        status = json.loads(run("ps", "--json")[1])
        assert status["config"]["path"].endswith(r"caf\xe9/tunnels.yaml"), "readable, and valid UTF-8"
        assert [t["tags"] for t in status["tunnels"] if t["tags"]] == [[r"\xfftag"]]
        assert [t["name"] for t in status["tunnels"] if not t["enabled"]] == ["spare"]
        assert run("stop", "web[1]") == (0, "web[1]: stopping\n"), "not web1 too"
        assert run("stop", "x{y}", "web[0-9]") == (0, "web1: stopping\nx{y}: stopping\n")
        code, text = run("restart", "--all")
        assert (code, text.count("\n"), "spare" in text) == (0, 3, False)
        assert run("ps", "spare")[0] == 0, "a disabled tunnel is as the file wants it"
        assert run("ps", "web1")[0] == EXIT_NOT_UP
        assert "web[1]" in run("logs", "web[1]")[1]
        assert "no tunnel is named" in run("logs", os.fsdecode(b"\xff"))[1]
        assert run("stop", os.fsdecode(b"\xff"))[0] == 1
        assert run("plan")[0] == 0
        assert run("reload", "--json")[0] == 0
        assert run("start", "spare") == (0, "spare: starting\n"), "its name is enough"
        assert "spare" in run("stop", "--all")[1], "everything that runs"
        assert run("down", "--wait")[0] == 0
    assert "internal fault" not in shell.log()
    assert "it is read every 0.5 s: the name of its directory is not UTF-8" in shell.log()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain", "plain"), ("ä€", "ä€"), ("\udce9", r"\xe9"), ("\ud83d", "\ufffd"), ('"\udcff\\', '"\\xff\\')],
)
def test_json_text_is_valid_utf_8_whatever_a_text_holds(text: str, expected: str) -> None:
    assert json.loads(json_text({text: [text]}).encode()) == {expected: [expected]}
    event = Event(ts=0.0, tunnel="", level=LogLevel.INFO, kind=EventKind.LOG, text=text)
    assert json.loads(as_json(event).encode())["text"] == expected
