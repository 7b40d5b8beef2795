"""A stage for each test, and what its processes said where the test fails."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Generator[Stage]:
    """Starts processes and peers; afterwards nothing of them is left, and none has shown a traceback."""
    stage = Stage(tmp_path)
    try:
        yield stage
        stage.check()
    finally:
        stage.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the logs of the processes to the report of a failure."""
    report = yield
    stage = getattr(item, "funcargs", {}).get("stage")
    if report.failed and isinstance(stage, Stage):
        for command in stage.commands:
            text = "\n".join((command.said() + command.printed()).splitlines()[-60:])
            report.sections.append((f"{command.name} {command.process.args!r:.200}", text))
    return report
