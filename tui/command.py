"""The console command: what ``orchestrator`` can do, and the dashboard on top. Imports nothing heavy by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator import cli


def main() -> int:
    """Run the command line of this process; the exit code."""
    return cli.main(_run)


def _run(arguments: Sequence[str]) -> int:
    from orchestrator.commands import local as commands  # noqa: PLC0415  one URL, the light way, needs neither
    from tui import opening  # noqa: PLC0415

    opening.extend(commands.cli)
    return commands.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
