"""The front door: what this process spends on connections that have not authenticated yet, on all its TCP ports.

There is one for each process (``EngineContext.front_door``), because the ports share descriptors, memory and CPU.

- Places: the number of pending connections is bounded in all and for each prefix (IPv4 /32, IPv6 /64: one subscriber
  has that many addresses). When places run out, the oldest pending connection is closed, never the newest: rejecting
  the newest would let an attacker that holds all places keep the legitimate client out.
- Known addresses, from which a peer has authenticated before, have places and budgets of their own. A flood from
  elsewhere, or from the same /64, does not delay them.
- Descriptors: pending connections use a quarter of the descriptors at most, and no reserved ones.
- Deadline: each pending connection has ``timeout_s`` to authenticate.
- Handshakes: public-key operations are started a few in each turn of the event loop, within a rate for each prefix and
  for the process. Prefixes take turns; the bytes of a connection that waits stay in the kernel.
- Wrong proofs (keys, tokens): after a burst, a prefix waits before its next attempt is judged.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from tunnel.model.token_bucket import TokenBucket

if TYPE_CHECKING:
    from tunnel.runtime.fd_budget import FdBudget

_IPV4_MAPPED: Final = bytes(10) + b"\xff\xff"
_IPV6_PREFIX_BYTES: Final = 8
_MAX_KNOWN: Final = 1024
_MAX_BUCKETS: Final = 4096
_ACCEPTS_PER_TURN: Final = 8
_ACCEPTS_PER_TURN_IN_FLOOD: Final = 1
_FLOOD_CONNECTIONS: Final = 64
"""So many pending connections are a flood: those of clients are authenticated as soon as their first bytes are here."""
_UNKNOWN_SHARE: Final = 0.75
"""Share of all places that unknown addresses use at most; known ones leave them the rest."""


@dataclass(frozen=True, slots=True)
class FrontDoorLimits:
    """Limits of one process on peers that have not authenticated."""

    total: int = 1024
    per_prefix: int = 256
    timeout_s: float = 10.0
    """time to authenticate; TCP, TLS and the proof take less than five seconds over a slow satellite link"""
    handshakes_per_turn: int = 1
    """of the event loop: a handshake takes about half a millisecond, during which no visitor is served"""
    handshakes_per_s: float = 400.0
    handshakes_per_prefix_per_s: float = 200.0
    wrong_proofs_at_once: int = 30
    wrong_proofs_per_s: float = 2.0
    known_wrong_proofs_per_s: float = 20.0
    """for a known address: a legitimate client may share it with an attacker"""


DEFAULT_FRONT_DOOR: Final = FrontDoorLimits()


class PeerOrigin(NamedTuple):
    """Where a connection comes from, for counting."""

    address: bytes
    prefix: bytes


def origin_of(peer: object) -> PeerOrigin:
    """Return the origin of a peer's socket address as ``accept`` gives it; one for all that are not IP addresses."""
    if not isinstance(peer, tuple) or not peer or not isinstance(peer[0], str):
        return PeerOrigin(b"", b"")
    host = peer[0]
    if ":" not in host:
        address = socket.inet_aton(host)
        return PeerOrigin(address, address)
    address = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if address.startswith(_IPV4_MAPPED):
        address = address[len(_IPV4_MAPPED) :]
        return PeerOrigin(address, address)
    return PeerOrigin(address, address[:_IPV6_PREFIX_BYTES])


class PendingPeer(Protocol):
    """A connection that has to authenticate. It is hashed by identity."""

    @property
    def origin(self) -> PeerOrigin:
        """Where it comes from."""

    @property
    def owner(self) -> object:
        """What has accepted it, for ``evict_all``."""

    def evict(self, reason: str) -> None:
        """Close the connection: its time is over, or a newer connection needs the place."""


class _Entry(NamedTuple):
    """What the front door knows of one pending connection."""

    key: bytes
    deadline: float
    is_known: bool


_Entries = dict[PendingPeer, _Entry]
_Start = Callable[[], None]
_T = TypeVar("_T")


class _HandshakeQueue:
    """Pending connections that wait for their handshake, and the budgets that they share."""

    def __init__(self, limits: FrontDoorLimits) -> None:
        self.waiting: dict[bytes, dict[PendingPeer, _Start]] = {}
        """what starts each handshake, by key; the key whose turn comes next is the first"""
        self._limits = limits
        self._total = TokenBucket(limits.handshakes_per_s, limits.handshakes_per_s, 0.0)
        self._buckets: dict[bytes, TokenBucket] = {}

    def collect_starts(self, starts: list[_Start], now: float) -> None:
        """Fill ``starts`` up to the number of one turn: the keys take turns, as far as the budgets allow."""
        while len(starts) < self._limits.handshakes_per_turn and not self._total.delay_s(now):
            key = next((key for key in self.waiting if self._bucket(key, now).take_token(now)), None)
            if key is None:
                return
            self._total.take_token(now)
            starts.append(self._pop(key))

    def delay_s(self, now: float) -> float:
        """Return the seconds until one of those that wait may start."""
        shortest = math.inf
        for key in self.waiting:  # mostly the first one: few keys of a flood are without tokens
            shortest = min(shortest, self._bucket(key, now).delay_s(now))
            if not shortest:
                break
        return max(self._total.delay_s(now), shortest)

    def _pop(self, key: bytes) -> _Start:
        starts = self.waiting.pop(key)
        start = starts.pop(next(iter(starts)))
        if starts:
            self.waiting[key] = starts  # behind the other keys
        return start

    def _bucket(self, key: bytes, now: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            rate = self._limits.handshakes_per_prefix_per_s
            bucket = self._buckets[key] = TokenBucket(rate, rate, now)
            if len(self._buckets) > _MAX_BUCKETS:
                del self._buckets[next(iter(self._buckets))]
        return bucket


class FrontDoor:
    """All pending connections of one process, and the budgets of their peers."""

    def __init__(self, fd_budget: FdBudget | None = None, limits: FrontDoorLimits = DEFAULT_FRONT_DOOR) -> None:
        self.limits = limits
        self._fd_budget = fd_budget
        self._max_total = limits.total if fd_budget is None else max(2, min(limits.total, fd_budget.limit // 4))
        self._unknown: _Entries = {}  # in the order of arrival, hence of the deadlines; so is the next one
        self._known: _Entries = {}  # from known addresses
        self._by_key: dict[bytes, _Entries] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._known_addresses: dict[bytes, None] = {}  # the latest one last
        self._known_queue = _HandshakeQueue(limits)
        self._unknown_queue = _HandshakeQueue(limits)
        self._handshakes_due = False
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._proof_buckets: dict[bytes, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._unknown) + len(self._known)

    def accepts_per_turn(self) -> int:
        """Return how many connections a listener accepts before other sockets have their turn.

        A connection of a flood takes about 0.1 ms: a visitor that passes several turns waits for one in each of them.
        """
        return _ACCEPTS_PER_TURN if len(self) < _FLOOD_CONNECTIONS else _ACCEPTS_PER_TURN_IN_FLOOD

    # --- places ---------------------------------------------------------------------------------------------------

    def admit(self, connection: PendingPeer, fd: int = -1) -> None:
        """Add a new connection, whose descriptor is ``fd``; evict the oldest one if a limit is reached."""
        origin = connection.origin
        is_known = origin.address in self._known_addresses
        key = origin.address if is_known else origin.prefix
        self._make_room(key, fd, is_known=is_known)
        loop = asyncio.get_running_loop()
        entry = _Entry(key, loop.time() + self.limits.timeout_s, is_known)
        (self._known if is_known else self._unknown)[connection] = entry
        self._by_key.setdefault(key, {})[connection] = entry
        if self._timer is None:
            self._timer = loop.call_later(self.limits.timeout_s, self._evict_expired)

    def release(self, connection: PendingPeer, *, authenticated: bool = False) -> bool:
        """Remove a connection that has authenticated or is closed; return whether it was pending."""
        entry = self._known.pop(connection, None) or self._unknown.pop(connection, None)
        if entry is None:
            return False
        _remove(self._by_key, entry.key, connection)
        _remove(self._queue_of(entry).waiting, entry.key, connection)
        if authenticated and not entry.is_known:
            self.note_authenticated(connection.origin)
        return True

    def evict_all(self, owner: object, reason: str) -> None:
        """Close all pending connections of an owner, which closes its port."""
        for connection in [c for pool in (self._unknown, self._known) for c in pool if c.owner is owner]:
            self._evict(connection, reason)

    def close(self) -> None:
        """Stop the timers; every owner has closed its connections."""
        for timer in (self._timer, self._handshake_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._handshake_timer = None

    def note_authenticated(self, origin: PeerOrigin) -> None:
        """Remember an address from which a peer has authenticated, and forget wrong proofs from there."""
        self._known_addresses.pop(origin.address, None)
        self._known_addresses[origin.address] = None
        if len(self._known_addresses) > _MAX_KNOWN:
            del self._known_addresses[next(iter(self._known_addresses))]
        self._proof_buckets.pop(origin.address, None)
        self._proof_buckets.pop(origin.prefix, None)

    def is_known(self, origin: PeerOrigin) -> bool:
        """Whether a peer has authenticated from this address before."""
        return origin.address in self._known_addresses

    def _make_room(self, key: bytes, fd: int, *, is_known: bool) -> None:
        same, share = self._by_key.get(key), _UNKNOWN_SHARE * self._max_total
        if same is not None and len(same) >= self.limits.per_prefix:
            self._evict(next(iter(same)), "too many pending connections from its address or network")
        elif not is_known and len(self._unknown) >= share:
            self._evict(next(iter(self._unknown)), "too many pending connections")
        elif len(self) >= self._max_total:
            pool = self._known if len(self._known) > share or not self._unknown else self._unknown
            self._evict(next(iter(pool)), "too many pending connections")
        elif self._unknown and self._fd_budget is not None and self._fd_budget.is_short(fd):
            self._evict(next(iter(self._unknown)), str(self._fd_budget))

    def _evict(self, connection: PendingPeer, reason: str) -> None:
        self.release(connection)
        connection.evict(reason)

    def _evict_expired(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadlines = []
        for pool in (self._unknown, self._known):
            while pool:
                connection, entry = next(iter(pool.items()))
                if entry.deadline > now:
                    deadlines.append(entry.deadline)
                    break
                self._evict(connection, "it did not authenticate in time")
        if deadlines and self._timer is None:
            self._timer = loop.call_at(min(deadlines), self._evict_expired)

    # --- handshakes -----------------------------------------------------------------------------------------------

    def request_handshake(self, connection: PendingPeer, start: _Start) -> None:
        """Call ``start`` when the expensive handshake of a pending connection may start, unless it is released."""
        entry = self._known.get(connection) or self._unknown.get(connection)
        if entry is None:
            return
        self._queue_of(entry).waiting.setdefault(entry.key, {})[connection] = start
        if not self._handshakes_due:
            self._schedule_handshakes(0.0)

    def _queue_of(self, entry: _Entry) -> _HandshakeQueue:
        return self._known_queue if entry.is_known else self._unknown_queue

    def _schedule_handshakes(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._handshakes_due = True
        if delay_s:
            self._handshake_timer = loop.call_later(delay_s, self._start_handshakes)
        else:
            loop.call_soon(self._start_handshakes)

    def _start_handshakes(self) -> None:
        """Start a few handshakes; continue in the next turn, or when a budget allows it."""
        self._handshakes_due, self._handshake_timer = False, None
        now = asyncio.get_running_loop().time()
        starts: list[_Start] = []
        for queue in (self._known_queue, self._unknown_queue):
            queue.collect_starts(starts, now)
        delays = [queue.delay_s(now) for queue in (self._known_queue, self._unknown_queue) if queue.waiting]
        if delays:
            self._schedule_handshakes(min(delays))
        for start in starts:
            start()

    # --- wrong proofs ---------------------------------------------------------------------------------------------

    async def wait_to_verify(self, origin: PeerOrigin) -> None:
        """Return when a proof from this origin may be judged: at once, unless many were wrong. Safe to cancel.

        The times are random, so that none of the peers that share an address waits behind all others.
        """
        loop = asyncio.get_running_loop()
        while True:
            bucket = self._proof_buckets.get(self._proof_key(origin))
            delay_s = bucket.delay_s(loop.time()) if bucket is not None else 0.0
            if not delay_s:
                return
            await asyncio.sleep(delay_s * (1.0 + random.random()))  # noqa: S311  no secret

    def note_wrong_proof(self, origin: PeerOrigin) -> None:
        """Count a wrong key or token; the caller has to call this in the same turn in which it judged the proof."""
        key, now = self._proof_key(origin), asyncio.get_running_loop().time()
        bucket = self._proof_buckets.pop(key, None)
        if bucket is None:
            limits = self.limits
            rate = limits.known_wrong_proofs_per_s if self.is_known(origin) else limits.wrong_proofs_per_s
            bucket = TokenBucket(rate, limits.wrong_proofs_at_once, now)
            if len(self._proof_buckets) >= _MAX_BUCKETS:
                del self._proof_buckets[next(iter(self._proof_buckets))]
        self._proof_buckets[key] = bucket  # the latest one last
        bucket.take_token(now)

    def _proof_key(self, origin: PeerOrigin) -> bytes:
        return origin.address if self.is_known(origin) else origin.prefix


def _remove(by_key: dict[bytes, dict[PendingPeer, _T]], key: bytes, connection: PendingPeer) -> None:
    of_key = by_key.get(key)
    if of_key is not None and of_key.pop(connection, None) is not None and not of_key:
        del by_key[key]
