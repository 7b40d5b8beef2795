"""An event loop whose epoll instance a reactor shares, so that an event on a socket wakes the process once.

On any other asyncio loop the reactor has an epoll instance of its own inside the loop's. Then every wake-up goes
through two of them, and through asyncio's own dispatch, which is a third of a lone visitor's latency.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
import selectors
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

_EVENTS_AT_ONCE: Final = 256
_READ: Final = select.EPOLLIN
_WRITE: Final = select.EPOLLOUT

EpollEvents = list[tuple[int, int]]
"""File descriptors and their event bits, as epoll reports them."""


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
    """asyncio's selector. Events are passed to ``on_events`` if one is of a descriptor that asyncio does not know."""

    def __init__(self) -> None:
        self.epoll: Final = select.epoll()
        """a reactor may register its sockets here"""
        self.on_events: Callable[[EpollEvents], None] | None = None
        """the reactor that shares the epoll instance, if there is one; it skips the descriptors of asyncio"""
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
        """Wait for events: return asyncio's, and let the reactor handle the others before that."""
        if timeout is None:
            timeout = -1
        elif timeout > 0:
            timeout = math.ceil(timeout * 1e3) * 1e-3  # epoll counts milliseconds: less would end too early
        else:
            timeout = 0
        events = self.epoll.poll(timeout, _EVENTS_AT_ONCE)
        if not events:
            return []
        keys = self._keys
        own = [event for event in events if event[0] in keys]
        if len(own) < len(events) and self.on_events is not None:
            self.on_events(events)
        if not own:
            return []
        # Only now: a handler of the reactor may have removed a reader of asyncio's.
        return [(key, _selector_mask(mask) & key.events) for fd, mask in own if (key := keys.get(fd)) is not None]

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
    """asyncio's loop with a ``SharedSelector``."""

    def __init__(self) -> None:
        self.shared_selector: Final = SharedSelector()
        super().__init__(self.shared_selector)


def _descriptor(fileobj: Any) -> int:  # noqa: ANN401  an int or an object with fileno, as selectors allow
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


def _epoll_mask(events: int) -> int:
    return (_READ if events & selectors.EVENT_READ else 0) | (_WRITE if events & selectors.EVENT_WRITE else 0)


def _selector_mask(events: int) -> int:
    """Return what asyncio does about epoll events; an error or a hang-up concerns both directions."""
    return (selectors.EVENT_WRITE if events & ~_READ else 0) | (selectors.EVENT_READ if events & ~_WRITE else 0)
