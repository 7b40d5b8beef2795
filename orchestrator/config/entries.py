"""One entry of the file into an Entry: its options, its URL, its name, every fault where it stands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.config.document import MappingNode, Node, ScalarNode, SequenceNode, is_empty, quote
from orchestrator.config.faults import Fault, Place
from orchestrator.config.file_set import hash_bytes, read_file
from orchestrator.config.manifest import Entry, OptionOrigin
from orchestrator.config.schema import MAX_NAME_LENGTH, parse_bool
from tunnel.model import settings
from tunnel.model.errors import OptionError, UrlError, did_you_mean
from tunnel.model.options import OPTION_NAMES, Layer, check_names, make_spec
from tunnel.model.url import TunnelUrl, looks_like_url, parse_url

if TYPE_CHECKING:
    from tunnel.model.spec import TunnelSpec

DEFAULT_KEYS: Final = ("key", *OPTION_NAMES)
ENTRY_KEYS: Final = ("url", "enabled", "tags", *DEFAULT_KEYS)

_URL: Final = "url"
_CERTIFICATES: Final = ("tls_cert", "tls_key", "tls_ca")
_FILES: Final = ("key_file", *_CERTIFICATES)
_LABELS: Final = {_URL: "URL", "the entry": "entry", "--log-level": "command line"}  # others are defaults
_PROBE: Final = parse_url("client://localhost:1/localhost:1")


@dataclass(frozen=True, slots=True)
class Options:
    """Options from one place of the file, sound each by itself, and where each of them stands."""

    layer: Layer
    places: Mapping[str, Place]
    files: frozenset[Path] = frozenset()
    """the files that these options name, whether they can be read or not"""


@dataclass(frozen=True, slots=True)
class Context:
    """What an entry does not say itself."""

    defaults: tuple[Options, ...]
    """strongest first"""
    environ: Mapping[str, str]
    base: Path
    """where relative file names start"""
    named: set[Path]
    """every file that an entry names is added to these"""


def check_keys(block: MappingNode, known: tuple[str, ...], where: str, faults: list[Fault]) -> None:
    """A fault for every key that nobody knows."""
    for key, _ in block:
        name = key.value or ""
        if name not in known:
            hint = did_you_mean(name, known) or f"; known are {', '.join(known)}"
            faults.append(Fault(key.place, f"unknown key {quote(name)} in {where}{hint}"))


def text_of(node: Node, what: str, faults: list[Fault]) -> ScalarNode | None:
    """A scalar with something in it; else a fault and None."""
    if isinstance(node, ScalarNode) and node.is_broken:
        return None
    if not isinstance(node, ScalarNode):
        faults.append(Fault(node.place, f"{what} takes one text, not a list or a mapping"))
        return None
    if not node.value:
        faults.append(Fault(node.place, f"{what} is empty; give it a value or remove the line"))
        return None
    return node


def texts_of(node: Node | None, what: str, faults: list[Fault]) -> tuple[ScalarNode, ...]:
    """A list of scalars, or one alone."""
    if node is None or is_empty(node):
        return ()
    if isinstance(node, MappingNode):
        faults.append(Fault(node.place, f"{what} takes a list of texts"))
        return ()
    items = node.items if isinstance(node, SequenceNode) else (node,)
    return tuple(text for item in items if (text := text_of(item, f"each of {what}", faults)))


def read_options(block: MappingNode, source: str, base: Path, faults: list[Fault]) -> Options:
    """The options of an entry or of ``defaults``; those with a fault are left out, so that it is told once."""
    texts: dict[str, ScalarNode] = {}
    for key, node in block:
        if key.value in DEFAULT_KEYS and (text := text_of(node, key.value, faults)):
            texts[key.value] = text
    return _valid_options(
        source, {n: t.value or "" for n, t in texts.items()}, {n: t.place for n, t in texts.items()}, base, faults
    )


def _valid_options(
    source: str, values: Mapping[str, str], places: Mapping[str, Place], base: Path, faults: list[Fault]
) -> Options:
    """Each option by itself, so that one fault does not hide the next."""
    good: dict[str, object] = {}
    for name, value in values.items():
        try:
            make_spec(_PROBE, [Layer(source, {name: value}, base)])
        except OptionError as error:
            faults.append(Fault(places[name], f"{name}: {error}"))
            continue
        except UrlError:
            pass  # it needs others beside it: judged when all are together
        good[name] = value
    files = frozenset(base / os.path.expanduser(values[name]) for name in _FILES if name in values)  # noqa: PTH111  never raises
    return Options(Layer(source, good, base), places, files)


def read_entry(name: ScalarNode, node: Node, context: Context, faults: list[Fault]) -> Entry | None:
    """The entry, or None and the reasons in ``faults``."""
    before = len(faults)
    _check_name(name, faults)
    if looks_like_url(name.value or ""):
        return None
    if isinstance(node, SequenceNode):
        faults.append(Fault(node.place, "an entry is a URL or a mapping with url:, not a list"))
        return None
    block = (
        node
        if isinstance(node, MappingNode)
        else MappingNode(node.place, {"url": (ScalarNode(name.place, "url"), node)})
    )
    check_keys(block, ENTRY_KEYS, "an entry", faults)
    if "url" not in block.items and not any(did_you_mean(key, ("url",)) for key in block.items):
        faults.append(Fault(block.place, "the entry has no url:"))
    options = read_options(block, "the entry", context.base, faults)
    enabled = _read_enabled(block, faults)
    tags = tuple(tag.value or "" for tag in texts_of(block.get("tags"), "tags", faults))
    written = text_of(block.items["url"][1], "url", faults) if "url" in block.items else None
    url = _read_url(written, faults) if written else None
    if written is None or url is None:
        return None
    context.named.update(options.files)
    levels = (_own_options(written, url, context, faults), options, *context.defaults)
    spec = _read_spec(written, url, levels, context, faults) if len(faults) == before else None
    files = _read_certificates(spec, written, levels, faults) if spec else {}
    if spec is None or len(faults) > before or name.is_broken:
        return None
    return Entry(
        name=name.value or "",
        spec=spec,
        enabled=enabled,
        tags=tags,
        files=files,
        url=url.masked(),
        origin=name.place,
        origins=_origins(levels, context.environ),
    )


def _check_name(name: ScalarNode, faults: list[Fault]) -> None:
    text = name.value or ""
    complaint = None
    if looks_like_url(text):
        complaint = "a name is missing before this URL; write NAME: URL"
    elif not text or text != text.strip() or not text.isprintable():
        complaint = "a name is a printable text without blanks at its ends"
    elif len(text) > MAX_NAME_LENGTH:
        complaint = f"a name has at most {MAX_NAME_LENGTH} characters; this one has {len(text)}"
    elif text in {".", ".."}:
        complaint = f"{text!r} cannot be a name: it means a folder in the paths of the local API"
    if complaint and not name.is_broken:
        faults.append(Fault(name.place, complaint))


def _read_enabled(block: MappingNode, faults: list[Fault]) -> bool:
    if "enabled" in block.items and (text := text_of(block.items["enabled"][1], "enabled", faults)):
        try:
            return parse_bool(text.value)
        except ValueError as error:
            faults.append(Fault(text.place, f"enabled: {error}"))
    return True


def _read_url(text: ScalarNode, faults: list[Fault]) -> TunnelUrl | None:
    try:
        return parse_url(text.value or "")
    except UrlError as error:
        faults.append(Fault(text.at(error.offset), str(error)))
        return None


def _own_options(text: ScalarNode, url: TunnelUrl, context: Context, faults: list[Fault]) -> Options:
    """The URL's options, as a level of the file: relative file names start at the file, and faults have places."""
    for option in url.options:
        try:
            check_names(replace(url, options=(option,)))
        except UrlError as error:
            faults.append(Fault(text.at(error.offset), str(error)))
    values = {option.name: option.value for option in url.options if option.name in OPTION_NAMES}
    places = {option.name: text.at(option.offset) for option in url.options}
    if url.key and "key_file" in values:
        faults.append(Fault(places["key_file"], "the URL has a key and a key_file; keep one"))
    own = _valid_options(_URL, values, places, context.base, faults)
    context.named.update(own.files)
    return own


def _read_spec(
    text: ScalarNode, url: TunnelUrl, levels: tuple[Options, ...], context: Context, faults: list[Fault]
) -> TunnelSpec | None:
    try:
        return make_spec(replace(url, options=()), [level.layer for level in levels], context.environ)
    except UrlError as error:
        faults.append(Fault(text.place, str(error)))
    except OptionError as error:
        faults.append(_fault_of(error, text, levels))
    return None


def _fault_of(error: OptionError, text: ScalarNode, levels: tuple[Options, ...]) -> Fault:
    sources = {error.source} if error.source else {level.layer.source for level in levels}
    at = next((o.places[error.name] for o in levels if o.layer.source in sources and error.name in o.places), None)
    origin = "" if at else f" (from {error.source})"
    return Fault(at or text.place, f"{error.name}: {error}{origin}")


def _read_certificates(
    spec: TunnelSpec, text: ScalarNode, levels: tuple[Options, ...], faults: list[Fault]
) -> dict[str, str]:
    """The digest of each certificate file: whether it can be read is said now, not later when nobody looks."""
    found: dict[str, str] = {}
    for name in _CERTIFICATES:
        path: Path | None = getattr(spec, name)
        if path is None:
            continue
        try:
            found[name] = hash_bytes(read_file(path))
        except OSError as error:
            faults.append(_fault_of(OptionError(name, f"cannot read {path}: {error.strerror}", ""), text, levels))
    return found


def _origins(levels: tuple[Options, ...], environ: Mapping[str, str]) -> dict[str, OptionOrigin]:
    found = dict.fromkeys(settings.from_environment(environ), OptionOrigin("environment"))
    for level in reversed(levels):  # the strongest last, so that it stays
        source = _LABELS.get(level.layer.source, "defaults")
        found |= {name: OptionOrigin(source, level.places.get(name)) for name in level.layer.values}
    return found
