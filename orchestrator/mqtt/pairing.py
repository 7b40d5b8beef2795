"""Two ends of one link, wherever they run, as one path: visitor, entrance, exit, target. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from orchestrator.mqtt.fleet import GONE, ONLINE, SILENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.mqtt.fleet import Fleet, Host

_TRUST: Final = {ONLINE: 0, SILENT: 1, GONE: 2}


class Paired(Protocol):
    """Whatever can be one end of a link."""

    @property
    def link(self) -> str | None:
        """The id of its link, or of the last one it had."""

    @property
    def role(self) -> str:
        """``server`` or ``client``."""

    @property
    def presence(self) -> str:
        """Whether its host is there to speak for it."""

    @property
    def place(self) -> str:
        """Where it is, for people."""


_End = TypeVar("_End", bound=Paired)


@dataclass(frozen=True, slots=True)
class End:
    """A tunnel on its host."""

    host: str
    presence: str
    tunnel: dict[str, Any]
    last_link: str | None = None

    @property
    def link(self) -> str | None:
        """The id of its link, or of the last one it had as long as we look."""
        return self.tunnel.get("link") or self.last_link

    @property
    def role(self) -> str:
        """``server`` or ``client``."""
        return str(self.tunnel["role"])

    @property
    def is_up(self) -> bool:
        """Whether it serves, as far as anybody knows."""
        return self.presence == ONLINE and self.tunnel["state"] == "up"

    @property
    def place(self) -> str:
        """``HOST/TUNNEL``."""
        return f"{self.host}/{self.tunnel['name']}"

    @property
    def shown_state(self) -> str:
        """Its state, or that nobody knows it any more."""
        return str(self.tunnel["state"]) if self.presence == ONLINE else f"{self.presence}, was {self.tunnel['state']}"


@dataclass(frozen=True, slots=True)
class Path:
    """A link with those of its ends that are known: one, or both."""

    link: str | None
    server: End | None
    client: End | None

    @property
    def is_up(self) -> bool:
        """Whether every end that is known serves, and both are known."""
        return all(end is not None and end.is_up for end in (self.server, self.client))

    @property
    def direction(self) -> str | None:
        """``reverse`` or ``forward``, as either end knows it."""
        return next((end.tunnel["direction"] for end in self._ends if end.tunnel.get("direction")), None)

    @property
    def entrance(self) -> End | None:
        """The end that accepts visitors."""
        return self.client if self.direction == "forward" else self.server

    @property
    def exit(self) -> End | None:
        """The end that dials targets."""
        return self.server if self.direction == "forward" else self.client

    @property
    def _ends(self) -> tuple[End, ...]:
        return tuple(end for end in (self.server, self.client) if end is not None)

    def __str__(self) -> str:
        """``visitors → ADDRESS HOST/TUNNEL (state) ═ HOST/TUNNEL (state) → ADDRESS``."""
        entrance, exit_ = self.entrance, self.exit
        left = f"{entrance.tunnel['target_addr']} {entrance.place} ({entrance.shown_state})" if entrance else "?"
        right = f"{exit_.place} ({exit_.shown_state}) → {exit_.tunnel['target_addr']}" if exit_ else "?"
        return f"visitors → {left} {'═' if self.is_up else '╌'} {right}"

    def as_json(self) -> dict[str, Any]:
        """The path as ``fleet ps --json --paths`` shows it."""
        return {
            "link": self.link,
            "direction": self.direction,
            "up": self.is_up,
            **{name: _end_json(end) for name, end in (("entrance", self.entrance), ("exit", self.exit))},
        }


def _end_json(end: End | None) -> dict[str, Any] | None:
    if end is None:
        return None
    return {
        "host": end.host,
        "presence": end.presence,
        "tunnel": end.tunnel["name"],
        "role": end.tunnel["role"],
        "state": end.tunnel["state"],
        "reason": end.tunnel.get("reason"),
        "address": end.tunnel["target_addr"],
    }


def paths(fleet: Fleet, now: float) -> list[Path]:
    """Every tunnel of the fleet in exactly one path, ordered by the place of its server, else of its client."""
    ends = (end for host in fleet for end in _ends(host, now))
    return [Path(link, server, client) for link, server, client in paired(ends)]


def paired(ends: Iterable[_End]) -> list[tuple[str | None, _End | None, _End | None]]:
    """Every end in exactly one (link, server, client), ordered by the place of its server, else of its client.

    Ends belong together when they have the same link, or had it last: one end may lose it before the other.
    """
    found: dict[str, dict[str, _End]] = {}
    alone: list[tuple[str | None, _End | None, _End | None]] = []
    for end in ends:
        link, role = end.link, end.role
        if not link or role not in {"server", "client"}:
            alone.append(_single(link, end))
            continue
        known = found.setdefault(link, {})
        best, *others = sorted(filter(None, (end, known.get(role))), key=lambda one: _TRUST.get(one.presence, 0))
        known[role] = best
        alone += [_single(link, other) for other in others]  # under a name that its host no longer has
    both = [(link, known.get("server"), known.get("client")) for link, known in found.items()]
    return sorted([*both, *alone], key=_place)


def _ends(host: Host, now: float) -> list[End]:
    presence = host.presence(now)
    return [End(host.name, presence, tunnel, host.link_of(tunnel["name"])) for tunnel in host.tunnels()]


def _single(link: str | None, end: _End) -> tuple[str | None, _End | None, _End | None]:
    return (link, None, end) if end.role == "client" else (link, end, None)


def _place(path: tuple[str | None, _End | None, _End | None]) -> str:
    _, server, client = path
    end = server or client
    return end.place if end else ""
