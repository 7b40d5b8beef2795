"""Translates the files of rathole; each has its server, its client, or both.

Source: "Configuration" in the README.md of https://github.com/rathole-org/rathole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from orchestrator.authoring.draft import Draft
from orchestrator.authoring.frp import Translation, service_name
from orchestrator.authoring.source import ForeignFile, ImportFileError, Section, parse_toml
from orchestrator.process.terminal_text import printable
from tunnel.model.address import parse_address
from tunnel.model.errors import UrlError

_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "transport.type": "the carrier is TCP with encryption here",
        "transport.tls": "is not needed: everything is encrypted, and the key proves both ends",
        "transport.noise": "is not needed: everything is encrypted, and the key proves both ends",
        "transport.websocket": "the carrier is TCP here",
        "transport.tcp.proxy": "a client connects to its server without a proxy here",
        "transport.tcp.nodelay": "",  # on here
        "transport.tcp": "keepalive is set for each kind of connection here",
        "nodelay": "is always on here",
        "heartbeat_timeout": "three unanswered pings end a link; see report_interval",
        "heartbeat_interval": "see report_interval",
        "proxy_protocol": "acts at the end that dials the target: write proxy: in the client's entry",
        "prefer_ipv6": "all addresses of a name are tried here",
    }
)
_PLAIN: Final = {"", "tcp", "tls", "noise"}


def translate(sources: Sequence[ForeignFile]) -> Translation:
    """Translate files of rathole. Raises ImportFileError if one cannot be read, or has neither end."""
    found = Translation()
    for source in sources:
        values = parse_toml(source)
        ends = [end for end in ("server", "client") if isinstance(values.get(end), Mapping)]
        if not ends:
            raise ImportFileError(f"{source.name}: this is not a file of rathole: it has neither [server] nor [client]")
        for end in ends:
            block = values[end]
            root = Section(source, block if isinstance(block, Mapping) else {}, (rf"\[{end}\b",), f"[{end}]")
            drafts = found.server if end == "server" else found.clients.setdefault(source.name, [])
            drafts += _translate_end(root, end)
            root.note_leftovers(_REASONS)
        Section(source, {name: value for name, value in values.items() if name not in ends}).note_leftovers({})
    return found


def _translate_end(root: Section, end: str) -> list[Draft]:
    where = root.text("bind_addr" if end == "server" else "remote_addr")
    token = root.text("default_token")
    common: dict[str, str] = {}
    if (retry := root.integer("retry_interval", 1, 86_400)) is not None:
        common["client_cooldown"] = f"{retry}s"
    if root.text("transport.type") not in _PLAIN:
        root.note("transport.type", _REASONS["transport.type"])
    used: set[str] = set()
    drafts: list[Draft] = []
    for name, values in root.mappings("services").items():
        quoted = re.escape(name[:60])
        patterns = (
            rf"\[{end}\.services\.[\"']?{quoted}[\"']?\]|^\s*[\"']?{quoted}[\"']?\s*=|services\.[\"']?{quoted}",
        )
        service = Section(root.source, values, patterns, f"service {printable(name[:60])!r}")
        draft = _translate_service(service, name, end, where, token, used)
        if draft is not None:
            draft.options = {**common, **draft.options}
            drafts.append(draft)
    return drafts


def _translate_service(service: Section, name: str, end: str, where: str, token: str, used: set[str]) -> Draft | None:
    address = service.text("bind_addr" if end == "server" else "local_addr")
    kind = (service.text("type") or "tcp").casefold()
    key = service.text("token") or token
    objection = (
        _type_objection(kind)
        or ("" if key else "it has no token, and rathole does not accept it either")
        or _address_objection(where, "[server] bind_addr" if end == "server" else "[client] remote_addr")
        or _address_objection(address, "bind_addr" if end == "server" else "local_addr")
    )
    if objection:
        service.note("", f"is left out: {objection}")
        return None
    options = {"key": key, "service": service_name(name, used), **({"proto": "udp"} if kind == "udp" else {})}
    if end == "client" and (retry := service.integer("retry_interval", 1, 86_400)) is not None:
        options["client_cooldown"] = f"{retry}s"
    service.note_leftovers(_REASONS)
    return Draft(name, f"{end}://{where}/{address}", service.place(), options)


def _type_objection(kind: str) -> str:
    return "" if kind in {"tcp", "udp"} else f"the type {kind[:20]!r} is neither tcp nor udp"


def _address_objection(text: str, what: str) -> str:
    try:
        parse_address(text)
    except UrlError as error:
        return f"{what}: {error}"
    return ""
