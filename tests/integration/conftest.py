"""A process harness for each test, and the logs of its processes in the report of a failure."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Command, Pair, ProcessHarness, running_harness


@pytest.fixture
def harness(tmp_path: Path) -> Generator[ProcessHarness]:
    """Start processes and peers; afterwards all of them are ended and no log shows a traceback."""
    with running_harness(tmp_path) as harness:
        yield harness


def _commands(fixtures: dict[str, Any]) -> list[Command]:
    harness, pair = fixtures.get("harness"), fixtures.get("pair")
    own = harness.commands if isinstance(harness, ProcessHarness) else []
    return own + ([pair.server, pair.client] if isinstance(pair, Pair) else [])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the logs of the processes to the report of a failure."""
    report = yield
    if report.failed:
        for command in _commands(getattr(item, "funcargs", {})):
            text = "\n".join((command.log_text() + command.stdout_text()).splitlines()[-60:])
            report.sections.append((f"{command.name} {command.arguments!r:.200}", text))
    return report
