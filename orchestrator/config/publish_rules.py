"""Parses ``publish:`` of a server entry: the rules for what its clients may publish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from orchestrator.config.document import MappingNode, ScalarNode, SequenceNode, is_empty, quote
from orchestrator.config.faults import Fault
from orchestrator.config.scalars import check_keys, read_scalar, read_scalars
from orchestrator.config.schema_parts import MAX_NAME_LENGTH, with_variable
from tunnel.model.address import parse_address
from tunnel.model.errors import InvalidValueError
from tunnel.model.option_types import ANY_SCALAR, DurationType, IntegerType, JsonSchema
from tunnel.model.publishing import DEFAULT_GRACE_S, DEFAULT_MAX_SERVICES, PublishRule, parse_port_range
from tunnel.model.rate import RateType
from tunnel.model.spec import MAX_SERVICE_CHARS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from orchestrator.config.document import Node
    from orchestrator.config.manifest import Entry
    from tunnel.model.publishing import PortRange
    from tunnel.model.spec import TunnelSpec
    from tunnel.model.url import TunnelUrl

ValueT = TypeVar("ValueT")

RULE_KEYS: Final = ("address", "ports", "services", "keys", "max_services", "visitors", "rate", "grace")
MAX_RULES: Final = 64

_EXAMPLE: Final = 'as in {ports: 8000-8999, services: "team-*"}'
_SERVICES: Final = IntegerType(1, 1000)
_VISITORS: Final = IntegerType(1, 1_000_000)
_GRACE: Final = DurationType(0.0)
_NO_PATH: Final = Path()


def has_rules(node: Node | None) -> bool:
    """Return whether ``publish:`` contains rules, as a server's does, and not the address that a client asks for."""
    return isinstance(node, (MappingNode, SequenceNode))


def read_rules(node: Node, url: TunnelUrl, keys: Iterable[str], faults: list[Fault]) -> tuple[PublishRule, ...]:
    """Return the rules without a fault, in their order, and report the others.

    ``keys`` are the names of the entry's keys. A rule without ``address:`` has the host of the tunnel address.
    """
    items: Sequence[Node] = node.items if isinstance(node, SequenceNode) else (node,)
    if not items or len(items) > MAX_RULES:
        faults.append(Fault(node.place, f"publish: takes a rule or a list of at most {MAX_RULES}, {_EXAMPLE}"))
        return ()
    found, known = [], frozenset(keys)
    for item in items:
        if not isinstance(item, MappingNode):
            faults.append(Fault(item.place, f"each rule of publish is a mapping, {_EXAMPLE}"))
            continue
        before = len(faults)
        rule = _RuleReader(item, faults).read(url.tunnel.host)
        _check_key_names(item, rule, known, faults)
        if len(faults) == before:
            found.append(rule)
    return tuple(found)


def check_server(node: Node, url: TunnelUrl, names: Iterable[str], faults: list[Fault]) -> None:
    """Report an entry that cannot have rules. ``names`` are the keys and options that it contains."""
    present = frozenset(names)
    if url.role != "server":
        faults.append(Fault(node.place, "publish: of a client is a port, as in publish: 8080; rules are for a server"))
    elif url.has_target or "targets" in present:
        text = (
            "an entry that lets clients publish has no target; remove it from the URL, or give it an entry of its own"
        )
        faults.append(Fault(node.place, text))
    elif "keys" not in present:
        faults.append(Fault(node.place, "publish: needs keys:, with a name for each client that may publish"))
    elif url.tunnel.port == 0:
        faults.append(Fault(node.place, "publish: needs a tunnel port that is not 0, because its services share it"))
    elif present & {"service", "mode"}:
        faults.append(Fault(node.place, "an entry that lets clients publish has no service= or mode= of its own"))


def check_rules(node: Node, spec: TunnelSpec, faults: list[Fault]) -> None:
    """Report rules that no service of the entry can follow."""
    if spec.proto.has_udp and any(rule.rate is not None for rule in spec.publish_rules):
        faults.append(Fault(node.place, f"rate of a rule limits TCP alone; remove it, or remove proto: {spec.proto}"))


def check_workers(entries: Iterable[Entry], workers: int) -> list[Fault]:
    """Return a fault for each entry with rules, if tunnels run in workers."""
    text = "publish: does not work with workers, because a tunnel port is in one process; remove supervisor: workers:"
    return [Fault(entry.origin, text) for entry in entries if workers and entry.spec.publish_rules]


def _check_key_names(item: MappingNode, rule: PublishRule, known: frozenset[str], faults: list[Fault]) -> None:
    unknown = [name for name in rule.keys if name not in known]
    if unknown and known:  # without any, the fault is in the keys themselves
        place = item.items["keys"][1].place
        names = ", ".join(sorted(known))
        faults.append(Fault(place, f"the entry has no key named {unknown[0]!r}; its keys are {names}"))


class _RuleReader:
    def __init__(self, node: MappingNode, faults: list[Fault]) -> None:
        self._node = node
        self._faults = faults

    def read(self, default_host: str) -> PublishRule:
        """Return the rule, in which values with a fault are defaults."""
        check_keys(self._node, RULE_KEYS, "a rule of publish", self._faults)
        for name in ("ports", "services"):
            node = self._node.get(name)
            if node is None or is_empty(node):
                self._faults.append(Fault(self._node.place, f"a rule of publish needs {name}, {_EXAMPLE}"))
        max_services = self._value("max_services", _SERVICES.parse)
        grace_s = self._value("grace", _GRACE.parse)
        return PublishRule(
            host=self._host(default_host),
            ports=tuple(
                ports
                for scalar in self._scalars("ports")
                for part in scalar.text.split(",")
                if (ports := self._port_range(scalar, part)) is not None
            ),
            services=tuple(scalar.text for scalar in self._scalars("services") if self._is_pattern(scalar)),
            keys=tuple(scalar.text for scalar in self._scalars("keys")),
            max_services=DEFAULT_MAX_SERVICES if max_services is None else max_services,
            visitors=self._value("visitors", _VISITORS.parse),
            rate=self._value("rate", RateType().parse),
            grace_s=DEFAULT_GRACE_S if grace_s is None else grace_s,
        )

    def _scalars(self, name: str) -> tuple[ScalarNode, ...]:
        return read_scalars(self._node.get(name), name, self._faults)

    def _host(self, default: str) -> str:
        node = self._node.get("address")
        scalar = None if node is None else read_scalar(node, "address", self._faults)
        if scalar is None:
            return default
        host = scalar.text.removeprefix("[").removesuffix("]")
        try:
            return parse_address(f"[{host}]:0" if ":" in host else f"{host}:0").host
        except InvalidValueError:
            self._faults.append(Fault(scalar.place, f"address: {quote(scalar)} is neither an IP address nor a host"))
            return default

    def _port_range(self, scalar: ScalarNode, text: str) -> PortRange | None:
        try:
            return parse_port_range(text)
        except InvalidValueError as error:
            self._report("ports", scalar, error)
            return None

    def _is_pattern(self, scalar: ScalarNode) -> bool:
        is_good = len(scalar.text) <= MAX_SERVICE_CHARS and scalar.text.isprintable() and " " not in scalar.text
        if not is_good:
            text = f"services: {quote(scalar)} is not the name of a service or a pattern, as in team-*"
            self._faults.append(Fault(scalar.place, text))
        return is_good

    def _value(self, name: str, parse: Callable[[object, Path], ValueT]) -> ValueT | None:
        node = self._node.get(name)
        scalar = None if node is None else read_scalar(node, name, self._faults)
        if scalar is None:
            return None
        try:
            return parse(scalar.text, _NO_PATH)
        except InvalidValueError as error:
            self._report(name, scalar, error)
            return None

    def _report(self, name: str, scalar: ScalarNode, error: InvalidValueError) -> None:
        message = error.quoting(quote(scalar)) if scalar.is_substituted else str(error)
        self._faults.append(Fault(scalar.place, f"{name}: {message}"))


def rule_schema() -> JsonSchema:
    """Return the JSON Schema of a rule."""
    scalars: JsonSchema = {"anyOf": [ANY_SCALAR, {"type": "array", "items": ANY_SCALAR, "minItems": 1}]}

    def describe(schema: JsonSchema, text: str) -> JsonSchema:
        return {**schema, "description": text}

    return {
        "type": "object",
        "properties": {
            "address": describe(
                {"type": "string"}, "where visitors are accepted (default the host of the tunnel port)"
            ),
            "ports": describe(scalars, "ports that may be published, as in 8000-8999,9443"),
            "services": describe(scalars, "names of services, or patterns, as in team-*"),
            "keys": describe(
                {"anyOf": [{**ANY_SCALAR, "maxLength": MAX_NAME_LENGTH}, {"type": "array", "items": ANY_SCALAR}]},
                "names of the keys that the rule is for (default all of the entry)",
            ),
            "max_services": describe(
                with_variable(_SERVICES.json_schemas()),
                f"services of each key at once (default {DEFAULT_MAX_SERVICES})",
            ),
            "visitors": describe(
                with_variable(_VISITORS.json_schemas()), "visitors of each service (default semaphore_limit)"
            ),
            "rate": describe(with_variable(RateType().json_schemas()), "bytes of each service (default rate)"),
            "grace": describe(
                with_variable(_GRACE.json_schemas()),
                f"time without a client after which a service is removed (default {DEFAULT_GRACE_S:g}s)",
            ),
        },
        "required": ["ports", "services"],
        "additionalProperties": False,
    }
