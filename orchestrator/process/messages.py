"""The messages of this program on standard error, and its version.

Every command imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import sys

from orchestrator.process.terminal_text import printable_lines


def program_version() -> str:
    """The installed version of this program."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  few commands need it

    try:
        return version("nodepass-orch")
    except PackageNotFoundError:
        return "0 (not installed)"


def print_message(text: str) -> None:
    """Print a message to standard error, with the program's name before it and no control characters."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"nodepass-orch: {printable_lines(text)}\n")
        sys.stderr.flush()
