"""The events of a link, and the parts of a tunnel that handle them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tunnel.protocol.frames import ShareChanged, TargetStatus
from tunnel.protocol.session import LimitsChanged

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.engine.link import Link
    from tunnel.protocol.session import SessionEvent


@dataclass(frozen=True, slots=True)
class PoolAvailable:
    """The pool has its first idle connection after it was empty."""


@dataclass(frozen=True, slots=True)
class DialStatusChanged:
    """Dialling data connections fails, or succeeds again."""


@dataclass(frozen=True, slots=True)
class LinkClosed:
    """The link is closed, with its idle connections. Its relays continue."""

    reason: str
    is_orderly: bool = False
    """whether the other end closed it because it shuts down in order"""


LinkEvent = LimitsChanged | TargetStatus | ShareChanged | PoolAvailable | DialStatusChanged | LinkClosed
EventT = TypeVar("EventT")


class LinkPart(Protocol):
    """An object that handles events of a link: the ingress or egress, the pool filler, the engine."""

    def register_handlers(self, table: EventTable) -> None:
        """Enter the handlers of the events that concern this part."""


class EventTable:
    """The handlers of a link's events, by the class of the event."""

    def __init__(self) -> None:
        self._handlers: dict[type, tuple[Callable[[Link, Any], None], ...]] = {}  # Any: the class that is the key

    def add(self, event: type[EventT], handler: Callable[[Link, EventT], None]) -> None:
        """Call ``handler`` for each event of a class, after the handlers that were added before."""
        self._handlers[event] = (*self._handlers.get(event, ()), handler)

    def handle(self, link: Link, event: SessionEvent) -> None:
        """Call the handlers of an event; an event without any concerns only the session."""
        for handler in self._handlers.get(type(event), ()):
            handler(link, event)

    def clear(self) -> None:
        """Drop the handlers, which refer to the parts of the tunnel."""
        self._handlers.clear()


class LinkOwner(LinkPart, Protocol):
    """The engine, as its link sees it."""

    def on_link_event(self, link: Link, event: LinkEvent) -> None:
        """Handle an event of the link."""

    def on_handler_error(self, error: Exception) -> None:
        """End the engine because of a defect."""
