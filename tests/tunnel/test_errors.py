"""The exceptions of the package form one tree."""

from __future__ import annotations

import importlib
import pkgutil

import tunnel
from tunnel.model.errors import InvalidValueError, TunnelError


def exception_classes() -> list[type[BaseException]]:
    """Return every exception class that a module of the package defines."""
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(tunnel.__path__, "tunnel.")]
    defined = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return [one for one in defined if issubclass(one, BaseException) and one.__module__.startswith("tunnel.")]


def test_every_exception_is_a_tunnel_error_or_reports_a_defect() -> None:
    found = exception_classes()
    assert len(found) > 8
    assert [one for one in found if not issubclass(one, (TunnelError, AssertionError))] == []


def test_a_message_can_quote_another_text_in_place_of_the_value() -> None:
    error = InvalidValueError("{} is not one of {}", "s3cret", "a, b")
    assert str(error) == "s3cret is not one of a, b"
    assert error.quoting("${A}") == "${A} is not one of ${A}"
    assert InvalidValueError("a file name is missing").quoting("${A}") == "a file name is missing"
