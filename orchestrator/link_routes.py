"""The links between the tunnels of a fleet: which two tunnels are the ends of one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypedDict, TypeVar

from orchestrator.mqtt.fleet import GONE, ONLINE, SILENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.mqtt.fleet import Fleet
    from orchestrator.status.json_types import TunnelJson

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
    direction: str | None
    up: bool
    ingress: RouteEndJson | None
    egress: RouteEndJson | None


class LinkSide(Protocol):
    """A tunnel as one end of a link."""

    @property
    def link(self) -> str | None:
        """The id of its link, or of the last one it had."""

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

    @property
    def link(self) -> str | None:
        """The id of its link, or of the last one that was seen."""
        return self.tunnel["link"] or self.last_link

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
        """Whether both ends are known, and up."""
        return all(end is not None and end.is_up for end in (self.server, self.client))

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
        ingress, egress = self.ingress, self.egress
        left = f"{ingress.tunnel['target_addr']} {ingress.place} ({ingress.shown_state})" if ingress else "?"
        right = f"{egress.place} ({egress.shown_state}) → {egress.tunnel['target_addr']}" if egress else "?"
        return f"visitors → {left} {'═' if self.is_up else '╌'} {right}"

    def as_json(self) -> RouteJson:
        """The route as ``fleet ps --json --routes`` shows it."""
        return {
            "link": self.link,
            "direction": self.direction,
            "up": self.is_up,
            "ingress": self.ingress.as_json() if self.ingress else None,
            "egress": self.egress.as_json() if self.egress else None,
        }


def link_routes(fleet: Fleet, now: float) -> list[LinkRoute]:
    """Every tunnel of the fleet in exactly one route, ordered by the place of its server, otherwise of its client."""
    sides = (
        HostTunnel(host.name, host.presence(now), tunnel, host.last_link_of(tunnel["name"]))
        for host in fleet
        for tunnel in host.tunnels()
    )
    return [LinkRoute(link, server, client) for link, server, client in pair_sides(sides)]


def pair_sides(sides: Iterable[_Side]) -> list[_Pair[_Side]]:
    """Every tunnel in exactly one pair, ordered by the place of its server, otherwise of its client.

    Two tunnels are a pair when they have, or last had, the same link: one end may lose it before the other.
    """
    by_link: dict[str, dict[str, _Side]] = {}
    unpaired: list[_Pair[_Side]] = []
    for side in sides:
        link, role = side.link, side.role
        if not link or role not in {"server", "client"}:
            unpaired.append(_single(link, side))
            continue
        known = by_link.setdefault(link, {})
        candidates = filter(None, (side, known.get(role)))
        best, *others = sorted(candidates, key=lambda one: _PRESENCE_ORDER.get(one.presence, 0))
        known[role] = best
        unpaired += [_single(link, other) for other in others]  # under a name that its host no longer has
    paired = [(link, known.get("server"), known.get("client")) for link, known in by_link.items()]
    return sorted([*paired, *unpaired], key=_place_of)


def _single(link: str | None, side: _Side) -> _Pair[_Side]:
    return (link, None, side) if side.role == "client" else (link, side, None)


def _place_of(pair: _Pair[_Side]) -> str:
    _, server, client = pair
    side = server or client
    return side.place if side else ""
