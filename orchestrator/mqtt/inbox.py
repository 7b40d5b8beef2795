"""What comes in faster than it is read: of each retained topic and of each tunnel's numbers only the newest is kept."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import aiomqtt

_REPLACEABLE: Final = ("/state", "/stats", "/info", "/status")


class NewestInbox(asyncio.Queue["aiomqtt.Message"]):
    """A queue in which a newer word takes the place of the older one on its topic. Its size is a count of topics."""

    _queue: dict[object, aiomqtt.Message]

    def _init(self, maxsize: int) -> None:
        self._queue = {}

    def _put(self, item: aiomqtt.Message) -> None:
        topic = item.topic.value
        key: object = topic if topic.endswith(_REPLACEABLE) else item
        self._queue.pop(key, None)  # to the end: no topic is read before one that has waited longer
        self._queue[key] = item

    def _get(self) -> aiomqtt.Message:
        return self._queue.pop(next(iter(self._queue)))
