"""Which options, addresses and targets of a tunnel do not go together, although each is valid alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.model.errors import UrlError
from tunnel.model.servers import MAX_SERVERS
from tunnel.model.spec import DataTls, Direction, Mode, ProxyVersion, Role
from tunnel.model.targets import MAX_TARGETS

if TYPE_CHECKING:
    from tunnel.model.address import Address
    from tunnel.model.spec import TunnelSpec


def check_combinations(spec: TunnelSpec) -> None:
    """Raise UrlError for options that are valid alone and not together."""
    if (spec.tls_cert is None) != (spec.tls_key is None):
        raise UrlError("tls_cert and tls_key go together: a certificate needs its private key", 0)
    if spec.role is Role.SERVER and spec.data_tls is DataTls.VERIFIED and spec.tls_cert is None:
        raise UrlError("tls=2 on a server needs tls_cert and tls_key, because the client verifies them", 0)
    if spec.role is Role.CLIENT and spec.clients != 1:
        raise UrlError("clients is an option of the server; a client that is one of several says weight or backup", 0)
    if spec.role is Role.SERVER and (spec.weight != 1 or spec.backup):
        raise UrlError("weight and backup are options of a client; a server has clients, balance and slowstart", 0)
    if spec.tls_ca is not None and spec.data_tls is not DataTls.VERIFIED:
        raise UrlError("tls_ca verifies nothing without tls=2; write tls=2, or remove tls_ca", 0)
    _check_proto(spec)
    _check_publish(spec)
    for target in (each.address for each in spec.members):
        if any(_is_same_address(tunnel, target) for tunnel in spec.tunnels):
            message = "the tunnel and the target have the same address, {}; they need different ports"
            raise UrlError(message, 0, target)
    if spec.mode != Mode.AUTO and not _listens_on_target(spec) and spec.target.port == 0:
        raise UrlError("the target address is dialled in this mode, so its port cannot be 0", 0)
    _check_servers(spec)
    _check_targets(spec)


def _check_proto(spec: TunnelSpec) -> None:
    """Raise UrlError for options of TCP alone in a tunnel with visitors of UDP."""
    if not spec.proto.has_udp:
        return
    if spec.proxy is ProxyVersion.V1:
        raise UrlError("proxy=v1 is a line before a TCP stream; for proto={} write proxy=v2", 0, spec.proto.value)
    if spec.proxy_from:
        message = "proxy_from reads the headers of TCP connections alone; remove proxy_from or proto={}"
        raise UrlError(message, 0, spec.proto.value)
    if spec.rate is not None or spec.visitor_rate is not None:
        message = "rate and visitor_rate limit TCP alone; write none for both, or remove proto={}"
        raise UrlError(message, 0, spec.proto.value)


def _check_publish(spec: TunnelSpec) -> None:
    """Raise UrlError for a client that cannot publish what it asks for."""
    if spec.publish is None:
        return
    if spec.role is Role.SERVER:
        raise UrlError("publish=PORT is an option of a client; a server has publish: with ports and services", 0)
    if not spec.service:
        raise UrlError("publish needs a service= that names what is published", 0)
    if spec.mode is Mode.FORWARD:
        raise UrlError("publish asks the server to accept visitors, which mode=forward does not do; remove one", 0)


def _check_servers(spec: TunnelSpec) -> None:
    """Raise UrlError for several servers of which one is given twice, and for too many."""
    seen: set[tuple[str, int]] = set()
    for address in spec.tunnels:
        place = (address.host.lower(), address.port)  # RFC 4343: the case of a host name means nothing
        if place in seen:
            raise UrlError("the server {} is given twice", 0, address)
        seen.add(place)
    if len(seen) > MAX_SERVERS:
        raise UrlError(f"there are {{}} servers; {MAX_SERVERS} at most", 0, len(seen))
    has_shares = any(server.weight != 1 or server.is_backup for server in spec.server_shares)
    if has_shares and spec.mode is Mode.REVERSE:
        message = "weight and backup of a server share visitors that this client accepts; with mode=reverse the servers"
        raise UrlError(f"{message} accept them; remove weight and backup, or write mode=forward", 0)


def _check_targets(spec: TunnelSpec) -> None:
    """Raise UrlError for several targets that cannot work."""
    if not spec.targets:
        return
    if spec.mode is not Mode.AUTO and _listens_on_target(spec):
        raise UrlError(
            "several targets are dialled; with mode={} this end accepts visitors instead", 0, spec.mode.value
        )
    seen: set[Address] = set()
    for each in spec.targets:
        if each.address in seen:
            raise UrlError("the target {} is given twice", 0, each.address)
        if each.address.port == 0:
            raise UrlError("the target {} is dialled, so its port cannot be 0", 0, each.address)
        seen.add(each.address)
    if len(seen) > MAX_TARGETS:
        raise UrlError(f"there are {{}} targets; {MAX_TARGETS} at most", 0, len(seen))
    if not any(each.weight for each in spec.targets):
        raise UrlError("every target has the weight 0, so no visitor can be served", 0)


def _is_same_address(tunnel: Address, target: Address) -> bool:
    return tunnel.port != 0 and tunnel.port == target.port and _is_same_host(tunnel, target)


def _is_same_host(one: Address, other: Address) -> bool:
    """Whether two addresses mean the same interface of a host, as far as they show it."""
    wildcards = one.is_wildcard + other.is_wildcard
    has_loopback = one.is_loopback or other.is_loopback
    is_localhost = one.is_loopback and other.is_loopback and "localhost" in {one.host.lower(), other.host.lower()}
    is_equal = (one.ip or one.host.lower()) == (other.ip or other.host.lower())
    return is_equal or wildcards == 2 or (wildcards == 1 and has_loopback) or is_localhost


def _listens_on_target(spec: TunnelSpec) -> bool:
    ingress = Role.SERVER if spec.mode.value == Direction.REVERSE.value else Role.CLIENT
    return spec.role is ingress
