"""Slots for handshakes: how many clients of one process connect to the same server host at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from tunnel.model.address import Address

MAX_HANDSHAKES_AT_ONCE: Final = 128
"""A process has places for 256 connections from one address that have not authenticated, on all its ports together
(``FrontDoorLimits.per_prefix``), and closes the oldest: more clients at once would replace each other, and none would
get a link."""
SILENT_AFTER_S: Final = 1.0


class HandshakeSlots:
    """The slots of all hosts. Those of a host are shared by its clients in this process, whatever the port."""

    def __init__(self, count: int = MAX_HANDSHAKES_AT_ONCE, silent_after_s: float = SILENT_AFTER_S) -> None:
        self._count = count
        self._silent_after_s = silent_after_s
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def slot(self, server: Address) -> HandshakeSlot:
        """A slot for one attempt; ``async with`` waits for it."""
        return HandshakeSlot(self._hosts.setdefault(server.host, asyncio.Semaphore(self._count)), self._silent_after_s)


class HandshakeSlot:
    """A slot of one attempt, which lets others have it while the host is silent.

    A host that does not answer has no place to lose yet. So ports that a firewall blocks delay no other port.
    """

    def __init__(self, free: asyncio.Semaphore, silent_after_s: float) -> None:
        self._free = free
        self._silent_after_s = silent_after_s
        self._is_held = False
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._acquire()
        self._timer = asyncio.get_running_loop().call_later(self._silent_after_s, self._give_back)
        return self

    async def note_connected(self) -> None:
        """The host has answered: hold the slot until the attempt ends, and wait for it if others have it by now."""
        self._stop_timer()
        if not self._is_held:
            await self._acquire()

    async def __aexit__(self, *_: object) -> None:
        self._stop_timer()
        self._give_back()

    async def _acquire(self) -> None:
        await self._free.acquire()
        self._is_held = True

    def _give_back(self) -> None:
        if self._is_held:
            self._is_held = False
            self._free.release()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
