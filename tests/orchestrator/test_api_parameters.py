"""Every value of a request is either parsed or rejected with a sentence that names the parameter."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api import parameters
from orchestrator.api.parameters import ParameterError
from tunnel.model.spec import LogLevel

FIELDS = (parameters.TIMEOUT.name, parameters.DRAIN.name)


@given(st.text())
def test_a_number_is_in_its_range_or_rejected(text: str) -> None:
    with contextlib.suppress(ParameterError):
        assert 0 <= parameters.LOG_COUNT.read([text]) <= parameters.MAX_LINES
    with contextlib.suppress(ParameterError):
        assert parameters.MIN_INTERVAL_S <= parameters.INTERVAL.read([text]) <= parameters.MAX_INTERVAL_S


@pytest.mark.parametrize(("text", "value"), [("0", 0.1), ("0.05", 0.1), ("2.5", 2.5), ("1e1", 10.0), ("60", 60.0)])
def test_an_interval_below_the_minimum_becomes_the_minimum(text: str, value: float) -> None:
    assert parameters.INTERVAL.read([text]) == value


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "61", "1_0", "\uff11", "1e999", "0x1"])
def test_text_that_is_no_interval_is_rejected(text: str) -> None:
    with pytest.raises(ParameterError, match="interval: "):
        parameters.INTERVAL.read([text])


def test_a_missing_parameter_has_its_default() -> None:
    assert parameters.count_parameter(7).read([]) == 7
    assert parameters.follow_parameter(default=True).read([]) is True
    assert parameters.LEVEL.read([]) is LogLevel.INFO
    assert parameters.TUNNELS.read([]) == frozenset()
    assert parameters.parse_body(b"", FIELDS) == {}
    assert parameters.TIMEOUT.read({}) is None


@given(st.binary())
def test_any_body_is_parsed_or_rejected(data: bytes) -> None:
    with contextlib.suppress(ParameterError):
        assert set(parameters.parse_body(data, FIELDS)) <= set(FIELDS)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["timeout", "drain", "x"]), inner),
    )
)
def test_a_parsed_body_has_values_of_the_right_type(value: object) -> None:
    with contextlib.suppress(ParameterError):
        body = parameters.parse_body(json.dumps(value).encode(), FIELDS)
        timeout_s = parameters.TIMEOUT.read(body)
        assert timeout_s is None or 0 <= timeout_s <= parameters.MAX_TIMEOUT_S
        assert isinstance(parameters.DRAIN.read(body), bool)


def test_a_body_that_is_nested_too_deeply_is_rejected() -> None:
    with pytest.raises(ParameterError, match="the body is not JSON"):
        parameters.parse_body(b"[" * 60_000, FIELDS)
    with pytest.raises(ParameterError, match="the body is not a JSON object"):
        parameters.parse_body(b"[]", ())
