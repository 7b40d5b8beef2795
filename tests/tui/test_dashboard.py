"""The whole dashboard with keys and mouse, on a fake daemon."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
from textual.events import Key
from textual.widgets import Button

from tests.support.scale import GUARD_S
from tests.tui.conftest import OpenDashboard, named, paste, screen_text, shows, wait_until_shown
from tests.tui.fake import FakeDaemon, connections, cooldown, tunnel
from tui.app import END, LEAVE, Dashboard
from tui.screens import main
from tui.screens.dialogs import ConfirmDialog
from tui.screens.main import MainScreen
from tui.screens.routes import RouteListModal, RouteModal
from tui.screens.texts import LinesModal
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


def notices(app: Dashboard) -> list[str]:
    """The texts of the notifications."""
    return [notification.message for notification in app._notifications]


def has_notice(app: Dashboard, text: str, count: int = 1) -> bool:
    """Whether this many notifications contain a text."""
    return sum(text in notice for notice in notices(app)) == count


async def test_the_first_screen_shows_what_is_wrong_and_why(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, shows(app, "address 127.0.0.1:10101 is in use", "tunnels.yaml ✓ gen 4"))
        text = screen_text(app)
        assert "All 7" in text
        assert "✖ failed 1" in text
        assert re.search(r"◷ cooldown [0-4]\.", text)
        assert rows(text)[0] == "broken"


async def test_names_are_shown_literally(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened((200, 40)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "[red]bold[/]", "世界世界世界"))


async def test_changed_new_and_removed_tunnels_are_shown(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        daemon.change("db-west", state="up", reason=None)
        daemon.remove("edge-7")
        await wait_until_shown(pilot, shows(app, "● up 3", "All 6"))
        assert "edge-7" not in screen_text(app)
        daemon.change("new-one", state="up")
        await wait_until_shown(pilot, shows(app, "new-one", "All 7"))


def remaining(text: str) -> float | None:
    """The seconds of the cooldown that is shown."""
    found = re.search(r"◷ cooldown (\d+\.\d)s", text)
    return float(found[1]) if found else None


async def test_a_cooldown_counts_down_without_messages(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, lambda: remaining(screen_text(app)) is not None)
        first = remaining(screen_text(app)) or 0.0
        await wait_until_shown(pilot, lambda: (remaining(screen_text(app)) or 0.0) < first)


async def test_row_and_details_show_the_same_seconds(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.tunnels = {"db": cooldown("db", 9.0)}
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, lambda: screen_text(app).count("◷ cooldown ") == 3)
        seen = set()
        for _ in range(40):
            await pilot.pause(0.02)
            row, pane = re.findall(r"◷ cooldown (\d+\.\ds)", screen_text(app))
            seen.add(row)
            assert row == pane
        assert len(seen) > 1


async def test_state_filters_work_by_key_and_by_mouse(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("5")
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["broken"])
        await pilot.press("5")
        await wait_until_shown(pilot, lambda: len(rows(screen_text(app))) == 7)
        await pilot.press("right_square_bracket")
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["[red]bold[/]", "db-east"])
        column = screen_text(app).splitlines()[1].index("cooldown")
        await pilot.click("#state-filters", offset=(column, 0))
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["db-west"])
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: len(rows(screen_text(app))) == 7)


async def test_the_filter_accepts_alternatives_and_escape_removes_it(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("slash", *"db|edge", "enter")
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["db-west", "edge-7", "db-east"])
        assert "3 of 7" in screen_text(app)
        await pilot.press("j", "enter")  # the table has the keys again
        await pilot.press("slash", "escape")
        await wait_until_shown(pilot, lambda: len(rows(screen_text(app))) == 7)
        await pilot.press("slash")
        await paste(pilot, "nothing")
        await pilot.press("enter")
        await wait_until_shown(pilot, shows(app, "No tunnel matches 'nothing'"))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: len(rows(screen_text(app))) == 7)


async def test_in_a_large_table_the_filter_is_applied_as_a_whole(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.tunnels.update({name: tunnel(name) for name in (f"many-{number}" for number in range(2100))})
    async with opened() as (app, pilot):
        await pilot.press("slash", *"db|edge", "enter", "j")  # j is a key of the table again
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["db-west", "edge-7", "db-east"])
        await pilot.press("slash", "x", "escape")
        await wait_until_shown(pilot, lambda: "of 2107" not in screen_text(app) and "many-" in screen_text(app))


async def test_in_a_large_table_the_filter_is_applied_when_the_typing_pauses(
    daemon: FakeDaemon, opened: OpenDashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.tunnels.update({name: tunnel(name) for name in (f"many-{number}" for number in range(2100))})
    async with opened() as (app, pilot):
        await pilot.press("slash", *"edge")
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["edge-7"])
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: "many-" in screen_text(app))
        monkeypatch.setattr(main, "_TYPING_PAUSE_S", 60.0)
        await pilot.press("slash", *"edge")
        await pilot.pause()
        assert "many-" in screen_text(app), "nothing is searched while letters follow"
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["edge-7"])


async def test_the_filter_accepts_patterns_and_negation(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    del daemon.tunnels["世界" * 100]
    async with opened() as (app, pilot):
        everything = rows(screen_text(app))
        for text, expected in (
            ("db-*", ["db-west", "db-east"]),
            ("*-?", ["edge-7"]),
            ("edge-[0-9]|rest*", ["edge-7", "resting"]),
            ("!db-* !edge !BRO*", ["[red]bold[/]", "resting"]),
            ("!state:up !state:w !state:f", ["db-west", "edge-7", "resting"]),
            ("name:db-* !db-e*", ["db-west"]),
            ("[red]", ["[red]bold[/]"]),
        ):
            await pilot.press("slash")
            await paste(pilot, text)
            await pilot.press("enter")
            await wait_until_shown(pilot, partial(_has_rows, app, expected))
            await pilot.press("escape")
            await wait_until_shown(pilot, partial(_has_rows, app, everything))


def _has_rows(app: Dashboard, expected: list[str]) -> bool:
    return rows(screen_text(app)) == expected


async def test_a_click_on_the_filter_edits_it_and_no_letter_runs_a_command(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
    async with opened() as (app, pilot):
        await pilot.click("#filter", offset=(30, 0))
        await pilot.press(*"db-e")
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["db-east"])
        await pilot.click("#table", offset=(20, 1))  # elsewhere: the filter stays, its input closes
        await wait_until_shown(pilot, shows(app, "/ db-e", "1 of 7"))
        assert not app._main._filter_input.display
        column = screen_text(app).splitlines()[2].index("STATE")
        await pilot.click("#filter", offset=(column, 0))
        await wait_until_shown(pilot, shows(app, "sort NAME"))
        await pilot.press("r")
        await wait_until_shown(pilot, shows(app, "Restart db-east?"))
        assert daemon.commands == []


async def test_the_table_sorts_by_key_and_by_a_click_on_a_title(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("o")
        await wait_until_shown(pilot, shows(app, "NAME▲", "sort NAME ▲"))
        assert rows(screen_text(app))[:2] == ["[red]bold[/]", "broken"]
        await pilot.press("O")
        await wait_until_shown(pilot, shows(app, "NAME▼", "sort NAME ▼"))
        column = next(line for line in screen_text(app).splitlines() if "NAME▼" in line).index("VISITORS")
        await pilot.click("#table", offset=(column, 0))
        await wait_until_shown(pilot, shows(app, "VISITORS▼", "sort VISITORS ▼"))
        assert rows(screen_text(app))[0] == "db-east"


async def test_the_cursor_follows_its_tunnel(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("G")
        await wait_until_shown(pilot, shows(app, "stopped by command"))
        daemon.change("resting", state="failed", reason="now it is broken too")
        await wait_until_shown(pilot, shows(app, "now it is broken too"))


async def test_stop_asks_with_the_number_of_visitors_and_focuses_cancel(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
    async with opened() as (app, pilot):
        await pilot.press("slash")
        await paste(pilot, "db-east")
        await pilot.press("enter", "s")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await wait_until_shown(pilot, shows(app, "Stop db-east?", "12 visitors", "disconnect 12"))
        assert isinstance(app.focused, Button)
        assert app.focused.id == "cancel"
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: not isinstance(app.screen, ConfirmDialog))
        assert daemon.commands == []
        await pilot.press("s")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("right", "enter")
        await wait_until_shown(pilot, lambda: daemon.commands == [("stop", "db-east")])


async def test_questions_are_answered_by_letters(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("slash", *"db-east", "enter", "s")
        await wait_until_shown(pilot, shows(app, "Stop db-east?", "n Cancel", "y Stop, disconnect 12"))
        await pilot.press("n")
        await wait_until_shown(pilot, lambda: not isinstance(app.screen, ConfirmDialog))
        assert daemon.commands == []
        await pilot.press("s")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await wait_until_shown(pilot, lambda: daemon.commands == [("stop", "db-east")])


@pytest.mark.parametrize("width", [60, 80])
async def test_the_buttons_of_a_question_fit_its_dialog(daemon: FakeDaemon, opened: OpenDashboard, width: int) -> None:
    daemon.change("db-east", connections=connections(1024))
    async with opened((width, 24), owns_daemon=True) as (app, pilot):
        await pilot.press("q")
        labels = ("n Cancel", "y Leave running", "s Stop tunnels, disconnect 1024")
        await wait_until_shown(pilot, shows(app, *labels))


async def test_restart_and_drain_ask_first(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("slash")
        await paste(pilot, "db-east")
        await pilot.press("enter")
        for number, (key, verb) in enumerate((("r", "restart"), ("d", "drain"))):
            await pilot.press(key)
            await wait_until_shown(pilot, shows(app, f"{verb.capitalize()} db-east?", "disconnect 12"))
            assert len(daemon.commands) == number
            await pilot.click("#yes")
            await wait_until_shown(pilot, partial(_has_sent, daemon, number + 1))
            assert daemon.commands[number] == (verb, "db-east")


def _has_sent(daemon: FakeDaemon, count: int) -> bool:
    return len(daemon.commands) == count


async def test_start_and_retry_need_no_confirmation(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("6", "s")
        await wait_until_shown(pilot, lambda: daemon.commands == [("start", "resting")])
        await pilot.press("4", "n")
        await wait_until_shown(pilot, lambda: daemon.commands == [("start", "resting"), ("retry", "db-west")])
        await pilot.press("1", "n")
        await wait_until_shown(pilot, shows(app, "there is no cooldown to end"))


async def test_commands_apply_to_all_marked_tunnels(daemon: FakeDaemon, opened: OpenDashboard) -> None:
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
        await wait_until_shown(pilot, lambda: "marked" not in screen_text(app))


async def test_a_refusal_is_shown_as_a_sentence(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.refusal = "it is draining"
    async with opened() as (app, pilot):
        await pilot.press("6", "s")
        await wait_until_shown(pilot, shows(app, "it is draining"))


async def test_reload_shows_the_plan_if_visitors_would_be_disconnected(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
    daemon.plan |= {"remove": ["db-east"], "restart": [{"name": "edge-7", "changes": ["target a:1 → b:2"]}]}
    daemon.result["results"] = {"db-east": {"action": "removed", "detail": None, "changes": []}}
    async with opened() as (app, pilot):
        await pilot.press("w")
        await wait_until_shown(pilot, shows(app, "What a reload would change", "removed db-east", "target a:1 → b:2"))
        await pilot.press("escape", "R")
        await wait_until_shown(pilot, shows(app, "Apply the file?", "removed db-east", "disconnect 12"))
        await pilot.press("right", "enter")
        await wait_until_shown(pilot, lambda: ("reload", "") in daemon.commands)
        await wait_until_shown(pilot, shows(app, "Generation 5: removed db-east"))


async def test_a_reload_that_interrupts_no_tunnel_needs_no_confirmation(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
    daemon.result |= {
        "ok": False,
        "error": {"file": "t.yaml", "line": 3, "column": 5, "message": "unknown key 'tunels'"},
    }
    async with opened() as (app, pilot):
        await pilot.press("R")
        await wait_until_shown(pilot, shows(app, "t.yaml:3:5: unknown key 'tunels'"))


async def test_entries_that_a_reload_refused_are_reported_with_its_result(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
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


async def test_a_long_confirmation_shows_its_buttons_and_its_cost(daemon: FakeDaemon, opened: OpenDashboard) -> None:
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


async def test_an_invalid_file_is_shown_with_its_place_until_it_is_corrected(
    daemon: FakeDaemon, opened: OpenDashboard
) -> None:
    async with opened() as (app, pilot):
        good = daemon.status["config"]
        daemon.set_status(
            config={**good, "ok": False, "error": "/etc/np/tunnels.yaml:12:7: unknown key", "line": 12, "column": 7}
        )
        await wait_until_shown(pilot, shows(app, "tunnels.yaml:12:7: unknown key", "not affected"))
        assert len(rows(screen_text(app))) == 7
        daemon.set_status(config=good, generation=5)
        results = {"a": {"action": "added"}, "b": {"action": "removed"}}
        daemon.send_event(daemon.event("info", "reload", "applied", generation=5, results=results))
        await wait_until_shown(pilot, shows(app, "Generation 5: removed b; added a"))
        assert "unknown key" not in screen_text(app)


async def test_the_last_values_stay_while_the_daemon_is_lost(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await daemon.stop()
        await wait_until_shown(pilot, shows(app, "stale", "has not answered for", "db-east"))
        daemon.tunnels = {t["name"]: t for t in named("reborn")}
        await daemon.start()
        await wait_until_shown(pilot, shows(app, "reborn", "All 1"))
        await wait_until_shown(pilot, lambda: "stale" not in screen_text(app))


async def test_a_lost_daemon_is_visible_behind_two_screens(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("v")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, RouteListModal))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, RouteModal))
        assert "stale" not in app.export_screenshot()
        await daemon.stop()
        await wait_until_shown(pilot, lambda: "stale" in app.export_screenshot())


async def test_a_single_daemon_has_no_filter_for_offline_hosts(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("7", "]")
        up = {name for name, data in daemon.tunnels.items() if data["state"] == "up"}
        await wait_until_shown(pilot, lambda: set(rows(screen_text(app))) == up)
        await pilot.press("?")
        await wait_until_shown(pilot, shows(app, "0 to 6"))


async def test_keys_typed_right_after_the_slash_go_to_the_filter(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("6")
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["resting"])
        for key, character in (("slash", "/"), ("s", "s"), ("R", "R"), ("s", "s")):
            app.post_message(Key(key, character))
        await wait_until_shown(pilot, shows(app, "sRs"))
        assert daemon.commands == []


async def test_the_list_of_routes_scrolls(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.tunnels = {t["name"]: t for t in named(*(f"t{number:02}" for number in range(60)))}
    async with opened((80, 24)) as (app, pilot):
        await pilot.press("v")
        await wait_until_shown(pilot, shows(app, "60 routes", "t00"))
        await pilot.press("pagedown", "pagedown")
        await wait_until_shown(pilot, lambda: "t00" not in screen_text(app))
        await pilot.press("end")
        await wait_until_shown(pilot, shows(app, "t59"))
        await pilot.press("up", "up", "home")
        await wait_until_shown(pilot, shows(app, "t00"))


async def test_details_of_a_removed_tunnel_do_not_change_to_another(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.tunnels = {t["name"]: t for t in named("db", "web")}
    async with opened((80, 24)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "db", "web"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, LinesModal))
        await wait_until_shown(pilot, shows(app, "db", "● up"))
        daemon.remove("db")
        await wait_until_shown(pilot, shows(app, "db was removed."))


async def test_a_key_pressed_twice_opens_one_confirmation(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        main = app.screen
        assert isinstance(main, MainScreen)
        main.action_restart()
        main.action_restart()
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: len(app.screen_stack) == 2)
        await pilot.press("r")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))


async def test_a_frozen_screen_does_not_change(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("z")
        await wait_until_shown(pilot, shows(app, "▮▮ frozen"))
        daemon.change("db-east", state="failed", reason="meanwhile")
        await wait_until_shown(pilot, lambda: app.view.tunnels["db-east"].state == "failed")
        assert "✖ failed 1" in screen_text(app)
        await pilot.press("z")
        await wait_until_shown(pilot, shows(app, "✖ failed 2"))


async def test_the_log_is_filtered_by_level_and_text_and_can_pause(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.log = [
        daemon.event("info", "link", "all is well", "broken"),
        daemon.event("warn", "target", "the target hesitates", "broken"),
    ]
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, shows(app, "all is well", "the target hesitates", "Log broken"))
        await pilot.press("L")
        await wait_until_shown(pilot, shows(app, "≥warn"))
        assert "all is well" not in screen_text(app)
        await pilot.press("f", *"sunny", "enter")
        await wait_until_shown(pilot, shows(app, "/sunny/"))
        assert "the target hesitates" not in screen_text(app)
        await pilot.press("P")
        daemon.send_event(daemon.event("warn", "link", "a sunny day", "broken"))
        daemon.send_event(daemon.event("warn", "link", "a sunny evening", "broken"))
        await wait_until_shown(pilot, shows(app, "paused, 2 more"))
        daemon.set_status(generation=5)
        daemon.send_event(daemon.event("warn", "link", "a sunny night", "broken"))
        await wait_until_shown(pilot, shows(app, "gen 5", "paused, 3 more"))  # a reload does not end the pause
        assert "a sunny day" not in screen_text(app)
        await pilot.press("P")
        await wait_until_shown(pilot, shows(app, "a sunny day"))
        await pilot.press("A")
        await wait_until_shown(pilot, shows(app, "Log of all tunnels"))
        await pilot.press("l")
        await wait_until_shown(pilot, lambda: "Log of all" not in screen_text(app))


async def test_the_log_is_searched_from_its_end_upwards(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    texts = [f"dial {number} failed" if number in (3, 20) else f"step {number}" for number in range(40)]
    daemon.log = [daemon.event("info", "link", text, "broken") for text in texts]
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, shows(app, "step 39"))
        app.screen.query_one("#log").focus()
        await pilot.press("slash", *"FAILED")
        await wait_until_shown(pilot, shows(app, '"FAILED" 2/2', "dial 20 failed"))
        await pilot.press("enter", "n")
        await wait_until_shown(pilot, shows(app, '"FAILED" 1/2', "dial 3 failed"))
        daemon.send_event(daemon.event("warn", "link", "a late step has failed", "broken"))
        await wait_until_shown(pilot, shows(app, '"FAILED" 1/3', "dial 3 failed"))
        await pilot.press("N", "N", "N")
        await wait_until_shown(pilot, shows(app, '"FAILED" 1/3'))
        await pilot.press("escape")
        await wait_until_shown(pilot, shows(app, "a late step has failed"))
        assert '"FAILED"' not in screen_text(app)
        await pilot.press("slash", *"failed", "escape")
        await wait_until_shown(pilot, lambda: '"failed"' not in screen_text(app))
        assert not daemon.commands, "n retries nothing while there is a search"


async def test_events_are_shown_as_they_happen(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.log = [daemon.event("info", "state", "it came up", "db-east")]
    async with opened((80, 24)) as (app, pilot):
        await pilot.press("e")
        await wait_until_shown(pilot, shows(app, "Events", "db-east           it came up"))
        daemon.send_event(daemon.event("warn", "state", "it went down", "db-east"))
        await wait_until_shown(pilot, shows(app, "it went down"))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: "it came up" not in screen_text(app))


async def test_details_show_settings_and_their_sources(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened((80, 24)) as (app, pilot):
        assert "settings" not in screen_text(app)
        await pilot.press("enter")
        await wait_until_shown(pilot, shows(app, "address 127.0.0.1:10101 is in use", "shared key"))
        await pilot.press("end")
        await wait_until_shown(pilot, shows(app, "max_pool_capacity", "tunnels.yaml:41:3", "built in"))
        await pilot.press("escape")
    async with opened((120, 40)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "max_pool_capacity"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: "max_pool_capacity" not in screen_text(app))


async def test_the_url_is_copied_without_its_key(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("y")
        await wait_until_shown(pilot, lambda: app.clipboard == "server://***@127.0.0.1:10101/127.0.0.1:8080")


async def test_the_palette_accepts_names_of_tunnels(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("ctrl+p")
        await pilot.press(*"restart db-e")
        await wait_until_shown(pilot, shows(app, "restart db-east"))
        await pilot.press("enter")
        await wait_until_shown(pilot, shows(app, "Restart db-east?"))
        await pilot.press("escape", "colon")
        await paste(pilot, "show edge")
        await wait_until_shown(pilot, shows(app, "show edge-7"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: app._main._table.cursor == "edge-7")


async def test_the_palette_has_every_command(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        for number, (verb, name, is_asked) in enumerate(
            (
                ("start", "resting", False),
                ("stop", "db-east", True),
                ("restart", "db-east", True),
                ("drain", "db-east", True),
                ("retry", "db-west", False),
            )
        ):
            await pilot.press("ctrl+p")
            await paste(pilot, f"{verb} {name}")
            await wait_until_shown(pilot, shows(app, f"{verb} {name}"))
            await pilot.press("enter")
            if is_asked:
                await wait_until_shown(pilot, shows(app, f"{verb.capitalize()} {name}?"))
                assert len(daemon.commands) == number
                await pilot.press("right", "enter")
            await wait_until_shown(pilot, partial(_has_sent, daemon, number + 1))
            assert daemon.commands[number] == (verb, name)


async def test_the_palette_runs_the_actions_of_keys(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("ctrl+p")
        await paste(pilot, "reload file")
        await wait_until_shown(pilot, shows(app, "visitors may be disconnected  R"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: daemon.commands == [("reload", "")])
        await pilot.press("ctrl+p")
        await paste(pilot, "copy edge-7")
        await wait_until_shown(pilot, shows(app, "copy edge-7"))
        await pilot.press("enter")
        await wait_until_shown(pilot, lambda: app.clipboard.startswith("server://***@"))


async def test_a_narrow_screen_shows_the_reason_under_the_table(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened((80, 24)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "broken  for", "address 127.0.0.1:10101 is in use"))
        await pilot.press("4")
        await wait_until_shown(pilot, shows(app, "the target 127.0.0.1:5432 refuses connections; attempt 10 in"))
        await pilot.press("4", *"/red", "enter")
        await wait_until_shown(
            pilot,
            shows(
                app,
                "[red]bold[/]  for",
                "open  reverse  server://127.0.0.1:10101/127.0.0.1:8080",
                "the link is alive and visitors can be served",
            ),
        )
        assert "!● up" in screen_text(app)
    async with opened((120, 24)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "shared key"))
        assert screen_text(app).count("address 127.0.0.1:10101 is in use") == 1
        await pilot.press("enter")  # without the details, the reason goes under the table
        await wait_until_shown(
            pilot, lambda: "shared key" not in screen_text(app) and "broken  for" in screen_text(app)
        )


async def test_help_lists_the_keys_in_use(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    from tui.model.keys import all_keys  # noqa: PLC0415  used here alone

    async with opened((100, 70), keys=all_keys({"restart": "f5"})) as (app, pilot):
        await pilot.press("question_mark")
        await wait_until_shown(pilot, shows(app, "f5", "restart the tunnel", "waiting for the next"))
        await pilot.press("escape", "r")
        await pilot.pause()
        assert not isinstance(app.screen, ConfirmDialog)
        await pilot.press("f5")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))


async def test_read_only_mode_sends_no_command(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened(is_read_only=True) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "READ-ONLY"))
        assert "start/stop" not in screen_text(app)
        for key, verb in (("s", "start"), ("r", "restart"), ("d", "drain"), ("n", "retry"), ("R", "reload")):
            await pilot.press(key)
            await wait_until_shown(pilot, partial(has_notice, app, f"{verb} was not sent"))
        assert "opened with --read-only" in notices(app)[0]
        assert not isinstance(app.screen, ConfirmDialog)
        assert daemon.commands == []


async def test_a_read_only_daemon_gets_no_command(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.status["read_only"] = True
    async with opened() as (app, pilot):
        await wait_until_shown(pilot, shows(app, "READ-ONLY"))
        await pilot.press("s")
        await wait_until_shown(pilot, lambda: "started with up --read-only" in "".join(notices(app)))
        assert not isinstance(app.screen, ConfirmDialog)


async def test_a_key_that_has_no_tunnel_says_so(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened((80, 24)) as (app, pilot):
        await pilot.press("slash", *"nothing", "enter")
        for count, key in enumerate(("s", "r", "p", "y", "space", "enter"), 1):
            await pilot.press(key)
            await wait_until_shown(pilot, partial(has_notice, app, "No tunnel is selected.", count))


async def test_quitting_top_leaves_the_daemon_running(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        await pilot.press("q")
        await pilot.pause()
    assert app.return_value == LEAVE
    assert daemon.commands == []


async def test_unchanged_widgets_are_not_rendered_again(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        footer, table = app._main.query_one("#footer", Pane), app._main.query_one(TunnelTable)
        await wait_until_shown(pilot, lambda: footer._rendered is not None and table._rendered is not None)
        lines, rows = None, None
        deadline = time.monotonic() + GUARD_S
        while lines is not footer._rendered or rows is not table._rendered:  # the first ones may precede the last size
            assert time.monotonic() < deadline, "the widgets are rendered again and again"
            lines, rows = footer._rendered, table._rendered
            await pilot.pause(0.1)
        await pilot.press("j")
        await wait_until_shown(pilot, lambda: table._rendered not in (None, rows))
        assert footer._rendered is lines
        await pilot.press("t")
        await wait_until_shown(pilot, lambda: footer._rendered not in (None, lines))  # the colours changed


async def test_drawing_after_the_screen_is_removed_does_nothing(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, _):
        pass
    assert not app.screen_stack
    with app._context():
        app._main.draw()


@pytest.mark.parametrize(("button", "answer"), [("leave", LEAVE), ("end", END)])
async def test_quitting_up_asks_whether_to_stop_the_tunnels(
    daemon: FakeDaemon, opened: OpenDashboard, button: str, answer: str
) -> None:
    async with opened(owns_daemon=True) as (app, pilot):
        await pilot.press("q")
        await wait_until_shown(pilot, shows(app, "Quit the dashboard?", "disconnect 12"))
        await pilot.press("escape")
        await wait_until_shown(pilot, lambda: not isinstance(app.screen, ConfirmDialog))
        await pilot.press("q")
        await wait_until_shown(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.click(f"#{button}")
        await pilot.pause()
    assert app.return_value == answer


async def test_without_tunnels_two_lines_for_the_file_are_shown(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.tunnels = {}
    async with opened((60, 15)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "tunnels:", "web: server://KEY@0.0.0.0:10101/127.0.0.1:8080"))
        daemon.change("first", state="up")
        await wait_until_shown(pilot, lambda: rows(screen_text(app)) == ["first"])


async def test_the_dashboard_waits_for_a_daemon_that_is_not_running_yet(socket: Path, opened: OpenDashboard) -> None:
    async with opened(must_have_status=False) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "Waiting for a daemon", "no daemon listens there"))
        async with FakeDaemon(socket):
            await wait_until_shown(pilot, shows(app, "db-east"))


@pytest.mark.parametrize("size", [(60, 15), (80, 24), (120, 40), (200, 50)])
async def test_every_size_shows_state_name_and_pool(
    daemon: FakeDaemon, opened: OpenDashboard, size: tuple[int, int]
) -> None:
    async with opened(size) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "POOL", "✖ failed", "broken", "? help", "q quit"))
        assert len(rows(screen_text(app))) == 7
        assert ("shared key" in screen_text(app)) is (size[0] >= 100)


@pytest.mark.parametrize(("size", "count"), [((120, 24), 300), ((80, 24), 300), ((120, 24), 3)])
async def test_traffic_in_both_directions_is_shown_beside_a_scrollbar(
    daemon: FakeDaemon, opened: OpenDashboard, size: tuple[int, int], count: int
) -> None:
    names = [f"a-longer-name-{number}" for number in range(count)]
    daemon.tunnels = {t["name"]: t for t in named(*names)}
    async with opened(size) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "↓/s", "↑/s", "VISITORS", "a-longer-name"))


async def test_ascii_mode_shows_only_ascii(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened(is_ascii=True) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "x failed", "z cooldown", "????"))
        await pilot.press("question_mark")
        await wait_until_shown(pilot, shows(app, "Help", "w waiting"))
        assert screen_text(app).isascii()


async def test_no_color_disables_all_colours(
    daemon: FakeDaemon, opened: OpenDashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_the_theme_switches_between_light_and_dark(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    async with opened() as (app, pilot):
        before = app.theme
        await pilot.press("t")
        assert app.theme != before
        await wait_until_shown(pilot, shows(app, "✖ failed"))


async def test_the_mouse_moves_the_cursor_marks_and_opens(
    daemon: FakeDaemon, opened: OpenDashboard, monkeypatch: pytest.MonkeyPatch
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
        column = screen_text(app).splitlines()[-1].index("help")
        await pilot.click("#footer", offset=(column, 0))
        await wait_until_shown(pilot, shows(app, "Help"))


async def test_many_tunnels_scroll_with_the_cursor(daemon: FakeDaemon, opened: OpenDashboard) -> None:
    daemon.tunnels = {t["name"]: t for t in [tunnel(f"edge-{n:03}") for n in range(500)] + [cooldown("zz", 9)]}
    async with opened((80, 24)) as (app, pilot):
        await wait_until_shown(pilot, shows(app, "All 501", "edge-000"))
        await pilot.press("G")
        await wait_until_shown(pilot, shows(app, "edge-499"))
        assert "edge-000" not in screen_text(app)
        assert "NAME" in screen_text(app)
        await pilot.press("g")
        await wait_until_shown(pilot, shows(app, "zz"))
        await pilot.press("pagedown", "pagedown")
        await wait_until_shown(pilot, shows(app, "edge-030"))
