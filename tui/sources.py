"""Where the dashboard's knowledge comes from, and where its commands go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from tui.stream import EventStream, StreamError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tui.model import Json

_INTERVAL: Final = 0.25  # seconds between two changes of the picture
_SILENCE: Final = 15.0  # seconds: three heartbeats that did not come
_PATIENCE: Final = 20.0  # seconds for one answer
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Status:
    """The whole status, at the start and after every loss."""

    data: Json


@dataclass(frozen=True, slots=True)
class Change:
    """What differs from before."""

    data: Json


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of a tunnel or of the supervisor."""

    data: Json


@dataclass(frozen=True, slots=True)
class Beat:
    """Nothing has changed; the daemon is there."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The daemon does not answer; the source keeps trying. The reason is a sentence without its full stop."""

    reason: str


Heard = Status | Change | Happened | Beat | Lost


@dataclass(frozen=True, slots=True)
class Nature:
    """What kind of source it is, in the words that the screen uses."""

    teller: str
    """who answers, or does not"""
    tells_log: bool = True
    """whether the log of a tunnel is told, or only what happened to it"""


DAEMON: Final = Nature("daemon")


class RefusedError(Exception):
    """A question or a command was not answered as hoped; the message is a sentence for the user."""


class Source(Protocol):
    """One daemon, or whatever else has tunnels to show. All questions and commands raise RefusedError."""

    nature: Nature

    @property
    def place(self) -> str:
        """Where it is, for people."""

    def follow(self, names: Collection[str]) -> None:
        """These are looked at: their numbers shall be new, those of others may be older where telling all is dear."""

    def watch(self) -> AsyncIterator[Heard]:
        """Everything that happens, for ever: a loss is told and mended here."""

    def logs(self, names: Sequence[str], lines: int) -> AsyncIterator[Json]:
        """The last events of some tunnels (none: all), then each new one; ends when the daemon is lost."""

    async def events(self, lines: int) -> list[Json]:
        """The last state changes, reloads and commands."""

    async def tunnel(self, name: str) -> Json:
        """One tunnel with its URL, settings and place in the file."""

    async def command(self, verb: str, name: str) -> Json:
        """start, stop, restart, drain or retry a tunnel."""

    async def plan(self) -> Json:
        """What a reload would change."""

    async def reload(self, host: str = "") -> Json:
        """Read the file again, of one host of several; the result per entry."""

    async def close(self) -> None:
        """Ask no more."""


class ApiSource:
    """A daemon's local API, at a Unix socket or (with its token) at an ``http://`` address."""

    nature = DAEMON

    def __init__(self, where: Path | str, token: str | None = None) -> None:
        self._where = where
        self._base = URL("http://localhost" if isinstance(where, Path) else where)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._kept: aiohttp.ClientSession | None = None

    @property
    def place(self) -> str:
        """``unix:PATH`` or the address."""
        return f"unix:{self._where}" if isinstance(self._where, Path) else self._where

    def _session(self) -> aiohttp.ClientSession:
        """Made inside the loop that uses it."""
        if self._kept is None:
            unix = isinstance(self._where, Path)
            connector = aiohttp.UnixConnector(str(self._where)) if unix else aiohttp.TCPConnector()
            timeout = aiohttp.ClientTimeout(total=_PATIENCE)
            self._kept = aiohttp.ClientSession(self._base, connector=connector, headers=self._headers, timeout=timeout)
        return self._kept

    async def close(self) -> None:
        """Close every connection."""
        if self._kept is not None:
            await self._kept.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def follow(self, names: Collection[str]) -> None:
        """All numbers are told as they change."""

    async def watch(self) -> AsyncIterator[Heard]:
        """Everything that happens; after a loss, tried anew at once, then every two seconds."""
        kinds: dict[str, type[Status | Change | Happened]] = {"status": Status, "change": Change, "event": Happened}
        pause = _FIRST_PAUSE
        while True:
            try:
                async for frames in self._stream("/v1/watch", [("interval", str(_INTERVAL))]):
                    pause = _FIRST_PAUSE
                    if not frames:
                        yield Beat()
                    for kind, data in frames:
                        if kind in kinds:
                            yield kinds[kind](data)
                reason = "it ended the connection"
            except RefusedError as error:
                reason = str(error)
            yield Lost(reason)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def logs(self, names: Sequence[str], lines: int) -> AsyncIterator[Json]:
        """The last events and each new one; every level, for the pane has its own sieve."""
        query = [*(("tunnel", name) for name in names), ("n", str(lines)), ("level", "debug"), ("follow", "true")]
        async for frames in self._stream("/v1/logs", query):
            for _, data in frames:
                yield data

    async def events(self, lines: int) -> list[Json]:
        """The last state changes, reloads and commands."""
        query = [("n", str(lines)), ("follow", "false")]
        return [data async for frames in self._stream("/v1/events", query) for _, data in frames]

    async def tunnel(self, name: str) -> Json:
        """One tunnel in full."""
        return await self._ask("GET", f"/v1/tunnels/{quote(name, safe='')}")

    async def command(self, verb: str, name: str) -> Json:
        """Tell one tunnel."""
        return await self._ask("POST", f"/v1/tunnels/{quote(name, safe='')}/{verb}")

    async def plan(self) -> Json:
        """What a reload would change."""
        return await self._ask("GET", "/v1/plan")

    async def reload(self, host: str = "") -> Json:
        """Read the file again."""
        return await self._ask("POST", "/v1/reload")

    async def _ask(self, method: str, path: str) -> Json:
        async with self._request(method, path) as response:
            answer: Json = json.loads(await response.read())
            return answer

    async def _stream(self, path: str, query: Sequence[tuple[str, str]]) -> AsyncIterator[list[tuple[str, Json]]]:
        """What comes together: some (kind, data), or nothing but a sign of life."""
        events = EventStream()
        timeout = aiohttp.ClientTimeout(total=None, sock_read=_SILENCE, sock_connect=_PATIENCE)
        async with self._request("GET", path, params=list(query), timeout=timeout) as response:
            async for chunk in response.content.iter_any():
                yield [(kind, json.loads(data)) for kind, data in events.feed(chunk)]

    @asynccontextmanager
    async def _request(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:  # noqa: ANN401  aiohttp's own
        """An answer that is good; everything else is a RefusedError with a sentence."""
        try:
            # names in paths are percent-encoded by us: yarl must not do it again
            url = URL(path, encoded=True)
            async with self._session().request(method, url, **options) as response:
                if response.status >= 400:
                    raise RefusedError(_refusal(response.status, await response.read()))
                yield response
        except TimeoutError:
            raise RefusedError("it does not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RefusedError(_loss(error)) from None
        except (ValueError, StreamError):
            raise RefusedError("it does not answer as a daemon of this program does") from None


def _refusal(status: int, body: bytes) -> str:
    try:
        answer = json.loads(body)
        return str(answer.get("detail") or answer.get("title") or answer.get("text"))
    except (ValueError, AttributeError):
        return "the token is missing or wrong" if status == 401 else f"it answered with HTTP status {status}"


def _loss(error: Exception) -> str:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, (FileNotFoundError, ConnectionRefusedError)):
        return "nobody listens there"
    if isinstance(cause, PermissionError):
        return "it belongs to another user"
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionResetError)):
        return "the connection broke"
    text = getattr(cause, "strerror", None) or str(error)
    return text or "the connection failed"
