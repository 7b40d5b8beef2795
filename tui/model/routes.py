"""Both ends of a link as one route: visitors, ingress, egress, target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.link_routes import lets_clients_publish, pair_sides
from orchestrator.mqtt.fleet import ONLINE
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.status.json_types import LinkJson
    from tui.model.tunnels import Tunnel

_STATE_PHRASES: Final[dict[str, str]] = {State.COOLDOWN: "in cooldown", State.WAITING: "waiting for its client"}

NO_OTHER_END: Final = "no other end of this link is known"


@dataclass(frozen=True, slots=True)
class _RouteEnd:
    """A tunnel with the attributes that pairing needs."""

    tunnel: Tunnel

    @property
    def links(self) -> Sequence[str]:
        return self.tunnel.link_ids

    @property
    def lost_links(self) -> Sequence[str]:
        return self.tunnel.data.get("lost_links") or ()

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
    """A link with those of its ends that are known: one or both. Those of one ingress are the branches of its path."""

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
        return self.is_complete and all(end.has_link(self.link) and not end.is_host_offline for end in self.ends)

    @property
    def is_up(self) -> bool:
        """Whether both ends are linked and up."""
        return self.is_linked and all(end.state == State.UP for end in self.ends)

    @property
    def key(self) -> str:
        """A key that lasts as long as the route: the names of the ends that are known, the server first."""
        return " ".join(end.name for end in (self.server, self.client) if end is not None)

    @property
    def facts(self) -> LinkJson | None:
        """What the ingress, else the egress, reports of this link if it has several; None if it has one."""
        found = (link for end in self.ends if len(end.links) > 1 for link in end.links if link["id"] == self.link)
        return next(found, None)

    @property
    def link_state(self) -> str:
        """Why a link among several gets no visitors; empty if it gets some."""
        facts = self.facts
        return "" if facts is None or facts["state"] == State.UP else facts["state"]

    @property
    def _measured_ends(self) -> list[Tunnel]:
        """The ends whose numbers are those of this link alone; those of a host that is offline are old."""
        return [end for end in self.ends if len(end.links) < 2 and not end.is_host_offline]

    @property
    def rates(self) -> tuple[float, float]:
        """Bytes a second to and from visitors: the higher value of both ends, for one may be reported later."""
        ends = [end for end in self.ends if len(end.links) < 2]
        return max((e.rate_out for e in ends), default=0.0), max((e.rate_in for e in ends), default=0.0)

    @property
    def visitors(self) -> int:
        """Visitors being served over this link; both ends count the same ones."""
        if ends := self._measured_ends:
            return max(end.visitors for end in ends)
        return 0 if self.facts is None else self.facts["visitors"]

    @property
    def rtt_ms(self) -> float | None:
        """Round trip of the control channel in milliseconds, as measured by the ingress, else by the egress."""
        if ends := self._measured_ends:
            return next((end.rtt_ms for end in ends if end.rtt_ms is not None), None)
        return None if self.facts is None else self.facts["rtt_ms"]

    @property
    def pool(self) -> tuple[int, int] | None:
        """Idle data connections and the pool's capacity at the ingress, else at the egress; None if unknown."""
        end = next(iter(self._measured_ends), None)
        return None if end is None else (end.pool["idle"], end.pool["capacity"])

    @property
    def rank(self) -> tuple[int, str, str]:
        """The order of the list: broken routes, then those with one end unknown, then the others."""
        ends = self.ends
        is_broken = any(end.state != State.UP for end in ends)
        return (0 if is_broken else 1 if len(ends) < 2 else 2), ends[0].name, ends[-1].name


def all_routes(tunnels: Iterable[Tunnel]) -> list[TunnelRoute]:
    """Return one route for each link, and for each tunnel that should have one, broken ones first."""
    ends = (one for one in tunnels if not lets_clients_publish(one.text("role"), one.state, one.data.get("link")))
    return sorted(_pair_ends(ends), key=lambda route: route.rank)


def routes_of(tunnels: Mapping[str, Tunnel], name: str) -> list[TunnelRoute]:
    """Return the routes that contain a tunnel, those of one ingress together; empty if the tunnel was removed."""
    tunnel = tunnels.get(name)
    if tunnel is None:
        return []
    wanted = {*tunnel.link_ids, *(tunnel.data.get("lost_links") or ())}
    related = [other for other in tunnels.values() if other is tunnel or _has_one_of(other, wanted)]
    found = [route for route in _pair_ends(related) if any(end.name == name for end in route.ends)]
    return sorted(found, key=lambda route: route.rank[1:])


def _has_one_of(tunnel: Tunnel, links: set[str]) -> bool:
    data = tunnel.data  # of each tunnel of a fleet: without calls for nearly all of them
    if (data.get("link") or data.get("last_link")) in links:
        return True
    lost = data.get("lost_links")
    return bool(lost or len(data.get("links") or ()) > 1) and not links.isdisjoint((*tunnel.link_ids, *(lost or ())))


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
    if lets_clients_publish(ends[0].text("role"), ends[0].state, ends[0].data.get("link")):
        return f"{ends[0].name} has no visitors of its own: its clients publish tunnels.", "good"
    if not route.is_complete:
        return f"{ends[0].name} is linked and up; {NO_OTHER_END}.", "warn"
    ingress, egress = route.ingress, route.egress
    if ingress is None or egress is None or not route.is_linked:
        return "The two ends are not linked now.", "warn"
    if route.link_state:
        return f"The link gets no new visitors: it is {route.link_state}.", "warn"
    by = f" on {ingress.host}" if ingress.host else ""
    through = f" through {egress.host}" if egress.host and egress.host != ingress.host else ""
    return f"Visitors of {ingress.text('target_addr')}{by} reach {egress.text('target_addr')}{through}.", "good"


def path_verdict(branches: Sequence[TunnelRoute]) -> tuple[str, str]:
    """Return a sentence on how many branches of one ingress serve visitors, and the name of its style."""
    if len(branches) == 1:
        return verdict(branches[0])
    ingress = branches[0].ingress
    if ingress is None or ingress.is_host_offline:
        return verdict(branches[0])
    up = sum(route.is_up and not route.link_state for route in branches)
    by = f" on {ingress.host}" if ingress.host else ""
    text = f"Visitors of {ingress.text('target_addr')}{by} are served over {up} of {len(branches)} links."
    return text, "good" if up == len(branches) else "warn"


def missing_end_texts(route: TunnelRoute, *, is_fleet: bool) -> list[str]:
    """Return the texts that are shown in place of an end that is not known."""
    known = route.ends[0]
    if lets_clients_publish(known.text("role"), known.state, known.data.get("link")):
        return ["its clients publish tunnels of their own"]
    if not route.link:
        return ["no other end is known: there is no link yet"]
    peer = known.text("peer")
    where = [f"its address is {peer}"] if peer else []
    hint = "it does not publish to this broker" if is_fleet else "top --mqtt shows both ends"
    return [NO_OTHER_END, *where, hint]
