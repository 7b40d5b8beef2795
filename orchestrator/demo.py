"""A demonstration that needs nothing but this machine's loopback: tunnels of both directions, an origin, visitors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket as sockets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator import daemon
from orchestrator.config.load import load
from orchestrator.process.process import prepare_to_serve, say, stop_signals
from orchestrator.supervisor.defects import show_no_tracebacks
from orchestrator.table import align, size
from tunnel.model.spec import LogLevel
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from orchestrator.supervisor.supervisor import Supervisor
    from tunnel.model.events import EventSink
    from tunnel.model.state import Snapshot

STRANDED: Final = "stranded-client"
"""The tunnel that cannot reach its target."""

_VISITORS: Final = 3  # at each entrance at once
_PATIENCE: Final = 5.0  # seconds that a visitor waits for an answer
_FILE: Final = """\
# The file of this demonstration. Another terminal can look at it: nodepass-orch ps --socket {folder}/demo.sock
version: 1
supervisor:
  api: demo.sock
defaults:
  key_file: demo.key
  min_pool_capacity: 4
  client_cooldown: 3s
  shutdown_timeout: 1s
tunnels:
  # reverse: the server accepts visitors, the client dials the origin
  reverse-server: server://127.0.0.1:{link_1}/127.0.0.1:{door_1}
  reverse-client: client://127.0.0.1:{link_1}/127.0.0.1:{origin}
  # forward: the client accepts visitors, the server dials the origin
  forward-server: server://127.0.0.1:{link_2}/127.0.0.1:{origin}?mode=forward
  forward-client: client://127.0.0.1:{link_2}/127.0.0.1:{door_2}
  # nobody listens on the target of these: see how a tunnel waits, and says why
  stranded-server: server://127.0.0.1:{link_3}/127.0.0.1:{door_3}
  stranded-client: client://127.0.0.1:{link_3}/127.0.0.1:{nowhere}
"""


@dataclass(slots=True)
class Tally:
    """What the visitors saw."""

    served: int = 0
    failed: int = 0


def run(duration: float | None, log: EventSink) -> str:
    """Play until a signal, or for ``duration`` seconds; a summary for people."""
    prepare_to_serve()
    show_no_tracebacks()
    with tempfile.TemporaryDirectory(prefix="nodepass-orch-demo-") as folder:
        return asyncio.run(_play(Path(folder), duration, log))


async def _play(folder: Path, duration: float | None, log: EventSink) -> str:
    tally = Tally()
    async with origin_server() as origin:
        names = ("link_1", "door_1", "link_2", "door_2", "link_3", "door_3", "nowhere")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        file = folder / "tunnels.yaml"
        (folder / "demo.key").touch(mode=0o600)
        (folder / "demo.key").write_text(secrets.token_urlsafe(32), encoding="ascii")
        file.write_text(_FILE.format(folder=folder, origin=origin, **ports), encoding="utf-8")
        manifest = load(file, {})
        say(f"the demonstration runs from {file}; end it with Ctrl-C")
        with daemon.claimed_socket(manifest, folder / "demo.sock", os.environ) as socket:
            async with daemon.running(manifest, socket, log, LogLevel.INFO) as supervisor:
                doors = [ports["door_1"], ports["door_2"]] * _VISITORS
                seen = await _with_visitors(supervisor, doors, ports["door_3"], duration, tally)
    return summary(seen, tally.served, tally.failed)


async def _with_visitors(
    supervisor: Supervisor, doors: Sequence[int], stranded: int, duration: float | None, tally: Tally
) -> tuple[Snapshot, ...]:
    """The supervisor's whole life, with visitors at the doors; what was seen when it was told to end."""
    seen: tuple[Snapshot, ...] = ()

    def end() -> None:
        nonlocal seen
        seen = supervisor.snapshots()
        supervisor.shutdown()

    with stop_signals(end, supervisor.close):
        life = asyncio.create_task(supervisor.run())
        visitors = [asyncio.create_task(visit(door, tally)) for door in doors]
        visitors.append(asyncio.create_task(knock(stranded)))
        ending = asyncio.create_task(supervisor.until_stopping())
        await asyncio.wait([life, ending], timeout=duration, return_when=asyncio.FIRST_COMPLETED)
        for visitor in visitors:
            visitor.cancel()
        await asyncio.wait(visitors)
        if not ending.done():
            await _settled(supervisor)
            end()
        await life
    return seen or supervisor.snapshots()


async def _settled(supervisor: Supervisor) -> None:
    """Wait until the stranded one has noticed, which takes its first visitor."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            while supervisor.snapshot(STRANDED).state is not State.COOLDOWN:  # noqa: ASYNC110  snapshots announce nothing
                await asyncio.sleep(0.02)


def summary(tunnels: Sequence[Snapshot], served: int, failed: int) -> str:
    """What happened, for people: each tunnel's visitors and bytes, and why one of them waits."""
    rows = [("TUNNEL", "DIRECTION", "STATE", "VISITORS", "BYTES IN", "BYTES OUT", "REASON")]
    for tunnel in tunnels:
        moved = tunnel.bytes
        rows.append(
            (
                tunnel.name,
                tunnel.direction or "-",
                tunnel.state.value,
                str(tunnel.connections.total),
                size(moved.from_visitors),
                size(moved.to_visitors),
                (tunnel.reason or "") if tunnel.state is not State.UP else "",
            )
        )
    return f"{align(rows)}\n{served} answers arrived at the visitors, {failed} did not."


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses; all held at once, so that they differ."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(sockets.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(sock.getsockname()[1]) for sock in held]


@contextlib.asynccontextmanager
async def origin_server() -> AsyncIterator[int]:
    """An HTTP server with one page; its port."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    page = b"All is well behind the tunnel.\n" * 64
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))
            await writer.drain()
    writer.close()


async def knock(door: int) -> None:
    """Come now and then, to be sent away."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", door)
                await reader.read()
                writer.close()
        await asyncio.sleep(1.0)


async def visit(door: int, tally: Tally) -> None:
    """Come, ask a few times, leave, come again."""
    while True:
        try:
            async with asyncio.timeout(_PATIENCE):
                reader, writer = await asyncio.open_connection("127.0.0.1", door)
        except OSError:  # the door is not open yet
            await asyncio.sleep(0.1)
            continue
        try:
            for _ in range(random.randint(1, 4)):  # noqa: S311  mere traffic
                async with asyncio.timeout(_PATIENCE):
                    writer.write(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(int(head.split(b":")[-1]))
                tally.served += 1
                await asyncio.sleep(random.uniform(0.02, 0.2))  # noqa: S311  as above
        except (OSError, asyncio.IncompleteReadError):
            tally.failed += 1
            await asyncio.sleep(0.1)
        finally:
            writer.close()
