"""The state table: every state has a row, every transition a cause."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from orchestrator.state_display import ASCII_SIGNS, OFFLINE_SIGN, STATE_COLORS, STATE_SIGNS, format_state
from tunnel.model.state import STATES, InvalidTransitionError, State, StateRecord, render_state_table

ROOT = Path(__file__).parent.parent.parent


def test_every_state_has_a_row() -> None:
    assert set(STATES) == set(State)


def test_ranks_signs_and_ascii_signs_are_unique_and_one_column_wide() -> None:
    rows = STATES.values()
    assert len({info.rank for info in rows}) == len(State)
    for signs in ([info.sign for info in rows] + [OFFLINE_SIGN], list(ASCII_SIGNS.values())):
        assert len(set(signs)) == len(State) + 1
        assert all(len(sign) == 1 for sign in signs)
    assert all(sign.isascii() for sign in ASCII_SIGNS.values())


@pytest.mark.parametrize("state", State)
def test_the_meaning_of_a_state_is_a_sentence_without_a_full_stop(state: State) -> None:
    meaning = STATES[state].meaning
    assert len(meaning.split()) > 3
    assert not meaning.endswith(".")
    assert len(meaning) <= 50
    assert format_state(state) == f"{STATE_SIGNS[state]} {state}"
    assert set(STATE_COLORS) <= set(State)


def test_an_ended_tunnel_neither_runs_nor_listens() -> None:
    for info in STATES.values():
        assert not (info.is_ended and (info.is_running or info.is_listening))


def test_every_transition_leads_to_another_state_and_has_a_cause() -> None:
    for state, info in STATES.items():
        assert state not in info.next_states
        assert all(len(cause.split()) > 2 for cause in info.next_states.values())


def test_every_state_can_be_reached_and_left() -> None:
    reached, fresh = {State.STARTING}, {State.STARTING}
    while fresh:
        fresh = set().union(*(STATES[state].next_states for state in fresh)) - reached
        reached |= fresh
    assert reached == set(State)
    assert all(info.next_states for info in STATES.values())


def test_a_tunnel_can_be_drained_or_stopped_in_every_state() -> None:
    for state in set(State) - {State.STOPPED}:
        following = STATES[state].next_states
        assert State.STOPPED in following or State.DRAINING in following
    assert State.UP not in STATES[State.DRAINING].next_states


def test_only_transitions_of_the_table_are_possible() -> None:
    for before, after in itertools.product(State, repeat=2):
        record = StateRecord(before, 1.0, "a reason")
        if after is before or after in STATES[before].next_states:
            assert record.transition_to(after, "next").state is after
        else:
            with pytest.raises(InvalidTransitionError, match=f"{before} cannot become {after}"):
                record.transition_to(after)


def test_a_new_reason_in_the_same_state_keeps_its_start_time() -> None:
    record = StateRecord(State.COOLDOWN, 1.0, "refused")
    assert record.transition_to(State.COOLDOWN, "refused") is record
    assert record.transition_to(State.COOLDOWN, "silent") == StateRecord(State.COOLDOWN, 1.0, "silent")
    moved = record.transition_to(State.CONNECTING)
    assert moved.since == pytest.approx(time.time(), abs=60)
    assert moved.reason is None


def test_the_reference_in_the_documentation_is_the_rendered_table() -> None:
    assert render_state_table() in (ROOT / "docs" / "reference" / "states.md").read_text()
