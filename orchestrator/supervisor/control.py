"""What people and programs outside may ask of a supervisor and tell it, whichever way they come.

The one place that says no to commands, puts what was done into words, and leaves a trace of it among the events.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.process.setup import program_version
from tunnel.model.spec import LogLevel
from tunnel.model.state import STATES, State
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.supervisor.supervisor import Supervisor
    from tunnel.model.snapshot import Snapshot

VERBS: Final = ("start", "stop", "restart", "drain", "retry")
"""What a single tunnel can be told."""


class ReadOnlyError(Exception):
    """This daemon takes no commands."""

    def __init__(self) -> None:
        super().__init__("this daemon takes no commands: it was started with --read-only")


class CommandConflictError(Exception):
    """The command makes no sense as things are; the message is a sentence."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What became of a command."""

    name: str
    state: State
    text: str

    def as_json(self) -> dict[str, Any]:
        """The answer of the local API."""
        return {"name": self.name, "ok": True, "state": self.state.value, "text": self.text}


class ControlService:
    """One per daemon."""

    def __init__(self, supervisor: Supervisor, *, read_only: bool = False) -> None:
        self.supervisor = supervisor
        self.bus = supervisor.bus
        self.read_only = read_only
        self.mqtt: Callable[[], dict[str, Any]] = lambda: {"state": "off"}
        """how it stands with the broker"""
        self._facts = {
            "version": program_version(),
            "host": socket.gethostname(),
            "read_only": read_only,
            "started_at": format_timestamp(time.time()),
        }

    def head(self) -> dict[str, Any]:
        """The status without its tunnels."""
        return {**self.supervisor.head(), **self._facts, "mqtt": self.mqtt()}

    async def status(self) -> dict[str, Any]:
        """The object of ``ps --json``."""
        return {**self.head(), "tunnels": [snapshot.as_json() for snapshot in await self.supervisor.look()]}

    def tunnel(self, name: str) -> dict[str, Any]:
        """One tunnel with its URL, settings and place in the file. Raises UnknownTunnelError."""
        return self.supervisor.inspect(name)

    async def plan(self) -> dict[str, Any]:
        """What a reload would change."""
        return await self.supervisor.plan()

    async def reload(self) -> dict[str, Any]:
        """Read the file again; the result per entry. Raises ReadOnlyError, NotNowError."""
        self._check()
        return await self.supervisor.reload()

    async def command(self, verb: str, name: str, timeout: float | None = None) -> CommandResult:  # noqa: ASYNC109  of the drain
        """Tell a tunnel one of the VERBS; ``timeout`` is the limit of the drain that it implies, in seconds.

        Returns when it is told, not when it is done. Raises UnknownTunnelError, ReadOnlyError, NotNowError.
        """
        self._check()
        before = self.supervisor.snapshot(name)
        text = _consequence(verb, before)
        if verb in {"start", "retry"}:
            getattr(self.supervisor, verb)(name)
        else:
            getattr(self.supervisor, verb)(name, timeout)
        self.bus.emit(LogLevel.INFO, "command", f"{verb}: {text}", tunnel=name, command=verb)
        await asyncio.sleep(0)  # an engine that was just asked for is made in the next turn
        return CommandResult(name, self.supervisor.snapshot(name).state, text)

    def shutdown(self, *, drain: bool = True) -> dict[str, Any]:
        """End the daemon, after a drain or at once. Raises ReadOnlyError."""
        if self.read_only:
            raise ReadOnlyError
        head = self.supervisor.head()
        active = sum(snapshot.connections.active for snapshot in self.supervisor.snapshots())
        (self.supervisor.shutdown if drain else self.supervisor.close)()
        return {"ok": True, "pid": head["pid"], "active": active}

    def _check(self) -> None:
        if self.read_only:
            raise ReadOnlyError
        if not self.supervisor.is_ready:
            raise CommandConflictError("the tunnels are being started, or drained for the daemon's end")


def _consequence(verb: str, before: Snapshot) -> str:
    """What a command means for a tunnel, in words. Raises NotNowError."""
    active = before.connections.active
    may_finish = f"; {_visitors(active)} may finish" if active else ""
    match verb:
        case "start":
            if before.state is State.DRAINING:
                return f"starts again after its drain{may_finish}"
            return "is started" if STATES[before.state].is_ended else f"runs already: {before.state}"
        case "stop" | "drain" if STATES[before.state].is_ended:
            return "rests already"
        case "stop":
            return f"is stopped{may_finish}"
        case "drain":
            return f"drains{may_finish}" if active else "is drained"
        case "restart":
            return "is started" if STATES[before.state].is_ended else f"is restarted{may_finish}"
        case _ if before.state is not State.COOLDOWN:
            raise CommandConflictError(f"{before.name[:200]!r} has no cooldown to end: it is {before.state}")
        case _:
            return "tries again now"


def _visitors(count: int) -> str:
    return "1 visitor" if count == 1 else f"{count} visitors"
