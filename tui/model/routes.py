"""Both ends of a link as one route: visitors, ingress, egress, target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.link_routes import pair_sides
from orchestrator.mqtt.fleet import ONLINE
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tui.model.tunnels import Tunnel

_STATE_PHRASES: Final[dict[str, str]] = {State.COOLDOWN: "in cooldown", State.WAITING: "waiting for its client"}

NO_OTHER_END: Final = "no other end of this link is known"


@dataclass(frozen=True, slots=True)
class _RouteEnd:
    """A tunnel with the attributes that pairing needs."""

    tunnel: Tunnel

    @property
    def link(self) -> str | None:
        return self.tunnel.link

    @property
    def role(self) -> str:
        return self.tunnel.text("role")

    @property
    def presence(self) -> str:
        return self.tunnel.text("presence") or ONLINE

    @property
    def place(self) -> str:
        return self.tunnel.name


@dataclass(frozen=True, slots=True)
class TunnelRoute:
    """A link with those of its ends that are known: one or both."""

    link: str | None
    server: Tunnel | None
    client: Tunnel | None

    @property
    def ends(self) -> tuple[Tunnel, ...]:
        """The ends that are known, the ingress first."""
        return tuple(end for end in (self.ingress, self.egress) if end is not None)

    @property
    def direction(self) -> str:
        """``reverse`` or ``forward``, as either end knows it; empty if neither does."""
        both = (self.server, self.client)
        return next((end.text("direction") for end in both if end is not None and end.text("direction")), "")

    @property
    def ingress(self) -> Tunnel | None:
        """The end that accepts visitors."""
        return self.client if self.direction == "forward" else self.server

    @property
    def egress(self) -> Tunnel | None:
        """The end that dials targets."""
        return self.server if self.direction == "forward" else self.client

    @property
    def is_complete(self) -> bool:
        """Whether both ends are known."""
        return self.server is not None and self.client is not None

    @property
    def is_linked(self) -> bool:
        """Whether both ends report this link now."""
        return self.is_complete and all(end.is_linked and not end.is_host_offline for end in self.ends)

    @property
    def is_up(self) -> bool:
        """Whether both ends are linked and up."""
        return self.is_linked and all(end.state == State.UP for end in self.ends)

    @property
    def key(self) -> str:
        """A key that lasts as long as the route: the name of its server, else of its client."""
        end = self.server or self.client
        return end.name if end else ""

    @property
    def rates(self) -> tuple[float, float]:
        """Bytes a second to and from visitors: the higher value of both ends, for one may be reported later."""
        return max((e.rate_out for e in self.ends), default=0.0), max((e.rate_in for e in self.ends), default=0.0)

    @property
    def visitors(self) -> int:
        """Visitors being served; both ends count the same ones."""
        return max((end.visitors for end in self.ends if not end.is_host_offline), default=0)

    @property
    def rtt_ms(self) -> float | None:
        """Round trip of the control channel in milliseconds, as measured by the ingress, else by the egress."""
        return next((end.rtt_ms for end in self.ends if end.rtt_ms is not None and not end.is_host_offline), None)

    @property
    def pool(self) -> tuple[int, int] | None:
        """Idle data connections and the pool's capacity at the ingress, else at the egress; None if unknown."""
        end = next((end for end in self.ends if not end.is_host_offline), None)
        return None if end is None else (end.pool["idle"], end.pool["capacity"])

    @property
    def rank(self) -> tuple[int, str]:
        """The order of the list: broken routes, then those with one end unknown, then the others."""
        is_broken = any(end.state != State.UP for end in self.ends)
        return (0 if is_broken else 1 if not self.is_complete else 2), self.key


def all_routes(tunnels: Iterable[Tunnel]) -> list[TunnelRoute]:
    """Return routes that contain every tunnel exactly once, broken ones first."""
    return sorted(_pair_ends(tunnels), key=lambda route: route.rank)


def route_of(tunnels: Mapping[str, Tunnel], name: str) -> TunnelRoute | None:
    """Return the route that contains a tunnel; None if the tunnel was removed."""
    tunnel = tunnels.get(name)
    if tunnel is None:
        return None
    link = tunnel.link
    same_link = [tunnel] if not link else [other for other in tunnels.values() if other.link == link]
    return next(route for route in _pair_ends(same_link) if any(end.name == name for end in route.ends))


def _pair_ends(tunnels: Iterable[Tunnel]) -> list[TunnelRoute]:
    found = pair_sides(_RouteEnd(tunnel) for tunnel in tunnels)
    return [
        TunnelRoute(link, server.tunnel if server else None, client.tunnel if client else None)
        for link, server, client in found
    ]


def verdict(route: TunnelRoute) -> tuple[str, str]:
    """Return a sentence on whether visitors reach the target, and the name of its style."""
    ends = route.ends
    offline = [end.host for end in ends if end.is_host_offline]
    if offline:
        hosts = f"{' and '.join(offline)} {'is' if len(offline) == 1 else 'are'} offline"
        return f"Unknown: {hosts}. The last known state is shown.", "gone"
    bad = next((end for end in ends if end.state != State.UP), None)
    if bad is not None:
        why = f": {bad.reason}" if bad.reason else ""
        return (
            f"Visitors do not reach the target: {bad.name} is {_STATE_PHRASES.get(bad.state, bad.state)}{why}.",
            "error" if bad.state == State.FAILED else "warn",
        )
    if not route.is_complete:
        return f"{ends[0].name} is linked and up; {NO_OTHER_END}.", "warn"
    ingress, egress = route.ingress, route.egress
    if ingress is None or egress is None or not route.is_linked:
        return "The two ends are not linked now.", "warn"
    by = f" on {ingress.host}" if ingress.host else ""
    through = f" through {egress.host}" if egress.host and egress.host != ingress.host else ""
    return f"Visitors of {ingress.text('target_addr')}{by} reach {egress.text('target_addr')}{through}.", "good"


def missing_end_texts(route: TunnelRoute, *, is_fleet: bool) -> list[str]:
    """Return the texts that are shown in place of an end that is not known."""
    known = route.ends[0]
    if not route.link:
        return ["no other end is known: there is no link yet"]
    peer = known.text("peer")
    where = [f"its address is {peer}"] if peer else []
    hint = "it does not publish to this broker" if is_fleet else "top --mqtt shows both ends"
    return [NO_OTHER_END, *where, hint]
