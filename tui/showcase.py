"""A small fleet to take pictures of: a broker of its own, three hosts on it, one of them gone, and some visitors."""

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

from orchestrator.demo import Tally, free_ports, knock, origin_server, visit

_PATIENCE: Final = 20.0  # seconds for each process to come up, and to end
_LOOK: Final = 0.05
_LIFE: Final = 8.0  # seconds until one host dies

_HOSTS: Final = {
    "edge-1": """\
  web: {{url: "server://127.0.0.1:{link_1}/127.0.0.1:{door_1}?mode=reverse", tags: [prod]}}
  db: {{url: "server://127.0.0.1:{link_2}/127.0.0.1:{origin}?mode=forward", tags: [prod]}}
  mail: {{url: "server://127.0.0.1:{link_3}/127.0.0.1:{door_3}?mode=reverse"}}
  backup: {{url: "server://127.0.0.1:{link_4}/127.0.0.1:{door_4}?mode=reverse"}}
""",
    "home": """\
  web: {{url: "client://127.0.0.1:{link_1}/127.0.0.1:{origin}", tags: [prod]}}
  mail: {{url: "client://127.0.0.1:{link_3}/127.0.0.1:{nowhere}"}}
""",
    "office": """\
  db: {{url: "client://127.0.0.1:{link_2}/127.0.0.1:{door_2}", tags: [prod]}}
""",
    "attic": """\
  backup: {{url: "client://127.0.0.1:{link_4}/127.0.0.1:{origin}"}}
""",
}
_GONE: Final = "attic"
_FILE: Final = """\
version: 1
supervisor:
  api: {name}.sock
  mqtt: {{url: "mqtt://127.0.0.1:{broker}", host: {name}, commands: true}}
defaults: {{key: a-key-for-pictures, shutdown_timeout: 1s}}
tunnels:
"""
_BROKER: Final = "persistence false\nlistener {port} 127.0.0.1\nallow_anonymous true\n"


def broker_program() -> str | None:
    """Where a mosquitto is; None where there is none."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


@contextlib.asynccontextmanager
async def running_fleet(mosquitto: str) -> AsyncIterator[str]:
    """The fleet, with visitors, until the block ends; gives the broker's URL. One host dies after a while."""
    names = ("broker", *(f"{what}_{number}" for what in ("link", "door") for number in (1, 2, 3, 4)), "nowhere")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with tempfile.TemporaryDirectory(prefix="np-") as text:
        folder = Path(text)
        config = folder / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        config.write_text(user + _BROKER.format(port=ports["broker"]), encoding="utf-8")
        async with origin_server() as origin:
            with _process([mosquitto, "-c", str(config)]), contextlib.ExitStack() as hosts:
                await _listens(ports["broker"])
                daemons = {
                    name: hosts.enter_context(_host(name, folder, {**ports, "origin": origin})) for name in _HOSTS
                }
                works = [visit(ports[door], Tally()) for door in ("door_1", "door_1", "door_2")]
                visitors = [asyncio.create_task(work) for work in (*works, knock(ports["door_3"]))]
                try:
                    await _listens(ports["door_4"])
                    asyncio.get_running_loop().call_later(_LIFE, daemons[_GONE].kill)
                    yield f"mqtt://127.0.0.1:{ports['broker']}"
                finally:
                    for visitor in visitors:
                        visitor.cancel()
                    await asyncio.wait(visitors)
            await asyncio.sleep(_LOOK)  # for the origin to see that its visitors are gone


@contextlib.contextmanager
def _host(name: str, folder: Path, ports: dict[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    file = folder / f"{name}.yaml"
    file.write_text((_FILE + _HOSTS[name]).format(name=name, **ports), encoding="utf-8")
    command = [sys.executable, "-m", "orchestrator.cli", "up", str(file), "--no-tui"]
    with _process(command, {**os.environ, "XDG_STATE_HOME": str(folder)}) as process:
        yield process


@contextlib.contextmanager
def _process(command: list[str], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(  # noqa: S603  our own program, and the broker that is installed here
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(_PATIENCE)


async def _listens(port: int) -> None:
    async with asyncio.timeout(_PATIENCE):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(_LOOK)
