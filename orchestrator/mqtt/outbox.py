"""What a host still has to say, bounded whatever happens to the broker: of each topic only the newest is kept."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

HELD: Final = 1000
"""Events kept for a broker that does not take them; the oldest go first."""


@dataclass(frozen=True, slots=True)
class Message:
    """One publication."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False

    @property
    def is_event(self) -> bool:
        """Whether a newer one does not replace it."""
        return self.qos == 1 and not self.retain


class Outbox:
    """What is retained goes first, then events in their order, then numbers."""

    def __init__(self, held: int = HELD) -> None:
        self._retained: dict[str, Message] = {}
        self._events: deque[Message] = deque()
        self._numbers: dict[str, Message] = {}
        self._held = held
        self._filled = asyncio.Event()
        self.dropped = 0
        """events that were left out since somebody last looked"""

    def __len__(self) -> int:
        return len(self._retained) + len(self._events) + len(self._numbers)

    def put(self, message: Message) -> None:
        """Say this; a newer word on the same topic takes its place."""
        if message.is_event:
            self._events.append(message)
            if len(self._events) > self._held:
                self._events.popleft()
                self.dropped += 1
        else:
            (self._retained if message.retain else self._numbers)[message.topic] = message
        self._filled.set()

    def put_back(self, messages: list[Message]) -> None:
        """Nobody confirmed these events: say them again, in their place."""
        for message in reversed([message for message in messages if message.is_event]):
            if len(self._events) >= self._held:
                self.dropped += 1
            else:
                self._events.appendleft(message)
        if self._events:
            self._filled.set()

    def forget(self) -> None:
        """All but the events: after a loss everything else is told anew."""
        self._retained.clear()
        self._numbers.clear()

    def take(self, most: int) -> list[Message]:
        """The next few."""
        taken: list[Message] = []
        while len(taken) < most and len(self):
            if self._retained:
                taken.append(self._retained.pop(next(iter(self._retained))))
            elif self._events:
                taken.append(self._events.popleft())
            else:
                taken.append(self._numbers.pop(next(iter(self._numbers))))
        return taken

    async def filled(self) -> None:
        """Until there is something to say."""
        while not len(self):
            self._filled.clear()
            await self._filled.wait()
