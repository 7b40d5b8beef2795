"""The public interface of this package for programs that run tunnels in an event loop of their own.

docs/embedding.md explains its use. Everything else in this package may change without notice.
"""

from __future__ import annotations

from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.model.errors import OptionError, TunnelError, UrlError
from tunnel.model.events import Event, EventSink
from tunnel.model.options import make_spec
from tunnel.model.snapshot import Snapshot
from tunnel.model.spec import TunnelSpec
from tunnel.model.state import State
from tunnel.model.url import parse_url
from tunnel.runtime.event_loop import SharedEpollLoop

__all__ = [
    "EngineContext",
    "Event",
    "EventSink",
    "OptionError",
    "SharedEpollLoop",
    "Snapshot",
    "State",
    "TunnelError",
    "TunnelSpec",
    "UrlError",
    "create_engine",
    "make_spec",
    "parse_url",
]
