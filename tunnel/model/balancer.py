"""Chooses a link or a target for a visitor: the algorithms that HAProxy calls ``balance``. Pure, without a clock.

The owner keeps a balancer for a set of members and calls ``set_members`` when the set, a weight or a backup changes.
For each visitor it calls ``choose``. Time, health and sockets are the owner's.

- ``roundrobin``: the members take turns by weight, spread evenly (the smooth algorithm of nginx).
- ``leastconn``: the member with the fewest visitors for its weight; equal ones take turns.
- ``first``: the first member that is ready, in the order of the set. The others serve what it cannot.
- ``source``: visitors of one address get the same member as long as it is ready. The algorithm is rendezvous hashing
  (Thaler and Ravishankar 1998): another member in the set, or one less, moves only the visitors that must move.
"""

from __future__ import annotations

import enum
import math
from abc import ABC, abstractmethod
from hashlib import blake2b
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MAX_WEIGHT: Final = 256
"""The greatest weight, as in HAProxy."""
_MIN_RAMP: Final = 0.05
"""The share of its weight with which a member starts: with none it would get no visitor at all."""


class Balance(enum.StrEnum):
    """How visitors are distributed over links or targets."""

    ROUNDROBIN = "roundrobin"
    LEASTCONN = "leastconn"
    FIRST = "first"
    SOURCE = "source"


class BalancedMember(Protocol):
    """A link or a target. It is hashed by identity."""

    @property
    def balance_key(self) -> bytes:
        """What stays the same when the member comes back: ``source`` hashes it, so it is unique in the set."""

    @property
    def balance_weight(self) -> float:
        """Its share of the visitors in relation to the others, now; 0: it gets no new ones."""

    @property
    def is_backup(self) -> bool:
        """Whether it gets visitors only while no other member of the set has a weight."""

    @property
    def active_visitors(self) -> int:
        """Its present visitors, for ``leastconn``."""


MemberT = TypeVar("MemberT", bound=BalancedMember)


def ramped_weight(weight: float, age_s: float, slowstart_s: float) -> float:
    """Return the weight of a member that is in order since ``age_s``: it grows to ``weight`` over ``slowstart_s``."""
    if age_s >= slowstart_s:
        return weight
    return weight * max(_MIN_RAMP, age_s / slowstart_s)


class Balancer(ABC, Generic[MemberT]):
    """The members that are in order, and whose turn comes next. ``create_balancer`` makes one."""

    needs_source: ClassVar[bool] = False
    """whether ``choose`` looks at the source"""

    def __init__(self) -> None:
        self._primary: tuple[MemberT, ...] = ()
        self._spare: tuple[MemberT, ...] = ()

    @property
    def members(self) -> tuple[MemberT, ...]:
        """The members among which visitors are distributed now: the backup ones only if there is no other."""
        return self._primary

    def set_members(self, members: Iterable[MemberT]) -> None:
        """Replace the set: all members that are in order, in their order of preference.

        The turns of members that stay continue.
        """
        weighted = [member for member in members if member.balance_weight > 0]
        backup = tuple(member for member in weighted if member.is_backup)
        primary = tuple(member for member in weighted if not member.is_backup)
        self._primary, self._spare = (primary, backup) if primary else (backup, ())
        self._on_members_changed()

    def choose(
        self, source: bytes, is_ready: Callable[[MemberT], bool] | None = None, *, use_backup: bool = False
    ) -> MemberT | None:
        """Return the member for a visitor from the address ``source``; None if none of ``members`` is ready.

        ``is_ready`` says whether a member can take this visitor: it has an idle data connection, or has not failed
        for this visitor before. Without it every member can, which costs less. With ``use_backup`` the backup members
        follow when no other is ready.
        """
        if is_ready is None:
            return self._choose(self._primary, source) if self._primary else None
        ready = [member for member in self._primary if is_ready(member)]
        if not ready and use_backup:
            ready = [member for member in self._spare if is_ready(member)]
        return self._choose(ready, source) if ready else None

    def _on_members_changed(self) -> None:
        """Forget members that are gone."""

    @abstractmethod
    def _choose(self, ready: Sequence[MemberT], source: bytes) -> MemberT:
        """Return one of ``ready``, which has at least one member."""


class _Turns(Balancer[MemberT]):
    """Members that take turns by weight."""

    def __init__(self) -> None:
        super().__init__()
        self._credits: dict[MemberT, float] = {}

    def _on_members_changed(self) -> None:
        self._credits = {member: self._credits.get(member, 0.0) for member in (*self._primary, *self._spare)}

    def _choose(self, ready: Sequence[MemberT], source: bytes) -> MemberT:
        del source
        present, total = self._credits, 0.0
        for member in ready:
            weight = member.balance_weight
            total += weight
            present[member] += weight
        chosen = max(ready, key=present.__getitem__)
        present[chosen] -= total
        return chosen


class _FewestVisitors(_Turns[MemberT]):
    """The members with the fewest visitors for their weights take turns."""

    def _choose(self, ready: Sequence[MemberT], source: bytes) -> MemberT:
        loads = [(member.active_visitors + 1) / max(member.balance_weight, 1e-9) for member in ready]
        least = min(loads)
        return super()._choose([member for member, load in zip(ready, loads, strict=True) if load == least], source)


class _First(Balancer[MemberT]):
    def _choose(self, ready: Sequence[MemberT], source: bytes) -> MemberT:
        del source
        return ready[0]


class _BySource(Balancer[MemberT]):
    needs_source = True

    def _choose(self, ready: Sequence[MemberT], source: bytes) -> MemberT:
        return max(ready, key=lambda member: _score(source, member))


def _score(source: bytes, member: BalancedMember) -> tuple[float, bytes]:
    """Return the weighted score of a member for a source; the shares of the highest scores are as the weights."""
    digest = blake2b(source, digest_size=8, key=blake2b(member.balance_key, digest_size=32).digest()).digest()
    share = ((int.from_bytes(digest) >> 12) + 0.5) / 2.0**52  # exact in a float, and neither 0 nor 1
    return -member.balance_weight / math.log(share), member.balance_key


def create_balancer(balance: Balance) -> Balancer[MemberT]:
    """Return a balancer without members."""
    if balance is Balance.ROUNDROBIN:
        return _Turns()
    if balance is Balance.LEASTCONN:
        return _FewestVisitors()
    return _First() if balance is Balance.FIRST else _BySource()
