"""The key that opens an editor at a tunnel's entry, and the command lines of what keys do."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tui.conftest import OpenDashboard, wait_until_shown
from tests.tui.fake import FakeDaemon
from tests.tui.test_dashboard import has_notice
from tui.format.command_line import command_line
from tui.format.editor import editor_command, parse_place
from tui.sources.daemon import ApiSource


@pytest.mark.parametrize(
    ("environ", "command"),
    [
        ({}, ["vi", "+7", "/srv/tunnels.yaml"]),
        ({"EDITOR": "nano -w"}, ["nano", "-w", "+7", "/srv/tunnels.yaml"]),
        ({"EDITOR": "nano", "VISUAL": "/usr/bin/hx"}, ["/usr/bin/hx", "/srv/tunnels.yaml:7"]),
        ({"EDITOR": " ", "VISUAL": "code"}, ["code", "--wait", "--goto", "/srv/tunnels.yaml:7"]),
        ({"VISUAL": "subl"}, ["subl", "--wait", "/srv/tunnels.yaml:7"]),
    ],
)
def test_each_editor_opens_the_file_at_the_line(environ: dict[str, str], command: list[str]) -> None:
    assert editor_command(environ, Path("/srv/tunnels.yaml"), 7) == command


def test_a_place_is_relative_to_the_file_of_the_daemon() -> None:
    assert parse_place("tunnels.d/a:b.yaml:7:3", Path("/srv")) == (Path("/srv/tunnels.d/a:b.yaml"), 7)
    for bad in ("", "tunnels.yaml", "tunnels.yaml:x:3"):
        with pytest.raises(ValueError, match=r"unpack|invalid literal"):
            parse_place(bad, Path("/srv"))


def test_a_command_line_can_be_pasted_into_a_shell() -> None:
    assert command_line("restart", ["web", "my tunnel"]) == "nodepass-orch restart web 'my tunnel'"
    assert command_line("restart", ["a/web"], is_fleet=True) == "nodepass-orch fleet restart a/web"
    assert command_line("stop", list("abcdefg")) == "nodepass-orch stop a b c d e …"


async def test_the_editor_gets_the_terminal_and_the_place(
    daemon: FakeDaemon, opened: OpenDashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen = tmp_path / "tunnels.yaml", tmp_path / "seen"
    daemon.status["config"] = {**daemon.status["config"], "path": str(place)}
    script = f"import sys, pathlib; pathlib.Path({str(seen)!r}).write_text(' '.join(sys.argv[1:])); sys.exit(3)"
    monkeypatch.setenv("VISUAL", shlex.join([sys.executable, "-c", script]))
    async with opened((140, 30)) as (app, pilot):
        suspended: list[bool] = []

        @contextlib.contextmanager
        def suspend() -> Iterator[None]:
            suspended.append(True)
            yield

        monkeypatch.setattr(app, "suspend", suspend)
        await pilot.press("slash", *"db-east", "enter", "E")
        await wait_until_shown(pilot, lambda: has_notice(app, f"there is no file {place} on this host"))
        place.write_text("version: 1\n")
        await pilot.press("E")
        await wait_until_shown(pilot, lambda: has_notice(app, "ended with code 3"))
        assert (seen.read_text(), suspended) == (f"+41 {place}", [True])


async def test_a_terminal_that_cannot_be_given_to_an_editor_is_reported(
    daemon: FakeDaemon, opened: OpenDashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it has no terminal"))
    place = tmp_path / "tunnels.yaml"
    place.write_text("version: 1\n")
    daemon.status["config"] = {**daemon.status["config"], "path": str(place)}
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "E")
        await wait_until_shown(pilot, lambda: has_notice(app, "edit db-east: "))


async def test_a_file_of_another_host_is_not_looked_for_here(
    daemon: FakeDaemon, opened: OpenDashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tunnels.yaml"
    place.write_text("version: 1\n")
    daemon.status["config"] = {**daemon.status["config"], "path": str(place)}
    monkeypatch.setattr(ApiSource, "place", "http://server-host:7070")
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "E")
        await wait_until_shown(pilot, lambda: has_notice(app, "only on the host of its daemon"))


async def test_the_result_of_a_key_names_its_command_line(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened((140, 30)) as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "d", "y")
        await wait_until_shown(pilot, lambda: has_notice(app, "$ nodepass-orch drain db-east"))
        assert daemon.commands == [("drain", "db-east")]
