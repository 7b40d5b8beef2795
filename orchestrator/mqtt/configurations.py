"""A host's discovery configurations as they stand on the broker: those of an earlier life, and whether ours arrive."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from orchestrator.config.schema import parse_discovery_prefix
from orchestrator.mqtt.broker import BrokerError
from orchestrator.mqtt.discovery import Discovery

if TYPE_CHECKING:
    from orchestrator.mqtt.broker import Session
    from orchestrator.mqtt.topics import HostTopics
    from tunnel.model.events import EventLog

_ECHO: Final = 10.0  # seconds for one of them to come back to us
_KIND: Final = "mqtt"


class Configurations:
    """One per host. Where discovery is off it looks only where the last life says that it left some."""

    def __init__(self, topics: HostTopics, host: str, discovery: Discovery | None) -> None:
        self._topics = topics
        self._host = host
        self._discovery = discovery
        self._places: list[Discovery] = []
        self._before: str | None = None
        self._echoed = asyncio.Event()

    def were_at(self, prefix: object) -> None:
        """Below which prefix the last life had them, as it said itself; None: below none."""
        try:
            self._before = parse_discovery_prefix(prefix)
        except ValueError:
            self._before = None

    async def look_for(self, session: Session, event_log: EventLog) -> None:
        """Hear of those that are retained; on return they have been heard. Raises BrokerError."""
        self._echoed.clear()
        self._places = [] if self._discovery is None else [self._discovery]
        if self._before is not None and all(self._before != place.prefix for place in self._places):
            self._places.append(Discovery(self._before, self._topics, self._host, ""))
        self._before = None
        for place in tuple(self._places):
            try:
                await session.subscribe(*place.patterns)
            except BrokerError as error:
                if error.code is None:
                    raise
                self._places.remove(place)
                event_log.warn_throttled(_KIND, "discovery", f"discovery: {error}")

    def hear(self, topic: str, *, is_retained: bool) -> bool:
        """Something stands on a topic that is none of the host's tree; whether it was left by an earlier life."""
        if not any(place.is_ours(topic) for place in self._places):
            return False
        if not is_retained:
            self._echoed.set()
        return is_retained

    async def settle(self, session: Session, event_log: EventLog) -> None:
        """Hear no more of them. A broker that keeps ours to itself confirms them all the same: say so."""
        if self._discovery is not None and self._discovery in self._places:
            try:
                async with asyncio.timeout(_ECHO):
                    await self._echoed.wait()
            except TimeoutError:
                where = ", ".join(self._discovery.patterns)
                text = f"the broker drops what is published for discovery: let this host write and read {where}"
                event_log.warn_throttled(_KIND, "discovery", text)
        if self._places:
            await session.unsubscribe(*(pattern for place in self._places for pattern in place.patterns))
            self._places = []
