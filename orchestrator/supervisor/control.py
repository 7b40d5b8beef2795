"""What the local API, MQTT and the command line may read and command, through whichever way a request comes.

The one place that refuses commands, describes their effect, and records them as events.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.errors import OrchestratorError
from orchestrator.history.database import HistoryError
from orchestrator.history.periods import Step
from orchestrator.history.traffic import HostTraffic
from orchestrator.process.messages import program_version
from orchestrator.status.contract import BrokerInfo, DaemonInfo, DaemonStatus, encode_info, encode_status
from orchestrator.status.tunnel_test import encode_test, summarize_test
from orchestrator.status.visitors import RateMeter, encode_visitor
from orchestrator.supervisor.registry import UnknownTunnelError
from orchestrator.tunnel_commands import TUNNEL_COMMANDS
from tunnel.model.events import EventKind
from tunnel.model.links import LinkState
from tunnel.model.spec import Direction, LogLevel, Role
from tunnel.model.state import STATES, State
from tunnel.model.targets import TargetState
from tunnel.model.times import format_timestamp
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

    from orchestrator.config.candidate import Candidate
    from orchestrator.history.recorder import TrafficRecorder, TrafficReport
    from orchestrator.status.json_types import (
        CommandResultJson,
        DaemonJson,
        ShutdownJson,
        StatusJson,
        TunnelDetailsJson,
        TunnelTestJson,
        VisitorJson,
    )
    from orchestrator.status.store import StatusStore
    from orchestrator.supervisor.reload import PlanResult, ReloadResult
    from orchestrator.supervisor.supervisor import Supervisor
    from tunnel.model.snapshot import LinkView, Snapshot, TargetView
    from tunnel.model.visitors import VisitorSelector

VERBS: Final = tuple(TUNNEL_COMMANDS)


AccessLogStatus = tuple[int, int]
"""Lines of the access log: written, and lost."""


class ReadOnlyError(OrchestratorError):
    """This daemon takes no commands."""

    def __init__(self) -> None:
        super().__init__("this daemon takes no commands: it was started with --read-only")


class UnknownVisitorError(OrchestratorError, LookupError):
    """No visitor of that tunnel has that id."""

    def __init__(self, name: str, ident: str) -> None:
        super().__init__(f"no visitor of {name[:200]!r} has the id {ident[:100]!r}; it may have left")


class CommandConflictError(OrchestratorError):
    """The command makes no sense in the present state; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The effect of a command."""

    name: str
    state: State
    text: str

    def as_json(self) -> CommandResultJson:
        """The answer of the local API."""
        return {"name": self.name, "ok": True, "state": self.state.value, "text": self.text}


class ControlService:
    """The status and the commands of one daemon."""

    def __init__(self, supervisor: Supervisor, *, read_only: bool = False) -> None:
        self.supervisor = supervisor
        self.bus = supervisor.bus
        self.read_only = read_only
        self.history: TrafficRecorder | None = None
        """what tunnels carried; None where a test runs no recorder"""
        self._broker_status: Callable[[], BrokerInfo] = BrokerInfo
        self.access_log_status: Callable[[], AccessLogStatus] = lambda: (0, 0)
        self._tested: set[str] = set()
        self._version = program_version()
        self._host = socket.gethostname()
        self._started_at = format_timestamp(time.time())

    # --- reading --------------------------------------------------------------------------------------------------

    @property
    def store(self) -> StatusStore[str, Snapshot]:
        """The tunnels and the daemon as of the last ``refresh``; readers ask it for what changed since a revision."""
        return self.supervisor.store

    async def refresh(self, within_s: float = 0.0, *, everything: bool = False) -> None:
        """Bring ``store`` up to date: what may have changed, or everything; this may take ``within_s`` seconds."""
        await self.supervisor.refresh(within_s, everything=everything)
        self.store.update_daemon(self.info())

    def info(self) -> DaemonInfo:
        """The daemon without its tunnels; cheap enough to be read several times a second."""
        return DaemonInfo(
            generation=self.supervisor.generation,
            pid=os.getpid(),
            config=self.supervisor.config_status(),
            version=self._version,
            host=self._host,
            read_only=self.read_only,
            started_at=self._started_at,
            mqtt=self._broker_status(),
        )

    def set_broker_status(self, read: Callable[[], BrokerInfo]) -> None:
        """Have the status of the connection with the broker read by this function."""
        self._broker_status = read

    def set_access_log_status(self, read: Callable[[], AccessLogStatus]) -> None:
        """Have the numbers of lines of the access log read by this function."""
        self.access_log_status = read

    def head(self) -> DaemonJson:
        """Return ``info`` as a JSON object."""
        return encode_info(self.info())

    async def status(self) -> StatusJson:
        """The object of ``ps --json``."""
        await self.refresh(everything=True)
        return encode_status(DaemonStatus(self.info(), self.store.snapshots()))

    def tunnel(self, name: str) -> TunnelDetailsJson:
        """One tunnel with its URL, settings and place in the file. Raises UnknownTunnelError."""
        return self.supervisor.details(name)

    async def visitors(self, names: Sequence[str] = (), rates_s: float = 0.0) -> AsyncIterator[list[VisitorJson]]:
        """Yield the visitors of some tunnels (none: all) in slices; with their rates in the next ``rates_s`` seconds.

        Raises UnknownTunnelError, EngineSilentError.
        """
        for name in names:
            self.supervisor.snapshot(name)
        if not rates_s:
            async for visitors in self._list_visitors(names):
                yield visitors
            return
        meter = RateMeter()
        async for visitors in self._list_visitors(names):
            meter.measure(visitors)
        await asyncio.sleep(rates_s)
        meter.start_list()
        async for visitors in self._list_visitors(names):
            meter.measure(visitors)
            yield visitors

    async def _list_visitors(self, names: Sequence[str]) -> AsyncIterator[list[VisitorJson]]:
        for name in names or tuple(self.supervisor.names()):
            async for visitors in self.supervisor.visitors(name):
                now = time.time()
                yield [encode_visitor(name, one, now) for one in visitors]

    async def plan(self, candidate: Candidate | None = None) -> PlanResult:
        """What a reload would change, or a candidate in place of the file."""
        return await self.supervisor.plan(candidate)

    async def traffic(self, step: Step, days: int, patterns: Collection[str]) -> TrafficReport:
        """What tunnels carried; names and patterns select them. Raises HistoryError, UnknownTunnelError."""
        if self.history is None:
            raise HistoryError("traffic is not recorded")
        try:
            return await self.history.read(step, days, patterns)
        except LookupError as error:
            raise UnknownTunnelError(str(error.args[0])) from None

    async def host_traffic(self) -> HostTraffic | None:
        """What all tunnels together carried today and this month; None if that is not recorded, or cannot be read."""
        try:
            today, month = [(await self.traffic(step, 1, ())).bytes for step in (Step.DAY, Step.MONTH)]
        except HistoryError:
            return None
        return HostTraffic(today, month)

    # --- commands -------------------------------------------------------------------------------------------------

    async def reload(self) -> ReloadResult:
        """Read the file again and apply it. Raises ReadOnlyError, CommandConflictError."""
        self.check_commands_allowed()
        return await self.supervisor.reload()

    async def apply_candidate(self, candidate: Candidate) -> ReloadResult:
        """Put a candidate in place of the file and apply it. Raises ReadOnlyError, CommandConflictError."""
        self.check_commands_allowed()
        return await self.supervisor.apply_candidate(candidate)

    async def command(self, verb: str, name: str, timeout: float | None = None) -> CommandResult:  # noqa: ASYNC109  of the drain
        """Give a tunnel one of the TUNNEL_COMMANDS; ``timeout`` is the limit of the drain that it implies, in seconds.

        Returns when the command is given, not when it is completed. Raises UnknownTunnelError, ReadOnlyError,
        CommandConflictError.
        """
        self.check_commands_allowed()
        handler = _HANDLERS[verb]
        text = handler.describe(self.supervisor.snapshot(name))
        handler.run(self.supervisor, name, timeout)
        self.bus.emit(LogLevel.INFO, EventKind.COMMAND, f"{verb}: {text}", tunnel=name, command=verb)
        await asyncio.sleep(0)  # the task of a runner that was just started makes its engine in the next turn
        return CommandResult(name, self.supervisor.snapshot(name).state, text)

    def command_target(self, verb: str, name: str, address: str) -> CommandResult:
        """Give one target of a tunnel no new visitors (``drain``), or new visitors again (``start``).

        Raises UnknownTunnelError, ReadOnlyError, CommandConflictError.
        """
        self.check_commands_allowed()
        before = self.supervisor.snapshot(name)
        target = next((each for each in before.targets if each.address == address), None)
        if target is None:
            known = ", ".join(each.address for each in before.targets) or "none at this end"
            raise CommandConflictError(f"the tunnel has no target {address}; its targets are: {known}")
        if target.checks is None:
            raise CommandConflictError(f"{address} is the only target; {verb} the tunnel instead")
        is_drained = verb == "drain"
        text = _describe_target(target, is_drained=is_drained)
        self.supervisor.set_target_drained(name, address, is_drained=is_drained)
        self.bus.emit(LogLevel.INFO, EventKind.COMMAND, f"{verb}: {text}", tunnel=name, command=verb, target=address)
        return CommandResult(name, before.state, text)

    def command_link(self, verb: str, name: str, ident: str) -> CommandResult:
        """Give one link of a tunnel no new visitors (``drain``), or new visitors again (``start``).

        Raises UnknownTunnelError, ReadOnlyError, CommandConflictError.
        """
        self.check_commands_allowed()
        before = self.supervisor.snapshot(name)
        link = next((each for each in before.links if each.id == ident), None)
        if link is None:
            known = ", ".join(each.id for each in before.links) or "none"
            raise CommandConflictError(f"the tunnel has no link {ident}; its links are: {known}")
        is_drained = verb == "drain"
        ingress = Role.CLIENT if before.direction == Direction.FORWARD else Role.SERVER
        if is_drained and before.role != ingress:
            raise CommandConflictError(f"link {ident} gets its visitors at the {ingress}; {verb} the tunnel there")
        if is_drained and len(before.links) == 1:
            raise CommandConflictError(f"{ident} is the only link; {verb} the tunnel instead")
        text = _describe_link(link, is_drained=is_drained)
        self.supervisor.set_link_drained(name, ident, is_drained=is_drained)
        self.bus.emit(LogLevel.INFO, EventKind.COMMAND, f"{verb}: {text}", tunnel=name, command=verb, link=ident)
        return CommandResult(name, before.state, text)

    async def kick(self, selector: VisitorSelector, names: Sequence[str] = ()) -> list[VisitorJson]:
        """Disconnect visitors of some tunnels (none: all) at once; return what was disconnected.

        Allowed during the daemon's drain. Raises UnknownTunnelError, ReadOnlyError, EngineSilentError.
        """
        self.check_writable()
        for name in names:
            self.supervisor.snapshot(name)
        kicked: list[VisitorJson] = []
        for name in names or tuple(self.supervisor.names()):
            found = await self.supervisor.kick(name, selector)
            if found:  # no address in the text: events are published to brokers
                text = f"kick: {plural(len(found), 'visitor')} disconnected"
                self.bus.emit(LogLevel.INFO, EventKind.COMMAND, text, tunnel=name, command="kick")
            now = time.time()
            kicked += [encode_visitor(name, one, now) for one in found]
        return kicked

    async def test(self, name: str) -> TunnelTestJson:
        """Time each leg of a visitor's way through a tunnel, without a visitor. One test of a tunnel at a time.

        Raises UnknownTunnelError, ReadOnlyError, CommandConflictError, EngineSilentError.
        """
        self.check_commands_allowed()
        if name in self._tested:
            raise CommandConflictError("the tunnel is being tested")
        proto = self.supervisor.snapshot(name).proto
        self._tested.add(name)
        try:
            legs = await self.supervisor.test(name)
        finally:
            self._tested.discard(name)
        if not legs:
            state = self.supervisor.snapshot(name).state
            raise CommandConflictError(f"the tunnel is {state}: only one that runs can be tested")
        found = encode_test(name, proto, legs)
        self.bus.emit(LogLevel.INFO, EventKind.COMMAND, summarize_test(found), tunnel=name, command="test")
        return found

    def shutdown(self, *, drain: bool = True) -> ShutdownJson:
        """End the daemon, after a drain or at once. Raises ReadOnlyError."""
        self.check_writable()
        active = self.supervisor.count_visitors()
        (self.supervisor.shutdown if drain else self.supervisor.close)()
        return {"ok": True, "pid": os.getpid(), "active": active}

    def check_writable(self) -> None:
        """Raise ReadOnlyError if the daemon takes no commands at all."""
        if self.read_only:
            raise ReadOnlyError

    def check_commands_allowed(self) -> None:
        """Raise ReadOnlyError or CommandConflictError if the daemon takes no commands now."""
        self.check_writable()
        if not self.supervisor.is_started:
            raise CommandConflictError("the tunnels are being started, or drained for the daemon's end")


# --- the commands: what each does, and how its effect is described from the snapshot before it -----------------------


@dataclass(frozen=True, slots=True)
class _Handler:
    run: Callable[[Supervisor, str, float | None], None]
    describe: Callable[[Snapshot], str]


def _describe_start(before: Snapshot) -> str:
    if before.state is State.DRAINING:
        return f"starting again after the drain{_may_finish(before)}"
    return "starting" if STATES[before.state].is_ended else f"already running: {before.state}"


def _describe_stop(before: Snapshot) -> str:
    return "already stopped" if STATES[before.state].is_ended else f"stopping{_may_finish(before)}"


def _describe_drain(before: Snapshot) -> str:
    return "already stopped" if STATES[before.state].is_ended else f"draining{_may_finish(before)}"


def _describe_restart(before: Snapshot) -> str:
    return "starting" if STATES[before.state].is_ended else f"restarting{_may_finish(before)}"


def _describe_retry(before: Snapshot) -> str:
    is_dialing_paused = before.state is State.CONNECTING and before.reason is not None  # data connections fail
    if before.state is not State.COOLDOWN and not is_dialing_paused:
        raise CommandConflictError(f"there is no cooldown to end: the tunnel is {before.state}")
    return "retrying now"


def _describe_target(before: TargetView, *, is_drained: bool) -> str:
    was_drained = before.state in {TargetState.DRAINING, TargetState.DRAINED}
    if was_drained is is_drained:
        return f"the target {before.address} is already {before.state}"
    if not is_drained:
        return f"the target {before.address} gets new visitors again"
    stay = f"; {plural(before.visitors, 'visitor')} may finish" if before.visitors else ""
    return f"the target {before.address} gets no new visitors{stay}"


def _describe_link(before: LinkView, *, is_drained: bool) -> str:
    was_drained = before.state in {LinkState.DRAINING, LinkState.DRAINED}
    if was_drained is is_drained:
        return f"link {before.id} is already {before.state}"
    if not is_drained:
        return f"link {before.id} gets new visitors again"
    stay = f"; {plural(before.visitors, 'visitor')} may finish" if before.visitors else ""
    return f"link {before.id} gets no new visitors while there is another{stay}"


def _may_finish(before: Snapshot) -> str:
    active = before.connections.active
    return f"; {plural(active, 'visitor')} may finish" if active else ""


_HANDLERS: Final = {
    "start": _Handler(lambda supervisor, name, _: supervisor.start(name), _describe_start),
    "stop": _Handler(lambda supervisor, name, timeout: supervisor.stop(name, timeout), _describe_stop),
    "restart": _Handler(lambda supervisor, name, timeout: supervisor.restart(name, timeout), _describe_restart),
    "drain": _Handler(lambda supervisor, name, timeout: supervisor.drain(name, timeout), _describe_drain),
    "retry": _Handler(lambda supervisor, name, _: supervisor.retry(name), _describe_retry),
}
