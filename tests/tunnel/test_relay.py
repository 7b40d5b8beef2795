"""Two relays in a row, as ingress and egress have them, under arbitrary interleavings of what two programs may do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.engine_parts import Events, no_descriptor_leak
from tests.support.sockets import close_with_reset, tcp_pair
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.carriers import create_carrier
from tunnel.carriers.encrypted_flows import EncryptingFlow
from tunnel.engine.pool import DataConnection, Pool
from tunnel.engine.relays import RelaySet
from tunnel.engine.stats import Stats
from tunnel.forwarding.flow import Flow, FlowState
from tunnel.forwarding.tcp import CLOSED_FLOW, DEFAULT_LIMITS, PlainFlow, Relay, RelayLimits
from tunnel.forwarding.tcp_forwarder import TcpForwarder
from tunnel.model.spec import Carrier
from tunnel.model.visitor_end import VisitorEnd
from tunnel.protocol.records import RecordDirection, RecordReader, RecordWriter
from tunnel.runtime.reactor import Reactor
from tunnel.runtime.splice import PipePool

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.forwarding.base import FlowPath, ForwardedVisitor

LARGEST = 300_000
SECRET = bytes(32)
PATTERN = bytes((n * n + n // 251) % 256 for n in range(65_537)) * 60

KINDS = {"plain": Carrier.TCP, "encrypted": Carrier.ENCRYPTED, "spliced": Carrier.TCP}
"""The carrier of each kind of relay; what the parametrized tests claim holds for all of them."""
SPLICE_EARLY = RelayLimits(turn_budget=4, min_spliced_bytes=4096)

steps = st.one_of(
    st.tuples(
        st.just("write"),
        st.sampled_from("AB"),
        st.one_of(
            st.integers(0, LARGEST), st.sampled_from([1, 4096, 16_384, 65_536, 131_072, 262_144]), st.integers(1, 9)
        ),
    ),
    st.tuples(st.just("urgent"), st.sampled_from("AB"), st.sampled_from([1, 2, 300, 5000, 70_000])),
    st.tuples(st.sampled_from(["stall", "go", "end"]), st.sampled_from("AB"), st.just(0)),
    st.tuples(st.just("turns"), st.just("A"), st.integers(1, 6)),
)
resets = st.tuples(st.just("reset"), st.sampled_from("AB"), st.just(0))
scripts = st.tuples(st.lists(steps, max_size=14), st.none() | resets, st.lists(steps, max_size=4)).map(
    lambda parts: [*parts[0], *([parts[1]] if parts[1] else []), *parts[2]]
)


class RelayParts:
    """What relays need of an engine's context."""

    def __init__(self, limits: RelayLimits) -> None:
        self.reactor = Reactor()
        self.pipes = PipePool()
        self.limits = limits


@asynccontextmanager
async def relay_parts(
    read_bytes: int = PlainFlow.max_read_bytes, limits: RelayLimits = DEFAULT_LIMITS
) -> AsyncIterator[RelayParts]:
    """Provide a reactor and pipes; assert that no socket stays registered and no pipe stays in use."""
    parts = RelayParts(limits)
    try:
        with patch.object(PlainFlow, "max_read_bytes", read_bytes):
            yield parts
            await wait_until_async(lambda: len(parts.reactor) == 0, "no socket is registered with the reactor")
        assert parts.pipes.in_use == 0
    finally:
        parts.pipes.close()
        parts.reactor.stop()


@dataclass
class Program:
    """A visitor or a target: what it wants to send, what it received, how it ended."""

    sock: socket.socket
    offered: int = 0
    urgent: list[int] = field(default_factory=list)
    """offsets behind a byte that is sent as urgent data"""
    sent: int = 0
    received: bytearray = field(default_factory=bytearray)
    is_stalled: bool = False
    wants_to_end: bool = False
    has_ended: bool = False
    has_reset: bool = False
    saw_end: bool = False
    saw_reset: bool = False

    def step(self) -> None:
        if not self.has_reset:
            self._send_offered()
            if not self.is_stalled:
                self._receive_available()

    def end_with_reset(self) -> None:
        close_with_reset(self.sock)
        self.has_reset = True

    def _send_offered(self) -> None:
        if self.saw_reset or self.has_ended:
            return
        try:
            while self.sent < self.offered:
                mark = next((mark for mark in self.urgent if mark > self.sent), None)
                data = PATTERN[self.sent : mark or self.offered]
                self.sent += self.sock.send(data, socket.MSG_OOB if mark else 0)
        except BlockingIOError:
            return
        except OSError:
            self.saw_reset = True
            return
        if self.wants_to_end:
            self.has_ended = True
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def _receive_available(self) -> None:
        while not self.saw_end:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                self.saw_reset = self.saw_end = True
                return
            self.received += data
            self.saw_end = not data


class FakeLink:
    """A link as its relays see it: the client's end announces ends to the server's, at once or in the next turn."""

    ident = "0123456789abcdef"
    datagram_path: FlowPath | None = None
    is_lost = False

    def __init__(self, *, is_client: bool, delays: bool, reuses: bool = False) -> None:
        self.is_client = is_client
        self.reuses = reuses
        self.announces_ends = is_client or reuses
        self.has_announced_ends = not is_client or reuses
        self.returned: list[socket.SocketType] = []
        self.set_other_end_offset: Callable[[int, int], None] = lambda _ident, _total: None
        self._delays = delays

    def take_back(self, relay: ForwardedVisitor, sock: socket.SocketType) -> None:
        assert relay.use == 0
        self.returned.append(sock)

    def send_stream_ended(self, ident: int, total: int) -> bool:
        if not self.announces_ends:
            return False
        if self._delays:
            asyncio.get_running_loop().call_soon(self.set_other_end_offset, ident, total)
        else:
            self.set_other_end_offset(ident, total)
        return True

    def fail_visitor(self, ident: int, reason: str) -> None:
        raise AssertionError("no target turns out to be unreachable")


class RelayChain:
    """Visitor, relay of the ingress, data connection, relay of the egress, target."""

    def __init__(
        self,
        parts: RelayParts,
        *,
        carrier: Carrier = Carrier.TCP,
        has_small_buffers: bool = False,
        reuses: bool = False,
        data_connection: tuple[socket.SocketType, socket.SocketType] | None = None,
    ) -> None:
        """``data_connection``: both ends of one that was used before, already registered with the reactor."""
        self.parts = parts
        self.events = Events()
        self.stats = Stats(), Stats()
        self.activity: list[str] = []
        self.closed: list[str] = []
        self.use = int(data_connection is not None)
        self.carrier = carrier
        visitor, near = tcp_pair(small=has_small_buffers)
        target, out = tcp_pair(small=has_small_buffers)
        self.programs = {"A": Program(visitor), "B": Program(target)}
        self.sets = self._make_sets()
        self._data_connection, self._reuses = data_connection, reuses
        self._join(near, out, has_small_buffers=has_small_buffers)

    def _join(self, near: socket.socket, out: socket.socket, *, has_small_buffers: bool) -> None:
        links = self.links = tuple(
            FakeLink(is_client=is_client, delays=has_small_buffers, reuses=self._reuses) for is_client in (False, True)
        )
        far, other_far = self._data_connection or tcp_pair(small=has_small_buffers)
        for relays, link in zip(self.sets, links, strict=True):
            relays.add_link(link)
        links[1].set_other_end_offset = partial(_set_end_offset, self.sets[0], links[0])
        links[0].set_other_end_offset = partial(_set_end_offset, self.sets[1], links[1])
        self.ingress_relay = self.start_relay(0, near, far, links[0])
        self.egress_relay = self.start_relay(1, out, other_far, links[1])

    def _make_sets(self) -> tuple[RelaySet, ...]:
        """Create the relay sets of the ingress and the egress."""
        parts = self.parts
        first, second = self.stats
        counters = (
            ("ingress", first.from_visitors, first.to_visitors),
            ("egress", second.to_visitors, second.from_visitors),
        )
        return tuple(
            RelaySet(
                parts.reactor,
                TcpForwarder(parts.reactor, parts.pipes, from_near, to_near, parts.limits),
                self.events.event_log(),
                on_first_relay=partial(self.activity.append, name),
                on_relay_closed=partial(_record_close, self.closed, name),
                on_aborted=_fail_aborted,
            )
            for name, from_near, to_near in counters
        )

    def start_relay(
        self,
        end: int,
        near: socket.socket,
        far: socket.SocketType,
        link: FakeLink,
    ) -> ForwardedVisitor:
        reactor = self.parts.reactor
        pool = Pool(reactor, is_ingress=False, on_connection_lost=lambda _ident: None, on_crash=_fail)
        carrier = create_carrier(self.carrier, SECRET, reactor.scratch, is_client=link.is_client)
        data = DataConnection(7, far, carrier, pool)
        data.use = self.use
        if self.use:
            reactor.set_handler(far, data.ready)
        else:
            reactor.register(far, data.ready)
        return self.sets[end].start(near, data, link, near_events=None)

    def step(self) -> None:
        for program in self.programs.values():
            program.step()

    @property
    def is_closed(self) -> bool:
        return not self.ingress_relay.is_open and not self.egress_relay.is_open

    async def step_until(self, condition: Callable[[], object], what: str) -> None:
        """Let both programs send and receive until a condition holds."""

        def stepped() -> object:
            self.step()
            return condition()

        await wait_until_async(stepped, what)

    async def finish(self, what: str = "both programs saw the end and both relays are closed") -> None:
        """Let both programs read to the end, and close their sockets."""

        def is_finished() -> bool:
            return self.is_closed and all(p.has_reset or p.saw_end for p in self.programs.values())

        await self.step_until(is_finished, what)
        for program in self.programs.values():
            program.sock.close()

    async def end(self) -> None:
        """Let both programs end their streams, and wait until both relays are closed."""
        for program in self.programs.values():
            program.wants_to_end = True
        await self.finish()


def _set_end_offset(relays: RelaySet, link: FakeLink, ident: int, total: int) -> None:
    relay = relays.find(link, ident)
    if relay is not None:
        relay.set_end_offset(total)


def make_chain(parts: RelayParts, kind: str) -> RelayChain:
    return RelayChain(parts, carrier=KINDS[kind], has_small_buffers=kind != "spliced")


async def play(script: list[tuple[str, str, int]], kind: str, *, has_small_buffers: bool) -> None:
    splices_early = kind == "spliced"
    async with relay_parts(
        4096 if splices_early else PlainFlow.max_read_bytes, SPLICE_EARLY if splices_early else DEFAULT_LIMITS
    ) as p:
        chain = RelayChain(p, carrier=KINDS[kind], has_small_buffers=has_small_buffers)
        await play_script(chain, script)
        check_outcome(chain)


async def play_script(chain: RelayChain, script: list[tuple[str, str, int]]) -> None:
    """Let both programs do what a script says, and then end their streams."""
    for move, name, number in script:
        program = chain.programs[name]
        match move:
            case "write" if not (program.wants_to_end or program.has_reset):
                program.offered += number
            case "urgent" if not (program.wants_to_end or program.has_reset):
                program.urgent.append(program.offered + number)
                program.offered += number + 3
            case "end":
                program.wants_to_end = True
            case "stall" | "go":
                program.is_stalled = move == "stall"
            case "reset" if not program.has_reset:
                program.end_with_reset()
            case "turns":
                for _ in range(number):
                    chain.step()
                    await run_loop_turns(1)
        chain.step()
        await run_loop_turns(1)
    for program in chain.programs.values():
        program.is_stalled = False
    await chain.end()


def check_outcome(chain: RelayChain) -> None:
    a, b = chain.programs["A"], chain.programs["B"]
    check_direction(a, b)
    check_direction(b, a)
    assert not chain.events, chain.events
    assert [s.active for s in chain.sets] == [0, 0]
    if not (a.has_reset or b.has_reset):
        for stats in chain.stats:
            assert (stats.from_visitors.total, stats.to_visitors.total) == (a.sent, b.sent)


def _fail(error: Exception) -> None:
    raise error


def _fail_aborted(end: VisitorEnd, count: int) -> None:
    raise AssertionError(f"{count} relays were aborted: {end}")


def check_direction(sender: Program, receiver: Program) -> None:
    """Bytes in are bytes out, the end comes only after all of them, and a reset means a reset."""
    count = len(receiver.received)
    assert receiver.received == PATTERN[:count]
    assert count <= sender.sent
    if receiver.has_reset:
        return
    if receiver.saw_reset:
        assert sender.has_reset, "a reset that no program caused"
    else:
        assert sender.has_ended, "an end instead of a reset"
        assert count == sender.sent, "the end before all bytes"


@pytest.mark.parametrize("has_small_buffers", [False, True], ids=["large buffers", "small buffers"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2 * settings().max_examples)
@given(script=scripts)
@example(script=[("write", "A", LARGEST), ("end", "A", 0), ("write", "B", LARGEST), ("end", "B", 0)])
@example(script=[("stall", "A", 0), ("write", "B", LARGEST), ("turns", "A", 6), ("end", "A", 0), ("turns", "A", 6)])
@example(script=[("stall", "B", 0), ("write", "A", LARGEST), ("turns", "A", 6), ("reset", "A", 0), ("turns", "A", 6)])
@example(script=[("write", "B", LARGEST), ("turns", "A", 3), ("write", "A", LARGEST), ("reset", "B", 0)])
@example(script=[("end", "A", 0), ("turns", "A", 6), ("write", "B", LARGEST), ("turns", "A", 2), ("reset", "A", 0)])
@example(script=[("urgent", "A", 300), ("turns", "A", 6), ("urgent", "A", 2), ("end", "A", 0), ("turns", "A", 6)])
@example(
    script=[("write", "A", LARGEST), ("turns", "A", 6), ("urgent", "A", 70_000), ("urgent", "B", 1), ("end", "A", 0)]
)
@example(script=[("reset", "A", 0)])
@example(script=[("end", "B", 0), ("turns", "A", 6), ("reset", "A", 0)])
def test_bytes_in_are_bytes_out_whatever_two_programs_do(
    script: list[tuple[str, str, int]], kind: str, *, has_small_buffers: bool
) -> None:
    with no_descriptor_leak():
        asyncio.run(play(script, kind, has_small_buffers=has_small_buffers))


@pytest.mark.parametrize("kind", KINDS)
@given(script=scripts)
@example(script=[("write", "A", LARGEST), ("end", "A", 0), ("write", "B", LARGEST), ("end", "B", 0)])
@example(script=[("end", "B", 0), ("turns", "A", 6), ("write", "A", LARGEST), ("end", "A", 0)])
@example(script=[("end", "A", 0), ("turns", "A", 6), ("end", "B", 0)])
@example(script=[("end", "A", 0), ("turns", "A", 6), ("reset", "B", 0)])
def test_a_data_connection_serves_another_visitor_after_an_orderly_one(
    script: list[tuple[str, str, int]], kind: str
) -> None:
    with no_descriptor_leak():
        asyncio.run(play_twice(script, kind))


async def play_twice(script: list[tuple[str, str, int]], kind: str) -> None:
    """Play a script, then let another visitor use the same data connection if both ends have given it back."""
    splices_early = kind == "spliced"
    limits = SPLICE_EARLY if splices_early else DEFAULT_LIMITS
    async with relay_parts(4096 if splices_early else PlainFlow.max_read_bytes, limits) as parts:
        chain = RelayChain(parts, carrier=KINDS[kind], reuses=True)
        await play_script(chain, script)
        check_outcome(chain)
        returned = [sock for link in chain.links for sock in link.returned]
        has_reset = any(program.has_reset for program in chain.programs.values())
        has_urgent = any(program.urgent for program in chain.programs.values())
        assert len(returned) == 2 or has_reset or has_urgent, "an orderly visitor's data connection was not given back"
        if len(returned) < 2:
            for sock in returned:
                parts.reactor.close(sock)
            return
        again = RelayChain(parts, carrier=KINDS[kind], data_connection=(returned[0], returned[1]))
        for program in again.programs.values():
            program.offered = 70_000
        await again.end()
        check_outcome(again)
        assert all(len(program.received) == 70_000 for program in again.programs.values())


async def test_a_bulk_stream_is_spliced_and_its_pipe_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = 0
    splice = os.splice

    def count_spliced(source: int, sink: int, count: int, *, flags: int) -> int:
        nonlocal spliced
        moved = splice(source, sink, count, flags=flags)
        spliced += moved
        return moved

    monkeypatch.setattr(os, "splice", count_spliced)
    with no_descriptor_leak():
        async with relay_parts(4096) as parts:
            chain = RelayChain(parts)
            chain.programs["A"].offered = len(PATTERN)
            await chain.step_until(lambda: len(chain.programs["B"].received) == len(PATTERN), "all bytes arrived")
            assert bytes(chain.programs["B"].received) == PATTERN
            await chain.end()
    assert spliced > len(PATTERN) // 4


async def test_a_small_encrypted_message_costs_one_record_and_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[int] = []
    open_received = RecordReader.open_received

    def record_result(reader: RecordReader, received: bytes) -> bytes:
        content = open_received(reader, received)
        results.append(len(content))
        return content

    async with relay_parts() as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED)
        monkeypatch.setattr(RecordReader, "open_received", record_result)
        sender, receiver = chain.programs["A"], chain.programs["B"]
        for _ in range(4):
            sender.offered += 100
            await chain.step_until(lambda: len(receiver.received) == sender.offered, "the message arrived")
        assert results == [100] * 4
        await chain.end()


@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.EHOSTUNREACH])
async def test_a_source_that_fails_while_spliced_is_reset_and_splicing_stays_enabled(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async with relay_parts(4096, SPLICE_EARLY) as parts:
        chain = RelayChain(parts)

        def fail(*_args: int, flags: int) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "splice", fail)
        chain.programs["A"].offered = len(PATTERN)
        await chain.step_until(lambda: chain.is_closed, "both relays are closed")
        await chain.finish()
        assert chain.programs["B"].saw_reset, "a truncated stream ended as if it were complete"
        assert parts.pipes.can_splice


@pytest.mark.parametrize("fails_at_sink", [False, True], ids=["filling the pipe", "emptying the pipe"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES, errno.ENOMEM, errno.ENFILE])
async def test_where_splicing_fails_bytes_are_copied(
    monkeypatch: pytest.MonkeyPatch, code: int, *, fails_at_sink: bool
) -> None:
    splice, fills = os.splice, 0

    def fail(source: int, sink: int, count: int, *, flags: int) -> int:
        nonlocal fills
        if fails_at_sink and stat.S_ISSOCK(os.fstat(source).st_mode):
            fills += 1
            return splice(source, sink, count, flags=flags)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "splice", fail)
    async with relay_parts(4096, SPLICE_EARLY) as parts:
        chain = RelayChain(parts)
        chain.programs["A"].offered = len(PATTERN)
        await chain.end()
        assert bytes(chain.programs["B"].received) == PATTERN
        assert bool(fills) == fails_at_sink
        assert parts.pipes.can_splice == (code in {errno.ENOMEM, errno.ENFILE})


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_behind_urgent_data_arrive_without_more_data(kind: str) -> None:
    async with relay_parts(
        4096 if kind == "spliced" else PlainFlow.max_read_bytes, SPLICE_EARLY if kind == "spliced" else DEFAULT_LIMITS
    ) as parts:
        chain = RelayChain(parts, carrier=KINDS[kind])
        for name, other in (("A", "B"), ("B", "A")):
            sender, receiver = chain.programs[name], chain.programs[other]
            for size in (1, 5, 200_000, 40):
                sender.urgent.append(sender.offered + size)
                sender.offered += size + 100
                await chain.step_until(partial(_has_everything, sender, receiver), "the bytes behind the mark arrived")
        await chain.end()
        check_outcome(chain)


def _has_everything(sender: Program, receiver: Program) -> bool:
    return receiver.received == PATTERN[: sender.offered]


async def test_a_defect_ends_one_relay_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_descriptor_leak():
        async with relay_parts() as parts:
            first, second = (RelayChain(parts) for _ in range(2))

            def fail(self: Flow) -> None:
                raise RuntimeError("a bug")

            with monkeypatch.context() as patch:
                patch.setattr(PlainFlow, "_transfer", fail)
                first.programs["A"].offered = 10
                await first.step_until(lambda: not first.ingress_relay.is_open, "the relay is closed")
            assert first.events.said(f"an internal error ended visitor {first.ingress_relay.id}: RuntimeError: a bug")
            second.programs["A"].offered = 10
            for chain in (first, second):
                await chain.end()
            assert len(second.programs["B"].received) == 10


@pytest.mark.parametrize("reuses", [False, True])
async def test_a_visitor_that_fails_while_its_end_waits_takes_its_data_connection_with_it(*, reuses: bool) -> None:
    """The record of the visitor's end waits for the data connection, and what comes from the target cannot be sent."""
    with no_descriptor_leak():
        async with relay_parts() as parts:
            chain = RelayChain(parts, carrier=Carrier.ENCRYPTED, reuses=reuses)
            relay = chain.ingress_relay
            assert isinstance(relay, Relay)
            from_visitor, to_visitor = relay._from_near, relay._to_near
            assert isinstance(from_visitor, EncryptingFlow)
            from_visitor.state, from_visitor._pending = FlowState.CLOSING, from_visitor._writer.seal_end()
            to_visitor._on_sink_failed()
            from_visitor.resume()
            assert not relay.is_open
            assert not chain.links[0].returned
            await chain.finish()
            assert chain.programs["A"].saw_end


@pytest.mark.parametrize(
    ("reuses", "ends_with_content", "records"),
    [(False, False, ["server"]), (True, False, []), (False, True, ["client", "server"]), (True, True, ["client"])],
)
async def test_a_client_and_both_ends_with_reuse_send_a_record_for_an_end_only_behind_the_last_content(
    monkeypatch: pytest.MonkeyPatch, records: list[str], *, reuses: bool, ends_with_content: bool
) -> None:
    sealed: list[str] = []
    seal_end = RecordWriter.seal_end

    def count_sealed(writer: RecordWriter) -> bytes:
        sealed.append("server" if writer._direction is RecordDirection.TO_CLIENT else "client")
        return seal_end(writer)

    monkeypatch.setattr(RecordWriter, "seal_end", count_sealed)
    async with relay_parts() as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED, reuses=reuses)
        visitor, target = chain.programs["A"], chain.programs["B"]
        target.offered, target.wants_to_end = 1000, ends_with_content
        await chain.step_until(lambda: len(visitor.received) == 1000, "the visitor received everything")
        await chain.end()
        for link in chain.links:
            for sock in link.returned:
                parts.reactor.close(sock)
    assert sorted(sealed) == records


@pytest.mark.parametrize("is_announced", [False, True])
async def test_the_end_of_a_socket_is_an_end_only_if_the_link_announces_it(*, is_announced: bool) -> None:
    announced: list[tuple[int, int]] = []
    limits = RelayLimits(end_timeout_s=60.0 if is_announced else 0.0)
    async with relay_parts(limits=limits) as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED)
        visitor, target = chain.programs["A"], chain.programs["B"]
        announce = chain.links[1].set_other_end_offset
        chain.links[1].set_other_end_offset = lambda ident, total: announced.append((ident, total))
        target.offered = 1000
        await chain.step_until(lambda: len(visitor.received) == 1000, "the visitor received everything")
        target.wants_to_end = True
        await chain.step_until(lambda: announced, "the client announced the end")
        visitor.wants_to_end = True
        await chain.step_until(lambda: not chain.egress_relay.is_open, "the client closed the data connection")
        if is_announced:
            assert not visitor.saw_end
            announce(*announced[0])
        await chain.finish()
        assert visitor.saw_reset is not is_announced


async def test_an_end_is_in_a_record_where_the_data_connection_is_closed_next() -> None:
    """The announcement may be lost with the link, and the relay that could show the end again is gone."""
    async with relay_parts(limits=RelayLimits(end_timeout_s=0.0)) as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED)
        visitor, target = chain.programs["A"], chain.programs["B"]
        chain.links[1].set_other_end_offset = lambda _ident, _total: None  # what the link brings is lost
        visitor.wants_to_end = True
        await chain.step_until(lambda: target.saw_end, "the target saw the end")
        target.offered, target.wants_to_end = 1000, True
        await chain.finish()
        assert len(visitor.received) == 1000
        assert not visitor.saw_reset


async def test_a_visitor_of_a_client_that_dies_is_reset_as_soon_as_the_link_is_lost() -> None:
    async with relay_parts(limits=RelayLimits(end_timeout_s=60.0)) as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED)
        visitor, target = chain.programs["A"], chain.programs["B"]
        visitor.offered = target.offered = 100
        await chain.step_until(lambda: len(visitor.received) == len(target.received) == 100, "both have received")
        chain.egress_relay.close()  # as the kernel does for a process that was killed
        flow = chain.ingress_relay._to_near  # type: ignore[attr-defined]  # of a TCP relay
        await chain.step_until(lambda: flow.state is FlowState.UNANNOUNCED, "the ingress saw the end of the socket")
        assert not visitor.saw_end
        chain.sets[0].remove_link(chain.links[0])
        await chain.finish()
        assert visitor.saw_reset


@pytest.mark.parametrize("received", [0, 100])
async def test_a_visitor_of_a_server_that_dies_waits_for_the_loss_of_the_link_if_nothing_was_forwarded(
    received: int,
) -> None:
    """At a client that accepts visitors: a link that is lost gives an untouched visitor to another server."""
    async with relay_parts(limits=RelayLimits(end_timeout_s=60.0)) as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED)
        chain.links[0].has_announced_ends = False
        visitor, target = chain.programs["A"], chain.programs["B"]
        target.offered = received
        await chain.step_until(lambda: len(visitor.received) == received, "the visitor has received the greeting")
        flow = chain.ingress_relay._to_near  # type: ignore[attr-defined]  # of a TCP relay
        chain.egress_relay.close()  # as the kernel does for a process that was killed
        if received:
            await chain.step_until(lambda: visitor.saw_reset, "the visitor was reset at once")
        else:
            await chain.step_until(lambda: flow.state is FlowState.UNANNOUNCED, "the ingress saw the end of the socket")
            [(near, _)] = chain.sets[0].take_untouched(chain.links[0])
            assert not visitor.saw_end
            near.close()
        await chain.finish()


async def test_an_untouched_visitor_of_a_lost_link_is_reset_at_once_when_the_other_end_closes() -> None:
    async with relay_parts(limits=RelayLimits(end_timeout_s=60.0)) as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED)
        link = chain.links[1]
        link.is_lost, link.has_announced_ends = True, False
        chain.sets[1].remove_link(link)
        chain.ingress_relay.close()
        await chain.finish()
        assert chain.programs["B"].saw_reset


async def test_an_end_that_was_announced_over_a_lost_link_is_shown_in_a_record() -> None:
    async with relay_parts() as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED)
        visitor, target = chain.programs["A"], chain.programs["B"]
        announced: list[int] = []
        link = chain.links[1]
        link.set_other_end_offset = lambda _ident, total: announced.append(total)
        target.offered = 1000
        await chain.step_until(lambda: len(visitor.received) == 1000, "the visitor received everything")
        target.wants_to_end = True
        await chain.step_until(lambda: announced, "the client announced the end")
        assert not visitor.saw_end
        link.announces_ends = False
        chain.sets[1].remove_link(link)
        await chain.step_until(lambda: visitor.saw_end, "the visitor saw the end")
        assert len(visitor.received) == 1000
        visitor.offered = 500
        await chain.step_until(lambda: len(target.received) == 500, "the target received what came later")
        await chain.end()
        assert not visitor.saw_reset


async def test_the_end_is_shown_although_bytes_lie_unread_on_the_data_connection_that_is_closed_next() -> None:
    """A close with unread bytes sends a reset at once, and nothing that waits to be sent (RFC 2525 §2.17)."""
    async with relay_parts() as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED)
        visitor, target = chain.programs["A"], chain.programs["B"]
        target.offered = 1000
        await chain.step_until(lambda: len(visitor.received) == 1000, "the visitor received everything")
        target.wants_to_end = True
        await chain.step_until(lambda: visitor.saw_end, "the visitor saw the end, which the link announced")
        chain.links[1].announces_ends = False
        chain.sets[1].remove_link(chain.links[1])  # a record shows the end again: the ingress does not read it
        visitor.wants_to_end = True
        await chain.finish()
        assert target.saw_end
        assert not target.saw_reset


async def test_an_end_is_not_shown_again_while_what_the_other_end_has_sent_lies_unread() -> None:
    """It may have closed the data connection: a record that arrives there then resets what it has not sent yet."""
    async with relay_parts(limits=RelayLimits(end_timeout_s=60.0)) as parts:
        chain = RelayChain(parts, carrier=Carrier.ENCRYPTED, has_small_buffers=True)
        visitor, target = chain.programs["A"], chain.programs["B"]
        target.wants_to_end = True
        await chain.step_until(lambda: visitor.saw_end, "the visitor saw the end, which the link announced")
        target.is_stalled = True
        visitor.offered, visitor.wants_to_end = 24_000, True
        await chain.step_until(lambda: not chain.ingress_relay.is_open, "the ingress closed the data connection")
        chain.links[1].announces_ends = False
        chain.sets[1].remove_link(chain.links[1])
        await run_loop_turns(5)
        target.is_stalled = False
        await chain.finish()
        assert len(target.received) == 24_000
        assert not target.saw_reset


@pytest.mark.parametrize("kind", KINDS)
async def test_only_a_reset_starts_the_flush_timeout(kind: str) -> None:
    with no_descriptor_leak():
        async with relay_parts(limits=RelayLimits(reset_flush_timeout_s=0.0)) as parts:
            chain = make_chain(parts, kind)
            programs = chain.programs.values()
            for number in range(1, 20):
                for program in programs:
                    program.offered = number
                have_received = partial(_have_received, tuple(programs), number)
                await chain.step_until(have_received, "both programs received the message")
            await chain.end()
            assert not any(program.saw_reset for program in programs)


def _have_received(programs: tuple[Program, ...], count: int) -> bool:
    return all(len(program.received) == count for program in programs)


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_sent_before_a_reset_wait_only_for_a_limited_time_for_a_stalled_reader(kind: str) -> None:
    with no_descriptor_leak():
        async with relay_parts(limits=RelayLimits(reset_flush_timeout_s=0.2)) as parts:
            chain = make_chain(parts, kind)
            visitor, target = chain.programs["A"], chain.programs["B"]
            target.is_stalled = True
            visitor.offered = len(PATTERN)
            before = -1
            while visitor.sent > before:
                before = visitor.sent
                for _ in range(20):
                    chain.step()
                    await run_loop_turns(5)
            visitor.end_with_reset()
            await wait_until_async(lambda: chain.is_closed, "both relays are closed, though the target is stalled")
            target.is_stalled = False
            await chain.finish()
            assert target.saw_reset
            assert PATTERN.startswith(target.received)
            assert [s.active for s in chain.sets] == [0, 0]


async def test_close_all_closes_every_relay_at_once() -> None:
    with no_descriptor_leak():
        async with relay_parts() as parts:
            chain = RelayChain(parts)
            others = [others_pair for _ in range(2) for others_pair in _start_other_relay(chain)]
            chain.programs["A"].offered = 10
            await chain.step_until(lambda: chain.programs["B"].received, "the first bytes arrived")
            assert chain.sets[0].close_all() == 3
            assert not chain.ingress_relay.is_open
            assert chain.sets[0].active == 0
            assert chain.activity.count("ingress") == 1, "only the first relay is reported"
            await run_loop_turns(2)
            for sock in others:
                assert sock.recv(1) == b"", "the socket at the other end is still open"
                sock.close()
            await chain.end()
            chain.ingress_relay.close()
            assert chain.closed.count("ingress") == 3, "closing a relay twice is reported once"


def _record_close(closed: list[str], name: str, _: ForwardedVisitor) -> None:
    closed.append(name)


def _start_other_relay(chain: RelayChain) -> tuple[socket.socket, socket.socket]:
    """Start another relay in the ingress's set; return the two sockets at its ends."""
    visitor, near = tcp_pair()
    far, target = tcp_pair()
    chain.start_relay(0, near, far, FakeLink(is_client=False, delays=False))
    return visitor, target


@pytest.mark.parametrize("carrier", Carrier)
async def test_a_closed_relay_leaves_nothing_to_the_garbage_collector(carrier: Carrier) -> None:
    gc.collect()
    gc.disable()
    try:
        async with relay_parts() as parts:
            chain = RelayChain(parts, carrier=carrier)
            for program in chain.programs.values():
                program.offered = 10
            await chain.end()
            del chain, program
            await run_loop_turns(2)
            alive = [thing for thing in gc.get_objects() if isinstance(thing, (Flow, Relay))]
            assert [thing for thing in alive if thing is not CLOSED_FLOW] == []
    finally:
        gc.enable()
