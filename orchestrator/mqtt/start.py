"""From a file's ``supervisor.mqtt`` to a host on the broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from orchestrator.process.setup import program_version
from tunnel.model.spec import LogLevel

if TYPE_CHECKING:
    from orchestrator.config.manifest import Manifest
    from orchestrator.supervisor.control import ControlService

_PATIENCE: Final = 3.0  # seconds for the last words and the end of the connection


@contextlib.asynccontextmanager
async def publishing(control: ControlService, manifest: Manifest) -> AsyncIterator[None]:
    """Publish what the desk sees, and take commands to it, until the context ends; whatever the broker does."""
    settings = manifest.supervisor.mqtt
    if settings is None:
        yield
        return
    from orchestrator.mqtt.broker import Broker, Dialer  # noqa: PLC0415  only where there is a broker
    from orchestrator.mqtt.discovery import Discovery  # noqa: PLC0415
    from orchestrator.mqtt.identity import identity, state_directory  # noqa: PLC0415
    from orchestrator.mqtt.payloads import Origin  # noqa: PLC0415
    from orchestrator.mqtt.publisher import KIND, Publisher  # noqa: PLC0415
    from orchestrator.mqtt.steering import Steering  # noqa: PLC0415
    from orchestrator.mqtt.topics import HostTopics  # noqa: PLC0415

    own = identity(manifest.path, state_directory(os.environ, os.getuid()))
    if own.problem is not None and settings.host is None:
        control.bus.emit(LogLevel.WARN, KIND, own.problem)
    host = settings.host or own.instance
    origin = Origin(own.instance, uuid.uuid4().hex, time.time())
    if settings.ca is not None and settings.url.startswith("mqtt:"):
        text = f"supervisor.mqtt: ca is of no use, for {settings.url} is not encrypted; write mqtts://"
        control.bus.emit(LogLevel.WARN, KIND, text)
    topics = HostTopics(host)
    steering = Steering(control, topics, origin.boot, is_on=settings.commands)
    discovery = Discovery(settings.discovery_prefix, topics, host, program_version()) if settings.discovery else None
    dialer = Dialer(Broker.from_settings(settings, os.environ), own.client_id(host))
    publisher = Publisher(control, dialer, host=host, origin=origin, steering=steering, discovery=discovery)
    control.mqtt = publisher.status
    work = asyncio.create_task(publisher.run(), name="mqtt")
    try:
        yield
    finally:
        publisher.close()
        await asyncio.wait([work], timeout=_PATIENCE)
        work.cancel()
        await asyncio.wait([work], timeout=_PATIENCE)
