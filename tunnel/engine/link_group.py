"""The links of an ingress when there are several: which of them serves the next visitor."""

from __future__ import annotations

import asyncio
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeVar

from tunnel.model.balancer import Balance, Balancer, create_balancer, ramped_weight
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.protocol.visitor_address import host_of, pack_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tunnel.engine.link import Link
    from tunnel.model.events import EventLog
    from tunnel.protocol.frames import TargetStatus

CarriageT = TypeVar("CarriageT")


class GroupedLink:
    """A link as the balancer sees it."""

    __slots__ = ("_count_visitors", "balance_key", "balance_weight", "idle", "in_order_since", "link")

    def __init__(self, link: Link, count_visitors: Callable[[Link], int]) -> None:
        self.link = link
        self.idle = link.pool.idle
        self.balance_key = b""
        self.balance_weight = 0.0
        self.in_order_since: float | None = None
        """when its target came in order, on the loop's clock; None while the target cannot be reached"""
        self._count_visitors = count_visitors

    @property
    def is_backup(self) -> bool:
        """Whether its client or server is to be used only without any other."""
        link = self.link
        return link.is_server_backup if link.is_client else link.is_backup

    @property
    def weight(self) -> int:
        """The weight that its client has asked for, or that this client gives to its server."""
        link = self.link
        return link.server_weight if link.is_client else link.weight

    @property
    def active_visitors(self) -> int:
        """The visitors that are served over the link."""
        return self._count_visitors(self.link)

    def update_weight(self, now: float, slowstart_s: float) -> bool:
        """Set the weight that it has at ``now``; return whether the weight still grows."""
        weight = 0 if self.link.is_drained else self.weight
        age_s = slowstart_s if self.in_order_since is None else now - self.in_order_since
        self.balance_weight = ramped_weight(weight, age_s, slowstart_s)
        return age_s < slowstart_s


_has_idle: Final = attrgetter("idle")  # called for each visitor and link: a function of Python takes four times as long


class LinkGroup:
    """Chooses among the links whose target is in order; among all that are wanted, if there is none in order."""

    def __init__(self, count_visitors: Callable[[Link], int]) -> None:
        self._count_visitors = count_visitors
        self._loop = asyncio.get_running_loop()
        self._balance = Balance.ROUNDROBIN
        self._slowstart_s = 0.0
        self._balancer: Balancer[GroupedLink] = create_balancer(self._balance)
        self._members: dict[Link, GroupedLink] = {}
        self._is_ramping = False  # whether the weight of a member still grows

    def configure(self, balance: Balance, slowstart_s: float) -> None:
        """Distribute visitors in this way from now on."""
        self._slowstart_s = slowstart_s
        if balance is not self._balance:
            self._balance, self._balancer = balance, create_balancer(balance)
        self.refresh()

    def set_links(self, links: Iterable[Link]) -> None:
        """Use these links, in the order of preference."""
        keys: dict[bytes, int] = {}
        members = {}
        for link in links:
            # The host of a client and the name of its key stay the same when it comes back; its port does not.
            host = link.channel.peer.rpartition(":")[0] if link.server is None else str(link.server)
            name = f"{link.key_name or ''}\0{host}".encode()
            keys[name] = keys.get(name, 0) + 1
            key = b"%s\0%d" % (name, keys[name])
            member = self._members.get(link) or GroupedLink(link, self._count_visitors)
            member.balance_key = key  # another one after the loss of another client of the host
            members[link] = member
        is_first_set = not self._members
        self._members = members
        self.refresh(is_grown=not is_first_set)

    def refresh(self, *, is_grown: bool = True) -> None:
        """Consider again whose target is in order. A link that comes in order starts slowly if ``is_grown``."""
        now = self._loop.time()
        for member in self._members.values():
            if member.link.session.target_error is not None:
                member.in_order_since = None
            elif member.in_order_since is None:
                member.in_order_since = now if is_grown else float("-inf")
        willing = [member for member in self._members.values() if member.weight and not member.link.is_drained]
        fit = [member for member in willing if member.in_order_since is not None]
        self._update_weights(now)
        self._balancer.set_members(fit or willing)

    def _update_weights(self, now: float) -> None:
        # A list: each member gets its weight, and any() would stop at the first that still grows.
        self._is_ramping = True in [member.update_weight(now, self._slowstart_s) for member in self._members.values()]

    def note_target(self, link: Link, status: TargetStatus, event_log: EventLog) -> None:
        """Stop or start to give visitors to a link, whose client has reported whether its target can be reached."""
        self.refresh()
        state = status.error or "its target answers again"
        level = LogLevel.WARN if status.error else LogLevel.INFO
        event_log.log_paced(level, EventKind.TARGET, "client", f"{link.description}: {state}")

    def acquire(self, peer: object, take: Callable[[Link], CarriageT | None]) -> tuple[Link, CarriageT] | None:
        """Return the link for a visitor from this address, and what ``take`` takes from it; None if there is none."""
        if self._is_ramping:
            self._update_weights(self._loop.time())
        source = host_of(pack_address(peer)) if self._balancer.needs_source else b""
        while (member := self._balancer.choose(source, _has_idle)) is not None:
            data = take(member.link)
            if data is not None:
                return member.link, data
        return None
