"""What a process of ours settles with its surroundings: signals, descriptors, its own line in the process list."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_YOUNG = 20_000  # objects that come without going until the collector has a look
_STOPPING = (signal.SIGTERM, signal.SIGINT)


def prepare_serving_process() -> None:
    """What a process that runs tunnels settles first.

    As many descriptors as the system lets it have: a visitor costs two at each end. And the collector of cycles comes
    seldom: relays leave no cycles, and to look for some at every few visitors costs a twentieth of their rate.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG, 20, 20)
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def handle_stop_signals(
    drain: Callable[[], None], close: Callable[[], None], reload: Callable[[], None] | None = None
) -> Iterator[None]:
    """The first SIGTERM or SIGINT drains, each further one closes; SIGHUP reloads. Inside a running loop."""
    loop = asyncio.get_running_loop()
    told = False

    def on_signal() -> None:
        nonlocal told
        (close if told else drain)()
        told = True

    handlers = dict.fromkeys(_STOPPING, on_signal)
    if reload is not None:
        handlers[signal.SIGHUP] = reload
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # all is closed: a late Ctrl-C must not spoil the exit code


def mask_url(text: str) -> str:
    """A URL for eyes, however wrong it may be: what may be a key is three stars."""
    scheme, separator, rest = text.partition("://")
    if "@" not in text:
        return text
    return f"{scheme if separator else '***'}{separator}***@{rest.rpartition('@')[2] if separator else ''}"


def hide_keys_in_arguments(arguments: Sequence[str]) -> bool:
    """Overwrite keys of URLs among this process's arguments, so that the process list does not show them.

    Returns False where that was not possible. Linux keeps the arguments in the process's own memory.
    """
    secret = [a for a in arguments if mask_url(a) != a]
    if not secret:
        return True
    try:
        start, end = map(
            int, Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[45:47]
        )
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            line = memory.read(end - start)
            for argument in secret:
                old = b"\0" + argument.encode(errors="surrogateescape") + b"\0"
                new = b"\0" + mask_url(argument).encode(errors="surrogateescape")
                line = line.replace(old, new.ljust(len(old), b"\0"))
            memory.seek(start)
            memory.write(line)
    except (OSError, ValueError):
        return not Path("/proc/self/cmdline").exists()
    return True


def program_version() -> str:
    """The version of this program, as far as it was installed."""
    try:
        return version("nodepass-orch")
    except PackageNotFoundError:
        return "0 (not installed)"


def print_message(text: str) -> None:
    """A sentence to the person at the terminal."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"nodepass-orch: {text}\n")
        sys.stderr.flush()
