"""Whatever a request carries, it is understood or refused with a sentence that names the place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api import queries
from orchestrator.api.queries import QueryError
from tunnel.model.spec import LogLevel

KNOWN = {"timeout": float, "drain": bool}


@given(st.text())
def test_numbers_are_in_range_or_refused(text: str) -> None:
    with contextlib.suppress(QueryError):
        assert 0 <= queries.whole({"n": text}, "n", 1) <= queries.MOST_LINES
    with contextlib.suppress(QueryError):
        assert queries.SHORTEST_INTERVAL <= queries.seconds({"n": text}, "n", 1) <= queries.LONGEST_INTERVAL


@pytest.mark.parametrize(("text", "value"), [("0", 0.1), ("0.05", 0.1), ("2.5", 2.5), ("1e1", 10.0), ("60", 60.0)])
def test_an_interval_is_never_too_short(text: str, value: float) -> None:
    assert queries.seconds({"interval": text}, "interval", 0.25) == value


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "61", "1_0", "\uff11", "1e999", "0x1"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(QueryError, match="interval: "):
        queries.seconds({"interval": text}, "interval", 0.25)


def test_defaults() -> None:
    assert queries.whole({}, "n", 7) == 7
    assert queries.switch({}, "follow", default=True) is True
    assert queries.level({}, "level", LogLevel.WARN) is LogLevel.WARN
    assert queries.body(b"", KNOWN) == {}


@given(st.binary())
def test_any_body_is_understood_or_refused(data: bytes) -> None:
    with contextlib.suppress(QueryError):
        assert set(queries.body(data, KNOWN)) <= set(KNOWN)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["timeout", "drain", "x"]), inner),
    )
)
def test_what_is_understood_has_the_right_types(value: object) -> None:
    with contextlib.suppress(QueryError):
        found = queries.body(json.dumps(value).encode(), KNOWN)
        assert isinstance(found.get("drain", True), bool)
        assert 0 <= found.get("timeout", 0) <= queries.LONGEST_TIMEOUT


def test_a_body_without_bottom_is_refused() -> None:
    with pytest.raises(QueryError, match="the body is not JSON"):
        queries.body(b"[" * 60_000, KNOWN)
    with pytest.raises(QueryError, match="the body is not a JSON object"):
        queries.body(b"[]", {})
