"""Ports for those who have to know theirs before they listen."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from typing import Final

_LOWEST: Final = 21_000  # those below are the benchmark's
_BEYOND: Final = 32_000  # below those that the kernel gives to outgoing connections, and to listeners on port 0


def _own_ports() -> itertools.cycle[int]:
    """Those of this process: it shares none with the test processes beside it, and gives none again soon."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (_BEYOND - _LOWEST) // max(1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    first = _LOWEST + worker * share
    start = random.randrange(share)  # other runs of the tests on this machine begin elsewhere
    return itertools.cycle([first + (start + n) % share for n in range(share)])


_ports = _own_ports()


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on, nor will before it is used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = next(_ports)
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
