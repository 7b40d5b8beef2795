"""Tunnels as rows, filtered and sorted; details, bars, questions: pure."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.state_display import STATE_SIGNS
from tests.tui.fake import SETTINGS, Json, connections, cooldown, mixed, tunnel
from tui import acting
from tui.bars import Attached, banner_lines, footer_bar, header_line, pill_bar
from tui.brief import brief_lines
from tui.details import detail_lines
from tui.happenings import Sieve, error_text, event_lines, plan_lines, result_lines, summary
from tui.keys import all_keys
from tui.lines import STYLES, Line, length
from tui.model import Tunnel, View, begin
from tui.palette import commands
from tui.rows import COLUMNS, heading, lay_out, row
from tui.selection import PILLS, SORTS, URGENCY, Selection, Shortlist, pills
from tunnel.model.state import State

WIDTHS = range(40, 260)


def view(*tunnels: Json, **status: object) -> View:
    return begin({"tunnels": list(tunnels or mixed()), **status}, 0.0, 100.0)


def chosen(known: View, selection: Selection | None = None) -> Shortlist:
    shortlist = Shortlist()
    shortlist.update(known.tunnels, selection or Selection())
    return shortlist


def text(line: Line) -> str:
    return "".join(part for part, _ in line)


def texts(lines: list[Line]) -> str:
    return "\n".join(map(text, lines))


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_and_titles_are_as_wide_as_the_table(width: int) -> None:
    layout = lay_out(width, 200)
    assert length(heading(layout, Selection())) == width
    for known in view().tunnels.values():
        assert length(row(known, layout, 100.0)) == width


def test_more_width_never_shows_less() -> None:
    alike = {"queued": "signals", "role": "direction"}
    shown = [{alike.get(c.key, c.key) for c in lay_out(width, 12).columns} for width in WIDTHS]
    assert all(narrow <= wide for narrow, wide in itertools.pairwise(shown))
    assert shown[-1] == {c.key for c in COLUMNS} - {"queued", "role", "host"}
    assert {"state", "name", "pool"} <= shown[0]


def test_every_style_is_known() -> None:
    layout = lay_out(200, 20)
    lines = [row(known, layout, 100.0, {"db-east"}) for known in view().tunnels.values()]
    assert {style for line in lines for _, style in line} <= {"", *STYLES}


def test_a_state_has_a_shape_a_word_and_a_colour() -> None:
    assert set(STATE_SIGNS) == set(State)
    assert len(set(STATE_SIGNS.values())) == len(State)
    layout = lay_out(100, 20)
    cells = {t.state: row(t, layout, 102.0)[1] for t in view().tunnels.values()}
    assert cells["cooldown"] == ("◷ cooldown 2.2s ", "cooldown")
    assert cells["failed"][1] == "failed"


def test_a_click_finds_the_column() -> None:
    layout = lay_out(100, 20)
    line = text(heading(layout, Selection()))
    for title, key in (("NAME", "name"), ("POOL", "pool"), ("CONN", "visitors")):
        column = layout.column_at(line.index(title))
        assert column is not None
        assert column.key == key
    assert layout.column_at(500) is None


def test_every_state_is_in_exactly_one_pill_and_has_a_rank() -> None:
    of_hosts = {"gone", "silent"}
    assert sorted(state for _, states in PILLS for state in states) == sorted([*State, *of_hosts])
    assert set(URGENCY) == {*State, *of_hosts}


def test_the_tally_adds_up() -> None:
    counts = chosen(view()).counts
    assert counts == {"all": 7, "up": 2, "connecting": 2, "cooldown": 1, "failed": 1, "stopped": 1, "gone": 0}


@given(st.sampled_from([name for name, _ in PILLS]), st.sampled_from(SORTS), st.booleans(), st.text(max_size=5))
def test_a_selection_only_chooses_and_orders(pill: str, sort: str, is_reversed: bool, words: str) -> None:  # noqa: FBT001  as hypothesis gives it
    tunnels = view().tunnels
    found = chosen(view(), Selection(pill, words, sort, is_reversed)).tunnels
    assert all(tunnels[t.name].data == t.data for t in found)
    assert len({t.name for t in found}) == len(found)
    if pill == "all" and not words.strip(" |"):
        assert len(found) == len(tunnels)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.sampled_from("abcde"), st.sampled_from(["up", "failed", "cooldown"])),
            st.tuples(st.just("take"), st.sampled_from("abcde"), st.just("")),
            st.tuples(st.just("choose"), st.sampled_from(["all", "up"]), st.sampled_from(["state", "name"])),
        ),
        max_size=20,
    )
)
def test_a_shortlist_that_follows_is_as_one_made_anew(steps: list[tuple[str, str, str]]) -> None:
    kept, selection = Shortlist(), Selection()
    tunnels: dict[str, Tunnel] = {}
    for kind, what, more in steps:
        tunnels = dict(tunnels)
        if kind == "set":
            tunnels[what] = view(tunnel(what, more)).tunnels[what]
        elif kind == "take":
            tunnels.pop(what, None)
        else:
            selection = Selection(pill=what, sort=more)
        places, order = kept.places, [t.name for t in kept.tunnels]
        kept.update(tunnels, selection)
        anew = Shortlist()
        anew.update(tunnels, selection)
        assert kept.tunnels == anew.tunnels
        assert kept.counts == anew.counts
        assert kept.places == {t.name: place for place, t in enumerate(kept.tunnels)}
        assert kept.places is not places or [t.name for t in kept.tunnels] == order


def test_the_filter_looks_at_addresses_and_tags_too() -> None:
    known = view(tunnel("a", tags=["Prod"]), tunnel("b", target_addr="10.0.0.9:5432"), tunnel("c"))
    assert [t.name for t in chosen(known, Selection(text="prod")).tunnels] == ["a"]
    assert [t.name for t in chosen(known, Selection(text="5432 | PROD")).tunnels] == ["a", "b"]


def test_details_say_why_and_when_and_where_from() -> None:
    known = view(cooldown("db-west", 4.2)).tunnels["db-west"]
    shown = texts(
        detail_lines(known, {"name": "db-west", "where": "t.yaml:41:3", "settings": SETTINGS}, 60, 102.0, 0.0)
    )
    for wanted in (
        "the target 127.0.0.1:5432 refuses connections",
        "attempt 10 in 2.2s",
        "t.yaml:41:3",
        "built in",
        "0/16",
    ):
        assert wanted in shown


@pytest.mark.parametrize("width", [30, 44, 80])
def test_details_keep_to_their_width(width: int) -> None:
    more = {"where": "a/rather/long/path/tunnels.yaml:41:3", "url": "server://" + "x" * 90, "settings": SETTINGS}
    for known in view().tunnels.values():
        assert all(length(line) <= width for line in detail_lines(known, more, width, 100.0, 0.0))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_bars_keep_to_their_width(width: int) -> None:
    status = {"generation": 4, "host": "edge-1", "config": {"path": "/a/very/long/path/" * 4 + "t.yaml", "ok": True}}
    known = view(**status)
    attached = Attached(
        "unix:/run/" + "x" * 90, is_read_only=True, lost="nobody listens there", lost_for=12, is_frozen=True
    )
    assert length(header_line(known, attached, width)) <= width
    line, found = pill_bar(known, chosen(known).counts, "failed", width)
    assert length(line) <= width
    assert [pill.name for pill in found] == pills(is_fleet=False)
    footer, keys = footer_bar(all_keys({}), width, is_read_only=False)
    assert length(footer) <= width
    assert {"help", "quit"} <= {key.name for key in keys}
    assert all(length(line) <= width for line in banner_lines(known, attached, "a notice " * 40, width))


def test_pills_stand_where_they_say() -> None:
    known = view()
    line, found = pill_bar(known, chosen(known).counts, "all", 120)
    for pill in found:
        assert pill.name in text(line)[pill.start : pill.end].casefold()


def test_a_question_names_the_visitors() -> None:
    tunnels = list(
        view(tunnel("a", connections=connections(12)), tunnel("b", connections=connections(1))).tunnels.values()
    )
    asked = acting.question("stop", tunnels, 100)
    assert asked is not None
    assert asked.title == "Stop 2 tunnels?"
    assert "13 visitors are being served" in " ".join(map(text, asked.lines))
    one = acting.question("drain", tunnels[1:], 100)
    assert one is not None
    assert "1 visitor is being served" in texts(list(one.lines))
    assert acting.question("start", tunnels, 100) is None
    assert acting.question("retry", tunnels, 100) is None


def test_start_stop_means_what_fits() -> None:
    up, rest = view(tunnel("a"), tunnel("b", "stopped")).tunnels.values()
    assert acting.toggled([up, rest]) == ("stop", [up])
    assert acting.toggled([rest]) == ("start", [rest])
    assert acting.fitting("start", [up]) == ([], "a: running already")
    assert acting.fitting("drain", [rest]) == ([], "b: not running")
    assert acting.fitting("restart", [up, rest])[0] == [up, rest]


def test_a_reload_is_asked_about_where_it_takes_something_away() -> None:
    tunnels = view(tunnel("a", connections=connections(3)), tunnel("b")).tunnels
    assert acting.reload_question({"add": ["c"], "change": [{"name": "b"}]}, tunnels, 100) is None
    asked = acting.reload_question({"remove": ["a"], "restart": [{"name": "b", "changes": ["target"]}]}, tunnels, 100)
    assert asked is not None
    assert asked.answer == "Reload, cut 3"


def test_results_and_plans_in_words() -> None:
    results: dict[str, Json] = {
        "a": {"action": "unchanged"}, "b": {"action": "removed"},
        "c": {"action": "changed", "changes": ["log info → debug"]},
        "d": {"action": "rejected", "detail": "address in use"}, **{f"n{i}": {"action": "added"} for i in range(4)},
    }  # fmt: skip
    assert summary(results) == "rejected d; removed b; changed c; added 4"
    shown = texts(result_lines(results, 80))
    assert "! rejected d: address in use" in shown
    assert "1 tunnel left alone" in shown
    assert summary({}) == "nothing changed"
    assert "nothing would change" in texts(plan_lines({"ok": True, "unchanged": 3}, 80))
    error = {"file": "t.yaml", "line": 3, "column": 1, "message": "odd"}
    assert "t.yaml:3:1: odd" in texts(plan_lines({"ok": False, "error": error}, 80))


def test_errors_in_every_shape() -> None:
    assert error_text("plain") == "plain"
    assert error_text(None) == "unknown error"
    assert error_text({"message": "no place"}) == "no place"
    assert error_text({"file": "f", "line": 2, "column": None, "message": "m"}) == "f:2: m"


def test_the_sieve() -> None:
    info, warn = ({"level": level, "text": f"a {level}", "tunnel": "web"} for level in ("info", "warn"))
    assert Sieve().lets(info)
    assert not Sieve("warn").lets(info)
    assert Sieve("warn").lets(warn)
    assert Sieve("debug", "WEB").lets(info)
    assert not Sieve("debug", "db").lets(info)
    sieve = Sieve()
    levels = [(sieve := sieve.next_level()).level for _ in range(4)]
    assert levels == ["warn", "error", "debug", "info"]


@given(st.text(max_size=200), st.integers(30, 100))
def test_events_keep_to_their_width(said: str, width: int) -> None:
    assert all(length(line) <= width for line in event_lines({"text": said, "tunnel": "web"}, width, is_named=True))


def test_the_palette_understands_verbs_and_names() -> None:
    names = ["db-east", "db-west", "edge"]
    assert commands("restart db", names, is_read_only=False) == [("restart", "db-east"), ("restart", "db-west")]
    assert commands("db", names, is_read_only=False) == [("show", "db-east"), ("show", "db-west")]
    assert ("stop", "edge") in commands("st edge", names, is_read_only=False)
    assert commands("stop", names, is_read_only=True) == []
    assert commands("show ed", names, is_read_only=True) == [("show", "edge")]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_question_is_as_wide_as_the_screen_bears(width: int) -> None:
    tunnels = list(view(tunnel("a", connections=connections(1))).tunnels.values())
    asked = acting.leave_question(tunnels, "nodepass-orch down", width)
    assert max(map(length, asked.lines)) <= min(62, width - 6)
    assert "nodepass-orch top" in " ".join(map(text, asked.lines))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_brief_says_why_before_anything_else(width: int) -> None:
    for known in view().tunnels.values():
        for height in (1, 2):
            lines = brief_lines(known, width, height, 100.0, 0.0)
            assert 1 <= len(lines) <= height
            assert max(map(length, lines)) <= width
            if known.reason:
                assert texts(lines).split("; attempt")[0].endswith((known.reason[-8:], "…"))


@pytest.mark.parametrize("width", range(60, 130))
def test_no_word_of_a_pill_is_cut(width: int) -> None:
    known = view()
    line, found = pill_bar(known, chosen(known).counts, "all", width)
    assert length(line) <= width
    words = {name for name, _ in PILLS}
    for pill in found:
        sign, *word = text(line)[pill.start : pill.end].casefold().split()
        assert {sign, *word[:-1]} & words or len(word) == 1
