"""A mosquitto broker for the benchmark."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.broker import Broker, BrokerError
from orchestrator.mqtt.session import BrokerClient
from tests.support.ports import free_ports

from .processes import BenchError, RunningProcess, find_program, is_listening, run_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOOL: Final = "mosquitto"

_COUNTED: Final = "$SYS/broker/publish/messages/received"
_START_LIMIT_S: Final = 10.0
_COUNT_LIMIT_S: Final = 10.0
_POLL_S: Final = 0.01


@asynccontextmanager
async def mosquitto(directory: Path) -> AsyncIterator[tuple[str, RunningProcess]]:
    """Run a broker for the duration of the block; yield its URL and process."""
    program = find_program(TOOL)
    if program is None:
        raise BenchError(f"{TOOL} is not installed")
    (port,) = free_ports(1)
    config = directory / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(
        f"{user}persistence false\nlog_type error\nsys_interval 1\nallow_anonymous true\nlistener {port} 127.0.0.1\n"
    )
    async with run_process(TOOL, (program, "-c", str(config)), directory=directory) as process:
        deadline = time.monotonic() + _START_LIMIT_S
        while not is_listening(port):
            process.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{TOOL} does not listen")
            await asyncio.sleep(_POLL_S)
        yield f"mqtt://127.0.0.1:{port}", process


async def publications_per_second(url: str, seconds: float) -> float:
    """Return the publications per second that the broker counts. Raises BenchError."""
    try:
        async with asyncio.timeout(seconds + _COUNT_LIMIT_S), BrokerClient(Broker.from_url(url)).session() as session:
            await session.subscribe(_COUNTED)
            first: tuple[float, int] | None = None
            async for batch in session.receive_batches():
                now, count = time.monotonic(), int(bytes(batch[-1].payload))
                if first is None:
                    if not batch[-1].retain:  # a retained count has an unknown age
                        first = now, count
                elif now - first[0] >= seconds:
                    return (count - first[1]) / (now - first[0])
    except (BrokerError, TimeoutError, ValueError) as error:
        raise BenchError(f"{TOOL} does not count publications: {str(error) or 'no answer'}") from None
    raise BenchError(f"{TOOL} closed the connection")
