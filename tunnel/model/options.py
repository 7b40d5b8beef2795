"""The registry of options, and how a URL and the option layers around it become a TunnelSpec.

An option may be written in a URL, in an entry of the file, in the file's ``defaults`` or in the environment. The
strongest layer that names it wins, in this order. One row of OPTIONS is everything the program knows about an option.
The URL parser, the file, the environment, the JSON Schema, the settings view, ``plan`` and docs/reference/options.md
are derived from it. To add an option, add its row, and its field to TunnelSpec.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from tunnel.model.address import Address
from tunnel.model.balancer import MAX_WEIGHT, Balance
from tunnel.model.combinations import check_combinations
from tunnel.model.errors import InvalidValueError, OptionError, UrlError, name_known
from tunnel.model.option_types import (
    MUXES,
    UDP_CARRIERS,
    CheckType,
    ChoiceType,
    DataPortType,
    DurationType,
    FileType,
    IntegerType,
    KeyFileType,
    KeyType,
    OptionType,
    ServiceType,
)
from tunnel.model.publishing import PublishType
from tunnel.model.quota import QuotaType
from tunnel.model.rate import RateType
from tunnel.model.settings import Settings
from tunnel.model.spec import (
    MAX_CLIENTS,
    AuthPolicy,
    DataTls,
    End,
    LogLevel,
    Mode,
    Proto,
    ProxyVersion,
    Role,
    TunnelSpec,
)
from tunnel.model.url import TunnelUrl
from tunnel.model.visitor_option_types import NetworksType, VisitorRateType

URL_SOURCE: Final = "the URL"
ENVIRONMENT_SOURCE: Final = "the environment"


class OptionPlace(enum.Flag):
    """Where an option may be written."""

    URL = enum.auto()
    ENTRY = enum.auto()
    DEFAULTS = enum.auto()
    ENVIRONMENT = enum.auto()

    FILE = ENTRY | DEFAULTS
    URL_AND_FILE = URL | ENTRY | DEFAULTS
    EVERYWHERE = URL | ENTRY | DEFAULTS | ENVIRONMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row of the registry."""

    name: str
    """as URLs and files write it"""
    type: OptionType
    attribute: str
    """the attribute of TunnelSpec that holds the value: ``mode``, ``settings.signal_buffer``"""
    doc: str
    """the meaning, in one line of Markdown"""
    places: OptionPlace = OptionPlace.URL_AND_FILE
    variable: str | None = None
    """the environment variable"""
    end: End | None = None
    """the end where the option acts, if it acts at one of them alone"""
    is_live: bool = False
    """whether a running engine adopts a new value without a restart"""
    is_secret: bool = False
    """whether the value must not be shown"""
    is_file: bool = False
    """whether the value is the name of a file"""
    read: attrgetter[Any] = field(init=False)
    """returns the value of the option from a TunnelSpec"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "read", attrgetter(self.attribute))  # the row is frozen, and the getter derived

    @property
    def is_setting(self) -> bool:
        """Whether the value is a field of Settings instead of TunnelSpec."""
        return self.attribute.startswith("settings.")

    @property
    def default(self) -> str:
        """The built-in default as a text."""
        return self.format(_DEFAULT_SPEC)

    def format(self, spec: TunnelSpec) -> str:
        """Return the value of the option in a spec as a text that ``type.parse`` accepts, a mask for a secret."""
        return self.type.format(self.read(spec))

    def describe(self, spec: TunnelSpec) -> str:
        """Return the value of the option in a spec as a text for people: shorter than ``format`` if that is long."""
        value = self.read(spec)
        return self.type.shorten(value) if isinstance(self.type, NetworksType) else self.type.format(value)

    def describe_change(self, old: TunnelSpec, new: TunnelSpec) -> str:
        """Return how the value differs between two specs."""
        if isinstance(self.type, NetworksType):
            return self.type.describe_change(self.read(old), self.read(new))
        return f"{self.format(old) or 'none'} → {self.format(new) or 'none'}"


def _setting(name: str, type_: OptionType, doc: str) -> Option:
    return Option(
        name=name,
        type=type_,
        attribute=f"settings.{name}",
        doc=doc,
        places=OptionPlace.EVERYWHERE,
        variable=name.upper(),
        is_live=True,
    )


def _live(name: str, type_: OptionType, doc: str) -> Option:
    return Option(name=name, type=type_, attribute=name, doc=doc, is_live=True)


def _visitor_rule(name: str, type_: OptionType, doc: str) -> Option:
    return Option(name=name, type=type_, attribute=name, doc=f"ingress: {doc}", end=End.INGRESS, is_live=True)


def _target_rule(name: str, type_: OptionType, doc: str) -> Option:
    return Option(name=name, type=type_, attribute=name, doc=f"egress: {doc}", end=End.EGRESS, is_live=True)


def _fixed(name: str, type_: OptionType, doc: str) -> Option:
    return Option(name=name, type=type_, attribute=name, doc=doc)


def _file(name: str, doc: str) -> Option:
    return Option(name=name, type=FileType(), attribute=name, doc=doc, is_file=True)


_LEVELS: Final = ChoiceType({level.name.lower(): level for level in LogLevel})
_MODES: Final = ChoiceType(
    {"auto": Mode.AUTO, "0": Mode.AUTO, "reverse": Mode.REVERSE, "1": Mode.REVERSE}
    | {"forward": Mode.FORWARD, "2": Mode.FORWARD}
)
_AUTH: Final = ChoiceType({policy.value: policy for policy in AuthPolicy})
_DATA_TLS: Final = ChoiceType({str(int(level)): level for level in DataTls})
_PROTOS: Final = ChoiceType({proto.value: proto for proto in Proto})
_PROXY_VERSIONS: Final = ChoiceType({version.value: version for version in ProxyVersion})
_SWITCH: Final = ChoiceType({"0": False, "1": True})
_BALANCE: Final = ChoiceType({balance.value: balance for balance in Balance})
_COUNT: Final = IntegerType(1, 100)
_LIMIT: Final = IntegerType(1, 1_000_000)
_POOL_SIZE: Final = IntegerType(1, 65_536)

OPTIONS: Final[Mapping[str, Option]] = {
    option.name: option
    for option in (
        Option(
            name="key",
            type=KeyType(),
            attribute="key",
            doc="the shared key of both ends; in a URL it stands before the tunnel address: `KEY@`",
            places=OptionPlace.FILE | OptionPlace.ENVIRONMENT,
            variable="NODEPASS_ORCH_KEY",
            is_secret=True,
        ),
        _live("log", _LEVELS, "events of this level and above are logged"),
        _fixed(
            "mode",
            _MODES,
            "which end accepts visitors: `reverse` the server, `forward` the client, `auto` lets the server decide",
        ),
        _fixed("data_port", DataPortType(), "the server's port for data connections; `tunnel`: the tunnel port itself"),
        Option(
            name="tls",
            type=_DATA_TLS,
            attribute="data_tls",
            doc="data connections: `0` plain if both ends say so, `1` encrypted, `2` and certificates verified",
        ),
        _file("tls_cert", "the certificate (PEM) that this end presents"),
        _file("tls_key", "the private key (PEM) of the certificate"),
        _file("tls_ca", "the CA certificates (PEM) that verify the other end"),
        Option(
            name="key_file",
            type=KeyFileType(),
            attribute="key",
            doc="a file that contains the shared key",
            is_secret=True,
            is_file=True,
        ),
        Option(
            name="auth",
            type=_AUTH,
            attribute="auth_policy",
            doc="`open`: no key is wanted, every peer is accepted; `key`: in a file, tunnels beyond loopback need one",
        ),
        _fixed(
            "reuse",
            _SWITCH,
            "`1`: a data connection serves one visitor after the other, if both ends say so; `0`: one visitor",
        ),
        _fixed("mux", MUXES, "visitors share a data connection until they move bulk; `auto`: if the other end is near"),
        _fixed(
            "service",
            ServiceType(),
            "the name that both ends of a tunnel agree on; tells tunnels apart that share a port or a key",
        ),
        _fixed(
            "proto",
            _PROTOS,
            "what visitors and target speak, the same at both ends; `udp` has a visitor per address, "
            "`both` visitors of either on one port",
        ),
        Option(
            name="publish",
            type=PublishType(),
            attribute="publish",
            doc="client: the port that it asks the server to open for its service; a server has rules in the file",
            places=OptionPlace.URL | OptionPlace.ENTRY,
        ),
        _live("balance", _BALANCE, "how visitors are distributed over several targets or clients"),
        _live("slowstart", DurationType(0.0), "time in which the weight of a target or client grows when it returns"),
        _live("clients", IntegerType(1, MAX_CLIENTS), "server: clients that may have the tunnel at once"),
        _live("weight", IntegerType(0, MAX_WEIGHT), "client: its share of visitors among several; `0`: no new ones"),
        _live("backup", _SWITCH, "client: `1`: it gets visitors only while no other client can serve"),
        _target_rule("check", CheckType(), "how targets are checked; `auto`: `tcp` for several of TCP, else `off`"),
        _target_rule("inter", DurationType(0.1), "time between two checks of a target"),
        _target_rule("fall", _COUNT, "failed checks or dials in a row after which a target is down"),
        _target_rule("rise", _COUNT, "checks that a target has to pass in a row to return"),
        _target_rule(
            "check_timeout", DurationType(0.01), "time for a check, and for a visitor while others may serve it"
        ),
        _target_rule("dial_timeout", DurationType(), "time in which a target has to accept a visitor's connection"),
        _live("idle_timeout", DurationType(0.0), "a visitor is disconnected after so long without a byte; `0`: never"),
        _fixed(
            "udp_carrier", UDP_CARRIERS, "how UDP travels to the other end; `auto`: as datagrams if these get through"
        ),
        _live("udp_timeout", DurationType(), "a UDP visitor is forgotten after so long without a datagram"),
        _live("max_age", DurationType(0.0), "a visitor is disconnected after so long in any case; `0`: never"),
        _live("rate", RateType(), "bytes of all visitors together, each direction by itself, where it is written"),
        _live("visitor_rate", RateType(), "bytes of each visitor, each direction by itself, where it is written"),
        _visitor_rule("allow", NetworksType(), "visitors from other addresses are refused"),
        _visitor_rule("deny", NetworksType(), "visitors from these addresses are refused, also if `allow` has them"),
        _visitor_rule("max_per_address", IntegerType(0, 1_000_000), "visitors of one address at once; `0`: no limit"),
        _visitor_rule("rate_new", VisitorRateType(), "new visitors of one address per second; `0`: no limit"),
        _visitor_rule("proxy_from", NetworksType(), "balancers that send a PROXY header; it is required from them"),
        Option(
            name="proxy",
            type=_PROXY_VERSIONS,
            attribute="proxy",
            doc="egress: the target is sent the visitor's address in a header of the PROXY protocol",
            end=End.EGRESS,
            is_live=True,
        ),
        _visitor_rule("quota", QuotaType(), "bytes of both directions in a period; then new visitors are refused"),
        _setting("semaphore_limit", _LIMIT, "visitors served at once; more wait in the kernel's backlog"),
        _setting("signal_queue_limit", _LIMIT, "visitors that wait for a data connection; then no more are accepted"),
        _setting("signal_buffer", IntegerType(1, 1 << 24), "bytes read from the control channel at once"),
        _setting("min_pool_capacity", _POOL_SIZE, "the least number of idle data connections"),
        _setting("max_pool_capacity", _POOL_SIZE, "the largest number of idle data connections"),
        _setting("report_interval", DurationType(), "time between pings; three without an answer end the link"),
        _setting("server_cooldown", DurationType(), "the longest wait of a server between two attempts"),
        _setting("client_cooldown", DurationType(), "the longest wait of a client between two attempts"),
        _setting("shutdown_timeout", DurationType(0.0), "how long a shutdown waits for visitors to finish"),
    )
}
"""Every option by its name."""

_DEFAULT_SPEC: Final = TunnelSpec(role=Role.SERVER, tunnel=Address("", 0), target=Address("", 0))

KEY_VARIABLE: Final = OPTIONS["key"].variable or ""
"""Environment variable with the key of tunnels that have none of their own."""
OPTION_VARIABLES: Final = tuple(option.variable for option in OPTIONS.values() if option.variable)
"""Every environment variable that configures tunnels."""
SETTING_NAMES: Final = tuple(option.name for option in OPTIONS.values() if option.is_setting)
"""The options that are fields of Settings."""


def names_for(place: OptionPlace) -> tuple[str, ...]:
    """Return the names of the options that may be written in a place, in the order of the registry."""
    return tuple(option.name for option in OPTIONS.values() if option.places & place)


OPTION_NAMES: Final = names_for(OptionPlace.URL)
"""Every option of a URL."""
OPTIONS_HELP: Final = "nodepass-orch help options"
"""The command that lists all options."""


@dataclass(frozen=True, slots=True)
class OptionLayer:
    """Options from one source, and the directory at which relative file names in it start."""

    source: str
    values: Mapping[str, object]
    base: Path = Path()

    @property
    def has_key(self) -> bool:
        """Whether the layer contains a key, or names its file."""
        return "key" in self.values or "key_file" in self.values

    @property
    def is_open(self) -> bool:
        """Whether the layer says that no key is wanted."""
        return str(self.values.get("auth", "")).lower() == AuthPolicy.OPEN

    def parse(self, name: str) -> Any:  # noqa: ANN401  each option has a type of its own
        """Parse the value of an option of this layer. Raises OptionError."""
        option = OPTIONS[name]
        try:
            return option.type.parse(self.values[name], self.base)
        except InvalidValueError as error:
            raise OptionError(self._written_name(option), error.message, self.source, *error.quoted) from None

    def _written_name(self, option: Option) -> str:
        return option.variable or option.name if self.source == ENVIRONMENT_SOURCE else option.name


def environment_layer(environ: Mapping[str, str]) -> OptionLayer:
    """Return the layer of the environment variables; an empty variable counts as not set."""
    variables = {option.name: option.variable for option in OPTIONS.values() if option.variable}
    values = {name: environ[variable] for name, variable in variables.items() if environ.get(variable, "").strip()}
    return OptionLayer(ENVIRONMENT_SOURCE, values)


def check_url_options(url: TunnelUrl) -> None:
    """Raise UrlError for the first unknown option of a URL."""
    for option in url.options:
        if option.name not in OPTION_NAMES:
            hint = name_known(option.name, OPTION_NAMES, OPTIONS_HELP)
            raise UrlError(f"unknown option {{}}{hint}", option.offset, repr(option.name[:40]))


def make_spec(
    url: TunnelUrl, layers: Sequence[OptionLayer] = (), environ: Mapping[str, str] | None = None
) -> TunnelSpec:
    """Build the spec of a URL; ``layers`` (the strongest first), then the environment, fill what it leaves open.

    Reads the key files that are named. Raises UrlError for a fault in the URL, OptionError for one in a layer or the
    environment.
    """
    check_url_options(url)
    own = OptionLayer(URL_SOURCE, url.values())
    if url.key and "key_file" in own.values:
        raise UrlError("the URL has a key and a key_file; keep one", url.offset_of("key_file"))
    if url.key and own.is_open:
        raise UrlError("the URL has a key and auth=open; keep one", url.offset_of("auth"))
    try:
        spec = _build_spec(url, (own, *layers, environment_layer(environ or {})))
    except OptionError as error:
        if error.source != own.source:
            raise
        raise UrlError(f"{error.name}: {error.message}", url.offset_of(error.name), *error.quoted) from None
    check_combinations(spec)
    for option in misplaced_options(spec):
        if option.name in own.values:
            raise UrlError(describe_misplaced(option, spec.role), url.offset_of(option.name))
    return spec


def misplaced_options(spec: TunnelSpec, end: End | None = None) -> list[Option]:
    """Return the options that are set although they act at the other end alone; none while the ends are not known.

    ``end`` is the end that this is, where the spec alone does not show it.
    """
    end = end or spec.end
    if end is None:
        return []
    set_here = (option for option in OPTIONS.values() if option.end is not None and option.end is not end)
    return [option for option in set_here if option.read(spec) != option.read(_DEFAULT_SPEC)]


def describe_misplaced(option: Option, role: Role) -> str:
    """Return why an option has no effect at the end with this role, and the way out."""
    other = Role.CLIENT if role is Role.SERVER else Role.SERVER
    what = option.end.description if option.end is not None else ""
    return f"{option.name} acts at the end that {what}, which is the {other} here; write it there"


def _build_spec(url: TunnelUrl, layers: Sequence[OptionLayer]) -> TunnelSpec:
    fields: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in reversed(layers):  # the strongest layer last, so that its values stay; all layers are validated
        if "key" in layer.values and "key_file" in layer.values:
            raise OptionError("key_file", "key and key_file exclude each other; keep one", layer.source)
        if layer.is_open:
            if layer.has_key:
                raise OptionError("auth", "auth=open and a key exclude each other; keep one", layer.source)
            fields["key"] = None  # a key of a weaker layer, as of the environment, is not wanted
        for name, option in OPTIONS.items():
            if name not in layer.values:
                continue
            value = layer.parse(name)
            if option.is_setting:
                settings[name] = value
                sources[name] = layer.source
            else:
                fields[option.attribute] = value
    if url.key:
        fields["key"] = url.key
    return TunnelSpec(
        role=url.role,
        tunnel=url.tunnel,
        target=url.target,
        targets=url.targets,
        other_servers=url.other_servers,
        server_shares=url.server_shares,
        settings=_build_settings(settings, sources),
        **fields,
    )


def _build_settings(values: dict[str, Any], sources: Mapping[str, str]) -> Settings:
    settings = Settings(**values, explicit=frozenset(values))
    if settings.min_pool_capacity <= settings.max_pool_capacity:
        return settings
    if "min_pool_capacity" not in values:  # the built-in minimum yields to a maximum that the user chose
        return Settings(**values, min_pool_capacity=settings.max_pool_capacity, explicit=settings.explicit)
    bounds = settings.min_pool_capacity, settings.max_pool_capacity
    raise OptionError("min_pool_capacity", "{} is above max_pool_capacity {}", sources["min_pool_capacity"], *bounds)


def format_options(spec: TunnelSpec) -> dict[str, str]:
    """Return the options of a spec as a person would write them, without secrets and unset file names."""
    return {
        option.name: option.describe(spec)
        for option in OPTIONS.values()
        if not option.is_secret and not (option.is_file and option.read(spec) is None)
    }
