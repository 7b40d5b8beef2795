"""What the supervisor and its workers say to each other, and how it crosses the border between two processes.

Each end of the border is a socket pair that the supervisor made and one worker inherited; nobody else can reach it.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from tunnel.model.events import Event
    from tunnel.model.snapshot import Snapshot
    from tunnel.model.spec import TunnelSpec

_HEAD: Final = struct.Struct("!I")
_LARGEST: Final = 64 << 20  # bytes of a frame; more is no frame of ours
_TOGETHER: Final = 256  # messages in a frame at the most
_CLOGGED: Final = 4 << 20  # bytes under way, beyond which the other end does not seem to read


# --- to a worker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Make:
    """Make an engine; from now on its number names it."""

    engine: int
    name: str
    spec: TunnelSpec


@dataclass(frozen=True, slots=True)
class Prepare:
    """Let an engine bind while its predecessor serves; Prepared is the answer."""

    engine: int
    predecessor: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run an engine; Ended comes when it is over."""

    engine: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Let the present visitors finish; ``timeout`` in seconds, None: SHUTDOWN_TIMEOUT."""

    engine: int
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Close:
    """Close everything of an engine now."""

    engine: int


@dataclass(frozen=True, slots=True)
class Retry:
    """End an engine's cooldown."""

    engine: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """Let an engine take over a changed spec."""

    engine: int
    spec: TunnelSpec


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget an engine; whatever it has is closed, and nothing more is said about it."""

    engine: int


Order = Make | Prepare | Run | Drain | Close | Retry | Adopt | Drop


# --- from a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Beat:
    """The worker's event loop turns."""


@dataclass(frozen=True, slots=True)
class Views:
    """Engines that look different from what was said of them before."""

    views: tuple[tuple[int, Snapshot], ...]


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of an engine."""

    engine: int
    event: Event


@dataclass(frozen=True, slots=True)
class Prepared:
    """An engine has bound what it needs, or could not: then a sentence, and the errno where there is one."""

    engine: int
    error: str | None = None
    errno: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An engine is over; ``defect`` and the frames it came from, where it broke."""

    engine: int
    last: Snapshot | None
    defect: str | None = None
    frames: tuple[str, ...] = ()


Report = Beat | Views | Happened | Prepared | Ended


# --- frames -----------------------------------------------------------------------------------------------------------


class BorderError(OrchestratorError):
    """What arrives is not what this version of the program sends; the message is the end of a sentence."""


def encode(messages: Sequence[Order | Report]) -> bytes:
    """The messages as one frame."""
    body = pickle.dumps(tuple(messages), protocol=5)
    return _HEAD.pack(len(body)) + body


class Decoder:
    """Frames back into messages, however they are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that ``data`` completes. Raises BorderError."""
        self._buffer += data
        found: list[Any] = []
        while len(self._buffer) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._buffer)
            if length > _LARGEST:
                raise BorderError("it sent a message without end")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                break
            found += _decode(bytes(memoryview(self._buffer)[_HEAD.size : end]))
            del self._buffer[:end]
        return found


def _decode(body: bytes) -> tuple[Any, ...]:
    try:
        # Both ends are this program, run by one user, on a socket without a name: nobody else can put anything in.
        messages: tuple[Any, ...] = pickle.loads(body)  # noqa: S301
    except Exception as error:  # what unpickling raises is without limit
        raise BorderError("it speaks differently; was the program replaced while it runs? Start it anew") from error
    return messages


class Channel(asyncio.Protocol):
    """One end of the border; what is sent in one turn of the event loop leaves together, in order."""

    def __init__(self, take: Callable[[Any], None], lost: Callable[[str | None], None]) -> None:
        """``take`` gets each message and must not raise; ``lost`` is told once, with the fault if there was one."""
        self._take = take
        self._lost = lost
        self._decoder = Decoder()
        self._pending: list[Order | Report] = []
        self._transport: asyncio.WriteTransport | None = None
        self._fault: str | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def is_clogged(self) -> bool:
        """Whether the other end has not read for a while: what can be said later, or not at all, has to wait."""
        return self._transport is not None and self._transport.get_write_buffer_size() > _CLOGGED

    def send(self, message: Order | Report) -> None:
        """Say it; into the void once the channel is closed or lost."""
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(message)

    def close(self) -> None:
        """Say what is left to say, and no more."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close it, whatever is still under way."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if self._transport is None or self._transport.is_closing():
            return
        for start in range(0, len(pending), _TOGETHER):
            self._transport.write(encode(pending[start : start + _TOGETHER]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """From asyncio."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101  for the type; a socket's always is
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """From asyncio."""
        try:
            messages = self._decoder.feed(data)
        except BorderError as error:
            self._fault = str(error)
            self.abort()
            return
        for message in messages:
            self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """From asyncio."""
        self._lost(self._fault)
