"""The load: wrk and iperf3, how they are called and what their output says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

from .processes import BenchError, find, output_of

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
        listen 127.0.0.1:{port} backlog=4096;
        default_type text/plain;
        location / { return 200 "hello\\n"; }
    }
}
"""


@dataclass(frozen=True, slots=True)
class Requests:
    """What wrk saw: a count, its rate per second, latencies in milliseconds, and what went wrong, in words."""

    count: int
    rate: float
    p50_ms: float
    p99_ms: float
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bulk:
    """What iperf3's receiver got: Gbit/s and gigabytes (10^9)."""

    gbit_s: float
    gigabytes: float


async def requests(port: int, *, connections: int, seconds: int, close: bool) -> Requests:
    """Requests from that many connections at once; with ``close`` every request is a new connection."""
    header = ("-H", "Connection: close") if close else ()
    url = f"http://127.0.0.1:{port}/"
    command = (_path("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *header, url)
    return parse_wrk(await output_of(command, limit_s=seconds + _GRACE_S))


async def bulk(port: int, *, streams: int, seconds: int) -> Bulk:
    """Bytes from the visitor to the target as fast as they go, on that many streams at once."""
    command = (_path("iperf3"), "-c", "127.0.0.1", "-p", str(port), "-P", str(streams), "-t", str(seconds), "-J")
    return parse_iperf3(await output_of(command, limit_s=seconds + _GRACE_S))


def parse_wrk(text: str) -> Requests:
    """The figures of ``wrk --latency``. Raises BenchError with wrk's last line if there are none."""
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
        errors.append(f"{refused[1]} answers that were not the target's")
    if count[1] == "0":
        errors.append("no request was answered")
    return Requests(
        int(count[1]), float(rate[1]), float(p50[1]) * _MS[p50[2]], float(p99[1]) * _MS[p99[2]], tuple(errors)
    )


def parse_iperf3(text: str) -> Bulk:
    """The figures of ``iperf3 -J``. Raises BenchError with what iperf3 complains of."""
    try:
        document = json.loads(text)
        if complaint := document.get("error"):
            raise BenchError(f"iperf3: {complaint}")
        received = document["end"]["sum_received"]
        return Bulk(float(received["bits_per_second"]) / 1e9, float(received["bytes"]) / 1e9)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BenchError(f"iperf3: {_last_line(text)}") from None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "said nothing")


def _path(tool: str) -> str:
    path = find(tool)
    if path is None:
        raise BenchError(f"{tool} is not installed")
    return path
