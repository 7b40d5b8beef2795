"""Where on the broker things are said: one tree per host, names of tunnels percent-encoded. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

ROOT: Final = "nodepass-orch/v1"

_OF_HOST: Final = frozenset({"status", "info", "event", "cmd"})
_OF_TUNNEL: Final = frozenset({"state", "stats"})


def encode(name: str) -> str:
    """A name as one level of a topic, whatever characters it has."""
    return quote(name, safe="", errors="surrogatepass")


def _decode(level: str) -> str:
    return unquote(level, errors="replace")


@dataclass(frozen=True, slots=True)
class Spot:
    """What a topic is about."""

    host: str
    kind: str
    """status, info, event, cmd, state, stats or rsp"""
    name: str = ""
    """the tunnel of state and stats, the asker's word of rsp"""


def parse(topic: str) -> Spot | None:
    """The topic's meaning; None where it is not one of ours."""
    levels = topic.removeprefix(f"{ROOT}/").split("/")
    if not topic.startswith(f"{ROOT}/") or not levels[0]:
        return None
    match levels:
        case [host, kind] if kind in _OF_HOST:
            return Spot(host, kind)
        case [host, "t", name, kind] if kind in _OF_TUNNEL and name:
            return Spot(host, kind, _decode(name))
        case [host, "rsp", reply] if reply:
            return Spot(host, "rsp", reply)
    return None


class HostTopics:
    """The topics of one host. As ``+`` it is every host, to subscribe to."""

    def __init__(self, host: str) -> None:
        self.base = f"{ROOT}/{host}"
        self.status = f"{self.base}/status"
        self.info = f"{self.base}/info"
        self.event = f"{self.base}/event"
        self.command = f"{self.base}/cmd"
        self.states = f"{self.base}/t/+/state"
        self.stats = f"{self.base}/t/+/stats"

    def state_of(self, tunnel: str) -> str:
        """Retained: everything about a tunnel."""
        return f"{self.base}/t/{encode(tunnel)}/state"

    def stats_of(self, tunnel: str) -> str:
        """Its numbers, as they change."""
        return f"{self.base}/t/{encode(tunnel)}/stats"

    def answer(self, reply: str) -> str:
        """Where an asker listens."""
        return f"{self.base}/rsp/{reply}"


EVERY_HOST: Final = HostTopics("+")
