"""A bad wire: two hosts joined by a process that loses, delays and reorders their packets, each with its probability.

The ends are TUN devices, so every kernel with network namespaces will do, whether or not it has netem; and what the
kernel would hand on as one large segment crosses this wire in packets of their true size.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.integration.namespaces import End

_TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PACKET = 1 << 16
_BATCH = 64
_HELD = 4096
"""Packets on the wire at once; beyond that it loses them, as a router does whose queue is full."""


def missing() -> str | None:
    """Why there can be no such wire here, or None."""
    return None if _TUN.exists() else f"{_TUN} is missing: modprobe tun"


@dataclass(frozen=True)
class Manners:
    """How a wire treats a packet."""

    loss: float = 0.0
    """probability that it is lost"""
    delay: float = 0.0
    """seconds that it takes one way"""
    reorder: float = 0.0
    """probability that it is overtaken by those of the next ``lag`` seconds"""
    lag: float = 0.02
    seed: int = 1


class Wire:
    """Joins two hosts. Owns both devices and the process between them."""

    def __init__(self, left: End, right: End, manners: Manners) -> None:
        """Both addresses are in one network of 24 bits."""
        self._tuns = [_tun(left), _tun(right)]
        self._process: subprocess.Popen[bytes] | None = None
        self.behave(manners)

    def behave(self, manners: Manners) -> None:
        """Treat packets so from now on; those that are on the wire are lost."""
        self._stop()
        values = [f"--{name}={value}" for name, value in vars(manners).items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.wire", *map(str, self._tuns), *values], pass_fds=self._tuns
        )

    def close(self) -> None:
        """Take it down."""
        self._stop()
        for tun in self._tuns:
            os.close(tun)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(10)


def _tun(end: End) -> int:
    host, name, address = end
    with host.entered():
        tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    host.run("ip", "address", "add", f"{address}/24", "dev", name)
    host.run("ip", "link", "set", name, "up")
    return tun


def carry(left: int, right: int, manners: Manners) -> None:
    """Carry packets between two devices until the process is ended."""
    chance = random.Random(manners.seed)
    over = {left: right, right: left}
    under_way: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        patience = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for tun in select.select([left, right], [], [], patience)[0]:
            for _ in range(_BATCH):
                try:
                    packet = os.read(tun, _PACKET)
                except BlockingIOError:
                    break
                if chance.random() < manners.loss or len(under_way) >= _HELD:
                    continue
                lag = manners.lag if chance.random() < manners.reorder else 0.0
                number += 1
                heapq.heappush(under_way, (time.monotonic() + manners.delay + lag, number, over[tun], packet))
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, tun, packet = heapq.heappop(under_way)
            os.write(tun, packet)


def main() -> None:
    """Carry what two inherited descriptors bring."""
    parser = argparse.ArgumentParser(description="A wire with manners.")
    parser.add_argument("left", type=int)
    parser.add_argument("right", type=int)
    for name, default in vars(Manners()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    values = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    carry(values.pop("left"), values.pop("right"), Manners(**values))


if __name__ == "__main__":
    main()
