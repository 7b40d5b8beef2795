"""Every fault case has an enforced deadline, a measured figure, and a row in the table at the end.

A case is a test with the mark ``case(name, deadline=seconds)`` that uses the fixture ``record_figure``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import pytest

from tests.faults import wire
from tests.faults.hosts import ImpairedHosts, NamespaceHosts
from tests.integration.conftest import harness, pytest_runtest_makereport
from tests.support import namespaces
from tests.support.scale import GUARD_S, IS_FULL_SCALE

__all__ = ["harness", "pytest_runtest_makereport"]

FigureRecorder = Callable[[str], None]

_RESULTS = {"passed": "pass", "failed": "FAIL", "error": "FAIL", "skipped": "skip"}


@pytest.fixture
def record_figure(record_property: Callable[[str, object], None]) -> FigureRecorder:
    """Record what a case has measured, in a few words, for its row. The last call counts."""

    def record(text: str) -> None:
        record_property("figure", text)

    return record


@pytest.fixture(scope="module")
def hosts() -> Generator[NamespaceHosts]:
    """The client's host, the server's host and a host behind it, in network namespaces with unimpaired cables."""
    if reason := namespaces.missing():
        pytest.skip(reason)
    hosts = NamespaceHosts()
    try:
        yield hosts
    finally:
        hosts.close()


@pytest.fixture(scope="module")
def impaired_hosts() -> Generator[ImpairedHosts]:
    """The same hosts with an impaired wire between the server's and the client's."""
    if reason := namespaces.missing() or wire.missing():
        pytest.skip(reason)
    hosts = ImpairedHosts()
    try:
        yield hosts
    finally:
        hosts.close()


def _case(item: pytest.Item) -> tuple[str, float] | None:
    mark = item.get_closest_marker("case")
    if mark is None:
        return None
    parameters = getattr(item, "callspec", None)
    name = ", ".join([mark.args[0], *([parameters.id] if parameters else [])])
    return name, float(mark.kwargs["deadline"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Give the case a row in the table."""
    if case := _case(item):
        item.user_properties.append(("case", case[0]))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a case that is not finished at its deadline, wherever its main thread runs or waits."""
    case = _case(item)
    if case is None:
        return (yield)
    deadline = case[1] if IS_FULL_SCALE else max(case[1], 10 * GUARD_S)  # quick runs use it only against hanging tests

    def fail_late(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"not finished within its deadline of {deadline:g} s")

    before = signal.signal(signal.SIGALRM, fail_late)
    signal.setitimer(signal.ITIMER_REAL, deadline)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_terminal_summary(terminalreporter: Any) -> None:  # noqa: ANN401  pytest has no public type for it
    """Print the table: case, result, figure."""
    rows: dict[str, tuple[str, str]] = {}
    for outcome, word in _RESULTS.items():
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(getattr(report, "user_properties", []))
            reason = _reason(report)
            known = rows.get(properties.get("case", ""), ("", ""))[0]
            if "case" in properties and known != "FAIL" and not reason.startswith("slow:"):
                rows[properties["case"]] = (word, properties.get("figure") or reason)
    if rows:
        width = max(len(name) for name in rows)
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'case':{width}}  result  figure")
        for name in sorted(rows):
            word, text = rows[name]
            terminalreporter.write_line(f"{name:{width}}  {word:6}  {text}".rstrip())


def _reason(report: Any) -> str:  # noqa: ANN401  pytest has several kinds of report
    if isinstance(report.longrepr, tuple):  # a skipped test: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message).splitlines()[0] if crash else ""
