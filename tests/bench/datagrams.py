"""What a UDP tunnel costs for each datagram, compared with two plain relays in a row."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from tests.support.ports import free_ports

from .datagram_load import DatagramPair
from .groups import KEY
from .processes import BenchError, clean_environment, find_program, run_and_read, run_process
from .report import Goal, Metric, Sheet
from .section import Sample, Section, Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .processes import RunningProcess

RELAY: Final = "relay"
DATAGRAM: Final = "datagram"
STREAM: Final = "stream"
SIZES: Final = (1200, 100)
SOURCE: Final = Path(__file__).with_name("udp_relay.go")
"""The relay, in Go."""

_BUILD_LIMIT_S: Final = 120.0
_BULK_GOALS: Final = {1200: Goal(1.0, at_least=True), 100: Goal(0.8, at_least=True)}
_DELAY_GOAL: Final = Goal(100.0, ratio=False)


def _metrics(size: int) -> tuple[Metric, ...]:
    return (
        Metric(f"bulk{size}.per_cpu", f"{size:,} bytes, bulk: datagrams per CPU s", 0, _BULK_GOALS[size]),
        Metric(f"bulk{size}.rate", "  datagrams/s", 0, chart_title=f"{size:,} bytes, bulk: datagrams/s"),
        Metric(f"bulk{size}.lost", "  lost, %", 2),
        Metric(f"single{size}.per_cpu", f"{size:,} bytes, sent one by one: datagrams per CPU s", 0),
        Metric(f"single{size}.rate", "  datagrams/s", 0, chart_title=f"{size:,} bytes, one by one: datagrams/s"),
        Metric(f"single{size}.lost", "  lost, %", 2),
        Metric(f"delay{size}.p50", f"{size:,} bytes, added delay of a datagram p50, µs", 0, _DELAY_GOAL),
        Metric(f"delay{size}.round_trip", "  round trip p50, µs", 0, chart_title=f"{size:,} bytes, round trip p50, µs"),
        Metric(f"delay{size}.p99", "  round trip p99, µs", 0, chart_title=f"{size:,} bytes, round trip p99, µs"),
        Metric(f"delay{size}.cpu", "  CPU µs per exchange", 0, chart_title=f"{size:,} bytes, CPU µs per exchange"),
    )


def section(program: Sequence[str]) -> Section:
    """Return the section: two plain relays in a row, and a tunnel with each carrier of datagrams."""
    sheet = Sheet(
        metrics=tuple(metric for size in SIZES for metric in _metrics(size)),
        variants=(RELAY, DATAGRAM, STREAM),
        judged=(DATAGRAM,),
        baseline=RELAY,
        plotted=tuple(f"bulk{size}.per_cpu" for size in SIZES) + tuple(f"delay{size}.p50" for size in SIZES),
    )
    trials = tuple(
        Trial(f"{kind}{size}", name, partial(measure, program, kind, name, size), ("go",) if name == RELAY else ())
        for size in SIZES
        for kind, measure in (("bulk", _measure_bulk), ("single", _measure_bulk), ("delay", _measure_delay))
        for name in sheet.variants
    )
    return Section(name="datagrams", title="Datagrams of UDP", sheet=sheet, trials=trials)


async def _measure_bulk(program: Sequence[str], kind: str, name: str, size: int, seconds: int) -> Sample:
    async with AsyncExitStack() as stack:
        pair, ends = await _start(stack, program, name, size)
        before = _cpu_seconds(ends)
        load = await asyncio.to_thread(pair.send_bulk, size, seconds, in_pieces=kind == "bulk")
        used = _cpu_seconds(ends) - before
        if not load.arrived or not used:
            raise BenchError(f"no datagram of {size} bytes arrived through {name}")
        prefix = f"{kind}{size}"
        return Sample(
            {
                f"{prefix}.per_cpu": load.arrived / used,
                f"{prefix}.rate": load.arrived / load.seconds,
                f"{prefix}.lost": load.lost_percent,
            }
        )


async def _measure_delay(program: Sequence[str], kind: str, name: str, size: int, seconds: int) -> Sample:
    async with AsyncExitStack() as stack:
        (direct_port,) = free_ports(1)
        direct = stack.enter_context(DatagramPair(direct_port, direct_port))
        pair, ends = await _start(stack, program, name, size)
        alone = await asyncio.to_thread(direct.measure_delays, size, 1.0)
        before = _cpu_seconds(ends)
        found = await asyncio.to_thread(pair.measure_delays, size, seconds)
        used = _cpu_seconds(ends) - before
        if not found.count:
            raise BenchError(f"no datagram of {size} bytes was answered through {name}")
        prefix = f"{kind}{size}"
        return Sample(
            {
                f"{prefix}.p50": found.one_way_p50_us - alone.one_way_p50_us,
                f"{prefix}.round_trip": found.round_trip_p50_us - alone.round_trip_p50_us,
                f"{prefix}.p99": found.round_trip_p99_us - alone.round_trip_p99_us,
                f"{prefix}.cpu": used / found.count * 1e6,
            }
        )


def _cpu_seconds(ends: Sequence[RunningProcess]) -> float:
    for end in ends:
        end.check()
    return sum(end.cpu_seconds() for end in ends)


async def _start(
    stack: AsyncExitStack, program: Sequence[str], name: str, size: int
) -> tuple[DatagramPair, list[RunningProcess]]:
    """Start both ends, and exchange datagrams until these pass in the way of this variant."""
    directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
    ports = free_ports(3)
    middle, visitors, target = (f"127.0.0.1:{port}" for port in ports)
    commands: list[tuple[str, ...]]
    if name == RELAY:
        relay = await _build_relay(directory)
        commands = [(relay, visitors, middle), (relay, middle, target)]
    else:
        options = f"log=warn&proto=udp&udp_carrier={name}"
        commands = [
            (*program, f"server://{KEY}@{middle}/{visitors}?{options}&mode=reverse"),
            (*program, f"client://{KEY}@{middle}/{target}?{options}"),
        ]
    ends = [
        await stack.enter_async_context(
            run_process(f"{name}-{end}", command, directory=directory, env=clean_environment())
        )
        for end, command in zip(("ingress", "egress"), commands, strict=True)
    ]
    pair = stack.enter_context(DatagramPair(ports[1], ports[2]))
    await asyncio.to_thread(pair.warm_up, size)
    return pair, ends


async def _build_relay(directory: Path) -> str:
    program = directory / "udp_relay"
    words = (find_program("go") or "go", "build", "-o", str(program), str(SOURCE))
    output = await run_and_read(words, limit_s=_BUILD_LIMIT_S)
    if not program.exists():
        raise BenchError(f"go cannot build {SOURCE.name}: {output.strip()[-200:]}")
    return str(program)
