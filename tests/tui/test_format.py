"""Tunnels as rows, filtered and sorted; details, chrome, confirmations, events."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.state_display import STATE_SIGNS
from tests.tui.fake import REFUSED, SETTINGS, Json, connections, cooldown, mixed, tunnel
from tui.format.chrome import banner_lines, filter_bar, footer_bar, header_line, state_filter_bar
from tui.format.columns import COLUMNS, SORT_KEYS, format_heading, format_row, lay_out, sort_arrow, sortable_columns
from tui.format.confirmations import (
    VERBS,
    applicable_tunnels,
    choose_toggle,
    confirm_command,
    confirm_quit,
    confirm_reload,
)
from tui.format.details import detail_lines, summary_lines
from tui.format.event_format import LogFilter, error_text, event_lines, plan_lines, reload_notice, result_lines
from tui.format.help import help_lines
from tui.format.text import STYLES, Line, highlight, length
from tui.model.connection import ConnectionStatus
from tui.model.keys import ACTIONS, all_keys
from tui.model.selection import Selection, VisibleTunnels
from tui.model.states import STATE_FILTERS, STATE_MEANINGS, STATE_RANKS, state_filters
from tui.model.tunnels import StatusView, apply_status
from tui.screens.palette import find_commands
from tunnel.model.state import State

WIDTHS = range(40, 260)
PLAN: Json = {
    "ok": True, "error": None, "add": [], "remove": [], "restart": [], "change": [], "unchanged": 3,
}  # fmt: skip


def view(*tunnels: Json, **status: Json) -> StatusView:
    whole: Json = {"tunnels": list(tunnels or mixed()), **status}
    return apply_status(whole, 0.0, 100.0)


def select(known: StatusView, selection: Selection | None = None) -> VisibleTunnels:
    visible = VisibleTunnels(SORT_KEYS)
    visible.update(known.tunnels, selection or Selection())
    return visible


def text(line: Line) -> str:
    return "".join(part for part, _ in line)


def texts(lines: list[Line]) -> str:
    return "\n".join(map(text, lines))


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_and_heading_are_as_wide_as_the_table(width: int) -> None:
    layout = lay_out(width, 200)
    assert length(format_heading(layout, Selection())) == width
    for known in view().tunnels.values():
        assert length(format_row(known, layout, 100.0)) == width


def test_a_wider_table_never_shows_fewer_columns() -> None:
    alike = {"queued": "signals", "role": "direction"}
    shown = [{alike.get(c.key, c.key) for c in lay_out(width, 12).columns} for width in WIDTHS]
    assert all(narrow <= wide for narrow, wide in itertools.pairwise(shown))
    assert shown[-1] == {c.key for c in COLUMNS} - {"queued", "role", "host"}
    assert {"state", "name", "pool"} <= shown[0]


def test_rows_use_only_known_styles() -> None:
    layout = lay_out(200, 20)
    lines = [format_row(known, layout, 100.0, {"db-east"}) for known in view().tunnels.values()]
    assert {style for line in lines for _, style in line} <= {"", *STYLES}


def test_a_state_has_a_sign_a_word_and_a_colour() -> None:
    assert set(STATE_SIGNS) == set(State)
    assert len(set(STATE_SIGNS.values())) == len(State)
    layout = lay_out(100, 20)
    cells = {t.state: format_row(t, layout, 102.0)[1] for t in view().tunnels.values()}
    assert cells["cooldown"] == ("◷ cooldown 2.2s ", "warning")
    assert cells["failed"][1] == "error"


def test_a_position_in_the_heading_finds_its_column() -> None:
    layout = lay_out(100, 20)
    line = text(format_heading(layout, Selection()))
    for title, key in (("NAME", "name"), ("POOL", "pool"), ("VISITORS", "visitors")):
        column = layout.column_at(line.index(title))
        assert column is not None
        assert column.key == key
    assert layout.column_at(500) is None


def test_every_state_has_one_filter_a_rank_and_a_meaning() -> None:
    of_hosts = {"gone", "silent"}
    assert sorted(state for _, states in STATE_FILTERS for state in states) == sorted([*State, *of_hosts])
    assert set(STATE_RANKS) == set(STATE_MEANINGS) == {*State, *of_hosts}


def filter_texts(*tunnels: Json) -> list[str]:
    known = view(*tunnels)
    line, found = state_filter_bar(known, select(known).state_counts, "all", 200)
    return [text(line)[target.start : target.end].strip() for target in found]


def test_each_state_filter_counts_its_tunnels() -> None:
    assert filter_texts() == [
        "All 7", "● up 2", "◌ waiting 1", "◐ connecting 1", "◷ cooldown 1", "✖ failed 1", "○ stopped 1",
    ]  # fmt: skip


def test_a_state_filter_is_named_after_the_states_that_it_holds() -> None:
    shown = filter_texts(tunnel("a", "waiting"), tunnel("b", "starting"), tunnel("c", "draining"))
    assert [name for name in shown if not name.endswith(" 0")] == [
        "All 3", "◌ waiting 1", "◔ starting 1", "◑ draining 1",
    ]  # fmt: skip
    shown = filter_texts(*(tunnel(state, state) for state in ("starting", "connecting", "draining", "stopped")))
    assert "◐ connecting/starting 2" in shown
    assert "◑ draining/stopped 2" in shown


@given(
    st.sampled_from([name for name, _ in STATE_FILTERS]),
    st.sampled_from(sortable_columns(is_fleet=True)),
    st.booleans(),
    st.text(max_size=5),
)
def test_a_selection_only_filters_and_sorts(state_filter: str, sort: str, is_reversed: bool, words: str) -> None:  # noqa: FBT001  as hypothesis gives it
    tunnels = view().tunnels
    found = select(view(), Selection(state_filter, words, sort, is_reversed)).tunnels
    assert all(tunnels[t.name].data == t.data for t in found)
    assert len({t.name for t in found}) == len(found)
    if state_filter == "all" and not words.strip(" |"):
        assert len(found) == len(tunnels)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.sampled_from("abcde"), st.sampled_from(["up", "failed", "cooldown"])),
            st.tuples(st.just("remove"), st.sampled_from("abcde"), st.just("")),
            st.tuples(st.just("choose"), st.sampled_from(["all", "up"]), st.sampled_from(["state", "name"])),
        ),
        max_size=20,
    )
)
def test_updated_visible_tunnels_equal_freshly_selected_ones(steps: list[tuple[str, str, str]]) -> None:
    kept, selection = VisibleTunnels(SORT_KEYS), Selection()
    tunnels = dict(view(*(tunnel(f"idle-{number}") for number in range(40))).tunnels)
    for kind, what, more in steps:
        tunnels = dict(tunnels)
        if kind == "set":
            tunnels[what] = view(tunnel(what, more)).tunnels[what]
        elif kind == "remove":
            tunnels.pop(what, None)
        else:
            selection = Selection(state_filter=what, sort=more)
        places, order = kept.places, [t.name for t in kept.tunnels]
        kept.update(tunnels, selection)
        fresh = VisibleTunnels(SORT_KEYS)
        fresh.update(tunnels, selection)
        assert kept.tunnels == fresh.tunnels
        assert kept.state_counts == fresh.state_counts
        assert kept.places == {t.name: place for place, t in enumerate(kept.tunnels)}
        assert kept.places is not places or [t.name for t in kept.tunnels] == order


def test_the_text_filter_searches_addresses_and_tags() -> None:
    known = view(tunnel("a", tags=["Prod"]), tunnel("b", target_addr="10.0.0.9:5432"), tunnel("c"))
    assert [t.name for t in select(known, Selection(text="prod")).tunnels] == ["a"]
    assert [t.name for t in select(known, Selection(text="5432 | PROD")).tunnels] == ["a", "b"]


def test_long_settings_and_places_are_shown_in_full() -> None:
    known = view(tunnel("a")).tunnels["a"]
    place = "tunnels.d/customers/a-rather-long-name.yaml:41:3"
    settings: Json = {
        "tls_ca": {"value": "/etc/nodepass-orch/certificates/ca.pem", "source": "entry", "where": place},
        "log": {"value": "info", "source": "built in", "where": None},
    }
    for width in range(24, 60):
        lines = detail_lines(known, {"name": "a", "settings": settings}, width, 0.0, 0.0)
        shown = "".join("".join(text(line).split()) for line in lines)
        assert place in shown
        assert "/etc/nodepass-orch/certificates/ca.pem" in shown
        assert all(length(line) <= width for line in lines)


def test_details_show_the_reason_the_next_attempt_and_the_source_of_settings() -> None:
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


def test_details_show_the_service_and_the_name_of_the_key() -> None:
    known = view(tunnel("a", service="shop", key_name="office")).tunnels["a"]
    shown = texts(detail_lines(known, None, 60, 0.0, 0.0))
    assert "service  shop" in shown
    assert "key      office" in shown
    unnamed = texts(detail_lines(view(tunnel("a")).tunnels["a"], None, 60, 0.0, 0.0))
    assert "service" not in unnamed
    assert "key      shared key" in unnamed


def test_details_show_the_targets_of_a_group() -> None:
    checks = {"kind": "tcp", "failed": 0, "in_a_row": 0, "changes": 0}
    plain = {"state": "up", "reason": None, "weight": 1, "backup": False, "visitors": 0, "checks": checks}
    targets = [
        {**plain, "address": "db-1:1", "weight": 2, "visitors": 1},
        {**plain, "address": "db-2:1", "state": "down", "reason": "it refused the connection", "backup": True},
    ]
    shown = texts(detail_lines(view(tunnel("a", targets=targets)).tunnels["a"], None, 200, 0.0, 0.0))
    expected = "db-1:1 up, 1 visitor, weight 2; db-2:1 down, no visitors, backup, it refused the connection"
    assert f"targets  {expected}" in shown
    single = [{**plain, "address": "db-1:1", "checks": None}]
    assert "targets" not in texts(detail_lines(view(tunnel("a", targets=single)).tunnels["a"], None, 120, 0.0, 0.0))


def test_details_show_the_links_of_a_server_with_several_clients() -> None:
    plain = {
        "state": "up", "reason": None, "weight": 1, "backup": False, "visitors": 0, "lanes": None, "pool": 8,
        "rtt_ms": None,
    }  # fmt: skip
    links = [
        {**plain, "id": "1", "client": "site-a", "peer": "10.0.0.1:5", "weight": 2, "visitors": 1, "rtt_ms": 0.42},
        {**plain, "id": "2", "client": None, "peer": "10.0.0.2:6", "state": "cooldown", "backup": True},
    ]
    shown = texts(detail_lines(view(tunnel("a", links=links)).tunnels["a"], None, 200, 0.0, 0.0))
    expected = (
        "1 site-a 10.0.0.1:5 up, weight 2, 1 visitor, 8 idle, 0.4 ms; "
        "2 10.0.0.2:6 cooldown, backup, no visitors, 8 idle"
    )
    assert f"links    {expected}" in shown
    assert "links" not in texts(detail_lines(view(tunnel("a", links=links[:1])).tunnels["a"], None, 120, 0.0, 0.0))
    one_of_two = view(tunnel("a", clients=2, links=links[:1])).tunnels["a"]
    assert "links    " in texts(detail_lines(one_of_two, None, 200, 0.0, 0.0))


def test_details_show_each_server_of_a_client_with_its_link() -> None:
    link = {
        "id": "1", "client": None, "peer": "10.0.0.1:1", "state": "up", "visitors": 1, "lanes": 0, "pool": 8,
        "rtt_ms": 0.42,
    }  # fmt: skip
    servers = [
        {"address": "a:1", "state": "up", "reason": None, "link": "1", "weight": 1, "backup": False},
        {"address": "b:1", "state": "cooldown", "reason": "it refused", "link": None, "weight": 2, "backup": True},
    ]
    shown = texts(detail_lines(view(tunnel("a", links=[link], servers=servers)).tunnels["a"], None, 200, 0.0, 0.0))
    assert (
        "servers  a:1 up, link 1, 1 visitor, 0 in lanes, 8 idle, 0.4 ms; b:1 cooldown, weight 2, backup, it refused"
        in shown
    )
    assert "links " not in shown
    assert "servers" not in texts(detail_lines(view(tunnel("a")).tunnels["a"], None, 120, 0.0, 0.0))


@pytest.mark.parametrize(
    ("carrier", "reason", "text"),
    [
        ("stream", "no answer", "UDP, over data connections (no answer)"),
        ("stream", None, "UDP, over data connections"),
        ("datagram", None, "UDP, as datagrams"),
        (None, None, "UDP"),
    ],
)
def test_details_show_how_udp_travels(carrier: str | None, reason: str | None, text: str) -> None:
    links = [{"id": "1", "udp_carrier": carrier, "udp_reason": reason, "lanes": None}]
    shown = texts(detail_lines(view(tunnel("a", proto="udp", links=links)).tunnels["a"], None, 120, 0.0, 0.0))
    assert re.search(rf"protocol {re.escape(text)} *$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("lanes", "text"),
    [
        ([], "3/1024 now, 7 in total"),
        ([None], "3/1024 now, 7 in total"),
        ([0], "3/1024 now, 0 in lanes, 7 in total"),
        ([2, None, 1], "3/1024 now, 3 in lanes, 7 in total"),
    ],
)
def test_details_show_how_many_visitors_share_data_connections(lanes: list[int | None], text: str) -> None:
    plain = {
        "client": None, "peer": "h:1", "state": "up", "weight": 1, "backup": False, "udp_carrier": None,
        "visitors": 1, "pool": 8, "rtt_ms": None,
    }  # fmt: skip
    links = [{**plain, "id": str(number), "lanes": count} for number, count in enumerate(lanes)]
    connections = {"active": 3, "total": 7, "failed": 0, "limit": 1024}
    shown_tunnel = view(tunnel("a", links=links, connections=connections)).tunnels["a"]
    assert f"visitors {text}" in texts(detail_lines(shown_tunnel, None, 120, 0.0, 0.0))


def test_details_say_that_visitors_speak_udp() -> None:
    shown = texts(detail_lines(view(tunnel("a", proto="udp")).tunnels["a"], None, 120, 0.0, 0.0))
    assert "protocol UDP" in shown
    shown = texts(detail_lines(view(tunnel("a", proto="both")).tunnels["a"], None, 120, 0.0, 0.0))
    assert "protocol TCP and UDP" in shown
    assert "protocol" not in texts(detail_lines(view(tunnel("a")).tunnels["a"], None, 120, 0.0, 0.0))


def test_details_show_the_limits_of_the_rate_and_how_long_they_held_visitors_back() -> None:
    limits = {"rate_bps": 100_000_000, "visitor_rate_bps": None, "paused_in_s": 0.2, "paused_out_s": 0.0}
    shown = texts(detail_lines(view(tunnel("a", rate_limits=limits)).tunnels["a"], None, 120, 0.0, 0.0))
    assert "rate     100mbit" in shown
    assert "held back" not in shown
    limits = {**limits, "visitor_rate_bps": 8_000, "paused_in_s": 12.0, "paused_out_s": 125.0}
    shown = texts(detail_lines(view(tunnel("a", rate_limits=limits)).tunnels["a"], None, 120, 0.0, 0.0))
    assert "rate     100mbit, 8kbit for each visitor; held back 2m05s to, 12s from visitors" in shown


def test_details_show_the_refused_visitors_and_why() -> None:
    refused = {**REFUSED, "handshakes": 1, "allow": 12, "per_address": 0, "rate": 1}
    shown = texts(detail_lines(view(tunnel("a", refused=refused)).tunnels["a"], None, 120, 0.0, 0.0))
    expected = "1 connection attempt; 12 visitors: address not allowed; 1 visitor: too many new ones of one address"
    assert f"refused  {expected}" in shown
    assert "refused" not in texts(detail_lines(view(tunnel("a")).tunnels["a"], None, 120, 0.0, 0.0))


@pytest.mark.parametrize("width", [30, 44, 80])
def test_details_fit_their_width(width: int) -> None:
    more: Json = {"where": "a/rather/long/path/tunnels.yaml:41:3", "url": "server://" + "x" * 90, "settings": SETTINGS}
    for known in view().tunnels.values():
        assert all(length(line) <= width for line in detail_lines(known, more, width, 100.0, 0.0))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_header_filters_banners_and_footer_fit_their_width(width: int) -> None:
    status: Json = {
        "generation": 4,
        "host": "edge-1",
        "config": {"path": "/a/very/long/path/" * 4 + "t.yaml", "ok": True},
    }
    known = view(**status)
    connection = ConnectionStatus(
        "unix:/run/" + "x" * 90, is_read_only=True, error="nothing listens there", silent_for=12, is_frozen=True
    )
    assert length(header_line(known, connection, width)) <= width
    line, found = state_filter_bar(known, select(known).state_counts, "failed", width)
    assert length(line) <= width
    assert [target.name for target in found] == state_filters(is_fleet=False)
    footer, keys = footer_bar(all_keys({}), width, is_read_only=False)
    assert length(footer) <= width
    assert {"help", "quit"} <= {key.name for key in keys}
    assert all(length(line) <= width for line in banner_lines(known, connection, "a notice " * 40, width))


def test_click_targets_match_the_words_of_the_state_filters() -> None:
    known = view()
    line, found = state_filter_bar(known, select(known).state_counts, "all", 120)
    for target in found:
        assert target.name in text(line)[target.start : target.end].casefold()


def test_a_confirmation_counts_the_visitors() -> None:
    tunnels = list(
        view(tunnel("a", connections=connections(12)), tunnel("b", connections=connections(1))).tunnels.values()
    )
    confirmation = confirm_command("stop", tunnels, 100)
    assert confirmation is not None
    assert confirmation.title == "Stop 2 tunnels?"
    assert "13 visitors are being served" in " ".join(map(text, confirmation.lines))
    one = confirm_command("drain", tunnels[1:], 100)
    assert one is not None
    assert "1 visitor is being served" in texts(list(one.lines))
    assert confirm_command("start", tunnels, 100) is None
    assert confirm_command("retry", tunnels, 100) is None


@pytest.mark.parametrize(("reason", "may_retry"), [(None, False), ("data connections to server-host:1 fail", True)])
def test_failed_data_connections_may_be_retried(reason: str | None, may_retry: bool) -> None:  # noqa: FBT001  a table's column
    [connecting] = view(tunnel("a", "connecting", reason=reason)).tunnels.values()
    assert VERBS["retry"].applies_to(connecting) is may_retry


@pytest.mark.parametrize(("state", "may_retry"), [("cooldown", True), ("failed", False), ("up", False)])
def test_only_a_cooldown_may_be_retried(state: str, may_retry: bool) -> None:  # noqa: FBT001  a table's column
    [seen] = view(tunnel("a", state, reason="x")).tunnels.values()
    assert VERBS["retry"].applies_to(seen) is may_retry


def test_start_stop_stops_running_tunnels_or_starts_stopped_ones() -> None:
    up, rest = view(tunnel("a"), tunnel("b", "stopped")).tunnels.values()
    assert choose_toggle([up, rest]) == ("stop", [up])
    assert choose_toggle([rest]) == ("start", [rest])
    assert applicable_tunnels("start", [up]) == ([], "a: already running")
    assert applicable_tunnels("drain", [rest]) == ([], "b: not running")
    assert applicable_tunnels("restart", [up, rest])[0] == [up, rest]


def test_a_reload_needs_a_confirmation_only_if_it_interrupts_tunnels() -> None:
    tunnels = view(tunnel("a", connections=connections(3)), tunnel("b")).tunnels
    harmless: Json = {**PLAN, "add": ["c"], "change": [{"name": "b", "changes": []}]}
    assert confirm_reload(harmless, tunnels, 100) is None
    interrupting: Json = {**PLAN, "remove": ["a"], "restart": [{"name": "b", "changes": ["target"]}]}
    confirmation = confirm_reload(interrupting, tunnels, 100)
    assert confirmation is not None
    assert confirmation.answer == "Reload, disconnect 3"


def test_plans_and_results_list_what_changes() -> None:
    results: Json = {
        "a": {"action": "unchanged"}, "b": {"action": "removed"},
        "c": {"action": "changed", "changes": ["log info → debug"]},
        "d": {"action": "rejected", "detail": "address in use"}, **{f"n{i}": {"action": "added"} for i in range(4)},
    }  # fmt: skip
    assert reload_notice(5, results) == "generation 5: rejected d; removed b; changed c; added 4"
    shown = texts(result_lines(results, 80))
    assert "! rejected d: address in use" in shown
    assert "1 tunnel unchanged" in shown
    assert reload_notice(5, {}) == "no change (generation 5)"
    assert "would change nothing" in texts(plan_lines(PLAN, 80))
    finishing = [{"name": "b", "visitors": 2, "timeout_s": 5.0}]
    restart: Json = {**PLAN, "restart": [{"name": "b", "changes": ["tls: 1 → 0"]}], "finishing": finishing}
    assert "restarted b: tls: 1 → 0; 2 visitors may finish, for 5s at most" in texts(plan_lines(restart, 80))
    error = {"file": "t.yaml", "line": 3, "column": 1, "message": "odd"}
    invalid: Json = {**PLAN, "ok": False, "error": error}
    assert "t.yaml:3:1: odd" in texts(plan_lines(invalid, 80))


def test_an_error_of_the_file_is_shown_with_its_place() -> None:
    assert error_text("plain") == "plain"
    assert error_text(None) == "unknown error"
    without_place: Json = {"message": "no place"}
    assert error_text(without_place) == "no place"
    assert error_text({"file": "f", "line": 2, "column": None, "message": "m"}) == "f:2: m"


def test_the_log_filter_compares_level_and_text() -> None:
    events: list[Json] = [{"level": level, "text": f"a {level}", "tunnel": "web"} for level in ("info", "warn")]
    info, warn = events
    assert LogFilter().matches(info)
    assert not LogFilter("warn").matches(info)
    assert LogFilter("warn").matches(warn)
    assert LogFilter("debug", "WEB").matches(info)
    assert not LogFilter("debug", "db").matches(info)
    log_filter = LogFilter()
    levels = [(log_filter := log_filter.next_level()).level for _ in range(4)]
    assert levels == ["warn", "error", "debug", "info"]


@given(st.text(max_size=200), st.integers(30, 100))
def test_events_fit_their_width(words: str, width: int) -> None:
    event: Json = {"text": words, "tunnel": "web"}
    assert all(length(line) <= width for line in event_lines(event, width, has_name=True))


def test_the_palette_finds_verbs_and_parts_of_names() -> None:
    names = ["db-east", "db-west", "edge"]
    assert find_commands("restart db", names, is_read_only=False) == [("restart", "db-east"), ("restart", "db-west")]
    assert find_commands("db", names, is_read_only=False) == [("show", "db-east"), ("show", "db-west")]
    assert ("stop", "edge") in find_commands("st edge", names, is_read_only=False)
    assert find_commands("stop", names, is_read_only=True) == []
    assert find_commands("show ed", names, is_read_only=True) == [("show", "edge")]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_confirmation_fits_the_screen(width: int) -> None:
    tunnels = list(view(tunnel("a", connections=connections(1))).tunnels.values())
    confirmation = confirm_quit(tunnels, "nodepass-orch down", width)
    assert max(map(length, confirmation.lines)) <= min(62, width - 6)
    assert "nodepass-orch top" in " ".join(map(text, confirmation.lines))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_summary_shows_the_reason_before_anything_else(width: int) -> None:
    for known in view().tunnels.values():
        for height in (1, 2):
            lines = summary_lines(known, width, height, 100.0, 0.0)
            assert 1 <= len(lines) <= height
            assert max(map(length, lines)) <= width
            if known.reason:
                assert texts(lines).split("; attempt")[0].endswith((known.reason[-8:], "…"))


@pytest.mark.parametrize("width", range(60, 130))
def test_no_word_of_a_state_filter_is_cut(width: int) -> None:
    known = view()
    line, found = state_filter_bar(known, select(known).state_counts, "all", width)
    assert length(line) <= width
    words = {name for name, _ in STATE_FILTERS}
    for target in found:
        sign, *word = text(line)[target.start : target.end].casefold().split()
        assert {sign, *word[:-1]} & words or len(word) == 1


@pytest.mark.parametrize("longest_host", [0, 8, 20])
def test_a_table_of_80_columns_shows_traffic_in_both_directions(longest_host: int) -> None:
    keys = [column.key for column in lay_out(79, 14, longest_host).columns]  # 1 for the scrollbar
    assert {"state", "name", "pool", "visitors", "out", "in"} <= set(keys)


def test_the_arrow_points_up_if_values_increase() -> None:
    for sort, arrow in (("name", "▲"), ("visitors", "▼"), ("pool", "▲"), ("state", "▼"), ("signals", "▼")):
        for is_reversed in (False, True):
            selection = Selection(sort=sort, is_reversed=is_reversed)
            expected = arrow if not is_reversed else {"▲": "▼", "▼": "▲"}[arrow]
            assert sort_arrow(selection) == expected
            heading = text(format_heading(lay_out(79, 14), selection))
            line, targets = filter_bar(selection, lay_out(79, 14), 7, 7, 0, 80)
            label = text(line)[targets[-1].start :].removeprefix("sort ").split()[0]
            assert f"{label}{expected}" in heading


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_help_page_lists_every_key_and_fits_its_width(width: int) -> None:
    lines = help_lines(all_keys({}), width, is_fleet=True, is_read_only=True)
    assert all(length(line) <= width for line in lines)
    shown = " ".join(texts(lines).split())
    assert all(action.help in shown for action in ACTIONS)
    assert "0 to 7" in shown


@pytest.mark.parametrize(
    ("pattern", "is_shown"),
    [
        ("edge-0*", True),
        ("!edge-0*", False),
        ("edge-1*", False),
        ("!edge-1*", True),
        ("target*refuses", True),
        ("!refuses", False),
        ("!", True),
    ],
)
def test_the_filter_of_the_log_accepts_patterns_and_negation(
    pattern: str,
    is_shown: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    event: Json = {"tunnel": "edge-07", "level": "warn", "kind": "target", "text": "the target a:1 refuses connections"}
    assert LogFilter(text=pattern).matches(event) is is_shown


def test_the_palette_accepts_patterns_of_names() -> None:
    names = ["edge-01", "edge-02", "hedge-03"]
    assert find_commands("restart edge-0?", names, is_read_only=False) == [
        ("restart", "edge-01"),
        ("restart", "edge-02"),
    ]


@given(
    st.lists(st.tuples(st.text("abA ", max_size=6), st.sampled_from(["", "dim"])), max_size=5),
    st.text("abA", min_size=1, max_size=3),
)
def test_highlighting_changes_styles_and_no_text(line: list[tuple[str, str]], wanted: str) -> None:
    text = "".join(part for part, _ in line)
    lit = highlight(tuple(line), re.compile(re.escape(wanted), re.IGNORECASE), "pick")
    assert "".join(part for part, _ in lit) == text
    marked = "".join(("x" if style == "pick" else ".") * len(part) for part, style in lit)
    expected, at = ["."] * len(text), text.lower().find(wanted.lower())
    while at >= 0:
        expected[at : at + len(wanted)] = ["x"] * len(wanted)
        at = text.lower().find(wanted.lower(), at + len(wanted))
    assert marked == "".join(expected)
