"""Answers without an end: server-sent events. A client may read slowly or disconnect at any time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from aiohttp import web

from orchestrator.json_text import json_text
from orchestrator.process.http_connections import GuardedConnection, connection_of
from orchestrator.status.store import encode_delta
from orchestrator.supervisor.event_bus import is_noteworthy
from orchestrator.supervisor.reload import RELOAD_EVENT
from tunnel.model.events import Event, EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.times import format_timestamp
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.status.store import StatusDelta
    from orchestrator.supervisor.control import ControlService
    from orchestrator.supervisor.event_bus import EventBus
    from tunnel.model.snapshot import Snapshot

MAX_QUEUED_EVENTS: Final = 2000
"""Events that wait for one client that reads slower than they come."""

_SCAN_SHARE: Final = 4  # a scan of the tunnels is spread over this part of the interval
_DISCONNECTED: Final = (ConnectionError, TimeoutError)


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Times of streams, in seconds."""

    heartbeat_interval_s: float = 5.0
    """a comment is sent after so long without an event, so that both sides notice a lost connection"""
    write_timeout_s: float = 30.0
    """for a client that reads nothing at all"""


class EventSubscription:
    """The events that one client wants, in a bounded queue. Events beyond the bound are dropped and counted."""

    def __init__(self, bus: EventBus, is_wanted: Callable[[Event], bool], subscriptions: Subscriptions) -> None:
        self._bus = bus
        self._is_wanted = is_wanted
        self._subscriptions = subscriptions
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()
        self._is_closed = False

    def __enter__(self) -> Self:
        self._bus.subscribe(self._enqueue)
        self._subscriptions.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._bus.unsubscribe(self._enqueue)
        self._subscriptions.discard(self)

    def _enqueue(self, event: Event) -> None:
        if not self._is_wanted(event):
            return
        if len(self._events) < MAX_QUEUED_EVENTS:
            self._events.append(event)
        else:
            self._dropped += 1
        self._wake.set()

    def close(self) -> None:
        """End the stream after the events that are queued."""
        self._is_closed = True
        self._wake.set()

    @property
    def is_exhausted(self) -> bool:
        """Whether the subscription is closed and all its events were received."""
        return self._is_closed and not self._events

    async def receive(self, timeout_s: float) -> list[Event]:
        """Return the queued events; waits up to ``timeout_s`` for the first one, or until ``close``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._is_closed else timeout_s):
                await self._wake.wait()
        self._wake.clear()
        events = list(self._events)
        self._events.clear()
        if self._dropped:
            were = "was" if self._dropped == 1 else "were"
            text = f"{plural(self._dropped, 'event')} {were} dropped: the client reads too slowly"
            events.append(Event(ts=time.time(), tunnel="", level=LogLevel.WARN, kind=EventKind.LOG, text=text))
            self._dropped = 0
        return events


class Subscriptions(set[EventSubscription]):
    """The subscriptions that are open, so that all of them can be closed when the daemon ends."""

    def close_all(self) -> None:
        """End all streams after the events that are queued."""
        for subscription in tuple(self):
            subscription.close()


class PartWriter:
    """Sends an answer in parts, each when the client has read the one before."""

    def __init__(
        self, response: web.StreamResponse, connection: GuardedConnection | None, limits: StreamLimits
    ) -> None:
        self.response = response
        self._connection = connection
        self._limits = limits

    async def write(self, data: bytes) -> None:
        """Return when the client has read everything. Raises ConnectionError, TimeoutError."""
        try:
            async with asyncio.timeout(self._limits.write_timeout_s):
                await self.response.write(data)
                if self._connection is not None:
                    await self._connection.wait_flushed()
        except TimeoutError:
            if self._connection is not None:
                self._connection.evict("it does not read the stream")
            raise


class SseResponse:
    """One answer of type ``text/event-stream``."""

    def __init__(self, writer: PartWriter, limits: StreamLimits) -> None:
        self.response = writer.response
        self._writer = writer
        self._limits = limits
        self._last_sent_at = time.monotonic()

    @classmethod
    async def start(cls, request: web.Request, limits: StreamLimits) -> Self:
        """Send the headers of the answer."""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        return cls(PartWriter(response, connection_of(request), limits), limits)

    async def send(self, frames: Iterable[tuple[str, object]]) -> None:
        """Send frames (kind, data), or a heartbeat if there are none and it is due. Raises ConnectionError."""
        text = "".join(f"event: {kind}\ndata: {json_text(data)}\n\n" for kind, data in frames)
        if not text and time.monotonic() - self._last_sent_at < self._limits.heartbeat_interval_s - 0.01:
            return
        await self._writer.write((text or ": heartbeat\n\n").encode(errors="replace"))
        self._last_sent_at = time.monotonic()

    async def finish(self) -> None:
        """Send the comment that marks an intended end. Raises ConnectionError."""
        await self._writer.write(b": end\n\n")


def _event_frames(events: Iterable[Event]) -> list[tuple[str, object]]:
    return [("event", event.as_json()) for event in events]


async def send_list(request: web.Request, name: str, parts: Iterable[str], limits: StreamLimits) -> web.StreamResponse:
    """Answer an object with one long list, part by part; each part is the JSON of some elements.

    A socket accepts many parts at once: each has a turn of the event loop of its own, so that no visitor waits for all.
    """
    response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
    await response.prepare(request)
    writer = PartWriter(response, connection_of(request), limits)
    with contextlib.suppress(*_DISCONNECTED):
        await writer.write(f'{{"{name}": ['.encode())
        for number, part in enumerate(parts):
            await writer.write((f",{part}" if number else part).encode(errors="replace"))
            await asyncio.sleep(0)
        await writer.write(b"]}")
        await response.write_eof()
    return response


async def follow_events(
    request: web.Request, subscription: EventSubscription, history: Iterable[Event], limits: StreamLimits
) -> web.StreamResponse:
    """Send past events, then those of an open subscription: none is lost in between."""
    stream = await SseResponse.start(request, limits)
    with contextlib.suppress(*_DISCONNECTED):
        await stream.send(_event_frames(history))
        while not subscription.is_exhausted:
            await stream.send(_event_frames(await subscription.receive(limits.heartbeat_interval_s)))
        await stream.finish()
    return stream.response


async def replay_events(request: web.Request, history: Iterable[Event], limits: StreamLimits) -> web.StreamResponse:
    """Send past events and end the answer."""
    stream = await SseResponse.start(request, limits)
    with contextlib.suppress(*_DISCONNECTED):
        await stream.send(_event_frames(history))
        await stream.finish()
    return stream.response


async def watch_status(
    request: web.Request,
    control: ControlService,
    interval_s: float,
    subscriptions: Subscriptions,
    limits: StreamLimits,
) -> web.StreamResponse:
    """Send the whole status, then its changes every ``interval_s`` and after each reload; events as they happen.

    Of what the client knows, only the revision of the status store is remembered.
    """
    stream = await SseResponse.start(request, limits)
    with (
        EventSubscription(control.bus, is_noteworthy, subscriptions) as subscription,
        contextlib.suppress(*_DISCONNECTED),
    ):
        await control.refresh(everything=True)
        delta = control.store.changes_since(0)
        await stream.send([_status_frame(delta)])
        due = time.monotonic() + interval_s
        while not subscription.is_exhausted:
            events = await subscription.receive(max(0.0, due - time.monotonic()))
            frames = _event_frames(events)
            if (now := time.monotonic()) >= due or any(event.kind == RELOAD_EVENT for event in events):
                due = now + interval_s
                await control.refresh(interval_s / _SCAN_SHARE)
                delta = control.store.changes_since(delta.revision)
                if not delta.is_empty:
                    frames.append(_status_frame(delta) if delta.is_full else _change_frame(delta))
            await stream.send(frames)
        await stream.finish()
    return stream.response


def _status_frame(delta: StatusDelta[str, Snapshot]) -> tuple[str, object]:
    whole = encode_delta(delta)
    return "status", {**whole["status"], "tunnels": list(whole["changed"].values())}


def _change_frame(delta: StatusDelta[str, Snapshot]) -> tuple[str, object]:
    return "change", {"ts": format_timestamp(time.time()), **encode_delta(delta)}
