"""Loads a configuration file and the files it includes into a Manifest, or reports every fault with its place."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from pydantic import BaseModel, ValidationError

from orchestrator.config.address_claims import PUBLISHERS, AddressClaim, ClaimTable, address_claims
from orchestrator.config.advice import SecretPlaces, advise
from orchestrator.config.document import (
    DocumentLimits,
    MappingNode,
    Node,
    ScalarNode,
    decode_text,
    is_empty,
    parse_document,
    quote,
)
from orchestrator.config.entries import (
    DEFAULT_KEYS,
    LOG_LEVEL_SOURCE,
    EntryContext,
    LocatedLayer,
    note_secrets,
    read_entry,
    read_layer,
)
from orchestrator.config.example import SMALLEST_FILE
from orchestrator.config.faults import MAX_FAULTS, TOO_MANY_FAULTS, ConfigError, Fault, Place
from orchestrator.config.file_set import (
    MISSING,
    FileSet,
    check_size,
    hash_bytes,
    hash_file,
    match_includes,
    read_file,
    resolve_pattern,
)
from orchestrator.config.include_search import MAX_DIRECTORIES, IncludeSearch, TooManyDirectoriesError
from orchestrator.config.manifest import Entry, Manifest
from orchestrator.config.publish_rules import check_workers
from orchestrator.config.scalars import check_keys, read_scalar, read_scalars
from orchestrator.config.schema_parts import VERSION
from orchestrator.config.supervisor_settings import ApiSettings, MqttSettings, SupervisorSettings
from tunnel.model.errors import InvalidValueError, OptionError, did_you_mean
from tunnel.model.files import FileError
from tunnel.model.options import OPTIONS, OptionLayer, environment_layer
from tunnel.model.spec import Proto, Role

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from tunnel.model.address import Address

FILE_KEYS: Final = ("version", "supervisor", "defaults", "include", "tunnels")
INCLUDED_KEYS: Final = ("version", "defaults", "tunnels")

_SECTION_FILES: Final = {"token_file": True, "password_file": True, "cert_key": True, "ca": False, "cert": False}
"""The keys that name files in the ``supervisor:`` section, and whether the file holds a secret."""
_MAX_INCLUDED_FILES: Final = 1000
_DAYS_OF_MONTH: Final = 31
_SECTION_MODELS: Final[dict[tuple[str, ...], type[BaseModel]]] = {
    (): SupervisorSettings,
    ("api",): ApiSettings,
    ("mqtt",): MqttSettings,
}
PORT_OPTIONS: Final = ("data_port", "tls_cert", "tls_key")
"""Options of a tunnel port: servers that share one have the same."""
_EXAMPLE: Final = f"write at least {SMALLEST_FILE}"

_Clash: TypeAlias = "tuple[AddressClaim, AddressClaim, Entry]"
"""The address that an entry wants, the one that excludes it, and its holder."""

PlainValue: TypeAlias = "str | list[None] | dict[str, PlainValue] | None"
"""A value of the ``supervisor:`` section as its models take it."""


def load(path: Path, environ: Mapping[str, str], log: str | None = None, *, content: bytes | None = None) -> Manifest:
    """Load the manifest of a file. Raises ConfigError with all faults.

    ``log`` is the level of tunnels for which the file configures none; ``content`` is read instead of the file's own.
    Reads the key files that entries name.
    """
    loader = _Loader(path, environ, log, content)
    manifest = loader.load()
    if loader.faults or manifest is None:
        raise ConfigError(loader.faults, loader.sources(), manifest.warnings if manifest else ())
    return manifest


@dataclass(slots=True)
class _Loader:
    path: Path
    environ: Mapping[str, str]
    log: str | None
    content: bytes | None = None
    faults: list[Fault] = field(default_factory=list)
    files: dict[Path, str] = field(default_factory=dict)
    patterns: tuple[str, ...] = ()
    search: IncludeSearch = field(default_factory=IncludeSearch)
    named_files: set[Path] = field(default_factory=set)
    limits: DocumentLimits = field(default_factory=DocumentLimits)
    secrets: SecretPlaces = field(default_factory=SecretPlaces)
    names: dict[str, Place] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def load(self) -> Manifest | None:
        """Return the manifest, or None if the file cannot be read as a mapping."""
        reload = partial(load, self.path, self.environ, self.log)
        self.environ = self._valid_environment()
        root = self._read_mapping(self.path, FILE_KEYS, "a file of tunnels")
        if root is None:
            return None
        self._check_version(root)
        supervisor = self._read_supervisor(root)
        layers = self._read_defaults(root, "defaults")
        if self.log:
            layers = (*layers, LocatedLayer(OptionLayer(LOG_LEVEL_SOURCE, {"log": self.log})))
        self._read_tunnels(root, layers)
        for path in self._find_included(root):
            self._include(path, layers)
        self._check_addresses()
        self._check_quotas(supervisor)
        self.faults += check_workers(self.entries, supervisor.workers)
        return Manifest(
            path=self.path,
            supervisor=supervisor,
            entries=tuple(self.entries),
            warnings=tuple(sorted({*self.limits.warnings, *advise(self.path, self.entries, self.secrets)})),
            sources=self.sources(),
            reload=reload,
        )

    def sources(self) -> FileSet:
        """Return the files that were read so far."""
        for path in self.named_files:
            self.files.setdefault(path, hash_file(path))
        return FileSet(
            path=self.path,
            patterns=self.patterns,
            named=frozenset(self.named_files),
            files=self.files,
            search=self.search,
        )

    def _valid_environment(self) -> dict[str, str]:
        """Return the environment without invalid variables: each is reported once, not for each entry."""
        environ = dict(self.environ)
        layer = environment_layer(environ)
        for name in layer.values:
            try:
                layer.parse(name)
            except OptionError as error:
                self._report(Place(self.path), f"the environment variable {error.name}: {error}")
                del environ[OPTIONS[name].variable or name]
        return environ

    def _report(self, place: Place, message: str) -> None:
        self.faults.append(Fault(place, message))

    # --- one file -------------------------------------------------------------------------------------------------

    def _read_mapping(self, path: Path, known: tuple[str, ...], what: str) -> MappingNode | None:
        """Return the mapping that a file contains; or report why it contains none."""
        data = self._read_bytes(path)
        if data is None:
            return None
        try:
            root = parse_document(path, decode_text(path, data), self.environ, self.faults, self.limits)
        except ConfigError as error:
            self.faults.extend(error.faults)
            return None
        if root is None:
            self._report(Place(path), f"the file is empty; {_EXAMPLE}")
        elif not isinstance(root, MappingNode):
            self._report(root.place, f"a mapping is expected here; {_EXAMPLE}")
        else:
            check_keys(root, known, what, self.faults)
            return root
        return None

    def _read_bytes(self, path: Path) -> bytes | None:
        self.files[path] = MISSING
        try:
            given = self.content if path == self.path else None
            data = read_file(path) if given is None else check_size(given)
        except FileError as error:
            hint = f"there is no such file; {_EXAMPLE}, or name another file"
            self._report(Place(path), hint if error.errno == errno.ENOENT else f"cannot read the file: {error}")
            return None
        self.files[path] = hash_bytes(data)
        return data

    def _check_version(self, root: MappingNode) -> None:
        node = root.get("version")
        if node is None:
            self._report(root.place, f"version: is missing; write version: {VERSION}")
        elif (scalar := read_scalar(node, "version", self.faults)) and scalar.value != VERSION:
            self._report(scalar.place, f"version {quote(scalar)} is not supported; write version: {VERSION}")

    # --- the supervisor section -----------------------------------------------------------------------------------

    def _read_supervisor(self, root: MappingNode) -> SupervisorSettings:
        node = root.get("supervisor")
        if node is None or is_empty(node):
            return SupervisorSettings()
        if not isinstance(node, MappingNode):
            self._report(node.place, "supervisor: takes a mapping")
            return SupervisorSettings()
        plain = self._to_plain(node, "supervisor", may_be_empty=("api", "mqtt"))
        self._check_section_files(node)
        try:
            return SupervisorSettings.model_validate(plain, context={"base": self.path.parent})
        except ValidationError as error:
            self.faults.extend(
                _section_fault(node, detail) for detail in error.errors(include_url=False)[: MAX_FAULTS + 1]
            )
        return SupervisorSettings()

    def _check_section_files(self, section: MappingNode) -> None:
        """Note the files of secrets. Report a name with variables that names none: its reader would show the name."""
        for key, node in section:
            if isinstance(node, MappingNode):
                self._check_section_files(node)
            elif key.text in _SECTION_FILES and isinstance(node, ScalarNode) and node.value:
                path = os.path.join(self.path.parent, os.path.expanduser(node.value))  # noqa: PTH111, PTH118  never raise
                if _SECTION_FILES[key.text]:
                    self.secrets.add_file(Path(path), node.place)
                if node.is_substituted and not os.path.exists(path):  # noqa: PTH110  as above
                    self._report(node.place, f"{key.text}: there is no file of the name that {quote(node)} stands for")

    def _to_plain(self, mapping: MappingNode, what: str, may_be_empty: tuple[str, ...] = ()) -> dict[str, PlainValue]:
        """Return the section as pydantic takes it: texts, dictionaries and lists; faulty values are left out."""
        plain: dict[str, PlainValue] = {}
        for key, node in mapping:
            name = key.text
            if isinstance(node, MappingNode):
                plain[name] = self._to_plain(node, f"{what}.{name}")
            elif not isinstance(node, ScalarNode):
                plain[name] = [None] * len(node.items)
            elif is_empty(node):
                if name not in may_be_empty:
                    shown = name if name.isidentifier() else quote(key)  # anything may stand there
                    self._report(node.place, f"{shown} is empty; give it a value or remove the line")
            elif not node.is_faulty:
                plain[name] = node.value
        return plain

    # --- defaults and tunnels -------------------------------------------------------------------------------------

    def _read_defaults(self, root: MappingNode, source: str) -> tuple[LocatedLayer, ...]:
        """Return the layer of ``defaults``, or nothing if there is none."""
        node = root.get("defaults")
        if node is None or is_empty(node):
            return ()
        if not isinstance(node, MappingNode):
            self._report(node.place, "defaults: takes a mapping of options")
            return ()
        check_keys(node, DEFAULT_KEYS, "defaults", self.faults)
        layer = read_layer(node, source, node.place.path.parent, self.faults)
        self.named_files |= layer.files
        note_secrets(layer, self.secrets)
        return (layer,)

    def _read_tunnels(self, root: MappingNode, layers: tuple[LocatedLayer, ...]) -> None:
        node = root.get("tunnels")
        if node is None or is_empty(node):
            return
        context = EntryContext(layers, self.environ, root.place.path.parent, self.named_files, self.secrets)
        for name, item in self._named_items(node):
            if len(self.faults) > MAX_FAULTS:
                self._report(name.place, TOO_MANY_FAULTS)
                break
            if name.value in self.names:
                first = self.names[name.value]
                self._report(name.place, f"duplicate tunnel name {quote(name)} (first defined at {first})")
                continue
            self.names[name.text] = name.place
            if entry := read_entry(name, item, context, self.faults):
                self.entries.append(entry)

    def _named_items(self, node: Node) -> list[tuple[ScalarNode, Node]]:
        """Return the names and entries of ``tunnels:``, which is a mapping, or a list of mappings with ``name:``."""
        if isinstance(node, MappingNode):
            return list(node)
        if isinstance(node, ScalarNode):
            self._report(node.place, "tunnels: takes a mapping NAME: URL, or a list of entries with name:")
            return []
        found: list[tuple[ScalarNode, Node]] = []
        for item in node.items:
            if len(self.faults) > MAX_FAULTS:
                break
            if not isinstance(item, MappingNode):
                self._report(item.place, "an entry of a list is a mapping with name: and url:")
            elif "name" not in item.items:
                self._report(item.place, "the entry has no name:")
            elif name := read_scalar(item.items["name"][1], "name", self.faults):
                rest = {key: value for key, value in item.items.items() if key != "name"}
                found.append((name, MappingNode(item.place, rest)))
        return found

    # --- included files -------------------------------------------------------------------------------------------

    def _find_included(self, root: MappingNode) -> list[Path]:
        """Return the files that ``include:`` names, each once, in the order of the patterns, then of the names."""
        for pattern in read_scalars(root.get("include"), "include", self.faults):
            self.patterns = (*self.patterns, pattern.text)
            if not glob.has_magic(pattern.text) and not os.path.exists(resolve_pattern(self.path, pattern.text)):  # noqa: PTH110  it never raises
                self._report(pattern.place, f"there is no file {quote(pattern)} to include")
        try:
            found = match_includes(self.path, self.patterns, self.search)
        except TooManyDirectoriesError:
            text = f"this searches more than {MAX_DIRECTORIES} directories; name them more narrowly"
            self._report(root.items["include"][0].place, text)
            self.patterns = ()
            return []
        if len(found) > _MAX_INCLUDED_FILES:
            place = root.items["include"][0].place
            self._report(place, f"this includes {len(found)} files; {_MAX_INCLUDED_FILES} at most")
            self.patterns = ()  # the watcher would otherwise check all of them every two seconds
            return []
        return found

    def _include(self, path: Path, layers: tuple[LocatedLayer, ...]) -> None:
        root = self._read_mapping(path, INCLUDED_KEYS, "an included file")
        if root is None:
            return
        if "version" in root.items:
            self._check_version(root)
        own = self._read_defaults(root, f"defaults of {path.name}")
        self._read_tunnels(root, (*own, *layers))

    # --- all entries together -------------------------------------------------------------------------------------

    def _check_addresses(self) -> None:
        """Report tunnels that would listen on the same address, or share a tunnel port and disagree about it."""
        used: ClaimTable[Entry] = ClaimTable()
        ports: dict[Address, Entry] = {}
        for entry in self.entries:
            if not entry.enabled:  # a disabled tunnel may share its port with an enabled one
                continue
            clashes: dict[tuple[Address, Address, str], list[_Clash]] = {}
            for claim in address_claims(entry.spec):
                clash = next(used.conflicts(claim), None)
                if clash is not None:
                    other, holder = clash
                    clashes.setdefault((claim.address, other.address, holder.name), []).append((claim, other, holder))
                used.add(claim, entry)
            for found in clashes.values():
                self._report(entry.origin, _describe_clash(entry, *found[0], [claim.proto for claim, *_ in found]))
            if entry.spec.role is Role.SERVER and entry.spec.tunnel.port:
                self._check_shared_port(entry, ports.setdefault(entry.spec.tunnel, entry))

    def _check_shared_port(self, entry: Entry, first: Entry) -> None:
        """Report options that belong to a tunnel port and differ between two entries on it."""
        for option in map(OPTIONS.__getitem__, PORT_OPTIONS):
            ours, theirs = option.format(entry.spec) or "none", option.format(first.spec) or "none"
            if ours != theirs:
                origin = entry.origins.get(option.name)
                text = f"{option.name}: {ours} here and {theirs} for {quote(first.name)} at {first.origin}"
                hint = f"servers that share the port {entry.spec.tunnel} need the same"
                self._report((origin.place if origin else None) or entry.origin, f"{text}; {hint}")

    def _check_quotas(self, supervisor: SupervisorSettings) -> None:
        """Report quotas where no history is kept, or not long enough to count them."""
        limit = supervisor.history
        for entry in self.entries:
            quota = entry.spec.quota
            if quota is None:
                continue
            hours = 24 * (_DAYS_OF_MONTH if quota.days is None else quota.days)
            if limit.hours < hours:
                origin = entry.origins.get("quota")
                kept = f"keeps {limit}" if limit.hours else "records nothing"
                text = (
                    f"the quota {quota} of {quote(entry.name)} needs a longer history, and supervisor: history: {kept}"
                )
                place = origin.place if origin is not None and origin.place is not None else entry.origin
                self._report(place, f"{text}; write history: {-(-hours // 24)}d or more, or remove the quota")


def _describe_clash(
    entry: Entry, claim: AddressClaim, other: AddressClaim, holder: Entry, protos: Sequence[Proto]
) -> str:
    """Return why two entries exclude each other; ``protos`` are those for which both want the address."""
    if holder is entry:
        return f"the tunnel would listen on {claim.address} twice; give it different ports"
    has_udp = entry.spec.proto.has_udp or holder.spec.proto.has_udp
    shown = f" ({' and '.join(proto.value.upper() for proto in protos)})" if has_udp else ""
    text = f"the tunnel would listen on {claim.address}{shown}, but {quote(holder.name)} at {holder.origin}"
    text = f"{text} listens on {other.address}{shown} already"
    is_datagrams = protos[0] is Proto.UDP and (claim.is_shareable or other.is_shareable)
    if is_datagrams and claim.tunnel != other.tunnel:
        carrying = quote((entry if claim.is_shareable else holder).name)
        hint = f"take another port, or write udp_carrier: stream in the entry of {carrying}"
        return f"{text}; {carrying} carries datagrams between client and server there: {hint}"
    if claim.service == PUBLISHERS and claim.tunnel == other.tunnel:
        return f"{text} and lets clients publish; write the rules of both in one entry"
    if claim.is_shareable and claim.tunnel == other.tunnel:
        return f"{text}; to share the port, give each a service of its own (service=, the same at its client)"
    if claim.is_shareable and other.is_shareable and claim.service != other.service:
        return f"{text}; to share the port, write its address in the same way"
    return text


def _section_fault(section: MappingNode, detail: ErrorDetails) -> Fault:
    """Return an error of pydantic as a sentence at its place."""
    location = [str(part) for part in detail["loc"]]
    is_unknown = detail["type"] == "extra_forbidden"
    node: Node = section
    key = ScalarNode(section.place, "")
    place = section.place
    for part in location:
        if not isinstance(node, MappingNode) or part not in node.items:
            break
        key, node = node.items[part]
        place = key.place if is_unknown else node.place
    parent = ".".join(["supervisor", *location[:-1]])
    if is_unknown:
        known = tuple(_SECTION_MODELS[tuple(location[:-1])].model_fields)
        hint = did_you_mean(location[-1], known) or f"; known are {', '.join(known)}"
        return Fault(place, f"unknown key {quote(key)} in {parent}{hint}")
    if detail["type"] == "missing":
        return Fault(place, f"{location[-1]}: is missing in {parent}")
    if detail["type"] == "value_error":
        error = detail["ctx"]["error"]
        if isinstance(error, InvalidValueError) and isinstance(node, ScalarNode) and node.is_substituted:
            error = error.quoting(quote(node))
        return Fault(place, f"{'.'.join(location)}: {error}")
    return Fault(place, f"{'.'.join(location)}: a mapping is expected here")
