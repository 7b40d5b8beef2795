"""The messages between the supervisor and a worker process, and the channel that carries them.

The channel is a socket pair that the supervisor made and one worker inherited; no other process can reach it.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from tunnel.model.events import Event
    from tunnel.model.snapshot import Snapshot
    from tunnel.model.spec import TunnelSpec
    from tunnel.model.tunnel_test import LegResult
    from tunnel.model.visitors import VisitorSelector, VisitorView

MAX_FRAME_BYTES: Final = 64 << 20
"""Bytes of a frame; one end never sends more."""

_HEADER: Final = struct.Struct("!I")
_MAX_MESSAGES_PER_FRAME: Final = 256
_CLOGGED_BYTES: Final = 4 << 20  # not yet sent: the other end does not seem to read


# --- requests of the supervisor; ``engine`` is the number that names an engine on both sides --------------------------


@dataclass(frozen=True, slots=True)
class CreateEngine:
    """Create an engine with this number."""

    engine: int
    name: str
    spec: TunnelSpec


@dataclass(frozen=True, slots=True)
class PrepareEngine:
    """Bind the engine's listeners while its predecessor serves; answered with EnginePrepared."""

    engine: int
    predecessor: int


@dataclass(frozen=True, slots=True)
class RunEngine:
    """Run an engine; EngineEnded follows at its end."""

    engine: int


@dataclass(frozen=True, slots=True)
class DrainEngine:
    """Let the present visitors finish; ``timeout`` in seconds, None: SHUTDOWN_TIMEOUT."""

    engine: int
    timeout: float | None


@dataclass(frozen=True, slots=True)
class CloseEngine:
    """Close everything of an engine now."""

    engine: int


@dataclass(frozen=True, slots=True)
class RetryEngine:
    """End an engine's cooldown."""

    engine: int


@dataclass(frozen=True, slots=True)
class DrainTarget:
    """Give one of an engine's targets no new visitors, or new ones again."""

    engine: int
    address: str
    is_drained: bool


@dataclass(frozen=True, slots=True)
class DrainLink:
    """Give one of an engine's links no new visitors, or new ones again."""

    engine: int
    ident: str
    is_drained: bool


@dataclass(frozen=True, slots=True)
class UpdateSpec:
    """Apply log level and settings of a changed spec to an engine."""

    engine: int
    spec: TunnelSpec


@dataclass(frozen=True, slots=True)
class ListVisitors:
    """List an engine's visitors; answered with slices that carry the number ``request``."""

    engine: int
    request: int


@dataclass(frozen=True, slots=True)
class KickVisitors:
    """Disconnect visitors; answered with slices of what was disconnected, as ListVisitors."""

    engine: int
    request: int
    selector: VisitorSelector


@dataclass(frozen=True, slots=True)
class TimeLegs:
    """Time the legs of a visitor's way; answered by a TunnelTested with the number ``request``."""

    engine: int
    request: int


@dataclass(frozen=True, slots=True)
class SetRefusal:
    """Refuse new visitors of an engine for a reason; None: serve them."""

    engine: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class StartAccessLog:
    """Send VisitorsLeft for the visitors of all engines that are created from now on."""


@dataclass(frozen=True, slots=True)
class DiscardEngine:
    """Close an engine and forget it, without an answer."""

    engine: int


Request = (
    CreateEngine
    | PrepareEngine
    | RunEngine
    | DrainEngine
    | CloseEngine
    | RetryEngine
    | DrainTarget
    | DrainLink
    | UpdateSpec
    | ListVisitors
    | KickVisitors
    | TimeLegs
    | SetRefusal
    | StartAccessLog
    | DiscardEngine
)


# --- notifications of a worker ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerAlive:
    """The worker's event loop runs."""


@dataclass(frozen=True, slots=True)
class SnapshotBatch:
    """Engines that changed since they were last sent."""

    snapshots: tuple[tuple[int, Snapshot], ...]


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """An event of an engine."""

    engine: int
    event: Event


@dataclass(frozen=True, slots=True)
class EnginePrepared:
    """An engine has bound its listeners; or it could not, with a sentence and the errno where there is one."""

    engine: int
    error: str | None = None
    errno: int | None = None


@dataclass(frozen=True, slots=True)
class EngineEnded:
    """An engine has ended; where it crashed, with a description of the crash and its innermost frames."""

    engine: int
    last: Snapshot | None
    crash: str | None = None
    frames: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VisitorSlice:
    """Some of the visitors that a request asked for; the last slice of a request is empty."""

    engine: int
    request: int
    visitors: tuple[VisitorView, ...]

    @property
    def is_last(self) -> bool:
        """Whether no further slice follows."""
        return not self.visitors


@dataclass(frozen=True, slots=True)
class TunnelTested:
    """The legs that a TimeLegs has timed."""

    engine: int
    request: int
    legs: tuple[LegResult, ...]


@dataclass(frozen=True, slots=True)
class VisitorsLeft:
    """Lines for the access log, and the number of those that were lost since the last ones."""

    data: bytes
    lines: int
    lost: int


Notification = (
    WorkerAlive
    | SnapshotBatch
    | EngineEvent
    | EnginePrepared
    | EngineEnded
    | VisitorSlice
    | TunnelTested
    | VisitorsLeft
)

REQUEST_KINDS: Final[tuple[type, ...]] = get_args(Request)
"""What a worker receives; it refuses everything else."""

NOTIFICATION_KINDS: Final[tuple[type, ...]] = get_args(Notification)
"""What the supervisor receives; it refuses everything else."""


# --- frames -----------------------------------------------------------------------------------------------------------


class IpcError(OrchestratorError):
    """Received data that this version of the program does not send; the message is the end of a sentence."""


def encode(messages: Sequence[Request | Notification]) -> bytes:
    """The messages as one frame."""
    body = pickle.dumps(tuple(messages), protocol=5)
    return _HEADER.pack(len(body)) + body


class IpcDecoder:
    """Turns received bytes back into messages of certain kinds, however they are split."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self._kinds = kinds
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that ``data`` completes. Raises IpcError."""
        self._buffer += data
        found: list[Any] = []
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise IpcError("it sent a message that is too long")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            found += _decode(bytes(memoryview(self._buffer)[_HEADER.size : end]), self._kinds)
            del self._buffer[:end]
        return found


def _decode(body: bytes, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    text = "it runs another version; was the program replaced while it runs? Restart the daemon"
    try:
        # Both ends are this program, run by one user, on a socket without a name: no other process can send anything.
        messages: tuple[Any, ...] = pickle.loads(body)  # noqa: S301
        is_known = all(type(message) in kinds for message in messages)
    except Exception as error:  # unpickling raises any exception
        raise IpcError(text) from error
    if not is_known:
        raise IpcError(text)
    return messages


class IpcChannel(asyncio.Protocol):
    """One end of the channel. Messages that are sent in one turn of the event loop leave together, in order."""

    def __init__(
        self, kinds: tuple[type, ...], on_message: Callable[[Any], None], on_lost: Callable[[str | None], None]
    ) -> None:
        """Receive messages of these kinds.

        ``on_message`` must not raise; ``on_lost`` is called once, with the fault if there was one.
        """
        self._on_message = on_message
        self._on_lost = on_lost
        self._decoder = IpcDecoder(kinds)
        self._pending: list[Request | Notification] = []
        self._transport: asyncio.WriteTransport | None = None
        self._fault: str | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def is_clogged(self) -> bool:
        """Whether the other end has not read for a while: drop or postpone what is not necessary."""
        return self._transport is not None and self._transport.get_write_buffer_size() > _CLOGGED_BYTES

    def send(self, message: Request | Notification) -> None:
        """Send a message; it is dropped once the channel is closed or lost."""
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(message)

    def close(self) -> None:
        """Send what is pending, then close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close without sending what is pending."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if self._transport is None or self._transport.is_closing():
            return
        for start in range(0, len(pending), _MAX_MESSAGES_PER_FRAME):
            self._transport.write(encode(pending[start : start + _MAX_MESSAGES_PER_FRAME]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the channel is open."""
        assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101  for the type; a socket's always is
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes have arrived."""
        try:
            messages = self._decoder.feed(data)
        except IpcError as error:
            self._fault = str(error)
            self.abort()
            return
        for message in messages:
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the channel is closed."""
        self._on_lost(self._fault)
