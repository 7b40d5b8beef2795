"""Admission of visitors: lists of networks, visitors per address, new visitors per second and address. No I/O.

Addresses are packed, as ``tunnel.protocol.visitor_address.pack_host`` returns them. An IPv6 /64 counts as one address:
it is the smallest network that a provider assigns to a customer (RFC 6177), and has 2^64 addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tunnel.model.refusals import VisitorRefusal
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.model.networks import NetworkSet
    from tunnel.model.spec import TunnelSpec

_SUBNET_BYTES: Final = 8  # an IPv6 /64
MAX_RATED_ADDRESSES: Final = 65_536
"""Addresses whose rate is known, in each of two generations: about 15 MB for both."""


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """The options of a tunnel that decide about its visitors."""

    allow: NetworkSet
    deny: NetworkSet
    max_per_address: int
    rate_new: float

    @classmethod
    def of(cls, spec: TunnelSpec) -> AdmissionRules:
        """Return the rules in a spec."""
        return cls(spec.allow, spec.deny, spec.max_per_address, spec.rate_new)

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.allow or self.deny or self.max_per_address or self.rate_new)


class NewVisitorRates:
    """How many new visitors each address may have per second: a token bucket for each, with the burst of one second.

    A bucket is one number, the time at which it is full again (the generic cell rate algorithm, ITU-T I.371). A full
    one need not be known. So the addresses are kept in two generations: those of the present period, and of the one
    before. A period is as long as an empty bucket needs to fill; with ``max_addresses`` it ends earlier.
    """

    def __init__(self, per_s: float, now: float, max_addresses: int = MAX_RATED_ADDRESSES) -> None:
        """``per_s`` is above 0; ``now`` is in seconds on any monotonic clock."""
        self._cost_s = 1 / per_s
        self._burst_s = max(1.0, self._cost_s)
        self._max_addresses = max_addresses
        self._full_at: dict[bytes, float] = {}
        self._former: dict[bytes, float] = {}
        self._period_began = now

    def __len__(self) -> int:
        return len(self._full_at) + len(self._former)

    def take_token(self, key: bytes, now: float) -> bool:
        """Take a token of an address; return whether there was one."""
        if now - self._period_began >= self._burst_s or len(self._full_at) >= self._max_addresses:
            is_recent = now - self._period_began < 2 * self._burst_s
            self._former, self._full_at = (self._full_at if is_recent else {}), {}
            self._period_began = now
        full_at = self._full_at.get(key)
        if full_at is None:
            full_at = self._former.get(key, now)
        full_at = max(full_at, now) + self._cost_s
        if full_at - now > self._burst_s * (1 + 1e-9):
            return False
        self._full_at[key] = full_at
        return True


class Admission:
    """Decides about the visitors of one ingress by its rules, and counts those that are present."""

    def __init__(self, rules: AdmissionRules, now: float, present: Iterable[bytes] = ()) -> None:
        """``present`` are the packed addresses of the visitors that were admitted before; all of them are counted."""
        self.rules = rules
        self._allow, self._deny = rules.allow or None, rules.deny or None
        self._max_per_address = rules.max_per_address
        self._rates = NewVisitorRates(rules.rate_new, now) if rules.rate_new else None
        self._present: dict[bytes, int] = {}
        if self.counts_visitors:
            for packed in present:
                self._enter(_count_key(packed))

    @property
    def counts_visitors(self) -> bool:
        """Whether ``leave`` has to be called for each visitor that was admitted."""
        return self._max_per_address > 0

    def admit(self, packed: bytes, now: float) -> VisitorRefusal | None:
        """Count a new visitor; or return why it is refused. An address that is not known is ``b""``."""
        if self._deny is not None and packed in self._deny:
            return VisitorRefusal.ALLOW
        if self._allow is not None and packed not in self._allow:
            return VisitorRefusal.ALLOW
        if self._rates is None and not self._max_per_address:
            return None
        key = _count_key(packed)
        if self._max_per_address and self._present.get(key, 0) >= self._max_per_address:
            return VisitorRefusal.PER_ADDRESS
        if self._rates is not None and not self._rates.take_token(key, now):
            return VisitorRefusal.RATE
        if self._max_per_address:
            self._enter(key)
        return None

    def leave(self, packed: bytes) -> None:
        """Count a visitor as gone; one that was never counted is no fault."""
        key = _count_key(packed)
        left = self._present.get(key, 0) - 1
        if left > 0:
            self._present[key] = left
        else:
            self._present.pop(key, None)

    def count_of(self, packed: bytes) -> int:
        """Return how many visitors an address has now, as far as they are counted."""
        return self._present.get(_count_key(packed), 0)

    def describe(self, refusal: VisitorRefusal, packed: bytes) -> str:
        """Return why a visitor was refused, as the end of a sentence."""
        if refusal is VisitorRefusal.PER_ADDRESS:
            return f"its address has {plural(self._max_per_address, 'visitor')} already (max_per_address)"
        if refusal is VisitorRefusal.RATE:
            return f"its address had more than {self.rules.rate_new:g} new visitors per second (rate_new)"
        if self._deny is not None and packed in self._deny:
            return "its address is in deny"
        return "its address is not in allow"

    def _enter(self, key: bytes) -> None:
        self._present[key] = self._present.get(key, 0) + 1


def _count_key(packed: bytes) -> bytes:
    """Return what counts as one address: an IPv4 address, an IPv6 /64."""
    return packed[:_SUBNET_BYTES]
