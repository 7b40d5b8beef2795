"""Answers that do not end: server-sent events, for watchers who may be slow, and may leave without a word."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import web

from orchestrator.api.changes import Picture
from orchestrator.supervisor.bus import is_noteworthy
from orchestrator.supervisor.reload import RELOAD
from tunnel.model.spec import LogLevel
from tunnel.model.state import Event, timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.supervisor.bus import Bus
    from orchestrator.supervisor.desk import Desk

HEARTBEAT: Final = 5.0
"""Seconds of silence after which a comment says that we are still there."""

_HELD: Final = 2000  # events for a reader who is slower than they come
_PATIENCE: Final = 30.0  # seconds for a reader who takes nothing at all
_GONE: Final = (ConnectionError, TimeoutError)


class Inbox:
    """The events that one reader wants, as they come. Those beyond a bound are dropped and counted."""

    def __init__(self, bus: Bus, wanted: Callable[[Event], bool], readers: Readers) -> None:
        self._bus = bus
        self._wanted = wanted
        self._readers = readers
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()
        self._ended = False

    def __enter__(self) -> Self:
        self._bus.subscribe(self._take)
        self._readers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.unsubscribe(self._take)
        self._readers.discard(self)

    def _take(self, event: Event) -> None:
        if not self._wanted(event):
            return
        if len(self._events) < _HELD:
            self._events.append(event)
        else:
            self._dropped += 1
        self._wake.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._wake.set()

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come, and everything has been read."""
        return self._ended and not self._events

    async def read(self, patience: float) -> list[Event]:
        """What has come; waits for the first one for so many seconds, or until the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._ended else patience):
                await self._wake.wait()
        self._wake.clear()
        events = list(self._events)
        self._events.clear()
        if self._dropped:
            text = f"{self._dropped} events were left out: they are read too slowly"
            events.append(Event(ts=time.time(), tunnel="", level=LogLevel.WARN, kind="log", text=text))
            self._dropped = 0
        return events


class Readers(set[Inbox]):
    """The inboxes that are open, so that all of them can be told when the daemon ends."""

    def end(self) -> None:
        """Nothing more will come to any of them."""
        for inbox in tuple(self):
            inbox.end()


class Stream:
    """One answer of type ``text/event-stream``."""

    def __init__(self, response: web.StreamResponse) -> None:
        self.response = response
        self._quiet_since = time.monotonic()

    @classmethod
    async def open(cls, request: web.Request) -> Self:
        """Send the head of the answer."""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        return cls(response)

    async def send(self, frames: Iterable[tuple[str, object]]) -> None:
        """Several (kind, data); a heartbeat where there are none and the last was long ago. Raises ConnectionError."""
        text = "".join(
            f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False, default=str)}\n\n" for kind, data in frames
        )
        if not text and time.monotonic() - self._quiet_since < HEARTBEAT - 0.01:
            return
        async with asyncio.timeout(_PATIENCE):
            await self.response.write((text or ": still here\n\n").encode(errors="replace"))
        self._quiet_since = time.monotonic()

    async def end(self) -> None:
        """Say that this is the end on purpose. Raises ConnectionError."""
        async with asyncio.timeout(_PATIENCE):
            await self.response.write(b": end\n\n")


def _frames(events: Iterable[Event]) -> list[tuple[str, object]]:
    return [("event", event.as_json()) for event in events]


async def follow(request: web.Request, inbox: Inbox, first: Iterable[Event]) -> web.StreamResponse:
    """``first``, then what comes into the inbox, which must be open already: nothing is lost in between."""
    stream = await Stream.open(request)
    with contextlib.suppress(*_GONE):
        await stream.send(_frames(first))
        while not inbox.is_over:
            await stream.send(_frames(await inbox.read(HEARTBEAT)))
        await stream.end()
    return stream.response


async def replay(request: web.Request, events: Iterable[Event]) -> web.StreamResponse:
    """These events, and the end."""
    stream = await Stream.open(request)
    with contextlib.suppress(*_GONE):
        await stream.send(_frames(events))
        await stream.end()
    return stream.response


async def watch(request: web.Request, desk: Desk, interval: float, readers: Readers) -> web.StreamResponse:
    """The whole status, then what changes: every ``interval`` seconds, and with each reload; events as they happen."""
    stream = await Stream.open(request)
    picture = Picture(interval)
    with (
        Inbox(desk.bus, is_noteworthy, readers) as inbox,
        desk.bus.onlooker(picture.hear),
        contextlib.suppress(*_GONE),
    ):
        first = await _look(desk, picture, 0.0) or {"status": {}, "changed": {}}
        await stream.send([("status", {**first["status"], "tunnels": list(first["changed"].values())})])
        due = time.monotonic() + interval
        while not inbox.is_over:
            events = await inbox.read(max(0.0, due - time.monotonic()))
            for event in events:
                picture.hear(event.tunnel)
            frames = _frames(events)
            if (now := time.monotonic()) >= due or any(event.kind == RELOAD for event in events):
                due = now + interval
                change = await _look(desk, picture, interval / 4)
                if change is not None:
                    frames.append(("change", {"ts": timestamp(time.time()), **change}))
            await stream.send(frames)
        await stream.end()
    return stream.response


async def _look(desk: Desk, picture: Picture, within: float) -> dict[str, Any] | None:
    """What differs since the last look at the tunnels; this one may take so many seconds."""
    names = desk.supervisor.names()
    for snapshot in await desk.supervisor.look(picture.due(names), within):
        picture.see(snapshot)
    return picture.change(desk.head(), names)
