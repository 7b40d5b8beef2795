"""When a target counts as up or down."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.health import MAX_RETURNS, RETURN_WINDOW_S, Health, HealthRules, UdpRefusals

rules = st.builds(HealthRules, st.integers(1, 5), st.integers(1, 5))
outcomes = st.lists(st.tuples(st.booleans(), st.floats(0.001, 30.0)), max_size=120)


def run(health: Health, found: list[tuple[bool, float]]) -> list[tuple[float, bool]]:
    """Note outcomes, each some seconds after the one before; return the times of the changes, and the new states."""
    now, changes = 0.0, []
    for is_good, pause_s in found:
        now += pause_s
        if health.note_success(now) if is_good else health.note_failure():
            changes.append((now, health.is_up))
    return changes


def is_up(health: Health) -> bool:
    return health.is_up


def healthy(rules_: HealthRules) -> Health:
    health = Health(rules_)
    health.note_success(0.0)
    return health


@given(rules)
def test_a_target_falls_after_failures_in_a_row_and_rises_after_successes_in_a_row(rules_: HealthRules) -> None:
    health = healthy(rules_)
    assert [health.note_failure() for _ in range(rules_.fall)] == [False] * (rules_.fall - 1) + [True]
    assert not is_up(health)
    assert [health.note_success(1.0) for _ in range(rules_.rise)] == [False] * (rules_.rise - 1) + [True]
    assert is_up(health)
    assert health.changes == 2


def test_a_success_resets_the_count_of_failures() -> None:
    health = healthy(HealthRules(fall=3))
    for _ in range(10):
        assert not health.note_failure()
        assert not health.note_failure()
        assert health.wants_success
        assert not health.note_success(1.0)
        assert not health.wants_success
    assert is_up(health)


def test_a_failure_resets_the_count_of_successes() -> None:
    health = Health(HealthRules(rise=2))
    health.note_failure()
    for _ in range(10):
        assert not health.note_success(1.0)
        assert not health.note_failure()
    assert not is_up(health)


def test_a_new_target_is_up_and_its_first_failure_takes_it_down() -> None:
    health = Health(HealthRules(fall=3))
    assert is_up(health)
    assert health.wants_success
    assert health.note_failure()


@given(rules, outcomes)
def test_the_state_follows_the_last_outcomes(rules_: HealthRules, found: list[tuple[bool, float]]) -> None:
    """Whatever came before: enough failures in a row mean down; less than enough successes do not mean a return."""
    health = Health(rules_)
    was_up = True
    for is_good, group in groupby(found, key=lambda each: each[0]):
        length = len(run(health, list(group)))
        assert length <= 1
        if health.is_up is not was_up:
            assert is_good is health.is_up
        was_up = health.is_up
    tail = [False] * rules_.fall
    run(health, [(each, 1.0) for each in tail])
    assert not is_up(health)


@given(rules, outcomes)
def test_changes_per_minute_are_bounded_whatever_happens(rules_: HealthRules, found: list[tuple[bool, float]]) -> None:
    changes = run(Health(rules_), found)
    for start, _ in changes:
        within = [is_up for at, is_up in changes if start <= at < start + RETURN_WINDOW_S]
        assert sum(within) <= MAX_RETURNS
        assert len(within) <= 2 * MAX_RETURNS + 1


def test_a_target_that_flaps_is_held_down_and_returns_when_it_is_stable() -> None:
    health, now = healthy(HealthRules(fall=1, rise=1)), 0.0
    for _ in range(MAX_RETURNS):
        assert health.note_failure()
        assert health.note_success(now)
        now += 1
    health.note_failure()
    assert not health.note_success(now)
    assert (health.is_held, health.is_up) == (True, False)
    assert health.note_success(RETURN_WINDOW_S)
    assert (health.is_held, health.is_up) == (False, True)


def test_other_rules_hold_from_the_next_outcome_on() -> None:
    health = healthy(HealthRules(fall=5))
    health.note_failure()
    health.update_rules(HealthRules(fall=2))
    assert is_up(health)
    assert health.note_failure()


def test_udp_is_avoided_after_refusals_in_a_row_and_tried_again_by_the_next_visitor() -> None:
    refusals = UdpRefusals()
    assert [refusals.note_refusal(1.0, limit=3, pause_s=4.0) for _ in range(4)] == [False, False, True, False]
    assert refusals.is_avoided(4.9)
    assert not refusals.is_avoided(5.0)
    assert refusals.note_refusal(6.0, limit=3, pause_s=4.0)
    refusals.note_answer()
    assert not refusals.is_avoided(6.1)
    assert not refusals.note_refusal(7.0, limit=3, pause_s=4.0)
