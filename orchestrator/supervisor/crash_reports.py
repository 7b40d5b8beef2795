"""Describes internal errors in one sentence where Python would print a traceback, and delays restarts after them."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from orchestrator.errors import OrchestratorError
from orchestrator.process.messages import print_message
from tunnel.runtime import sockets
from tunnel.runtime.backoff import FIRST_DELAY_S, MIN_DELAY_S

MAX_RESTART_DELAY_S: Final = 30.0
"""The longest wait before an engine or a worker that crashed is started again."""

_MAX_FRAMES: Final = 5  # of a short traceback


class RemoteEngineError(OrchestratorError):
    """An engine crashed in a worker process: the message describes the crash, ``frames`` are its innermost frames."""

    def __init__(self, text: str, frames: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.frames = frames


class EngineSilentError(OrchestratorError):
    """A worker process does not answer a question about its engine; the message is a sentence."""


def describe_crash(error: BaseException) -> str:
    """An internal error in one sentence, with the place in the code."""
    if isinstance(error, RemoteEngineError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name} ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"internal fault: {type(error).__name__}: {error}{where}"


def short_traceback(error: BaseException) -> list[str]:
    """The innermost frames of an error, the innermost one last."""
    if isinstance(error, RemoteEngineError):
        return list(error.frames)
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]


def install_exception_handlers(report: Callable[[str, str], None]) -> None:
    """Report what the running event loop would print a traceback for, as its topic and a sentence that includes it."""

    def handle(_loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        error, topic = context.get("exception"), str(context["message"])
        reason = sockets.describe_error(error) if isinstance(error, OSError) else describe_crash(error) if error else ""
        report(topic, f"{topic}: {reason}" if reason else topic)

    asyncio.get_running_loop().set_exception_handler(handle)


def suppress_tracebacks() -> None:
    """Print a sentence in place of a traceback for what no event loop sees: threads, finalizers, libraries' logs.

    Works until the very end of the process.
    """
    sys.unraisablehook = threading.excepthook = _print_crash
    logging.lastResort = _SentenceHandler(logging.WARNING)


def _print_crash(hook: sys.UnraisableHookArgs | threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None:
        print_message(describe_crash(hook.exc_value))


class _SentenceHandler(logging.Handler):
    """Prints log records that no other handler takes."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        text = record.getMessage()
        print_message(f"{text}: {describe_crash(error)}" if error else text)


def restart_delay(crashes: int, uniform: Callable[[float, float], float]) -> float:
    """Seconds to wait after so many crashes in a row: exponential, with full jitter.

    Grows faster than the delay after a lost link: most outages end, hardly any internal error does.
    """
    limit_s = min(MAX_RESTART_DELAY_S, FIRST_DELAY_S * 2.0 ** min(crashes - 1, 16))
    return max(MIN_DELAY_S, uniform(0.0, limit_s))
