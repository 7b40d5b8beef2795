"""The event loop of the unit tests is the program's own; tests of what depends on the loop run on both kinds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tunnel.runtime.event_loop import SharedEpollLoop

_ON_BOTH_LOOPS = {"test_reactor", "test_relays"}  # an embedded engine may run on asyncio's own loop


def pytest_asyncio_loop_factories(
    config: pytest.Config,
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the loops on which a test runs."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"shared": SharedEpollLoop}
    if item.path.stem in _ON_BOTH_LOOPS:
        factories["nested"] = asyncio.SelectorEventLoop
    return factories
