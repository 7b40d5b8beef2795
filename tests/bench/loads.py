"""The load generators wrk and iperf3: their command lines and the parsers of their output."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from .processes import BenchError, find_program, run_and_read

_GRACE_S: Final = 15.0
_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}

NGINX: Final = """\
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/nginx.log warn;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {
{listens}
        default_type text/plain;
        location / { return 200 "hello\\n"; }
    }
}
"""


@dataclass(frozen=True, slots=True)
class RequestFigures:
    """Figures of wrk: count, rate per second, latencies in milliseconds, and errors as sentences."""

    count: int
    rate: float
    p50_ms: float
    p99_ms: float
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BulkFigures:
    """Figures of the receiver of iperf3: Gbit/s, gigabytes (10^9 bytes), and the Gbit/s of each stream."""

    gbit_s: float
    gigabytes: float
    streams_gbit_s: tuple[float, ...] = ()


async def requests(port: int, *, connections: int, seconds: int, close: bool) -> RequestFigures:
    """Send requests on ``connections`` connections at once; with ``close`` each request opens a new connection."""
    header = ("-H", "Connection: close") if close else ()
    url = f"http://127.0.0.1:{port}/"
    command = (_path("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *header, url)
    return parse_wrk(await run_and_read(command, limit_s=seconds + _GRACE_S))


async def bulk(port: int, *, streams: int, seconds: int, omitted_s: int = 0, buffer: str = "128K") -> BulkFigures:
    """Send bulk data from visitor to target on ``streams`` streams at once, each ``buffer`` bytes at a time.

    The first ``omitted_s`` seconds are not counted.
    """
    numbers = ("-P", str(streams), "-t", str(seconds), "-O", str(omitted_s), "-l", buffer)
    command = (_path("iperf3"), "-c", "127.0.0.1", "-p", str(port), *numbers, "-J")
    return parse_iperf3(await run_and_read(command, limit_s=seconds + omitted_s + _GRACE_S))


def parse_wrk(text: str) -> RequestFigures:
    """Parse the output of ``wrk --latency``. Raises BenchError with its last line if there are no figures."""
    count = re.search(r"(\d+) requests in ", text)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", text)
    p50, p99 = (re.search(rf"^\s+{rank}%\s+([\d.]+)([a-z]+)\s*$", text, re.MULTILINE) for rank in (50, 99))
    if not (count and rate and p50 and p99):
        raise BenchError(f"wrk: {_last_line(text)}")
    errors = []
    if socket_errors := re.search(r"Socket errors: (.*)", text):
        kinds = (kind.rpartition(" ") for kind in socket_errors[1].split(","))
        errors += [f"{number} {kind.strip()} errors" for kind, _, number in kinds if number != "0"]
    if refused := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        errors.append(f"{refused[1]} responses that were not from the target")
    if count[1] == "0":
        errors.append("no request was answered")
    return RequestFigures(
        int(count[1]), float(rate[1]), float(p50[1]) * _MS[p50[2]], float(p99[1]) * _MS[p99[2]], tuple(errors)
    )


def parse_iperf3(text: str) -> BulkFigures:
    """Parse the output of ``iperf3 -J``. Raises BenchError with the error of iperf3."""
    try:
        document = json.loads(text)
        if error_text := document.get("error"):
            raise BenchError(f"iperf3: {error_text}")
        received = document["end"]["sum_received"]
        streams = (stream["receiver"]["bits_per_second"] / 1e9 for stream in document["end"]["streams"])
        return BulkFigures(float(received["bits_per_second"]) / 1e9, float(received["bytes"]) / 1e9, tuple(streams))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BenchError(f"iperf3: {_last_line(text)}") from None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def _path(tool: str) -> str:
    path = find_program(tool)
    if path is None:
        raise BenchError(f"{tool} is not installed")
    return path
