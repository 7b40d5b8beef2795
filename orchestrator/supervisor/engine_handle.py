"""What the supervisor uses of an engine, whichever process the engine runs in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tunnel.model.spec import TunnelSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tunnel.model.events import EventSink
    from tunnel.model.snapshot import Snapshot, TrafficReading
    from tunnel.model.tunnel_test import LegResult
    from tunnel.model.visitors import VisitorSelector, VisitorView


class EngineHandle(Protocol):
    """What the supervisor uses of an engine, in this process or in a worker."""

    async def prepare(self, predecessor: Any) -> None:  # noqa: ANN401  an engine of the same kind
        """Before ``run``: bind the listeners while the predecessor serves. Raises NetError, with nothing changed."""

    async def run(self) -> None:
        """Run until drained, closed or failed. Raises only on a crash."""

    def drain(self, timeout: float | None = None) -> None:
        """Accept no new visitors; the present ones may finish within ``timeout`` seconds."""

    def close(self) -> None:
        """Close every connection and listener now."""

    def retry(self) -> None:
        """End a cooldown: make the next attempt now."""

    def set_target_drained(self, address: str, *, is_drained: bool) -> None:
        """Give one of several targets no new visitors, or new ones again; nothing happens if it is gone."""

    def set_link_drained(self, ident: str, *, is_drained: bool) -> None:
        """Give one of several links no new visitors, or new ones again; nothing happens if it is gone."""

    def apply_live_settings(self, spec: TunnelSpec) -> None:
        """Apply another log level and other settings; no connection is affected."""

    def set_refusal(self, reason: str | None) -> None:
        """Refuse new visitors for this reason from now on; None: serve them."""

    def snapshot(self) -> Snapshot:
        """The engine as it is now."""

    def read_traffic(self) -> TrafficReading:
        """The bytes relayed so far, and the visitors present, as in a snapshot."""

    def visitors(self) -> AsyncIterator[Sequence[VisitorView]]:
        """Yield the present visitors in slices. Raises EngineSilentError."""

    async def kick(self, selector: VisitorSelector) -> list[VisitorView]:
        """Disconnect visitors at once; return what was disconnected. Raises EngineSilentError."""

    async def test(self) -> Sequence[LegResult]:
        """Time the legs of a visitor's way that this end can time. Raises EngineSilentError."""


EngineFactory = Callable[[str, TunnelSpec, "EventSink"], EngineHandle]
