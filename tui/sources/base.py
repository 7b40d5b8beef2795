"""What a source is: an asynchronous stream of messages, requests and commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence

    from orchestrator.status.json_types import (
        CommandResultJson,
        KickJson,
        PlanJson,
        ReloadJson,
        TrafficJson,
        TunnelTestJson,
        VisitorsJson,
    )
    from tui.model.messages import ChangeData, EventData, StatusData, TunnelDetails


@dataclass(frozen=True, slots=True)
class StatusReceived:
    """The complete status: the first message, and the first one after each reconnect."""

    data: StatusData


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """The differences from the previous status or change."""

    data: ChangeData


@dataclass(frozen=True, slots=True)
class EventReceived:
    """One event of a tunnel or of the supervisor."""

    data: EventData


@dataclass(frozen=True, slots=True)
class SourceHeartbeat:
    """Nothing has changed, and the daemon still answers."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The daemon does not answer; the source keeps retrying. The reason is a sentence without its full stop."""

    reason: str


SourceMessage = StatusReceived | StatusChanged | EventReceived | SourceHeartbeat | Disconnected


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """The kind of a source, in the words that the screen uses."""

    peer_name: str
    """what answers at the other end: ``daemon`` or ``broker``"""
    has_log: bool = True
    """whether a tunnel's log can be read, or only its events"""


class SourceError(Exception):
    """A request or a command failed or was refused; the message is a sentence for the user."""


class Source(Protocol):
    """One daemon, or anything else that has tunnels to show. All requests and commands raise SourceError."""

    info: SourceInfo

    @property
    def place(self) -> str:
        """The address of the source, as shown to the user."""

    def set_visible(self, names: Collection[str]) -> None:
        """Keep the counters of these tunnels current; where all are too many, those of others may be older."""

    def watch(self) -> AsyncIterator[SourceMessage]:
        """Yield messages without end: the source reports a lost connection and then reconnects."""

    def stream_log(self, names: Sequence[str], lines: int) -> AsyncIterator[EventData]:
        """Yield the last ``lines`` events of some tunnels (none: of all), then each new one, until disconnected."""

    async def fetch_events(self, lines: int) -> list[EventData]:
        """Return the last state changes, reloads and commands."""

    async def fetch_tunnel(self, name: str) -> TunnelDetails:
        """Return one tunnel with its URL, its settings and its place in the file."""

    async def fetch_traffic(self, name: str, step: str, days: int) -> TrafficJson:
        """Return what a tunnel carried in the last ``days`` days, by hour, day or month."""

    async def send_command(self, verb: str, name: str, member: Mapping[str, str] | None = None) -> CommandResultJson:
        """Start, stop, restart, drain or retry a tunnel.

        ``member`` is ``{"link": ID}`` or ``{"target": ADDRESS}`` if only that one starts or drains.
        """

    async def fetch_plan(self) -> PlanJson:
        """Return what a reload would change."""

    async def fetch_visitors(self, names: Sequence[str]) -> VisitorsJson:
        """Return the visitors of some tunnels."""

    async def kick(self, which: str, names: Sequence[str]) -> KickJson:
        """Disconnect visitors of some tunnels, by ID, address or network; return what was disconnected."""

    async def test(self, name: str) -> TunnelTestJson:
        """Dial a tunnel's target through the tunnel; return how long each leg took."""

    async def reload(self, host: str = "") -> ReloadJson:
        """Reload the file, in a fleet that of one host; return the result per entry."""

    async def close(self) -> None:
        """Close all connections of the source."""
