"""Blocking calls on a bounded number of daemon threads that are never joined.

A name lookup or a read from a dead network file system cannot be cancelled. ``asyncio``'s default executor is shared by
everything and joined at exit (``asyncio.run``), so one dead name server would delay unrelated work and the end of the
process. The threads here belong to one purpose, are few, and the interpreter does not wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from tunnel.model.errors import TunnelError

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_LIFETIME_S: Final = 30.0
"""Seconds that a thread without work is kept for the next call."""

_Result = TypeVar("_Result")
_Params = ParamSpec("_Params")


class ThreadShortageError(TunnelError, OSError):
    """The system grants no further thread (pids limit of a container, RLIMIT_NPROC)."""

    def __init__(self, purpose: str) -> None:
        super().__init__(errno.EAGAIN, f"this process may start no further thread for {purpose}; raise its pids limit")

    def __str__(self) -> str:
        return str(self.strerror)


class BlockingCalls:
    """Runs blocking functions for one purpose on at most ``max_threads`` daemon threads.

    Further calls wait in order for a free thread. Safe to use from any thread and from several event loops.
    """

    def __init__(self, purpose: str, max_threads: int, idle_lifetime_s: float = IDLE_LIFETIME_S) -> None:
        """``purpose`` completes the sentence "no further thread for ..." and names the threads."""
        self._purpose = purpose
        self._max_threads = max_threads
        self._idle_lifetime_s = idle_lifetime_s
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._unfinished = 0

    async def run(self, function: Callable[[], _Result]) -> _Result:
        """The function's result. Raises what it raises, and ThreadShortageError where no thread can be had.

        Safe to cancel: the thread finishes its call, whose result is dropped. Use ``asyncio.timeout`` for a limit.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[_Result] = loop.create_future()

        def call() -> None:
            if result.cancelled():
                return
            deliver: Callable[[], None]
            try:
                deliver = partial(_set_result, result, function())
            except BaseException as error:  # noqa: BLE001  every outcome belongs to the caller, on another thread
                deliver = partial(_set_exception, result, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
                loop.call_soon_threadsafe(deliver)

        self.enqueue(call)
        return await result

    def enqueue(self, call: Callable[[], None]) -> None:
        """Call a function that raises nothing on one of the threads. Raises ThreadShortageError where there is none."""
        with self._lock:
            self._unfinished += 1
            needs_thread = self._threads < min(self._unfinished, self._max_threads)
            if needs_thread:
                self._threads += 1
        if needs_thread and not self._has_started_thread():
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._unfinished -= 1
                    raise ThreadShortageError(self._purpose)
        self._queue.put(call)

    def _has_started_thread(self) -> bool:
        thread = threading.Thread(target=self._work, name=self._purpose, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # "can't start new thread": Python has no narrower class for it
            return False
        return True

    def _work(self) -> None:
        while True:
            try:
                call = self._queue.get(timeout=self._idle_lifetime_s)
            except queue.Empty:
                with self._lock:
                    if self._unfinished >= self._threads:
                        continue  # a call was counted on this thread at this very moment
                    self._threads -= 1
                return
            call()
            del call  # its result may be large, and this thread may wait for a long time
            with self._lock:
                self._unfinished -= 1


class UnjoinedExecutor(ThreadPoolExecutor):
    """A default executor for a loop that does not hold up the end of the process, whatever a library blocks on."""

    def __init__(self, max_threads: int) -> None:
        super().__init__(max_threads)  # starts no thread: all work goes to the calls below
        self._calls = BlockingCalls("blocking calls", max_threads)

    def submit(
        self, fn: Callable[_Params, _Result], /, *args: _Params.args, **kwargs: _Params.kwargs
    ) -> Future[_Result]:
        """Run a function on one of the threads, as ``Executor.submit``. Raises ThreadShortageError."""
        future: Future[_Result] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  every outcome belongs to whoever awaits the future
                future.set_exception(error)
            else:
                future.set_result(value)

        self._calls.enqueue(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  Executor's own signature
        """Wait for nothing: the threads are daemons."""
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def _set_result(result: asyncio.Future[Any], value: object) -> None:
    if not result.done():
        result.set_result(value)


def _set_exception(result: asyncio.Future[Any], error: BaseException) -> None:
    if not result.done():
        result.set_exception(error)
