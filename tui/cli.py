"""The console script ``nodepass-orch``: the one place that composes the commands of both packages.

Nothing heavy is imported at the top: a process that runs one URL needs neither commands nor dashboard.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator import cli


def main() -> int:
    """Run the command line of this process. Returns the exit code."""
    return cli.main(_run_command)


def _run_command(arguments: Sequence[str]) -> int:
    from orchestrator.commands import command_line  # noqa: PLC0415  see the top of the module
    from tui import launch  # noqa: PLC0415  as above

    return command_line.run(arguments, (*command_line.COMMANDS, launch.top), launch.Launcher())


if __name__ == "__main__":
    sys.exit(main())
