"""A demonstration on the loopback interface: what the program can do, with simulated targets and visitors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator import daemon
from orchestrator.config.load import load
from orchestrator.demo_traffic import (
    DENIED_ADDRESS,
    VisitorCounts,
    serve_datagrams,
    serve_flapping_target,
    serve_target,
    simulate_datagrams,
    simulate_denied_visitor,
    simulate_download,
    simulate_refused_visitor,
    simulate_visitor,
)
from orchestrator.process.messages import print_message
from orchestrator.process.setup import handle_stop_signals, prepare_serving_process, run_event_loop
from orchestrator.supervisor.crash_reports import suppress_tracebacks
from orchestrator.table import align_columns, format_bytes
from tunnel.model.keys import generate_key
from tunnel.model.spec import LogLevel
from tunnel.model.state import State
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from orchestrator.supervisor.supervisor import Supervisor
    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import Snapshot

REFUSED_CLIENT: Final = "refused-client"
"""The tunnel whose target refuses connections."""

_AWAY_S: Final = (10.0, 5.0)  # how long the second client of a tunnel serves, and how long it is away
_COOLDOWN_TIMEOUT_S: Final = 2.0
_POLL_INTERVAL_S: Final = 0.02
_LEAVING_CLIENT: Final = "web-2"
_FILE: Final = """\
# The file of this demonstration. Show its tunnels in another terminal: nodepass-orch ps --socket {folder}/demo.sock
version: 1
supervisor:
  api: demo.sock
defaults:
  key_file: demo.key
  data_port: tunnel      # all servers share one tunnel port: a service tells them apart
  min_pool_capacity: 4
  client_cooldown: 3s
  shutdown_timeout: 3s
tunnels:
  # one server with two clients, of which the second leaves now and then; visitors from one address are refused
  web: {{url: "server://127.0.0.1:{tunnel}/127.0.0.1:{web}?service=web", mode: reverse, clients: 2, deny: [{denied}]}}
  web-1: client://127.0.0.1:{tunnel}/127.0.0.1:{target}?service=web
  web-2: client://127.0.0.1:{tunnel}/127.0.0.1:{target}?service=web
  # a client with two targets, of which the second is down now and then
  shop: server://127.0.0.1:{tunnel}/127.0.0.1:{shop}?service=shop&mode=reverse
  shop-client:
    url: client://127.0.0.1:{tunnel}/127.0.0.1:{target},127.0.0.1:{flapping}?service=shop
    check: tcp
    inter: 1s
    fall: 1
    rise: 1
  # the other direction: the client accepts visitors, the server dials the target; all of them share a rate
  files: server://127.0.0.1:{tunnel}/127.0.0.1:{target}?service=files&mode=forward
  files-client: client://127.0.0.1:{tunnel}/127.0.0.1:{files}?service=files&rate=8mbit
  # datagrams
  dns: server://127.0.0.1:{tunnel}/127.0.0.1:{dns}?service=dns&mode=reverse&proto=udp&udp_timeout=1s
  dns-client: client://127.0.0.1:{tunnel}/127.0.0.1:{udp_target}?service=dns&proto=udp&udp_timeout=1s
  # the target of these refuses connections: they show the state cooldown and its reason
  refused: server://127.0.0.1:{tunnel}/127.0.0.1:{refused}?service=refused&mode=reverse
  refused-client: client://127.0.0.1:{tunnel}/127.0.0.1:{closed}?service=refused
"""
_PORTS: Final = ("tunnel", "web", "shop", "files", "dns", "refused", "flapping", "closed")


def run(duration_s: float | None, log: EventSink) -> str:
    """Run until a process signal, or for ``duration_s``. Returns a summary."""
    prepare_serving_process()
    suppress_tracebacks()
    with tempfile.TemporaryDirectory(prefix="nodepass-orch-demo-") as folder:
        return run_event_loop(_run(Path(folder), duration_s, log))


async def _run(folder: Path, duration_s: float | None, log: EventSink) -> str:
    counts = VisitorCounts()
    async with serve_target() as target, serve_datagrams() as udp_target:
        ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        file = folder / "tunnels.yaml"
        (folder / "demo.key").touch(mode=0o600)
        (folder / "demo.key").write_text(generate_key(), encoding="ascii")
        text = _FILE.format(folder=folder, denied=DENIED_ADDRESS, target=target, udp_target=udp_target, **ports)
        file.write_text(text, encoding="utf-8")
        manifest = load(file, {})
        print_message(f"the demonstration runs the file {file}; end it with Ctrl-C")
        with daemon.claimed_daemon(manifest, folder / "demo.sock", os.environ, folder / "history.db") as claim:
            async with daemon.running_daemon(manifest, claim, log, LogLevel.INFO) as supervisor:
                activities = [*_traffic(ports, counts), _let_client_leave(supervisor)]
                tasks = [asyncio.create_task(activity) for activity in activities]
                last = await _run_supervisor(supervisor, tasks, duration_s)
    return format_summary(last, counts)


def _traffic(ports: Mapping[str, int], counts: VisitorCounts) -> list[Coroutine[None, None, None]]:
    """Return everything that visits the tunnels, and the target that flaps."""
    return [
        *(simulate_visitor(ports[name], counts) for name in ("web", "web", "web", "shop", "shop", "files")),
        simulate_download(ports["files"], counts),
        simulate_datagrams(ports["dns"], counts),
        simulate_denied_visitor(ports["web"], counts),
        simulate_refused_visitor(ports["refused"], counts),
        serve_flapping_target(ports["flapping"]),
    ]


async def _let_client_leave(supervisor: Supervisor) -> None:
    """Drain and start one of two clients in turn; until cancelled."""
    while True:
        await asyncio.sleep(_AWAY_S[0])
        supervisor.drain(_LEAVING_CLIENT)
        await asyncio.sleep(_AWAY_S[1])
        supervisor.start(_LEAVING_CLIENT)


async def _run_supervisor(
    supervisor: Supervisor, activities: Sequence[asyncio.Task[None]], duration_s: float | None
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
        for activity in activities:
            activity.cancel()
        await asyncio.wait(activities)
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
    denied = f"{plural(counts.denied, 'visitor')} of web {'was' if counts.denied == 1 else 'were'}"
    return (
        f"{align_columns(rows)}\n{served}{counts.failed} failed; "
        f"{refused} not served, as intended: its target refuses connections; "
        f"{denied} refused: {DENIED_ADDRESS} is in deny."
    )


def free_ports(count: int) -> list[int]:
    """Return distinct free ports: all are held open at the same time."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(sockets.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(sock.getsockname()[1]) for sock in held]
