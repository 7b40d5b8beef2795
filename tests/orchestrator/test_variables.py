"""Variables in texts of the file: what is replaced, what is a fault, and what is kept with a warning."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.variables import (
    MAX_NESTED_DEFAULTS,
    MAX_VARIABLE_CHARACTERS,
    VariableBudget,
    VariableError,
    substitute,
)


def value(text: str, **environ: str) -> str:
    return substitute(text, environ, VariableBudget()).value


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("${A}", {"A": ""}, ""),
        ("${A}", {"A": "${B}$$"}, "${B}$$"),
        ("${A:-y}", {}, "y"),
        ("${A:-y}", {"A": ""}, "y"),
        ("${A:-y}", {"A": "x"}, "x"),
        ("${A:-${B}}", {"B": "b"}, "b"),
        ("${A:-${B}}", {"A": "x"}, "x"),
        ("${A:-${B}}!", {"A": "x", "B": "b"}, "x!"),
        ("${A:-${B:-c}}", {}, "c"),
        ("<${A:-1${B:-2${C:-3}4}5}>", {}, "<12345>"),
        ("<${A:-1${B:-2${C:-3}4}5}>", {"B": "b"}, "<1b5>"),
        ("${A:-${B}-${C}}/${A}", {"A": "x"}, "x/x"),
        ('${A:-{"k": {}}}', {}, '{"k": {}}'),
        ('${A:-{"k": {}}}', {"A": "x"}, "x"),
        ("${A:-}", {}, ""),
        ("$$${A}$$", {"A": "x"}, "$x$"),
        ("$${A}", {}, "${A}"),
        ("$$$${A}", {}, "$${A}"),
        ("${A:-$$}", {}, "$"),
        ("a}{b} $", {}, "a}{b} $"),
        ("$1 $( $", {}, "$1 $( $"),
    ],
)
def test_variables_and_nested_defaults_are_replaced(text: str, environ: dict[str, str], expected: str) -> None:
    assert value(text, **environ) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${A", "is not ${NAME} or"),
        ("${", "is not ${NAME} or"),
        ("${}", "is not ${NAME} or"),
        ("${:-x}", "is not ${NAME} or"),
        ("${ A }", "is not ${NAME} or"),
        ("${1A}", "is not ${NAME} or"),
        ("${A-x}", "is not ${NAME} or"),
        ("${A:?x}", "is not ${NAME} or"),
        ("${A:+x}", "is not ${NAME} or"),
        ("${A:-${}}", "is not ${NAME} or"),
        ("${A:-x", "the default of ${A:- has no closing brace"),
        ("${A:-${B:-x}", "the default of ${A:- has no closing brace"),
        ("${A:-{x}", "the default of ${A:- has no closing brace"),
        ("${A}", "the environment variable A is not set"),
        ("${A:-${B}}", "the environment variable B is not set"),
        ("${A:-" * (MAX_NESTED_DEFAULTS + 1), "nested deeper than"),
    ],
)
def test_a_text_that_would_be_mangled_is_a_fault(text: str, words: str) -> None:
    with pytest.raises(VariableError) as caught:
        value(text)
    assert words in str(caught.value)


def test_a_variable_that_is_not_needed_may_be_unset() -> None:
    assert value("${A:-${B:-${C}}}", A="a") == "a"
    assert value("${A:-${B:-${C}}}", B="b") == "b"


def test_a_dollar_before_a_name_is_kept_and_noted() -> None:
    found = substitute("pa$word-${A:-$x}-$$y", {}, VariableBudget())
    assert found.value == "pa$word-$x-$y"
    assert len(found.bare_dollars) == 2


def test_a_long_value_cannot_be_repeated_without_bound() -> None:
    with pytest.raises(VariableError, match="MiB in all"):
        value("${A}" * 1000, A="x" * (MAX_VARIABLE_CHARACTERS // 500))


texts = st.text(st.sampled_from("${}:-AB1 x"), max_size=40)


@given(texts, st.dictionaries(st.sampled_from("AB"), texts))
def test_any_text_is_replaced_or_a_fault_and_a_text_without_dollars_is_kept(text: str, environ: dict[str, str]) -> None:
    with contextlib.suppress(VariableError):
        found = substitute(text, environ, VariableBudget())
        assert found.value == text or "$" in text
    assert substitute(text.replace("$", "$$"), environ, VariableBudget()).value == text
