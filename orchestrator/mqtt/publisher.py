"""One host on the broker for as long as the daemon runs: online status, tunnels, events, commands, offline status.

Nothing here affects a tunnel: a broker that is slow, silent or gone costs a bounded amount of memory and a few
attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt import broker as errors
from orchestrator.mqtt import payloads
from orchestrator.mqtt.broker import Broker, BrokerError, BrokerState
from orchestrator.mqtt.commands import EVENT_KIND, CommandHandler
from orchestrator.mqtt.connection_report import CAUTIOUS_DELAY_S, ConnectionReporter, RetryPolicy
from orchestrator.mqtt.ha_discovery import DiscoveryMonitor, HomeAssistantDiscovery
from orchestrator.mqtt.ownership import (
    DuplicateHostError,
    HostOwnership,
    StatusVerdict,
    load_identity,
)
from orchestrator.mqtt.payloads import DaemonRun, InfoPayload, StatusPayload
from orchestrator.mqtt.publications import Publications
from orchestrator.mqtt.topics import COMMAND, INFO, STATE, STATUS, HostTopics, ParsedTopic, parse
from orchestrator.process.messages import program_version
from orchestrator.process.state_directory import find_state_directory
from orchestrator.process.task_scope import task_scope
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.event_bus import HISTORY_KINDS, is_noteworthy
from tunnel.model.events import EventLog
from tunnel.model.spec import LogLevel
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from orchestrator.config.manifest import Manifest
    from orchestrator.config.supervisor_settings import MqttSettings
    from orchestrator.mqtt.broker_socket import ReceivedMessage
    from orchestrator.mqtt.session import BrokerClient, BrokerSession, RefusedPublication
    from orchestrator.mqtt.topics import OutgoingMessage
    from orchestrator.status.contract import BrokerInfo
    from orchestrator.supervisor.control import ControlService
    from tunnel.model.events import Event

_SCAN_INTERVAL_S: Final = 1.9  # between two scans, if no event requires one: each has statistics that are due
_REFRESH_WITHIN_S: Final = 0.1  # a scan of all tunnels is spread over this time
_SCAN_PAUSE_S: Final = 0.002  # for visitors, between two steps of one scan
_MIN_SCAN_INTERVAL_S: Final = 0.1  # between two scans, at least; and so many times the duration of a scan:
_MIN_INTERVAL_PER_SCAN: Final = 20
_MAX_UNCONFIRMED: Final = 20  # messages that wait for confirmation; brokers commonly accept no more (Receive Maximum)
_EFFECT_DELAY_S: Final = 0.05  # an engine acts on a command in the next turns of its loop, which may be a worker's
_EFFECTS_TIMEOUT_S: Final = 1.0  # for the states that a command has changed, before its answer
_ECHO_TIMEOUT_S: Final = 5.0  # for our own birth to come back
_OFFLINE_TIMEOUT_S: Final = 2.0  # for the last messages of a connection
_CLOSE_TIMEOUT_S: Final = 3.0  # for the same, and the end of the connection
_TRAFFIC_INTERVAL_S: Final = 60.0  # between two readings of what the host carried today and this month
_RECOVERED_AFTER_S: Final = 5.0  # a connection that lasts so long after a problem is reported


class Publisher:
    """Publishes one host. ``run`` until ``close``."""

    def __init__(
        self,
        control: ControlService,
        client: BrokerClient,
        *,
        host: str,
        run: DaemonRun,
        handler: CommandHandler,
        discovery: HomeAssistantDiscovery | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._host = host
        self._control = control
        self._client = client
        self._topics = HostTopics(host)
        self._handler = handler
        self._event_log = EventLog("", control.bus.publish, call_later=asyncio.get_running_loop().call_later)
        self._uniform = uniform
        self._retry_policy = RetryPolicy(uniform)
        self._publications = Publications(
            control, topics=self._topics, run=run, handler=handler, discovery=discovery, uniform=uniform
        )
        self._discovery = DiscoveryMonitor(self._topics, host, discovery)
        self._ownership = HostOwnership(run, host)
        self._reporter = ConnectionReporter(control.bus, client.broker, host)
        self._scan_requested = asyncio.Event()
        self._queueing = asyncio.Lock()  # one scan at a time: a paused one holds states that are not queued yet
        self._is_echoed = asyncio.Event()
        self._is_closing = asyncio.Event()

    def status(self) -> BrokerInfo:
        """What ``ps --json`` shows of the broker."""
        return self._reporter.info()

    @property
    def has_published_all(self) -> bool:
        """Whether the host is online and nothing waits to be published."""
        return self._reporter.is_online and not self._publications.queue

    # --- connections ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection; every problem is reported and retried."""
        self._control.bus.subscribe(self._on_event)
        try:
            while not self._is_closing.is_set():
                delay_s = await self._publish_or_report()
                if delay_s is not None:
                    await self._sleep_unless_closing(delay_s)
        finally:
            self._control.bus.unsubscribe(self._on_event)

    async def _publish_or_report(self) -> float | None:
        """One connection; the seconds until the next. None: at once, after the wait for a duplicate, and at the end."""
        began = time.monotonic()
        try:
            await self._publish_until_lost()
        except DuplicateHostError as duplicate:
            self._reporter.report_problem(duplicate.state, str(duplicate))
            await self._watch_duplicate()
        except BrokerError as error:
            was_online = self._reporter.is_online
            self._reporter.report_problem(error.state, str(error))
            return self._retry_policy.delay_after_error(error, time.monotonic() - began, was_online=was_online)
        except Exception as error:  # noqa: BLE001  a defect here must not affect the tunnels
            self._reporter.report_problem(BrokerState.FAILED, describe_crash(error))
            return self._retry_policy.delay_after_defect(time.monotonic() - began)
        return None

    def close(self) -> None:
        """Publish the offline status, as far as the broker accepts it, and end."""
        self._is_closing.set()
        self._scan_requested.set()

    async def _sleep_unless_closing(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_closing.wait()

    async def _publish_until_lost(self) -> None:
        """One connection, from online to offline status. Raises BrokerError when it is lost, DuplicateHostError."""
        will = self._publications.status_message(online=False)
        async with self._client.session(will=will) as session:
            try:
                await self._publish_over(session)
            except asyncio.CancelledError:
                if self._reporter.is_online:
                    session.abort()  # the broker publishes the last will, which DISCONNECT would withdraw
                raise

    async def _publish_over(self, session: BrokerSession) -> None:
        """Publish over one connection, as above."""
        async with task_scope() as start:
            self._ownership.begin_publishing()
            self._is_echoed.clear()
            self._publications.restart()
            start(self._receive(session))
            await self._come_online(session)
            start(self._discovery.check_echo(session, self._event_log))
            start(self._handler.run(session, self._publish_effects))
            start(self._send_queue(session))
            start(self._refresh_traffic())
            await self._scan_until_closing()
            await self._publish_offline(session)

    async def _come_online(self, session: BrokerSession) -> None:
        """Claim the host name: read what the broker retains, then publish our birth. Raises as above."""
        await session.subscribe(self._topics.of(STATUS), qos=1)
        # SUBACK arrives after the retained messages, so an existing owner is known once this returns.
        await session.subscribe(self._topics.of(STATE), self._topics.of(INFO))
        await session.subscribe(self._topics.of(COMMAND), qos=1, retain_as_published=True)
        self._ownership.check_free()
        await self._discovery.subscribe(session, self._event_log)
        refused = await session.publish(self._publications.status_message(online=True))
        if refused is not None:
            text = errors.publication_refused(self._client.broker, refused.topic, refused.code)
            raise BrokerError(text, refused.code, BrokerState.REFUSED)
        await self._wait_for_echo()
        self._ownership.confirm_published()
        await session.unsubscribe(self._topics.of(STATE), self._topics.of(INFO))
        self._reporter.report_online()

    async def _wait_for_echo(self) -> None:
        """A broker that does not deliver our messages, for lack of rights, confirms them all the same."""
        try:
            async with asyncio.timeout(_ECHO_TIMEOUT_S):
                await self._is_echoed.wait()
        except TimeoutError:
            raise errors.messages_dropped(self._client.broker, self._topics.base) from None

    async def _scan_until_closing(self) -> None:
        stable_at = time.monotonic() + _RECOVERED_AFTER_S
        while not self._is_closing.is_set():
            spent_s = await self._queue_due()
            if time.monotonic() >= stable_at:
                self._reporter.report_stable()
            await self._sleep_unless_closing(max(_MIN_SCAN_INTERVAL_S, _MIN_INTERVAL_PER_SCAN * spent_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_SCAN_INTERVAL_S, self._publications.next_state_at - time.monotonic())):
                    await self._scan_requested.wait()
            self._scan_requested.clear()

    async def _queue_due(self) -> float:
        """Queue what is due, in several turns of the loop; return the seconds of processing that this took."""
        async with self._queueing:
            await self._control.refresh(_REFRESH_WITHIN_S)
            spent_s, began = 0.0, time.monotonic()
            for _ in self._publications.queue_due():
                spent_s += time.monotonic() - began
                await asyncio.sleep(_SCAN_PAUSE_S)
                began = time.monotonic()
            return spent_s + time.monotonic() - began

    async def _refresh_traffic(self) -> None:
        """Keep what is published of the traffic history up to date; a history that cannot be read is left out."""
        while True:
            self._publications.set_traffic(await self._control.host_traffic())
            await asyncio.sleep(_TRAFFIC_INTERVAL_S)

    async def _publish_effects(self, names: Collection[str]) -> None:
        """Publish what a command has changed of these tunnels before its answer: readers of the answer see the effect.

        More tunnels than the broker confirms in time are published after the answer.
        """
        await asyncio.sleep(_EFFECT_DELAY_S)
        self._publications.allow_states(names)  # after the delay: a scan may have published a state on the way
        await self._queue_due()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EFFECTS_TIMEOUT_S):
                await self._publications.queue.wait_sent({self._topics.of(STATE, name) for name in names})

    async def _publish_offline(self, session: BrokerSession) -> None:
        try:
            async with asyncio.timeout(_OFFLINE_TIMEOUT_S):
                await self._queue_due()
                while batch := self._publications.queue.take_next(_MAX_UNCONFIRMED):
                    await publish_all(session, batch)
                    self._publications.queue.confirm(batch)
                await session.publish(self._publications.status_message(online=False))
        except TimeoutError:
            session.abort()  # the broker publishes the last will instead

    async def _watch_duplicate(self) -> None:
        """Another host has our name: wait until it is gone, without publishing and without a will."""
        try:
            async with self._client.session(use_random_id=True) as session, task_scope() as start:
                self._ownership.begin_watching(time.monotonic())
                start(self._receive(session))
                await session.subscribe(*(self._topics.of(topic) for topic in (STATUS, INFO, STATE)))
                while self._ownership.is_occupied(time.monotonic()) and not self._is_closing.is_set():
                    await self._sleep_unless_closing(_SCAN_INTERVAL_S)
        except (BrokerError, DuplicateHostError) as error:
            self._reporter.report_problem(error.state, str(error))
            await self._sleep_unless_closing(self._uniform(_SCAN_INTERVAL_S, CAUTIOUS_DELAY_S))

    # --- sending --------------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if event.kind == EVENT_KIND:
            return
        if event.kind in HISTORY_KINDS:
            self._scan_requested.set()
        if is_noteworthy(event):
            self._publications.add_event(event)

    async def _send_queue(self, session: BrokerSession) -> None:
        queue = self._publications.queue
        while True:
            await queue.wait_filled()
            if dropped := queue.take_dropped_count():
                were = "was" if dropped == 1 else "were"
                text = f"{plural(dropped, 'event')} {were} not published: the broker accepted none of them for too long"
                self._reporter.emit(LogLevel.WARN, text)
            batch = queue.take_next(_MAX_UNCONFIRMED)
            try:
                refused = await publish_all(session, batch)
            except BaseException:
                queue.put_back(batch)
                raise
            queue.confirm(batch)
            self._reporter.report_publications([message.topic for message in batch], refused)

    # --- receiving ------------------------------------------------------------------------------------------------

    async def _receive(self, session: BrokerSession) -> None:
        async for batch in session.receive_batches():
            for message in batch:
                self._receive_message(message)

    def _receive_message(self, message: ReceivedMessage) -> None:
        topic, is_retained = message.topic, message.retain
        parsed = parse(topic)
        if parsed is None:
            if message.payload and self._discovery.receive(topic, is_retained=is_retained):
                self._publications.add_old_topic(topic)
        elif parsed.host == self._host:
            if parsed.kind == COMMAND.kind:
                self._receive_command(message.payload, is_retained=is_retained)
            else:
                self._receive_own_topic(topic, parsed, message.payload, is_retained=is_retained)

    def _receive_command(self, payload: object, *, is_retained: bool) -> None:
        if not payload:
            return  # a retained command that we cleared: the clearing comes back as well
        self._handler.receive(payload, is_retained=is_retained)
        if is_retained:
            self._publications.clear_topic(self._topics.of(COMMAND))

    def _receive_own_topic(self, topic: str, parsed: ParsedTopic, payload: object, *, is_retained: bool) -> None:
        """A message on a topic that only this host should publish."""
        data = payloads.decode(payload) or {}
        if parsed.kind == STATUS.kind:
            self._receive_status(StatusPayload.from_json(data) or StatusPayload(), is_retained=is_retained)
            return
        if not is_retained:
            if isinstance(boot := data.get("boot"), str):
                self._ownership.note_message(boot, time.monotonic())
        elif parsed.kind == STATE.kind:
            self._publications.add_old_topic(topic)
        elif parsed.kind == INFO.kind and (info := InfoPayload.from_json(data)) is not None:
            self._discovery.set_earlier_prefix(info.discovery)

    def _receive_status(self, status: StatusPayload, *, is_retained: bool) -> None:
        verdict = self._ownership.receive_status(status, time.monotonic(), is_retained=is_retained)
        if verdict is StatusVerdict.ECHO:
            self._is_echoed.set()
        elif verdict is StatusVerdict.DUPLICATE_CAME:
            text = f"another host came online as {self._host!r} on this broker, and has to withdraw"
            self._event_log.warn_throttled(EVENT_KIND, "rival", text)
        is_contradicted = verdict in {StatusVerdict.DUPLICATE_CAME, StatusVerdict.SAYS_OFFLINE}
        if is_contradicted and self._reporter.is_online and not self._is_closing.is_set():
            self._publications.queue.add(self._publications.status_message(online=True))


async def publish_all(session: BrokerSession, batch: list[OutgoingMessage]) -> list[RefusedPublication | None]:
    """Publish together, so that a long round trip counts only once; what the broker refused. Raises the first error.

    One message in each turn of the loop, so that visitors need not wait for the whole batch.
    """
    publications: list[asyncio.Task[RefusedPublication | None]] = []
    try:
        for message in batch:
            publications.append(asyncio.create_task(session.publish(message)))
            await asyncio.sleep(0)
        results = await asyncio.gather(*publications, return_exceptions=True)
    finally:
        for publication in publications:
            publication.cancel()
    refused: list[RefusedPublication | None] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        refused.append(result)
    return refused


# --- the publisher of a daemon ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def publish_host(control: ControlService, manifest: Manifest, settings: MqttSettings) -> AsyncIterator[None]:
    """Publish the daemon's tunnels and accept commands until the block ends, whatever the broker does."""
    publisher = _make_publisher(control, manifest, settings)
    control.set_broker_status(publisher.status)
    task = asyncio.create_task(publisher.run(), name="mqtt")
    try:
        yield
    finally:
        publisher.close()
        await asyncio.wait([task], timeout=_CLOSE_TIMEOUT_S)
        task.cancel()
        await asyncio.wait([task], timeout=_CLOSE_TIMEOUT_S)


def _make_publisher(control: ControlService, manifest: Manifest, settings: MqttSettings) -> Publisher:
    from orchestrator.mqtt.session import BrokerClient  # noqa: PLC0415  imports aiomqtt only where a broker is named

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
    return Publisher(
        control,
        BrokerClient(Broker.from_settings(settings, os.environ), identity.client_id(host)),
        host=host,
        run=run,
        handler=CommandHandler(control, topics, run.boot, is_enabled=settings.commands),
        discovery=HomeAssistantDiscovery(prefix, topics, host, program_version()) if settings.discovery else None,
    )
