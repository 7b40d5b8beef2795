"""Write every generated page, table and schema of the tree: ``python -m tests.references``, or ``make references``.

A page that has more than a table keeps the rest of its text: only tables with the same heading are replaced.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from orchestrator.api.reference import PAGES
from orchestrator.commands import command_line, help_topics
from orchestrator.config.schema import json_schema
from orchestrator.mqtt.topics import render_reference as render_topics
from tui.launch import top
from tunnel.model.option_table import render_option_table
from tunnel.model.state import render_state_table
from tunnel.protocol.frames import frame_table

ROOT: Final = Path(__file__).parents[1]

_TABLES: Final[Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "docs/reference/options.md": render_option_table,
        "docs/reference/states.md": render_state_table,
        "tunnel/protocol/PROTOCOL.md": frame_table,
    }
)
"""Pages in which the tables alone are generated."""


def replace_tables(page: str, tables: str) -> str:
    """Return the page with its tables replaced by those of the same headings. Raises ValueError if one is missing."""
    for table in tables.strip("\n").split("\n\n"):
        heading = table.partition("\n")[0]
        rows = re.compile(rf"^{re.escape(heading)}\n(?:\|.*\n)*", re.MULTILINE)
        page, count = rows.subn(f"{table}\n".replace("\\", r"\\"), page)
        if count != 1:
            raise ValueError(f"the page has {count} tables with the heading {heading!r}")
    return page


def render_all(root: Path = ROOT) -> dict[Path, str]:
    """Return the text that each generated file of a checkout has to have."""
    texts = {
        root / name: replace_tables((root / name).read_text("utf-8"), render()) for name, render in _TABLES.items()
    }
    texts |= {root / "docs/reference" / name: render() for name, render in PAGES.items()}
    texts[root / "docs/reference/mqtt.md"] = render_topics()
    commands = command_line.build_command_line((*command_line.COMMANDS, top))
    texts[root / "docs/reference/commands.md"] = help_topics.render_reference(commands)
    texts[root / "configs/tunnels.schema.json"] = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    return texts


def main() -> None:
    """Write the files whose text differs, and print their names."""
    for path, text in render_all().items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
