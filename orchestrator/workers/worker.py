"""A worker: a process of the supervisor's that runs some of its engines, so that more than one core is used.

Started by the supervisor alone, with the number of an inherited socket; it lives until that is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import signal
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from orchestrator.process.setup import prepare_serving_process, print_message
from orchestrator.supervisor.crash_reports import (
    describe_crash,
    install_exception_handlers,
    short_traceback,
    suppress_tracebacks,
)
from orchestrator.workers.messages import (
    Adopt,
    Beat,
    Channel,
    Close,
    Drain,
    Drop,
    Ended,
    Happened,
    Make,
    Order,
    Prepare,
    Prepared,
    Retry,
    Run,
    Views,
)
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.model.events import EventKind
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tunnel.engine.engine import Engine
    from tunnel.model.events import Event
    from tunnel.model.snapshot import Snapshot

LOOK: Final = 0.25
"""Seconds between two looks at what has changed."""

_QUIET: Final = 8  # looks, of which an engine that did not change gets one: hundreds at rest shall cost nearly nothing
_BEAT: Final = 4  # looks between two beats
_PDEATHSIG: Final = 1  # of prctl
_IGNORED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
)  # meant for the supervisor, which passes on what it means


class _Charge:
    """An engine, and what the supervisor knows of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.task: asyncio.Task[None] | None = None
        self.is_lively = True
        self._shown: Snapshot | None = None

    def look(self) -> Snapshot | None:
        """The engine's snapshot, unless it was shown before."""
        try:
            seen = self.engine.snapshot()
        except Exception:  # noqa: BLE001  one that cannot be looked at must not hide the others; it will break by itself
            return None
        still = replace(seen, cooldown=replace(seen.cooldown, remaining_s=0.0)) if seen.cooldown.remaining_s else seen
        self.is_lively = still != self._shown
        self._shown = still
        return seen if self.is_lively else None


class Worker:
    """Does what the supervisor says, and tells it what happens."""

    def __init__(self, shared: EngineContext) -> None:
        self._shared = shared
        self._stirred: set[str] = set()
        shared.subscribe_activity(self._stirred.add)
        self._charges: dict[int, _Charge] = {}
        self._over = asyncio.Event()
        self._errands: set[asyncio.Task[None]] = set()
        self.channel = Channel(self._take, lambda _: self._over.set())

    async def run(self) -> None:
        """Until the supervisor has closed its end, or is gone."""
        looking = asyncio.create_task(self._look())
        await self._over.wait()
        tasks = [looking, *self._errands, *(c.task for c in self._charges.values() if c.task)]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def _take(self, order: Order) -> None:
        if isinstance(order, Make):
            self._make(order)
        elif (charge := self._charges.get(order.engine)) is not None:  # it may have ended while the order was under way
            try:
                self._obey(charge, order)
            except Exception as error:  # noqa: BLE001  an engine that breaks at an order is broken, its neighbours are not
                self._give_up(order.engine, error)

    def _make(self, order: Make) -> None:
        number = order.engine

        def sink(event: Event) -> None:
            self._tell(number, event)

        try:
            engine = create_engine(order.name, order.spec, self._shared, sink)
        except Exception as error:  # noqa: BLE001  as above
            self.channel.send(Ended(number, None, describe_crash(error), tuple(short_traceback(error))))
            return
        self._charges[number] = _Charge(engine)

    def _obey(self, charge: _Charge, order: Order) -> None:
        engine = charge.engine
        match order:
            case Prepare():
                self._send_out(self._prepare(order.engine, charge, order.predecessor))
            case Run():
                charge.task = asyncio.create_task(self._run(order.engine, charge), name=f"tunnel {engine.name}")
            case Drain():
                engine.drain(order.timeout)
            case Close():
                engine.close()
            case Retry():
                engine.retry()
            case Adopt():
                engine.apply_live_settings(order.spec)
            case Drop():
                self._drop(order.engine)

    def _send_out(self, errand: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _prepare(self, number: int, charge: _Charge, predecessor: int) -> None:
        before = self._charges.get(predecessor)
        try:
            if before is not None:
                await charge.engine.prepare(before.engine)
        except NetError as error:
            del self._charges[number]
            self.channel.send(Prepared(number, str(error), error.errno))
        except Exception as error:  # noqa: BLE001  as above
            self._give_up(number, error)
        else:
            self.channel.send(Prepared(number))

    async def _run(self, number: int, charge: _Charge) -> None:
        defect: BaseException | None = None
        try:
            await charge.engine.run()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
            defect = error
        except Exception as error:  # noqa: BLE001  whatever an engine raises must stay with that engine
            defect = error
        if self._charges.pop(number, None) is not None:
            self._end(number, charge, defect)

    def _give_up(self, number: int, error: Exception) -> None:
        charge = self._charges.pop(number, None)
        if charge is not None:
            self._end(number, charge, error)
            if charge.task:
                charge.task.cancel()

    def _end(self, number: int, charge: _Charge, defect: BaseException | None) -> None:
        last: Snapshot | None = None
        with contextlib.suppress(Exception):  # where it broke, what it says about itself is a courtesy
            last = charge.engine.snapshot()
        if defect is None:
            self.channel.send(Ended(number, last))
        else:
            self.channel.send(Ended(number, last, describe_crash(defect), tuple(short_traceback(defect))))

    def _drop(self, number: int) -> None:
        charge = self._charges.pop(number)
        charge.engine.close()
        if charge.task:
            charge.task.cancel()
        else:
            self._send_out(charge.engine.run())  # which closes what was prepared, for it has been told to end

    def _tell(self, number: int, event: Event) -> None:
        if self.channel.is_clogged:  # a supervisor that stands still costs events, never visitors
            return
        charge = self._charges.get(number)
        if event.kind is EventKind.STATE and charge is not None and (seen := charge.look()) is not None:
            self.channel.send(Views(((number, seen),)))  # first, so that who hears of a state also sees it
        self.channel.send(Happened(number, event))

    async def _look(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(LOOK)
            if self.channel.is_clogged:
                continue
            views = []
            for number, charge in self._charges.items():
                is_due = charge.is_lively or charge.engine.name in self._stirred or (turn + number) % _QUIET == 0
                if is_due and (seen := charge.look()) is not None:
                    views.append((number, seen))
            self._stirred.clear()
            if views:
                self.channel.send(Views(tuple(views)))
            if turn % _BEAT == 0:
                self.channel.send(Beat())


async def _serve(border: socket.socket) -> None:
    shared = EngineContext()
    worker = Worker(shared)
    install_exception_handlers(lambda _, text: print_message(text))
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: worker.channel, sock=border)
        worker.channel.send(Beat())
        await worker.run()
    finally:
        shared.close()


def _die_with_the_supervisor() -> None:
    """Even one that stands still shall not outlive a supervisor that was killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Serve the supervisor at the other end of the socket whose number is the only argument; the exit code."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        border = socket.socket(fileno=int(sys.argv[1]))
    except (IndexError, ValueError, OSError):
        print_message("workers are started by the supervisor; write workers: N into the file's supervisor: section")
        return 2
    _die_with_the_supervisor()
    prepare_serving_process()
    suppress_tracebacks()
    asyncio.run(_serve(border))
    return 0


if __name__ == "__main__":
    sys.exit(main())
