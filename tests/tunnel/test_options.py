"""The registry of options: each row works in every place where the option may be written."""

from __future__ import annotations

import dataclasses
import re
import string
from functools import partial
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.strategies import recognisable_keys
from tests.tunnel.test_url import SEED_URLS
from tunnel.model.address import Address
from tunnel.model.errors import OptionError, UrlError, did_you_mean, name_known
from tunnel.model.keys import Key
from tunnel.model.networks import NetworkSet, parse_network
from tunnel.model.option_table import render_option_table
from tunnel.model.option_types import (
    CheckType,
    ChoiceType,
    DataPortType,
    DurationType,
    IntegerType,
    ServiceType,
    parse_natural,
)
from tunnel.model.options import (
    ENVIRONMENT_SOURCE,
    KEY_VARIABLE,
    OPTION_NAMES,
    OPTION_VARIABLES,
    OPTIONS,
    SETTING_NAMES,
    URL_SOURCE,
    Option,
    OptionLayer,
    OptionPlace,
    check_url_options,
    environment_layer,
    format_options,
    make_spec,
    misplaced_options,
    names_for,
)
from tunnel.model.publishing import PublishType
from tunnel.model.quota import MAX_BYTES, MAX_DAYS, Quota, QuotaType
from tunnel.model.rate import MAX_BITS_PER_S, MIN_BITS_PER_S, Rate, RateType
from tunnel.model.settings import Settings
from tunnel.model.spec import AuthPolicy, DataTls, LogLevel, Mode, ProxyVersion, Role, TunnelSpec
from tunnel.model.targets import CHECK_OFF, CHECK_TCP, CheckKind, TargetCheck, TargetSpec
from tunnel.model.url import parse_url
from tunnel.model.visitor_option_types import NetworksType, VisitorRateType

BASE = "server://127.0.0.1:1/127.0.0.1:2"
ROOT = Path(__file__).parent.parent.parent


def spec_of(
    options: str = "", *layers: OptionLayer, environ: dict[str, str] | None = None, base: str = BASE
) -> TunnelSpec:
    return make_spec(parse_url(f"{base}?{options}" if options else base), layers, environ)


def entry(**values: object) -> OptionLayer:
    return OptionLayer("the entry", values)


def defaults(**values: object) -> OptionLayer:
    return OptionLayer("defaults", values)


def values_of(option: Option) -> st.SearchStrategy[object]:
    """Valid values of an option whose value can be printed."""
    match option.type:
        case IntegerType(minimum, maximum):
            return st.integers(minimum, maximum)
        case DurationType(minimum_s):
            return st.integers(max(1, round(minimum_s * 1000)), 3_600_000).map(lambda ms: ms / 1000)
        case ChoiceType(choices):
            return st.sampled_from(list(choices.values()))
        case CheckType():
            paths = st.text("abc-_./?=~!" + string.digits, max_size=40).map("/".__add__)
            http = paths.map(partial(TargetCheck, CheckKind.HTTP))
            return st.sampled_from([None, CHECK_TCP, CHECK_OFF]) | http
        case ServiceType():
            return st.text("abc-_./ü" + string.digits, max_size=64)
        case DataPortType() | PublishType() as kind:
            hosts = st.sampled_from(["", "192.0.2.1", "::1"])
            addresses = st.builds(Address, hosts, st.integers(1, 65535))
            return st.none() | (st.integers(0, 65535) if isinstance(kind, DataPortType) else addresses)
        case NetworksType():
            return st.lists(
                st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8"), max_size=4
            ).map(lambda found: NetworkSet.of(parse_network(str(address)) for address in found))
        case VisitorRateType():
            return st.integers(0, 4_000_000).map(lambda quarters: quarters / 4)
        case QuotaType() | RateType() as kind:
            quotas = st.builds(Quota, st.integers(1, MAX_BYTES), st.none() | st.integers(1, MAX_DAYS))
            rates = st.builds(Rate, st.integers(MIN_BITS_PER_S, MAX_BITS_PER_S), st.booleans())
            return st.none() | (rates if isinstance(kind, RateType) else quotas)
        case _:
            raise NotImplementedError(option)


PRINTABLE = [option for option in OPTIONS.values() if not option.is_secret and not option.is_file]


# --- every row ----------------------------------------------------------------------------------------------------


@given(st.sampled_from(PRINTABLE), st.data())
def test_a_formatted_value_gives_the_same_value_in_every_place(option: Option, data: st.DataObject) -> None:
    value = data.draw(values_of(option))
    text = option.type.format(value)
    assert option.type.parse(text, Path()) == value
    raised = {"max_pool_capacity": "65536"} if option.name == "min_pool_capacity" else {}
    if option.name == "publish":
        raised = {"service": "web"}
    assume(not (option.name == "tls" and value == DataTls.VERIFIED))  # needs certificate files as well
    base = BASE.replace("server", "client") if option.doc.startswith("client:") else BASE
    specs = {
        OptionPlace.URL: spec_of(f"{option.name}={text}", entry(**raised), base=base),
        OptionPlace.ENTRY: spec_of("", entry(**{option.name: text, **raised}), base=base),
        OptionPlace.DEFAULTS: spec_of("", defaults(**{option.name: text, **raised}), base=base),
        OptionPlace.ENVIRONMENT: spec_of("", entry(**raised), environ={option.variable or "": text}),
    }
    for place, spec in specs.items():
        if place in option.places:
            assert option.read(spec) == value
            assert option.format(spec) == text


@pytest.mark.parametrize("option", PRINTABLE, ids=lambda option: option.name)
def test_the_default_of_a_row_is_the_default_of_its_field(option: Option) -> None:
    assert option.type.parse(option.default, Path()) == option.read(spec_of())
    assert option.default == format_options(spec_of())[option.name]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_row_is_complete(name: str) -> None:
    option = OPTIONS[name]
    assert option.name == name
    assert option.doc[0].islower() or option.doc[0] == "`"
    assert "|" not in option.doc + option.type.values
    assert (option.variable is not None) is bool(option.places & OptionPlace.ENVIRONMENT)
    assert option.type.json_schemas()
    assert not (option.is_secret and option.is_live)


def test_every_field_of_the_spec_is_an_option_or_a_part_of_the_url() -> None:
    fields = {field.name for field in dataclasses.fields(TunnelSpec)} - {
        "role",
        "tunnel",
        "target",
        "targets",
        "other_servers",
        "server_shares",
        "settings",
    }
    fields -= {"publish_rules", "published_by"}  # rules are in the file alone; the other is no option
    fields.remove("named_keys")  # in the file alone, where each key has a name
    assert {option.attribute for option in OPTIONS.values() if not option.is_setting} == fields
    assert set(SETTING_NAMES) == {field.name for field in dataclasses.fields(Settings)} - {"explicit"}


@pytest.mark.parametrize(
    "text", ["http", "http:", "http:health", "http:/a b", "http:/ü", "icmp", "", "http:/" + "a" * 600]
)
def test_a_check_is_a_word_or_an_http_path(text: str) -> None:
    with pytest.raises(OptionError, match="http:/PATH"):
        spec_of("", entry(check=text))
    assert spec_of("", entry(check=False)).check == CHECK_OFF  # YAML 1.1 for off
    assert spec_of("", entry(check="TCP")).check == CHECK_TCP


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("client://1.2.3.4:1/a:1,", "there is a comma without a target address after it"),
        ("client://1.2.3.4:1/a:1,a:1", "the target a:1 is given twice"),
        ("client://1.2.3.4:1/a:1,a:0", "the target a:0 is dialled, so its port cannot be 0"),
        ("client://1.2.3.4:1/a:1,b:1?mode=forward", "several targets are dialled; with mode=forward this end accepts"),
        ("server://1.2.3.4:1/a:1,b:1?mode=reverse", "several targets are dialled; with mode=reverse this end accepts"),
        ("server://1.2.3.4:1/a:1,1.2.3.4:1", "the tunnel and the target have the same address, 1.2.3.4:1"),
        ("client://1.2.3.4:1/" + ",".join(f"a:{port}" for port in range(1, 66)), "there are 65 targets; 64 at most"),
    ],
)
def test_several_targets_that_cannot_work_are_a_fault(url: str, fault: str) -> None:
    with pytest.raises(UrlError, match=re.escape(fault)):
        make_spec(parse_url(url))


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("client://a:1,/b:2", "there is a comma without a tunnel address after it"),
        ("client://a:1,a:1/b:2", "the server a:1 is given twice"),
        ("client://a:1,A:1/b:2", "the server A:1 is given twice"),
        ("client://a:1,b:0/b:2", "a client cannot connect to port 0"),
        ("client://a:1,b:2/b:2", "the tunnel and the target have the same address, b:2"),
        ("server://a:1,b:1/c:2", "a server listens on one tunnel address; only a client has several"),
        ("client://" + ",".join(f"a:{port}" for port in range(1, 18)) + "/b:99", "there are 17 servers; 16 at most"),
    ],
)
def test_several_servers_that_cannot_work_are_a_fault(url: str, fault: str) -> None:
    with pytest.raises(UrlError, match=re.escape(fault)):
        make_spec(parse_url(url))


def test_a_client_has_a_tunnel_address_for_each_of_its_servers() -> None:
    url = parse_url("client://key@a:1,[::1]:2/b:2")
    spec = make_spec(url)
    assert spec.tunnels == (Address("a", 1), Address("::1", 2))
    assert spec.tunnel_text == "a:1,[::1]:2"
    assert url.masked() == "client://***@a:1,[::1]:2/b:2"
    assert make_spec(parse_url("client://127.0.0.1:1,a:1/127.0.0.1:2")).is_exposed
    assert not make_spec(parse_url("client://127.0.0.1:1,localhost:3/127.0.0.1:2")).is_exposed


def test_targets_without_any_weight_are_a_fault() -> None:
    none = tuple(TargetSpec(Address("a", port), 0) for port in (1, 2))
    url = parse_url("client://1.2.3.4:1/a:1,a:2")
    with pytest.raises(UrlError, match="every target has the weight 0"):
        make_spec(dataclasses.replace(url, targets=none))
    assert make_spec(dataclasses.replace(url, targets=(*none[:1], TargetSpec(Address("a", 2))))).is_target_group


def test_several_targets_are_checked_over_tcp_and_a_single_one_is_not() -> None:
    one, several = (make_spec(parse_url(f"client://1.2.3.4:1/{text}")) for text in ("a:1", "a:1,b:2"))
    assert (one.effective_check, several.effective_check) == (CHECK_OFF, CHECK_TCP)
    assert (one.is_target_group, several.is_target_group) == (False, True)
    assert (one.target_text, several.target_text) == ("a:1", "a:1,b:2")
    assert [str(each) for each in several.members] == ["a:1", "b:2"]
    assert str(TargetSpec(Address("a", 1), 3, is_backup=True)) == "a:1 weight 3 backup"
    assert spec_of("check=http:/up").is_target_group


def test_the_nine_variables_of_the_original_are_read_from_the_environment() -> None:
    original = "SEMAPHORE_LIMIT SIGNAL_QUEUE_LIMIT SIGNAL_BUFFER MIN_POOL_CAPACITY MAX_POOL_CAPACITY REPORT_INTERVAL"
    original += " SERVER_COOLDOWN CLIENT_COOLDOWN SHUTDOWN_TIMEOUT"
    assert set(OPTION_VARIABLES) == {*original.split(), "NODEPASS_ORCH_KEY"}
    assert KEY_VARIABLE == "NODEPASS_ORCH_KEY"


def test_a_long_value_is_described_in_short_and_its_change_by_what_differs() -> None:
    allow, interval = OPTIONS["allow"], OPTIONS["inter"]
    few, many = (
        make_spec(
            parse_url(f"server://:1/:2?allow={','.join(f'10.0.0.{number}' for number in range(count))}&inter={count}s")
        )
        for count in (1, 20)
    )
    assert (allow.describe(few), allow.describe(many)) == ("10.0.0.0", "20 networks")
    assert allow.describe_change(few, many) == "20 networks, 19 added and 0 removed"
    assert interval.describe(few) == "1s"
    assert interval.describe_change(few, many) == "1s → 20s"


@pytest.mark.parametrize(
    ("url", "name", "other"),
    [
        ("server://1.2.3.4:1/:2?mode=reverse&proxy=v1", "proxy", "client"),
        ("client://1.2.3.4:1/:2?mode=reverse&allow=10.0.0.0/8", "allow", "server"),
    ],
)
def test_an_option_of_the_other_end_is_a_fault_at_its_place(url: str, name: str, other: str) -> None:
    with pytest.raises(UrlError, match=f"{name} acts at the end that .*, which is the {other} here") as caught:
        make_spec(parse_url(url))
    assert caught.value.offset == url.index(name)


def test_an_option_of_the_other_end_among_the_defaults_is_ignored() -> None:
    spec = make_spec(parse_url("server://1.2.3.4:1/:2?mode=reverse"), (defaults(proxy="v1"),))
    assert [option.name for option in misplaced_options(spec)] == ["proxy"]


def test_a_key_in_the_url_of_an_open_tunnel_is_a_fault() -> None:
    with pytest.raises(UrlError, match="the URL has a key and auth=open; keep one"):
        make_spec(parse_url("server://key@:1/:2?auth=open"))


def test_the_key_is_part_of_the_url_and_not_an_option_of_it() -> None:
    assert set(names_for(OptionPlace.ENTRY)) - set(OPTION_NAMES) == {"key"}


def test_the_reference_in_the_documentation_is_the_rendered_table() -> None:
    assert render_option_table() in (ROOT / "docs" / "reference" / "options.md").read_text()


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SEED_URLS)
def test_the_examples_of_the_original_are_complete_specs(text: str) -> None:
    spec = make_spec(parse_url(text))
    assert spec.role.value == text.partition(":")[0]
    assert spec.auth == "open"
    assert spec.mode is Mode.AUTO
    assert spec.data_port == 0
    assert spec.data_tls is DataTls.ENCRYPTED
    assert spec.settings == Settings()
    assert spec.log.name.lower() == (parse_url(text).values().get("log", "info"))


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("log=debug", "log", LogLevel.DEBUG),
        ("log=FATAL", "log", LogLevel.FATAL),
        ("mode=auto", "mode", Mode.AUTO),
        ("mode=0", "mode", Mode.AUTO),
        ("mode=reverse", "mode", Mode.REVERSE),
        ("mode=1", "mode", Mode.REVERSE),
        ("mode=forward", "mode", Mode.FORWARD),
        ("mode=2", "mode", Mode.FORWARD),
        ("data_port=random", "data_port", 0),
        ("data_port=tunnel", "data_port", None),
        ("data_port=10102", "data_port", 10102),
        ("tls=0", "data_tls", DataTls.OFF),
        ("tls=1", "data_tls", DataTls.ENCRYPTED),
        ("tls_cert=/etc/a.pem&tls_key=/etc/b.pem", "tls_key", Path("/etc/b.pem")),
    ],
)
def test_the_values_of_an_option_are_those_of_the_contract(option: str, field: str, value: object) -> None:
    assert getattr(spec_of(option), field) == value


def test_the_built_in_settings_are_the_documented_ones() -> None:
    assert {name: OPTIONS[name].default for name in SETTING_NAMES} == {
        "semaphore_limit": "1024",
        "signal_queue_limit": "1024",
        "signal_buffer": "1024",
        "min_pool_capacity": "8",
        "max_pool_capacity": "1024",
        "report_interval": "5s",
        "server_cooldown": "5s",
        "client_cooldown": "5s",
        "shutdown_timeout": "5s",
    }


@pytest.mark.parametrize(
    ("value", "words"), [("999us", "too short; the least is 1ms"), ("0", "too short"), (0, "too short")]
)
def test_an_interval_shorter_than_its_minimum_is_rejected(value: object, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        spec_of("", entry(report_interval=value))
    assert spec_of("", entry(shutdown_timeout=0)).settings.shutdown_timeout == 0.0


@pytest.mark.parametrize(("name", "value"), [("report_interval", 5), ("report_interval", 2.5)])
def test_the_message_for_a_duration_without_a_unit_names_the_unit(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"{value}s"):
        spec_of("", entry(**{name: value}))


@given(st.integers(1, 65_536), st.integers(1, 65_536))
def test_the_minimum_of_the_pool_cannot_exceed_its_maximum(low: int, high: int) -> None:
    options = f"min_pool_capacity={low}&max_pool_capacity={high}"
    if low <= high:
        settings = spec_of(options).settings
        assert (settings.min_pool_capacity, settings.max_pool_capacity) == (low, high)
    else:
        with pytest.raises(UrlError, match="above max_pool_capacity"):
            spec_of(options)


def test_the_built_in_minimum_yields_to_a_small_maximum_but_not_the_reverse() -> None:
    assert spec_of("max_pool_capacity=3").settings.min_pool_capacity == 3
    with pytest.raises(OptionError, match="2000 is above") as caught:
        spec_of("", defaults(min_pool_capacity=2000))
    assert (caught.value.name, caught.value.source) == ("min_pool_capacity", "defaults")


# --- layers -------------------------------------------------------------------------------------------------------

LAYERS = ("the entry", "defaults", ENVIRONMENT_SOURCE)


@given(st.sampled_from(PRINTABLE), st.data(), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_strongest_layer_that_names_an_option_wins(
    option: Option, data: st.DataObject, present: list[bool]
) -> None:
    assume(
        option.name not in {"tls", "min_pool_capacity", "max_pool_capacity", "publish"}
    )  # they depend on other options
    texts = [option.type.format(data.draw(values_of(option))) for _ in present]
    chosen = [
        text if is_there and (i < 3 or option.variable) else None
        for i, (text, is_there) in enumerate(zip(texts, present, strict=True))
    ]
    layers = [
        OptionLayer(source, {} if text is None else {option.name: text})
        for source, text in zip(LAYERS, chosen[1:3], strict=False)
    ]
    environ = {} if chosen[3] is None else {option.variable or "": chosen[3]}
    base = BASE.replace("server", "client") if option.doc.startswith("client:") else BASE
    spec = spec_of(f"{option.name}={chosen[0]}" if chosen[0] is not None else "", *layers, environ=environ, base=base)
    written = [text for text in chosen if text is not None]
    assert option.format(spec) == (written[0] if written else option.default)
    if option.is_setting:
        assert spec.settings.explicit == (frozenset({option.name}) if written else frozenset())


def test_all_four_places_contribute_to_the_settings() -> None:
    spec = spec_of(
        "signal_buffer=1",
        entry(signal_buffer=2, semaphore_limit=2),
        defaults(signal_buffer=3, semaphore_limit=3, report_interval="3s"),
        environ={
            "SIGNAL_BUFFER": "4",
            "SEMAPHORE_LIMIT": "4",
            "REPORT_INTERVAL": "4s",
            "CLIENT_COOLDOWN": "4s",
            "LOG": "debug",
        },
    )
    chosen = spec.settings
    assert (chosen.signal_buffer, chosen.semaphore_limit, chosen.report_interval) == (1, 2, 3.0)
    assert (chosen.client_cooldown, chosen.server_cooldown) == (4.0, 5.0)
    assert spec.log is LogLevel.INFO  # the environment has the nine variables and the key, no more


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SETTING_NAMES)
@pytest.mark.parametrize("value", ["-1", "-1s", "many", "5 parsecs", "", None, True, [], 1.5, "1e3", "99999999999999h"])
def test_an_invalid_setting_is_an_error_in_every_layer(layer: str, name: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        spec_of("", *[OptionLayer(other, {name: value} if other == layer else {}) for other in LAYERS])
    assert caught.value.source == layer
    assert caught.value.name == (name.upper() if layer == ENVIRONMENT_SOURCE else name)
    assert str(caught.value)
    assert "None" not in str(caught.value)


def test_an_invalid_value_is_an_error_even_if_a_stronger_layer_overrides_it() -> None:
    with pytest.raises(OptionError) as caught:
        spec_of("signal_buffer=512", defaults(signal_buffer="lots"))
    assert caught.value.source == "defaults"


def test_an_empty_variable_counts_as_not_set() -> None:
    assert environment_layer({"SEMAPHORE_LIMIT": "", "SIGNAL_BUFFER": "  ", KEY_VARIABLE: ""}).values == {}


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTION_NAMES)
def test_the_message_for_a_mistyped_option_names_the_nearest(name: str) -> None:
    typo = name[1:] if name == "proto" else name[:-1] + "x" if len(name) > 3 else name + "g"
    with pytest.raises(UrlError) as caught:
        check_url_options(parse_url(f"{BASE}?{typo}=1"))
    assert repr(typo) in str(caught.value)
    assert repr(name) in str(caught.value)
    assert caught.value.offset == len(BASE) + 1


def test_the_message_for_an_option_unlike_all_others_names_the_command_that_lists_all() -> None:
    with pytest.raises(UrlError) as caught:
        spec_of("log=info&zzzzzz=1")
    assert str(caught.value).endswith("; known are listed by nodepass-orch help options")
    assert caught.value.offset == len(f"{BASE}?log=info&")
    assert did_you_mean("zzzzzz", OPTION_NAMES) == ""
    assert did_you_mean("udp_port", OPTION_NAMES) == ""  # data_port is another thing
    assert did_you_mean("min_po", OPTION_NAMES) == "; did you mean 'min_pool_capacity'?"
    assert did_you_mean("tls_", ("tls_cert_and_more", "tls_key_and_more")) == ""
    assert name_known("zzzzzz", ("a", "b"), "nodepass-orch help options") == "; known are a, b"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("log=inf", "did you mean 'info'"),
        ("log=", "not one of debug"),
        ("mode=forwards", "did you mean 'forward'"),
        ("mode=3", "not one of auto"),
        ("tls=3", "not one of 0"),
        ("data_port=0", "not random, tunnel or a port"),
        ("data_port=65536", "not random, tunnel or a port"),
        ("data_port=٣", "not random, tunnel or a port"),
        ("data_port=any", "not random, tunnel or a port"),
        ("tls_cert=", "file name is missing"),
        ("key_file=", "file name is missing"),
        ("report_interval=5", "5s"),
        ("signal_buffer=-1", "out of range"),
        ("min_pool_capacity=9&max_pool_capacity=8", "above max_pool_capacity"),
    ],
)
def test_an_invalid_value_in_the_url_is_reported_at_its_place(option: str, words: str) -> None:
    with pytest.raises(UrlError) as caught:
        spec_of(f"signal_queue_limit=7&{option}")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{option.partition('=')[0]}: ")
    assert caught.value.offset == len(f"{BASE}?signal_queue_limit=7&")


@pytest.mark.parametrize("source", ["the entry", "defaults"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log", 3),
        ("log", None),
        ("mode", True),
        ("tls", []),
        ("tls", 1.0),
        ("data_port", {}),
        ("data_port", True),
        ("data_port", None),
        ("tls_cert", 3),
        ("key", ""),
        ("key", []),
        ("key", True),
        ("key_file", None),
        ("semaphore_limit", "0"),
        ("shutdown_timeout", -1),
    ],
)
def test_an_invalid_value_in_the_file_names_the_layer_and_the_option(source: str, name: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        spec_of("", OptionLayer(source, {name: value}))
    assert (caught.value.source, caught.value.name) == (source, name)
    assert str(caught.value)
    assert "None" not in str(caught.value)


def test_an_invalid_variable_is_named_in_upper_case() -> None:
    with pytest.raises(OptionError, match="unknown unit") as caught:
        spec_of(environ={"CLIENT_COOLDOWN": "5x"})
    assert (caught.value.source, caught.value.name) == (ENVIRONMENT_SOURCE, "CLIENT_COOLDOWN")


def test_options_that_are_valid_only_together() -> None:
    with pytest.raises(UrlError, match="go together"):
        spec_of("tls_cert=a.pem")
    with pytest.raises(UrlError, match="tls=2 on a server needs"):
        spec_of("tls=2")
    with pytest.raises(UrlError, match="port cannot be 0"):
        make_spec(parse_url("server://127.0.0.1:1/127.0.0.1:0?mode=forward"))
    with pytest.raises(UrlError, match="port cannot be 0"):
        make_spec(parse_url("client://127.0.0.1:1/127.0.0.1:0?mode=reverse"))
    assert make_spec(parse_url("client://127.0.0.1:1/127.0.0.1:0?mode=forward")).role is Role.CLIENT
    assert make_spec(parse_url("client://127.0.0.1:1/127.0.0.1:2?tls=2")).data_tls is DataTls.VERIFIED


# --- keys and files -----------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_url_then_the_layers_then_the_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-file\n")
    environ = {KEY_VARIABLE: "from-env"}
    layers = [OptionLayer("the entry", {"key_file": "secret"}, tmp_path), defaults(key="from-defaults")]
    with_key = parse_url("server://from-url@127.0.0.1:1/127.0.0.1:2")
    assert make_spec(with_key, layers, environ).key == Key("from-url")
    assert spec_of("", *layers, environ=environ).key == Key("from-file")
    assert spec_of("", *layers[1:], environ=environ).key == Key("from-defaults")
    assert spec_of("", entry(key=12345)).key == Key("12345")
    assert spec_of("", environ=environ).key == Key("from-env")
    assert spec_of("", environ={KEY_VARIABLE: ""}).key is None
    assert spec_of(f"key_file={tmp_path}/secret", *layers[1:]).key == Key("from-file")


def test_a_key_and_a_key_file_in_one_layer_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="keep one"):
        spec_of("", entry(key="a", key_file="b"))
    with pytest.raises(UrlError, match="keep one"):
        make_spec(parse_url(f"server://a@127.0.0.1:1/127.0.0.1:2?key_file={tmp_path}/b"))


def test_an_unusable_key_file_is_reported_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, words in [("absent", "No such file"), ("empty", "keygen"), ("binary", "UTF-8"), ("", "directory")]:
        with pytest.raises(UrlError, match=words):
            spec_of(f"key_file={tmp_path}/{name}")


@given(recognisable_keys)
def test_no_message_and_no_formatted_option_contains_the_key(key: str) -> None:
    shown: list[str] = []
    for layer in (entry(key=key, log="loud"), entry(key=key, key_file="x"), entry(key=[key]), entry(key=key, tls=7)):
        with pytest.raises(OptionError) as caught:
            spec_of("", layer)
        shown.append(f"{caught.value} {caught.value!r}")
    for option in ("loq=info", "log=loud", "semaphore_limit=-2", "tls_cert=x"):
        with pytest.raises(UrlError) as error:
            make_spec(parse_url(f"server://{key}@127.0.0.1:1/127.0.0.1:2?{option}"), [], {KEY_VARIABLE: key})
        shown.append(f"{error.value} {error.value!r}")
    spec = make_spec(parse_url(f"server://{key}@127.0.0.1:1/127.0.0.1:2"))
    shown += [repr(spec), str(spec), str(format_options(spec)), *(option.format(spec) for option in OPTIONS.values())]
    assert key not in "".join(shown)
    assert spec.auth == "key"


def test_a_file_name_that_cannot_exist_is_reported_in_a_sentence() -> None:
    with pytest.raises(OptionError, match="no home directory '~nobody-has-this-name'"):
        spec_of("", entry(tls_ca="~nobody-has-this-name/ca.pem"))
    with pytest.raises(OptionError, match="NUL character"):
        spec_of("", entry(key_file="a\0b"))


def test_relative_files_start_at_the_base_of_their_layer(tmp_path: Path) -> None:
    spec = spec_of("", OptionLayer("the entry", {"tls_cert": "a.pem", "tls_key": "/abs/b.pem"}, tmp_path))
    assert (spec.tls_cert, spec.tls_key) == (tmp_path / "a.pem", Path("/abs/b.pem"))
    assert format_options(spec)["tls_cert"] == str(tmp_path / "a.pem")
    assert "tls_ca" not in format_options(spec)


def test_a_spec_is_frozen_and_equal_to_a_spec_of_the_same_options() -> None:
    spec = spec_of("log=debug&semaphore_limit=3")
    assert spec == spec_of("semaphore_limit=3&log=debug")
    assert hash(spec) == hash(spec_of("semaphore_limit=3&log=debug"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.log = LogLevel.WARN  # type: ignore[misc]  # what the test is about


def test_a_url_fault_and_a_layer_fault_are_told_apart_by_their_type() -> None:
    with pytest.raises(UrlError):
        spec_of("log=loud")
    with pytest.raises(OptionError) as caught:
        spec_of("", OptionLayer("elsewhere", {"log": "loud"}))
    assert caught.value.source != URL_SOURCE


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("client://h:1/:2?tls_ca=/etc/ca.pem", "tls_ca verifies nothing without tls=2"),
        ("server://:8080/:8080", "the tunnel and the target have the same address, :8080"),
        ("client://h:1/h:2?proto=udp&proxy=v1", "proxy=v1 is a line before a TCP stream; for proto=udp write proxy=v2"),
        ("client://h:1/h:2?proto=both&proxy=v1", "for proto=both write proxy=v2"),
        ("server://:1/:2?proto=udp&rate=1mbit", "rate and visitor_rate limit TCP alone"),
        ("server://:1/:2?proto=both&rate=1mbit", "write none for both, or remove proto=both"),
        ("server://:1/:2?proto=udp&proxy_from=10.0.0.1", "proxy_from reads the headers of TCP connections alone"),
        ("server://:1/:2?proto=both&proxy_from=10.0.0.1", "remove proxy_from or proto=both"),
        ("server://h:8080/h:8080", "the tunnel and the target have the same address, h:8080"),
        (
            "server://Host.example:80/host.example:80",
            "the tunnel and the target have the same address, host.example:80",
        ),
        ("server://[::1]:80/[0:0:0:0:0:0:0:1]:80", "the tunnel and the target have the same address"),
        ("client://0.0.0.0:8080/127.0.0.1:8080", "the tunnel and the target have the same address, 127.0.0.1:8080"),
        ("server://127.0.0.1:8080/:8080", "the tunnel and the target have the same address, :8080"),
    ],
)
def test_options_that_cannot_work_together_are_refused(text: str, fault: str) -> None:
    with pytest.raises(UrlError, match=fault):
        make_spec(parse_url(text))


@pytest.mark.parametrize(
    "text", ["server://:0/:0", "server://h:8080/g:8080", "server://:8080/h:8080", "server://h:1/h:2"]
)
def test_different_addresses_are_accepted(text: str) -> None:
    assert make_spec(parse_url(text)).role.value == text.partition("://")[0]


@pytest.mark.parametrize("proto", ["udp", "both"])
def test_visitors_of_udp_have_the_options_that_every_visitor_has(proto: str) -> None:
    spec = make_spec(parse_url(f"server://:1/:2?proto={proto}&proxy=v2&max_per_address=10"))
    assert (spec.proto.value, spec.proxy, spec.max_per_address) == (proto, ProxyVersion.V2, 10)


def test_a_key_in_the_url_excludes_what_would_replace_it(tmp_path: Path) -> None:
    with pytest.raises(UrlError, match="the URL has a key and a key_file; keep one"):
        make_spec(parse_url(f"client://secret@127.0.0.1:1/127.0.0.1:2?key_file={tmp_path}/key"))
    with pytest.raises(UrlError, match="the URL has a key and auth=open; keep one"):
        make_spec(parse_url("client://secret@127.0.0.1:1/127.0.0.1:2?auth=open"))
    with pytest.raises(OptionError, match="auth=open and a key exclude each other"):
        spec_of("", entry(key=Key("secret"), auth=AuthPolicy.OPEN))


def test_an_open_tunnel_takes_no_key_from_a_weaker_place() -> None:
    assert spec_of("", entry(auth=AuthPolicy.OPEN), environ={KEY_VARIABLE: "secret"}).key is None


def test_a_file_name_of_any_length_is_reported_in_a_sentence() -> None:
    with pytest.raises(UrlError, match="a file name has at most 4096 characters"):
        spec_of(f"tls_cert={'x' * 5000}&tls_key=y&tls=2")


def test_a_damaged_key_in_a_file_is_reported_with_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "damaged"
    file.write_text("npk_" + "A" * 48)
    with pytest.raises(UrlError, match=re.escape(str(file))) as caught:
        spec_of(f"key_file={file}")
    assert "AAAA" not in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "x" * 65, "tab\there"])
def test_the_name_of_a_service_is_short_and_printable(name: str) -> None:
    with pytest.raises(OptionError, match="service"):
        spec_of("", entry(service=name))


def test_a_missing_key_file_is_reported_with_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(UrlError, match=r"or make one: \(umask 077; nodepass-orch keygen > "):
        spec_of(f"key_file={tmp_path}/missing")
    with pytest.raises(UrlError, match="cannot read") as caught:
        spec_of(f"key_file={tmp_path}")
    assert "keygen" not in str(caught.value), "the command would destroy the file that is there"


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("0000000012", 12), ("12a", None), ("", None), ("1" * 99, None)]
)
def test_a_number_is_read_as_a_whole(text: str, number: int | None) -> None:
    assert parse_natural(text) == number


def test_short_and_uniform_keys_are_weak() -> None:
    assert [Key(text).is_weak for text in ("a", "KEY", "a" * 40, "Zq7Wm2Rk9xTv4Lp8")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("client://h:1/h:2?clients=2", "clients is an option of the server"),
        ("server://h:1/h:2?weight=2", "weight and backup are options of a client"),
        ("server://h:1/h:2?backup=1", "weight and backup are options of a client"),
    ],
)
def test_options_of_several_clients_belong_to_one_role(url: str, says: str) -> None:
    with pytest.raises(UrlError, match=says):
        make_spec(parse_url(url), ())
