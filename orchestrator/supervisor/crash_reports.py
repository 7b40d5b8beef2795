"""What became of an engine that broke: in words, and how long until the next one."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from orchestrator.process.setup import print_message
from tunnel.runtime import sockets
from tunnel.runtime.backoff import FIRST_DELAY_S, MIN_DELAY_S

LONGEST_PAUSE: Final = 30.0
"""Seconds, at the most, before a broken engine is followed by the next."""


class RemoteEngineError(Exception):
    """An engine broke in another process: the message is what is known about it, ``frames`` where it came from."""

    def __init__(self, text: str, frames: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.frames = frames


def describe_crash(error: BaseException) -> str:
    """A defect of ours in one sentence that helps whoever mends it."""
    if isinstance(error, RemoteEngineError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name} ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"internal fault: {type(error).__name__}: {error}{where}"


def install_exception_handlers(tell: Callable[[str, str], None]) -> None:
    """What the running loop would show a traceback for becomes a sentence; ``tell`` gets its topic and the whole."""

    def handle(_loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error, topic = context.get("exception"), str(context["message"])
        why = sockets.describe_error(error) if isinstance(error, OSError) else describe_crash(error) if error else ""
        tell(topic, f"{topic}: {why}" if why else topic)

    asyncio.get_running_loop().set_exception_handler(handle)


def suppress_tracebacks() -> None:
    """The same for what no loop sees, until the very end of the process: threads, what is cleared away, libraries."""
    sys.unraisablehook = threading.excepthook = _say_defect
    logging.lastResort = _InSentences(logging.WARNING)


def _say_defect(hook: sys.UnraisableHookArgs | threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None:
        print_message(describe_crash(hook.exc_value))


class _InSentences(logging.Handler):
    """For records that nobody else handles."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        print_message(f"{record.getMessage()}: {describe_crash(error)}" if error else record.getMessage())


def restart_delay(breaks: int, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait after an engine broke ``breaks`` times in a row: exponential, with full jitter.

    Steeper than after a lost link: an outage heals by itself, a defect hardly ever.
    """
    return max(MIN_DELAY_S, uniform(0.0, min(LONGEST_PAUSE, FIRST_DELAY_S * 2.0 ** min(breaks - 1, 16))))


def short_traceback(error: BaseException) -> list[str]:
    """Where a defect came from, the innermost place last."""
    if isinstance(error, RemoteEngineError):
        return list(error.frames)
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
