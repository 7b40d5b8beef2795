"""Creates the engine that fits a spec."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tunnel.carriers import prepare_carrier
from tunnel.engine.client_engine import ClientEngine
from tunnel.engine.publishing_engine import PublishingEngine
from tunnel.engine.server_engine import ServerEngine
from tunnel.model.spec import DATAGRAMS, Role

if TYPE_CHECKING:
    from tunnel.engine.context import EngineContext
    from tunnel.engine.engine import Engine
    from tunnel.model.events import EventSink
    from tunnel.model.spec import TunnelSpec


def create_engine(name: str, spec: TunnelSpec, context: EngineContext, sink: EventSink) -> Engine:
    """An engine for one tunnel, not started yet: its owner awaits ``run``. Needs a running event loop."""
    prepare_carrier(spec.carrier)
    if DATAGRAMS in spec.features:
        importlib.import_module("tunnel.engine.datagram_path")  # before the first link would have to wait for it
    if spec.publish_rules:
        return PublishingEngine(name, spec, context=context, sink=sink)
    engine_class = ServerEngine if spec.role is Role.SERVER else ClientEngine
    return engine_class(name, spec, context=context, sink=sink)
