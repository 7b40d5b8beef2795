"""Free TCP ports for peers that must know their port before they listen."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from typing import Final

_LOWEST: Final = 21_000  # the ports below belong to the benchmark
_END: Final = 32_000  # from here on the kernel takes ports for outgoing connections and for listeners on port 0


def _ports_of_this_process() -> itertools.cycle[int]:
    """Return an endless sequence of the ports of this process.

    Test processes that run in parallel share no port, and no port is handed out again soon.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (_END - _LOWEST) // max(1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    first = _LOWEST + worker * share
    start = random.randrange(share)  # other test runs on this machine start elsewhere
    return itertools.cycle([first + (start + n) % share for n in range(share)])


_ports = _ports_of_this_process()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is unused now, and that no other test will be given before it is used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = next(_ports)
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return port
