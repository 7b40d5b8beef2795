"""The listening sockets of a tunnel: bound together or not at all, and inherited by the engine that replaces it."""

from __future__ import annotations

import errno
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from tunnel.model.address import Address
from tunnel.model.spec import Direction, Mode, Proto, Role, TunnelSpec
from tunnel.runtime import resolver, sockets
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tunnel.runtime.acceptor import Acceptor
    from tunnel.runtime.datagram_acceptor import DatagramAcceptor
    from tunnel.runtime.resolver import Candidate
    from tunnel.runtime.sockets import SockAddr

    OpenSocket = Callable[[socket.AddressFamily, SockAddr], socket.SocketType]

TUNNEL: Final = "the tunnel"
DATA: Final = "data connections"
VISITORS: Final = "visitors"
UDP_VISITORS: Final = "UDP visitors"
VISITOR_PURPOSES: Final = {Proto.TCP: VISITORS, Proto.UDP: UDP_VISITORS}
"""Where visitors arrive, by what they speak."""

_MAX_PORT_CHOICES: Final = 20
"""Random ports of TCP that are tried until one is free for UDP, too."""

_NOT_OWN_ADDRESS: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


def decide_direction(spec: TunnelSpec) -> Direction:
    """Return a server's direction, from its URL alone and never from timing.

    In ``auto``, a target on this host is where visitors are accepted (reverse). Any other target, and each of several,
    is dialled (forward).
    """
    if spec.mode is not Mode.AUTO:
        return Direction(spec.mode.value)
    if spec.targets:
        return Direction.FORWARD
    return Direction.REVERSE if resolver.is_this_host(spec.target) else Direction.FORWARD


def is_ingress(spec: TunnelSpec, direction: Direction) -> bool:
    """Whether this end of the tunnel accepts the visitors."""
    return (spec.role is Role.SERVER) is (direction is Direction.REVERSE)


def visitor_addresses(spec: TunnelSpec, direction: Direction | None) -> dict[str, Address]:
    """Return where a tunnel accepts visitors, if it does; None: a client that does not know its direction yet."""
    if spec.publish_rules:
        return {}
    if direction is not None and is_ingress(spec, direction) and not spec.targets:
        return {VISITOR_PURPOSES[proto]: spec.target for proto in spec.proto.parts}
    return {}


def data_address(spec: TunnelSpec) -> Address | None:
    """Return where a server accepts data connections, if not on the tunnel port alone."""
    return None if spec.data_port is None else Address(spec.tunnel.host, spec.data_port)


def can_take_over(acceptor: Acceptor | DatagramAcceptor, address: Address | None) -> bool:
    """Return whether a listener may go to a successor that wants to listen on ``address`` for the same purpose."""
    return acceptor.requested_address == address and bool(acceptor.requested_address.port)


async def bind(
    spec: TunnelSpec,
    addresses: Mapping[str, Address],
    inherited: Mapping[str, Acceptor | DatagramAcceptor] | None = None,
) -> dict[str, socket.SocketType]:
    """Return a listener for each address. Raises NetError; then nothing has changed.

    ``inherited`` are the listeners of the engine that is being replaced. One on exactly the same address is taken over
    with all connections in its backlog, once everything else is bound.
    """
    reused = {
        purpose: acceptor
        for purpose, acceptor in (inherited or {}).items()
        if can_take_over(acceptor, addresses.get(purpose))
    }
    bound = await _bind_new({purpose: each for purpose, each in addresses.items() if purpose not in reused}, spec)
    for purpose, acceptor in reused.items():
        listener = acceptor.detach_listener()
        bound[purpose] = listener if listener is not None else await _listen_for(purpose, addresses[purpose])
    return bound


async def _bind_new(addresses: Mapping[str, Address], spec: TunnelSpec) -> dict[str, socket.SocketType]:
    """Return a new listener for each address. Raises NetError, and then none is open."""
    wanted = addresses.get(UDP_VISITORS)
    if wanted is not None and not wanted.port and VISITORS in addresses:
        for _ in range(_MAX_PORT_CHOICES - 1):  # a random port of TCP may be in use for UDP
            try:
                return await _bind_all(addresses, spec)
            except NetError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
    return await _bind_all(addresses, spec)


async def _bind_all(addresses: Mapping[str, Address], spec: TunnelSpec) -> dict[str, socket.SocketType]:
    bound: dict[str, socket.SocketType] = {}
    for purpose, address in addresses.items():
        try:
            bound[purpose] = await _listen_for(purpose, _with_same_port(address, bound))
        except BaseException as error:
            close(bound)
            if isinstance(error, NetError) and purpose in VISITOR_PURPOSES.values():
                raise _with_hint(error, spec) from None
            raise
    return bound


def _with_same_port(address: Address, bound: Mapping[str, socket.SocketType]) -> Address:
    """Return an address without a port with the port that TCP visitors have: those of UDP use the same one."""
    if address.port or VISITORS not in bound:
        return address
    return Address(address.host, int(bound[VISITORS].getsockname()[1]))


async def _listen_for(purpose: str, address: Address) -> socket.SocketType:
    if purpose == UDP_VISITORS:
        from tunnel.runtime.datagram_port import open_visitor_socket  # noqa: PLC0415  only for visitors of UDP

        return await _open_on(address, purpose, open_visitor_socket)
    return await listen(address, purpose, client_speaks_first=purpose == DATA)


async def listen(address: Address, purpose: str, *, client_speaks_first: bool = False) -> socket.SocketType:
    """Open a non-blocking listener on an address; an empty host or ``::`` accepts IPv4 as well, as in Go.

    Of a name's addresses, the first that this host has is used, IPv4 before IPv6. ``purpose`` is named in the error.
    Raises NetError, with ``errno``.
    """
    return await _open_on(address, purpose, partial(sockets.open_listener, client_speaks_first=client_speaks_first))


async def _open_on(address: Address, purpose: str, open_socket: OpenSocket) -> socket.SocketType:
    try:
        if not address.host:
            return _open_on_every_interface(address.port, open_socket)
        candidates = sorted(await resolver.resolve(address), key=lambda candidate: candidate[0] != socket.AF_INET)
        return _open_on_first(candidates, open_socket)
    except OSError as error:
        reason = sockets.describe_bind_error(error)
        raise NetError(f"cannot listen on {address} for {purpose}: {reason}", error.errno) from None


def _open_on_every_interface(port: int, open_socket: OpenSocket) -> socket.SocketType:
    """Listen on IPv6 and IPv4, or on IPv4 alone where this host has no IPv6. Raises OSError."""
    candidates: list[Candidate] = [(socket.AF_INET6, ("::", port, 0, 0)), (socket.AF_INET, ("0.0.0.0", port))]
    return _open_on_first(candidates, open_socket)


def _open_on_first(candidates: Sequence[Candidate], open_socket: OpenSocket) -> socket.SocketType:
    """Listen on the first of several addresses that this host has. Raises OSError.

    A name may have addresses of other hosts too: of a replica, of the router in front of an IPv6-only host.
    """
    for family, sockaddr in candidates[:-1]:
        try:
            return open_socket(family, sockaddr)
        except OSError as error:
            if error.errno not in _NOT_OWN_ADDRESS:
                raise
    family, sockaddr = candidates[-1]
    return open_socket(family, sockaddr)


def close(listeners: dict[str, socket.SocketType]) -> None:
    """Close bound listeners that no acceptor owns yet."""
    while listeners:
        listeners.popitem()[1].close()


def _with_hint(error: NetError, spec: TunnelSpec) -> NetError:
    """Add the likely intention where a server's target address is in use: that it is dialled."""
    if spec.role is not Role.SERVER or spec.mode is not Mode.AUTO or error.errno != errno.EADDRINUSE:
        return error
    return NetError(f"{error}; if the target is a service to be dialled from here, add mode=forward", error.errno)
