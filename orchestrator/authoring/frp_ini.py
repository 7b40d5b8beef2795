"""The old format of frp, INI, as the sections of the present one.

Source: the files ``conf/legacy/frpc_legacy_full.ini`` and ``frps_legacy_full.ini`` of https://github.com/fatedier/frp.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from orchestrator.authoring.source import ForeignFile, ImportFileError

_MAX_RANGE: Final = 1000
_COMMON: Final[Mapping[str, str]] = MappingProxyType(
    {
        "server_addr": "serverAddr",
        "server_port": "serverPort",
        "bind_addr": "bindAddr",
        "bind_port": "bindPort",
        "proxy_bind_addr": "proxyBindAddr",
        "token": "auth.token",
        "authentication_method": "auth.method",
        "log_level": "log.level",
        "log_file": "log.to",
        "pool_count": "transport.poolCount",
        "protocol": "transport.protocol",
        "http_proxy": "transport.proxyURL",
        "heartbeat_interval": "transport.heartbeatInterval",
        "tls_cert_file": "transport.tls.certFile",
        "tls_key_file": "transport.tls.keyFile",
        "tls_trusted_ca_file": "transport.tls.trustedCaFile",
        "tls_server_name": "transport.tls.serverName",
        "tls_enable": "transport.tls.enable",
        "tls_only": "transport.tls.force",
        "allow_ports": "allowPorts",
        "vhost_http_port": "vhostHTTPPort",
        "vhost_https_port": "vhostHTTPSPort",
        "admin_port": "webServer.port",
        "dashboard_port": "webServer.port",
    }
)
_PROXY: Final[Mapping[str, str]] = MappingProxyType(
    {
        "local_ip": "localIP",
        "local_port": "localPort",
        "remote_port": "remotePort",
        "bandwidth_limit": "transport.bandwidthLimit",
        "bandwidth_limit_mode": "transport.bandwidthLimitMode",
        "use_encryption": "transport.useEncryption",
        "use_compression": "transport.useCompression",
        "proxy_protocol_version": "transport.proxyProtocolVersion",
        "group": "loadBalancer.group",
        "group_key": "loadBalancer.groupKey",
        "health_check_type": "healthCheck.type",
        "health_check_url": "healthCheck.path",
        "health_check_timeout_s": "healthCheck.timeoutSeconds",
        "health_check_interval_s": "healthCheck.intervalSeconds",
        "health_check_max_failed": "healthCheck.maxFailed",
        "plugin": "plugin.type",
        "custom_domains": "customDomains",
    }
)


def parse_ini(source: ForeignFile) -> dict[str, object]:
    """Return an INI file of frp as its TOML would be. Raises ImportFileError."""
    parser = configparser.ConfigParser(
        interpolation=None, strict=False, delimiters=("=",), default_section="\0", allow_no_value=True
    )
    try:
        parser.read_string(source.text)
    except configparser.MissingSectionHeaderError as error:
        raise ImportFileError(f"{source.name}:{error.lineno}: a [section] is missing before this line") from None
    except configparser.ParsingError as error:
        place = f"{source.name}:{error.errors[0][0]}" if error.errors else source.name
        raise ImportFileError(f"{place}: this is not a line of an INI file; write name = value") from None
    except (configparser.Error, ValueError, AttributeError) as error:
        raise ImportFileError(f"{source.name}: this is not an INI file: {str(error)[:120]}") from None
    root: dict[str, object] = {}
    proxies: list[dict[str, object]] = []
    visitors: list[dict[str, object]] = []
    for name in parser.sections():
        values = {key: value or "" for key, value in parser.items(name)}
        if name == "common":
            root |= _nest(values, _COMMON)
        elif values.get("role") == "visitor":
            visitors.append({"name": name, **_nest(values, _PROXY)})
        elif name.startswith("plugin.") and "addr" in values:
            root.setdefault("httpPlugins", name)
        elif name.startswith("range:"):
            proxies += _expand_range(source, name, values)
        else:
            proxies.append({"name": name, **_nest(values, _PROXY)})
    return root | {"proxies": proxies, "visitors": visitors}


def _nest(values: Mapping[str, str], names: Mapping[str, str]) -> dict[str, object]:
    """Return values under their names of today, nested as in TOML."""
    root: dict[str, object] = {}
    for key, value in values.items():
        level = root
        *path, last = names.get(key, key).split(".")
        for part in path:
            below = level.setdefault(part, {})
            level = below if isinstance(below, dict) else {}
        level[last] = value
    return root


def _expand_range(source: ForeignFile, section: str, values: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """Yield a proxy for each pair of ports of a section ``range:NAME``."""
    name = section.removeprefix("range:")
    try:
        local, remote = (_parse_ports(values.get(key, "")) for key in ("local_port", "remote_port"))
    except ValueError as error:
        source.note(source.place(_header(section)), f"proxy {name!r}: is left out: {error}")
        return
    if len(local) != len(remote):
        text = f"is left out: it has {len(local)} local and {len(remote)} remote ports"
        source.note(source.place(_header(section)), f"proxy {name!r}: {text}")
        return
    for number, (local_port, remote_port) in enumerate(zip(local, remote, strict=True)):
        ports = {"local_port": str(local_port), "remote_port": str(remote_port)}
        yield {"name": f"{name}_{number}", "section": section, **_nest({**values, **ports}, _PROXY)}


def _parse_ports(text: str) -> list[int]:
    """Return the ports of ``6010-6020,6022``. Raises ValueError."""
    ports: list[int] = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        bounds = (first, last if dash else first)
        if not all(bound.isascii() and bound.isdigit() and len(bound) <= 5 for bound in bounds):
            raise ValueError("its ports are not numbers and ranges of them")
        ports += range(int(bounds[0]), int(bounds[1]) + 1)
        if len(ports) > _MAX_RANGE:
            raise ValueError(f"it has more than {_MAX_RANGE} ports")
    return ports


def _header(section: str) -> str:
    """Return the pattern of the line with which a section starts."""
    return rf"\[{re.escape(section[:60])}"
