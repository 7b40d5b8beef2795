"""Two relays in a row, as entrance and exit have them, under arbitrary interleavings of what two programs may do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.engine_parts import (
    Events,
    no_descriptor_leak,
    shared_parts,
    tls_pair,
)
from tests.support.sockets import close_with_reset, tcp_pair
from tests.support.waiting import run_loop_turns, wait_until_async
from tunnel.engine.pool import DataConnection, Pool
from tunnel.engine.relays import RelaySet
from tunnel.engine.stats import Stats
from tunnel.forwarding import tcp as relay_module
from tunnel.forwarding.tcp import Flow, Relay
from tunnel.runtime import reactor as reactor_module
from tunnel.runtime.tls import TlsSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.engine.context import EngineContext
    from tunnel.forwarding.tcp import ByteCounter

LARGEST = 300_000
PATTERN = bytes((n * n + n // 251) % 256 for n in range(65_537)) * 60

KINDS = ("plain", "encrypted", "spliced")

steps = st.one_of(
    st.tuples(
        st.just("write"),
        st.sampled_from("AB"),
        st.one_of(
            st.integers(0, LARGEST), st.sampled_from([1, 4096, 16_384, 65_536, 131_072, 262_144]), st.integers(1, 9)
        ),
    ),
    st.tuples(st.sampled_from(["stall", "go", "end"]), st.sampled_from("AB"), st.just(0)),
    st.tuples(st.just("turns"), st.just("A"), st.integers(1, 6)),
)
resets = st.tuples(st.just("reset"), st.sampled_from("AB"), st.just(0))
plays = st.tuples(st.lists(steps, max_size=14), st.none() | resets, st.lists(steps, max_size=4)).map(
    lambda parts: [*parts[0], *([parts[1]] if parts[1] else []), *parts[2]]
)


@dataclass
class Program:
    """Visitor or target: what it wants to say, what it heard, how it ended."""

    sock: socket.socket
    offered: int = 0
    sent: int = 0
    heard: bytearray = field(default_factory=bytearray)
    stalled: bool = False
    ending: bool = False
    ended: bool = False
    gone: bool = False  # it has reset the connection itself
    saw_end: bool = False
    saw_reset: bool = False

    def step(self) -> None:
        if not self.gone:
            self._say()
            if not self.stalled:
                self._hear()

    def _say(self) -> None:
        if self.saw_reset or self.ended:
            return
        try:
            while self.sent < self.offered:
                self.sent += self.sock.send(PATTERN[self.sent : self.offered])
        except BlockingIOError:
            return
        except OSError:
            self.saw_reset = True
            return
        if self.ending:
            self.ended = True
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def _hear(self) -> None:
        while not self.saw_end:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                self.saw_reset = self.saw_end = True
                return
            self.heard += data
            self.saw_end = not data


def play(moves: list[tuple[str, str, int]], kind: str, *, small: bool) -> None:
    with pytest.MonkeyPatch.context() as patch, no_descriptor_leak():
        if kind == "spliced":
            patch.setattr(reactor_module, "BUFFER_SIZE", 4096)
            patch.setattr(relay_module, "BUFFER_SIZE", 4096)
            patch.setattr(relay_module, "READS_PER_TURN", 2)
            patch.setattr(relay_module, "SPLICES_PER_TURN", 2)
            patch.setattr(relay_module, "MIN_SPLICED_BYTES", 4096)
        asyncio.run(_play(moves, encrypted=kind == "encrypted", small=small))


class Wire:
    """A link as its relays see it: the client's end tells the server's, now or in the next turn."""

    def __init__(self, *, is_client: bool, later: bool) -> None:
        self.relays: dict[int, Relay] = {}
        self.is_client = is_client
        self.other: Wire | None = None
        self._later = later

    def send_stream_ended(self, ident: int, total: int) -> bool:
        if not self.is_client:
            return False
        if self._later:
            asyncio.get_running_loop().call_soon(self._tell, ident, total)
        else:
            self._tell(ident, total)
        return True

    def _tell(self, ident: int, total: int) -> None:
        if self.other is not None and ident in self.other.relays:
            self.other.relays[ident].set_end_offset(total)


class Row:
    """Visitor, entrance's relay, data connection, exit's relay, target."""

    def __init__(self, shared: EngineContext, *, encrypted: bool, small: bool) -> None:
        self.shared = shared
        self.small = small
        self.events = Events()
        self.stats = Stats(), Stats()
        self.wires = Wire(is_client=False, later=small), Wire(is_client=True, later=small)
        self.wires[1].other = self.wires[0]
        left_session, right_session = tls_pair() if encrypted else (None, None)
        visitor, near = tcp_pair(small=small)
        target, out = tcp_pair(small=small)
        far, other_far = tcp_pair(small=small)
        self.programs = {"A": Program(visitor), "B": Program(target)}
        self.left = self._relay(near, far, left_session, self.stats[0].from_visitors, self.stats[0].to_visitors, 0)
        self.right = self._relay(
            out, other_far, right_session, self.stats[1].to_visitors, self.stats[1].from_visitors, 1
        )

    def _relay(
        self,
        near: socket.socket,
        far: socket.socket,
        session: TlsSession | None,
        inward: ByteCounter,
        outward: ByteCounter,
        which: int,
    ) -> Relay:
        shared = self.shared
        relays = RelaySet(shared.reactor, shared.pipes, self.stats[which], self.events.event_log(), _fail)
        data = DataConnection(
            7,
            far,
            session,
            Pool(shared.reactor, is_ingress=False, on_connection_lost=lambda _ident: None, on_crash=_fail),
        )
        shared.reactor.register(far, data.ready)
        return relays.start(near, data, self.wires[which], near_events=None, from_near=inward, to_near=outward)

    def step(self) -> None:
        for program in self.programs.values():
            program.step()

    @property
    def over(self) -> bool:
        return not self.left.open and not self.right.open

    async def wait_until_async(self, condition: Callable[[], object], what: str) -> None:
        """Let both programs talk and listen until a condition holds."""

        def stepped() -> object:
            self.step()
            return condition()

        await wait_until_async(stepped, what)

    def heard_all(self) -> bool:
        self.step()
        return self.over and all(p.gone or p.saw_end for p in self.programs.values())


async def _play(moves: list[tuple[str, str, int]], *, encrypted: bool, small: bool) -> None:
    async with shared_parts() as shared:
        row = Row(shared, encrypted=encrypted, small=small)
        for move, who, number in moves:
            program = row.programs[who]
            match move:
                case "write" if not (program.ending or program.gone):
                    program.offered += number
                case "end":
                    program.ending = True
                case "stall" | "go":
                    program.stalled = move == "stall"
                case "reset" if not program.gone:
                    close_with_reset(program.sock)
                    program.gone = True
                case "turns":
                    for _ in range(number):
                        row.step()
                        await run_loop_turns(1)
            row.step()
            await run_loop_turns(1)
        for program in row.programs.values():
            program.stalled = False
            program.ending = True
        await wait_until_async(row.heard_all, "both programs heard the end and both relays closed")
        for program in row.programs.values():
            program.sock.close()
        _judge(row.programs["A"], row.programs["B"])
        _judge(row.programs["B"], row.programs["A"])
        assert not row.events, row.events
        assert [s.active for s in row.stats] == [0, 0]
        if not any(p.gone for p in row.programs.values()):
            a, b = row.programs["A"], row.programs["B"]
            for stats in row.stats:
                assert (stats.from_visitors.total, stats.to_visitors.total) == (a.sent, b.sent)


def _fail(error: Exception) -> None:
    raise error


def _judge(speaker: Program, hearer: Program) -> None:
    """Bytes in are bytes out, the end only after all of them, a reset for a reset and for nothing else."""
    heard = len(hearer.heard)
    assert hearer.heard == PATTERN[:heard]
    assert heard <= speaker.sent
    if hearer.gone:
        return
    if hearer.saw_reset:
        assert speaker.gone, "a reset that nobody sent"
    else:
        assert speaker.ended, "an end instead of a reset"
        assert heard == speaker.sent, "the end before all bytes"


@pytest.mark.parametrize("small", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2 * settings().max_examples)
@given(moves=plays)
@example(moves=[("write", "A", LARGEST), ("end", "A", 0), ("write", "B", LARGEST), ("end", "B", 0)])
@example(moves=[("stall", "A", 0), ("write", "B", LARGEST), ("turns", "A", 6), ("end", "A", 0), ("turns", "A", 6)])
@example(moves=[("stall", "B", 0), ("write", "A", LARGEST), ("turns", "A", 6), ("reset", "A", 0), ("turns", "A", 6)])
@example(moves=[("write", "B", LARGEST), ("turns", "A", 3), ("write", "A", LARGEST), ("reset", "B", 0)])
@example(moves=[("end", "A", 0), ("turns", "A", 6), ("write", "B", LARGEST), ("turns", "A", 2), ("reset", "A", 0)])
@example(moves=[("reset", "A", 0)])
@example(moves=[("end", "B", 0), ("turns", "A", 6), ("reset", "A", 0)])
def test_bytes_in_are_bytes_out_whatever_two_programs_do(
    moves: list[tuple[str, str, int]], kind: str, *, small: bool
) -> None:
    play(moves, kind, small=small)


async def test_a_bulk_stream_is_spliced_and_its_pipe_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = 0
    splice = os.splice

    def counted(source: int, sink: int, count: int, *, flags: int) -> int:
        nonlocal spliced
        moved = splice(source, sink, count, flags=flags)
        spliced += moved
        return moved

    monkeypatch.setattr(os, "splice", counted)
    with no_descriptor_leak():
        async with shared_parts() as shared:
            row = Row(shared, encrypted=False, small=False)
            row.programs["A"].offered = len(PATTERN)
            await row.wait_until_async(lambda: len(row.programs["B"].heard) == len(PATTERN), "all has arrived")
            assert bytes(row.programs["B"].heard) == PATTERN
            for program in row.programs.values():
                program.ending = True
            await wait_until_async(row.heard_all, "both relays closed")
            for program in row.programs.values():
                program.sock.close()
    assert spliced > len(PATTERN) // 4


async def test_a_small_encrypted_message_is_not_looked_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    read_into = TlsSession.read_into

    def noted(session: TlsSession, buffer: memoryview) -> int:
        found.append(read_into(session, buffer))
        return found[-1]

    async with shared_parts() as shared:
        row = Row(shared, encrypted=True, small=False)
        monkeypatch.setattr(TlsSession, "read_into", noted)
        speaker, hearer = row.programs["A"], row.programs["B"]
        for _ in range(4):
            speaker.offered += 100
            await row.wait_until_async(lambda: len(hearer.heard) == speaker.offered, "the message came")
        assert found == [100] * 4
        for program in row.programs.values():
            program.ending = True
        await wait_until_async(row.heard_all, "both relays closed")
        for program in row.programs.values():
            program.sock.close()


@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.EHOSTUNREACH])
async def test_a_source_that_breaks_while_spliced_is_reset_and_others_are_spliced_still(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    async with shared_parts() as shared:
        row = Row(shared, encrypted=False, small=False)

        def broken(*_args: int, flags: int) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "splice", broken)
        row.programs["A"].offered = len(PATTERN)
        await row.wait_until_async(lambda: row.over, "the relays are over")
        await wait_until_async(row.heard_all, "the target has heard of it")
        assert row.programs["B"].saw_reset, "a stream that was cut off ended as if it were whole"
        assert shared.pipes.can_splice
        for program in row.programs.values():
            program.sock.close()


async def test_where_the_kernel_cannot_splice_bytes_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_args: int, flags: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "splice", unable)
    async with shared_parts() as shared:
        row = Row(shared, encrypted=False, small=False)
        row.programs["A"].offered = len(PATTERN)
        for program in row.programs.values():
            program.ending = True
        await wait_until_async(row.heard_all, "both relays closed")
        assert bytes(row.programs["B"].heard) == PATTERN
        assert not shared.pipes.can_splice
        for program in row.programs.values():
            program.sock.close()


async def test_a_defect_ends_one_relay_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with no_descriptor_leak():
        async with shared_parts() as shared:
            first, second = (Row(shared, encrypted=False, small=False) for _ in range(2))

            def defect(self: Flow, events: int) -> None:
                raise RuntimeError("a slip")

            with monkeypatch.context() as patch:
                patch.setattr(Flow, "pump", defect)
                first.programs["A"].offered = 10
                await first.wait_until_async(lambda: not first.left.open, "the relay is over")
            assert first.events.said("an internal error ended relay 7: RuntimeError: a slip")
            second.programs["A"].offered = 10
            for row in (first, second):
                for program in row.programs.values():
                    program.ending = True
                await wait_until_async(row.heard_all, "both relays closed")
                for program in row.programs.values():
                    program.sock.close()
            assert len(second.programs["B"].heard) == 10


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_is_given_up_who_was_not_reset(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(relay_module, "RESET_FLUSH_TIMEOUT_S", 0.0)
    with no_descriptor_leak():
        async with shared_parts() as shared:
            row = Row(shared, encrypted=kind == "encrypted", small=kind != "spliced")
            for number in range(1, 20):
                for program in row.programs.values():
                    program.offered = number
                await row.wait_until_async(
                    lambda number=number: all(len(p.heard) == number for p in row.programs.values()),  # type: ignore[misc]  # mypy does not infer defaults of lambdas
                    "both are heard",
                )
            for program in row.programs.values():
                program.ending = True
            await wait_until_async(row.heard_all, "both programs heard the end")
            assert not any(program.saw_reset for program in row.programs.values())
            for program in row.programs.values():
                program.sock.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_said_before_a_reset_does_not_wait_for_a_stalled_reader_for_ever(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(relay_module, "RESET_FLUSH_TIMEOUT_S", 0.2)
    with no_descriptor_leak():
        async with shared_parts() as shared:
            row = Row(shared, encrypted=kind == "encrypted", small=kind != "spliced")
            visitor, target = row.programs["A"], row.programs["B"]
            target.stalled = True
            visitor.offered = len(PATTERN)
            before = -1
            while visitor.sent > before:
                before = visitor.sent
                for _ in range(20):
                    row.step()
                    await run_loop_turns(5)
            close_with_reset(visitor.sock)
            visitor.gone = True
            await wait_until_async(lambda: row.over, "both relays are over, though the target has not moved")
            target.stalled = False
            await wait_until_async(row.heard_all, "the target looks")
            assert target.saw_reset
            assert PATTERN.startswith(target.heard)
            assert [s.active for s in row.stats] == [0, 0]
            target.sock.close()


async def test_cutting_closes_every_relay_at_once() -> None:
    with no_descriptor_leak():
        async with shared_parts() as shared:
            row = Row(shared, encrypted=False, small=False)
            row.programs["A"].offered = 10
            await row.wait_until_async(lambda: row.programs["B"].heard, "it relays")
            row.left.finish()
            row.left.finish()
            row.programs["B"].ending = True
            await wait_until_async(row.heard_all, "both programs heard the end")
            for program in row.programs.values():
                program.sock.close()


@pytest.mark.parametrize("encrypted", [False, True])
async def test_nothing_of_a_relay_waits_for_the_collector(*, encrypted: bool) -> None:
    """An encrypted one has a hundred KiB outside Python's heap, of which the garbage collector knows nothing."""
    gc.collect()
    gc.disable()
    try:
        async with shared_parts() as shared:
            row = Row(shared, encrypted=encrypted, small=False)
            for program in row.programs.values():
                program.offered = 10
                program.ending = True
            await wait_until_async(row.heard_all, "both programs heard the end and both relays closed")
            for program in row.programs.values():
                program.sock.close()
            del row, program
            await run_loop_turns(2)
            alive = [thing for thing in gc.get_objects() if isinstance(thing, (Flow, Relay, TlsSession))]
            assert [thing for thing in alive if thing is not relay_module._CLOSED_FLOW] == []
    finally:
        gc.enable()
