"""The dashboard as a whole, with keys and mouse, on a daemon that is none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from textual.events import Key
from textual.widgets import Button

from tests.support.scale import GUARD_S
from tests.tui.conftest import Open, named, picture, shows, wait_until_shown
from tests.tui.fake import FakeDaemon, connections, cooldown, tunnel
from tui.app import END, LEAVE, Dashboard
from tui.screens.main import MainScreen
from tui.screens.paths import AllPaths, OnePath
from tui.screens.questions import Question
from tui.screens.readings import Lines
from tui.widgets.pane import Pane
from tui.widgets.table import TunnelTable

if TYPE_CHECKING:
    from pathlib import Path


def rows(text: str) -> list[str]:
    """The names in the table, from top to bottom; for tunnels whose names have no spaces."""
    lines = text.splitlines()
    start = next((index for index, line in enumerate(lines) if "STATE" in line and "NAME" in line), len(lines))
    found = []
    for line in lines[start + 1 :]:
        words = line[1:].split("▏")[0].split()
        if not words or words[0] not in "●◔◐◌◷◑✖○":
            break
        found.append(words[3] if words[1] == "cooldown" else words[2])
    return found


async def test_the_first_look_says_what_is_wrong_and_why(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, shows(app, "address 127.0.0.1:10101 is in use", "tunnels.yaml ✓ gen 4"))
        text = picture(app)
        assert "All 7" in text
        assert "✖ failed 1" in text
        assert re.search(r"◷ cooldown [0-4]\.", text)
        assert rows(text)[0] == "broken"


async def test_names_are_shown_as_they_are(daemon: FakeDaemon, opened: Open) -> None:
    async with opened((200, 40)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "[red]bold[/]", "世界世界世界"))


async def test_a_change_is_seen_and_a_removed_tunnel_goes(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        daemon.change("db-west", state="up", reason=None)
        daemon.remove("edge-7")
        await wait_until_shown(pilot, shows(app, "● up 3", "All 6"))
        assert "edge-7" not in picture(app)
        daemon.change("newcomer", state="up")
        await wait_until_shown(pilot, shows(app, "newcomer", "All 7"))


def remaining(text: str) -> float | None:
    """The seconds of the cooldown that is shown."""
    found = re.search(r"◷ cooldown (\d+\.\d)s", text)
    return float(found[1]) if found else None


async def test_a_cooldown_counts_down_by_itself(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, lambda: remaining(picture(app)) is not None)
        first = remaining(picture(app)) or 0.0
        await wait_until_shown(pilot, lambda: (remaining(picture(app)) or 0.0) < first)


async def test_pills_filter_by_key_and_by_mouse(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("4")
        await wait_until_shown(pilot, lambda: rows(picture(app)) == ["broken"])
        await pilot.press("4")
        await wait_until_shown(pilot, lambda: len(rows(picture(app))) == 7)
        await pilot.press("right_square_bracket")
        await wait_until_shown(pilot, lambda: rows(picture(app)) == ["[red]bold[/]", "db-east"])
        column = picture(app).splitlines()[1].index("cooldown")
        await pilot.click("#pills", offset=(column, 0))
        await wait_until_shown(pilot, lambda: rows(picture(app)) == ["db-west"])
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: len(rows(picture(app))) == 7)


async def test_the_filter_takes_alternatives_and_escape_ends_it(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("slash", *"db|edge", "enter")
        await wait_until_shown(pilot, lambda: rows(picture(app)) == ["db-west", "edge-7", "db-east"])
        assert "3 of 7" in picture(app)
        await pilot.press("j", "enter")  # the keys are the table's again
        await pilot.press("slash", "escape")
        await wait_until_shown(pilot, lambda: len(rows(picture(app))) == 7)
        await pilot.press("slash", *"nothing", "enter")
        await wait_until_shown(pilot, shows(app, "No tunnel is here and matches 'nothing'"))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: len(rows(picture(app))) == 7)


async def test_sorting_by_key_and_by_a_click_on_a_title(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("o")
        await wait_until_shown(pilot, shows(app, "NAME▼", "sort NAME"))
        assert rows(picture(app))[:2] == ["[red]bold[/]", "broken"]
        await pilot.press("O")
        await wait_until_shown(pilot, shows(app, "NAME▲"))
        column = next(line for line in picture(app).splitlines() if "NAME▲" in line).index("CONN")
        await pilot.click("#table", offset=(column, 0))
        await wait_until_shown(pilot, shows(app, "CONN▼"))
        assert rows(picture(app))[0] == "db-east"


async def test_the_cursor_stays_with_its_tunnel(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("G")
        await wait_until_shown(pilot, shows(app, "stopped by command"))
        daemon.change("resting", state="failed", reason="now it is broken too")
        await wait_until_shown(pilot, shows(app, "now it is broken too"))


async def test_stop_asks_names_the_visitors_and_cancel_has_the_focus(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "s")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, Question))
        await wait_until_shown(pilot, shows(app, "Stop db-east?", "12 visitors", "cut 12"))
        assert isinstance(app.focused, Button)
        assert app.focused.id == "cancel"
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: not isinstance(app.screen, Question))
        assert daemon.commands == []
        await pilot.press("s")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await wait_until_shown(pilot, lambda: daemon.commands == [("stop", "db-east")])


@pytest.mark.parametrize(("key", "verb"), [("r", "restart"), ("d", "drain")])
async def test_restart_and_drain_ask_first(daemon: FakeDaemon, opened: Open, key: str, verb: str) -> None:
    async with opened() as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", key)
        await wait_until_shown(pilot, shows(app, f"{verb.capitalize()} db-east?", "cut 12"))
        await pilot.click("#yes")
        await wait_until_shown(pilot, lambda: daemon.commands == [(verb, "db-east")])


async def test_start_and_retry_need_no_question(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("5", "s")
        await wait_until_shown(pilot, lambda: daemon.commands == [("start", "resting")])
        await pilot.press("3", "n")
        await wait_until_shown(pilot, lambda: daemon.commands == [("start", "resting"), ("retry", "db-west")])
        await pilot.press("1", "n")
        await wait_until_shown(pilot, shows(app, "there is no cooldown to end"))


async def test_commands_act_on_all_marked_tunnels(daemon: FakeDaemon, opened: Open) -> None:
    daemon.tunnels = {t["name"]: t for t in named("a", "b", "c", connections=connections(2))}
    async with opened() as (app, pilot):
        await pilot.press("space", "space")
        await wait_until_shown(pilot, shows(app, "2 marked", "▌"))
        await pilot.press("r")
        await wait_until_shown(pilot, shows(app, "Restart 2 tunnels?", "4 visitors"))
        await pilot.click("#yes")
        await wait_until_shown(pilot, lambda: sorted(daemon.commands) == [("restart", "a"), ("restart", "b")])
        await pilot.press("escape", "a")
        await wait_until_shown(pilot, shows(app, "3 marked"))
        await pilot.press("a")
        await wait_until_shown(pilot, lambda: "marked" not in picture(app))


async def test_a_refusal_is_shown_as_a_sentence(daemon: FakeDaemon, opened: Open) -> None:
    daemon.refusal = "it is draining"
    async with opened() as (app, pilot):
        await pilot.press("5", "s")
        await wait_until_shown(pilot, shows(app, "it is draining"))


async def test_reload_shows_the_plan_where_it_costs_something(daemon: FakeDaemon, opened: Open) -> None:
    daemon.plan |= {"remove": ["db-east"], "restart": [{"name": "edge-7", "changes": ["target a:1 → b:2"]}]}
    daemon.result["results"] = {"db-east": {"action": "removed", "detail": None, "changes": []}}
    async with opened() as (app, pilot):
        await pilot.press("w")
        await wait_until_shown(pilot, shows(app, "What a reload would change", "removed db-east", "target a:1 → b:2"))
        await pilot.press("escape", "R")
        await wait_until_shown(pilot, shows(app, "Apply the file?", "removed db-east", "cut 12"))
        await pilot.press("right", "enter")
        await wait_until_shown(pilot, lambda: ("reload", "") in daemon.commands)
        await wait_until_shown(pilot, shows(app, "Generation 5: removed db-east"))


async def test_a_reload_that_costs_nothing_asks_nothing(daemon: FakeDaemon, opened: Open) -> None:
    daemon.result |= {
        "ok": False,
        "error": {"file": "t.yaml", "line": 3, "column": 5, "message": "unknown key 'tunels'"},
    }
    async with opened() as (app, pilot):
        await pilot.press("R")
        await wait_until_shown(pilot, shows(app, "t.yaml:3:5: unknown key 'tunels'"))


async def test_what_a_reload_refused_is_told_with_what_it_did(daemon: FakeDaemon, opened: Open) -> None:
    daemon.result |= {
        "ok": False,
        "results": {
            "a": {"action": "rejected", "detail": "the address 127.0.0.1:5 is in use", "changes": []},
            "b": {"action": "added", "detail": None, "changes": []},
        },
    }
    async with opened() as (app, pilot):
        await pilot.press("R")
        await wait_until_shown(pilot, shows(app, "Generation 5: rejected a; added b"))
        await wait_until_shown(
            pilot, lambda: "127.0.0.1:5 is in use" in "".join(toast.message for toast in app._notifications)
        )
        assert "Not applied" not in app.export_screenshot()


async def test_a_long_question_shows_its_buttons_and_what_it_costs(daemon: FakeDaemon, opened: Open) -> None:
    names = [f"t{number}" for number in range(40)]
    daemon.tunnels = {t["name"]: t for t in named(*names, connections=connections(2))}
    daemon.plan["restart"] = [{"name": name, "changes": ["target a:1 → b:2"]} for name in names]
    async with opened((80, 24)) as (app, pilot):
        await pilot.press("R")
        await wait_until_shown(pilot, shows(app, "Apply the file?", "80 visitors", "Cancel", "restarted t0:"))
        for _ in range(8):
            await pilot.press("pagedown")
        await wait_until_shown(pilot, shows(app, "restarted t39", "Cancel"))
        await pilot.press("enter")
        assert daemon.commands == []


async def test_a_wrong_file_is_shown_with_its_place_and_goes_when_mended(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        good = daemon.status["config"]
        daemon.set_status(
            config={**good, "ok": False, "error": "/etc/np/tunnels.yaml:12:7: unknown key", "line": 12, "column": 7}
        )
        await wait_until_shown(pilot, shows(app, "tunnels.yaml:12:7: unknown key", "serve on"))
        assert len(rows(picture(app))) == 7
        daemon.set_status(config=good, generation=5)
        results = {"a": {"action": "added"}, "b": {"action": "removed"}}
        daemon.happen(daemon.event("info", "reload", "applied", generation=5, results=results))
        await wait_until_shown(pilot, shows(app, "Generation 5: removed b; added a"))
        assert "unknown key" not in picture(app)


async def test_a_lost_daemon_leaves_the_last_view_and_comes_back(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await daemon.stop()
        await wait_until_shown(pilot, shows(app, "stale", "has not answered for", "db-east"))
        daemon.tunnels = {t["name"]: t for t in named("reborn")}
        await daemon.start()
        await wait_until_shown(pilot, shows(app, "reborn", "All 1"))
        await wait_until_shown(pilot, lambda: "stale" not in picture(app))


async def test_a_lost_daemon_shows_behind_two_screens_as_well(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("v")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, AllPaths))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, OnePath))
        assert "stale" not in app.export_screenshot()
        await daemon.stop()
        await wait_until_shown(pilot, lambda: "stale" in app.export_screenshot())


async def test_there_is_no_filter_for_hosts_on_one_daemon(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("6", "]")
        up = {name for name, told in daemon.tunnels.items() if told["state"] == "up"}
        await wait_until_shown(pilot, lambda: set(rows(picture(app))) == up)
        await pilot.press("?")
        await wait_until_shown(pilot, shows(app, "0 to 5"))


async def test_keys_right_behind_the_slash_belong_to_the_filter(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("5")
        await wait_until_shown(pilot, lambda: rows(picture(app)) == ["resting"])
        for key, character in (("slash", "/"), ("s", "s"), ("R", "R"), ("s", "s")):
            app.post_message(Key(key, character))
        await wait_until_shown(pilot, shows(app, "sRs"))
        assert daemon.commands == []


async def test_the_list_of_paths_goes_on_below_its_end(daemon: FakeDaemon, opened: Open) -> None:
    daemon.tunnels = {t["name"]: t for t in named(*(f"t{number:02}" for number in range(60)))}
    async with opened((80, 24)) as (app, pilot):
        await pilot.press("v")
        await wait_until_shown(pilot, shows(app, "60 paths", "t00"))
        await pilot.press("pagedown", "pagedown")
        await wait_until_shown(pilot, lambda: "t00" not in picture(app))
        await pilot.press("end")
        await wait_until_shown(pilot, shows(app, "t59"))
        await pilot.press("up", "up", "home")
        await wait_until_shown(pilot, shows(app, "t00"))


async def test_details_of_a_tunnel_that_goes_are_not_those_of_another(daemon: FakeDaemon, opened: Open) -> None:
    daemon.tunnels = {t["name"]: t for t in named("db", "web")}
    async with opened((80, 24)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "db", "web"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, Lines))
        await wait_until_shown(pilot, shows(app, "db", "● up"))
        daemon.remove("db")
        await wait_until_shown(pilot, shows(app, "db is gone."))


async def test_a_key_pressed_twice_asks_once(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        main = app.screen
        assert isinstance(main, MainScreen)
        main.action_restart()
        main.action_restart()
        await wait_until_shown(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("r")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, Question))


async def test_a_frozen_picture_does_not_move(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("z")
        await wait_until_shown(pilot, shows(app, "▮▮ frozen"))
        daemon.change("db-east", state="failed", reason="meanwhile")
        await wait_until_shown(pilot, lambda: app.view.tunnels["db-east"].state == "failed")
        assert "✖ failed 1" in picture(app)
        await pilot.press("z")
        await wait_until_shown(pilot, shows(app, "✖ failed 2"))


async def test_the_log_filters_by_level_and_text_and_pauses(daemon: FakeDaemon, opened: Open) -> None:
    daemon.log = [
        daemon.event("info", "link", "all is well", "broken"),
        daemon.event("warn", "target", "the target hesitates", "broken"),
    ]
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, shows(app, "all is well", "the target hesitates", "Log broken"))
        await pilot.press("L")
        await wait_until_shown(pilot, shows(app, "≥warn"))
        assert "all is well" not in picture(app)
        await pilot.press("f", *"sunny", "enter")
        await wait_until_shown(pilot, shows(app, "/sunny/"))
        assert "the target hesitates" not in picture(app)
        await pilot.press("P")
        daemon.happen(daemon.event("warn", "link", "a sunny day", "broken"))
        daemon.happen(daemon.event("warn", "link", "a sunny evening", "broken"))
        await wait_until_shown(pilot, shows(app, "paused, 2 more"))
        daemon.set_status(generation=5)
        daemon.happen(daemon.event("warn", "link", "a sunny night", "broken"))
        await wait_until_shown(pilot, shows(app, "gen 5", "paused, 3 more"))  # another file does not let it go
        assert "a sunny day" not in picture(app)
        await pilot.press("P")
        await wait_until_shown(pilot, shows(app, "a sunny day"))
        await pilot.press("A")
        await wait_until_shown(pilot, shows(app, "Log of all tunnels"))
        await pilot.press("l")
        await wait_until_shown(pilot, lambda: "Log of all" not in picture(app))


async def test_events_are_shown_as_they_happen(daemon: FakeDaemon, opened: Open) -> None:
    daemon.log = [daemon.event("info", "state", "it came up", "db-east")]
    async with opened((80, 24)) as (app, pilot):
        await pilot.press("e")
        await wait_until_shown(pilot, shows(app, "Events", "db-east           it came up"))
        daemon.happen(daemon.event("warn", "state", "it went down", "db-east"))
        await wait_until_shown(pilot, shows(app, "it went down"))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: "it came up" not in picture(app))


async def test_details_tell_settings_and_where_they_come_from(daemon: FakeDaemon, opened: Open) -> None:
    async with opened((80, 24)) as (app, pilot):
        assert "settings" not in picture(app)
        await pilot.press("enter")
        await wait_until_shown(pilot, shows(app, "address 127.0.0.1:10101 is in use", "shared key"))
        await pilot.press("end")
        await wait_until_shown(pilot, shows(app, "max_pool_capacity", "tunnels.yaml:41:3", "built in"))
        await pilot.press("escape")
    async with opened((120, 40)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "max_pool_capacity"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: "max_pool_capacity" not in picture(app))


async def test_the_url_is_copied_without_its_key(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("y")
        await wait_until_shown(pilot, lambda: app.clipboard == "server://***@127.0.0.1:10101/127.0.0.1:8080")


async def test_the_palette_takes_names_of_tunnels(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("ctrl+p")
        await pilot.press(*"restart db-e")
        await wait_until_shown(pilot, shows(app, "restart db-east"))
        await pilot.press("enter")
        await wait_until_shown(pilot, shows(app, "Restart db-east?"))
        await pilot.press("escape", "colon", *"show edge")
        await wait_until_shown(pilot, shows(app, "show edge-7"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: app._main._table.cursor == "edge-7")


@pytest.mark.parametrize(
    ("verb", "name", "is_asked"),
    [
        ("start", "resting", False),
        ("stop", "db-east", True),
        ("restart", "db-east", True),
        ("drain", "db-east", True),
        ("retry", "db-west", False),
    ],
)
async def test_the_palette_has_every_command(
    daemon: FakeDaemon,
    opened: Open,
    verb: str,
    name: str,
    is_asked: bool,  # noqa: FBT001  as above
) -> None:
    async with opened() as (app, pilot):
        await pilot.press("ctrl+p", *f"{verb} {name}")
        await wait_until_shown(pilot, shows(app, f"{verb} {name}"))
        await pilot.press("enter")
        if is_asked:
            await wait_until_shown(pilot, shows(app, f"{verb.capitalize()} {name}?"))
            await pilot.press("right", "enter")
        await wait_until_shown(pilot, lambda: daemon.commands == [(verb, name)])


async def test_the_palette_does_what_keys_do(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("ctrl+p", *"read file again")
        await wait_until_shown(pilot, shows(app, "after a look at what would change  R"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: daemon.commands == [("reload", "")])
        await pilot.press("ctrl+p", *"copy edge-7")
        await wait_until_shown(pilot, shows(app, "copy edge-7"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: app.clipboard.startswith("server://***@"))


async def test_a_narrow_screen_says_why_under_the_table(daemon: FakeDaemon, opened: Open) -> None:
    async with opened((80, 24)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "broken  for", "address 127.0.0.1:10101 is in use"))
        await pilot.press("3")
        await wait_until_shown(pilot, shows(app, "the target 127.0.0.1:5432 refuses connections; attempt 10 in"))
        await pilot.press("3", *"/red", "enter")
        await wait_until_shown(
            pilot,
            shows(
                app,
                "[red]bold[/]  for",
                "open  reverse  server://127.0.0.1:10101/127.0.0.1:8080",
                "linked, and visitors can be served",
            ),
        )
        assert "!● up" in picture(app)
    async with opened((120, 24)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "shared key"))
        assert picture(app).count("address 127.0.0.1:10101 is in use") == 1
        await pilot.press("enter")  # without the details, the reason goes under the table
        await wait_until_shown(pilot, lambda: "shared key" not in picture(app) and "broken  for" in picture(app))


async def test_help_lists_the_keys_that_hold(daemon: FakeDaemon, opened: Open) -> None:
    from tui.keys import all_keys  # noqa: PLC0415  used here alone

    async with opened((100, 60), keys=all_keys({"restart": "f5"})) as (app, pilot):
        await pilot.press("question_mark")
        await wait_until_shown(pilot, shows(app, "f5", "restart the tunnel", "waits before the next attempt"))
        await pilot.press("escape", "r")
        await pilot.pause()
        assert not isinstance(app.screen, Question)
        await pilot.press("f5")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, Question))


async def test_read_only_takes_no_commands(daemon: FakeDaemon, opened: Open) -> None:
    async with opened(is_read_only=True) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "READ-ONLY"))
        await pilot.press("s", "r", "d", "n", "R")
        await pilot.pause()
        assert not isinstance(app.screen, Question)
        assert "start/stop" not in picture(app)
        assert daemon.commands == []


async def test_a_read_only_daemon_is_respected(daemon: FakeDaemon, opened: Open) -> None:
    daemon.status["read_only"] = True
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, shows(app, "READ-ONLY"))
        await pilot.press("s")
        await pilot.pause()
        assert not isinstance(app.screen, Question)


async def test_leaving_top_leaves_the_daemon(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        await pilot.press("q")
        await pilot.pause()
    assert app.return_value == LEAVE
    assert daemon.commands == []


async def test_what_did_not_change_is_not_rendered_again(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        footer, table = app._main.query_one("#footer", Pane), app._main.query_one(TunnelTable)
        await wait_until_shown(pilot, lambda: footer._kept is not None and table._kept is not None)
        lines, rows = footer._kept, table._kept
        await pilot.press("j")
        await wait_until_shown(pilot, lambda: table._kept not in (None, rows))
        assert footer._kept is lines
        await pilot.press("t")
        await wait_until_shown(pilot, lambda: footer._kept not in (None, lines))  # it has other colours


async def test_to_draw_once_more_on_the_way_out_is_no_fault(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, _):
        pass
    assert not app.screen_stack
    with app._context():
        app._main.draw()


@pytest.mark.parametrize(("button", "answer"), [("leave", LEAVE), ("end", END)])
async def test_leaving_up_asks_what_becomes_of_the_tunnels(
    daemon: FakeDaemon, opened: Open, button: str, answer: str
) -> None:
    async with opened(owns_daemon=True) as (app, pilot):
        await pilot.press("q")
        await wait_until_shown(pilot, shows(app, "Leave the dashboard?", "cut 12"))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: not isinstance(app.screen, Question))
        await pilot.press("q")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, Question))
        await pilot.click(f"#{button}")
        await pilot.pause()
    assert app.return_value == answer


async def test_no_tunnels_gives_two_lines_to_copy(daemon: FakeDaemon, opened: Open) -> None:
    daemon.tunnels = {}
    async with opened((60, 15)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "tunnels:", "web: server://0.0.0.0:10101/127.0.0.1:8080"))
        daemon.change("first", state="up")
        await wait_until_shown(pilot, lambda: rows(picture(app)) == ["first"])


async def test_a_daemon_that_is_not_there_yet_is_waited_for(socket: Path, opened: Open) -> None:
    async with opened(waits=False) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "Waiting for a daemon", "nobody listens there"))
        async with FakeDaemon(socket):
            await wait_until_shown(pilot, shows(app, "db-east"))


@pytest.mark.parametrize("size", [(60, 15), (80, 24), (120, 40), (200, 50)])
async def test_every_size_shows_state_name_and_pool(daemon: FakeDaemon, opened: Open, size: tuple[int, int]) -> None:
    async with opened(size) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "POOL", "✖ failed", "broken", "? help", "q quit"))
        assert len(rows(picture(app))) == 7
        assert ("shared key" in picture(app)) is (size[0] >= 100)


async def test_ascii_shows_nothing_else(daemon: FakeDaemon, opened: Open) -> None:
    async with opened(is_ascii=True) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "x failed", "z cooldown", "????"))
        await pilot.press("question_mark")
        await wait_until_shown(pilot, shows(app, "Help"))
        assert picture(app).isascii()


async def test_no_color_means_none(daemon: FakeDaemon, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, shows(app, "✖ failed"))
        styles = [s.style for strip in app.screen._compositor.render_strips() for s in strip if s.style]
        assert all(style.color is None or style.color.is_default for style in styles)
        assert all(style.bgcolor is None or style.bgcolor.is_default for style in styles)
        reversed_ = [
            s.text for strip in app.screen._compositor.render_strips() for s in strip if s.style and s.style.reverse
        ]
        assert {" All 7 ", "broken"} <= {text if text.startswith(" All") else text.strip() for text in reversed_}


async def test_light_and_dark(daemon: FakeDaemon, opened: Open) -> None:
    async with opened() as (app, pilot):
        before = app.theme
        await pilot.press("t")
        assert app.theme != before
        await wait_until_shown(pilot, shows(app, "✖ failed"))


async def test_the_mouse_chooses_marks_and_opens(
    daemon: FakeDaemon, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dashboard, "CLICK_CHAIN_TIME_THRESHOLD", GUARD_S)
    async with opened((80, 24)) as (app, pilot):
        await pilot.click("#table", offset=(20, 2))
        await wait_until_shown(pilot, lambda: app._main._table.cursor == "db-west")
        await pilot.click("#table", offset=(0, 2))
        await wait_until_shown(pilot, shows(app, "1 marked"))
        await pilot.click("#table", offset=(20, 2), times=2)
        await wait_until_shown(pilot, shows(app, "refuses connections"))
        await pilot.press("escape")
        column = picture(app).splitlines()[-1].index("help")
        await pilot.click("#footer", offset=(column, 0))
        await wait_until_shown(pilot, shows(app, "Help"))


async def test_many_tunnels_scroll_with_the_cursor(daemon: FakeDaemon, opened: Open) -> None:
    daemon.tunnels = {t["name"]: t for t in [tunnel(f"edge-{n:03}") for n in range(500)] + [cooldown("zz", 9)]}
    async with opened((80, 24)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "All 501", "edge-000"))
        await pilot.press("G")
        await wait_until_shown(pilot, shows(app, "edge-499"))
        assert "edge-000" not in picture(app)
        assert "NAME" in picture(app)
        await pilot.press("g")
        await wait_until_shown(pilot, shows(app, "zz"))
        await pilot.press("pagedown", "pagedown")
        await wait_until_shown(pilot, shows(app, "edge-030"))
