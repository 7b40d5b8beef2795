"""Translates what starts nodepass: command lines, compose files, and the instances of a master as JSON.

Source: docs/en/usage.md, configuration.md and api.md of https://github.com/yosebyte/nodepass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote

from orchestrator.authoring.draft import Draft, Variable
from orchestrator.authoring.source import ForeignFile, ImportFileError, parse_json, parse_yaml
from tunnel.model.errors import UrlError
from tunnel.model.spec import Role
from tunnel.model.url import TunnelUrl, parse_url

_URL: Final = re.compile(r"""\b(?:server|client|master)://(?:\$\{[^}]*\}|[^\s"'`<>|;])++""", re.IGNORECASE)
_VARIABLE_SETTING: Final = re.compile(r"""\b([A-Z][A-Z_]+)=["']?(\$\{[^}\s]*\}|[A-Za-z0-9.$_]+)""")
_PREFIX: Final = "NP_"
_REFERENCE: Final = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)(?::?[-?][^}]*)?\}|([A-Za-z_][A-Za-z0-9_]*))")
BINARY_TEXT: Final = "\0"
"""What stands for the content of a file that is not text."""
_MASTER_KEY_ID: Final = "********"
_GOB_HINT: Final = (
    "this is not text; of a master's nodepass.gob import the instances instead: "
    "curl -H 'X-API-Key: KEY' http://MASTER/api/v1/instances > instances.json"
)
_NO_KEY: Final = "has no key, and is imported with auth: open; give both ends key: or key_file: instead"
_WITH_DEFAULT: Final = "has a variable in its addresses or options; write its value"

_VARIABLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SEMAPHORE_LIMIT": "semaphore_limit",
        "SIGNAL_QUEUE_LIMIT": "signal_queue_limit",
        "SIGNAL_BUFFER": "signal_buffer",
        "MIN_POOL_CAPACITY": "min_pool_capacity",
        "MAX_POOL_CAPACITY": "max_pool_capacity",
        "REPORT_INTERVAL": "report_interval",
        "SERVER_COOLDOWN": "server_cooldown",
        "CLIENT_COOLDOWN": "client_cooldown",
        "SERVICE_COOLDOWN": "service_cooldown",
        "SHUTDOWN_TIMEOUT": "shutdown_timeout",
    }
)
"""The environment variables of nodepass that are options here; since version 1.4 they start with NP_."""
_VARIABLE_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "TCP_DIAL_TIMEOUT": "see dial_timeout, at the end that dials the target",
        "UDP_READ_TIMEOUT": "see udp_timeout",
        "RELOAD_INTERVAL": "certificates are read again when their files change",
    }
)
_LEVELS: Final = {"none": "fatal", "event": "info"}
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "crt": "is not needed: everything is encrypted, and the key proves both ends; see tls_cert for tls=2",
        "key": "is not needed: everything is encrypted, and the key proves both ends; see tls_key for tls=2",
        "dns": "names are looked up with the name servers of the host",
        "dial": "connections start at the address that the host chooses",
        "sni": "certificates are verified with tls=2 alone",
        "quic": "the carrier is TCP here",
        "type": "the carrier is TCP here",
        "lbs": "see balance: for several targets",
        "block": "protocols are not recognised here",
    }
)


@dataclass(slots=True)
class _Found:
    """One URL of a source, with what stands around it."""

    url: str
    place: str
    name: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    enabled: bool = True


def translate(source: ForeignFile) -> list[Draft]:
    """Translate a file. Raises ImportFileError if it cannot be read or has no URL."""
    found = list(_find_urls(source))
    if not found:
        raise ImportFileError(
            f"{source.name}: there is no URL of nodepass, as in server://0.0.0.0:10101/127.0.0.1:8080"
        )
    drafts = [draft for each in found if (draft := _Translator(source, each).translate()) is not None]
    if any("proto" not in draft.options for draft in drafts):
        source.note(
            source.name,
            "nodepass forwards TCP and UDP, and the entries TCP alone: for UDP as well, write proto: both at both ends",
        )
    return drafts


# --- where URLs are ---------------------------------------------------------------------------------------------------


def _find_urls(source: ForeignFile) -> Iterator[_Found]:
    if BINARY_TEXT in source.text:
        raise ImportFileError(f"{source.name}: {_GOB_HINT}")
    if source.text.lstrip()[:1] in {"[", "{"} and source.name.casefold().endswith(".json"):
        yield from _of_master(source)
    elif re.search(r"^services\s*:", source.text, re.MULTILINE):
        yield from _of_compose(source)
    else:
        yield from _of_text(source)


def _of_text(source: ForeignFile) -> Iterator[_Found]:
    """Yield the URLs of command lines. Variables apply to their own line, and if exported to the following ones."""
    exported: dict[str, str] = {}
    for number, line in enumerate(source.text.splitlines(), start=1):
        text = line.strip()
        if text.startswith(("#", "//", ";")):
            continue
        place = f"{source.name}:{number}"
        variables = _known_variables(source, place, _VARIABLE_SETTING.findall(_URL.sub("", text)))
        matches = list(_URL.finditer(text))
        if not matches:
            exported |= variables
        for match in matches:
            yield _Found(match[0], place, variables=exported | variables)


def _known_variables(source: ForeignFile, place: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the variables that are options here, without the prefix NP_, and note other ones that have it."""
    found: dict[str, str] = {}
    for name, value in pairs:
        short = name.removeprefix(_PREFIX)
        if short in _VARIABLES:
            found[short] = value
        elif name != short:
            source.note(place, f"{name[:40]} is left out: {_VARIABLE_REASONS.get(short, 'it has no counterpart')}")
    return found


def _of_compose(source: ForeignFile) -> Iterator[_Found]:
    root = parse_yaml(source)
    services = root.get("services") if isinstance(root, Mapping) else None
    for name, service in services.items() if isinstance(services, Mapping) else ():
        values = _merged(service)
        words = " ".join(_texts(values.get("entrypoint")) + _texts(values.get("command")))
        matches = list(_URL.finditer(words))
        header = rf"^\s+[\"']?{re.escape(str(name)[:60])}[\"']?\s*:"
        pairs = _compose_variables(values.get("environment")) if matches else []
        variables = _known_variables(source, source.place(header), pairs)
        for match in matches:
            place = source.place(header, re.escape(match[0][:60]))
            yield _Found(match[0].replace("$$", "$"), place, str(name), variables)


def _merged(service: object) -> Mapping[str, object]:
    """Return the mapping of a service with what its merge keys (``<<``) bring, one level deep."""
    if not isinstance(service, Mapping):
        return {}
    merged = service.get("<<")
    found: dict[str, object] = {}
    for each in merged if isinstance(merged, list) else [merged]:
        if isinstance(each, Mapping):
            found = {**each, **found}
    return {**found, **service}


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


def _compose_variables(value: object) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        pairs = [(str(name), str(each)) for name, each in value.items()]
    else:
        pairs = [(name, each) for name, _, each in (text.partition("=") for text in _texts(value))]
    return [(name, each) for name, each in pairs if each]


def _of_master(source: ForeignFile) -> Iterator[_Found]:
    """Yield the instances of ``GET …/v1/instances``, a list or a mapping of them by id."""
    root = parse_json(source)
    if isinstance(root, Mapping):
        root = root.get("instances", list(root.values()))
    values = list(root.values()) if isinstance(root, Mapping) else root
    for number, instance in enumerate(values if isinstance(values, list) else ()):
        if not isinstance(instance, Mapping) or instance.get("id") == _MASTER_KEY_ID:
            continue
        url = str(instance.get("url") or instance.get("config") or "")
        place = source.place(re.escape(url[:80])) if url else f"{source.name}: instance {number + 1}"
        if not _URL.fullmatch(url):
            source.note(place, "the instance has no URL of a server or client")
            continue
        meta = instance.get("meta")
        tags = meta.get("tags") if isinstance(meta, Mapping) else None
        pairs = tags.items() if isinstance(tags, Mapping) else ()
        yield _Found(
            url,
            place,
            str(instance.get("alias") or ""),
            tags=[f"{name}={value}"[:60] for name, value in pairs],
            enabled=instance.get("status") != "stopped",
        )


# --- one URL ----------------------------------------------------------------------------------------------------------


class _Translator:
    """Turns one URL of nodepass into an entry, and notes what is not carried over."""

    def __init__(self, source: ForeignFile, found: _Found) -> None:
        self._source = source
        self._found = found
        self._options: dict[str, str] = {}
        self._what = ""

    def translate(self) -> Draft | None:
        """Return the entry; None if there is none, which is noted."""
        self._what = "the URL"
        if self._found.url.casefold().startswith("master://"):
            self._note("is left out: the local API of the daemon takes the place of a master")
            return None
        text, variable = self._take_variable(self._found.url)
        try:
            url = parse_url(text)
        except UrlError as error:
            reason = _WITH_DEFAULT if _REFERENCE.search(text) else str(error)
            self._note(f"is left out: {reason}")
            return None
        self._what = f"{url.role}://{url.tunnel_text}/{url.target}"
        if reason := _client_objection(url):
            self._note(f"is left out: {reason}")
            return None
        self._set_key(url, variable)
        self._set_options(url)
        self._remove_tcp_options()
        self._set_variables(url.role)
        targets = [str(each.address) for each in url.targets]
        name = self._found.name or f"{url.role}-{url.tunnel.port}"
        draft = Draft(name, self._what, self._found.place, self._options, targets, self._found.tags)
        draft.enabled = self._found.enabled
        return draft

    def _note(self, text: str) -> None:
        self._source.note(self._found.place, f"{self._what} {text}")

    def _take_variable(self, text: str) -> tuple[str, str]:
        """Return the URL without a key that is one variable, and the name of that variable."""
        scheme, separator, rest = text.partition("://")
        user, at, addresses = rest.rpartition("@")
        reference = _REFERENCE.fullmatch(user) if at else None
        if reference is None:
            return text, ""
        return f"{scheme}{separator}{addresses}", reference[1] or reference[2]

    def _set_key(self, url: TunnelUrl, variable: str) -> None:
        if variable:
            self._options["key"] = Variable.of(variable)
        elif url.key is not None:
            self._options["key"] = url.key.reveal()
        else:
            self._options["auth"] = "open"
            self._note(_NO_KEY)

    def _set_options(self, url: TunnelUrl) -> None:
        """Carry over the options of the URL."""
        values = url.values()
        handlers = {
            "log": self._set_level, "tls": self._set_tls, "mode": self._set_mode, "min": self._set_pool,
            "max": self._set_pool, "slot": self._set_slot, "read": self._set_read, "rate": self._set_rate,
            "proxy": self._set_proxy, "notcp": self._set_protocol, "noudp": self._set_protocol,
        }  # fmt: skip
        for name, value in values.items():
            if name in handlers:
                handlers[name](url, name, unquote(value))
            elif value not in {"", "0"}:
                self._note(f"has {name[:20]}=, which is left out: {_REASONS.get(name, 'it has no counterpart')}")

    def _set_level(self, _: TunnelUrl, __: str, value: str) -> None:
        self._options["log"] = _LEVELS.get(value, value)

    def _set_tls(self, url: TunnelUrl, _: str, value: str) -> None:
        if url.role is Role.SERVER and value == "0":
            self._note(
                "has tls=0: nodepass sends data in the clear; here it is encrypted, unless both ends have tls: 0"
            )

    def _set_mode(self, url: TunnelUrl, _: str, value: str) -> None:
        if url.role is Role.SERVER and value in {"1", "2"}:
            self._options["mode"] = "reverse" if value == "1" else "forward"

    def _set_pool(self, _: TunnelUrl, name: str, value: str) -> None:
        if value != "0":
            self._options[f"{name}_pool_capacity"] = value

    def _set_slot(self, _: TunnelUrl, __: str, value: str) -> None:
        if value != "0":
            self._options["semaphore_limit"] = value

    def _set_read(self, _: TunnelUrl, __: str, value: str) -> None:
        if value != "0":
            self._options["idle_timeout"] = value

    def _set_rate(self, _: TunnelUrl, name: str, value: str) -> None:
        if value != "0":
            self._options[name] = f"{value}mbit"

    def _set_proxy(self, url: TunnelUrl, _: str, value: str) -> None:
        if value != "1":
            return
        if url.role is Role.CLIENT or url.values().get("mode") == "2":
            self._options["proxy"] = "v1"
        else:
            self._note("has proxy=1, which acts at the end that dials the target: write proxy: v1 there")

    def _set_protocol(self, _: TunnelUrl, name: str, value: str) -> None:
        if value == "1":
            self._options["proto"] = "udp" if name == "notcp" else "tcp"

    def _remove_tcp_options(self) -> None:
        """Remove what an entry for UDP cannot have, and note what that changes."""
        if self._options.get("proto") != "udp":
            return
        if self._options.pop("rate", ""):
            self._note("has rate=, which is left out: limits of the bandwidth are for TCP here")
        self._options.pop("proxy", "")  # nodepass writes the header for TCP alone

    def _set_variables(self, role: Role) -> None:
        for name, value in self._found.variables.items():
            option = _VARIABLES[name]
            if option == "service_cooldown":
                option = f"{role}_cooldown"
            if _REFERENCE.search(value):
                self._note(f"has {name} from a variable, which is left out: write its value as {option}:")
            else:
                self._options.setdefault(option, value)


def _client_objection(url: TunnelUrl) -> str:
    """Return why a client has no counterpart: one that forwards without a server; empty for any other URL."""
    if url.role is not Role.CLIENT:
        return ""
    mode = url.values().get("mode", "0")
    if mode == "1" or (mode != "2" and url.tunnel.is_wildcard):
        return "this client forwards without a server, which has no counterpart"
    if mode != "2" and url.tunnel.is_loopback:
        return "this client forwards without a server if its address is free; with a server on this host write mode=2"
    return ""
