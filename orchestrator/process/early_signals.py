"""Process signals between the start of the interpreter and the handlers of the event loop.

Imports and the file take about half a second. In that time SIGHUP would end a daemon, and the kernel would discard
SIGTERM and SIGINT for process 1 of a container, which has no default action (pid_namespaces(7)). Imports nothing heavy.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # the C half: signal and typing take milliseconds to import
import os
import sys
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Final

_SERVING_COMMANDS: Final = ("up", "demo")
_DETACHING_OPTIONS: Final = frozenset({"-d", "--detach", "--wait"})

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would print a traceback during the imports


def install(arguments: Sequence[str]) -> None:
    """Install handlers for a command: one that serves ends with exit code 0, as it does later, and ignores SIGHUP.

    Nothing is lost by that: no visitor has been accepted yet, and the file is read after the signal.
    """
    is_url = bool(arguments) and "://" in arguments[0]
    is_serving = is_url or _serves(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        if is_serving:
            signal.signal(number, _exit_at_once)
        elif os.getpid() == 1:
            signal.signal(number, _exit_interrupted)
        elif number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # Python's own handler would print a traceback
    if is_serving and not is_url:
        signal.signal(signal.SIGHUP, _ignore)  # SIG_IGN would be inherited by child processes
    _reset_inherited_state()


def _serves(arguments: Sequence[str]) -> bool:
    if not arguments or arguments[0] not in _SERVING_COMMANDS or not _DETACHING_OPTIONS.isdisjoint(arguments):
        return False
    return "--no-tui" in arguments or not all(
        stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)
    )


def _reset_inherited_state() -> None:
    """Undo what execve(2) keeps of the parent: blocked signals, and SIGCHLD ignored, which hides how a child ended."""
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what is pending arrives now


def raise_on_stop_signals() -> None:
    """Let SIGTERM and SIGINT raise SystemExit, so that a command can end what it has started in the background."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_exit)


def _exit_at_once(_: int, __: FrameType | None) -> None:
    os._exit(0)


def _exit_interrupted(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def _raise_exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _ignore(_: int, __: FrameType | None) -> None:
    pass
