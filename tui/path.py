"""Both ends of a link as one path: visitor, entrance, exit, target. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.fleet import ONLINE, pair_sides
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tui.model import Tunnel

_AS_WORDS: Final[dict[str, str]] = {State.COOLDOWN: "in cooldown", State.WAITING: "waiting for its client"}

NO_OTHER_END: Final = "no other end seen with this link"


@dataclass(frozen=True, slots=True)
class _End:
    """A tunnel as something that may have another end."""

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
class Path:
    """A link with those of its ends that are seen: one, or both."""

    link: str | None
    server: Tunnel | None
    client: Tunnel | None

    @property
    def ends(self) -> tuple[Tunnel, ...]:
        """Those that are seen, the entrance first."""
        return tuple(end for end in (self.entrance, self.exit) if end is not None)

    @property
    def direction(self) -> str:
        """``reverse`` or ``forward``, as either end knows it; empty where neither does."""
        both = (self.server, self.client)
        return next((end.text("direction") for end in both if end is not None and end.text("direction")), "")

    @property
    def entrance(self) -> Tunnel | None:
        """The end that accepts visitors."""
        return self.client if self.direction == "forward" else self.server

    @property
    def exit(self) -> Tunnel | None:
        """The end that dials targets."""
        return self.server if self.direction == "forward" else self.client

    @property
    def is_whole(self) -> bool:
        """Whether both ends are seen."""
        return self.server is not None and self.client is not None

    @property
    def is_linked(self) -> bool:
        """Whether both ends say, just now, that they have this link."""
        return self.is_whole and all(end.data.get("link") and not end.is_gone for end in self.ends)

    @property
    def is_up(self) -> bool:
        """Whether both ends are seen, and serve."""
        return self.is_linked and all(end.state == State.UP for end in self.ends)

    @property
    def key(self) -> str:
        """What it is known by as long as it lasts: the place of its server, else of its client."""
        end = self.server or self.client
        return end.name if end else ""

    @property
    def rates(self) -> tuple[float, float]:
        """Bytes a second to and from visitors, as whichever end knows of more; the other may not have told yet."""
        return max((e.rate_out for e in self.ends), default=0.0), max((e.rate_in for e in self.ends), default=0.0)

    @property
    def visitors(self) -> int:
        """Visitors on their way: each end counts them, and neither counts another's."""
        return max((end.active for end in self.ends if not end.is_gone), default=0)

    @property
    def rtt_ms(self) -> float | None:
        """Round trip of the control channel, as the entrance measures it, else the exit."""
        return next((end.rtt_ms for end in self.ends if end.rtt_ms is not None and not end.is_gone), None)

    @property
    def pool(self) -> tuple[int, int] | None:
        """Idle data connections and how many are wanted, as the entrance takes them; None where nobody knows."""
        end = next((end for end in self.ends if not end.is_gone), None)
        return None if end is None else (end.count("pool", "idle"), end.count("pool", "capacity"))

    @property
    def rank(self) -> tuple[int, str]:
        """What somebody should look at comes first: broken ones, then those with one end unseen."""
        is_bad = any(end.state != State.UP for end in self.ends)
        return (0 if is_bad else 1 if not self.is_whole else 2), self.key


def all_paths(tunnels: Iterable[Tunnel]) -> list[Path]:
    """Every tunnel in exactly one path, what is wrong first."""
    return sorted(_paths(tunnels), key=lambda path: path.rank)


def path_of(tunnels: Mapping[str, Tunnel], name: str) -> Path | None:
    """The path that a tunnel is part of; None where the tunnel is gone."""
    tunnel = tunnels.get(name)
    if tunnel is None:
        return None
    link = tunnel.link
    alike = [tunnel] if not link else [other for other in tunnels.values() if other.link == link]
    return next(path for path in _paths(alike) if any(end.name == name for end in path.ends))


def _paths(tunnels: Iterable[Tunnel]) -> list[Path]:
    found = pair_sides(_End(tunnel) for tunnel in tunnels)
    return [
        Path(link, server.tunnel if server else None, client.tunnel if client else None)
        for link, server, client in found
    ]


def verdict(path: Path) -> tuple[str, str]:
    """How it stands with the path, in a sentence, and the style of it."""
    ends = path.ends
    gone = [end for end in ends if end.is_gone]
    if gone:
        return (
            f"Nobody knows: {' and '.join(end.host for end in gone)} is gone. What is seen of it is its last word.",
            "gone",
        )
    bad = next((end for end in ends if end.state != State.UP), None)
    if bad is not None:
        why = f": {bad.reason}" if bad.reason else ""
        return (
            f"No visitor gets through: {bad.name} is {_AS_WORDS.get(bad.state, bad.state)}{why}.",
            "failed" if bad.state == State.FAILED else "warn",
        )
    if not path.is_whole:
        return f"{ends[0].name} is linked and serves; {NO_OTHER_END}.", "warn"
    entrance, exit_ = path.entrance, path.exit
    if entrance is None or exit_ is None or not path.is_linked:
        return "Its ends are not linked just now.", "warn"
    by = f" on {entrance.host}" if entrance.host else ""
    through = f" by way of {exit_.host}" if exit_.host and exit_.host != entrance.host else ""
    return f"Visitors of {entrance.text('target_addr')}{by} reach {exit_.text('target_addr')}{through}.", "up"


def missing(path: Path, *, is_fleet: bool) -> list[str]:
    """What is said in the place of an end that nobody has seen."""
    seen = path.ends[0]
    if not path.link:
        return ["no other end seen: there is no link yet"]
    peer = seen.text("peer")
    where = [f"it is at {peer}"] if peer else []
    hint = "and tells this broker nothing" if is_fleet else "top --mqtt shows both ends"
    return [NO_OTHER_END, *where, hint]
