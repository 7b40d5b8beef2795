"""A file of tunnels, and the files it includes, into a Manifest; or every fault in them, each with its place."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError

from orchestrator.config.document import (
    MappingNode,
    Node,
    ScalarNode,
    SequenceNode,
    decode_text,
    is_empty,
    parse_document,
    quote,
)
from orchestrator.config.entries import (
    DEFAULT_KEYS,
    Context,
    Options,
    check_keys,
    read_entry,
    read_options,
    text_of,
    texts_of,
)
from orchestrator.config.faults import ConfigError, Fault, Place
from orchestrator.config.file_set import (
    MISSING,
    FileSet,
    hash_bytes,
    hash_file,
    match_includes,
    read_file,
    resolve_pattern,
)
from orchestrator.config.manifest import Entry, Manifest, addresses_conflict, listen_addresses
from orchestrator.config.schema import VERSION, ApiSettings, MqttSettings, SupervisorSettings
from tunnel.model import settings
from tunnel.model.errors import did_you_mean
from tunnel.model.options import Layer
from tunnel.model.settings import SettingError

if TYPE_CHECKING:
    from tunnel.model.address import Address

FILE_KEYS: Final = ("version", "supervisor", "defaults", "include", "tunnels")
INCLUDED_KEYS: Final = ("version", "defaults", "tunnels")

_MOST_FILES: Final = 1000
_MODELS: Final[dict[tuple[str, ...], type[BaseModel]]] = {
    (): SupervisorSettings,
    ("api",): ApiSettings,
    ("mqtt",): MqttSettings,
}
_SKELETON: Final = "write version: 1 and tunnels: as in configs/quickstart.yaml"


def load(path: Path, environ: Mapping[str, str], log: str | None = None) -> Manifest:
    """The manifest of a file. Raises ConfigError with all faults.

    ``log`` is the level of tunnels that name none anywhere in the file. Reads the key files that entries name.
    """
    loader = _Loader(path, environ, log)
    manifest = loader.load()
    if loader.faults or manifest is None:
        raise ConfigError(loader.faults, loader.sources())
    return manifest


@dataclass(slots=True)
class _Loader:
    path: Path
    environ: Mapping[str, str]
    log: str | None
    faults: list[Fault] = field(default_factory=list)
    files: dict[Path, str] = field(default_factory=dict)
    patterns: tuple[str, ...] = ()
    named: set[Path] = field(default_factory=set)
    names: dict[str, Place] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def load(self) -> Manifest | None:
        """The manifest, or None where a fault leaves nothing to say more about."""
        reload = partial(load, self.path, self.environ, self.log)
        self.environ = self._sound_environment()
        root = self._read_file(self.path, FILE_KEYS, "a file of tunnels")
        if root is None:
            return None
        self._check_version(root)
        supervisor = self._supervisor(root)
        outer = self._defaults(root, "defaults")
        levels = (outer,) if outer else ()
        if self.log:
            levels = (*levels, Options(Layer("--log-level", {"log": self.log}), {}))
        self._tunnels(root, levels)
        for path in self._included(root):
            self._include(path, levels)
        self._check_addresses()
        return Manifest(
            path=self.path,
            supervisor=supervisor,
            entries=tuple(self.entries),
            warnings=tuple(_warnings(self.entries)),
            sources=self.sources(),
            reload=reload,
        )

    def sources(self) -> FileSet:
        """What was read so far."""
        for path in self.named:
            self.files.setdefault(path, hash_file(path))
        return FileSet(path=self.path, patterns=self.patterns, named=frozenset(self.named), files=self.files)

    def _sound_environment(self) -> dict[str, str]:
        """The environment without variables whose values make no sense: each is told once, not for each entry."""
        environ = dict(self.environ)
        for name, value in settings.from_environment(environ).items():
            try:
                settings.parse_setting(name, value)
            except SettingError as error:
                message = str(error).removeprefix(f"{name}: ")
                self.faults.append(Fault(Place(self.path), f"the environment variable {name.upper()}: {message}"))
                del environ[name.upper()]
        return environ

    def _read_file(self, path: Path, known: tuple[str, ...], what: str) -> MappingNode | None:
        self.files[path] = MISSING
        try:
            data = read_file(path)
        except FileNotFoundError:
            self.faults.append(Fault(Place(path), f"there is no such file; {_SKELETON}, or name another file"))
            return None
        except IsADirectoryError:
            self.faults.append(Fault(Place(path), "this is a directory; name a file in it"))
            return None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "its name cannot be one"
            self.faults.append(Fault(Place(path), f"cannot read the file: {reason}"))
            return None
        self.files[path] = hash_bytes(data)
        try:
            root = parse_document(path, decode_text(path, data), self.environ, self.faults)
        except ConfigError as error:
            self.faults.extend(error.faults)
            return None
        except RecursionError:
            self.faults.append(Fault(Place(path), "the file is nested too deep"))
            return None
        if root is None:
            self.faults.append(Fault(Place(path), f"the file is empty; {_SKELETON}"))
        elif not isinstance(root, MappingNode):
            self.faults.append(Fault(root.place, f"a mapping is expected here; {_SKELETON}"))
        else:
            check_keys(root, known, what, self.faults)
            return root
        return None

    def _check_version(self, root: MappingNode) -> None:
        if "version" not in root.items:
            self.faults.append(Fault(root.place, f"version: is missing; write version: {VERSION}"))
        elif (text := text_of(root.items["version"][1], "version", self.faults)) and text.value != VERSION:
            message = f"version {quote(text.value or '')} is unknown here; this program reads version: {VERSION}"
            self.faults.append(Fault(text.place, message))

    def _supervisor(self, root: MappingNode) -> SupervisorSettings:
        node = root.get("supervisor")
        if node is None or is_empty(node):
            return SupervisorSettings()
        if not isinstance(node, MappingNode):
            self.faults.append(Fault(node.place, "supervisor: takes a mapping"))
            return SupervisorSettings()
        plain = self._plain(node, "supervisor", may_be_empty=("api", "mqtt"))
        try:
            return SupervisorSettings.model_validate(plain, context={"base": self.path.parent})
        except ValidationError as error:
            self.faults.extend(_fault_of(node, detail) for detail in error.errors())
        return SupervisorSettings()

    def _plain(self, block: MappingNode, what: str, may_be_empty: tuple[str, ...] = ()) -> dict[str, Any]:
        """The section as pydantic takes it: texts, dictionaries and lists; what is broken is left out."""
        plain: dict[str, Any] = {}
        for key, node in block:
            name = key.value or ""
            if isinstance(node, MappingNode):
                plain[name] = self._plain(node, f"{what}.{name}")
            elif isinstance(node, SequenceNode):
                plain[name] = [None] * len(node.items)
            elif is_empty(node):
                if name not in may_be_empty:
                    self.faults.append(Fault(node.place, f"{name} is empty; give it a value or remove the line"))
            elif not node.is_broken:
                plain[name] = node.value
        return plain

    def _defaults(self, root: MappingNode, source: str) -> Options | None:
        node = root.get("defaults")
        if node is None or is_empty(node):
            return None
        if not isinstance(node, MappingNode):
            self.faults.append(Fault(node.place, "defaults: takes a mapping of options"))
            return None
        check_keys(node, DEFAULT_KEYS, "defaults", self.faults)
        options = read_options(node, source, node.place.path.parent, self.faults)
        self.named |= options.files
        return options

    def _tunnels(self, root: MappingNode, levels: tuple[Options, ...]) -> None:
        node = root.get("tunnels")
        if node is None or is_empty(node):
            return
        context = Context(levels, self.environ, root.place.path.parent, self.named)
        for name, item in self._named(node):
            if name.value in self.names:
                first = self.names[name.value]
                self.faults.append(Fault(name.place, f"a tunnel {quote(name.value)} is there already, at {first}"))
                continue
            self.names[name.value or ""] = name.place
            if entry := read_entry(name, item, context, self.faults):
                self.entries.append(entry)

    def _named(self, node: Node) -> list[tuple[ScalarNode, Node]]:
        """Mapping and list form alike: names and what they name."""
        if isinstance(node, MappingNode):
            return list(node)
        if isinstance(node, ScalarNode):
            self.faults.append(Fault(node.place, "tunnels: takes a mapping NAME: URL, or a list of entries with name:"))
            return []
        found: list[tuple[ScalarNode, Node]] = []
        for item in node.items:
            if not isinstance(item, MappingNode):
                self.faults.append(Fault(item.place, "an entry of a list is a mapping with name: and url:"))
            elif "name" not in item.items:
                self.faults.append(Fault(item.place, "the entry has no name:"))
            elif name := text_of(item.items["name"][1], "name", self.faults):
                rest = {key: value for key, value in item.items.items() if key != "name"}
                found.append((name, MappingNode(item.place, rest)))
        return found

    def _included(self, root: MappingNode) -> list[Path]:
        """The files that ``include:`` names, each once, in the order of the patterns, then of the names."""
        for pattern in texts_of(root.get("include"), "include", self.faults):
            text = pattern.value or ""
            self.patterns = (*self.patterns, text)
            if not glob.has_magic(text) and not Path(resolve_pattern(self.path, text)).exists():
                self.faults.append(Fault(pattern.place, f"there is no file {quote(text)} to include"))
        found = match_includes(self.path, self.patterns)
        if len(found) > _MOST_FILES:
            self.faults.append(
                Fault(root.items["include"][0].place, f"this includes {len(found)} files; {_MOST_FILES} at most")
            )
            self.patterns = ()  # nor shall anybody look at all of them every two seconds
            return []
        return found

    def _include(self, path: Path, levels: tuple[Options, ...]) -> None:
        root = self._read_file(path, INCLUDED_KEYS, "an included file")
        if root is None:
            return
        if "version" in root.items:
            self._check_version(root)
        inner = self._defaults(root, f"defaults of {path.name}")
        self._tunnels(root, (inner, *levels) if inner else levels)

    def _check_addresses(self) -> None:
        taken: dict[int, list[tuple[Address, Entry]]] = {}
        for entry in self.entries:
            if not entry.enabled:  # a tunnel that is off may wait for another's port
                continue
            for address in listen_addresses(entry.spec):
                others = taken.setdefault(address.port, [])
                clash = next(((a, e) for a, e in others if addresses_conflict(address, a)), None)
                if clash and clash[1] is entry:
                    message = f"the tunnel would listen on {address} twice; give it different ports"
                    self.faults.append(Fault(entry.origin, message))
                elif clash:
                    other = f"{quote(clash[1].name)} at {clash[1].origin} listens on {clash[0]}"
                    self.faults.append(Fault(entry.origin, f"it would listen on {address}, but {other} already"))
                others.append((address, entry))


def _warnings(entries: list[Entry]) -> list[Fault]:
    text = "the tunnel is open: anyone who finds its port may use it; give both ends a key (nodepass-orch keygen)"
    return [Fault(entry.origin, f"{quote(entry.name)}: {text}") for entry in entries if entry.spec.is_exposed]


def _fault_of(section: MappingNode, detail: Any) -> Fault:  # noqa: ANN401  pydantic's ErrorDetails
    """One of pydantic's complaints as a sentence, where it stands."""
    location = [str(part) for part in detail["loc"]]
    block: Node = section
    place = section.place
    for part in location:
        if not isinstance(block, MappingNode) or part not in block.items:
            break
        key, block = block.items[part]
        place = key.place if detail["type"] == "extra_forbidden" else block.place
    path = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = tuple(_MODELS[tuple(location[:-1])].model_fields)
        hint = did_you_mean(location[-1], known) or f"; known are {', '.join(known)}"
        return Fault(place, f"unknown key {quote(location[-1])} in {'.'.join(['supervisor', *location[:-1]])}{hint}")
    if detail["type"] == "missing":
        return Fault(place, f"{location[-1]}: is missing in {'.'.join(['supervisor', *location[:-1]])}")
    if detail["type"] == "value_error":
        return Fault(place, f"{path}: {detail['ctx']['error']}")
    return Fault(place, f"{path}: a mapping is expected here")
