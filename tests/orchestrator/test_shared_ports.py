"""Services of one tunnel port in a running daemon: reloads touch only what the file changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from orchestrator.config.load import load
from orchestrator.supervisor.reload import ReloadResult
from orchestrator.supervisor.supervisor import Supervisor
from orchestrator.workers.pool import WorkerPool
from tests.support.engine_parts import pem, shared_parts
from tests.support.ports import free_ports
from tests.support.scale import GUARD_S
from tests.support.waiting import wait_until_async
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.model.address import Address
from tunnel.model.spec import Mode, Role, TunnelSpec
from tunnel.model.state import State

KEY = "npk_ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1-f4CBgoNtm-wx"


class GatewayHarness:
    """A supervisor with servers on one tunnel port, and another one with their clients."""

    def __init__(self, folder: Path, shared: EngineContext) -> None:
        self.tunnel, self.target, *self.visitors = free_ports(7)
        self.folder = folder
        self._factory = partial(create_engine, context=shared)
        self.ends: dict[str, Supervisor] = {}
        self.lives: list[asyncio.Task[None]] = []

    def server(self, number: int, service: str = "", more: str = "") -> str:
        where = f"127.0.0.1:{self.tunnel}/127.0.0.1:{self.visitors[number]}"
        return f"server://{KEY}@{where}?service={service or f's{number}'}{more}"

    def client(self, number: int) -> str:
        return f"client://{KEY}@127.0.0.1:{self.tunnel}/127.0.0.1:{self.target}?service=s{number}"

    def write(self, end: str, tunnels: dict[str, str]) -> Path:
        file = self.folder / f"{end}.yaml"
        file.write_text("version: 1\ntunnels:\n" + "".join(f"  {name}: {url}\n" for name, url in tunnels.items()))
        return file

    def start(self, end: str, tunnels: dict[str, str]) -> None:
        manifest = load(self.write(end, tunnels), {})
        factory = lambda name, spec, sink: self._factory(name, spec, sink=sink)  # noqa: E731  an engine factory
        self.ends[end] = Supervisor(manifest, engine_factory=factory)
        self.lives.append(asyncio.create_task(self.ends[end].run()))

    async def reload(self, end: str, tunnels: dict[str, str]) -> ReloadResult:
        self.write(end, tunnels)
        return await self.ends[end].reload()

    async def wait_up(self, end: str, *names: str) -> None:
        def are_up() -> bool:
            return all(self.ends[end].snapshot(name).state is State.UP for name in names)

        await wait_until_async(are_up, f"{', '.join(names)} are up")

    def links(self, *names: str) -> list[str | None]:
        return [self.ends["server"].snapshot(name).link for name in names]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    async with shared_parts() as shared:
        harness = GatewayHarness(tmp_path, shared)
        harness.start("server", {f"s{number}": harness.server(number) for number in range(3)})
        harness.start("client", {f"c{number}": harness.client(number) for number in range(5)})
        await harness.wait_up("server", "s0", "s1", "s2")
        await harness.wait_up("client", "c0", "c1", "c2")
        yield harness
        for end in harness.ends.values():
            end.close()
        async with asyncio.timeout(GUARD_S):
            await asyncio.gather(*harness.lives)


async def test_services_are_added_removed_and_restarted_without_touching_the_others(gateway: GatewayHarness) -> None:
    before = gateway.links("s1", "s2")
    files = {f"s{number}": gateway.server(number) for number in (1, 2, 3)}  # the first one is gone, another is there
    result = await gateway.reload("server", files)
    assert {name: one.action for name, one in result.results.items()} == {
        "s0": "removed", "s1": "unchanged", "s2": "unchanged", "s3": "added",
    }  # fmt: skip
    await gateway.wait_up("server", "s3")
    result = await gateway.reload("server", {**files, "s3": gateway.server(3, more="&reuse=1")})
    assert result.results["s3"].action == "restarted"
    assert result.results["s3"].detail is None
    await gateway.wait_up("server", "s3")
    assert gateway.links("s1", "s2") == before


async def test_a_renamed_entry_keeps_its_service(gateway: GatewayHarness) -> None:
    before = gateway.links("s0", "s2")
    files = {"s0": gateway.server(0), "new": gateway.server(1), "s2": gateway.server(2)}
    result = await gateway.reload("server", files)
    assert result.results["new"].detail == "it takes the place of 's1'"
    await gateway.wait_up("server", "new")
    assert gateway.links("s0", "s2") == before


async def test_entries_may_exchange_their_services(gateway: GatewayHarness) -> None:
    before = gateway.links("s2")
    files = {"s0": gateway.server(0, "s1"), "s1": gateway.server(1, "s0"), "s2": gateway.server(2)}
    result = await gateway.reload("server", files)
    assert {result.results[name].action for name in ("s0", "s1")} == {"restarted"}
    await gateway.wait_up("server", "s0", "s1")
    assert gateway.links("s2") == before


async def test_all_entries_of_a_port_change_the_data_port_and_certificate_together(gateway: GatewayHarness) -> None:
    certificate = gateway.folder / "both.pem"
    certificate.write_bytes(pem())
    more = f"&data_port=tunnel&tls_cert={certificate}&tls_key={certificate}"
    result = await gateway.reload("server", {f"s{n}": gateway.server(n, more=more) for n in range(3)})
    assert {one.action for one in result.results.values()} == {"restarted"}
    await gateway.wait_up("server", "s0", "s1", "s2")
    seen = [gateway.ends["server"].snapshot(f"s{n}") for n in range(3)]
    assert {one.data_addr for one in seen} == {f"127.0.0.1:{gateway.tunnel}"}


async def test_engines_of_one_port_run_in_one_worker() -> None:
    pool = WorkerPool(4, lambda *_, **__: None, lambda _: None)

    def worker_of(name: str, role: Role, port: int) -> int | None:
        spec = TunnelSpec(role=role, tunnel=Address("", port), target=Address("h", 1), mode=Mode.FORWARD, service=name)
        engine = pool.make_engine(name, spec, lambda _: None)
        engine._attach()
        return engine.snapshot().worker

    assert len({worker_of(f"s{number}", Role.SERVER, 1) for number in range(8)}) == 1
    assert len({worker_of(f"c{number}", Role.CLIENT, 1) for number in range(8)}) > 1
    assert len({worker_of(f"r{number}", Role.SERVER, 0) for number in range(8)}) > 1
    other = worker_of("other", Role.SERVER, 2)
    assert worker_of("other", Role.SERVER, 1) == worker_of("s0", Role.SERVER, 1)
    assert worker_of("more", Role.SERVER, 2) == other
