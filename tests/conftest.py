"""Settings of all tests: the scale of the run, and an environment without the user's own variables."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.scale import IS_FULL_SCALE
from tunnel.model.options import OPTION_VARIABLES

settings.register_profile("quick", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# aiohttp reads the certificates of the system when it is imported: a tenth of the time until a daemon serves. No test
# trusts them, and a test that trusts its own authority names the file.
os.environ["SSL_CERT_FILE"] = os.environ["SSL_CERT_DIR"] = os.devnull

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts background processes this way
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs under test inherit the disposition


@pytest.fixture(autouse=True, scope="session")
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's own variables, state and daemons from the program under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for name in [*OPTION_VARIABLES, "NODEPASS_ORCH_SOCKET", "NO_COLOR"]:
            patch.delenv(name, raising=False)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip slow tests with a reason unless the run is at full size."""
    for item in items:
        if item.get_closest_marker("slow") and not IS_FULL_SCALE:
            item.add_marker(pytest.mark.skip(reason="slow: runs with NODEPASS_TEST_SCALE=full"))
