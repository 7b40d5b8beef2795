"""The drain of an end: it accepts no new visitors, and the present ones may finish within a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tunnel.protocol.frames import Goodbye
from tunnel.runtime.tasks import cancel_and_wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from tunnel.engine.link_set import LinkSet
    from tunnel.engine.tunnel_end import TunnelEnd


async def drain_visitors(
    end: TunnelEnd | None,
    links: LinkSet,
    close_listeners: Callable[[], None],
    cut_requested: asyncio.Event,
    timeout_s: float,
    grace_s: float,
) -> None:
    """Stop accepting, then wait until the visitors have left, ``timeout_s`` is over, or ``cut_requested`` is set.

    What is left then is disconnected. ``grace_s`` is how long the other ends may take to close their links. The caller
    still owns the end, the links and the listeners. Safe to cancel.
    """
    if end is not None:
        end.start_drain(Goodbye.SHUTDOWN)
    finishing = asyncio.create_task(_finish_visitors(end, links, close_listeners, grace_s))
    cutting = asyncio.create_task(cut_requested.wait())
    try:
        await asyncio.wait({finishing, cutting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if finishing.done():
            finishing.result()
    finally:
        await cancel_and_wait(finishing)
        await cancel_and_wait(cutting)
    if end is not None:
        await end.relays.close_gradually()


async def _finish_visitors(
    end: TunnelEnd | None, links: LinkSet, close_listeners: Callable[[], None], grace_s: float
) -> None:
    """Close listeners and links as soon as no visitor needs them, and wait for the relays.

    They close early so that the other end can turn to the engine that replaces this one.
    """
    if end is not None:
        await end.wait_queue_empty()  # visitors in the queue need data connections, which need a listener
    close_listeners()
    if end is not None:
        await end.wait_links_unneeded(grace_s)
    for link in links:
        link.close("this end is shutting down", goodbye=Goodbye.SHUTDOWN)
    if end is not None:
        await end.wait_idle()
