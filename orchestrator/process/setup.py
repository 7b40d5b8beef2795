"""What a process that runs an event loop sets up at its start: signal handlers, limits and the loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import resource
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from orchestrator.process.messages import print_message
from tunnel.runtime.blocking_calls import UnjoinedExecutor
from tunnel.runtime.event_loop import SharedEpollLoop
from tunnel.runtime.fd_budget import file_descriptor_limit

_GC_THRESHOLD = 20_000  # new objects before the garbage collector runs
_MAX_BLOCKING_CALLS: Final = 16  # at once, in threads
_Result = TypeVar("_Result")
_STOPPING = (signal.SIGTERM, signal.SIGINT)


def prepare_serving_process() -> None:
    """Set up a process that runs tunnels.

    The limit of descriptors is raised, because a visitor needs two at each end. The garbage collector runs seldom:
    relays leave no reference cycles, and a search after every few visitors costs a twentieth of their rate.
    """
    gc.enable()  # a caller that imports much disables it
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 20)
    raise_descriptor_limit()


def raise_descriptor_limit() -> None:
    """Raise the limit of file descriptors as far as the system permits; report where it permits nothing."""
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        text = f"cannot raise the limit of file descriptors ({error}); {file_descriptor_limit()} are used"
        print_message(text)


@contextlib.contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Pause the garbage collector for a block that makes many objects which stay.

    A search of them for reference cycles would take most of the time of the block. The collector leaves all present
    objects out afterwards, too: reference counts free these as always, but cycles of them stay until the next block,
    which starts with a search of everything. So blocks that are repeated, as after each loss of a connection, do not
    add up. The search takes some 0.2 s for a fleet of 50,000 tunnels.
    """
    was_enabled = gc.isenabled()
    if was_enabled and gc.get_freeze_count():
        gc.unfreeze()
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()


class _UnjoinedLoop(SharedEpollLoop):
    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  asyncio's name
        """Do nothing: asyncio would start a thread here to join others, and ours are never joined."""


def run_event_loop(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine as ``asyncio.run`` does, except that the end does not wait for blocking calls in threads.

    A library may wait there for a dead name server, and such a call cannot be cancelled.
    """
    with asyncio.Runner(loop_factory=_UnjoinedLoop) as runner:
        runner.get_loop().set_default_executor(UnjoinedExecutor(_MAX_BLOCKING_CALLS))
        return runner.run(main)


def handle_signal(number: signal.Signals, handler: Callable[[], object]) -> None:
    """Call ``handler`` on the running loop after each signal, in the present context (contextvars).

    ``loop.add_signal_handler`` alone loses a signal while the pipe that wakes the loop is full: each thread that ends a
    call writes one byte to it, and a busy loop may read it late. Here the pipe only wakes the loop, and does so as
    well if another thread than that of the loop receives the signal.
    """
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()  # not that of the code that is interrupted
    loop.add_signal_handler(number, _do_nothing)
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler, context=context))


def _do_nothing() -> None:
    """Do nothing: the signal has woken the loop."""


@contextlib.contextmanager
def handle_stop_signals(
    drain: Callable[[], None], close: Callable[[], None], reload: Callable[[], None] | None = None
) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains, each further one closes; SIGHUP reloads. Inside a running loop."""
    loop = asyncio.get_running_loop()
    is_draining = False

    def on_signal() -> None:
        nonlocal is_draining
        (close if is_draining else drain)()
        is_draining = True

    handlers = dict.fromkeys(_STOPPING, on_signal)
    if reload is not None:
        handlers[signal.SIGHUP] = reload
    for number, handler in handlers.items():
        handle_signal(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # everything is closed: a late Ctrl-C must not change the exit code
