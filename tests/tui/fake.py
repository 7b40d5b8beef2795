"""A fake daemon: it answers as the local API does, with the data that a test sets.

``test_fake.py`` compares its answers with the OpenAPI document.
``python -m tests.tui.fake SOCKET --tunnels 500`` runs one whose numbers change four times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tunnel.model.snapshot import RefusedView
from tunnel.model.times import format_timestamp

Json = Any  # objects of the API; a test may make incomplete ones

REFUSED = RefusedView().as_json()

_SHUTDOWN_GRACE_S = 0.1


def tunnel(name: str, state: str = "up", **changed: Any) -> Json:  # noqa: ANN401  fields of a tunnel
    """Return the API's object of a tunnel; ``changed`` replaces whole top-level values."""
    return {
        "name": name, "role": "server", "direction": "reverse", "state": state, "reason": None,
        "since": "2026-01-01T12:00:00.000Z", "tunnel_addr": "127.0.0.1:10101", "target_addr": "127.0.0.1:8080",
        "data_addr": "127.0.0.1:43211", "peer": "127.0.0.1:5123", "link": "6f1c0d2e", "auth": "key", "data_tls": 0,
        "carrier": "tcp", "service": "", "proto": "tcp", "key_name": None, "published_by": None,
        "tags": [], "enabled": True, "worker": 0,
        "pool": {"idle": 8, "capacity": 8, "dialing": 0, "min": 8, "max": 1024},
        "signals": {"queued": 0, "limit": 1024, "total": 0},
        "connections": {"active": 0, "total": 0, "failed": 0, "limit": 1024},
        "bytes": {"in": 0, "out": 0}, "rates": None, "refused": REFUSED,
        "counters": {"links": 1, "vanished": 0},
        "rtt_ms": 0.4, "cooldown": {"remaining_s": 0.0, "attempt": 0}, "quota": None, "rate_limits": None,
        "clients": 1, "links": [], "servers": [],
        "targets": [], "restarts": 0,
        "last_error": None, "last_error_at": None, **changed,
    }  # fmt: skip


def connections(active: int) -> Json:
    """Return the connections of a tunnel that serves so many visitors."""
    return {"active": active, "total": active, "failed": 0, "limit": 1024}


def cooldown(name: str, remaining: float, reason: str = "the target 127.0.0.1:5432 refuses connections") -> Json:
    """Return a tunnel in cooldown."""
    pool = {"idle": 0, "capacity": 16, "dialing": 0, "min": 8, "max": 1024}
    wait = {"remaining_s": remaining, "attempt": 9}
    return tunnel(name, "cooldown", role="client", reason=reason, cooldown=wait, pool=pool, rtt_ms=None)


def mixed() -> list[Json]:
    """Return one tunnel of every kind."""
    return [
        tunnel("db-east", connections=connections(12)),
        cooldown("db-west", 4.2),
        tunnel("edge-7", "connecting", role="client", rtt_ms=None),
        tunnel("broken", "failed", reason="address 127.0.0.1:10101 is in use"),
        tunnel("resting", "stopped", reason="stopped by command"),
        tunnel("[red]bold[/]", auth="open"),
        tunnel("世界" * 100, "waiting"),
    ]


SETTINGS: Json = {
    "min_pool_capacity": {"value": "8", "source": "built in", "where": None},
    "max_pool_capacity": {"value": "64", "source": "entry", "where": "tunnels.yaml:41:3"},
    "client_cooldown": {"value": "3s", "source": "defaults", "where": "tunnels.yaml:7:3"},
}


class FakeDaemon:
    """Listens on a Unix socket; records the commands that it receives."""

    def __init__(self, socket: Path, tunnels: list[Json] | None = None) -> None:
        self.socket = socket
        self.tunnels: dict[str, Json] = {t["name"]: t for t in (mixed() if tunnels is None else tunnels)}
        self.status: Json = {
            "generation": 4, "pid": 4711, "version": "0.1.0", "host": "edge-1", "read_only": False,
            "started_at": "2026-01-01T12:00:00.000Z", "mqtt": {"state": "off"},
            "config": {"path": "/etc/np/tunnels.yaml", "ok": True, "error": None, "line": None, "column": None,
                       "warnings": [], "loaded_at": "2026-01-01T12:00:00.000Z"},
        }  # fmt: skip
        self.commands: list[tuple[str, str]] = []
        self.members: list[Json] = []
        """the link or target that each command for a tunnel names"""
        self.visitors: list[Json] = []
        self.traffic: dict[str, list[Json]] = {}
        """the rows of every tunnel, by what they sum up"""
        self.refusal: str | None = None
        """why commands are refused"""
        self.plan: Json = {
            "ok": True, "error": None, "add": [], "remove": [], "restart": [], "change": [], "unchanged": 7,
            "warnings": [], "finishing": [],
        }  # fmt: skip
        self.result: Json = {"generation": 5, "ok": True, "error": None, "results": {}}
        """the result of a reload"""
        self.log = [self.event("info", "state", "up: linked to 127.0.0.1:5123", name) for name in self.tunnels]
        self._watchers: set[asyncio.Queue[bytes]] = set()
        self._log_readers: set[asyncio.Queue[bytes]] = set()
        self._runner: web.AppRunner | None = None

    @staticmethod
    def event(level: str, kind: str, text: str, name: str = "", **more: object) -> Json:
        """Return an event of the API."""
        return {"ts": "2026-01-01T12:00:00.000Z", "tunnel": name, "level": level, "kind": kind, "text": text, **more}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on the socket."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/status", self._status),
                web.get("/v1/watch", self._watch),
                web.get("/v1/logs", self._logs),
                web.get("/v1/events", self._events),
                web.get("/v1/visitors", self._visitors),
                web.get("/v1/traffic", self._traffic),
                web.post("/v1/kick", self._kick),
                web.post("/v1/tunnels/{name}/test", self._test),
                web.get("/v1/tunnels/{name}", self._tunnel),
                web.post("/v1/tunnels/{name}/{verb}", self._command),
                web.get("/v1/plan", self._plan),
                web.post("/v1/reload", self._reload),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_GRACE_S)
        await self._runner.setup()
        self.socket.unlink(missing_ok=True)
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def stop(self) -> None:
        """Disappear, as after kill -9."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.socket.unlink(missing_ok=True)

    # -- for tests ---------------------------------------------------------------------------------------------------

    def change(self, name: str, **fields: Any) -> None:  # noqa: ANN401  fields of a tunnel
        """Change a tunnel, or add one."""
        fields = fields if name in self.tunnels else tunnel(name, **fields)
        self.tunnels[name] = {**self.tunnels.get(name, {}), **fields}
        self.send_change(changed={name: fields})

    def remove(self, name: str) -> None:
        """Remove a tunnel from the status."""
        del self.tunnels[name]
        self.send_change(removed=[name])

    def set_status(self, **fields: Any) -> None:  # noqa: ANN401  fields of the status
        """Change the status without its tunnels."""
        self.status.update(fields)
        self.send_change(status=fields)

    def send_change(self, *, ts: float | None = None, **parts: Any) -> None:  # noqa: ANN401  parts of a change
        """Send a change to all watchers."""
        self._send(self._watchers, "change", self.change_message(ts=ts, **parts))

    @staticmethod
    def change_message(*, ts: float | None = None, **parts: Any) -> Json:  # noqa: ANN401  parts of a change
        """Return a change as ``/v1/watch`` sends it."""
        return {"ts": format_timestamp(ts or time.time()), "changed": {}, "removed": [], "status": {}, **parts}

    def send_event(self, event: Json) -> None:
        """Send an event to all watchers and readers of the log."""
        self.log.append(event)
        self._send(self._watchers, "event", event)
        self._send(self._log_readers, "event", event)

    @staticmethod
    def _send(queues: set[asyncio.Queue[bytes]], kind: str, data: Json) -> None:
        for queue in queues:
            queue.put_nowait(_encode_event(kind, data))

    # -- the API -----------------------------------------------------------------------------------------------------

    async def _visitors(self, request: web.Request) -> web.Response:
        names = request.query.getall("tunnel", list(self.tunnels))
        return web.json_response({"visitors": [one for one in self.visitors if one["tunnel"] in names]})

    async def _traffic(self, request: web.Request) -> web.Response:
        name, step = request.query["tunnel"], request.query["by"]
        if self.refusal is not None:
            return _problem(503, self.refusal)
        total = {"in": 0, "out": 0, "visitors": 0, "failed": 0, "refused": 0}
        tunnels = [{"name": name, "present": True, "total": total, "rows": self.traffic.get(step, [])}]
        until, days = "2026-11-28T14:05:00+01:00", int(request.query["days"])
        return web.json_response({"by": step, "days": days, "since": until, "until": until, "tunnels": tunnels})

    async def _test(self, request: web.Request) -> web.Response:
        if self.refusal is not None:
            return _problem(409, self.refusal)
        name = request.match_info["name"]
        self.commands.append(("test", name))
        legs = [
            {"leg": "link", "at": "here", "link": "0123456789abcdef", "target": None, "ms": 12.3, "error": None},
            {"leg": "dial", "at": "other", "link": None, "target": "db:1", "ms": None, "error": "it refused"},
        ]
        return web.json_response({"name": name, "proto": "tcp", "ok": False, "legs": legs})

    async def _kick(self, request: web.Request) -> web.Response:
        if self.refusal is not None:
            return _problem(409, self.refusal)
        body = await request.json()
        self.commands += [("kick", f"{body['visitors']} {name}") for name in body["tunnels"]]
        kicked = [one for one in self.visitors if body["visitors"] == one["id"] or body["visitors"] in one["address"]]
        self.visitors = [one for one in self.visitors if one not in kicked]
        return web.json_response({"kicked": kicked})

    def _full_status(self) -> Json:
        return {**self.status, "tunnels": list(self.tunnels.values())}

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response(self._full_status())

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        first = _encode_event("status", self._full_status())
        return await self._stream(request, self._watchers, [first])

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        names = request.query.getall("tunnel", [])
        events = [event for event in self.log if not names or event["tunnel"] in names]
        return await self._stream(request, self._log_readers, [_encode_event("event", event) for event in events])

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"".join(_encode_event("event", event) for event in self.log))
        return response

    async def _stream(
        self, request: web.Request, queues: set[asyncio.Queue[bytes]], first: list[bytes]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        with _subscribed(queues) as queue, contextlib.suppress(ConnectionError):  # the client may have left already
            await response.prepare(request)
            await response.write(b": hello\n\n" + b"".join(first))
            while True:
                await response.write(await queue.get())
        return response

    async def _tunnel(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self.tunnels:
            return _problem(404, f"no tunnel is named {name!r}")
        entry = {"url": "server://***@127.0.0.1:10101/127.0.0.1:8080", "where": "tunnels.yaml:41:3", "enabled": True}
        return web.json_response({**self.tunnels[name], **entry, "settings": SETTINGS})

    async def _command(self, request: web.Request) -> web.Response:
        name, verb = request.match_info["name"], request.match_info["verb"]
        if self.refusal:
            return _problem(409, self.refusal)
        self.commands.append((verb, name))
        self.members.append(await request.json() if request.can_read_body else {})
        return web.json_response({"name": name, "ok": True, "state": "up", "text": verb})

    async def _plan(self, _: web.Request) -> web.Response:
        return web.json_response(self.plan)

    async def _reload(self, _: web.Request) -> web.Response:
        self.commands.append(("reload", ""))
        return web.json_response(self.result)


def _problem(status: int, detail: str) -> web.Response:
    problem = {"type": "about:blank", "title": "refused", "status": status, "detail": detail}
    return web.json_response(problem, status=status, content_type="application/problem+json")


@contextlib.contextmanager
def _subscribed(queues: set[asyncio.Queue[bytes]]) -> Iterator[asyncio.Queue[bytes]]:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    queues.add(queue)
    try:
        yield queue
    finally:
        queues.discard(queue)


def _encode_event(kind: str, data: Json) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


@contextlib.asynccontextmanager
async def changing_counters(daemon: FakeDaemon, interval: float) -> AsyncIterator[None]:
    """Change the counters of every tunnel every ``interval`` seconds, until the end of the block."""

    async def change_counters() -> None:
        while True:
            await asyncio.sleep(interval)
            for known in daemon.tunnels.values():
                active = random.randrange(64)
                counted = known["bytes"]
                known.update(
                    bytes={"in": counted["in"] + 1000 * active, "out": counted["out"] + 50_000 * active},
                    connections=connections(active),
                    pool={"idle": random.randrange(17), "capacity": 16, "dialing": 0, "min": 8, "max": 1024},
                    signals={"queued": random.randrange(4), "limit": 1024, "total": counted["in"]},
                    rtt_ms=random.uniform(0.2, 30),
                )
            keys = ("bytes", "connections", "pool", "signals", "rtt_ms")
            daemon.send_change(changed={name: {key: t[key] for key in keys} for name, t in daemon.tunnels.items()})

    task = asyncio.create_task(change_counters())
    try:
        yield
    finally:
        task.cancel()


async def _main(socket: Path, count: int, interval: float) -> None:
    tunnels = [tunnel(f"edge-{n}") for n in range(count)] if count else mixed()
    async with FakeDaemon(socket, tunnels) as daemon, changing_counters(daemon, interval):
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("socket", type=Path)
    parser.add_argument("--tunnels", type=int, default=0)
    parser.add_argument("--interval", type=float, default=0.25)
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(given.socket, given.tunnels, given.interval))
