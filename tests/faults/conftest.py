"""What every case has: a deadline that is kept, a figure, and a row in the table at the end.

A case is a test with the mark ``case(name, deadline=seconds)`` that takes the fixture ``figure``.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import pytest

from tests.faults import wire
from tests.faults.hosts import FarHosts, Hosts
from tests.integration import namespaces
from tests.integration.conftest import pytest_runtest_makereport, stage
from tests.scale import FULL, GUARD

__all__ = ["pytest_runtest_makereport", "stage"]

Figure = Callable[[str], None]

_RESULTS = {"passed": "pass", "failed": "FAIL", "error": "FAIL", "skipped": "skip"}


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Record what a case has seen, in a few words, for its row. The last one counts."""

    def record(text: str) -> None:
        record_property("figure", text)

    return record


@pytest.fixture(scope="module")
def hosts() -> Generator[Hosts]:
    """A client's host, a server's host and one behind it, in network namespaces, with a good wire between them."""
    if reason := namespaces.missing():
        pytest.skip(reason)
    hosts = Hosts()
    try:
        yield hosts
    finally:
        hosts.close()


@pytest.fixture(scope="module")
def far_hosts() -> Generator[FarHosts]:
    """Hosts with a bad wire between the server's and the client's."""
    if reason := namespaces.missing() or wire.missing():
        pytest.skip(reason)
    hosts = FarHosts()
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
    """Give the case its row."""
    if case := _case(item):
        item.user_properties.append(("case", case[0]))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Break off a case that is not over by its deadline, wherever its main thread stands or waits."""
    case = _case(item)
    if case is None:
        return (yield)
    deadline = case[1] if FULL else max(case[1], 10 * GUARD)  # which is then against hanging alone

    def late(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"not over by its deadline, {deadline:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, deadline)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_terminal_summary(terminalreporter: Any) -> None:  # noqa: ANN401  pytest has no public type for it
    """The table: case, result, figure."""
    rows: dict[str, tuple[str, str]] = {}
    for outcome, word in _RESULTS.items():
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(getattr(report, "user_properties", []))
            why = _why(report)
            known = rows.get(properties.get("case", ""), ("", ""))[0]
            if "case" in properties and known != "FAIL" and not why.startswith("slow:"):
                rows[properties["case"]] = (word, properties.get("figure") or why)
    if rows:
        width = max(len(name) for name in rows)
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'case':{width}}  result  figure")
        for name in sorted(rows):
            word, text = rows[name]
            terminalreporter.write_line(f"{name:{width}}  {word:6}  {text}".rstrip())


def _why(report: Any) -> str:  # noqa: ANN401  of several kinds
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message).splitlines()[0] if crash else ""
