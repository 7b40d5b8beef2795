from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tunnel.model.settings import (
    DURATIONS,
    NAMES,
    SettingError,
    Settings,
    as_text,
    from_environment,
    parse_setting,
    resolve,
)
from tunnel.model.times import format_duration, parse_duration

HOUR_NS = 3_600_000_000_000


@given(st.integers(0, 72 * HOUR_NS))
def test_a_duration_written_and_read_again_is_the_same(ns: int) -> None:
    seconds = ns / 1_000_000_000
    assert parse_duration(format_duration(seconds)) == seconds


@given(
    st.integers(0, 99),
    st.integers(0, 99),
    st.decimals(0, 99, places=3),
    st.sampled_from(["us", "µs", "μs"]),
)
def test_terms_add_up(hours: int, minutes: int, seconds: Decimal, micro: str) -> None:
    expected = hours * 3600 + minutes * 60 + float(seconds) + 7e-6
    assert parse_duration(f"{hours}h{minutes}m{seconds:f}s7{micro}") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "seconds", "canonical"),
    [
        ("500ms", 0.5, "500ms"),
        ("5s", 5.0, "5s"),
        ("1m30s", 90.0, "1m30s"),
        ("90s", 90.0, "1m30s"),
        ("1.5h", 5400.0, "1h30m"),
        (".5s", 0.5, "500ms"),
        ("1.s", 1.0, "1s"),
        ("2h", 7200.0, "2h"),
        ("1h1s", 3601.0, "1h0m1s"),
        ("0", 0.0, "0s"),
        ("1ns", 1e-9, "1ns"),
    ],
)
def test_durations_are_read_as_go_reads_them(text: str, seconds: float, canonical: str) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == canonical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a duration"),
        ("5", "did you mean 5s"),
        ("-5s", "negative"),
        ("5 s", "not a duration"),
        ("5x", "unknown unit 'x'"),
        ("5d", "unknown unit 'd'"),
        ("s", "not a duration"),
        (".s", "not a duration"),
        ("5s5", "not a duration"),
        ("1e3s", "not a duration|unknown unit"),
        ("5S", "not a duration"),
        ("٣s", "not a duration"),
        ("inf", "not a duration"),
        ("9999h", "longer than a year"),
        ("9" * 1_100_000 + "s", "longer than a year|not a duration"),
    ],
)
def test_what_is_no_duration_is_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_duration(text)
    assert len(str(caught.value)) < 200


@given(st.text(max_size=20))
def test_no_text_whatever_makes_anything_but_a_value_error(text: str) -> None:
    for candidate in (text, f"{text}s", f"1{text}"):
        try:
            assert parse_duration(candidate) >= 0
        except ValueError as error:
            assert str(error)  # noqa: PT017  either outcome is right


def test_the_built_in_values_are_the_documented_ones() -> None:
    assert as_text(Settings()) == {
        "semaphore_limit": "1024",
        "signal_queue_limit": "1024",
        "signal_buffer": "1024",
        "min_pool_capacity": "8",
        "max_pool_capacity": "1024",
        "report_interval": "5s",
        "server_cooldown": "5s",
        "client_cooldown": "5s",
        "shutdown_timeout": "5s",
    }
    assert resolve([]) == Settings()


LAYERS = ("the URL", "the entry", "defaults", "the environment")


@given(st.sampled_from(NAMES), st.lists(st.booleans(), min_size=len(LAYERS), max_size=len(LAYERS)))
def test_the_strongest_layer_that_names_a_setting_wins(name: str, present: list[bool]) -> None:
    values = [f"{n}s" if name in DURATIONS else str(n) for n in (21, 22, 23, 24)]
    stack = [(layer, {name: v} if there else {}) for layer, v, there in zip(LAYERS, values, present, strict=True)]
    settings = resolve(stack)
    expected = next((v for v, there in zip(values, present, strict=True) if there), as_text(Settings())[name])
    assert as_text(settings)[name] == expected
    assert settings.explicit == (frozenset({name}) if any(present) else frozenset())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["-1", "-1s", "many", "5 parsecs", "", None, True, [], 1.5, "1e3", "99999999999999h"])
def test_nonsense_is_an_error_wherever_it_stands(layer: str, name: str, value: object) -> None:
    stack = [(other, {name: value} if other == layer else {}) for other in LAYERS]
    with pytest.raises(SettingError) as caught:
        resolve(stack)
    assert caught.value.source == layer
    assert caught.value.name == name
    assert str(caught.value).startswith(f"{name}: ")
    assert "None" not in str(caught.value)


def test_nonsense_is_an_error_even_where_a_stronger_layer_speaks() -> None:
    with pytest.raises(SettingError) as caught:
        resolve([("the URL", {"signal_buffer": 512}), ("defaults", {"signal_buffer": "lots"})])
    assert caught.value.source == "defaults"


@pytest.mark.parametrize(("name", "value"), [("report_interval", 5), ("report_interval", 2.5)])
def test_a_number_without_unit_is_told_what_is_missing(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"{value}s"):
        parse_setting(name, value)


@given(st.integers(1, 65_536), st.integers(1, 65_536))
def test_the_pools_bounds_are_in_order(low: int, high: int) -> None:
    layers = [("the URL", {"min_pool_capacity": low, "max_pool_capacity": high})]
    if low <= high:
        settings = resolve(layers)
        assert (settings.min_pool_capacity, settings.max_pool_capacity) == (low, high)
    else:
        with pytest.raises(SettingError, match="above max_pool_capacity"):
            resolve(layers)


def test_the_built_in_minimum_gives_way_to_a_small_maximum_and_not_the_other_way_round() -> None:
    assert resolve([("the URL", {"max_pool_capacity": 3})]).min_pool_capacity == 3
    with pytest.raises(SettingError, match="min_pool_capacity"):
        resolve([("defaults", {"min_pool_capacity": 2000})])


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(10, 60), max_size=9))
def test_the_environment_has_the_names_in_capitals(chosen: dict[str, int]) -> None:
    environ = {name.upper(): f"{n}s" if name in DURATIONS else str(n) for name, n in chosen.items()}
    assume(chosen.get("min_pool_capacity", 0) <= chosen.get("max_pool_capacity", 1024))
    settings = resolve([("the environment", from_environment({**environ, "PATH": "/bin", "signal_buffer": "x"}))])
    assert settings.explicit == frozenset(chosen)
    assert {name.upper(): value for name, value in as_text(settings).items() if name in chosen} == {
        name: format_duration(float(value.removesuffix("s"))) if value.endswith("s") else value
        for name, value in environ.items()
    }


def test_an_empty_variable_counts_as_not_set() -> None:
    assert from_environment({"SEMAPHORE_LIMIT": "", "SIGNAL_BUFFER": "  "}) == {}


def test_longer_durations_are_longer() -> None:
    texts = ["1ns", "1us", "1ms", "1s", "1m", "1h", "24h"]
    assert all(parse_duration(a) < parse_duration(b) for a, b in pairwise(texts))
