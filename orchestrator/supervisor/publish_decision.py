"""Whether a client may publish what it asks for: pure, from rules, present tunnels and the request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from orchestrator.config.address_claims import AddressClaim, ClaimTable, address_claims
from orchestrator.config.manifest import Entry
from tunnel.model.address import Address
from tunnel.model.combinations import check_combinations
from tunnel.model.errors import UrlError
from tunnel.model.publishing import is_publishable_name
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunnel.model.publishing import PublishRequest, PublishRule
    from tunnel.model.spec import TunnelSpec

SEPARATOR: Final = "/"
"""Between the name of the entry and that of the service, in the name of a published tunnel."""


def decide(server: Entry, request: PublishRequest, present: Iterable[Entry]) -> Entry | str:
    """Return the tunnel that a client of ``server`` gets for its request, or why it gets none.

    ``present`` are all entries: those of the file, and the tunnels that clients have published. The tunnel of the
    request may be one of them.
    """
    name = f"{server.name}{SEPARATOR}{request.service}"
    others = [entry for entry in present if entry.name != name or entry.publisher is None]
    if not is_publishable_name(request.service):
        return f"{request.service[:40]!r} cannot be published: its name may have letters, digits and . _ - alone"
    rule = _find_rule(server.spec, request)
    if isinstance(rule, str):
        return rule
    address = Address(request.address.host or rule.host, request.address.port)
    spec = _derive_spec(server.spec, request, rule, address)
    if spec is None:
        return f"the key {request.key_name} is none of {server.name}"
    own = [entry for entry in others if entry.publisher == server.name and entry.spec.published_by == request.key_name]
    if len(own) >= rule.max_services:
        have = f"{plural(len(own), 'service')} of the key {request.key_name} {'is' if len(own) == 1 else 'are'}"
        return f"{have} published, and {rule.max_services} may be"
    holder = next((entry for entry in present if entry.name == name), None)
    if holder is not None and holder.publisher is None:
        return f"the name {name} is taken by a tunnel of the server's file"
    if holder is not None and holder.spec.published_by != request.key_name:
        return f"the service {request.service} is published by the client with another key"
    return _find_clash(spec, others) or Entry(
        name=name,
        spec=spec,
        tags=server.tags,
        files=server.files,
        url=f"server://{spec.tunnel}/{address}?service={request.service}",
        origin=server.origin,
        publisher=server.name,
    )


def find_rule(server: TunnelSpec, request: PublishRequest) -> PublishRule | None:
    """Return the first rule that permits a request."""
    rule = _find_rule(server, request)
    return None if isinstance(rule, str) else rule


def _find_rule(server: TunnelSpec, request: PublishRequest) -> PublishRule | str:
    """Return the first rule that permits a request, or what of it no rule permits."""
    rules = [rule for rule in server.publish_rules if rule.permits_key(request.key_name)]
    if not rules:
        return f"the key {request.key_name} may publish nothing here"
    rules = [rule for rule in rules if rule.permits_service(request.service)]
    if not rules:
        return f"the key {request.key_name} may not publish a service named {request.service}"
    rules = [rule for rule in rules if rule.permits_port(request.address.port)]
    if not rules:
        return f"the key {request.key_name} may not publish {request.service} on port {request.address.port}"
    rules = [rule for rule in rules if rule.permits_host(request.address.host)]
    if not rules:
        return f"the key {request.key_name} may not publish {request.service} on {request.address}"
    return rules[0]


def _derive_spec(server: TunnelSpec, request: PublishRequest, rule: PublishRule, address: Address) -> TunnelSpec | None:
    """Return the spec of the published tunnel: that of its server, with the one key and the limits of the rule."""
    keys = tuple(named for named in server.named_keys if named.name == request.key_name)
    settings = server.settings
    if rule.visitors is not None:
        explicit = settings.explicit | {"semaphore_limit"}
        settings = replace(settings, semaphore_limit=rule.visitors, explicit=explicit)
    spec = replace(
        server,
        target=address,
        service=request.service,
        named_keys=keys,
        publish_rules=(),
        published_by=request.key_name,
        rate=server.rate if rule.rate is None else rule.rate,
        settings=settings,
    )
    return spec if keys else None


def _find_clash(spec: TunnelSpec, others: Iterable[Entry]) -> str | None:
    """Return why a published tunnel cannot run with the others: it is invalid, or wants an address of theirs."""
    try:
        check_combinations(spec)
    except UrlError as error:
        return str(error)
    claims: ClaimTable[Entry] = ClaimTable()
    for entry in others:
        for claim in address_claims(entry.spec) if entry.enabled else ():
            claims.add(claim, entry)
    for wanted in address_claims(spec):
        for _, holder in claims.conflicts(wanted):
            return _describe_clash(spec, wanted, holder)
    return None


def _describe_clash(spec: TunnelSpec, wanted: AddressClaim, holder: Entry) -> str:
    whose = "a tunnel of the server's file" if holder.publisher is None else "another published service"
    if wanted.is_shareable:
        return f"the service {spec.service} is taken by {whose}"
    return f"{wanted.address} is in use by {whose}"
