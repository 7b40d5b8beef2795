"""How many idle data connections are kept, and what the two ends of a link agree on."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from tunnel.engine.capacity import Demand, dials_to_start, surplus, wanted_idle
from tunnel.model.limits import ConfiguredLimits, Limits, configured_limits, default_limits, negotiate_limits
from tunnel.model.settings import Settings

counts = st.integers(0, 70_000)
seconds = st.floats(0, 1000, allow_nan=False)
bounds = st.builds(ConfiguredLimits, *[st.none() | st.integers(1, 70_000)] * 3)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    low = draw(st.integers(1, 2000))
    return Limits(low, draw(st.integers(low, 70_000)), draw(st.integers(1, 70_000)))


demands = st.builds(
    Demand, rate=st.floats(0, 1e6), dial_s=st.floats(0, 20), burst=st.floats(0, 1e5), seen=counts, since=seconds
)


@given(demands, limits())
def test_the_wanted_number_stays_within_the_limits(demand: Demand, held: Limits) -> None:
    assert held.pool_min <= wanted_idle(demand, held) <= held.pool_max
    assert wanted_idle(Demand(), held) == held.pool_min


@given(demands, limits(), st.floats(0, 1e4), st.floats(0, 10))
def test_more_visitors_or_slower_dials_never_reduce_the_wanted_number(
    demand: Demand, held: Limits, more: float, slower: float
) -> None:
    busier = Demand(demand.rate + more, demand.dial_s + slower, demand.burst)
    assert wanted_idle(busier, held) >= wanted_idle(demand, held)


@given(counts, counts, counts, counts, st.integers(1, 1000), counts)
def test_dials_fill_the_pool_and_never_exceed_a_limit(
    wanted: int, idle: int, dialing: int, queued: int, max_dials: int, pool_max: int
) -> None:
    dials = dials_to_start(
        wanted=wanted, idle=idle, dialing=dialing, queued=queued, max_dials=max_dials, pool_max=pool_max
    )
    assert dials >= 0
    assert dials == 0 or dialing + dials <= max_dials
    assert dials == 0 or idle + dialing + dials <= min(wanted + queued, pool_max)
    if idle + dialing < min(wanted + queued, pool_max) and dialing < max_dials:
        assert dials > 0


@given(counts, counts)
def test_closing_the_surplus_leaves_more_than_is_wanted(wanted: int, idle: int) -> None:
    closed = surplus(wanted=wanted, idle=idle)
    assert 0 <= closed <= idle
    assert closed == 0 or idle - closed > wanted
    assert surplus(wanted=wanted, idle=idle - closed) == 0


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 5)), max_size=30))
def test_the_rate_is_never_negative_nor_above_the_measured_rate(steps: list[tuple[int, float]]) -> None:
    demand, now = Demand(), 0.0
    for count, pause in steps:
        now += pause
        demand = demand.visitors(count, now)
        assert 0 <= demand.rate <= max(1, sum(c for c, _ in steps)) / 0.1 + 1e-6


def test_a_burst_raises_the_rate_at_once_and_the_rate_falls_slowly() -> None:
    held = Limits(8, 1024, 1024)
    demand = Demand(since=0.0).dialed(0.05)
    demand = demand.visitors(100, 0.1)
    assert demand.rate >= 900
    at_peak = wanted_idle(demand, held)
    assert at_peak >= 90
    after_ten = demand.visitors(0, 10.1)
    assert 0.4 < after_ten.rate / demand.rate < 0.6
    assert wanted_idle(after_ten, held) > at_peak // 3
    assert wanted_idle(demand.visitors(0, 200.0), held) <= held.pool_min + 1


def test_one_visitor_after_an_idle_time_is_no_burst() -> None:
    assert Demand(since=0.0).visitors(1, 1000.0).rate == 0


@given(st.floats(0, 20), st.floats(0, 20))
def test_the_duration_of_dials_is_smoothed(first: float, second: float) -> None:
    assume(first > 0)
    smoothed = Demand().dialed(first).dialed(second).dial_s
    assert min(first, second) - 1e-9 <= smoothed <= max(first, second) + 1e-9


@given(bounds, bounds, limits())
def test_both_ends_compute_the_same_limits(one: ConfiguredLimits, two: ConfiguredLimits, defaults: Limits) -> None:
    agreed = negotiate_limits(one, two, defaults)
    assert agreed == negotiate_limits(two, one, defaults)
    assert agreed.pool_min <= agreed.pool_max
    for configured in (one, two):
        assert configured.visitors is None or agreed.visitors <= configured.visitors
        assert configured.pool_max is None or agreed.pool_max <= configured.pool_max
        assert configured.pool_min is None or agreed.pool_min >= min(configured.pool_min, agreed.pool_max)


def test_a_limit_set_at_one_end_holds_for_both_and_the_default_holds_otherwise() -> None:
    defaults = default_limits(Settings())
    assert negotiate_limits(ConfiguredLimits(), ConfiguredLimits(), defaults) == defaults == Limits(8, 1024, 1024)
    configured = configured_limits(Settings(max_pool_capacity=4, explicit=frozenset({"max_pool_capacity"})))
    assert configured == ConfiguredLimits(None, 4, None)
    assert negotiate_limits(ConfiguredLimits(), configured, defaults) == Limits(4, 4, 1024)


def test_one_end_alone_cannot_raise_a_maximum_above_the_built_in_one() -> None:
    defaults, greedy = default_limits(Settings()), ConfiguredLimits(1 << 31, (1 << 32) - 2, (1 << 32) - 2)
    assert negotiate_limits(ConfiguredLimits(), greedy, defaults) == Limits(1024, 1024, 1024)
    both = negotiate_limits(ConfiguredLimits(pool_max=2000, visitors=3000), greedy, defaults)
    assert (both.pool_max, both.visitors) == (2000, 3000)


def test_as_many_connections_are_kept_as_visitors_arrived_at_one_moment() -> None:
    held = Limits(8, 1024, 1024)
    demand = Demand(since=0.0).dialed(0.0001).visitors(32, 0.01)
    assert wanted_idle(demand, held) == 8 + 32
    steady = Demand(since=0.0).dialed(0.0001)
    for n in range(100):
        steady = steady.visitors(1, n / 100)
    assert wanted_idle(steady, held) <= 8 + 1
    assert 8 + 14 < wanted_idle(demand.visitors(0, 10.0), held) < 8 + 18
    assert wanted_idle(demand.visitors(0, 200.0), held) <= held.pool_min + 1
