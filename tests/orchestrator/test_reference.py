"""The reference pages in docs/reference are those that the tables of routes and metrics produce."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.api import reference
from orchestrator.api.metrics import DAEMON_METRICS, TUNNEL_METRICS
from orchestrator.api.routes import ROUTES

DIRECTORY = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_reference_page_is_up_to_date(name: str) -> None:
    command = "python -m orchestrator.api.reference docs/reference"
    assert (DIRECTORY / name).read_text(encoding="utf-8") == reference.PAGES[name](), f"run: {command}"


def test_the_pages_have_every_route_and_every_metric() -> None:
    api, metrics = reference.render_api_reference(), reference.render_metrics_reference()
    assert all(f"## {route.method} {route.path}\n" in api for route in ROUTES)
    names = [spec.name for spec in DAEMON_METRICS] + [spec.name for spec in TUNNEL_METRICS]
    assert all(f"nodepass_orch_{name}" in metrics for name in names)
