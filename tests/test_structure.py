"""The three packages stay readable: modules of one sitting, and each class name once."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.support.processes import ROOT

MAX_LINES = 450
MAX_LONG_FUNCTIONS = 5
LONG_FUNCTION_LINES = 40
MAX_MQTT_MODULES = 13


@cache
def modules() -> tuple[Path, ...]:
    """Every module of the product."""
    return tuple(
        sorted(path for package in ("tunnel", "orchestrator", "tui") for path in (ROOT / package).rglob("*.py"))
    )


@cache
def nodes() -> tuple[tuple[Path, ast.AST], ...]:
    """Every node of every module."""
    return tuple((path, node) for path in modules() for node in ast.walk(ast.parse(path.read_text())))


def test_no_module_is_too_long_to_be_read_in_one_sitting() -> None:
    assert not [path for path in modules() if path.read_text().count("\n") > MAX_LINES]


def test_each_class_name_exists_once() -> None:
    counts = Counter(node.name for _, node in nodes() if isinstance(node, ast.ClassDef))
    assert not [name for name, count in counts.items() if count > 1]


def test_nearly_all_functions_fit_on_a_screen() -> None:
    long = [
        f"{path.name}: {node.name}"
        for path, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= LONG_FUNCTION_LINES
    ]
    assert len(long) <= MAX_LONG_FUNCTIONS, long


@pytest.mark.parametrize(("folder", "limit"), [("orchestrator/mqtt", MAX_MQTT_MODULES)])
def test_a_folder_has_few_modules(folder: str, limit: int) -> None:
    assert len([path for path in modules() if path.parent == ROOT / folder and path.name != "__init__.py"]) <= limit
