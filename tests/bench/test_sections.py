import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench import contenders as contender_list
from tests.bench import (
    datagrams,
    fleet,
    gateway,
    groups,
    rate_limits,
    results,
    screen,
    side_by_side,
    tunnels,
    visitor_features,
    watched,
    workers,
)
from tests.bench.daemons import cpu_seconds, load_tunnels, start_pairs
from tests.bench.processes import find_program
from tests.bench.report import Metric, Outcome, Sheet
from tests.bench.section import Sample, Section, Trial
from tests.bench.targets import echo, nginx
from tests.bench.tunnels import _visits
from tui.screens.main import FILTER_HINT

PROGRAM = (sys.executable, "-m", "orchestrator.cli")
SECTIONS = [
    side_by_side.contenders(
        [contender_list.direct(), contender_list.haproxy(), contender_list.ours()], side_by_side.KINDS
    ),
    side_by_side.tls(None),
    side_by_side.mux(None),
    *(
        make(PROGRAM)
        for make in (
            workers.section,
            watched.section,
            tunnels.section,
            gateway.section,
            groups.section,
            groups.link_section,
            visitor_features.section,
            rate_limits.section,
            datagrams.section,
            screen.section,
            fleet.section,
        )
    ),
]
every_section = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)


@every_section
def test_every_metric_has_a_trial_and_every_trial_has_metrics(section: Section) -> None:
    sheet = section.sheet
    assert {metric.measurement for metric in sheet.metrics} == {trial.measurement for trial in section.trials}
    assert {trial.variant for trial in section.trials} == set(sheet.variants)
    keys = [metric.key for metric in sheet.metrics]
    assert len(keys) == len(set(keys))
    assert set(sheet.plotted) <= set(keys)
    assert set(sheet.judged) <= set(sheet.variants)
    assert sheet.baseline is None or sheet.baseline in sheet.variants
    drawn = [metric.title for metric in sheet.metrics if metric.key in sheet.plotted]
    assert len(drawn) == len(set(drawn)), "two charts have the same title"


def test_sections_have_unique_names_and_titles() -> None:
    for what in ("name", "title"):
        assert len({getattr(section, what) for section in SECTIONS}) == len(SECTIONS)


async def nothing(seconds: int) -> Sample:
    return Sample({})


def test_the_first_variant_changes_from_round_to_round() -> None:
    trials = [Trial(kind, name, nothing) for kind in ("a", "b") for name in ("x", "y", "z")]
    turns = [[t.measurement + t.variant for t in command._rotated(trials, number)] for number in (1, 2, 4)]
    assert turns[0] == turns[2] == ["ax", "ay", "az", "bx", "by", "bz"]
    assert turns[1] == ["ay", "az", "ax", "by", "bz", "bx"]


def test_a_trial_whose_program_is_missing_is_skipped_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    sheet = Sheet(metrics=(Metric("a.b", "b", 0),), variants=("x", "y"))
    trials = (Trial("a", "x", nothing), Trial("a", "y", nothing, ("no-such-program",)))
    left = command._without_missing_tools(Section(name="s", title="S", sheet=sheet, trials=trials))
    assert left.trials == trials[:1]
    assert left.sheet.variants == ("x",)
    assert "SKIPPED s, a of y: no-such-program not installed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--only", "nonsense"], ["--rounds", "0"], ["--seconds", "x"]])
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert "is not" in capsys.readouterr().err


def test_an_observer_is_compared_within_each_turn() -> None:
    alone = [watched.LoadFigures(100, 2, 1e-6), watched.LoadFigures(50, 4, 2e-6), watched.LoadFigures(200, 1, 1e-6)]
    observed = [
        watched.LoadFigures(90, 3, 1e-6),
        watched.LoadFigures(40, 4, 4e-6),
        watched.LoadFigures(200, 2, 3e-6, ("refused",)),
    ]
    sample = watched.compare_loads("kind", alone, observed)
    assert sample.values == pytest.approx(
        {"kind.rate": 90, "kind.rate_x": 0.9, "kind.p99": 3, "kind.p99_x": 1.5, "kind.cpu": 3, "kind.cpu_x": 2}
    )
    assert sample.errors == ("refused",)


def test_the_allow_list_has_as_many_networks_as_are_wanted_and_the_visitors_are_in_one() -> None:
    networks = [ip_network(text) for text in visitor_features.allow_list(visitor_features.NETWORKS)]
    assert len({*networks}) == visitor_features.NETWORKS
    assert ip_address("127.0.0.1") in networks[-1]


# --- stored results --------------------------------------------------------------------------------------------------

SHEET = Sheet(metrics=(Metric("a.b", "visitors/s", 0),), variants=("x", "y"), plotted=("a.b",))
ONE, OTHER = (Section(name=name, title=name.title(), sheet=SHEET, trials=()) for name in ("one", "other"))
FACTS = {"date": "2026-01-01", "cores": "2 x some"}


def outcomes(rate: float) -> list[Outcome]:
    return [Outcome("x", 1, "a", {"a.b": rate}), Outcome("y", 1, "a", {"a.b": 2 * rate})]


def test_a_run_replaces_its_own_sections_and_leaves_the_others(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    order = ["Other", "One"]
    assert results.write(tmp_path, {ONE: outcomes(111), OTHER: outcomes(222)}, FACTS, order) is None
    results.write(tmp_path, {ONE: outcomes(333)}, {**FACTS, "date": "2027-01-01"}, order)
    page = (tmp_path / results.PAGE).read_text()
    assert [line for line in page.splitlines() if line.startswith("#")] == ["# Results", "## Other", "## One"]
    assert "333" in page
    assert "222" in page
    assert "111" not in page
    assert page.count("date: 2026-01-01") == page.count("date: 2027-01-01") == 1
    assert "![One](one.svg)" in page
    assert "visitors/s" in (tmp_path / "one.svg").read_text()
    again = results.merge_page(page, {}, order)
    assert again == page, "sections that did not run have changed"


# --- small real runs -------------------------------------------------------------------------------------------------


async def test_a_daemon_with_both_ends_serves_visitors_of_all_its_tunnels() -> None:
    async with start_pairs(PROGRAM, 2, {"workers": 1}) as (daemon, made, target_port, _):
        async with echo(target_port):
            served, failed = await _visits(made.visitor_ports, 2.5)
        assert served > 2
        assert failed == 0
        assert cpu_seconds([daemon]) > 0
        assert daemon.process.descriptors() > 2 * (8 + 9)


@pytest.mark.skipif(not (find_program("wrk") and find_program("nginx")), reason="needs nginx and wrk")
async def test_loads_of_several_tunnels_are_added_up() -> None:
    async with start_pairs(PROGRAM, 2) as (_, made, target_port, directory), nginx(target_port, directory):
        load = await load_tunnels(made.visitor_ports, connections=2, seconds=1, close=False)
    assert load.count > 2
    assert not [error for error in load.errors if "timeout" not in error], (
        "wrk counts a wait of two seconds as a timeout"
    )


def test_the_fleet_section_waits_for_words_that_the_dashboard_shows() -> None:
    assert fleet.FILTER_HINT in FILTER_HINT
