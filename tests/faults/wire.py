"""An impaired wire: two hosts connected by a process that loses, delays and reorders packets with given probabilities.

The ends are TUN devices, so the wire needs no netem in the kernel. Segments that the kernel would pass on as one large
packet (GSO) cross this wire in packets of their real size.
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

from tests.support.namespaces import End

_TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MAX_PACKET_BYTES = 1 << 16
_BATCH = 64
_MAX_QUEUED_PACKETS = 4096
"""Packets on the wire at once. Further packets are lost, as in a router with a full queue."""


def missing() -> str | None:
    """Return why an impaired wire cannot be made here, or None if it can."""
    return None if _TUN.exists() else f"{_TUN} is missing: modprobe tun"


@dataclass(frozen=True)
class Impairment:
    """What a wire does to packets."""

    loss: float = 0.0
    """probability that a packet is lost"""
    delay: float = 0.0
    """seconds that a packet takes one way"""
    reorder: float = 0.0
    """probability that a packet is overtaken by the packets of the next ``lag`` seconds"""
    lag: float = 0.02
    seed: int = 1


class ImpairedWire:
    """Connects two hosts. Owns both TUN devices and the process between them."""

    def __init__(self, left: End, right: End, impairment: Impairment) -> None:
        """Create both devices; their addresses share a network of 24 bits."""
        self._tuns = [_tun(left), _tun(right)]
        self._process: subprocess.Popen[bytes] | None = None
        self.set_impairment(impairment)

    def set_impairment(self, impairment: Impairment) -> None:
        """Apply this impairment from now on; packets that are on the wire are lost."""
        self._stop()
        values = [f"--{name}={value}" for name, value in vars(impairment).items()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.wire", *map(str, self._tuns), *values], pass_fds=self._tuns
        )

    def close(self) -> None:
        """End the process and remove the devices."""
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


def carry_packets(left: int, right: int, impairment: Impairment) -> None:
    """Carry packets between two devices until the process ends."""
    chance = random.Random(impairment.seed)
    other_end = {left: right, right: left}
    in_flight: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        timeout = max(0.0, in_flight[0][0] - time.monotonic()) if in_flight else None
        for tun in select.select([left, right], [], [], timeout)[0]:
            for _ in range(_BATCH):
                try:
                    packet = os.read(tun, _MAX_PACKET_BYTES)
                except BlockingIOError:
                    break
                if chance.random() < impairment.loss or len(in_flight) >= _MAX_QUEUED_PACKETS:
                    continue
                lag = impairment.lag if chance.random() < impairment.reorder else 0.0
                number += 1
                heapq.heappush(in_flight, (time.monotonic() + impairment.delay + lag, number, other_end[tun], packet))
        now = time.monotonic()
        while in_flight and in_flight[0][0] <= now:
            _, _, tun, packet = heapq.heappop(in_flight)
            os.write(tun, packet)


def main() -> None:
    """Carry packets between the TUN devices of two inherited descriptors."""
    parser = argparse.ArgumentParser(description="A wire with impairment.")
    parser.add_argument("left", type=int)
    parser.add_argument("right", type=int)
    for name, default in vars(Impairment()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    values = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    carry_packets(values.pop("left"), values.pop("right"), Impairment(**values))


if __name__ == "__main__":
    main()
