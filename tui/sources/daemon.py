"""The local API of one daemon as a source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from orchestrator.client import MAX_NAMED_TUNNELS
from orchestrator.process.terminal_text import load_printable_json
from tui.sources.base import (
    Disconnected,
    EventReceived,
    SourceError,
    SourceHeartbeat,
    SourceInfo,
    SourceMessage,
    StatusChanged,
    StatusReceived,
)
from tui.sources.sse import SseError, SseParser

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from orchestrator.status.json_types import (
        CommandResultJson,
        KickJson,
        PlanJson,
        ReloadJson,
        TrafficJson,
        TunnelTestJson,
        VisitorsJson,
    )
    from tui.model.messages import EventData, TunnelDetails

_UPDATE_INTERVAL_S: Final = 0.25
"""Between two changes of the status, as requested from the API."""
_SILENCE_TIMEOUT_S: Final = 15.0
"""Three missed heartbeats of the stream."""
_ANSWER_TIMEOUT_S: Final = 20.0
_TEST_TIMEOUT_S: Final = 30.0  # for a target that does not answer
_MIN_RETRY_DELAY_S: Final = 0.2
_MAX_RETRY_DELAY_S: Final = 2.0
_MESSAGES: Final[dict[str, type[StatusReceived | StatusChanged | EventReceived]]] = {
    "status": StatusReceived, "change": StatusChanged, "event": EventReceived,
}  # fmt: skip


class ApiSource:
    """A daemon's local API, at a Unix socket or (with its token) at an ``http://`` address.

    The HTTP session belongs to the source; ``close`` or leaving the context closes it.
    """

    info = SourceInfo("daemon")

    def __init__(self, where: Path | str, token: str | None = None) -> None:
        self._where = where
        self._base = URL("http://localhost" if isinstance(where, Path) else where)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http: aiohttp.ClientSession | None = None

    @property
    def place(self) -> str:
        """``unix:PATH`` or the URL."""
        return f"unix:{self._where}" if isinstance(self._where, Path) else self._where

    def _http_session(self) -> aiohttp.ClientSession:
        """Return the session, created inside the event loop that uses it."""
        if self._http is None:
            is_unix = isinstance(self._where, Path)
            connector = aiohttp.UnixConnector(str(self._where)) if is_unix else aiohttp.TCPConnector()
            timeout = aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S)
            self._http = aiohttp.ClientSession(self._base, connector=connector, headers=self._headers, timeout=timeout)
        return self._http

    async def close(self) -> None:
        """Close the HTTP session with its connections."""
        if self._http is not None:
            await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def set_visible(self, names: Collection[str]) -> None:
        """Do nothing: the API sends the counters of all tunnels as they change."""

    async def watch(self) -> AsyncIterator[SourceMessage]:
        """Yield messages without end; after a lost connection retry at once, later every two seconds."""
        delay = _MIN_RETRY_DELAY_S
        while True:
            try:
                async for frames in self._stream("/v1/watch", [("interval", str(_UPDATE_INTERVAL_S))]):
                    delay = _MIN_RETRY_DELAY_S
                    if not frames:
                        yield SourceHeartbeat()
                    for kind, data in frames:
                        if kind in _MESSAGES:
                            yield _MESSAGES[kind](data)
                reason = "it closed the connection"
            except SourceError as error:
                reason = str(error)
            yield Disconnected(reason)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _MAX_RETRY_DELAY_S)

    async def stream_log(self, names: Sequence[str], lines: int) -> AsyncIterator[EventData]:
        """Yield the last events and each new one, of every level: the log pane has its own filter."""
        query = [*(("tunnel", name) for name in names), ("n", str(lines)), ("level", "debug"), ("follow", "true")]
        async for frames in self._stream("/v1/logs", query):
            for _, data in frames:
                yield data

    async def fetch_events(self, lines: int) -> list[EventData]:
        """Return the last state changes, reloads and commands."""
        query = [("n", str(lines)), ("follow", "false")]
        return [data async for frames in self._stream("/v1/events", query) for _, data in frames]

    async def fetch_tunnel(self, name: str) -> TunnelDetails:
        """Return one tunnel with its URL, its settings and its place in the file."""
        details: TunnelDetails = await self._request_json("GET", f"/v1/tunnels/{quote(name, safe='')}")
        return details

    async def fetch_traffic(self, name: str, step: str, days: int) -> TrafficJson:
        """Return what a tunnel carried in the last ``days`` days, by hour, day or month."""
        query = urlencode([("tunnel", name), ("by", step), ("days", days)])
        traffic: TrafficJson = await self._request_json("GET", f"/v1/traffic?{query}")
        return traffic

    async def send_command(self, verb: str, name: str, member: Mapping[str, str] | None = None) -> CommandResultJson:
        """Send a command for one tunnel, or one link or target of it, and return its result."""
        path = f"/v1/tunnels/{quote(name, safe='')}/{verb}"
        body = {"json": dict(member)} if member else {}
        result: CommandResultJson = await self._request_json("POST", path, **body)
        return result

    async def test(self, name: str) -> TunnelTestJson:
        """Have the daemon time each leg of a tunnel."""
        timeout = aiohttp.ClientTimeout(total=_TEST_TIMEOUT_S)
        path = f"/v1/tunnels/{quote(name, safe='')}/test"
        found: TunnelTestJson = await self._request_json("POST", path, timeout=timeout)
        return found

    async def fetch_plan(self) -> PlanJson:
        """Return what a reload would change."""
        plan: PlanJson = await self._request_json("GET", "/v1/plan")
        return plan

    async def fetch_visitors(self, names: Sequence[str]) -> VisitorsJson:
        """Return the visitors of some tunnels."""
        wanted = frozenset(names)
        query = [("tunnel", name) for name in wanted] if len(wanted) <= MAX_NAMED_TUNNELS else []
        answer: VisitorsJson = await self._request_json("GET", "/v1/visitors", params=query)
        return answer if query else {"visitors": [one for one in answer["visitors"] if one["tunnel"] in wanted]}

    async def kick(self, which: str, names: Sequence[str]) -> KickJson:
        """Disconnect visitors of some tunnels and return them."""
        body = {"visitors": which, "tunnels": list(names)}
        kicked: KickJson = await self._request_json("POST", "/v1/kick", json=body)
        return kicked

    async def reload(self, host: str = "") -> ReloadJson:
        """Reload the file; ``host`` has no meaning for a single daemon."""
        result: ReloadJson = await self._request_json("POST", "/v1/reload")
        return result

    async def _request_json(self, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401  the caller knows its type
        async with self._request(method, path, **options) as response:
            return load_printable_json((await response.read()).decode())

    async def _stream(self, path: str, query: Sequence[tuple[str, str]]) -> AsyncIterator[list[tuple[str, Any]]]:
        """Yield the (kind, data) of the events in each chunk; an empty list is a heartbeat."""
        parser = SseParser()
        timeout = aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_TIMEOUT_S, sock_connect=_ANSWER_TIMEOUT_S)
        async with self._request("GET", path, params=list(query), timeout=timeout) as response:
            async for chunk in response.content.iter_any():
                yield [(kind, load_printable_json(data)) for kind, data in parser.receive_data(chunk)]

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:  # noqa: ANN401  aiohttp's own
        """Yield a successful response; turn every failure, also inside the block, into a SourceError."""
        try:
            # names in paths are percent-encoded here: yarl must not encode them again
            url = URL(path, encoded=True)
            async with self._http_session().request(method, url, **options) as response:
                if response.status >= 400:
                    raise SourceError(_refusal_text(response.status, await response.read()))
                yield response
        except TimeoutError:
            raise SourceError("it does not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise SourceError(_failure_text(error)) from None
        except (ValueError, SseError):
            raise SourceError("its answer is not that of a nodepass-orch daemon") from None


def _refusal_text(status: int, body: bytes) -> str:
    try:
        answer = load_printable_json(body.decode())
        return str(answer.get("detail") or answer.get("title") or answer.get("text"))
    except (ValueError, AttributeError):
        return "the token is missing or wrong" if status == 401 else f"it answered with HTTP status {status}"


def _failure_text(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, (FileNotFoundError, ConnectionRefusedError)):
        return "no daemon listens there"
    if isinstance(cause, PermissionError):
        return "it belongs to another user"
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionResetError)):
        return "the connection was lost"
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(error)
    return text or "the connection failed"
