"""A mosquitto of the benchmark's own."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.broker import Broker, BrokerError, Dialer

from .processes import BenchError, Running, find, free_ports, listening, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOOL: Final = "mosquitto"

_COUNTED: Final = "$SYS/broker/publish/messages/received"
_START_LIMIT_S: Final = 10.0
_COUNT_LIMIT_S: Final = 10.0
_POLL_S: Final = 0.01


@asynccontextmanager
async def mosquitto(directory: Path) -> AsyncIterator[tuple[str, Running]]:
    """Its URL; gone when the block is left."""
    program = find(TOOL)
    if program is None:
        raise BenchError(f"{TOOL} is not installed")
    (port,) = free_ports(1)
    config = directory / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"{user}persistence false\nlog_type error\nsys_interval 1\nallow_anonymous true\nlistener {port} 127.0.0.1\n"
    )
    async with running(TOOL, (program, "-c", str(config)), directory=directory) as process:
        deadline = time.monotonic() + _START_LIMIT_S
        while not listening(port):
            process.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{TOOL} does not listen")
            await asyncio.sleep(_POLL_S)
        yield f"mqtt://127.0.0.1:{port}", process


async def publications_per_second(url: str, seconds: float) -> float:
    """What the broker is told, by its own count. Raises BenchError."""
    try:
        async with asyncio.timeout(seconds + _COUNT_LIMIT_S), Dialer(Broker.from_url(url)).session() as session:
            await session.subscribe(_COUNTED)
            first: tuple[float, int] | None = None
            async for batch in session.batches():
                now, count = time.monotonic(), int(bytes(batch[-1].payload))
                if first is None:
                    if not batch[-1].retain:  # what is retained is of an unknown age
                        first = now, count
                elif now - first[0] >= seconds:
                    return (count - first[1]) / (now - first[0])
    except (BrokerError, TimeoutError, ValueError) as error:
        raise BenchError(f"{TOOL} does not count what it is told: {str(error) or 'it says nothing'}") from None
    raise BenchError(f"{TOOL} is gone")
