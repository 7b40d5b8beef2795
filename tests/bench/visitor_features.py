"""Measures the cost of features for visitors: allow list, access log, history, list of visitors.

Two daemons run side by side, one with the features and one without, and the loads alternate between them.
"""

from __future__ import annotations

import asyncio
import statistics
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from orchestrator.client import ApiClient
from tests.support.ports import free_ports

from . import loads
from .daemons import BenchDaemon, start_daemon, wait_all_up
from .groups import KEY
from .report import Goal, Metric, Sheet
from .section import Sample, Section, Trial
from .targets import nginx, target
from .turns import measure_ratios

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

NETWORKS: Final = 10_000

_START_LIMIT_S: Final = 30.0
_CONNECTIONS: Final = 32
_LIST_INTERVAL_S: Final = 1.0  # the screen of visitors lists them as often
_FEATURES: Final = "features"
_COSTS: Final = (
    Metric("features.new_x", "new connections/s, ratio to none", 2, Goal(0.95, at_least=True, ratio=False)),
    Metric("features.new_spread", "  spread of the turns", 2),
    Metric("features.kept_x", "requests/s on kept connections, ratio", 2, Goal(0.97, at_least=True, ratio=False)),
    Metric("features.kept_spread", "  spread of the turns", 2),
    Metric("features.bulk_x", "bulk Gbit/s, ratio", 2, Goal(0.97, at_least=True, ratio=False)),
    Metric("features.bulk_spread", "  spread of the turns", 2),
)


def section(program: Sequence[str]) -> Section:
    """Return the section: a tunnel with the features, compared with the same tunnel without them."""
    variant = f"{NETWORKS:,} networks, access log, history, list"
    sheet = Sheet(metrics=_COSTS, variants=(variant,), judged=(variant,), plotted=("features.new_x",))
    trial = Trial(_FEATURES, variant, partial(_measure_features, tuple(program)), ("nginx", "wrk", "iperf3"))
    return Section(
        name=_FEATURES, title="With an allow list, access log, history and list of visitors", sheet=sheet,
        trials=(trial,),
    )  # fmt: skip


@asynccontextmanager
async def start_pair(
    program: Sequence[str], directory: Path, target_port: int, *,
    options: Mapping[str, Any], supervisor: Mapping[str, Any], tls: int = 0,
) -> AsyncIterator[tuple[BenchDaemon, int]]:  # fmt: skip
    """Run a server with these options and its client, each in a daemon; yield the server and its visitors' port."""
    directory.mkdir()  # noqa: ASYNC240  before anything is measured
    tunnel_port, visitor_port = free_ports(2)
    server: Mapping[str, Any] = {
        "t": {"url": f"server://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{visitor_port}?tls={tls}", **options}
    }
    client = {"t": f"client://{KEY}@127.0.0.1:{tunnel_port}/127.0.0.1:{target_port}?tls={tls}"}
    off = {"history": "0"}
    async with (
        start_daemon(program, "server", directory, server, supervisor) as one,
        start_daemon(program, "client", directory, client, off) as other,
    ):
        await wait_all_up([one, other], 1, within=_START_LIMIT_S)
        yield one, visitor_port


def allow_list(count: int) -> list[str]:
    """Return networks that do not touch each other, the one of the visitors last."""
    return [*(f"10.{n // 128 % 256}.{n % 128 * 2}.0/24" for n in range(count - 1)), "127.0.0.0/8"]


async def _list_visitors(daemon: BenchDaemon) -> None:
    client = ApiClient(daemon.socket)
    while True:
        await asyncio.sleep(_LIST_INTERVAL_S)
        await asyncio.to_thread(client.visitors)


async def _measure_features(program: Sequence[str], seconds: int) -> Sample:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        web_port, bulk_port = free_ports(2)
        await stack.enter_async_context(nginx(web_port, directory))
        await stack.enter_async_context(
            target(bulk_port, directory, "iperf3", "-s", "-B", "127.0.0.1", "-p", str(bulk_port))
        )
        found: dict[str, list[float]] = {"new": [], "kept": [], "bulk": []}
        errors: list[str] = []
        for kind, ratios in found.items():
            async with AsyncExitStack() as pairs:
                behind = bulk_port if kind == "bulk" else web_port
                start = partial(start_pair, program, target_port=behind)
                plain = start(directory=directory / f"{kind}-plain", options={}, supervisor={"history": "0"})
                rich = start(
                    directory=directory / f"{kind}-rich",
                    options={"allow": ",".join(allow_list(NETWORKS))},
                    supervisor={"access_log": str(directory / f"{kind}.log")},
                )
                _, plain_port = await pairs.enter_async_context(plain)
                daemon, rich_port = await pairs.enter_async_context(rich)
                load = partial(_load, kind, seconds=seconds, errors=errors)
                rich_load = partial(_load_and_list, daemon, partial(load, rich_port), errors)
                ratios.extend(await measure_ratios(partial(load, plain_port), rich_load))
        values = {f"features.{kind}_x": statistics.median(ratios) for kind, ratios in found.items()}
        spreads = {f"features.{kind}_spread": (max(some) - min(some)) / 2 for kind, some in found.items()}
        return Sample({**values, **spreads}, tuple(errors))


async def _load_and_list(daemon: BenchDaemon, load: Callable[[], Awaitable[float]], errors: list[str]) -> float:
    listing = asyncio.create_task(_list_visitors(daemon))
    rate = await load()
    errors += await _stop([listing])
    return rate


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> list[str]:
    """Cancel tasks that run until then. Returns why others have ended before: the measurement lacked their load."""
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return [repr(end) for end in ends if not isinstance(end, asyncio.CancelledError)]


async def _load(kind: str, port: int, seconds: int, errors: list[str]) -> float:
    if kind == "bulk":
        return (await loads.bulk(port, streams=1, seconds=seconds)).gbit_s
    load = await loads.requests(port, connections=_CONNECTIONS, seconds=seconds, close=kind == "new")
    errors += load.errors
    return load.rate
