"""From a URL and the layers around it to a TunnelSpec: every option's name, meaning and precedence, in one table.

The same options may stand in a URL, an entry of the file, its ``defaults`` or (the nine variables and the key) the
environment; the first that names one wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tunnel.model import settings
from tunnel.model.errors import OptionError, UrlError, did_you_mean
from tunnel.model.settings import NAMES, SettingError
from tunnel.model.spec import DataTls, Direction, Key, LogLevel, Mode, Role, TunnelSpec
from tunnel.model.url import TunnelUrl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KEY_VARIABLE: Final = "NODEPASS_ORCH_KEY"
"""Environment variable with the key of tunnels that have none of their own."""

_MODES: Final = {"auto": Mode.AUTO, "0": Mode.AUTO, "reverse": Mode.REVERSE, "1": Mode.REVERSE} | {
    "forward": Mode.FORWARD,
    "2": Mode.FORWARD,
}
_FILES: Final = ("tls_cert", "tls_key", "tls_ca", "key_file")

OPTION_NAMES: Final = ("log", "mode", "data_port", "tls", *_FILES, *NAMES)
"""Every option, as URLs and files write it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Options from one place, and where relative file names in it start."""

    source: str
    values: Mapping[str, object]
    base: Path = Path()


def check_names(url: TunnelUrl) -> None:
    """Raise UrlError at the first option of a URL that nobody knows."""
    for option in url.options:
        if option.name not in OPTION_NAMES:
            hint = did_you_mean(option.name, OPTION_NAMES) or f"; known are {', '.join(OPTION_NAMES)}"
            raise UrlError(f"unknown option {option.name[:40]!r}{hint}", option.offset)


def make_spec(url: TunnelUrl, layers: Sequence[Layer] = (), environ: Mapping[str, str] | None = None) -> TunnelSpec:
    """The spec of a URL, what it leaves open filled from ``layers`` (strongest first), then the environment.

    Reads the key file, where one is named. Raises UrlError for a fault in the URL itself, OptionError for one in a
    layer or the environment.
    """
    check_names(url)
    environ = environ or {}
    own = Layer("the URL", url.values())
    if url.key and "key_file" in own.values:
        offset = next(o.offset for o in url.options if o.name == "key_file")
        raise UrlError("the URL has a key and a key_file; keep one", offset)
    everywhere = (own, *layers)
    try:
        chosen = _plain_options(everywhere)
        spec = TunnelSpec(
            role=url.role,
            tunnel=url.tunnel,
            target=url.target,
            key=url.key or _find_key(everywhere, environ),
            settings=_settings(everywhere, environ),
            **chosen,
        )
    except OptionError as error:
        if error.source != own.source:
            raise
        offset = next((o.offset for o in url.options if o.name == error.name), 0)
        raise UrlError(f"{error.name}: {error}", offset) from None
    _check_together(spec)
    return spec


def _plain_options(layers: Sequence[Layer]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for layer in reversed(layers):  # the strongest last, so that it stays; every layer is checked all the same
        for name, parse in _PARSERS.items():
            if name in layer.values:
                field_name = "data_tls" if name == "tls" else name
                chosen[field_name] = parse(layer, name, layer.values[name])
    return chosen


def _settings(layers: Sequence[Layer], environ: Mapping[str, str]) -> settings.Settings:
    stack: list[tuple[str, Mapping[str, object]]] = [(layer.source, layer.values) for layer in layers]
    stack.append(("the environment", settings.from_environment(environ)))
    try:
        return settings.resolve(stack)
    except SettingError as error:
        source = error.source or "the URL"
        name = error.name.upper() if source == "the environment" else error.name
        message = str(error).removeprefix(f"{error.name}: ")
        raise OptionError(name, message, source) from None


def _find_key(layers: Sequence[Layer], environ: Mapping[str, str]) -> Key | None:
    for layer in layers:
        if "key" in layer.values and "key_file" in layer.values:
            raise OptionError("key_file", "key and key_file exclude each other; keep one", layer.source)
        if "key" in layer.values:
            value = layer.values["key"]
            if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value):
                raise OptionError("key", "the key is empty or not a text; quote it", layer.source)
            return Key(str(value))
        if "key_file" in layer.values:
            return _read_key(layer)
    secret = environ.get(KEY_VARIABLE, "")
    return Key(secret) if secret else None


def _read_key(layer: Layer) -> Key:
    path = _path(layer, "key_file", layer.values["key_file"])
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise OptionError("key_file", f"cannot read {path}: {error.strerror}", layer.source) from None
    except UnicodeDecodeError:
        raise OptionError("key_file", f"{path} is not UTF-8 text", layer.source) from None
    except ValueError:
        raise OptionError("key_file", "its name cannot be one of a file", layer.source) from None
    if not secret:
        raise OptionError("key_file", f"{path} is empty; write one with: nodepass-orch keygen > {path}", layer.source)
    return Key(secret)


def _choice(layer: Layer, name: str, value: object, known: Mapping[str, Any]) -> Any:  # noqa: ANN401  the table's own type
    text = _text(value)
    if text.lower() not in known:
        names = ", ".join(known)
        raise OptionError(name, f"{text[:40]!r} is not one of {names}{did_you_mean(text, known)}", layer.source)
    return known[text.lower()]


def _text(value: object) -> str:
    """What somebody wrote in a file as a text or a number; nothing for the rest YAML can say."""
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def _path(layer: Layer, name: str, value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise OptionError(name, "a file name is missing", layer.source)
    try:
        return layer.base / Path(value).expanduser()
    except RuntimeError:
        raise OptionError(
            name, f"whose home directory {value.split('/')[0][:40]!r} is, nobody knows", layer.source
        ) from None


def _data_port(layer: Layer, name: str, value: object) -> int | None:
    text = _text(value).lower()
    if text == "random":
        return 0
    if text == "tunnel":
        return None
    if text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) <= 65535:
        return int(text)
    raise OptionError(name, f"{text[:40]!r} is not random, tunnel or a port from 1 to 65535", layer.source)


_LEVELS: Final = {level.name.lower(): level for level in LogLevel}
_DATA_TLS: Final = {str(int(level)): level for level in DataTls}
_PARSERS: Final = {
    "log": lambda layer, name, value: _choice(layer, name, value, _LEVELS),
    "mode": lambda layer, name, value: _choice(layer, name, value, _MODES),
    "tls": lambda layer, name, value: _choice(layer, name, value, _DATA_TLS),
    "data_port": _data_port,
    "tls_cert": _path,
    "tls_key": _path,
    "tls_ca": _path,
}


def _check_together(spec: TunnelSpec) -> None:
    """Faults that no option has alone."""
    if (spec.tls_cert is None) != (spec.tls_key is None):
        raise UrlError("tls_cert and tls_key go together: a certificate needs its private key", 0)
    if spec.role is Role.SERVER and spec.data_tls is DataTls.VERIFIED and spec.tls_cert is None:
        raise UrlError("tls=2 on a server needs tls_cert and tls_key, for the client verifies them", 0)
    if spec.mode != Mode.AUTO and not _target_is_ours(spec) and spec.target.port == 0:
        raise UrlError("the target address is dialled in this mode, so its port cannot be 0", 0)


def _target_is_ours(spec: TunnelSpec) -> bool:
    entrance = Role.SERVER if spec.mode.value == Direction.REVERSE.value else Role.CLIENT
    return spec.role is entrance
