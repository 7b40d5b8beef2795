"""How hard the tests try, and how long they wait: figures that are promised, or a machine that does something else."""

from __future__ import annotations

import os
from typing import Final

FULL: Final = os.environ.get("NODEPASS_TEST_SCALE") == "full"
"""Whether sizes, counts and waits are the ones that are promised, rather than quick ones."""

GUARD: Final = 30.0
"""Seconds after which what has not come will not come, however busy the machine is."""


def allowed(promised: float) -> float:
    """Seconds that something may take here.

    At full size that is what is promised. Quick tests run beside others, on machines that stand still for a second or
    two whenever they like: there they ask whether it comes at all.
    """
    return promised if FULL else max(GUARD, promised)
