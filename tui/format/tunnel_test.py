"""The result of a test of a tunnel as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.status.tunnel_test import describe_test
from tui.format.command_line import command_line
from tui.format.text import paragraph

if TYPE_CHECKING:
    from orchestrator.status.json_types import TunnelTestJson
    from tui.format.text import Line


def tunnel_test_lines(found: TunnelTestJson, width: int) -> list[Line]:
    """Return one line or more for each leg, and the command that prints the same."""
    lines = []
    for text, leg in zip(describe_test(found), found["legs"], strict=True):
        lines += paragraph(text, width, "warn" if leg["error"] else "")
    return [*lines, (), ((command_line("test", [found["name"]]), "dim"),)]
