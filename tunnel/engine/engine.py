"""The life of one tunnel: attempts, cooldowns, links, the drain; and its snapshot for whoever looks on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
from functools import partial
from typing import TYPE_CHECKING, Final

from tunnel.engine.client import LinkConnector, LinkFailedError
from tunnel.engine.egress import Egress
from tunnel.engine.ingress import Ingress
from tunnel.engine.link import DialStatusChanged, LinkClosed, PoolAvailable
from tunnel.engine.server import LinkAcceptor
from tunnel.engine.stats import Stats
from tunnel.model.events import EventKind, EventLog
from tunnel.model.limits import configured_limits, default_limits
from tunnel.model.snapshot import SnapshotBuilder, SnapshotInput
from tunnel.model.spec import Direction, LogLevel, Role, TunnelSpec
from tunnel.model.state import State, StateRecord
from tunnel.protocol.messages import TargetStatus
from tunnel.protocol.session import LimitsChanged
from tunnel.runtime import backoff, listeners
from tunnel.runtime.sockets import NetError
from tunnel.runtime.tls import TlsError

if TYPE_CHECKING:
    import socket

    from tunnel.engine.context import EngineContext
    from tunnel.engine.link import Link, LinkEvent
    from tunnel.engine.pool_filler import PoolFiller
    from tunnel.model.events import Event, EventSink
    from tunnel.model.snapshot import Snapshot
    from tunnel.runtime.acceptor import Acceptor

_FAREWELL: Final = "it is shutting down"
_LOOK: Final = 0.02  # seconds between two looks at what a drain waits for


class Engine:
    """A running tunnel. Owns its listeners, its link and its relays."""

    def __init__(self, name: str, spec: TunnelSpec, *, context: EngineContext, sink: EventSink) -> None:
        self.name = name
        self.spec = spec
        self._context = context
        self._sink = sink
        self._event_log = EventLog(name, self._emit, spec.log)
        self._stats = Stats(partial(context.notify_activity, name))
        self._record = StateRecord()
        self._last_error: Event | None = None
        self._loop = asyncio.get_running_loop()
        self._server: LinkAcceptor | None = None
        self._client: LinkConnector | None = None
        self._direction: Direction | None = listeners.decide_direction(spec) if spec.role is Role.SERVER else None
        self._bound: dict[str, socket.SocketType] = {}
        self._end: Ingress | Egress | None = None
        self._link: Link | None = None
        self._link_since = 0.0
        self._filler: PoolFiller | None = None
        self._link_over: asyncio.Future[str] | None = None
        self._was_up = False
        self._attempt = 0
        self._next_attempt = 0.0
        self._retry = asyncio.Event()
        self._ending = asyncio.Event()
        self._cut = asyncio.Event()
        self._drain_limit: float | None = None
        self._defect: Exception | None = None
        self._snapshots = SnapshotBuilder(name)

    # --- what its owner asks --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until drained, closed or failed. Raises only on a defect; everything is closed either way."""
        life = asyncio.create_task(self._live(), name=f"tunnel {self.name}")
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait({life, ending}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                life.result()
            elif self._defect is None:
                await _cancelled(life)
                await self._drain()
            if self._defect is not None:
                raise self._defect
        finally:
            try:
                await _cancelled(life)
                await _cancelled(ending)
            finally:  # also when whoever runs this tunnel is cancelled once more
                self._close_all()
                if self._record.state is not State.FAILED:
                    self._to(State.STOPPED)

    async def prepare(self, predecessor: Engine) -> None:
        """Before ``run``: bind what this tunnel listens on, while the engine whose place it takes still serves.

        Listeners on the same addresses are taken from it. Raises NetError; then the predecessor is as it was. Otherwise
        it no longer accepts on them, and has to be drained.
        """
        direction = self._direction or predecessor._direction
        addresses = listeners.listening_addresses(self.spec, direction)
        self._bound = await listeners.bind(self.spec, addresses, predecessor._acceptors())

    def _acceptors(self) -> dict[str, Acceptor]:
        acceptors = dict(self._server.acceptors) if self._server is not None else {}
        if isinstance(self._end, Ingress) and self._end.acceptor is not None:
            acceptors[listeners.VISITORS] = self._end.acceptor
        return acceptors

    def drain(self, timeout: float | None = None) -> None:
        """Accept no new visitors, let the present ones finish for ``timeout`` seconds at most, then ``run`` returns.

        None: as long as SHUTDOWN_TIMEOUT says.
        """
        self._drain_limit = self.spec.settings.shutdown_timeout if timeout is None else timeout
        self._ending.set()

    def close(self) -> None:
        """Everything closes now, also out of a drain, and ``run`` returns."""
        self._drain_limit = 0.0
        self._cut.set()
        self._ending.set()

    def retry(self) -> None:
        """End a cooldown: the next attempt is made now."""
        self._retry.set()
        if isinstance(self._end, Egress):
            self._end.probe_now()

    def adopt(self, spec: TunnelSpec) -> None:
        """Take over settings and log level of a changed spec; no connection is touched."""
        self.spec = spec
        values = spec.settings
        self._event_log.level = spec.log
        for maker in (self._server, self._client):
            if maker is not None:
                maker.update_spec(spec)
        if (link := self._link) is not None:
            link.update_limits(configured_limits(values), default_limits(values))
            link.set_report_interval(values.report_interval)
            link.channel.set_read_size(values.signal_buffer)
        if isinstance(self._end, Ingress):
            self._end.set_limits(self._visitors, values.signal_queue_limit)
        elif self._end is not None:
            self._end.max_retry_delay_s = spec.cooldown

    # --- attempts -------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        if self.spec.role is Role.SERVER:
            await self._live_as_server()
        else:
            await self._live_as_client()

    async def _live_as_server(self) -> None:
        context = self._context
        while True:
            server = LinkAcceptor(self.spec, context, self._event_log, self._stats, self)
            try:
                await self._open_end()
                await server.open(self._bound)
            except (NetError, TlsError) as error:
                self._close_end()
                listeners.close(self._bound)
                if isinstance(error, TlsError) or error.errno in {errno.EACCES, errno.EPERM}:
                    self._fail(str(error))
                    return
                await self._cool_down(str(error))
                continue
            self._server = server
            self._attempt = 0
            beside = f", data connections on {server.data_addr}" if server.data_addr else ""
            self._event_log.log_info(
                EventKind.LISTEN, f"listening on {server.address} as {self._direction} server{beside}"
            )
            self._to(State.WAITING)
            await self._loop.create_future()  # until it is cancelled: links come and go without it

    async def _live_as_client(self) -> None:
        client = self._client = LinkConnector(self.spec, self._context, self._event_log)
        while True:
            self._to(State.CONNECTING)
            try:
                link, filler = await client.connect()
                reason = await self._serve(link, filler)
            except LinkFailedError as error:
                if error.is_final:
                    self._fail(str(error))
                    return
                reason = str(error)
            await self._cool_down(reason)

    async def _serve(self, link: Link, filler: PoolFiller) -> str:
        """The client's side of a link, from its start to its loss; why it was lost."""
        if self._direction is not link.direction:
            self._close_end()  # the server was given another mode
            self._direction = link.direction
        try:
            await self._open_end()
        except NetError as error:
            link.close(str(error), goodbye=str(error))
            return str(error)
        listeners.close(self._bound)  # inherited for a direction that the server no longer has
        self._filler = filler
        self._link_over = self._loop.create_future()
        self.start_link(link)
        filler.start()
        reason = await self._link_over
        if self._loop.time() - self._link_since >= self._context.timing.stable_after_s:
            self._attempt = 0
        return reason

    async def _open_end(self) -> None:
        """Make entrance or exit, whichever this end is, unless it is there. Raises NetError."""
        if self._end is not None or self._direction is None:
            return
        addresses = listeners.listening_addresses(self.spec, self._direction)
        missing = {purpose: address for purpose, address in addresses.items() if purpose not in self._bound}
        self._bound |= await listeners.bind(self.spec, missing)
        spec, context = self.spec, self._context
        if listeners.VISITORS in addresses:
            entrance = Ingress(
                context.reactor,
                context.pipes,
                self._stats,
                self._event_log,
                spec.settings,
                on_crash=self.on_handler_error,
            )
            entrance.open(self._bound.pop(listeners.VISITORS), spec.target)
            self._end = entrance
            self._event_log.log_info(EventKind.LISTEN, f"visitors are accepted on {entrance.address}")
        else:
            self._end = Egress(
                context.reactor,
                context.pipes,
                self._stats,
                self._event_log,
                spec.target,
                self._settle,
                on_crash=self.on_handler_error,
            )
            self._end.max_retry_delay_s = spec.cooldown

    async def _cool_down(self, reason: str) -> None:
        self._attempt += 1
        pause = backoff.retry_delay(self._attempt, self.spec.cooldown, random.uniform)
        self._next_attempt = self._loop.time() + pause
        self._event_log.warn_throttled(
            EventKind.STATE, reason, f"{reason}; next attempt in {pause:.1f} s", attempt=self._attempt
        )
        self._to(State.COOLDOWN, reason)
        self._retry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._retry.wait()

    # --- links ----------------------------------------------------------------------------------------------------

    def start_link(self, link: Link) -> None:
        """Use a link whose handshake is complete."""
        end = self._end
        if end is None:
            link.close("this end is closing")
            return
        self._link = link
        self._link_since = self._loop.time()
        self._was_up = False
        self._settle()
        link.start(self, end, self._filler)
        if link.channel.closed_reason is None:  # it may have been closed before it was started
            end.attach(link)
            self._event_log.log_info(
                EventKind.LINK, f"link {link.ident} with {link.channel.peer}, {link.direction}", link=link.ident
            )

    def on_link_event(self, link: Link, event: LinkEvent) -> None:
        """Adapt limits and state to what happened to the present link."""
        if link is not self._link:
            return
        match event:
            case LinkClosed(reason):
                self._on_link_closed(link, reason)
            case LimitsChanged():
                if isinstance(self._end, Ingress):
                    self._end.set_limits(link.session.limits.visitors, self.spec.settings.signal_queue_limit)
                self._settle()
            case TargetStatus() | PoolAvailable() | DialStatusChanged():
                self._settle()

    def _on_link_closed(self, link: Link, reason: str) -> None:
        self._link = None
        if self._end is not None:
            self._end.detach(link)
        if self._filler is not None:
            self._filler.close()
            self._filler = None
        text = f"the link with {link.channel.peer} was lost: {reason}"
        if self._link_over is None and not self._ending.is_set():  # a client says it with its cooldown
            self._event_log.log_warn(EventKind.LINK, text, link=link.ident)
        self._settle(text)
        if self._link_over is not None and not self._link_over.done():
            self._link_over.set_result(text)

    def on_handler_error(self, error: Exception) -> None:
        """A defect: this engine ends and raises it; its owner starts another."""
        if self._defect is None:
            self._defect = error
        self._cut.set()
        self._ending.set()

    def _settle(self, reason: str | None = None) -> None:
        """Take the state that follows from what is so: link, pool, target."""
        if self._ending.is_set():
            return
        link = self._link
        if link is None:
            if self._server is not None:
                self._to(State.WAITING, reason)
            return
        trouble = self._end.target_error if isinstance(self._end, Egress) else link.session.target_error
        dial_trouble = self._filler.dial_error if self._filler is not None else None
        if trouble is not None:
            self._to(State.COOLDOWN, trouble)
        elif len(link.pool) or (self._was_up and dial_trouble is None):
            self._was_up = True
            self._to(State.UP)
        else:
            self._to(State.CONNECTING, dial_trouble)

    def _to(self, target: State, reason: str | None = None) -> None:
        before, self._record = self._record, self._record.transition_to(target, reason)
        if before.state is not target:
            text = f"{before.state} → {target}" + (f": {reason}" if reason else "")
            # attempts that follow one another are noise, but nobody wants to miss that a tunnel is not up any more
            is_news = before.state is State.UP or target in {State.UP, State.DRAINING, State.STOPPED}
            level = LogLevel.INFO if is_news else LogLevel.DEBUG
            self._event_log.log(level, EventKind.STATE, text, state=target.value, reason=reason)

    def _fail(self, reason: str) -> None:
        self._event_log.log_error(EventKind.STATE, reason)
        self._to(State.FAILED, reason)

    def _emit(self, event: Event) -> None:
        if event.level >= LogLevel.WARN:
            self._last_error = event
        self._sink(event)

    # --- the end --------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Give up the listeners and the link as soon as nobody needs them, and wait for the relays.

        They go early so that the other end can turn to whoever takes this tunnel's place.
        """
        limit = self._drain_limit or 0.0
        self._to(
            State.DRAINING,
            f"{self._end.relays.active if self._end is not None else 0} visitors may finish, for {limit:g} s at most",
        )
        end, server = self._end, self._server
        if isinstance(end, Ingress):
            end.finish_accepting()
        elif self._link is not None:
            self._link.send_goodbye(_FAREWELL)
        now = self._loop.time()
        parting, until = now + min(self._context.timing.goodbye_grace_s, limit), now + limit
        while not self._cut.is_set() and (now := self._loop.time()) < until:
            has_queue = isinstance(end, Ingress) and end.queued > 0
            if server is not None and not has_queue:  # who waits for a data connection needs a door for it
                server.close()
            link_needed = has_queue if isinstance(end, Ingress) else now < parting
            if self._link is not None and not link_needed:
                self._link.close("this end is shutting down", goodbye=_FAREWELL)
            if self._link is None and (end is None or not end.is_busy):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._cut.wait()

    def _close_all(self) -> None:
        self._ending.set()
        with contextlib.ExitStack() as closing:  # last in, first out; a defect in one leaves no other open
            closing.callback(self._cut_off)
            closing.callback(listeners.close, self._bound)
            if self._server is not None:
                closing.callback(self._server.close)
            if self._link is not None:
                closing.callback(self._link.close, "this end stopped", goodbye=_FAREWELL)

    def _cut_off(self) -> None:
        cut = self._close_end()
        if cut:
            self._event_log.log_warn(EventKind.VISITOR, f"{cut} visitors were cut off")

    def _close_end(self) -> int:
        end, self._end = self._end, None
        return end.close() if end is not None else 0

    # --- what others see ------------------------------------------------------------------------------------------

    @property
    def _visitors(self) -> int:
        return self._link.session.limits.visitors if self._link is not None else self.spec.settings.semaphore_limit

    def snapshot(self) -> Snapshot:
        """How the tunnel is at this moment: the same object for as long as nothing differs."""
        return self._snapshots.build(self._snapshot_input())

    def _snapshot_input(self) -> SnapshotInput:
        spec, stats, link, server, end = self.spec, self._stats, self._link, self._server, self._end
        entrance = end if isinstance(end, Ingress) else None
        remaining, attempt = self._cooldown()
        return SnapshotInput(
            spec=spec,
            record=self._record,
            direction=self._direction,
            tunnel_addr=server.address if server else None,
            target_addr=entrance.address if entrance else None,
            data_addr=link.data_addr if link else server.data_addr if server else None,
            peer=link.channel.peer if link else None,
            link=link.ident if link else None,
            data_tls=link.data_tls if link else False,
            limits=link.session.limits if link else default_limits(spec.settings),
            idle=len(link.pool) if link else 0,
            capacity=link.session.wanted_idle if link else 0,
            dialing=link.session.dialing if link else 0,
            queued=entrance.queued if entrance else 0,
            rtt=link.session.heartbeat.round_trip_s if link else None,
            signals=stats.signals,
            active=end.relays.active if end is not None else 0,
            total=stats.total,
            failed=stats.failed,
            from_visitors=stats.from_visitors.total,
            to_visitors=stats.to_visitors.total,
            refused_handshakes=stats.refused_handshakes,
            refused_prefaces=stats.refused_prefaces,
            silent=stats.silent,
            attempt=attempt,
            remaining=remaining,
            error=self._last_error,
        )

    def _cooldown(self) -> tuple[float, int]:
        """Seconds until the next attempt, and which it is."""
        if self._record.state is not State.COOLDOWN:
            return 0.0, 0 if self._record.state is State.UP else self._attempt
        if isinstance(self._end, Egress) and self._end.target_error is not None and self._link is not None:
            due, attempt = self._end.next_attempt_at, self._end.attempt
        else:
            due, attempt = self._next_attempt, self._attempt
        return max(0.0, due - self._loop.time()), attempt


async def _cancelled(task: asyncio.Task[object] | asyncio.Task[None]) -> None:
    """Cancel a task and wait until it is over; what it raised then is not news any more."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
