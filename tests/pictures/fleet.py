"""A small fleet for screenshots: a broker, four hosts on it, one of which ends, and simulated visitors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from orchestrator.demo import free_ports
from orchestrator.demo_traffic import VisitorCounts, serve_target, simulate_refused_visitor, simulate_visitor

_PROCESS_TIMEOUT_S: Final = 20.0  # for each process to start, and to end
_POLL_INTERVAL_S: Final = 0.05
_KILL_HOST_AFTER_S: Final = 8.0

_HOSTS: Final = {
    "edge-1": """\
  web: {{url: "server://127.0.0.1:{tunnel_1}/127.0.0.1:{ingress_1}?mode=reverse", tags: [prod]}}
  db: {{url: "server://127.0.0.1:{tunnel_2}/127.0.0.1:{target}?mode=forward", tags: [prod]}}
  mail: {{url: "server://127.0.0.1:{tunnel_3}/127.0.0.1:{ingress_3}?mode=reverse"}}
  backup: {{url: "server://127.0.0.1:{tunnel_4}/127.0.0.1:{ingress_4}?mode=reverse"}}
""",
    "home": """\
  web: {{url: "client://127.0.0.1:{tunnel_1}/127.0.0.1:{target}", tags: [prod]}}
  mail: {{url: "client://127.0.0.1:{tunnel_3}/127.0.0.1:{closed}"}}
""",
    "office": """\
  db: {{url: "client://127.0.0.1:{tunnel_2}/127.0.0.1:{ingress_2}", tags: [prod]}}
""",
    "attic": """\
  backup: {{url: "client://127.0.0.1:{tunnel_4}/127.0.0.1:{target}"}}
""",
}
_KILLED_HOST: Final = "attic"
_FILE: Final = """\
version: 1
supervisor:
  api: {name}.sock
  mqtt: {{url: "mqtt://127.0.0.1:{broker}", host: {name}, commands: true}}
defaults: {{key: a-key-for-screenshots, shutdown_timeout: 1s}}
tunnels:
"""
_BROKER: Final = "persistence false\nlistener {port} 127.0.0.1\nallow_anonymous true\n"


def find_mosquitto() -> str | None:
    """Return the path of mosquitto; None if it is not installed."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


@contextlib.asynccontextmanager
async def run_fleet(mosquitto: str) -> AsyncIterator[str]:
    """Run the fleet with visitors until the context ends; yields the broker's URL. One host is killed after a while."""
    names = ("broker", *(f"{what}_{number}" for what in ("tunnel", "ingress") for number in (1, 2, 3, 4)), "closed")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with tempfile.TemporaryDirectory(prefix="np-") as text:
        folder = Path(text)
        config = folder / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        config.write_text(user + _BROKER.format(port=ports["broker"]), encoding="utf-8")
        async with serve_target() as target:
            with _process([mosquitto, "-c", str(config)]), contextlib.ExitStack() as hosts:
                await _wait_for_listener(ports["broker"])
                daemons = {
                    name: hosts.enter_context(_host(name, folder, {**ports, "target": target})) for name in _HOSTS
                }
                visitors = [
                    *(
                        simulate_visitor(ports[name], VisitorCounts())
                        for name in ("ingress_1", "ingress_1", "ingress_2")
                    ),
                    simulate_refused_visitor(ports["ingress_3"], VisitorCounts()),
                ]
                tasks = [asyncio.create_task(visitor) for visitor in visitors]
                try:
                    await _wait_for_listener(ports["ingress_4"])
                    asyncio.get_running_loop().call_later(_KILL_HOST_AFTER_S, daemons[_KILLED_HOST].kill)
                    yield f"mqtt://127.0.0.1:{ports['broker']}"
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)
            await asyncio.sleep(_POLL_INTERVAL_S)  # for the target to read the end of its connections


@contextlib.contextmanager
def _host(name: str, folder: Path, ports: dict[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    file = folder / f"{name}.yaml"
    file.write_text((_FILE + _HOSTS[name]).format(name=name, **ports), encoding="utf-8")
    command = [sys.executable, "-m", "orchestrator.cli", "up", str(file), "--no-tui"]
    with _process(command, {**os.environ, "XDG_STATE_HOME": str(folder)}) as process:
        yield process


@contextlib.contextmanager
def _process(command: list[str], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(  # our own program, and an installed broker
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_PROCESS_TIMEOUT_S)


async def _wait_for_listener(port: int) -> None:
    async with asyncio.timeout(_PROCESS_TIMEOUT_S):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(_POLL_INTERVAL_S)
