"""Rates of tunnels: means between readings of the counters, whatever reads them and however often."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.status.json_types import TrafficRatesJson
from orchestrator.supervisor.runner import stopped_snapshot
from orchestrator.supervisor.traffic_rates import MAX_SPAN_S, MIN_SPAN_S, NO_RATES, TrafficMeter, TrafficSampler
from tests.orchestrator.api_harness import run_api
from tests.support.waiting import wait_until_async
from tunnel.model.options import make_spec
from tunnel.model.snapshot import BytesView, TrafficReading
from tunnel.model.state import State
from tunnel.model.url import parse_url

FILE = "version: 1\ntunnels: {web: 'server://127.0.0.1:1001/127.0.0.1:8001'}\n"
SPEC = make_spec(parse_url("server://127.0.0.1:1001/127.0.0.1:8001"))
EMPTY = stopped_snapshot("web", SPEC)


class Metered:
    """One tunnel whose counters and clock a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.carried_in = 0
        self.visitors = 0
        self.is_present = True
        self.readings = 0
        self.meter = TrafficMeter(lambda: self.now)
        self.sampler = TrafficSampler(self, self.meter)

    def read_traffic(self, name: str) -> TrafficReading:
        if not self.is_present:
            raise LookupError(name)
        self.readings += 1
        return TrafficReading(self.carried_in, 0, self.visitors)

    def rate_in(self) -> int | None:
        reading = self.read_traffic("web")
        connections = replace(EMPTY.connections, active=reading.active)
        seen = replace(EMPTY, bytes=BytesView(from_visitors=reading.from_visitors), connections=connections)
        rates = self.meter.add_rates("web", seen).rates
        return None if rates is None else rates.in_bps


def test_a_tunnel_that_has_carried_nothing_has_rates_of_zero_from_the_first_reading_on() -> None:
    assert Metered().rate_in() == 0


def test_rates_of_a_tunnel_are_unknown_until_its_counters_were_read_twice() -> None:
    metered = Metered()
    metered.carried_in = 1000
    assert metered.rate_in() is None
    metered.now, metered.carried_in = metered.now + 2, 3000
    assert metered.rate_in() == 8 * 2000 / 2


@given(st.lists(st.tuples(st.floats(0.01, MAX_SPAN_S - MIN_SPAN_S), st.integers(0, 10**9)), max_size=30))
def test_each_rate_is_the_mean_since_the_rate_before_and_none_covers_less_than_a_second(
    steps: list[tuple[float, int]],
) -> None:
    metered = Metered()
    metered.rate_in()
    changes = [(metered.now, 0)]
    for span_s, carried in steps:
        metered.now += span_s
        metered.carried_in += carried
        rate = metered.rate_in()
        if metered.now - changes[-1][0] >= MIN_SPAN_S:
            changes.append((metered.now, metered.carried_in))
        means = [8 * (b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(changes[-2:])]
        assert rate == pytest.approx(means[0] if means else 0, abs=1)


def test_a_mean_over_a_long_time_is_no_rate_unless_nothing_was_carried() -> None:
    metered = Metered()
    metered.rate_in()
    metered.now += 10 * MAX_SPAN_S
    assert metered.rate_in() == 0
    metered.now, metered.carried_in = metered.now + MAX_SPAN_S + 1, 10**6
    assert metered.rate_in() is None


def test_counters_that_fall_make_no_rate() -> None:
    metered = Metered()
    metered.carried_in = 1000
    metered.rate_in()
    metered.now, metered.carried_in = metered.now + 2, 0
    assert metered.rate_in() is None


async def test_the_sampler_reads_a_busy_tunnel_until_it_is_quiet() -> None:
    metered = Metered()
    metered.sampler.mark("web")
    metered.visitors, metered.carried_in = 1, 500
    await metered.sampler.sample()
    for _ in range(2):
        metered.now, metered.carried_in = metered.now + 2, metered.carried_in + 2000
        await metered.sampler.sample()
    assert metered.rate_in() == 8000
    metered.visitors = 0
    for _ in range(4):
        metered.now += 2
        await metered.sampler.sample()
    assert metered.readings == 3 + 1 + 1, "a quiet tunnel costs nothing"
    metered.is_present = False
    metered.sampler.mark("web")
    await metered.sampler.sample()
    metered.meter.forget("web")
    metered.is_present = True
    assert metered.rate_in() is None, "a tunnel that is gone is forgotten"


async def test_the_sampler_leaves_out_what_another_reader_has_just_measured() -> None:
    metered = Metered()
    metered.sampler.mark("web")
    metered.visitors = 1
    metered.rate_in()
    metered.now += 0.9
    await metered.sampler.sample()
    assert metered.readings == 1
    metered.now += 2
    await metered.sampler.sample()
    assert metered.readings == 2


async def test_traffic_after_a_long_silence_is_measured_from_its_begin() -> None:
    metered = Metered()
    metered.rate_in()
    metered.now += 1000
    await metered.sampler.sample()
    metered.now, metered.carried_in, metered.visitors = metered.now + 2, 5000, 1
    metered.sampler.mark("web")
    assert metered.rate_in() == 8 * 5000 / 2


def test_the_snapshot_of_a_tunnel_at_rest_stays_the_same_object() -> None:
    now = itertools.count(100.0, 0.6)
    meter = TrafficMeter(lambda: next(now))
    first = meter.add_rates("web", EMPTY)
    assert first.rates == NO_RATES
    assert all(meter.add_rates("web", EMPTY) is first for _ in range(5))


async def test_a_removed_tunnel_leaves_nothing_in_the_meter(tmp_path: Path) -> None:
    async with run_api(tmp_path, FILE) as harness:
        await wait_until_async(lambda: harness.state("web") is State.UP)
        meter = harness.supervisor._registry.traffic_meter
        assert {"web"} == meter._measured.keys() == meter._rated.keys()
        harness.file.write_text("version: 1\ntunnels: {other: 'server://127.0.0.1:1002/127.0.0.1:8001'}\n")
        await harness.supervisor.reload()
        await wait_until_async(lambda: harness.state("other") is State.UP)
        await wait_until_async(lambda: "web" not in harness.supervisor.names())
        assert {"other"} == meter._measured.keys() == meter._rated.keys()


async def test_rates_in_the_status_follow_the_traffic_and_fall_to_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_api(tmp_path, FILE) as harness:
        await wait_until_async(lambda: harness.state("web") is State.UP)
        monkeypatch.setattr("orchestrator.supervisor.traffic_rates.MIN_SPAN_S", 1e-6)

        async def shown() -> TrafficRatesJson:
            rates: TrafficRatesJson = (await harness.request("GET", "/v1/status")).json["tunnels"][0]["rates"]
            return rates

        assert await shown() == {"in_bps": 0, "out_bps": 0}
        harness.engines.last("web").served = 40
        present = await shown()
        assert present["in_bps"] > 0
        assert present["out_bps"] == 0
        assert await shown() == {"in_bps": 0, "out_bps": 0}
