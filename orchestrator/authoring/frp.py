"""Translates the files of frp: of frpc, and of frps together with those of its clients.

In frp a client names the port at the server; here the server's file has an entry for each. So both files are written.
Source: the files ``conf/frpc_full_example.toml`` and ``conf/frps_full_example.toml`` of
https://github.com/fatedier/frp.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from orchestrator.authoring.draft import Draft, Variable, clean_name, join_address
from orchestrator.authoring.frp_ini import parse_ini
from orchestrator.authoring.frp_templates import expand
from orchestrator.authoring.source import ForeignFile, ImportFileError, Section, parse_json, parse_toml, parse_yaml
from orchestrator.process.terminal_text import printable
from tunnel.model.keys import generate_key

SERVER_DEFAULTS: Final[Mapping[str, str]] = MappingProxyType({"mode": "reverse", "data_port": "tunnel"})
CLIENT_DEFAULTS: Final[Mapping[str, str]] = MappingProxyType({"mode": "reverse"})
DEFAULT_PORT: Final = 7000
MAX_SERVICE_LENGTH: Final = 64
_WILDCARDS: Final = {"", "0.0.0.0", "::"}
_SERVER_KEYS: Final = {"bindAddr", "bindPort", "proxyBindAddr", "allowPorts", "vhostHTTPPort", "vhostHTTPSPort"}
_CLIENT_KEYS: Final = {"serverAddr", "serverPort", "proxies", "visitors", "start", "includes"}
_TEMPLATE_VARIABLE: Final = re.compile(r"\{\{\s*\.Envs\.([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_BANDWIDTH: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([KM])B")
_LEVELS: Final = {"trace": "debug", "debug": "debug", "info": "info", "warn": "warn", "error": "error"}
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "transport.tcpMux": "",
        "transport.tcpMuxKeepaliveInterval": "",
        "transport.tls": "is not needed: everything is encrypted, and the key proves both ends",
        "transport.useEncryption": "",  # on here
        "transport.useCompression": "data is not compressed here",
        "transport.bandwidthLimitMode": "",  # which end limits makes no difference to visitors
        "transport.protocol": "the carrier is TCP here",
        "transport.quic": "the carrier is TCP here",
        "transport.proxyURL": "a client connects to its server without a proxy here",
        "transport.maxPoolCount": "pools grow with demand here; see max_pool_capacity",
        "transport.heartbeatInterval": "see report_interval",
        "transport.heartbeatTimeout": "three unanswered pings end a link; see report_interval",
        "kcpBindPort": "the carrier is TCP here",
        "quicBindPort": "the carrier is TCP here",
        "log": "the log is a matter of the daemon: up --log-file, or the service manager",
        "webServer": "the local API and metrics take its place: supervisor: in the file",
        "enablePrometheus": "see metrics: of supervisor:",
        "allowPorts": "is not needed: the ports for visitors are those of the server's entries",
        "vhostHTTPPort": "visitors are not routed by host name here",
        "vhostHTTPSPort": "visitors are not routed by host name here",
        "subDomainHost": "visitors are not routed by host name here",
        "auth": "the key is the only way of authentication",
        "includes": "is not followed: import those files as well",
        "loginFailExit": "a client always tries again here",
        "metadatas": "only plugins of frps use it",
        "annotations": "only the dashboard of frps shows it",
        "httpPlugins": "has no plugins",
        "healthCheck.httpHeaders": "a check sends no headers of its own",
        "section": "",
    }
)


@dataclass(frozen=True, slots=True)
class Translation:
    """What the files of another program become."""

    server: list[Draft] = field(default_factory=list)
    clients: dict[str, list[Draft]] = field(default_factory=dict)
    """the entries of each client, by the name of its file"""


@dataclass(slots=True)
class _Settings:
    """The settings that all entries of one file of frp share."""

    root: Section
    token: str = ""
    key_file: str = ""
    started: set[str] = field(default_factory=set)
    """the only proxies that are enabled; empty means all"""

    @property
    def authentication(self) -> dict[str, str]:
        if self.key_file:
            return {"key_file": self.key_file}
        return {"key": self.token} if self.token else {}


@dataclass(slots=True)
class _Published:
    """What visitors reach at one port of the server."""

    name: str
    group: tuple[str, str]
    """its name and its key; the name is empty if there is no group"""
    server: Draft
    clients: dict[str, Draft]
    """the entry of each client, by the name of its file"""


def translate(
    sources: Sequence[ForeignFile],
    make_key: Callable[[], str] = generate_key,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Translation:
    """Translate files of frp. Raises ImportFileError if one cannot be read, or if there are no clients.

    ``make_key`` makes the key of both ends if frp has no token. ``environ`` has the variables of templates.
    """
    server: _Settings | None = None
    clients: list[_Settings] = []
    for source in sources:
        expand(source, environ)
        settings = _read_settings(source)
        if _is_server(settings.root):
            if server is not None:
                raise ImportFileError(f"{source.name}: a second file of frps; import one server at a time")
            server = settings
        else:
            clients.append(settings)
    if not clients and server is not None:
        text = "this file of frps has no services, because its clients name them; name their files as well"
        raise ImportFileError(f"{server.root.source.name}: {text}: import frp FRPS FRPC…")
    writer = _Writer(server, make_key)
    for client in clients:
        writer.add_client(client)
    for settings in (*clients, *([server] if server else [])):
        settings.root.note_leftovers(_REASONS)
    return writer.translation


def _read_settings(source: ForeignFile) -> _Settings:
    root = Section(source, _parse(source))
    settings = _Settings(root)
    token, method = root.text("auth.token"), root.text("auth.method")
    variable = _TEMPLATE_VARIABLE.fullmatch(token.strip())
    settings.token = Variable.of(variable[1]) if variable else token
    if method not in {"", "token"}:
        root.note("auth.method", f"{method[:20]!r} has no counterpart; the key stands alone")
        settings.token = ""
    settings.started = _started(root.get("start"))
    if root.text("auth.tokenSource.type") == "file":
        settings.key_file = root.text("auth.tokenSource.file.path")
    return settings


def _parse(source: ForeignFile) -> Mapping[str, object]:
    suffix = source.name.rpartition(".")[2].casefold()
    if suffix in {"yaml", "yml", "json"}:
        value = parse_json(source) if suffix == "json" else parse_yaml(source)
        if not isinstance(value, Mapping):
            raise ImportFileError(f"{source.name}: this is not a file of frp: a mapping is expected")
        return {str(key): each for key, each in value.items()}
    if suffix == "ini" or re.search(r"^\s*\[common\]", source.text, re.MULTILINE):
        return parse_ini(source)
    return parse_toml(source)


def _is_server(root: Section) -> bool:
    return bool(_SERVER_KEYS & root.values.keys()) and not (_CLIENT_KEYS - {"proxies", "visitors"}) & root.values.keys()


class _Writer:
    """Collects the entries of both ends."""

    def __init__(self, server: _Settings | None, make_key: Callable[[], str]) -> None:
        self.translation = Translation()
        self._server = server
        self._make_key = make_key
        self._fresh_key: dict[str, str] = {}
        self._published: dict[tuple[str, int], _Published] = {}
        self._services: set[str] = set()
        root = server.root if server is not None else None
        self._bind = (root.text("bindAddr") if root else "") or "0.0.0.0"
        self._visitors = (root.text("proxyBindAddr") if root else "") or self._bind
        self._bind_port = (root.integer("bindPort", 1, 65535) if root else None) or DEFAULT_PORT

    def add_client(self, client: _Settings) -> None:
        """Add the entries of one file of frpc, to both ends."""
        root = client.root
        host = root.text("serverAddr")
        port = root.integer("serverPort", 1, 65535) or DEFAULT_PORT
        if self._server is None:
            self._bind_port = port
        elif port != self._bind_port:
            root.note("serverPort", f"{port} differs from the bindPort of frps, {self._bind_port}")
        if self._server is not None and self._server.authentication != client.authentication:
            root.note("auth.token", "differs from that of frps; each end has that of its own file")
        where = join_address("127.0.0.1" if host in _WILDCARDS else host, port)
        common, user = _common_options(root), root.text("user")
        drafts = self.translation.clients.setdefault(root.source.name, [])
        for values in root.sections("proxies"):
            proxy = _section(root.source, values, "proxy")
            name = proxy.text("name")
            draft = self._add_proxy(proxy, f"{user}.{name}" if user else name, where, client)
            if draft is not None:
                draft.options |= common
                drafts.append(draft)
        for values in root.sections("visitors"):
            visitor = _section(root.source, values, "visitor")
            visitor.note("", "is left out: a tunnel between two clients of frps has no counterpart; see mode=forward")

    def _authentication(self, first: _Settings | None, second: _Settings | None) -> dict[str, str]:
        """Return the option with the key: of one file, else of the other, else a fresh key, which both ends share."""
        found = (first.authentication if first else {}) or (second.authentication if second else {})
        if not found and not self._fresh_key:
            self._fresh_key = {"key": self._make_key()}
            for settings in filter(None, (first, second)):
                settings.root.note("auth.token", "is missing; both ends have a fresh key")
        return found or self._fresh_key

    def _add_proxy(self, proxy: Section, name: str, where: str, client: _Settings) -> Draft | None:
        """Add the entries of one proxy. Returns the client's; None if there is none, or if an earlier one has it."""
        kind = proxy.text("type") or "tcp"
        if reason := _objection(proxy, kind):
            proxy.note("", reason)
            return None
        local = proxy.integer("localPort", 1, 65535)
        remote = proxy.integer("remotePort", 0, 65535)
        if local is None or not remote:
            what = "localPort" if local is None else "remotePort"
            proxy.note("", f"is left out: it has no {what}, and a port that the server chooses has no counterpart")
            return None
        target = join_address(proxy.text("localIP") or "127.0.0.1", local)
        draft = Draft(name, f"client://{where}/{target}", proxy.place(), _proxy_options(proxy, kind))
        draft.enabled = _is_enabled(proxy, client.started)
        group = proxy.text("loadBalancer.group"), proxy.text("loadBalancer.groupKey")
        proxy.note_leftovers(_REASONS)
        known = self._published.get((kind, remote))
        if reason := _group_objection(known, group, draft):
            proxy.note("", f"is left out: {reason}")
            return None
        if known is not None:
            return self._add_to_group(known, draft, proxy, client)
        return self._publish(draft, kind, remote, group, client)

    def _publish(self, draft: Draft, kind: str, remote: int, group: tuple[str, str], client: _Settings) -> Draft:
        """Add the server's entry of a proxy, and return the client's."""
        both = {
            "service": service_name(draft.name, self._services),
            **({"proto": "udp"} if kind == "udp" else {}),
        }
        url = f"server://{join_address(self._bind, self._bind_port)}/{join_address(self._visitors, remote)}"
        server = Draft(draft.name, url, draft.place, {**self._authentication(self._server, client), **both})
        self.translation.server.append(server)
        draft.options = {**self._authentication(client, self._server), **both, **draft.options}
        self._published[kind, remote] = _Published(draft.name, group, server, {client.root.source.name: draft})
        return draft

    def _add_to_group(self, group: _Published, draft: Draft, proxy: Section, client: _Settings) -> Draft | None:
        """Add a further proxy of a group. Returns its entry; None if it is a target of the entry of the same file."""
        first = group.clients.get(client.root.source.name)
        if first is not None:
            first.targets = [*(first.targets or [_target(first)]), _target(draft)]
            if any(first.options.get(name) != value for name, value in draft.options.items()):
                proxy.note("", f"is a target of {group.name!r}, whose settings apply to all its targets")
            return None
        authentication = self._authentication(client, self._server)
        if self._server is None and not authentication.items() <= group.server.options.items():
            proxy.note("", f"is left out: its group is that of {group.name!r}, and its token is another one")
            return None
        draft.options = {**authentication, "service": group.server.options["service"], **draft.options}
        group.clients[client.root.source.name] = draft
        group.server.options["clients"] = str(len(group.clients))
        return draft


def _target(draft: Draft) -> str:
    return draft.url.rpartition("/")[2]


def _group_objection(known: _Published | None, group: tuple[str, str], draft: Draft) -> str:
    """Return why a proxy can be neither the first at its port nor one more of the group there; empty if it can."""
    if group[0] and not draft.enabled:
        return "it is disabled, and all proxies of a group have one entry"
    if known is None:
        return ""
    if not group[0] or group[0] != known.group[0]:
        return f"its remotePort is that of {known.name!r}"
    if group != known.group:
        return f"its group is that of {known.name!r}, and its loadBalancer.groupKey is another one"
    return ""


def _is_enabled(proxy: Section, started: set[str]) -> bool:
    is_on = proxy.get("enabled") is None or proxy.boolean("enabled")
    return is_on and (not started or proxy.text("name") in started)


def service_name(name: str, used: set[str]) -> str:
    """Return a name that the option ``service`` accepts and that is not used yet, and add it to the used ones."""
    base = re.sub(r"\s+", "-", clean_name(name))[:MAX_SERVICE_LENGTH]
    found, number = base, 1
    while found in used:
        number += 1
        found = f"{base[: MAX_SERVICE_LENGTH - 6]}-{number}"
    used.add(found)
    return found


def _section(source: ForeignFile, values: Mapping[str, object], kind: str) -> Section:
    """Return the section of one proxy or visitor; in INI its header has the name."""
    name = str(values.get("section") or values.get("name") or "")[:60]
    quoted = re.escape(name)
    shown = printable(name)
    return Section(
        source, values, (rf"(\[{quoted}\]|name[\"']?\s*[=:]\s*[\"']?{quoted}[\"']?\s*(#|,|$))",), f"{kind} {shown!r}"
    )


def _objection(proxy: Section, kind: str) -> str:
    """Return why a proxy has no counterpart; empty if it has one."""
    if proxy.has("plugin"):
        return "is left out: there are no plugins; run such a program and publish its port"
    if kind in {"http", "https", "tcpmux"}:
        return "is left out: visitors are not routed by host name; publish the port of a web server with type tcp"
    if kind in {"stcp", "xtcp", "sudp"}:
        return "is left out: a tunnel between two clients of frps has no counterpart; see mode=forward"
    return "" if kind in {"tcp", "udp"} else f"is left out: the type {kind[:20]!r} is unknown"


def _proxy_options(proxy: Section, kind: str) -> dict[str, str]:
    """Return the options at the client's end of a proxy."""
    options: dict[str, str] = {}
    if version := proxy.text("transport.proxyProtocolVersion"):
        options["proxy"] = version
    if check := proxy.text("healthCheck.type"):
        options["check"] = f"http:{proxy.text('healthCheck.path') or '/'}" if check == "http" else check
        for name, key, unit in (
            ("intervalSeconds", "inter", "s"),
            ("timeoutSeconds", "check_timeout", "s"),
            ("maxFailed", "fall", ""),
        ):
            if value := proxy.integer(f"healthCheck.{name}", 0, 100):
                options[key] = f"{value}{unit}"
    if rate := _rate(proxy):
        options["rate"] = rate
    return _without_tcp_options(options, proxy) if kind == "udp" else options


def _rate(proxy: Section) -> str:
    """Return the limit of the bandwidth; empty if there is none. A limit that cannot be read is noted."""
    if not proxy.has("transport.bandwidthLimit"):
        return ""
    amount = _BANDWIDTH.fullmatch(proxy.text("transport.bandwidthLimit").strip().upper())
    bits = float(amount[1]) * (1024 if amount[2] == "K" else 1024 * 1024) * 8 if amount else 0.0
    if bits < 1000:
        proxy.note("transport.bandwidthLimit", "is left out: it is not a number with KB or MB, as in 512KB")
        return ""
    return f"{int(bits) // 1000}kbit"


def _without_tcp_options(options: dict[str, str], proxy: Section) -> dict[str, str]:
    """Return the options of a UDP proxy without those that are for TCP alone, and note each that is left out."""
    if options.pop("rate", ""):
        proxy.note("transport.bandwidthLimit", "is left out: limits of the bandwidth are for TCP here")
    if version := options.pop("proxy", ""):
        if version == "v1":
            proxy.note("transport.proxyProtocolVersion", "is left out: for UDP there is v2 alone")
        else:
            options["proxy"] = version
            proxy.note("transport.proxyProtocolVersion", "the header is before each datagram, not the first alone")
    return options


def _common_options(root: Section) -> dict[str, str]:
    """Return the options that all entries of a client have."""
    options: dict[str, str] = {}
    if pool := root.integer("transport.poolCount", 0, 65536):
        options["min_pool_capacity"] = str(pool)
    level = _LEVELS.get(root.text("log.level").casefold(), "info")
    if level != "info":
        options["log"] = level
    if root.text("transport.protocol") not in {"", "tcp"}:
        root.note("transport.protocol", _REASONS["transport.protocol"])
    return options


def _started(value: object) -> set[str]:
    """Return the names of ``start``: the proxies that are enabled; empty means all."""
    items = value if isinstance(value, list) else str(value or "").split(",")
    return {str(item).strip() for item in items} - {""}
