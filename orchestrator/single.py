"""Runs one tunnel from one URL, as nodepass does: without a file and an API socket, until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Final

from orchestrator.process.arguments import hide_keys_in_arguments, mask_url
from orchestrator.process.logformat import LogWriter
from orchestrator.process.messages import print_message
from orchestrator.process.setup import handle_stop_signals, prepare_serving_process, run_event_loop
from orchestrator.supervisor.crash_reports import install_exception_handlers, suppress_tracebacks
from orchestrator.supervisor.runner import TunnelRunner
from tunnel.engine.context import EngineContext
from tunnel.engine.factory import create_engine
from tunnel.model.errors import OptionError, UrlError
from tunnel.model.events import Event, EventKind, EventLog
from tunnel.model.keys import WEAK_KEY_WARNING
from tunnel.model.options import make_spec
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.url import parse_url
from tunnel.runtime.blocking_calls import ThreadShortageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunnel.model.events import EventSink
    from tunnel.model.spec import TunnelSpec

CLOSE_TIMEOUT_S: Final = 2.0
"""How long an engine has to end once everything of it is closed."""


def main(arguments: Sequence[str]) -> int:
    """Run the tunnel of ``arguments[0]``; the exit code."""
    is_hidden = hide_keys_in_arguments(arguments)
    text = arguments[0]
    if len(arguments) > 1:
        print_message(
            "one URL is one tunnel and takes no further arguments; quote it, or run a file of tunnels with: up FILE"
        )
        return 2
    try:
        spec = make_spec(parse_url(text), environ=os.environ)
    except UrlError as error:
        print_message(f"{error}\n{mark_offset(text, error.offset)}")
        return 2
    except OptionError as error:
        print_message(f"{error.name} in {error.source}: {error}")
        return 2
    if spec.quota is not None:
        print_message("a single URL has no history to count a quota in; write the tunnel to a file, and run: up FILE")
        return 2
    prepare_serving_process()
    suppress_tracebacks()
    try:
        log = LogWriter()
    except ThreadShortageError as error:
        print_message(str(error))
        return 1
    try:
        return run_event_loop(
            _run(spec, log, [] if is_hidden else ["the key shows in the process list; use key_file="])
        )
    finally:
        log.close()


def mark_offset(text: str, offset: int) -> str:
    """The URL with the key masked, and on the next line a mark under the character at ``offset``."""
    masked = mask_url(text)
    shift = len(masked) - len(text)
    at = offset if offset <= text.find("://") + 3 else max(offset + shift, 0)
    if len(masked) > 160 or not masked.isprintable():
        return f"  in {masked[:160]!r}"
    return f"  {masked}\n  {' ' * at}^"


async def _run(spec: TunnelSpec, log: EventSink, warnings: list[str]) -> int:
    context = EngineContext()
    name = spec.role.value
    sink = _filter_by_level(spec.log, log)
    event_log = EventLog(name, sink)
    install_exception_handlers(lambda topic, text: event_log.warn_throttled(EventKind.DEFECT, topic, text))
    if spec.is_exposed:
        warnings.append(
            "the tunnel is open: anyone who finds its port may use it; write a key before the address, KEY@"
        )
    if spec.key is not None and spec.key.is_weak:
        warnings.append(WEAK_KEY_WARNING)
    for text in warnings:
        sink(Event(ts=time.time(), tunnel=name, level=LogLevel.WARN, kind=EventKind.START, text=text))
    runner = TunnelRunner(
        name, spec, engine_factory=lambda name, spec, sink: create_engine(name, spec, context, sink), sink=sink
    )

    def close() -> None:
        runner.close()
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, runner.cancel)

    with handle_stop_signals(lambda: runner.drain(reason="shutting down"), close):
        runner.start()
        await runner.wait()
    context.close()
    return 1 if runner.snapshot().state is State.FAILED else 0


def _filter_by_level(level: LogLevel, log: EventSink) -> Callable[[Event], None]:
    def write(event: Event) -> None:
        if event.level >= level:
            log(event)

    return write
