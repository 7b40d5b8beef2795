"""Parses one entry of the file: its name, URL and options, with every fault at its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.config.advice import SecretPlaces, is_secret_file
from orchestrator.config.document import MappingNode, Node, ScalarNode, SequenceNode, quote
from orchestrator.config.faults import MAX_FAULTS, Fault, Place
from orchestrator.config.file_set import hash_bytes, read_file
from orchestrator.config.manifest import Entry, OptionOrigin
from orchestrator.config.member_list import SERVERS, TARGETS, read_members
from orchestrator.config.named_keys import LocatedKeys, read_named_keys
from orchestrator.config.publish_rules import check_rules, check_server, has_rules, read_rules
from orchestrator.config.scalars import check_keys, describe_name_fault, read_scalar, read_scalars
from orchestrator.config.schema_parts import parse_bool
from tunnel.model.errors import InvalidValueError, OptionError, UrlError, did_you_mean
from tunnel.model.option_types import FileType
from tunnel.model.options import (
    ENVIRONMENT_SOURCE,
    OPTION_NAMES,
    OPTIONS,
    OptionLayer,
    OptionPlace,
    check_url_options,
    describe_misplaced,
    environment_layer,
    make_spec,
    misplaced_options,
    names_for,
)
from tunnel.model.spec import AuthPolicy, Mode, Role
from tunnel.model.url import TunnelUrl, looks_like_url, parse_url
from tunnel.model.visitor_option_types import NetworksType
from tunnel.runtime.tls import TlsError, certificate_files_context, verifying_context

if TYPE_CHECKING:
    from tunnel.model.publishing import PublishRule
    from tunnel.model.spec import TunnelSpec

DEFAULT_KEYS: Final = names_for(OptionPlace.DEFAULTS)
ENTRY_OPTIONS: Final = names_for(OptionPlace.ENTRY)
ENTRY_KEYS: Final = ("url", "enabled", "tags", "keys", "targets", "servers", *ENTRY_OPTIONS)
ENTRY_SOURCE: Final = "the entry"
LOCATED_URL_SOURCE: Final = "url"  # unlike URL_SOURCE, its faults have places in the file
LOG_LEVEL_SOURCE: Final = "--log-level"

_ORIGIN_LABELS: Final = {
    LOCATED_URL_SOURCE: "URL",
    ENTRY_SOURCE: "entry",
    LOG_LEVEL_SOURCE: "command line",
    ENVIRONMENT_SOURCE: "environment",
}
_NO_KEY: Final = (
    "the tunnel has no key, and other hosts can reach it; give both ends one (key: ${NAME} or key_file:), "
    "or write auth: open"
)
_TLS_FILES: Final = tuple(name for name, option in OPTIONS.items() if option.is_file and not option.is_secret)
_AUTH_OPTIONS: Final = {"key", "key_file", "auth"}
_DEFAULTS_LABEL: Final = "defaults"  # all other sources are defaults of some file


@dataclass(frozen=True, slots=True)
class LocatedLayer:
    """An option layer with the place of each value. Each value is valid on its own."""

    layer: OptionLayer
    places: Mapping[str, Place] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    """the quoted text of each value that has variables: a message must not show the value itself"""
    files: frozenset[Path] = frozenset()
    """the files that the options name, readable or not"""
    faulty: frozenset[str] = frozenset()
    """the options whose values are left out, because a fault of them is reported"""

    def describe(self, name: str, error: InvalidValueError) -> str:
        """Return what is wrong with the value of an option, in the words of the file."""
        return error.quoting(self.written[name]) if name in self.written else str(error)


@dataclass(frozen=True, slots=True)
class EntryContext:
    """What the file around an entry determines."""

    defaults: tuple[LocatedLayer, ...]
    """the strongest first"""
    environ: Mapping[str, str]
    base: Path
    """the directory at which relative file names start"""
    named_files: set[Path]
    """collects every file that an entry names"""
    secrets: SecretPlaces


def read_layer(
    mapping: MappingNode, source: str, base: Path, faults: list[Fault], names: tuple[str, ...] = DEFAULT_KEYS
) -> LocatedLayer:
    """Read the options of an entry or of ``defaults``. Those with a fault are left out, so that it is reported once."""
    scalars = {
        key.text: scalar
        for key, node in mapping
        if key.text in names and (scalar := _read_option(key.text, node, faults))
    }
    values = {name: scalar.text for name, scalar in scalars.items()}
    places = {name: scalar.place for name, scalar in scalars.items()}
    written = {name: quote(scalar) for name, scalar in scalars.items() if scalar.is_substituted}
    located = _valid_options(LocatedLayer(OptionLayer(source, values, base), places, written), faults)
    named = {key.text for key, _ in mapping if key.text in names}
    return replace(located, faulty=frozenset(named.difference(located.layer.values)))


def _read_option(name: str, node: Node, faults: list[Fault]) -> ScalarNode | None:
    """Return the value of an option as a text; or report its fault, in a list that of each element at its place."""
    option_type = OPTIONS[name].type
    if not (isinstance(node, SequenceNode) and isinstance(option_type, NetworksType)):
        return read_scalar(node, name, faults)
    before, elements = len(faults), read_scalars(node, name, faults)
    for element in elements:
        try:
            option_type.parse(element.text, Path())
        except InvalidValueError as error:
            message = error.quoting(quote(element)) if element.is_substituted else str(error)
            faults.append(Fault(element.place, f"{name}: {message}"))
            if len(faults) > MAX_FAULTS:
                break
    if len(faults) > before:
        return None
    if not elements:
        faults.append(Fault(node.place, f"{name}: the list has no network; name one, or write none"))
        return None
    value, written = (",".join(texts) for texts in zip(*((one.text, one.written) for one in elements), strict=True))
    return ScalarNode(node.place, value, written)


def _valid_options(located: LocatedLayer, faults: list[Fault]) -> LocatedLayer:
    """Keep the options that are valid on their own, so that one fault does not hide another."""
    layer = located.layer
    valid: dict[str, object] = {}
    for name, value in layer.values.items():
        try:
            layer.parse(name)
        except OptionError as error:
            faults.append(Fault(located.places[name], f"{name}: {located.describe(name, error)}"))
        else:
            valid[name] = value
    files = frozenset(
        layer.base / os.path.expanduser(str(value))  # noqa: PTH111  unlike Path.expanduser it never raises
        for name, value in layer.values.items()
        if OPTIONS[name].is_file
    )
    return replace(located, layer=replace(layer, values=valid), files=files)


def note_secrets(located: LocatedLayer, secrets: SecretPlaces) -> None:
    """Note the key that a layer contains, and the files of secrets that it names."""
    for name, value in located.layer.values.items():
        if is_secret_file(name):
            secrets.add_file(FileType().parse(value, located.layer.base), located.places[name])
        elif name == "key" and name not in located.written:
            secrets.add_literal_key(located.places[name])


def read_entry(name: ScalarNode, node: Node, context: EntryContext, faults: list[Fault]) -> Entry | None:
    """Return the entry; or report its faults and return None."""
    parser = _EntryParser(name, context)
    entry = parser.parse(node)
    faults += parser.faults
    return None if parser.faults or name.is_faulty else entry


@dataclass(slots=True)
class _EntryParser:
    name: ScalarNode
    context: EntryContext
    faults: list[Fault] = field(default_factory=list)

    def parse(self, node: Node) -> Entry | None:
        self._check_name()
        mapping = None if looks_like_url(self.name.text) else self._expand(node)
        if mapping is None:
            return None
        check_keys(mapping, ENTRY_KEYS, "an entry", self.faults)
        rules_node = mapping.get("publish") if has_rules(mapping.get("publish")) else None
        names = ENTRY_OPTIONS if rules_node is None else DEFAULT_KEYS
        own = read_layer(mapping, ENTRY_SOURCE, self.context.base, self.faults, names)
        keys_node = mapping.get("keys")
        named = None if keys_node is None else read_named_keys(keys_node, self.context.secrets, self.faults)
        enabled = self._read_enabled(mapping)
        tags = tuple(tag.text for tag in read_scalars(mapping.get("tags"), "tags", self.faults))
        located = self._read_url(mapping, needs_target=rules_node is None and "targets" not in mapping.items)
        if located is None:
            return None
        scalar, url = located[0], self._with_servers(self._with_targets(located[1], mapping), mapping)
        layers = (self._url_layer(scalar, url), own, *self.context.defaults)
        self.context.named_files.update(*(layer.files for layer in layers[:2]))
        self._check_keys(scalar, url, layers[0], own, keys_node)
        rules = () if rules_node is None else self._read_rules(rules_node, located[1], named, mapping)
        spec = None if self.faults else self._build_spec(scalar, url, layers, named)
        if spec is None:
            return None
        if rules_node is not None and rules:
            spec = replace(spec, publish_rules=rules, mode=Mode.REVERSE, service="")
            check_rules(rules_node, spec, self.faults)
        self._check_ends(spec, layers[:2])
        self._check_exposed(spec, scalar, layers, keys_node)
        return Entry(
            name=self.name.text,
            spec=spec,
            enabled=enabled,
            tags=tags,
            files=self._hash_files(spec, scalar, layers),
            url=(located[1] if located[1].has_target else url).masked(),
            origin=self.name.place,
            origins=_origins(url, layers, self.context.environ),
            key_places={} if named is None else named.places,
        )

    def _check_name(self) -> None:
        text = self.name.text
        if looks_like_url(text):
            fault: str | None = "a name is missing before this URL; write NAME: URL"
        elif text in {".", ".."}:
            fault = f"{text!r} cannot be a name, because it means a directory in the routes of the local API"
        else:
            fault = describe_name_fault(text)
        if fault and not self.name.is_faulty:
            self.faults.append(Fault(self.name.place, fault))

    def _expand(self, node: Node) -> MappingNode | None:
        """Return the mapping of an entry; a URL alone is short for a mapping with ``url:``."""
        if isinstance(node, SequenceNode):
            self.faults.append(Fault(node.place, "an entry is a URL or a mapping with url:, not a list"))
            return None
        if isinstance(node, ScalarNode):
            return MappingNode(node.place, {"url": (ScalarNode(self.name.place, "url"), node)})
        if "url" not in node.items and not any(did_you_mean(key, ("url",)) for key in node.items):
            self.faults.append(Fault(node.place, "the entry has no url: (url: server://… or client://…)"))
        return node

    def _read_enabled(self, mapping: MappingNode) -> bool:
        node = mapping.get("enabled")
        if node is not None and (scalar := read_scalar(node, "enabled", self.faults)):
            try:
                return parse_bool(scalar.value)
            except ValueError as error:
                self.faults.append(Fault(scalar.place, f"enabled: {error}"))
        return True

    def _read_rules(
        self, node: Node, url: TunnelUrl, named: LocatedKeys | None, mapping: MappingNode
    ) -> tuple[PublishRule, ...]:
        check_server(node, url, (*mapping.items, *url.values()), self.faults)
        keys = () if named is None else (each.name for each in named.keys)
        return () if self.faults else read_rules(node, url, keys, self.faults)

    def _read_url(self, mapping: MappingNode, *, needs_target: bool) -> tuple[ScalarNode, TunnelUrl] | None:
        node = mapping.get("url")
        scalar = None if node is None else read_scalar(node, "url", self.faults)
        if scalar is None:
            return None
        try:
            return scalar, parse_url(scalar.text, needs_target=needs_target)
        except UrlError as error:
            self._report_url(scalar, error)
            return None

    def _with_targets(self, url: TunnelUrl, mapping: MappingNode) -> TunnelUrl:
        """Return the URL with the targets of ``targets:``, if there is one, in place of its own."""
        node = mapping.get("targets")
        found = () if node is None else read_members(node, TARGETS, self.faults)
        if not found:
            return url
        return replace(url, target=found[0].address, targets=found if len(found) > 1 else (), has_target=True)

    def _with_servers(self, url: TunnelUrl, mapping: MappingNode) -> TunnelUrl:
        """Return the URL with the servers of ``servers:``, if there is one, in place of its tunnel address."""
        node = mapping.get("servers")
        if node is None:
            return url
        if url.role is Role.SERVER:
            self.faults.append(Fault(node.place, "servers: is for a client; a server listens on one tunnel address"))
            return url
        found = read_members(node, SERVERS, self.faults)
        if not found:
            return url
        addresses = [server.address for server in found]
        has_shares = len(found) > 1 and any(server.weight != 1 or server.is_backup for server in found)
        shares = found if has_shares else ()
        return replace(url, tunnel=addresses[0], other_servers=tuple(addresses[1:]), server_shares=shares)

    def _url_layer(self, scalar: ScalarNode, url: TunnelUrl) -> LocatedLayer:
        """Return the options of the URL as a layer of the file: file names start at the file, faults have places."""
        for option in url.options:
            try:
                check_url_options(replace(url, options=(option,)))
            except UrlError as error:
                self._report_url(scalar, error)
        values = {option.name: option.value for option in url.options if option.name in OPTION_NAMES}
        places = {option.name: scalar.place_at(option.offset) for option in url.options}
        if url.key and "key_file" in values:
            self.faults.append(Fault(places["key_file"], "the URL has a key and a key_file; keep one"))
        written = {name: _written_option(scalar, name) for name in values} if scalar.is_substituted else {}
        layer = OptionLayer(LOCATED_URL_SOURCE, values, self.context.base)
        return _valid_options(LocatedLayer(layer, places, written), self.faults)

    def _report_url(self, scalar: ScalarNode, error: UrlError) -> None:
        message = str(error)
        if scalar.is_substituted and error.quoted:
            message = f"{error.quoting('…')}; the URL is written {quote(scalar)}"
        self.faults.append(Fault(scalar.place_at(error.offset), message))

    def _check_keys(
        self, scalar: ScalarNode, url: TunnelUrl, of_url: LocatedLayer, own: LocatedLayer, keys: Node | None
    ) -> None:
        """Report keys that exclude each other, and note where secrets are."""
        self._check_auth(url, of_url, own)
        if keys is not None:
            self._check_named_keys(keys.place, url, of_url, own)
        self._note_secrets(scalar, url, of_url, own)

    def _check_auth(self, url: TunnelUrl, of_url: LocatedLayer, own: LocatedLayer) -> None:
        """Report an entry whose URL has a key while the entry says ``auth: open``, or the other way round."""
        url_has_key = bool(url.key) or of_url.layer.has_key
        for says_open, has_key in ((of_url, url_has_key or own.layer.has_key), (own, url_has_key)):
            if says_open.layer.is_open and has_key:
                self.faults.append(Fault(says_open.places["auth"], "the entry has a key and auth: open; keep one"))

    def _check_named_keys(self, place: Place, url: TunnelUrl, of_url: LocatedLayer, own: LocatedLayer) -> None:
        if url.role is Role.CLIENT:
            self.faults.append(Fault(place, "keys: is for a server; a client has one key, write key: or key_file:"))
        elif url.key or of_url.layer.has_key or own.layer.has_key:
            self.faults.append(Fault(place, "keys: and a single key exclude each other; give that key a name here"))
        elif of_url.layer.is_open or own.layer.is_open:
            self.faults.append(Fault(place, "keys: and auth: open exclude each other; keep one"))

    def _note_secrets(self, scalar: ScalarNode, url: TunnelUrl, of_url: LocatedLayer, own: LocatedLayer) -> None:
        note_secrets(of_url, self.context.secrets)
        note_secrets(own, self.context.secrets)
        if url.key and not scalar.is_substituted:
            self.context.secrets.add_literal_key(scalar.place)
        if (url.key or of_url.layer.has_key) and own.layer.has_key:
            name = "key" if "key" in own.layer.values else "key_file"
            self.context.secrets.unused_keys.append(own.places[name])

    def _build_spec(
        self, scalar: ScalarNode, url: TunnelUrl, layers: tuple[LocatedLayer, ...], named: LocatedKeys | None
    ) -> TunnelSpec | None:
        try:
            spec = make_spec(replace(url, options=()), [layer.layer for layer in layers], self.context.environ)
            if named is not None:  # a key, or auth: open, of a weaker layer is not wanted
                spec = replace(spec, key=None, named_keys=named.keys, auth_policy=AuthPolicy.KEY)
            return spec
        except UrlError as error:
            self._report_url(scalar, UrlError(error.message, 0, *error.quoted))  # offsets of the URL are gone
        except OptionError as error:
            sources = [layer for layer in layers if layer.layer.source == error.source]
            message = next((layer.describe(error.name, error) for layer in sources), str(error))
            self._report(error.name, message, scalar, sources, f" (from {error.source})")
        return None

    def _check_ends(self, spec: TunnelSpec, layers: tuple[LocatedLayer, ...]) -> None:
        """Report options that this entry names although they act at the other end; ``defaults`` may have any."""
        for option in misplaced_options(spec):
            place = next((layer.places[option.name] for layer in layers if option.name in layer.layer.values), None)
            if place is not None:
                self.faults.append(Fault(place, describe_misplaced(option, spec.role)))

    def _check_exposed(
        self, spec: TunnelSpec, scalar: ScalarNode, layers: tuple[LocatedLayer, ...], keys: Node | None
    ) -> None:
        """Report a tunnel without a key, unless the key that it names has a fault of its own."""
        if spec.is_exposed and keys is None and not any(layer.faulty & _AUTH_OPTIONS for layer in layers):
            self.faults.append(Fault(scalar.place, _NO_KEY))

    def _hash_files(self, spec: TunnelSpec, scalar: ScalarNode, layers: tuple[LocatedLayer, ...]) -> dict[str, str]:
        """Return the digest of each certificate file. A file that cannot be read is a fault now, not at run time."""
        digests: dict[str, str] = {}
        readable: set[Path] = set()
        for option in OPTIONS.values():
            path = option.read(spec)
            if not isinstance(path, Path):
                continue
            try:
                digests[option.name] = hash_bytes(read_file(path))
            except OSError as error:
                message = f"cannot read {path}: {error.strerror}"
                self._report(option.name, _hide_names(message, spec, layers), scalar, layers, "")
            else:
                readable.add(path)
        self._check_certificates(spec, readable, scalar, layers)
        return digests

    def _check_certificates(
        self, spec: TunnelSpec, readable: set[Path], scalar: ScalarNode, layers: tuple[LocatedLayer, ...]
    ) -> None:
        """Report certificate files that TLS would refuse at run time."""
        name = "tls_key"
        try:
            if spec.tls_cert is not None and spec.tls_key is not None and {spec.tls_cert, spec.tls_key} <= readable:
                certificate_files_context(spec.tls_cert, spec.tls_key)
            name = "tls_ca"
            if spec.tls_ca is not None and spec.tls_ca in readable:
                verifying_context(spec.tls_ca)
        except TlsError as error:
            self._report(name, _hide_names(str(error), spec, layers), scalar, layers, "")

    def _report(self, name: str, message: str, scalar: ScalarNode, layers: Iterable[LocatedLayer], remark: str) -> None:
        """Report a fault where one of the layers names the option, or at the URL with a remark."""
        place = next((layer.places[name] for layer in layers if name in layer.places), None)
        self.faults.append(Fault(place or scalar.place, f"{name}: {message}{'' if place else remark}"))


def _written_option(scalar: ScalarNode, name: str) -> str:
    """Return the value of an option as the file's URL contains it, or dots if the option came from a variable."""
    found = re.search(rf"[?&]{re.escape(name)}=([^&@]*)(?:&|$)", scalar.written)
    return quote(found[1]) if found else "…"


def _hide_names(message: str, spec: TunnelSpec, layers: Iterable[LocatedLayer]) -> str:
    """Return a message with the names of files as the file writes them: a secret may be in the wrong option."""
    for name in _TLS_FILES:
        layer = next((layer for layer in layers if name in layer.layer.values), None)
        if layer and name in layer.written:
            message = message.replace(str(OPTIONS[name].read(spec)), layer.written[name])
    return message


def _origins(url: TunnelUrl, layers: tuple[LocatedLayer, ...], environ: Mapping[str, str]) -> dict[str, OptionOrigin]:
    found = {"key": OptionOrigin(_ORIGIN_LABELS[LOCATED_URL_SOURCE])} if url.key else {}
    for located in (*layers, LocatedLayer(environment_layer(environ))):  # the strongest first
        source = _ORIGIN_LABELS.get(located.layer.source, _DEFAULTS_LABEL)
        for name in located.layer.values:
            found.setdefault(name, OptionOrigin(source, located.places.get(name)))
    return found
