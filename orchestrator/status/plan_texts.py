"""What a plan says about present visitors, for the command line and the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunnel.model.times import format_duration
from tunnel.model.wording import plural

if TYPE_CHECKING:
    from orchestrator.status.json_types import PlanJson


def describe_finishing(plan: PlanJson) -> dict[str, str]:
    """Return how many present visitors may finish, and for how long, for each entry whose visitors are concerned."""
    return {
        one["name"]: f"{plural(one['visitors'], 'visitor')} may finish, for {format_duration(one['timeout_s'])} at most"
        for one in plan.get("finishing", ())
    }
