"""Free TCP ports for peers that must know their port before they listen."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from collections import deque
from pathlib import Path
from typing import Final

_BENCH_LOWEST: Final = 10_000
_LOWEST: Final = 21_000  # the ports below belong to the benchmark, which may run at the same time
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


_recent: Final[deque[int]] = deque(maxlen=3000)


def free_ports(count: int) -> tuple[int, ...]:
    """Return different unused ports of 127.0.0.1 for the benchmark, without connections in TIME_WAIT.

    They are below the ephemeral range, because under load a port found by binding to 0 soon becomes the source port of
    another connection. Ports returned recently are excluded, because their user may not listen yet. Raises OSError.
    """
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    end = min(_LOWEST, ephemeral)
    candidates = list(range(min(_BENCH_LOWEST, ephemeral // 2), end))
    random.shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if port in _recent:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            _recent.extend(found)
            return tuple(found)
    raise OSError(f"no {count} free ports below {end}")
