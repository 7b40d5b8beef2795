"""Commands that come over the broker: carried out at the same desk as all others, and answered."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from orchestrator.mqtt import payloads
from orchestrator.mqtt.orders import ALL, UNNAMED, Gate, Order, OrderRefusedError
from orchestrator.mqtt.outbox import Message
from orchestrator.supervisor.control import CommandConflictError, ReadOnlyError
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.supervisor import UnknownTunnelError
from tunnel.model.events import EventLog

if TYPE_CHECKING:
    from orchestrator.mqtt.broker import Session
    from orchestrator.mqtt.topics import HostTopics
    from orchestrator.supervisor.control import ControlService

_WAITING: Final = 256  # commands and answers under way
_OFF: Final = "commands over MQTT are off on this host; supervisor.mqtt.commands: true lets them in"
_KIND: Final = "mqtt"


class Steering:
    """One per daemon. Refusals are answered like everything else; where nobody can be named, to whoever listens."""

    def __init__(self, control: ControlService, topics: HostTopics, boot: str, *, is_on: bool) -> None:
        self._control = control
        self._topics = topics
        self._gate = Gate(boot)
        self._is_on = is_on
        self._waiting: asyncio.Queue[Order | OrderRefusedError] = asyncio.Queue(_WAITING)
        self._event_log = EventLog("", control.bus.publish)

    def why_closed(self) -> str | None:
        """Why no commands are taken; None where they are."""
        if self._control.read_only:
            return str(ReadOnlyError())
        return None if self._is_on else _OFF

    def take(self, payload: object, *, is_retained: bool) -> None:
        """A message from the command topic."""
        found: Order | OrderRefusedError
        try:
            found = self._gate.admit(payload, is_retained=is_retained, now=time.time(), closed=self.why_closed())
        except OrderRefusedError as refused:
            self._event_log.warn_throttled(_KIND, "refused", f"a command over MQTT was refused: {refused}")
            found = refused
        try:
            self._waiting.put_nowait(found)
        except asyncio.QueueFull:
            self._event_log.warn_throttled(
                _KIND, "flood", "commands over MQTT come faster than they can be carried out"
            )

    async def obey(self, session: Session) -> None:
        """Carry out and answer, one after the other."""
        while True:
            found = await self._waiting.get()
            if isinstance(found, Order):
                reply, answer = found.reply, await self._carried_out(found)
            else:
                reply, answer = found.reply or UNNAMED, payloads.answer(found.id, error=str(found))
            await session.publish(Message(self._topics.answer(reply), payloads.encode(answer)))

    async def _carried_out(self, order: Order) -> dict[str, Any]:
        try:
            if order.op == "reload":
                return _reloaded(order, await self._control.reload())
            if order.target == ALL:
                return await self._all(order)
            outcome = await self._control.command(order.op, order.target or "", order.timeout)
        except (UnknownTunnelError, ReadOnlyError, CommandConflictError) as refused:
            return payloads.answer(order.id, error=str(refused))
        except Exception as error:  # noqa: BLE001  a defect: whoever asked shall not wait in vain
            return payloads.answer(order.id, error=describe_crash(error))
        return payloads.answer(order.id, outcome.as_json())

    async def _all(self, order: Order) -> dict[str, Any]:
        results: dict[str, Any] = {}
        for seen in self._control.supervisor.snapshots():
            try:
                results[seen.name] = (await self._control.command(order.op, seen.name, order.timeout)).as_json()
            except (CommandConflictError, UnknownTunnelError) as refused:
                results[seen.name] = {"name": seen.name, "ok": False, "state": seen.state.value, "text": str(refused)}
        failed = [name for name, result in results.items() if not result["ok"]]
        error = f"not done for {len(failed)} of {len(results)} tunnels" if failed else None
        return payloads.answer(order.id, {"tunnels": results}, error)


def _reloaded(order: Order, result: dict[str, Any]) -> dict[str, Any]:
    fault = result["error"]
    if fault:
        return payloads.answer(
            order.id, result, f"{fault['file']}:{fault['line']}:{fault['column']}: {fault['message']}"
        )
    return payloads.answer(order.id, result, None if result["ok"] else "not every entry could be put in force")
