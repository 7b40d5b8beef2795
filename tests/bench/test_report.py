import json

import pytest

from tests.bench.measure import MEASUREMENTS
from tests.bench.report import METRICS, Goal, Outcome, aligned, as_document, median, ratio, render, spread

RATE = "keepalive.rate"


def outcome(contender: str, number: int, rate: float | None, *errors: str) -> Outcome:
    return Outcome(contender, number, "keepalive", {} if rate is None else {RATE: rate}, errors)


DRIFTING = [outcome("ours", n, 0.9 * speed) for n, speed in ((1, 100.0), (2, 300.0), (3, 200.0))] + [
    outcome("haproxy", n, speed) for n, speed in ((1, 100.0), (2, 300.0), (3, 200.0))
]


def shown(outcomes: list[Outcome], contenders: list[str]) -> str:
    return render(outcomes, contenders, baseline="haproxy", ours="ours")


def row(text: str, title: str, label: str) -> str:
    table = next(part for part in text.split("\n\n") if part.startswith(title))
    return next(line for line in table.splitlines() if line.startswith(label))


def test_median_and_spread() -> None:
    assert median(DRIFTING, "haproxy", RATE) == 200.0
    assert spread(DRIFTING, "haproxy", RATE) == pytest.approx(0.5)


def test_nothing_measured_has_no_figures() -> None:
    assert median(DRIFTING, "nobody", RATE) is None
    assert spread(DRIFTING[:1], "ours", RATE) is None
    assert ratio(DRIFTING, "nobody", "haproxy", RATE) is None


def test_ratios_are_taken_within_each_round() -> None:
    assert ratio(DRIFTING, "ours", "haproxy", RATE) == pytest.approx(0.9)


def test_a_round_without_the_other_gives_no_ratio() -> None:
    outcomes = [outcome("ours", 1, 50.0), outcome("ours", 2, 1.0), outcome("haproxy", 1, 100.0)]
    assert ratio([*outcomes, outcome("haproxy", 2, None, "ended")], "ours", "haproxy", RATE) == 0.5


def test_a_baseline_of_zero_gives_no_ratio() -> None:
    assert ratio([outcome("ours", 1, 5.0), outcome("haproxy", 1, 0.0)], "ours", "haproxy", RATE) is None


@pytest.mark.parametrize(
    ("goal", "value", "compared", "met"),
    [
        (Goal(0.9, at_least=True), 10.0, 0.9, True),
        (Goal(0.9, at_least=True), 10.0, 0.89, False),
        (Goal(2.0), 10.0, 2.0, True),
        (Goal(2.0), 1.0, 2.1, False),
        (Goal(32.0, ratio=False), 31.0, 9.0, True),
        (Goal(32.0, ratio=False), 33.0, 0.1, False),
        (Goal(2.0), 1.0, None, None),
    ],
)
def test_goal(goal: Goal, value: float, compared: float | None, met: bool | None) -> None:  # noqa: FBT001  a table
    assert goal.met(value, compared) is met


def test_the_tables() -> None:
    text = shown(DRIFTING, ["haproxy", "ours"])
    assert row(text, "median", "keep-alive").split()[-4:] == ["200", "±50%", "180", "±50%"]
    assert row(text, "ratio to haproxy", "keep-alive").endswith(" 0.90")
    assert row(text, "goal", "keep-alive").split()[-4:] == ["0.90x", "≥", "0.9x", "met"]
    assert "new connections" not in text, "what was not tried has no row"


def test_errors_mark_the_row_and_void_the_goal() -> None:
    text = shown(
        [*DRIFTING[1:], outcome("ours", 1, 500.0, "3 read errors"), outcome("ours", 4, None, "3 read errors")],
        ["haproxy", "ours"],
    )
    assert row(text, "median", "keep-alive").endswith("!")
    assert row(text, "ratio", "keep-alive").endswith("!")
    assert row(text, "goal", "keep-alive").endswith("ERRORS")
    assert text.endswith("! ours, keepalive: 3 read errors (round 1, 4)")


def test_without_the_baseline_there_are_no_ratios_and_no_verdict() -> None:
    text = shown(DRIFTING[:3], ["ours"])
    assert "ratio" not in text
    assert row(text, "goal", "keep-alive").endswith("unknown")


def test_columns_are_aligned() -> None:
    lines = aligned([["a", "bb"], ["long label", "1"], ["x", "12,345"]]).splitlines()
    assert lines == ["a               bb", "─" * 18, "long label       1", "x           12,345"]


def test_every_metric_has_its_measurement() -> None:
    assert {metric.measurement for metric in METRICS} == {measurement.name for measurement in MEASUREMENTS}


def test_the_document_is_json_and_complete() -> None:
    document = as_document(DRIFTING, ["haproxy", "ours"], baseline="haproxy", facts={"cores": "2"})
    again = json.loads(json.dumps(document))
    assert again["ratios"]["ours"][RATE] == pytest.approx(0.9)
    assert again["medians"]["ours"]["newconn.rate"] is None
    assert len(again["visits"]) == len(DRIFTING)
