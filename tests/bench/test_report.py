import json
from dataclasses import replace

import pytest

from tests.bench.report import (
    Goal,
    Metric,
    Outcome,
    Sheet,
    align_columns,
    as_document,
    chart_panels,
    median,
    ratio,
    render,
    spread,
)

RATE = "keepalive.rate"


def outcome(variant: str, number: int, rate: float | None, *errors: str) -> Outcome:
    return Outcome(variant, number, "keepalive", {} if rate is None else {RATE: rate}, errors)


DRIFTING = [outcome("ours", n, 0.9 * speed) for n, speed in ((1, 100.0), (2, 300.0), (3, 200.0))] + [
    outcome("haproxy", n, speed) for n, speed in ((1, 100.0), (2, 300.0), (3, 200.0))
]


def sheet(*variants: str) -> Sheet:
    metrics = (
        Metric(RATE, "keep-alive requests/s", 0, Goal(0.9, at_least=True)),
        Metric("keepalive.p99", "  p99 ms", 2, chart_title="keep-alive, p99 ms"),
        Metric("newconn.rate", "new connections/s", 0),
    )
    return Sheet(
        metrics=metrics, variants=variants, baseline="haproxy", judged=("ours",), plotted=(RATE, "keepalive.p99")
    )


def render_tables(outcomes: list[Outcome], contenders: list[str]) -> str:
    return render(outcomes, sheet(*contenders))


def row(text: str, title: str, label: str) -> str:
    table = next(part for part in text.split("\n\n") if part.startswith(title))
    return next(line for line in table.splitlines() if line.startswith(label))


def test_median_and_spread_are_taken_over_the_rounds() -> None:
    assert median(DRIFTING, "haproxy", RATE) == 200.0
    assert spread(DRIFTING, "haproxy", RATE) == pytest.approx(0.5)


def test_a_variant_without_measurements_has_no_figures() -> None:
    assert median(DRIFTING, "absent", RATE) is None
    assert spread(DRIFTING[:1], "ours", RATE) is None
    assert ratio(DRIFTING, "absent", "haproxy", RATE) is None


def test_ratios_are_taken_within_each_round() -> None:
    assert ratio(DRIFTING, "ours", "haproxy", RATE) == pytest.approx(0.9)


def test_a_round_without_the_baseline_gives_no_ratio() -> None:
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
def test_a_goal_is_met_at_its_bound(goal: Goal, value: float, compared: float | None, met: bool | None) -> None:  # noqa: FBT001  a table of cases
    assert goal.is_met(value, compared) is met


def test_the_tables_show_medians_ratios_and_goals() -> None:
    text = render_tables(DRIFTING, ["haproxy", "ours"])
    assert row(text, "median", "keep-alive").split()[-4:] == ["200", "±50%", "180", "±50%"]
    assert row(text, "ratio to haproxy", "keep-alive").endswith(" 0.90")
    assert row(text, "goal", "keep-alive").split()[-4:] == ["0.90x", "≥", "0.9x", "met"]
    assert "new connections" not in text, "a metric that was not measured has no row"


def test_errors_mark_the_row_and_void_the_goal() -> None:
    text = render_tables(
        [*DRIFTING[1:], outcome("ours", 1, 500.0, "3 read errors"), outcome("ours", 4, None, "3 read errors")],
        ["haproxy", "ours"],
    )
    assert row(text, "median", "keep-alive").endswith("!")
    assert row(text, "ratio", "keep-alive").endswith("!")
    assert row(text, "goal", "keep-alive").endswith("ERRORS")
    assert text.endswith("! ours, keepalive: 3 read errors (round 1, 4)")


def test_without_a_baseline_there_are_no_ratios_and_no_verdict() -> None:
    text = render_tables(DRIFTING[:3], ["ours"])
    assert "ratio" not in text
    assert row(text, "goal", "keep-alive").endswith("unknown")


def test_columns_are_aligned() -> None:
    lines = align_columns([["a", "bb"], ["long label", "1"], ["x", "12,345"]]).splitlines()
    assert lines == ["a               bb", "─" * 18, "long label       1", "x           12,345"]


def test_every_judged_variant_has_its_goals() -> None:
    judged = replace(sheet("haproxy", "ours", "theirs"), judged=("ours", "theirs", "absent"))
    goals = render([*DRIFTING, outcome("theirs", 1, 50.0)], judged).split("\n\n")[-1].splitlines()[2:]
    assert [(line.split()[2], line.split()[-1]) for line in goals] == [("ours", "met"), ("theirs", "MISSED")]


def test_a_variant_can_have_goals_of_its_own() -> None:
    metric = replace(sheet().metrics[0], goals=(("theirs", Goal(60, at_least=True, ratio=False)),))
    assert [str(metric.goal_of(name)) for name in ("ours", "theirs")] == ["≥ 0.9x", "≥ 60"]
    judged = replace(sheet("haproxy", "ours", "theirs"), judged=("ours", "theirs"), metrics=(metric,))
    goals = render([*DRIFTING, outcome("theirs", 1, 50.0)], judged).split("\n\n")[-1].splitlines()[2:]
    assert [line.split()[-4:] for line in goals] == [["0.90x", "≥", "0.9x", "met"], ["50", "≥", "60", "MISSED"]]


def test_a_variant_that_cannot_be_measured_has_no_column() -> None:
    assert sheet("haproxy", "ours").without({"haproxy"}).variants == ("ours",)


def test_charts_have_complete_titles() -> None:
    outcomes = [*DRIFTING, Outcome("ours", 1, "keepalive", {"keepalive.p99": 2.0})]
    drawn = chart_panels(outcomes, sheet("haproxy", "ours"))
    assert list(drawn) == ["keep-alive requests/s", "keep-alive, p99 ms"]
    assert list(drawn["keep-alive requests/s"]) == ["haproxy", "ours"]
    assert drawn["keep-alive, p99 ms"] == {"ours": 2.0}


def test_the_json_document_is_complete() -> None:
    document = as_document(DRIFTING, sheet("haproxy", "ours"))
    again = json.loads(json.dumps(document))
    assert again["ratios"]["ours"][RATE] == pytest.approx(0.9)
    assert again["medians"]["ours"]["newconn.rate"] is None
    assert len(again["trials"]) == len(DRIFTING)
