"""A demonstration on the loopback interface: tunnels of both directions, a target server and simulated visitors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket as sockets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator import daemon
from orchestrator.config.load import load
from orchestrator.process.messages import print_message
from orchestrator.process.setup import handle_stop_signals, prepare_serving_process, run_event_loop
from orchestrator.supervisor.crash_reports import suppress_tracebacks
from orchestrator.table import align_columns, format_bytes
from tunnel.model.keys import generate_key
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from orchestrator.supervisor.supervisor import Supervisor
    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import Snapshot

REFUSED_CLIENT: Final = "refused-client"
"""The tunnel whose target refuses connections."""

_VISITORS_PER_INGRESS: Final = 3
_ANSWER_TIMEOUT_S: Final = 5.0  # of one visitor
_COOLDOWN_TIMEOUT_S: Final = 2.0
_POLL_INTERVAL_S: Final = 0.02
_FILE: Final = """\
# The file of this demonstration. Show its tunnels in another terminal: nodepass-orch ps --socket {folder}/demo.sock
version: 1
supervisor:
  api: demo.sock
defaults:
  key_file: demo.key
  min_pool_capacity: 4
  client_cooldown: 3s
  shutdown_timeout: 1s
tunnels:
  # reverse: the server accepts visitors, the client dials the target
  reverse-server: server://127.0.0.1:{tunnel_1}/127.0.0.1:{ingress_1}
  reverse-client: client://127.0.0.1:{tunnel_1}/127.0.0.1:{target}
  # forward: the client accepts visitors, the server dials the target
  forward-server: server://127.0.0.1:{tunnel_2}/127.0.0.1:{target}?mode=forward
  forward-client: client://127.0.0.1:{tunnel_2}/127.0.0.1:{ingress_2}
  # the target of these refuses connections: they show the state cooldown and its reason
  refused-server: server://127.0.0.1:{tunnel_3}/127.0.0.1:{ingress_3}
  refused-client: client://127.0.0.1:{tunnel_3}/127.0.0.1:{closed}
"""


@dataclass(slots=True)
class VisitorCounts:
    """How many requests of simulated visitors were answered, and how many failed."""

    answered: int = 0
    failed: int = 0
    refused: int = 0
    """visitors of the tunnel whose target refuses connections"""


def run(duration_s: float | None, log: EventSink) -> str:
    """Run until a process signal, or for ``duration_s``. Returns a summary."""
    prepare_serving_process()
    suppress_tracebacks()
    with tempfile.TemporaryDirectory(prefix="nodepass-orch-demo-") as folder:
        return run_event_loop(_run(Path(folder), duration_s, log))


async def _run(folder: Path, duration_s: float | None, log: EventSink) -> str:
    counts = VisitorCounts()
    async with serve_target() as target:
        names = ("tunnel_1", "ingress_1", "tunnel_2", "ingress_2", "tunnel_3", "ingress_3", "closed")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        file = folder / "tunnels.yaml"
        (folder / "demo.key").touch(mode=0o600)
        (folder / "demo.key").write_text(generate_key(), encoding="ascii")
        file.write_text(_FILE.format(folder=folder, target=target, **ports), encoding="utf-8")
        manifest = load(file, {})
        print_message(f"the demonstration runs the file {file}; end it with Ctrl-C")
        with daemon.claimed_daemon(manifest, folder / "demo.sock", os.environ, folder / "history.db") as claim:
            async with daemon.running_daemon(manifest, claim, log, LogLevel.INFO) as supervisor:
                visitors = [
                    *(simulate_visitor(ports["ingress_1"], counts) for _ in range(_VISITORS_PER_INGRESS)),
                    *(simulate_visitor(ports["ingress_2"], counts) for _ in range(_VISITORS_PER_INGRESS)),
                    simulate_refused_visitor(ports["ingress_3"], counts),
                ]
                tasks = [asyncio.create_task(visitor) for visitor in visitors]
                last = await _run_supervisor(supervisor, tasks, duration_s)
    return format_summary(last, counts)


async def _run_supervisor(
    supervisor: Supervisor, visitors: Sequence[asyncio.Task[None]], duration_s: float | None
) -> tuple[Snapshot, ...]:
    """Run the supervisor until it ends. Returns the snapshots from the moment at which the shutdown began."""
    last: tuple[Snapshot, ...] = ()

    def shut_down() -> None:
        nonlocal last
        last = supervisor.snapshots()
        supervisor.shutdown()

    with handle_stop_signals(shut_down, supervisor.close):
        run = asyncio.create_task(supervisor.run())
        stopping = asyncio.create_task(supervisor.wait_stopping())
        await asyncio.wait([run, stopping], timeout=duration_s, return_when=asyncio.FIRST_COMPLETED)
        for visitor in visitors:
            visitor.cancel()
        await asyncio.wait(visitors)
        if not stopping.done():
            await _wait_for_cooldown(supervisor)
            shut_down()
        await run
    return last or supervisor.snapshots()


async def _wait_for_cooldown(supervisor: Supervisor) -> None:
    """Wait until the client without a target has failed to dial, which takes its first visitor."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_COOLDOWN_TIMEOUT_S):
            while supervisor.snapshot(REFUSED_CLIENT).state is not State.COOLDOWN:  # noqa: ASYNC110  a snapshot is no event
                await asyncio.sleep(_POLL_INTERVAL_S)


def format_summary(tunnels: Sequence[Snapshot], counts: VisitorCounts) -> str:
    """Return each tunnel's visitors and bytes, and the reason if it is not up."""
    rows = [("TUNNEL", "DIRECTION", "STATE", "VISITORS", "FROM VISITORS", "TO VISITORS", "REASON")]
    rows += [
        (
            tunnel.name,
            tunnel.direction or "-",
            tunnel.state.value,
            str(tunnel.connections.total),
            format_bytes(tunnel.bytes.from_visitors),
            format_bytes(tunnel.bytes.to_visitors),
            (tunnel.reason or "") if tunnel.state is not State.UP else "",
        )
        for tunnel in tunnels
    ]
    served = f"{plural(counts.answered, 'request')} {'was' if counts.answered == 1 else 'were'} answered, "
    refused = f"{plural(counts.refused, 'visitor')} of {REFUSED_CLIENT} {'was' if counts.refused == 1 else 'were'}"
    return (
        f"{align_columns(rows)}\n{served}{counts.failed} failed; "
        f"{refused} not served, as intended: its target refuses connections."
    )


def free_ports(count: int) -> list[int]:
    """Return distinct free ports: all are held open at the same time."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(sockets.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(sock.getsockname()[1]) for sock in held]


@contextlib.asynccontextmanager
async def serve_target() -> AsyncIterator[int]:
    """Run an HTTP server with one page until the context ends; yields its port."""
    server = await asyncio.start_server(_serve_pages, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


async def _serve_pages(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    page = b"This page came through a tunnel.\n" * 64
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))
            await writer.drain()
    writer.close()


async def simulate_refused_visitor(port: int, counts: VisitorCounts) -> None:
    """Connect once a second and read until the tunnel closes the connection; until cancelled."""
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                with contextlib.closing(writer), contextlib.suppress(ConnectionResetError):
                    await reader.read()
                counts.refused += 1
        await asyncio.sleep(1.0)


async def simulate_visitor(port: int, counts: VisitorCounts) -> None:
    """Connect, send a few requests, close, repeat; until cancelled."""
    while True:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:  # the listener is not open yet
            await asyncio.sleep(0.1)
            continue
        try:
            for _ in range(random.randint(1, 4)):  # noqa: S311  traffic, not a secret
                await _request_page(reader, writer)
                counts.answered += 1
                await asyncio.sleep(random.uniform(0.02, 0.2))  # noqa: S311  as above
        except (OSError, asyncio.IncompleteReadError):
            counts.failed += 1
            await asyncio.sleep(0.1)
        finally:
            writer.close()


async def _request_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async with asyncio.timeout(_ANSWER_TIMEOUT_S):
        writer.write(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.split(b":")[-1]))
