"""What a service manager is told: ready, reloading, stopping, alive. systemd's protocol, without its library."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

_PATIENCE: Final = 0.1  # seconds for a manager that does not read: the event loop waits
_BEATS: Final = 3  # in each period that the manager waits


class Notifier:
    """Says it to the socket that NOTIFY_SOCKET names; nothing where there is none."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._status = ""
        self.beat_every = _beat(environ)
        """Seconds between two ``alive``; None: nobody waits for them"""

    @property
    def is_heard(self) -> bool:
        """Whether there is somebody to talk to."""
        return bool(self._address)

    def ready(self) -> None:
        """All that shall run has been started, or read again."""
        self._say("READY=1")

    def reloading(self) -> None:
        """The file is being read again; ``ready`` follows."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """The event loop turns."""
        self._say("WATCHDOG=1")

    def status(self, text: str) -> None:
        """How it goes, in a few words; said only if they are new."""
        if text != self._status:
            self._status = text
            self._say(f"STATUS={text}")

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError, ValueError),  # a manager that does not listen is no reason to stop
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as voice,
        ):
            voice.settimeout(_PATIENCE)
            voice.sendto("\n".join(lines).encode(), self._address)


def _beat(environ: Mapping[str, str]) -> float | None:
    period = environ.get("WATCHDOG_USEC", "")
    if not period.isdigit() or not int(period) or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(period) / 1e6 / _BEATS
