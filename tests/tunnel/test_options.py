from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import recognisable_keys
from tests.tunnel.test_url import SEED_URLS
from tunnel.model.errors import OptionError, UrlError, did_you_mean
from tunnel.model.options import KEY_VARIABLE, OPTION_NAMES, Layer, check_names, make_spec
from tunnel.model.settings import NAMES, Settings
from tunnel.model.spec import DataTls, Key, LogLevel, Mode, Role, TunnelSpec
from tunnel.model.url import parse_url

BASE = "server://127.0.0.1:1/127.0.0.1:2"


def spec_of(options: str = "", *layers: Layer, environ: dict[str, str] | None = None) -> TunnelSpec:
    return make_spec(parse_url(f"{BASE}?{options}" if options else BASE), layers, environ)


def entry(**values: object) -> Layer:
    return Layer("the entry", values)


def defaults(**values: object) -> Layer:
    return Layer("defaults", values)


@pytest.mark.parametrize("text", SEED_URLS)
def test_the_originals_examples_are_complete_specs(text: str) -> None:
    spec = make_spec(parse_url(text))
    assert spec.role.value == text.partition(":")[0]
    assert spec.auth == "open"
    assert spec.mode is Mode.AUTO
    assert spec.data_port == 0
    assert spec.data_tls is DataTls.OFF
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
        ("tls=1", "data_tls", DataTls.PINNED),
        ("tls_ca=/etc/ca.pem", "tls_ca", Path("/etc/ca.pem")),
    ],
)
def test_an_option_means_what_the_table_says(option: str, field: str, value: object) -> None:
    assert getattr(spec_of(option), field) == value


@given(
    st.sampled_from(
        [("log", "log"), ("mode", "mode"), ("data_port", "data_port"), ("tls", "data_tls"), ("signal_buffer", "")]
    ),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_the_url_wins_over_the_entry_and_the_entry_over_defaults(names: tuple[str, str], present: list[bool]) -> None:
    option, field = names
    values = {
        "log": ["debug", "warn", "error"],
        "mode": ["reverse", "forward", "auto"],
        "data_port": ["1", "2", "3"],
        "tls": ["1", "0", "1"],
        "signal_buffer": ["1", "2", "3"],
    }[option]
    there = [value for value, is_there in zip(values, present, strict=True) if is_there]
    layers = [
        Layer(name, {option: value} if is_there else {})
        for name, value, is_there in zip(("entry", "defaults"), values[1:], present[1:], strict=True)
    ]
    spec = spec_of(f"{option}={values[0]}" if present[0] else "", *layers)
    expected = spec_of(f"{option}={there[0]}") if there else spec_of()
    if field:
        assert getattr(spec, field) == getattr(expected, field)
    else:
        assert spec.settings == expected.settings


def test_settings_take_all_four_places() -> None:
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


@pytest.mark.parametrize("name", OPTION_NAMES)
def test_a_mistyped_option_is_told_the_nearest(name: str) -> None:
    typo = name[:-1] + "x" if len(name) > 3 else name + "g"
    with pytest.raises(UrlError) as caught:
        check_names(parse_url(f"{BASE}?{typo}=1"))
    assert repr(typo) in str(caught.value)
    assert repr(name) in str(caught.value)
    assert caught.value.offset == len(BASE) + 1


def test_an_option_far_from_all_is_told_all() -> None:
    with pytest.raises(UrlError) as caught:
        spec_of("log=info&zzzzzz=1")
    assert all(name in str(caught.value) for name in OPTION_NAMES)
    assert caught.value.offset == len(f"{BASE}?log=info&")
    assert did_you_mean("zzzzzz", OPTION_NAMES) == ""


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
def test_a_wrong_value_in_the_url_is_found_at_its_place(option: str, words: str) -> None:
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
def test_a_wrong_value_in_the_file_names_the_place_and_the_option(source: str, name: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        spec_of("", Layer(source, {name: value}))
    assert (caught.value.source, caught.value.name) == (source, name)
    assert str(caught.value)
    assert "None" not in str(caught.value)


def test_a_wrong_variable_is_named_as_it_is_written() -> None:
    with pytest.raises(OptionError, match="unknown unit") as caught:
        spec_of(environ={"CLIENT_COOLDOWN": "5x"})
    assert (caught.value.source, caught.value.name) == ("the environment", "CLIENT_COOLDOWN")


def test_the_key_is_found_in_the_url_then_the_layers_then_the_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from-file\n")
    environ = {KEY_VARIABLE: "from-env"}
    layers = [Layer("the entry", {"key_file": "secret"}, tmp_path), defaults(key="from-defaults")]
    with_key = parse_url("server://from-url@127.0.0.1:1/127.0.0.1:2")
    assert make_spec(with_key, layers, environ).key == Key("from-url")
    assert spec_of("", *layers, environ=environ).key == Key("from-file")
    assert spec_of("", *layers[1:], environ=environ).key == Key("from-defaults")
    assert spec_of("", entry(key=12345)).key == Key("12345")
    assert spec_of("", environ=environ).key == Key("from-env")
    assert spec_of("", environ={KEY_VARIABLE: ""}).key is None
    assert spec_of(f"key_file={tmp_path}/secret", *layers[1:]).key == Key("from-file")


def test_a_key_and_a_key_file_in_one_place_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="keep one"):
        spec_of("", entry(key="a", key_file="b"))
    with pytest.raises(UrlError, match="keep one"):
        make_spec(parse_url(f"server://a@127.0.0.1:1/127.0.0.1:2?key_file={tmp_path}/b"))


def test_a_key_file_that_is_of_no_use_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, words in [("absent", "No such file"), ("empty", "keygen"), ("binary", "UTF-8"), ("", "directory")]:
        with pytest.raises(UrlError, match=words):
            spec_of(f"key_file={tmp_path}/{name}")


@given(recognisable_keys)
def test_a_key_is_in_no_complaint_about_its_neighbours(key: str) -> None:
    complaints: list[str] = []
    for layer in (entry(key=key, log="loud"), entry(key=key, key_file="x"), entry(key=[key]), entry(key=key, tls=7)):
        with pytest.raises(OptionError) as caught:
            spec_of("", layer)
        complaints.append(f"{caught.value} {caught.value!r}")
    for option in ("loq=info", "log=loud", "semaphore_limit=-2", "tls_cert=x"):
        with pytest.raises(UrlError) as error:
            make_spec(parse_url(f"server://{key}@127.0.0.1:1/127.0.0.1:2?{option}"), [], {KEY_VARIABLE: key})
        complaints.append(f"{error.value} {error.value!r}")
    spec = make_spec(parse_url(f"server://{key}@127.0.0.1:1/127.0.0.1:2"))
    complaints.extend([repr(spec), str(spec)])
    assert key not in "".join(complaints)
    assert spec.auth == "key"


def test_relative_files_start_where_the_layer_says(tmp_path: Path) -> None:
    spec = spec_of("", Layer("the entry", {"tls_cert": "a.pem", "tls_key": "/abs/b.pem"}, tmp_path))
    assert (spec.tls_cert, spec.tls_key) == (tmp_path / "a.pem", Path("/abs/b.pem"))


def test_faults_that_no_option_has_alone() -> None:
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


def test_a_spec_is_frozen_and_equal_to_its_like() -> None:
    spec = spec_of("log=debug&semaphore_limit=3")
    assert spec == spec_of("semaphore_limit=3&log=debug")
    assert hash(spec) == hash(spec_of("semaphore_limit=3&log=debug"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.log = LogLevel.WARN  # type: ignore[misc]  # what the test is about


def test_every_setting_is_an_option() -> None:
    assert set(NAMES) < set(OPTION_NAMES)
    assert len(set(OPTION_NAMES)) == len(OPTION_NAMES)
