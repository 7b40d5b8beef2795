"""From a source's messages to views."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tui.fake import Json, cooldown, tunnel
from tui.model.tunnels import MAX_SAMPLES, StatusView, advance_clock, apply_change, apply_status, parse_timestamp
from tunnel.model.times import format_timestamp

AT = 1_800_000_000.0


def started(*tunnels: Json) -> StatusView:
    return apply_status({"generation": 1, "tunnels": list(tunnels)}, AT, 10.0)


def message(at: float, **parts: object) -> Json:
    return {"ts": format_timestamp(at), "changed": {}, "removed": [], "status": {}, **parts}


def moved(count_in: int, count_out: int) -> Json:
    return {"a": {"bytes": {"in": count_in, "out": count_out}}}


def test_a_status_replaces_the_whole_view() -> None:
    view = started(tunnel("a"), tunnel("b"))
    assert list(view.tunnels) == ["a", "b"]
    assert view.status == {"generation": 1}


def test_a_change_replaces_top_level_values_only() -> None:
    before = started(tunnel("a"))
    view = apply_change(before, message(AT, changed={"a": {"state": "failed", "reason": "broken"}}), 10.2)
    assert view.tunnels["a"].state == "failed"
    assert view.tunnels["a"].text("peer") == "127.0.0.1:5123"
    assert before.tunnels["a"].state == "up"


def test_a_change_adds_and_removes_tunnels_and_updates_the_status() -> None:
    view = apply_change(started(tunnel("a")), message(AT, changed={"b": tunnel("b")}, removed=["a", "never"]), 10.0)
    view = apply_change(view, message(AT, status={"generation": 2}), 10.0)
    assert list(view.tunnels) == ["b"]
    assert view.status["generation"] == 2


def test_rates_are_means_over_a_second_of_the_daemons_clock() -> None:
    view = apply_change(started(tunnel("a")), message(AT + 0.25, changed=moved(100, 1000)), 10.25)
    assert view.tunnels["a"].rate_out == 0
    view = apply_change(view, message(AT + 2.0, changed=moved(2000, 8000)), 12.0)
    assert view.tunnels["a"].rate_in == pytest.approx(1000)
    assert view.tunnels["a"].rate_out == pytest.approx(4000)
    assert view.rates == pytest.approx((4000, 1000))


def test_rates_fall_to_zero_without_messages() -> None:
    view = apply_change(started(tunnel("a")), message(AT + 1.0, changed=moved(1000, 1000)), 11.0)
    assert advance_clock(view, 11.2) is view
    later = advance_clock(view, 12.6)
    assert later.tunnels["a"].rate_out == 0
    assert advance_clock(later, 12.7) is later


def test_a_counter_that_falls_gives_no_negative_rate() -> None:
    view = apply_change(
        started(tunnel("a", bytes={"in": 5000, "out": 5000})), message(AT + 1, changed=moved(10, 10)), 11.0
    )
    assert view.tunnels["a"].rate_in == 0


def test_no_rate_is_computed_across_a_step_of_the_clock() -> None:
    for jump in (-3600.0, 3600.0):
        view = apply_change(started(tunnel("a")), message(AT + jump, changed=moved(10**9, 10**9)), 10.2)
        assert view.tunnels["a"].rate_out == 0
        view = apply_change(view, message(AT + jump + 1, changed=moved(10**9, 10**9 + 500)), 11.2)
        assert view.tunnels["a"].rate_out == pytest.approx(500)


def test_the_traffic_of_a_pair_is_counted_once() -> None:
    view = started(tunnel("a"), tunnel("b", role="client"))
    both = {**moved(0, 1000), "b": {"bytes": {"in": 0, "out": 1000}}}
    assert apply_change(view, message(AT + 1, changed=both), 11.0).rates[0] == pytest.approx(1000)


def test_a_cooldown_counts_down_from_when_it_was_received() -> None:
    view = started(cooldown("a", 4.0))
    assert view.tunnels["a"].cooldown_left(11.5) == pytest.approx(2.5)
    view = apply_change(view, message(AT, changed={"a": {"last_error": "again"}}), 11.0)
    assert view.tunnels["a"].cooldown_left(11.5) == pytest.approx(2.5)
    view = apply_change(view, message(AT, changed={"a": {"cooldown": {"remaining_s": 3.0, "attempt": 10}}}), 12.0)
    assert view.tunnels["a"].cooldown_left(12.5) == pytest.approx(2.5)
    assert view.tunnels["a"].cooldown_left(99.0) == 0
    assert started(tunnel("b")).tunnels["b"].cooldown_left(10.0) == 0


def test_the_history_survives_a_reconnect() -> None:
    before = started(tunnel("a"))
    again = apply_status({"tunnels": [tunnel("a")]}, AT + 50, 60.0, before)
    assert len(again.tunnels["a"].history) == 2
    assert again.tunnels["a"].rate_out == 0


def test_the_history_is_bounded() -> None:
    view = started(tunnel("a"))
    for second in range(MAX_SAMPLES + 20):
        view = advance_clock(view, 12.0 + 2 * second)
    assert len(view.tunnels["a"].history) == MAX_SAMPLES


@given(
    steps=st.lists(st.sampled_from(["idle", "moves", "on screen", "off screen"]), min_size=1, max_size=40),
)
def test_a_history_that_lags_behind_has_no_gap(steps: list[str]) -> None:
    """Two tunnels do the same; one is always on the screen, the other only sometimes."""
    view = replace(started(tunnel("a"), tunnel("b")), on_screen={"a"})
    count = 0
    for second, step in enumerate(steps, 1):
        at, now = AT + second, 10.0 + second
        if step == "moves":
            count += 1000
            both = {"bytes": {"in": count, "out": 2 * count}}
            view = apply_change(view, message(at, changed={"a": both, "b": both}), now)
        else:
            view = apply_change(view, message(at), now)
        if step in {"on screen", "off screen"}:
            view = replace(view, on_screen={"a", "b"} if step == "on screen" else {"a"})
        seen, other = (view.tunnels[name].history for name in "ab")
        assert len(seen) == second + 1
        assert len(seen) - 8 < len(other) <= len(seen)
        assert other == seen[: len(other)]
        assert all(sample == seen[len(other) - 1] for sample in seen[len(other) :])


def test_missing_and_unknown_fields_of_another_version_are_accepted() -> None:
    view = started({"name": "a"}, {"name": "b", "state": "hovering", "pool": None, "wings": 2})
    assert view.tunnels["a"].visitors == 0
    assert view.tunnels["a"].is_ingress is None
    assert view.tunnels["b"].state == "hovering"
    assert view.tunnels["b"].rtt_ms is None


@pytest.mark.parametrize("text", ["", None, "yesterday", 7])
def test_a_text_that_is_no_timestamp_is_unknown(text: object) -> None:
    assert parse_timestamp(text) is None


@given(st.lists(st.tuples(st.floats(0.1, 3), st.integers(0, 10**9)), max_size=40))
def test_rates_times_their_intervals_add_up_to_the_bytes(steps: list[tuple[float, int]]) -> None:
    at, total, now, sampled_bytes = AT, 0, 10.0, 0.0
    view = started(tunnel("a", bytes={"in": 0, "out": 0}))
    last = view.sampled_at
    for elapsed, count in steps:
        at, now, total = at + elapsed, now + elapsed, total + count
        view = apply_change(view, message(at, changed=moved(0, total)), now)
        if view.sampled_at != last:
            sampled_bytes += view.tunnels["a"].rate_out * (view.sampled_at - last)
            last = view.sampled_at
    tunnel_now = view.tunnels["a"]
    assert tunnel_now.sampled_bytes is not None
    assert sampled_bytes == pytest.approx(tunnel_now.sampled_bytes[1], rel=1e-6, abs=1)
