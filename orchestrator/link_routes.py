"""The links between the tunnels of a fleet: which two tunnels are the ends of each. Pure.

A tunnel with several clients or servers has several links, and is an end of as many routes: the branches of its path.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final, Protocol, TypedDict, TypeVar

from orchestrator.mqtt.fleet import GONE, ONLINE, SILENT
from orchestrator.table import count_up_targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.mqtt.fleet import Fleet
    from orchestrator.status.json_types import TunnelJson

_OTHER_ROLE: Final = {"server": "client", "client": "server"}
_PRESENCE_ORDER: Final = {ONLINE: 0, SILENT: 1, GONE: 2}  # where two tunnels claim one end of a link


class RouteEndJson(TypedDict):
    """One end of a route, as ``fleet ps --json --routes`` shows it."""

    host: str
    presence: str
    tunnel: str
    role: str
    state: str
    reason: str | None
    address: str


class RouteJson(TypedDict):
    """One route, as ``fleet ps --json --routes`` shows it."""

    link: str | None
    link_state: str | None
    direction: str | None
    up: bool
    ingress: RouteEndJson | None
    egress: RouteEndJson | None


class LinkSide(Protocol):
    """A tunnel as one end of a link."""

    @property
    def links(self) -> Sequence[str]:
        """The ids of its links; without a link, that of the last one it had."""

    @property
    def lost_links(self) -> Sequence[str]:
        """The ids of links that it lost while it had others."""

    @property
    def role(self) -> str:
        """Role of the tunnel: ``server`` or ``client``."""

    @property
    def presence(self) -> str:
        """The presence of its host."""

    @property
    def place(self) -> str:
        """Its host and name, for users."""


_Side = TypeVar("_Side", bound=LinkSide)
_Pair = tuple[str | None, _Side | None, _Side | None]
"""link, server, client"""


@dataclass(frozen=True, slots=True)
class HostTunnel:
    """A tunnel on its host."""

    host: str
    presence: str
    tunnel: TunnelJson
    last_link: str | None = None
    lost_links: Sequence[str] = ()

    @property
    def links(self) -> Sequence[str]:
        """The ids of its links; without a link, that of the last one that was seen."""
        link = self.tunnel["link"] or self.last_link
        if len(self.tunnel["links"]) < 2:  # nearly always
            return (link,) if link else ()
        return [one["id"] for one in self.tunnel["links"]]

    def has_link(self, link: str | None) -> bool:
        """Whether this is one of its present links, as far as is known."""
        return self.tunnel["link"] == link or any(one["id"] == link for one in self.tunnel["links"])

    @property
    def role(self) -> str:
        """Role of the tunnel: ``server`` or ``client``."""
        return self.tunnel["role"]

    @property
    def is_up(self) -> bool:
        """Whether it is up, as far as is known."""
        return self.presence == ONLINE and self.tunnel["state"] == "up"

    @property
    def place(self) -> str:
        """Host and name, as ``HOST/TUNNEL``."""
        return f"{self.host}/{self.tunnel['name']}"

    @property
    def shown_state(self) -> str:
        """Its state; while its host is not online, the last one."""
        return self.tunnel["state"] if self.presence == ONLINE else f"{self.presence}, was {self.tunnel['state']}"

    def as_json(self) -> RouteEndJson:
        """One end of a route, as ``fleet ps --json --routes`` shows it."""
        return {
            "host": self.host,
            "presence": self.presence,
            "tunnel": self.tunnel["name"],
            "role": self.tunnel["role"],
            "state": self.tunnel["state"],
            "reason": self.tunnel["reason"],
            "address": self.tunnel["target_addr"],
        }


@dataclass(frozen=True, slots=True)
class LinkRoute:
    """The way of visitors over one link: visitor, ingress, egress, target. One of the two ends may be unknown."""

    link: str | None
    server: HostTunnel | None
    client: HostTunnel | None

    @property
    def is_up(self) -> bool:
        """Whether both ends are known and up, and have this link."""
        return all(end is not None and end.is_up and end.has_link(self.link) for end in (self.server, self.client))

    @property
    def link_state(self) -> str | None:
        """What the ingress says of one of its links; None if it has none, or only this one."""
        ingress = self.ingress
        links = ingress.tunnel["links"] if ingress else []
        return next((one["state"] for one in links if one["id"] == self.link), None) if len(links) > 1 else None

    @property
    def direction(self) -> str | None:
        """``reverse`` or ``forward``, as either end knows it."""
        ends = (end for end in (self.server, self.client) if end is not None)
        return next((end.tunnel["direction"] for end in ends if end.tunnel["direction"]), None)

    @property
    def ingress(self) -> HostTunnel | None:
        """The end that accepts visitors."""
        return self.client if self.direction == "forward" else self.server

    @property
    def egress(self) -> HostTunnel | None:
        """The end that dials targets."""
        return self.server if self.direction == "forward" else self.client

    def __str__(self) -> str:
        """``visitors → ADDRESS HOST/TUNNEL (state) ═ HOST/TUNNEL (state) → ADDRESS``."""
        return f"{self.describe_ingress()} {self.describe_branch()}"

    def describe_ingress(self) -> str:
        """``visitors → ADDRESS HOST/TUNNEL (state)``."""
        ingress = self.ingress
        return (
            f"visitors → {ingress.tunnel['target_addr']} {ingress.place} ({ingress.shown_state})"
            if ingress
            else "visitors → ?"
        )

    def describe_branch(self) -> str:
        """``═ HOST/TUNNEL (state) → ADDRESS``, with the state of a link that gets no visitors."""
        egress = self.egress
        right = f"{egress.place} ({egress.shown_state}) → {egress.tunnel['target_addr']}" if egress else "?"
        targets = count_up_targets(egress.tunnel) if egress else ""
        link = self.link_state
        facts = [targets, f"link {link}" if link and link != "up" else ""]
        return f"{'═' if self.is_up else '╌'} {right}{''.join(f' [{fact}]' for fact in facts if fact)}"

    def as_json(self) -> RouteJson:
        """The route as ``fleet ps --json --routes`` shows it."""
        return {
            "link": self.link,
            "link_state": self.link_state,
            "direction": self.direction,
            "up": self.is_up,
            "ingress": self.ingress.as_json() if self.ingress else None,
            "egress": self.egress.as_json() if self.egress else None,
        }


def lets_clients_publish(role: str, state: str, link: str | None) -> bool:
    """Whether a tunnel is an entry whose clients publish: the only kind that is up without a link, for it has none."""
    return role == "server" and state == "up" and link is None


def link_routes(fleet: Fleet, now: float) -> list[LinkRoute]:
    """One route for each link of the fleet, and for each tunnel that has none and should have one.

    They are ordered by the place of the server, otherwise of the client.
    """
    sides = (
        HostTunnel(
            host.name, host.presence(now), tunnel, host.last_link_of(tunnel["name"]), host.lost_links_of(tunnel["name"])
        )
        for host in fleet
        for tunnel in host.tunnels()
        if not lets_clients_publish(tunnel["role"], tunnel["state"], tunnel["link"])
    )
    return [LinkRoute(link, server, client) for link, server, client in pair_sides(sides)]


def route_texts(routes: Iterable[LinkRoute]) -> list[str]:
    """Return routes as lines; those of one ingress are the branches of one path."""
    lines: list[str] = []
    for place, group in groupby(_by_ingress(routes), key=lambda route: route.ingress and route.ingress.place):
        branches = list(group)
        if place is None or len(branches) == 1:
            lines += map(str, branches)
            continue
        lines.append(branches[0].describe_ingress())
        lines += [f"  ├{branch.describe_branch()}" for branch in branches[:-1]]
        lines.append(f"  └{branches[-1].describe_branch()}")
    return lines


def _by_ingress(routes: Iterable[LinkRoute]) -> list[LinkRoute]:
    """Return routes with the branches of each ingress behind the first of them; otherwise in their order."""
    groups: dict[object, list[LinkRoute]] = {}
    for route in routes:
        groups.setdefault(route.ingress.place if route.ingress else id(route), []).append(route)
    return [route for group in groups.values() for route in group]


def pair_sides(sides: Iterable[_Side]) -> list[_Pair[_Side]]:
    """One pair for each link, and for each tunnel without one, ordered by the place of its server, else of its client.

    Two tunnels are a pair when they have, or last had, the same link: one end may lose it before the other.
    """
    by_link: dict[str, dict[str, _Side]] = {}
    lost: dict[tuple[str, str], _Side] = {}
    unpaired: list[_Pair[_Side]] = []
    for side in sides:
        links, role = side.links, side.role
        if not links or role not in _OTHER_ROLE:
            unpaired.append(_single(next(iter(links), None), side))
            continue
        for link in links:
            known = by_link.setdefault(link, {})
            if (other := known.get(role)) is None:  # nearly always
                known[role] = side
                continue
            best, worse = sorted((side, other), key=lambda one: _PRESENCE_ORDER.get(one.presence, 0))
            known[role] = best
            unpaired.append(_single(link, worse))  # under a name that its host no longer has
        for link in side.lost_links:
            lost[link, role] = side
    if lost:  # one end of a link among several may lose it before the other, too
        for link, known in by_link.items():
            for role, other_role in _OTHER_ROLE.items():
                if role not in known and other_role in known and (end := lost.get((link, role))) is not None:
                    known[role] = end
    paired = [(link, known.get("server"), known.get("client")) for link, known in by_link.items()]
    return sorted([*paired, *unpaired], key=_place_of)


def _single(link: str | None, side: _Side) -> _Pair[_Side]:
    return (link, None, side) if side.role == "client" else (link, side, None)


def _place_of(pair: _Pair[_Side]) -> str:
    _, server, client = pair
    side = server or client
    return side.place if side else ""
