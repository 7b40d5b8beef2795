"""A stage for each test, and what its processes said where the test fails."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import Command, Pair, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Generator[Stage]:
    """Starts processes and peers; afterwards nothing of them is left, and none has shown a traceback."""
    stage = Stage(tmp_path)
    try:
        yield stage
        stage.check()
    finally:
        stage.close()


def _commands(fixtures: dict[str, Any]) -> list[Command]:
    stage, pair = fixtures.get("stage"), fixtures.get("pair")
    own = stage.commands if isinstance(stage, Stage) else []
    return own + ([pair.server, pair.client] if isinstance(pair, Pair) else [])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the logs of the processes to the report of a failure."""
    report = yield
    if report.failed:
        for command in _commands(getattr(item, "funcargs", {})):
            text = "\n".join((command.said() + command.printed()).splitlines()[-60:])
            report.sections.append((f"{command.name} {command.process.args!r:.200}", text))
    return report
