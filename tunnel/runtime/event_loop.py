"""An event loop whose epoll instance a reactor shares: asyncio runs only when it has something to do.

On any other asyncio loop the reactor has an epoll instance of its own inside the loop's. Then every wake-up goes
through two of them, and through asyncio's own dispatch, which is a third of a lone visitor's latency. Here the selector
waits, lets the reactor handle its events and waits again, until an event, a callback or a timer of asyncio is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
import selectors
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context
from time import monotonic
from typing import Any, Final, Protocol, TypeVarTuple, Unpack

_EVENTS_AT_ONCE: Final = 256
_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT
_MAX_WAIT_S: Final = 1.0  # while events come: asyncio drops cancelled timers only when its loop turns

_Ts = TypeVarTuple("_Ts")

EpollEvents = list[tuple[int, int]]
"""File descriptors and their event bits, as epoll reports them."""


class EventHandler(Protocol):
    """A reactor that shares the epoll instance of a selector."""

    needs_turn: bool
    """whether ``handle_events`` is to be called now, even without an event"""

    def handle_events(self, events: EpollEvents) -> EpollEvents:
        """Handle the events of its own descriptors, and return the others."""


class _WatchedDescriptors(Mapping[Any, selectors.SelectorKey]):
    """The keys of a selector, found by number or by object, as asyncio does from Python 3.13 on."""

    def __init__(self, keys: dict[int, selectors.SelectorKey]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def __getitem__(self, fileobj: Any) -> selectors.SelectorKey:  # noqa: ANN401  as selectors allow
        return self._keys[_descriptor(fileobj)]


class SharedSelector(selectors.BaseSelector):
    """asyncio's selector, which lets a reactor handle what is its own."""

    def __init__(self) -> None:
        self.epoll: Final = select.epoll()
        """a reactor may register its sockets here"""
        self.reactor: EventHandler | None = None
        """the reactor that shares the epoll instance, if there is one"""
        self._deadline = 0.0  # until when ``select`` may wait
        self._is_interrupted = False  # whether asyncio was given work since ``select`` was called
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._map: Final = _WatchedDescriptors(self._keys)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401  as the base
        """Watch a descriptor for asyncio. Raises KeyError if it is watched already."""
        key = selectors.SelectorKey(fileobj, _descriptor(fileobj), events, data)
        if key.fd in self._keys:
            raise KeyError(f"{fileobj!r} is already registered")
        self.epoll.register(key.fd, _epoll_mask(events))
        self._keys[key.fd] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:  # noqa: ANN401  as the base
        """Stop watching a descriptor, which may be closed by now. Raises KeyError if it is not watched."""
        key = self._keys.pop(_descriptor(fileobj), None)
        if key is None:  # closed: the kernel has removed it, and a socket of the reactor may have its number by now
            return self._forget_closed(fileobj)
        with contextlib.suppress(OSError):  # a number whose descriptor is closed
            self.epoll.unregister(key.fd)
        return key

    def _forget_closed(self, fileobj: object) -> selectors.SelectorKey:
        for key in self._keys.values():
            if key.fileobj is fileobj:
                return self._keys.pop(key.fd)
        raise KeyError(f"{fileobj!r} is not registered")

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401  as the base
        """Watch a descriptor for other events, or with other data. Raises KeyError if it is not watched."""
        known = self._keys[_descriptor(fileobj)]
        if events != known.events:
            self.epoll.modify(known.fd, _epoll_mask(events))
        key = self._keys[known.fd] = selectors.SelectorKey(known.fileobj, known.fd, events, data)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for an event of asyncio's, and let the reactor handle its own meanwhile.

        Returns nothing when the time is over, or when a handler of the reactor has given asyncio something to do.
        """
        self._is_interrupted = False
        now = monotonic()
        self._deadline = math.inf if timeout is None else now + timeout
        return_at = min(self._deadline, now + _MAX_WAIT_S)
        wait = timeout if timeout is None or timeout > 0.0 else 0.0  # epoll rounds it up to milliseconds
        while True:
            reactor = self.reactor
            needs_turn = reactor is not None and reactor.needs_turn
            events = self.epoll.poll(0 if needs_turn else wait, _EVENTS_AT_ONCE)
            if events or needs_turn:
                if reactor is not None:
                    events = reactor.handle_events(events)
                if events and (ready := self._ready_keys(events)):
                    return ready
                if self._is_interrupted or monotonic() >= return_at:
                    return []
                wait = 0.0  # poll once more before waiting: to sleep and be woken costs more
            elif wait != 0.0 or self._is_interrupted:
                return []
            elif timeout is None:
                wait = None
            elif (wait := self._deadline - monotonic()) <= 0.0:
                return []

    def _ready_keys(self, events: EpollEvents) -> list[tuple[selectors.SelectorKey, int]]:
        keys = self._keys
        return [(key, _selector_mask(mask) & key.events) for fd, mask in events if (key := keys.get(fd)) is not None]

    def interrupt(self, due_at: float = -math.inf) -> None:
        """Let ``select`` return after this batch of events if it would wait longer than until ``due_at``."""
        if due_at < self._deadline:
            self._is_interrupted = True

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:  # noqa: ANN401  as the base
        """Return the key of a watched descriptor. Raises KeyError if it is not watched."""
        return self._keys[_descriptor(fileobj)]

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """The watched descriptors, by number or by object."""
        return self._map

    def close(self) -> None:
        """Close the epoll instance."""
        self._keys.clear()
        self.epoll.close()


class SharedEpollLoop(asyncio.SelectorEventLoop):
    """asyncio's loop with a ``SharedSelector``, which it interrupts where a reactor's handler gives it work."""

    def __init__(self) -> None:
        self.shared_selector: Final = SharedSelector()
        super().__init__(self.shared_selector)

    def call_soon(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Schedule a callback for the next turn, as the base class does."""
        self.shared_selector.interrupt()
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Schedule a callback for a time, as the base class does."""
        self.shared_selector.interrupt(when)
        return super().call_at(when, callback, *args, context=context)

    def stop(self) -> None:
        """Stop after the present turn, as the base class does."""
        self.shared_selector.interrupt()
        super().stop()


def _descriptor(fileobj: Any) -> int:  # noqa: ANN401  an int or an object with fileno, as selectors allow
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def _epoll_mask(events: int) -> int:
    return (_READ if events & selectors.EVENT_READ else 0) | (_WRITE if events & selectors.EVENT_WRITE else 0)


def _selector_mask(events: int) -> int:
    """Return what asyncio does about epoll events; an error or a hang-up concerns both directions."""
    return (selectors.EVENT_WRITE if events & ~_READ else 0) | (selectors.EVENT_READ if events & ~_WRITE else 0)
