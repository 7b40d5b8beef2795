"""The listening sockets of a tunnel: bound together or not at all, and inherited by the engine that comes after."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from tunnel.model.address import Address
from tunnel.model.spec import Direction, Mode, Role, TunnelSpec
from tunnel.runtime import sockets
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from tunnel.runtime.acceptor import Acceptor

TUNNEL: Final = "the tunnel"
DATA: Final = "data connections"
VISITORS: Final = "visitors"


def wanted(spec: TunnelSpec, direction: Direction | None) -> dict[str, Address]:
    """What a tunnel listens on, by purpose; None: a client that does not know yet whether it is the entrance."""
    addresses = {}
    if spec.role is Role.SERVER:
        addresses[TUNNEL] = spec.tunnel
        if spec.data_port is not None:
            addresses[DATA] = Address(spec.tunnel.host, spec.data_port)
    if direction is not None and sockets.is_entrance(spec, direction):
        addresses[VISITORS] = spec.target
    return addresses


async def bind(
    spec: TunnelSpec, addresses: Mapping[str, Address], heritage: Mapping[str, Acceptor] | None = None
) -> dict[str, socket.SocketType]:
    """A listener for each address. Raises NetError; then nothing has changed.

    ``heritage`` are the listeners of the engine that goes: one on the very same address is taken from it, with all
    who wait in its backlog, once everything else is bound.
    """
    kept = {
        purpose: acceptor
        for purpose, acceptor in (heritage or {}).items()
        if addresses.get(purpose) == acceptor.asked and acceptor.asked.port
    }
    bound: dict[str, socket.SocketType] = {}
    for purpose, address in addresses.items():
        if purpose not in kept:
            try:
                bound[purpose] = await sockets.listen(address, what=purpose, client_speaks_first=purpose == DATA)
            except BaseException as error:
                close(bound)
                if isinstance(error, NetError) and purpose == VISITORS:
                    raise _hinted(error, spec) from None
                raise
    for purpose, acceptor in kept.items():
        listener = acceptor.surrender()
        bound[purpose] = listener if listener is not None else await sockets.listen(addresses[purpose], what=purpose)
    return bound


def close(listeners: dict[str, socket.SocketType]) -> None:
    """Give up listeners that nobody accepts from yet."""
    while listeners:
        listeners.popitem()[1].close()


def _hinted(error: NetError, spec: TunnelSpec) -> NetError:
    """The likely wish of somebody whose server's target is taken: to have it dialled."""
    if spec.role is not Role.SERVER or spec.mode is not Mode.AUTO or error.errno != errno.EADDRINUSE:
        return error
    hinted = NetError(f"{error}; if the target is a service to be dialled from here, add mode=forward")
    hinted.errno = error.errno
    return hinted
