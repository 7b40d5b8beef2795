import json

import pytest

from tests.bench.loads import Bulk, parse_iperf3, parse_wrk
from tests.bench.processes import BenchError

WRK = """\
Running 5s test @ http://127.0.0.1:11000/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.51ms    1.02ms  31.07ms   91.11%
    Req/Sec    25.71k     1.50k   28.02k    70.00%
  Latency Distribution
     50%  {p50}
     75%    2.80ms
     90%    3.21ms
     99%  {p99}
  {count} requests in 5.01s, 20.11MB read
{errors}Requests/sec:  25533.17
Transfer/sec:      4.01MB
"""


def wrk(*, p50: str = "2.34ms", p99: str = "5.60ms", count: int = 127921, errors: str = "") -> str:
    return WRK.format(p50=p50, p99=p99, count=count, errors=errors)


def test_wrk_figures() -> None:
    load = parse_wrk(wrk())
    assert (load.count, load.rate, load.p50_ms, load.p99_ms, load.errors) == (127921, 25533.17, 2.34, 5.6, ())


@pytest.mark.parametrize(("text", "ms"), [("850.00us", 0.85), ("2.34ms", 2.34), ("1.20s", 1200.0), ("1.50m", 90_000.0)])
def test_wrk_units(text: str, ms: float) -> None:
    assert parse_wrk(wrk(p99=text)).p99_ms == pytest.approx(ms)


def test_wrk_errors_are_named_and_zeros_are_not() -> None:
    errors = "  Socket errors: connect 0, read 12, write 0, timeout 3\n  Non-2xx or 3xx responses: 7\n"
    assert parse_wrk(wrk(errors=errors)).errors == (
        "12 read errors",
        "3 timeout errors",
        "7 answers that were not the target's",
    )


def test_no_answer_at_all_is_an_error() -> None:
    assert parse_wrk(wrk(count=0, p50="0.00us", p99="0.00us")).errors == ("no request was answered",)


@pytest.mark.parametrize(
    ("text", "said"),
    [("unable to connect to 127.0.0.1:1 Connection refused\n\n", "Connection refused"), ("", "said nothing")],
)
def test_wrk_without_figures(text: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        parse_wrk(text)


def test_iperf3_figures_are_the_receivers() -> None:
    end = {
        "sum_sent": {"bits_per_second": 9e9, "bytes": 6_000_000_000},
        "sum_received": {"bits_per_second": 8.5e9, "bytes": 5_500_000_000},
    }
    assert parse_iperf3(json.dumps({"start": {}, "end": end})) == Bulk(8.5, 5.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"end": {}, "error": "the server is busy"}', "the server is busy"),
        ('{"end": {"streams": []}}', "streams"),
        ("iperf3: exiting\n", "exiting"),
        ("[]", r"\[\]"),
        ("", "said nothing"),
    ],
)
def test_iperf3_without_figures(text: str, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        parse_iperf3(text)
