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

_FAREWELL_TIMEOUT_S: Final = 3.0  # for the farewell and the end of the connection


@contextlib.asynccontextmanager
async def publish_host(control: ControlService, manifest: Manifest) -> AsyncIterator[None]:
    """Publish the daemon's tunnels and accept commands until the block ends, whatever the broker does."""
    settings = manifest.supervisor.mqtt
    if settings is None:
        yield
        return
    # aiomqtt and paho are imported only where a broker is configured.
    from orchestrator.mqtt.broker import Broker  # noqa: PLC0415
    from orchestrator.mqtt.commands import EVENT_KIND, CommandHandler  # noqa: PLC0415
    from orchestrator.mqtt.connection import BrokerClient  # noqa: PLC0415
    from orchestrator.mqtt.ha_discovery import HomeAssistantDiscovery  # noqa: PLC0415
    from orchestrator.mqtt.ownership import find_state_directory, load_identity  # noqa: PLC0415
    from orchestrator.mqtt.payloads import DaemonRun  # noqa: PLC0415
    from orchestrator.mqtt.publisher import Publisher  # noqa: PLC0415
    from orchestrator.mqtt.topics import HostTopics  # noqa: PLC0415

    identity = load_identity(manifest.path, find_state_directory(os.environ, os.getuid()))
    if identity.problem is not None and settings.host is None:
        control.bus.emit(LogLevel.WARN, EVENT_KIND, identity.problem)
    if settings.ca is not None and settings.url.startswith("mqtt:"):
        text = f"supervisor.mqtt: ca has no effect, because {settings.url} is not encrypted; write mqtts://"
        control.bus.emit(LogLevel.WARN, EVENT_KIND, text)
    host = settings.host or identity.instance
    run = DaemonRun(identity.instance, uuid.uuid4().hex, time.time())
    topics = HostTopics(host)
    prefix = settings.discovery_prefix
    publisher = Publisher(
        control,
        BrokerClient(Broker.from_settings(settings, os.environ), identity.client_id(host)),
        host=host,
        run=run,
        handler=CommandHandler(control, topics, run.boot, is_enabled=settings.commands),
        discovery=HomeAssistantDiscovery(prefix, topics, host, program_version()) if settings.discovery else None,
    )
    control.mqtt = publisher.status
    task = asyncio.create_task(publisher.run(), name="mqtt")
    try:
        yield
    finally:
        publisher.close()
        await asyncio.wait([task], timeout=_FAREWELL_TIMEOUT_S)
        task.cancel()
        await asyncio.wait([task], timeout=_FAREWELL_TIMEOUT_S)
