"""The exceptions of the package form one tree."""

from __future__ import annotations

import importlib
import pkgutil

import tunnel
from tunnel.model.errors import TunnelError


def exception_classes() -> list[type[BaseException]]:
    """Return every exception class that a module of the package defines."""
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(tunnel.__path__, "tunnel.")]
    defined = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return [one for one in defined if issubclass(one, BaseException) and one.__module__.startswith("tunnel.")]


def test_every_exception_is_a_tunnel_error_or_reports_a_defect() -> None:
    found = exception_classes()
    assert len(found) > 8
    assert [one for one in found if not issubclass(one, (TunnelError, AssertionError))] == []
