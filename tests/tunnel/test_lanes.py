"""Visitors in lanes of a shared connection move to data connections of their own, whatever two programs do."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.engine_parts import no_descriptor_leak
from tests.support.sockets import tcp_pair
from tests.tunnel.test_relay import (
    LARGEST,
    PATTERN,
    SECRET,
    FakeLink,
    RelayChain,
    RelayParts,
    check_outcome,
    play_script,
    relay_parts,
    scripts,
)
from tunnel.carriers import create_carrier
from tunnel.engine.link_sharing import LinkSharing
from tunnel.engine.pool import DataConnection, Pool
from tunnel.engine.relays import RelaySet
from tunnel.engine.shared_connection import SharedConnection
from tunnel.model.rate import Rate
from tunnel.model.spec import Carrier, Mux

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tunnel.engine.control_channel import ControlChannel
    from tunnel.engine.link import Link
    from tunnel.forwarding.base import ForwardedVisitor
    from tunnel.forwarding.lanes import Lane

SHARED_IDENT, MOVED_IDENT = 7, 8
KINDS = {"plain": Carrier.TCP, "encrypted": Carrier.ENCRYPTED}


class FakeLaneLink(FakeLink):
    """A link with a shared connection, whose frames take as long as a test wants, in order."""

    is_ingress = False

    def __init__(self, *, is_client: bool, reuses: bool, sends: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(is_client=is_client, delays=False, reuses=reuses)
        self.peer: LaneEnd
        self.sharing = LinkSharing(Mux.ON, cast("ControlChannel", None))
        self.pool: Pool
        self._sends = sends

    def claim(self, ident: int) -> DataConnection | None:
        """Return a data connection to move to."""
        return self.pool.claim(ident)

    def send_stream_ended(self, ident: int, total: int) -> bool:
        """Announce an end, after all frames before."""
        if not self.announces_ends:
            return False
        self._sends(lambda: self.peer.receive_ended(ident, total))
        return True


class SlowSharedConnection(SharedConnection):
    """A shared connection whose frames may arrive later than those of the link."""

    chance = random.Random(0)

    def _read(self) -> None:
        if self.chance.random() < 0.3:
            asyncio.get_running_loop().call_later(self.chance.random() / 300, self._read_now)
        else:
            super()._read()

    def _read_now(self) -> None:
        if self._is_open:
            super()._read()


@dataclass
class LaneEnd:
    """The ingress or egress of one visitor, as a shared connection sees it."""

    relays: RelaySet
    link: FakeLaneLink
    is_ingress: bool
    out: socket.socket
    connects_at_once: bool = True
    relay: ForwardedVisitor | None = None
    lane: Lane | None = None
    shared: SharedConnection | None = None
    violations: list[str] = field(default_factory=list)

    def serve_lane(self, _link: Link, lane: Lane) -> None:
        """Relay to the target, now or later."""
        self.lane = lane
        if self.connects_at_once:
            self.connect()

    def connect(self) -> None:
        """Start the relay to the target, if there is a visitor."""
        if self.lane is not None and self.relay is None:
            self.relay = self.relays.start(self.out, self.lane, self.link, near_events=None)

    def move_visitor(self, _link: Link, lane: Lane) -> None:
        """Move, or ask for it."""
        if not lane.may_move:
            return
        if not self.is_ingress:
            lane.send_wanted()
        elif (data := self.link.pool.claim(MOVED_IDENT)) is not None:
            lane.move_to(data)

    def on_lane_failed(self, _link: Link, lane: Lane, reason: str) -> None:
        """Fail the test: every visitor is served."""
        raise AssertionError(f"{lane.number}: {reason}")

    def on_lane_reset(self, _link: Link, lane: Lane) -> None:
        """Relay all the same, if the target is connected later."""

    def receive_ended(self, ident: int, total: int) -> None:
        """Handle an announced end, as ``Egress`` does."""
        relay = self.relays.find(self.link, ident)
        if relay is not None:
            relay.set_end_offset(total)
        elif (data := self.link.sharing.find_moved(ident) or self.link.pool.find(ident)) is not None:
            data.end_offset = total

    def on_shared_lost(self, _shared: SharedConnection) -> None:
        """Serve no visitor again."""

    def on_shared_closed(self, _shared: SharedConnection, violation: str | None, _lost: int) -> None:
        """Note what was wrong."""
        if violation is not None:
            self.violations.append(violation)

    def on_handler_error(self, error: Exception) -> None:
        """Fail the test: no handler may raise."""
        raise error


class LaneChain(RelayChain):
    """Visitor, relay of the ingress, lane, relay of the egress, target; a data connection may replace the lane."""

    def __init__(
        self,
        parts: RelayParts,
        *,
        carrier: Carrier,
        has_small_buffers: bool = False,
        client_is_ingress: bool = False,
        reuses: bool = False,
        may_move: bool = True,
        connects_at_once: bool = True,
        seed: int = 0,
    ) -> None:
        self.random = SlowSharedConnection.chance = random.Random(seed)
        self.under_way: list[deque[Callable[[], None]]] = [deque(), deque()]
        self.may_move, self.connects_at_once = may_move, connects_at_once
        self.client_is_ingress, self._reuses = client_is_ingress, reuses
        self.cuts_after: int | None = None
        """steps after which the shared connection is lost"""
        super().__init__(parts, carrier=carrier, has_small_buffers=has_small_buffers, reuses=reuses)

    def _make_links(self) -> tuple[FakeLaneLink, ...]:
        clients = (self.client_is_ingress, not self.client_is_ingress)
        return tuple(
            FakeLaneLink(is_client=is_client, reuses=self._reuses, sends=queue.append)
            for is_client, queue in zip(clients, self.under_way, strict=True)
        )

    def _join(self, near: socket.socket, out: socket.socket, *, has_small_buffers: bool) -> None:
        links = self._make_links()
        self.links = links
        for relays, link in zip(self.sets, links, strict=True):
            relays.add_link(link)
        far, moved = tcp_pair(small=has_small_buffers), tcp_pair(small=has_small_buffers)
        self.ends = []
        for index, link in enumerate(links):
            link.is_ingress = not index
            data = self._connect(link, MOVED_IDENT, moved[index])
            link.pool = data.pool
            if self.may_move or index:
                link.pool.add(data, is_registered=True)
            else:
                data.close()
            end = LaneEnd(
                self.sets[index],
                link,
                is_ingress=link.is_ingress,
                out=out,
                connects_at_once=self.connects_at_once,
            )
            self.ends.append(end)
            connection = self._connect(link, SHARED_IDENT, far[index])
            end.shared = SlowSharedConnection(self.parts.reactor, connection, cast("Link", link), end)
            link.sharing.add(end.shared)
        links[0].peer, links[1].peer = self.ends[1], self.ends[0]
        shared = self.ends[0].shared
        assert shared is not None
        shared.promised = 1  # as the egress will say, too
        lane = shared.create_lane()
        assert lane is not None
        lane.open()
        self.ends[0].lane = lane
        self.ends[0].relay = self.sets[0].start(near, lane, links[0], near_events=None)

    def _connect(self, link: FakeLaneLink, ident: int, far: socket.socket) -> DataConnection:
        reactor = self.parts.reactor
        pool = Pool(reactor, is_ingress=False, on_connection_lost=lambda _ident: None, on_crash=_fail)
        carrier = create_carrier(self.carrier, SECRET, reactor.scratch, is_client=link.is_client)
        data = DataConnection(ident, far, carrier, pool)
        reactor.register(far, data.ready)
        return data

    def step(self) -> None:
        """Let both programs act, and some frames of the link arrive."""
        super().step()
        if self.random.random() < 0.3:
            self.ends[1].connect()
        if self.cuts_after is not None:
            self.cuts_after -= 1
            if self.cuts_after < 0:
                self.cuts_after = None
                self._cut()
        for queue in self.under_way:
            while queue and self.random.random() < 0.5:
                queue.popleft()()

    def _cut(self) -> None:
        """Lose the shared connection, and all that is under way in it."""
        for end in self.random.sample(self.ends, 2):
            if end.shared is not None:
                end.shared.close()
        if self.ends[1].lane is None:  # the egress never learns of the visitor
            self.ends[1].out.close()
            self.programs["B"].has_reset = True

    @property
    def is_closed(self) -> bool:
        """Whether both ends have no visitor any more."""
        return all(not end.relay.is_open if end.relay is not None else end.out.fileno() < 0 for end in self.ends)

    def close(self) -> None:
        """Close what the visitor has not used."""
        for end in self.ends:
            if end.shared is not None:
                end.shared.close()
            end.link.pool.close()


def _fail(error: Exception) -> None:
    raise error


@dataclass
class Chance:
    """What else happens to a visitor, by chance."""

    seed: int
    cuts: bool = False

    def chain(self, parts: RelayParts, carrier: Carrier) -> LaneChain:
        """Create a chain with everything that a script does not say at random."""
        chance = random.Random(self.seed)
        chain = LaneChain(
            parts,
            carrier=carrier,
            has_small_buffers=chance.random() < 0.5,
            client_is_ingress=chance.random() < 0.5,
            reuses=chance.random() < 0.3,
            may_move=chance.random() < 0.9,
            connects_at_once=chance.random() < 0.7,
            seed=self.seed,
        )
        chain.cuts_after = chance.randrange(30) if self.cuts else None
        if chance.random() < 0.2:
            for relays in chain.sets:
                relays.set_rates(Rate(400_000_000), Rate(200_000_000))
        return chain


async def play(script: list[tuple[str, str, int]], kind: str, chance: Chance) -> None:
    """Play a script in a lane."""
    async with relay_parts() as parts:
        chain = chance.chain(parts, KINDS[kind])
        try:
            await play_script(chain, script)
        finally:
            for queue in chain.under_way:
                while queue:
                    queue.popleft()()
            chain.close()
        if chance.cuts:
            check_cut(chain)
        else:
            assert not [end.violations for end in chain.ends if end.violations]
            check_outcome(chain)


def check_cut(chain: LaneChain) -> None:
    """Whatever was lost with the shared connection shows as a reset, never as an end."""
    a, b = chain.programs["A"], chain.programs["B"]
    for sender, receiver in ((a, b), (b, a)):
        count = len(receiver.received)
        assert receiver.received == PATTERN[:count]
        if not (receiver.has_reset or receiver.saw_reset):
            assert sender.has_ended, "an end instead of a reset"
            assert count == sender.sent, "the end before all bytes"
    assert not chain.events, chain.events
    assert [relays.active for relays in chain.sets] == [0, 0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3 * settings().max_examples)
@given(script=scripts, seed=st.integers(0, 1 << 32))
@example(script=[("write", "A", LARGEST), ("end", "A", 0), ("write", "B", LARGEST), ("end", "B", 0)], seed=1)
@example(script=[("write", "A", LARGEST), ("end", "A", 0), ("turns", "A", 6), ("write", "B", 5)], seed=2)
def test_bytes_in_are_bytes_out_whatever_two_programs_do_in_a_lane(
    script: list[tuple[str, str, int]], kind: str, seed: int
) -> None:
    with no_descriptor_leak():
        asyncio.run(play(script, kind, Chance(seed)))


@pytest.mark.parametrize("kind", KINDS)
@given(script=scripts, seed=st.integers(0, 1 << 32))
@example(script=[("write", "A", LARGEST), ("turns", "A", 6), ("write", "B", LARGEST), ("end", "B", 0)], seed=1)
def test_what_is_lost_with_a_shared_connection_is_shown_as_a_reset(
    script: list[tuple[str, str, int]], kind: str, seed: int
) -> None:
    with no_descriptor_leak():
        asyncio.run(play(script, kind, Chance(seed, cuts=True)))
