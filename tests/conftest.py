"""What all tests share: how hard they try, and an environment without the machine's own settings."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.support.scale import IS_FULL_SCALE
from tunnel.model.options import OPTION_VARIABLES

settings.register_profile("quick", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or the programs under test would not hear it either


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests reaches the program under test."""
    for name in [*OPTION_VARIABLES, "NODEPASS_ORCH_SOCKET", "NO_COLOR"]:
        monkeypatch.delenv(name, raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is slow, aloud, unless full size is asked for."""
    for item in items:
        if item.get_closest_marker("slow") and not IS_FULL_SCALE:
            item.add_marker(pytest.mark.skip(reason="slow: runs with NODEPASS_TEST_SCALE=full"))
