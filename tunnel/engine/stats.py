"""Counters of one tunnel over its whole life, across all its links."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from tunnel.forwarding.base import NearCounters
from tunnel.forwarding.flow import ByteCounter
from tunnel.model.refusals import VisitorRefusal
from tunnel.model.snapshot import CountersView, RefusedView, TrafficReading
from tunnel.model.visitor_end import VisitorEnd

NO_VISITORS_REFUSED: Final = RefusedView(**{refusal.value: 0 for refusal in VisitorRefusal})
"""The counts of an ingress that has refused no visitor."""
_ONE_REFUSED: Final = {refusal: RefusedView(**{refusal.value: 1}) for refusal in VisitorRefusal}


@dataclass(slots=True)
class Stats:
    """Counters of one tunnel. All of them only grow."""

    notify_activity: Callable[[], None] = lambda: None
    """called before the first visitor is counted while there are none, so that observers refresh at once"""
    from_visitors: ByteCounter = field(default_factory=ByteCounter)
    to_visitors: ByteCounter = field(default_factory=ByteCounter)
    total: int = 0
    """visitors for which a data connection was launched"""
    failed: int = 0
    """visitors that were closed without having reached the target"""
    signals: int = 0
    refused_handshakes: int = 0
    refused_prefaces: int = 0
    silent: int = 0
    """connections that were closed because they did not authenticate in time, or to make room for newer ones"""
    refused_visitors: RefusedView = field(default_factory=RefusedView)
    """visitors that were refused; replaced by each count, as ``counters`` is. None until this end accepts visitors"""
    beyond_limit: ByteCounter = field(default_factory=ByteCounter)
    """visitors of UDP that were refused because there was no room: there may be many, as with ``dropped``"""
    dropped: ByteCounter = field(default_factory=ByteCounter)
    """datagrams that were dropped: there may be many, so they are not counted in ``counters`` one by one"""
    counters: CountersView = field(default_factory=CountersView)
    """counts of rare events: each is counted by ``replace``, so that snapshots can share the object"""

    def near_counters(self, *, is_ingress: bool) -> NearCounters:
        """Return what counts the bytes of the near side of an end, the target's at an egress, and lost datagrams."""
        if is_ingress:
            return NearCounters(self.from_visitors, self.to_visitors, self.dropped)
        return NearCounters(self.to_visitors, self.from_visitors, self.dropped)

    def read_traffic(self, active: int) -> TrafficReading:
        """Return the bytes relayed so far, and the number of visitors present, which the caller knows."""
        return TrafficReading(self.from_visitors.total, self.to_visitors.total, active)

    def current_counters(self) -> CountersView:
        """Return the counts of rare events, and of datagrams; the same object while none has changed."""
        if self.counters.dropped_datagrams != self.dropped.total:
            self.counters = replace(self.counters, dropped_datagrams=self.dropped.total)
        return self.counters

    def current_refused(self) -> RefusedView:
        """Return the counts of refused visitors; the same object while none has changed."""
        if self.refused_visitors.limit != self.beyond_limit.total and self.refused_visitors.limit is not None:
            self.refused_visitors = replace(self.refused_visitors, limit=self.beyond_limit.total)
        return self.refused_visitors

    def start_counting_refused(self) -> None:
        """Count the visitors that are refused from now on: this end accepts them, so it knows."""
        self.refused_visitors = self.refused_visitors.plus(NO_VISITORS_REFUSED)

    def count_refused(self, refusal: VisitorRefusal) -> None:
        """Count a visitor that was refused."""
        self.refused_visitors = self.refused_visitors.plus(_ONE_REFUSED[refusal])

    def count_link(self) -> None:
        """Count a link that was established."""
        self.counters = replace(self.counters, links=self.counters.links + 1)

    def count_kicked(self, visitors: int) -> None:
        """Count visitors that were disconnected by command."""
        if visitors:
            self.counters = replace(self.counters, kicked=self.counters.kicked + visitors)

    def count_redispatched(self, visitors: int) -> None:
        """Count visitors that another link serves, because theirs was lost or could not reach its target."""
        self.counters = replace(self.counters, redispatched=self.counters.redispatched + visitors)

    def count_aborted(self, end: VisitorEnd, visitors: int) -> None:
        """Count visitors that were disconnected: a peer had vanished, a target refused them, or a limit was over."""
        counters = self.counters
        match end:
            case VisitorEnd.IDLE_TIMEOUT:
                self.counters = replace(counters, idle_timeouts=counters.idle_timeouts + visitors)
            case VisitorEnd.FAILED:
                self.failed += visitors
            case VisitorEnd.MAX_AGE:
                self.counters = replace(counters, max_ages=counters.max_ages + visitors)
            case _:
                self.counters = replace(counters, vanished=counters.vanished + visitors)
