"""The documented trees of exceptions are the ones of the program."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import orchestrator.errors
import tunnel.model.errors
from orchestrator.errors import OrchestratorError
from tunnel.model.errors import TunnelError
from tunnel.model.state import InvalidTransitionError


def subclasses(base: type[Exception], package: str) -> set[str]:
    """Return the names of all public subclasses of a package, with every module of it imported."""
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        importlib.import_module(module.name)
    found, pending = set(), [base]
    while pending:
        for each in pending.pop().__subclasses__():
            if each.__module__.startswith(f"{package}.") and not each.__name__.startswith("_"):
                found.add(each.__name__)
            pending.append(each)
    return found


@pytest.mark.parametrize(
    ("base", "module"), [(TunnelError, tunnel.model.errors), (OrchestratorError, orchestrator.errors)]
)
def test_the_documented_tree_has_every_exception(base: type[Exception], module: object) -> None:
    documented = set(re.findall(r"[├└]── (\w+)", inspect.getdoc(module) or ""))
    assert documented == subclasses(base, base.__module__.partition(".")[0])


def test_a_defect_is_in_no_tree() -> None:

    assert not issubclass(InvalidTransitionError, TunnelError)
