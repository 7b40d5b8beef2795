import json

import pytest

from tests.bench.loads import BulkFigures, parse_iperf3, parse_wrk
from tests.bench.processes import BenchError

WRK = """\
RunningProcess 5s test @ http://127.0.0.1:11000/
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


def test_the_figures_of_wrk_are_parsed() -> None:
    load = parse_wrk(wrk())
    assert (load.count, load.rate, load.p50_ms, load.p99_ms, load.errors) == (127921, 25533.17, 2.34, 5.6, ())


@pytest.mark.parametrize(("text", "ms"), [("850.00us", 0.85), ("2.34ms", 2.34), ("1.20s", 1200.0), ("1.50m", 90_000.0)])
def test_the_units_of_wrk_are_converted_to_milliseconds(text: str, ms: float) -> None:
    assert parse_wrk(wrk(p99=text)).p99_ms == pytest.approx(ms)


def test_only_wrk_errors_above_zero_are_reported() -> None:
    errors = "  Socket errors: connect 0, read 12, write 0, timeout 3\n  Non-2xx or 3xx responses: 7\n"
    assert parse_wrk(wrk(errors=errors)).errors == (
        "12 read errors",
        "3 timeout errors",
        "7 responses that were not from the target",
    )


def test_no_response_at_all_is_an_error() -> None:
    assert parse_wrk(wrk(count=0, p50="0.00us", p99="0.00us")).errors == ("no request was answered",)


@pytest.mark.parametrize(
    ("text", "message"),
    [("unable to connect to 127.0.0.1:1 Connection refused\n\n", "Connection refused"), ("", "no output")],
)
def test_wrk_output_without_figures_is_an_error_with_its_last_line(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        parse_wrk(text)


def test_the_figures_of_iperf3_are_those_of_the_receiver() -> None:
    end = {
        "sum_sent": {"bits_per_second": 9e9, "bytes": 6_000_000_000},
        "sum_received": {"bits_per_second": 8.5e9, "bytes": 5_500_000_000},
        "streams": [{"sender": {}, "receiver": {"bits_per_second": rate}} for rate in (5e9, 3.5e9)],
    }
    assert parse_iperf3(json.dumps({"start": {}, "end": end})) == BulkFigures(8.5, 5.5, (5.0, 3.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"end": {}, "error": "the server is busy"}', "the server is busy"),
        ('{"end": {"streams": []}}', "streams"),
        ("iperf3: exiting\n", "exiting"),
        ("[]", r"\[\]"),
        ("", "no output"),
    ],
)
def test_iperf3_output_without_figures_is_an_error_with_its_last_line(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        parse_iperf3(text)
