"""Commands over the broker: which are accepted and which refused, and their execution by the control service."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from orchestrator.errors import OrchestratorError
from orchestrator.mqtt.broker import describe_code
from orchestrator.mqtt.payloads import VERSION, JsonObject, ResponsePayload, parse_json, parse_timestamp
from orchestrator.mqtt.topics import RESPONSE
from orchestrator.supervisor.control import CommandConflictError, ReadOnlyError
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.registry import UnknownTunnelError
from orchestrator.tunnel_commands import TUNNEL_COMMANDS
from tunnel.model.errors import did_you_mean
from tunnel.model.events import EventKind, EventLog
from tunnel.model.times import format_timestamp
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from orchestrator.mqtt.session import BrokerSession
    from orchestrator.mqtt.topics import HostTopics
    from orchestrator.supervisor.control import CommandResult, ControlService
    from orchestrator.supervisor.reload import ReloadResult
    from orchestrator.tunnel_commands import TunnelCommand

RELOAD_OP: Final = "reload"
"""The only command that is for the host and not for tunnels."""

OPS: Final = (*TUNNEL_COMMANDS, RELOAD_OP)
"""The commands. Each names the wanted state; none toggles."""

PING_OP: Final = "ping"
"""Requests the host's time, as a test of presence. A host that accepts no commands answers it too."""

ALL_TUNNELS: Final = "*"
"""The target that means every tunnel of the host."""

MALFORMED_REPLY: Final = "malformed"
"""Last level of the response topic where a command does not name a usable one."""

MAX_REMEMBERED_IDS: Final = 4096
"""Ids of commands that are recognised when they come again."""

EVENT_KIND: Final = EventKind.MQTT
"""The kind of events about the broker; they are not published to the broker."""

_ID: Final = re.compile(r"[A-Za-z0-9._~-]{1,64}")  # it becomes a level of a topic: neither + nor # nor /
_ID_FORM: Final = "1 to 64 letters, digits and . _ ~ -"
_MAX_DRAIN_S: Final = 366 * 24 * 3600.0
_MAX_OP_CHARS_SHOWN: Final = 60
_MAX_QUEUED: Final = 256  # commands that wait for execution, and responses
_OFF: Final = "commands over MQTT are off on this host; supervisor.mqtt.commands: true accepts them"


@dataclass(frozen=True, slots=True)
class Command:
    """A command that is accepted."""

    id: str
    reply: str
    """last level of the response topic"""
    op: str
    target: str | None
    """a tunnel's name, or ALL_TUNNELS; None for RELOAD_OP"""
    timeout: float | None = None
    """limit of the drain that the command implies, in seconds"""
    valid_for_s: float = math.inf
    """seconds from its receipt until it expires"""
    link: str | None = None
    """only this link of the tunnel is meant"""
    target_address: str | None = None
    """only this target of the tunnel is meant"""


class CommandRefusedError(OrchestratorError):
    """A command is not executed; the message is a sentence. Without ``reply`` the sender is unknown."""

    def __init__(self, reason: str, id_: str | None = None, reply: str | None = None) -> None:
        super().__init__(reason)
        self.id = id_
        self.reply = reply


# --- validation -------------------------------------------------------------------------------------------------------


class CommandValidator:
    """Parses commands and refuses those that are malformed, stale or repeated. Pure but for its memory of ids."""

    def __init__(self, boot: str, max_remembered_ids: int = MAX_REMEMBERED_IDS) -> None:
        self._boot = boot
        self._max_remembered_ids = max_remembered_ids
        self._seen: OrderedDict[str, None] = OrderedDict()

    def parse(self, data: object, *, is_retained: bool, now: float, disabled_reason: str | None = None) -> Command:
        """The command in a payload, received at ``now`` (seconds since the epoch). Raises CommandRefusedError.

        ``disabled_reason`` is why no commands are accepted at all.
        """
        payload = parse_json(data)
        if payload is None:
            raise CommandRefusedError("the command is not a JSON object")
        id_, reply = _parse_ids(payload)
        reason = (
            (disabled_reason if payload.get("op") != PING_OP else None)
            or self._check_freshness(payload, id_, is_retained=is_retained, now=now)
            or _check_fields(payload)
        )
        if reason is not None:
            raise CommandRefusedError(reason, id_, reply)
        self._remember(id_)
        expires_at = parse_timestamp(payload.get("exp"))
        valid_for_s = math.inf if expires_at is None else expires_at - now
        return Command(  # of these types, as was checked
            id_,
            reply,
            str(payload["op"]),
            cast("str | None", payload.get("target")),
            cast("float | None", payload.get("timeout")),
            valid_for_s,
            cast("str | None", payload.get("link")),
            cast("str | None", payload.get("target_address")),
        )

    def _check_freshness(self, payload: JsonObject, id_: str, *, is_retained: bool, now: float) -> str | None:
        """Why the command may be old or repeated; None where it is fresh."""
        if is_retained:
            return "the command was retained by the broker, so its age is unknown; publish it without retain"
        if id_ in self._seen:
            return "a command with this id came before: each command needs an id of its own"
        boot = payload.get("boot")
        if boot is not None and boot != self._boot:
            return "the command is for another run of the daemon: its boot differs from the one in status"
        exp = payload.get("exp")
        if exp is None:
            return None
        expires_at = parse_timestamp(exp)
        if expires_at is None:
            return "exp is neither a time as in RFC 3339 nor a number of seconds since 1970"
        if expires_at <= now:
            age = f"the command expired {now - expires_at:.1f} s ago by this host's clock"
            return f"{age}; if it was just sent, one of the two clocks is wrong"
        return None

    def _remember(self, id_: str) -> None:
        self._seen[id_] = None
        if len(self._seen) > self._max_remembered_ids:
            self._seen.popitem(last=False)


def _parse_ids(payload: JsonObject) -> tuple[str, str]:
    """The command's id, and the last level of the topic for its response. Raises CommandRefusedError."""
    id_ = payload.get("id")
    reply = payload.get("reply", id_)
    if not (isinstance(reply, str) and _ID.fullmatch(reply)):
        raise CommandRefusedError(f"the command's {'reply' if 'reply' in payload else 'id'} is not {_ID_FORM}")
    if not (isinstance(id_, str) and _ID.fullmatch(id_)):
        raise CommandRefusedError(f"the command's id is not {_ID_FORM}", None, reply)
    return id_, reply


def _check_fields(payload: JsonObject) -> str | None:
    """What is wrong with the fields of the command; None where they are valid."""
    if payload.get("v") != VERSION:
        return f"the command is not of version {VERSION}: it needs v: {VERSION}"
    op, target, timeout = payload.get("op"), payload.get("target"), payload.get("timeout")
    if op == PING_OP:
        return None
    if op not in OPS:
        hint = did_you_mean(op, OPS) if isinstance(op, str) else ""
        return f"unknown op {str(op)[:_MAX_OP_CHARS_SHOWN]!r}{hint or '; known: ' + ', '.join(OPS)}"
    if op == RELOAD_OP:
        return None if target is None else "reload is for the whole host and takes no target"
    if not (isinstance(target, str) and target):
        return f"{op} needs a target: the name of a tunnel, or {ALL_TUNNELS} for all of them"
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (is_number and 0 <= timeout <= _MAX_DRAIN_S):  # type: ignore[operator]  # a number
        return f"timeout is not a number of seconds from 0 to {_MAX_DRAIN_S:g}"
    return _check_member(payload, TUNNEL_COMMANDS[str(op)])


def _check_member(payload: JsonObject, command: TunnelCommand) -> str | None:
    """What is wrong with the link or the target address that a command names; None where nothing is."""
    named = {key: payload[key] for key in ("link", "target_address") if payload.get(key) is not None}
    for key, value in named.items():
        if not (command.takes_link if key == "link" else command.takes_target):
            return f"{command.name} takes no {key}: it concerns the whole tunnel"
        if not isinstance(value, str):
            return f"{key} is not a text"
    if len(named) > 1:
        return "the command names a link and a target_address; a command concerns one of them"
    if named and (payload.get("target") == ALL_TUNNELS or payload.get("timeout") is not None):
        return f"{next(iter(named))} goes with the name of a tunnel, and not with {ALL_TUNNELS} or timeout"
    return None


# --- execution --------------------------------------------------------------------------------------------------------


class CommandHandler:
    """Executes the commands of one daemon, one after the other. Refusals are answered like everything else.

    A refusal that names no usable reply topic goes to MALFORMED_REPLY.
    """

    def __init__(self, control: ControlService, topics: HostTopics, boot: str, *, is_enabled: bool) -> None:
        self._control = control
        self._topics = topics
        self._validator = CommandValidator(boot)
        self._is_enabled = is_enabled
        self._queue: asyncio.Queue[tuple[Command | CommandRefusedError, float]] = asyncio.Queue(_MAX_QUEUED)
        """with the time of the monotonic clock at which the command expires"""
        self._event_log = EventLog("", control.bus.publish, call_later=asyncio.get_running_loop().call_later)

    def disabled_reason(self) -> str | None:
        """Why no commands are accepted; None where they are."""
        if self._control.read_only:
            return str(ReadOnlyError())
        return None if self._is_enabled else _OFF

    def receive(self, payload: object, *, is_retained: bool) -> None:
        """Validate a message from the command topic, and queue it."""
        entry: Command | CommandRefusedError
        try:
            entry = self._validator.parse(
                payload, is_retained=is_retained, now=time.time(), disabled_reason=self.disabled_reason()
            )
        except CommandRefusedError as refused:
            self._event_log.warn_throttled(EVENT_KIND, "refused", f"a command over MQTT was refused: {refused}")
            entry = refused
        try:
            valid_for_s = entry.valid_for_s if isinstance(entry, Command) else math.inf
            self._queue.put_nowait((entry, time.monotonic() + valid_for_s))
        except asyncio.QueueFull:
            self._event_log.warn_throttled(
                EVENT_KIND, "flood", "commands over MQTT arrive faster than they can be executed"
            )

    async def run(
        self, session: BrokerSession, publish_effects: Callable[[Collection[str]], Awaitable[None]] | None = None
    ) -> None:
        """Execute queued commands and publish their responses, until cancelled.

        ``publish_effects`` publishes what was changed of some tunnels; the response follows.
        """
        while True:
            entry, expires_at = await self._queue.get()
            if isinstance(entry, CommandRefusedError):
                reply, response = entry.reply or MALFORMED_REPLY, ResponsePayload.failed(entry.id, str(entry))
            elif (late_s := time.monotonic() - expires_at) >= 0:
                reply, response = entry.reply, self._refuse_late(entry, late_s)
            else:
                reply, response = entry.reply, await self._execute(entry)
                if publish_effects is not None and (changed := _changed_tunnels(entry, response)):
                    await publish_effects(changed)
            refused = await session.publish(self._topics.message(RESPONSE, response.bounded(), reply))
            if refused is not None:
                text = f"the broker does not accept the answer on {refused.topic}: {describe_code(refused.code)}"
                self._event_log.warn_throttled(EVENT_KIND, "unanswered", text)

    def _refuse_late(self, command: Command, late_s: float) -> ResponsePayload:
        """The response to a command that waited too long: for others before it, or for the broker to come back."""
        text = f"the command expired {late_s:.1f} s ago, while it waited on this host; nothing was done"
        self._event_log.warn_throttled(EVENT_KIND, "refused", f"a command over MQTT was refused: {text}")
        return ResponsePayload.failed(command.id, text)

    async def _execute(self, command: Command) -> ResponsePayload:
        try:
            if command.op == PING_OP:
                return ResponsePayload(command.id, {"ts": format_timestamp(time.time())})
            if command.op == RELOAD_OP:
                return _reload_response(command, await self._control.reload())
            if command.target == ALL_TUNNELS:
                return await self._execute_for_all(command)
            outcome = await self._execute_for_one(command, command.target or "")
        except (UnknownTunnelError, ReadOnlyError, CommandConflictError) as refused:
            return ResponsePayload.failed(command.id, str(refused))
        except Exception as error:  # noqa: BLE001  a defect: the sender gets an answer all the same
            return ResponsePayload.failed(command.id, describe_crash(error))
        return ResponsePayload(command.id, {**outcome.as_json()})

    async def _execute_for_one(self, command: Command, name: str) -> CommandResult:
        if command.link is not None:
            return self._control.command_link(command.op, name, command.link)
        if command.target_address is not None:
            return self._control.command_target(command.op, name, command.target_address)
        return await self._control.command(command.op, name, command.timeout)

    async def _execute_for_all(self, command: Command) -> ResponsePayload:
        results: dict[str, object] = {}
        failed_count = 0
        for snapshot in self._control.supervisor.snapshots():
            name = snapshot.name
            try:
                results[name] = (await self._control.command(command.op, name, command.timeout)).as_json()
            except (CommandConflictError, UnknownTunnelError) as refused:
                failed_count += 1
                results[name] = {"name": name, "ok": False, "state": snapshot.state.value, "text": str(refused)}
        result = {"tunnels": results}
        if failed_count:
            return ResponsePayload.failed(
                command.id, f"{command.op} was refused for {failed_count} of {plural(len(results), 'tunnel')}", result
            )
        return ResponsePayload(command.id, result)


def _changed_tunnels(command: Command, response: ResponsePayload) -> list[str]:
    """The tunnels that a command may have changed."""
    if command.op == RELOAD_OP:
        entries = cast("Mapping[str, Mapping[str, object]]", (response.result or {}).get("results", {}))
        return [name for name, entry in entries.items() if entry.get("action") != "unchanged"]
    if command.target == ALL_TUNNELS:
        return list(cast("Mapping[str, object]", (response.result or {}).get("tunnels", {})))
    return [command.target] if response.ok and command.target else []


def _reload_response(command: Command, result: ReloadResult) -> ResponsePayload:
    if result.fault is not None:
        return ResponsePayload.failed(command.id, str(result.fault), result.as_json())
    if not result.is_ok:
        return ResponsePayload.failed(command.id, "not every entry could be applied", result.as_json())
    return ResponsePayload(command.id, result.as_json())
