"""The addresses that entries want to listen on, and which of them exclude each other.

Servers with the same tunnel address share its port, and its data port, if their services differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from orchestrator.config.manifest import addresses_conflict
from tunnel.model.address import Address
from tunnel.model.spec import DATAGRAMS, Direction, Mode, Proto, Role
from tunnel.runtime import listeners

if TYPE_CHECKING:
    from tunnel.model.spec import TunnelSpec

PUBLISHERS: Final = " publish"
"""Stands for the service of a server that lets clients publish; no service can have this name."""

HolderT = TypeVar("HolderT")


@dataclass(frozen=True, slots=True)
class AddressClaim:
    """An address that a tunnel listens on, or wants to."""

    address: Address
    tunnel: Address | None = None
    """the address of the tunnel port that it belongs to, as it is written; None: visitors are accepted there"""
    service: str = ""
    proto: Proto = Proto.TCP
    """a port of UDP is another one than that of TCP"""

    @property
    def is_shareable(self) -> bool:
        """Whether servers with another service may listen there too."""
        return self.tunnel is not None


def address_claims(spec: TunnelSpec) -> Iterator[AddressClaim]:
    """Yield the addresses a tunnel will listen on, as far as its configuration determines them.

    Port 0 is yielded as well; it conflicts with no other address.
    """
    if spec.role is Role.SERVER:
        service = PUBLISHERS if spec.publish_rules else spec.service
        yield AddressClaim(spec.tunnel, spec.tunnel, service)
        if spec.data_port:
            yield AddressClaim(Address(spec.tunnel.host, spec.data_port), spec.tunnel, service)
        if DATAGRAMS in spec.features:  # without the UDP port either the datagrams or the other entry would not work
            yield AddressClaim(spec.tunnel, spec.tunnel, service, Proto.UDP)
        if not spec.publish_rules and listeners.decide_direction(spec) is Direction.REVERSE:
            yield from visitor_claims(spec)
    elif spec.mode is Mode.FORWARD:  # in auto the server decides: the address may be one to dial
        yield from visitor_claims(spec)


def visitor_claims(spec: TunnelSpec) -> Iterator[AddressClaim]:
    """Yield where a tunnel accepts visitors if its target is that address: over TCP, UDP or both."""
    for proto in spec.proto.parts:
        yield AddressClaim(spec.target, proto=proto)


class ClaimTable(Generic[HolderT]):
    """Claims with their holders. A search compares different addresses only, not every service of a port."""

    def __init__(self) -> None:
        self._groups: dict[tuple[Proto, int], dict[tuple[Address, Address | None], dict[str, list[HolderT]]]] = {}

    def add(self, claim: AddressClaim, holder: HolderT) -> None:
        """Enter the claim of a holder, with those that were entered before."""
        ports = self._groups.setdefault((claim.proto, claim.address.port), {})
        services = ports.setdefault((claim.address, claim.tunnel), {})
        services.setdefault(claim.service, []).append(holder)

    def conflicts(self, wanted: AddressClaim) -> Iterator[tuple[AddressClaim, HolderT]]:
        """Yield the claims that exclude the wanted one, with their holders, the earliest of each address first."""
        for (address, tunnel), services in self._groups.get((wanted.proto, wanted.address.port), {}).items():
            if not wanted.address.port:
                return
            if wanted.is_shareable and (address, tunnel) == (wanted.address, wanted.tunnel):
                found = {wanted.service: services.get(wanted.service, [])}
            else:
                found = services if addresses_conflict(wanted.address, address) else {}
            for service, holders in found.items():
                for holder in holders:
                    yield AddressClaim(address, tunnel, service, wanted.proto), holder
