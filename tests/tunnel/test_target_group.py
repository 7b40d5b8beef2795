"""Several targets of one tunnel, over real sockets: which of them gets a visitor, and what a failure means."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.support.peers import BlackHole
from tests.support.ports import free_port
from tests.support.scale import GUARD_S
from tests.support.sockets import close_listener
from tests.support.waiting import wait_until_async
from tests.tunnel.test_engine import (
    RunningEngine,
    client_spec,
    echo,
    round_trip,
    running_engine,
    server_spec,
    shared,
    visit,
    visitors_address,
)
from tunnel.engine.context import EngineContext
from tunnel.model.address import Address, parse_address
from tunnel.model.balancer import Balance
from tunnel.model.snapshot import TargetView
from tunnel.model.spec import Direction, Mode, ProxyVersion
from tunnel.model.state import State
from tunnel.model.targets import CHECK_OFF, CHECK_TCP, CheckKind, TargetCheck, TargetSpec
from tunnel.runtime import sockets

__all__ = ["shared"]

QUICK: dict[str, Any] = {"inter": 0.05, "check_timeout": 0.2}
"""Checks often enough for a test; the least interval of a configuration is longer."""
SELDOM: dict[str, Any] = {"inter": 3600.0, "check_timeout": 0.2}
"""Only the first check comes within a test, so that what is seen follows from visitors."""


class NamedTarget:
    """A target that sends its name and echoes, and counts its connections."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.served = 0
        self.on_accept: Callable[[asyncio.StreamWriter], None] | None = None
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if self.on_accept is not None:
                self.on_accept(writer)
            elif await reader.read(1):  # a check sends nothing
                self.served += 1
                writer.write(self.name)
                await writer.drain()
                await reader.read(-1)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self.serve(reader, writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        finally:
            self._open.discard(writer)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[NamedTarget]:
        listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port, reuse_address=True)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            await close_listener(listener)
            for writer in self._open:
                writer.transport.abort()
            await wait_until_async(lambda: not self._open, "every connection has ended")


@asynccontextmanager
async def targets(*names: bytes) -> AsyncIterator[list[NamedTarget]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(NamedTarget(name).running()) for name in names]


@asynccontextmanager
async def group_pair(
    context: EngineContext,
    members: list[Address | TargetSpec],
    *,
    direction: Direction = Direction.REVERSE,
    **rest: Any,  # noqa: ANN401  any field of a spec
) -> AsyncIterator[tuple[RunningEngine, RunningEngine]]:
    """The ingress and the egress of a tunnel with these targets, both with a link."""
    several = tuple(each if isinstance(each, TargetSpec) else TargetSpec(each) for each in members)
    first = str(several[0].address)
    options = {**QUICK, **rest, "targets": several if len(several) > 1 else ()}
    if direction is Direction.FORWARD:
        async with running_engine(context, server_spec(first, mode=Mode.FORWARD, **options)) as server:
            await server.wait_state(State.WAITING)
            async with running_engine(context, client_spec(server, "127.0.0.1:0")) as client:
                await wait_until_async(lambda: client.engine.snapshot().link is not None, "there is a link")
                yield client, server
        return
    async with running_engine(context, server_spec("127.0.0.1:0", mode=Mode.REVERSE)) as server:
        await server.wait_state(State.WAITING)
        async with running_engine(context, client_spec(server, first, **options)) as client:
            await wait_until_async(lambda: client.engine.snapshot().link is not None, "there is a link")
            yield server, client


async def who_serves(address: str) -> str:
    """One visitor; return the name of its target, or an empty text if the visitor is disconnected."""
    async with visit(address) as (reader, writer), asyncio.timeout(GUARD_S):
        writer.write(b"?")
        try:
            return (await reader.read(1)).decode()
        except ConnectionError:
            return ""


async def shares(ingress: RunningEngine, visitors: int) -> Counter[str]:
    address = visitors_address(ingress)
    return Counter([await who_serves(address) for _ in range(visitors)])


def view(egress: RunningEngine, address: object) -> TargetView:
    return next(each for each in egress.engine.snapshot().targets if each.address == str(address))


async def wait_target(egress: RunningEngine, address: object, state: str) -> TargetView:
    await wait_until_async(lambda: view(egress, address).state == state, f"{address} is {state}")
    return view(egress, address)


@pytest.mark.parametrize("direction", list(Direction))
async def test_visitors_take_turns_by_weight(shared: EngineContext, direction: Direction) -> None:
    async with targets(b"a", b"b") as (a, b):
        members = [TargetSpec(a.address, 2), TargetSpec(b.address, 1)]
        async with group_pair(shared, list(members), direction=direction) as (ingress, egress):
            assert await shares(ingress, 9) == {"a": 6, "b": 3}
            assert egress.engine.snapshot().target_addr == f"{a.address},{b.address}"
            assert ingress.engine.snapshot().targets == ()
            assert [each.weight for each in egress.engine.snapshot().targets] == [2, 1]


async def test_a_pair_without_a_group_shows_its_one_target(shared: EngineContext) -> None:
    async with (
        targets(b"a") as (a,),
        group_pair(shared, [a.address]) as (ingress, egress),
        visit(visitors_address(ingress)) as (reader, writer),
    ):
        writer.write(b"?")
        assert await reader.read(1) == b"a"
        (shown,) = egress.engine.snapshot().targets
        assert shown == TargetView(address=str(a.address), state=shown.state, visitors=1)
        assert (shown.state, shown.checks) == ("up", None)


async def test_a_target_that_refuses_costs_no_visitor(shared: EngineContext) -> None:
    dead = Address("127.0.0.1", free_port())
    async with targets(b"a") as (a,), group_pair(shared, [dead, a.address], **SELDOM) as (ingress, egress):
        assert await shares(ingress, 20) == {"a": 20}
        shown = await wait_target(egress, dead, "down")
        assert "it refused the connection" in (shown.reason or "")
        assert egress.engine.snapshot().connections.failed == 0
        assert egress.events.said(f"the target {dead} is down")
        assert egress.reason.startswith(f"1 of 2 targets is down: {dead}: it refused")
        assert egress.state is State.UP


async def test_a_target_that_is_silent_delays_its_visitors_and_costs_none(shared: EngineContext) -> None:
    with contextlib.closing(BlackHole()) as hole:
        silent = Address("127.0.0.1", hole.port)
        rules = {**SELDOM, "check_timeout": 0.05, "check": CHECK_OFF}
        async with targets(b"a") as (a,), group_pair(shared, [silent, a.address], **rules) as (ingress, egress):
            assert await shares(ingress, 10) == {"a": 10}
            assert "it did not answer" in (view(egress, silent).reason or "")  # the visitor, and then its checks


async def test_a_target_that_resets_before_the_first_byte_costs_no_visitor(shared: EngineContext) -> None:
    """The visitor sends its first byte only when it has a target, as many protocols do."""
    async with targets(b"r", b"a") as (resetting, a):

        def reset(writer: asyncio.StreamWriter) -> None:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

        resetting.on_accept = reset
        a.on_accept = lambda writer: writer.write(b"a")
        async with group_pair(shared, [resetting.address, a.address], **SELDOM) as (ingress, egress):
            for _ in range(10):
                async with visit(visitors_address(ingress)) as (reader, _), asyncio.timeout(GUARD_S):
                    assert await reader.read(1) == b"a"
            shown = await wait_target(egress, resetting.address, "down")
            assert "it accepted the connection and reset it" in (shown.reason or "")
            assert egress.engine.snapshot().connections.failed == 0


async def test_a_visitor_that_waits_for_its_target_to_speak_is_relayed(shared: EngineContext) -> None:
    """Neither sends anything for longer than a new connection is watched."""
    async with (
        targets(b"a", b"b") as (a, b),
        group_pair(shared, [a.address, b.address]) as (ingress, egress),
        visit(visitors_address(ingress)) as (reader, writer),
        asyncio.timeout(GUARD_S),
    ):
        await wait_until_async(lambda: egress.engine.snapshot().connections.active == 1, "the visitor is relayed")
        writer.write(b"?")
        assert await reader.read(1) in {b"a", b"b"}


async def test_the_last_target_is_never_removed(shared: EngineContext) -> None:
    """No target is up: the state says so, visitors are tried on all of them, and one that is back serves."""
    one, other = NamedTarget(b"a"), NamedTarget(b"b")
    one.port, other.port = free_port(), free_port()
    async with group_pair(shared, [one.address, other.address], **SELDOM) as (ingress, egress):
        await wait_target(egress, one.address, "down")
        await wait_target(egress, other.address, "down")
        for running in (ingress, egress):
            await running.wait_state(State.COOLDOWN)
            assert "none of 2 targets can be reached" in running.reason
        assert await who_serves(visitors_address(ingress)) == ""
        assert egress.engine.snapshot().connections.failed == 1
        assert egress.engine.snapshot().cooldown.attempt > 0
        async with other.running():
            assert await who_serves(visitors_address(ingress)) == "b"
            egress.engine.retry()
            assert await who_serves(visitors_address(ingress)) == "b"
            await wait_target(egress, other.address, "up")
            await egress.wait_state(State.UP)
            await ingress.wait_state(State.UP)


async def test_a_target_that_returns_is_noticed_without_visitors(shared: EngineContext) -> None:
    back = NamedTarget(b"b")
    back.port = free_port()
    async with targets(b"a") as (a,), group_pair(shared, [a.address, back.address]) as (ingress, egress):
        shown = await wait_target(egress, back.address, "down")
        assert shown.checks is not None
        assert (shown.checks.kind, shown.checks.failed > 0, shown.checks.changes) == ("tcp", True, 1)
        async with back.running():
            await wait_target(egress, back.address, "up")
            assert egress.events.said("is up again; 2 of 2 targets are up")
            assert await shares(ingress, 4) == {"a": 2, "b": 2}


async def test_without_checks_a_target_that_is_down_is_dialled_until_it_returns(shared: EngineContext) -> None:
    back = NamedTarget(b"b")
    back.port = free_port()
    async with (
        targets(b"a") as (a,),
        group_pair(shared, [a.address, back.address], check=CHECK_OFF) as (ingress, egress),
    ):
        await asyncio.sleep(0.2)  # four intervals
        assert view(egress, back.address).state == "up"
        assert await shares(ingress, 2) == {"a": 2}
        await wait_target(egress, back.address, "down")
        async with back.running():
            await wait_target(egress, back.address, "up")


async def test_backup_targets_serve_only_while_all_others_are_down(shared: EngineContext) -> None:
    main = NamedTarget(b"m")
    async with targets(b"b") as (backup,), contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(main.running())
        members = [TargetSpec(backup.address, is_backup=True), TargetSpec(main.address)]
        async with group_pair(shared, list(members)) as (ingress, egress):
            assert await shares(ingress, 5) == {"m": 5}
            await stack.aclose()
            assert await shares(ingress, 5) == {"b": 5}
            await wait_target(egress, main.address, "down")
            assert await shares(ingress, 2) == {"b": 2}
            async with main.running():
                await wait_target(egress, main.address, "up")
                assert await shares(ingress, 2) == {"m": 2}


def http_target(status: str) -> Callable[[asyncio.StreamWriter], None]:
    return lambda writer: writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())


async def test_an_http_check_reads_the_status(shared: EngineContext) -> None:
    async with targets(b"a", b"b", b"c") as (good, ill, odd):
        good.on_accept, ill.on_accept = http_target("204 No Content"), http_target("503 Service Unavailable")
        odd.on_accept = lambda writer: writer.write(b"220 mail ESMTP\r\n")
        check = TargetCheck(CheckKind.HTTP, "/health")
        members: list[Address | TargetSpec] = [good.address, ill.address, odd.address]
        async with group_pair(shared, members, check=check) as (_, egress):
            assert "it answered /health with the status 503" in (
                (await wait_target(egress, ill.address, "down")).reason or ""
            )
            assert "its answer is not HTTP" in ((await wait_target(egress, odd.address, "down")).reason or "")
            await wait_until_async(lambda: view(egress, good.address).state == "up", "the good one is up")
            ill.on_accept = http_target("200 OK")
            await wait_target(egress, ill.address, "up")


class BehindProxy(NamedTarget):
    """An HTTP target that answers requests after a PROXY header without an address only."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            header = await reader.readline()
            status = "200 OK" if header == b"PROXY UNKNOWN\r\n" else "400 Bad Request"
            http_target(status)(writer)
            await writer.drain()
        writer.close()


async def test_an_http_check_sends_the_header_of_the_proxy_protocol_where_visitors_have_one(
    shared: EngineContext,
) -> None:
    check = TargetCheck(CheckKind.HTTP, "/health")
    async with (
        BehindProxy(b"a").running() as target,
        group_pair(shared, [target.address], check=check, proxy=ProxyVersion.OFF) as (_, egress),
    ):
        await wait_target(egress, target.address, "down")
        egress.engine.apply_live_settings(replace(egress.engine.spec, proxy=ProxyVersion.V1))
        await wait_target(egress, target.address, "up")


async def test_an_http_check_has_a_time_limit_and_needs_an_answer(shared: EngineContext) -> None:
    async with targets(b"a", b"b") as (silent, closing):
        silent.on_accept = lambda writer: writer.transport.pause_reading()  # type: ignore[attr-defined]
        closing.on_accept = lambda writer: writer.write_eof()
        check = TargetCheck(CheckKind.HTTP, "/")
        async with group_pair(shared, [silent.address, closing.address], check=check) as (_, egress):
            assert "ended the connection without an answer" in (
                (await wait_target(egress, closing.address, "down")).reason or ""
            )


async def test_a_single_target_can_be_checked(shared: EngineContext) -> None:
    target = NamedTarget(b"a")
    target.port = free_port()
    async with group_pair(shared, [target.address], check=CHECK_TCP) as (ingress, egress):
        await egress.wait_state(State.COOLDOWN)
        assert f"the target {target.address} cannot be reached: it refused" in egress.reason
        async with target.running():
            await egress.wait_state(State.UP)
            assert await who_serves(visitors_address(ingress)) == "a"


async def test_a_flapping_target_changes_its_state_a_bounded_number_of_times(shared: EngineContext) -> None:
    """Its checks pass and fail in turn for a hundred times: it returns three times and then stays away."""
    async with targets(b"a", b"f") as (a, flapping):
        check = TargetCheck(CheckKind.HTTP, "/")
        a.on_accept = http_target("200 OK")
        statuses = iter(["200 OK", "500 No"] * 1000)

        def answer(writer: asyncio.StreamWriter) -> None:
            http_target(next(statuses))(writer)

        flapping.on_accept = answer
        rules: dict[str, Any] = {"check": check, "inter": 0.005, "fall": 1, "rise": 1}
        async with group_pair(shared, [a.address, flapping.address], **rules) as (_, egress):

            def is_held() -> bool:
                shown = view(egress, flapping.address)
                return "too often" in (shown.reason or "")

            await wait_until_async(is_held, "it is held down")
            shown = view(egress, flapping.address)
            assert shown.checks is not None
            assert shown.checks.changes == 7


async def test_a_drained_target_keeps_its_visitors_and_gets_no_new_ones(shared: EngineContext) -> None:
    async with (
        targets(b"a", b"b") as (a, b),
        group_pair(shared, [a.address, b.address]) as (ingress, egress),
        visit(visitors_address(ingress)) as (reader, writer),
        asyncio.timeout(GUARD_S),
    ):
        writer.write(b"?")
        assert await reader.read(1) == b"a"
        egress.engine.set_target_drained(str(a.address), is_drained=True)
        egress.engine.set_target_drained("nowhere:1", is_drained=True)
        ingress.engine.set_target_drained(str(a.address), is_drained=True)
        assert await shares(ingress, 4) == {"b": 4}
        assert (view(egress, a.address).state, view(egress, a.address).visitors) == ("draining", 1)
        assert f"drained by command: {a.address}" in egress.reason
        writer.write_eof()
        assert await reader.read(-1) == b""
        await wait_target(egress, a.address, "drained")
        egress.engine.set_target_drained(str(b.address), is_drained=True)
        for running in (ingress, egress):
            await running.wait_state(State.COOLDOWN)
            assert running.reason == "every target is drained"
        assert await who_serves(visitors_address(ingress)) == ""
        for each in (a, b):
            egress.engine.set_target_drained(str(each.address), is_drained=False)
        assert await shares(ingress, 4) == {"a": 2, "b": 2}
        await egress.wait_state(State.UP)


async def test_weights_members_and_checks_change_live(shared: EngineContext) -> None:
    async with targets(b"a", b"b", b"c") as (a, b, c), group_pair(shared, [a.address, b.address]) as (ingress, egress):

        def change(**rest: Any) -> None:  # noqa: ANN401  any field of a spec
            egress.engine.apply_live_settings(replace(egress.engine.spec, **rest))

        link = egress.engine.snapshot().link
        async with visit(visitors_address(ingress)) as (reader, writer), asyncio.timeout(GUARD_S):
            writer.write(b"?")
            assert await reader.read(1) == b"a"
            change(targets=(TargetSpec(b.address, 3), TargetSpec(c.address)))
            assert await shares(ingress, 8) == {"b": 6, "c": 2}
            assert [each.address for each in egress.engine.snapshot().targets] == [str(b.address), str(c.address)]
            change(balance=Balance.FIRST)
            assert await shares(ingress, 3) == {"b": 3}
            change(check=CHECK_OFF)
            assert all(each.checks and each.checks.kind == "off" for each in egress.engine.snapshot().targets)
            change(targets=(), target=c.address, check=None)
            assert await shares(ingress, 2) == {"c": 2}
            change(targets=(TargetSpec(a.address), TargetSpec(b.address)), target=a.address)
            assert await shares(ingress, 2) == {"a": 2}
            writer.write_eof()
            assert await reader.read(-1) == b""  # its target is served to the end, although it was removed
        assert egress.engine.snapshot().link == link
        assert egress.engine.snapshot().connections.failed == 0


async def test_visitors_that_wait_for_a_silent_target_move_on_when_the_targets_change(
    shared: EngineContext,
) -> None:
    with contextlib.closing(BlackHole()) as hole:
        silent = Address("127.0.0.1", hole.port)
        async with targets(b"a", b"b") as (a, b), group_pair(shared, [silent], dial_timeout=600.0) as (ingress, egress):
            serving = asyncio.create_task(who_serves(visitors_address(ingress)))
            await wait_until_async(lambda: egress.engine.snapshot().connections.total == 1, "the target is dialled")
            several = (TargetSpec(a.address), TargetSpec(b.address))
            egress.engine.apply_live_settings(replace(egress.engine.spec, target=a.address, targets=several))
            assert await serving == "a"


async def test_a_source_keeps_its_target_across_a_change_and_a_new_engine(shared: EngineContext) -> None:
    async with targets(b"a", b"b", b"c") as found:
        members: list[Address | TargetSpec] = [each.address for each in found]
        async with group_pair(shared, members, balance=Balance.SOURCE) as (ingress, egress):
            served = await shares(ingress, 5)
            assert len(served) == 1
            spec = egress.engine.spec
            egress.engine.apply_live_settings(replace(spec, targets=spec.targets[::-1], inter=0.07))
            assert set(await shares(ingress, 5)) == set(served)
        async with group_pair(shared, members[::-1], balance=Balance.SOURCE) as (ingress, _):
            assert set(await shares(ingress, 5)) == set(served)


async def test_leastconn_counts_visitors_that_stay(shared: EngineContext) -> None:
    async with (
        targets(b"a", b"b") as (a, b),
        group_pair(shared, [a.address, b.address], balance=Balance.LEASTCONN) as (ingress, egress),
    ):
        async with contextlib.AsyncExitStack() as stack:
            served: Counter[bytes] = Counter()
            for _ in range(6):
                reader, writer = await stack.enter_async_context(visit(visitors_address(ingress)))
                writer.write(b"?")
                served[await reader.read(1)] += 1
            assert served == {b"a": 3, b"b": 3}
            assert [each.visitors for each in egress.engine.snapshot().targets] == [3, 3]
        await wait_until_async(
            lambda: all(each.visitors == 0 for each in egress.engine.snapshot().targets), "no visitor is counted"
        )


async def test_a_target_that_returns_gets_its_share_slowly(shared: EngineContext) -> None:
    back = NamedTarget(b"b")
    back.port = free_port()
    async with (
        targets(b"a") as (a,),
        group_pair(shared, [a.address, back.address], slowstart=3600.0) as (ingress, egress),
    ):
        await wait_target(egress, back.address, "down")
        async with back.running():
            await wait_target(egress, back.address, "up")
            served = await shares(ingress, 40)
            assert 1 <= served["b"] <= 3  # a twentieth of its weight
            egress.engine.apply_live_settings(replace(egress.engine.spec, slowstart=0.0))
            assert (await shares(ingress, 10))["b"] == 5


async def test_a_client_whose_server_dials_says_that_it_has_several_targets(shared: EngineContext) -> None:
    async with echo() as target, running_engine(shared, server_spec(target, mode=Mode.FORWARD)) as server:
        await server.wait_state(State.WAITING)
        several = (TargetSpec(parse_address(target)), TargetSpec(Address("127.0.0.1", free_port())))
        async with running_engine(shared, client_spec(server, target, targets=several)) as client:
            await client.wait_state(State.COOLDOWN)
            assert "several targets to dial, but the server dials" in client.reason
        async with running_engine(shared, client_spec(server, "127.0.0.1:0", client_cooldown=0.05)) as client:
            await client.wait_state(State.UP)
            await round_trip(visitors_address(client), 10)
            client.engine.apply_live_settings(replace(client.engine.spec, target=several[0].address, targets=several))
            await client.wait_state(State.COOLDOWN)
            assert "several targets to dial, but the server dials" in client.reason


async def test_a_closed_group_disconnects_the_visitors_that_wait(shared: EngineContext) -> None:
    with contextlib.closing(BlackHole()) as hole:
        members: list[Address | TargetSpec] = [Address("127.0.0.1", hole.port), Address("127.0.0.2", hole.port)]
        async with group_pair(shared, members, check=CHECK_OFF, check_timeout=600.0) as (ingress, egress):
            serving = asyncio.create_task(who_serves(visitors_address(ingress)))
            await wait_until_async(lambda: egress.engine.snapshot().connections.total == 1, "a target is dialled")
            egress.engine.close()
            assert await serving == ""


async def test_a_visitor_is_disconnected_where_no_route_leads_to_any_target(
    shared: EngineContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses each connection at once: a dial has failed before the call that starts it returns."""
    start_connect = sockets.start_connect
    async with targets(b"a", b"b", b"c") as found:
        ports = {each.port for each in found}

        def connect(family: socket.AddressFamily, sockaddr: sockets.SockAddr, **options: bool) -> socket.SocketType:
            if sockaddr[1] in ports:
                raise OSError(errno.ENETUNREACH, "Network is unreachable")
            return start_connect(family, sockaddr, **options)

        async with group_pair(shared, [each.address for each in found], **SELDOM) as (ingress, egress):
            assert await shares(ingress, 3) == {"a": 1, "b": 1, "c": 1}  # so the addresses of all are known
            monkeypatch.setattr(sockets, "start_connect", connect)
            assert await who_serves(visitors_address(ingress)) == ""
            counts = egress.engine.snapshot().connections
            assert (counts.failed, counts.active) == (1, 0)
            assert [each.visitors for each in egress.engine.snapshot().targets] == [0, 0, 0]
            monkeypatch.undo()
            assert await who_serves(visitors_address(ingress)) != ""  # the engine has survived


async def test_a_removed_target_is_not_checked_again_when_its_visitor_fails(shared: EngineContext) -> None:
    with contextlib.closing(BlackHole()) as hole:
        silent = Address("127.0.0.1", hole.port)
        async with targets(b"a", b"b") as (a, b):
            rules: dict[str, Any] = {**SELDOM, "check": CHECK_OFF, "check_timeout": 0.3, "balance": Balance.FIRST}
            async with group_pair(shared, [silent, a.address], **rules) as (ingress, egress):
                serving = asyncio.create_task(who_serves(visitors_address(ingress)))
                await wait_until_async(lambda: view(egress, silent).visitors == 1, "the target is dialled")
                several = (TargetSpec(a.address), TargetSpec(b.address))
                egress.engine.apply_live_settings(replace(egress.engine.spec, target=a.address, targets=several))
                assert await serving == "a"
                assert egress.events.said(f"the target {silent} could not be reached for a visitor")
                assert not egress.events.said(f"the target {silent} is down")
