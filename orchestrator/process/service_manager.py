"""Notifies the service manager: ready, reloading, stopping, watchdog. As sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

SEND_TIMEOUT_S: Final = 0.1
"""How long the event loop waits for a manager that does not read."""

_NOTIFICATIONS_PER_PERIOD: Final = 3  # of the watchdog


class Notifier:
    """Sends to the socket that NOTIFY_SOCKET names; does nothing where it is not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._status = ""
        self.watchdog_interval_s = _watchdog_interval_s(environ)
        """Seconds between two calls of ``send_watchdog``; None: the manager has no watchdog for this process."""

    @property
    def is_enabled(self) -> bool:
        """Whether there is a manager to notify."""
        return bool(self._address)

    def send_ready(self) -> None:
        """Every enabled tunnel has been started, or the file has been read again."""
        self._send("READY=1")

    def send_reloading(self) -> None:
        """The file is being read again; ``send_ready`` follows."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def send_stopping(self) -> None:
        """The daemon has begun to end."""
        self._send("STOPPING=1")

    def send_watchdog(self) -> None:
        """The event loop runs."""
        self._send("WATCHDOG=1")

    def send_status(self, text: str) -> None:
        """The status in a few words; sent only if it differs from the last one."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError, ValueError),  # a manager that does not listen is no reason to stop
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.settimeout(SEND_TIMEOUT_S)
            sender.sendto("\n".join(lines).encode(), self._address)


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    period = environ.get("WATCHDOG_USEC", "")
    if not period.isdigit() or not int(period) or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(period) / 1e6 / _NOTIFICATIONS_PER_PERIOD
