"""The coverage gate of ``make test``: ``python -m tests.coverage_gate build/coverage.json``.

Coverage counts the lines and branches of ``tunnel/`` that its unit tests execute. Engines in processes of their own, as
in the integration tests, are not measured. A package below its bound fails the gate with one sentence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BOUNDS_PERCENT: Final = {"tunnel/model/": 100.0, "tunnel/protocol/": 100.0, "tunnel/": 90.0}
"""The lowest accepted coverage by path prefix. Model and protocol need no sockets, so all of them can be tested."""

_MAX_NAMED_FILES: Final = 5


@dataclass(frozen=True, slots=True)
class Coverage:
    """Covered and existing lines and branches of one or several files, and the files that are not fully covered."""

    covered: int
    total: int
    incomplete: tuple[str, ...] = ()

    @property
    def percent(self) -> float:
        """The covered share in percent; nothing to cover counts as fully covered."""
        return 100 * self.covered / self.total if self.total else 100.0


def coverage_below(report: dict[str, Any], prefix: str) -> Coverage:
    """Sum up the files of a coverage report (``coverage json``) whose path starts with ``prefix``."""
    covered = total = 0
    incomplete = []
    for name, file in sorted(report["files"].items()):
        if not name.startswith(prefix):
            continue
        summary = file["summary"]
        here = summary["covered_lines"] + summary["covered_branches"]
        there = summary["num_statements"] + summary["num_branches"]
        covered, total = covered + here, total + there
        if here < there:
            incomplete.append(f"{name} ({there - here} of {there} missing)")
    return Coverage(covered, total, tuple(incomplete))


def violations(report: dict[str, Any]) -> list[str]:
    """Return one sentence for each package whose coverage is below its bound."""
    found = []
    for prefix, bound in BOUNDS_PERCENT.items():
        coverage = coverage_below(report, prefix)
        if coverage.percent < bound:
            named = ", ".join(coverage.incomplete[:_MAX_NAMED_FILES])
            found.append(f"coverage of {prefix} is {coverage.percent:.1f} %, below {bound:g} %: {named}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Check the report. Return 0 if all bounds hold, 1 if not, 2 if the report cannot be read."""
    try:
        report = json.loads(Path(arguments[0]).read_text())
    except (IndexError, OSError, ValueError) as error:
        sys.stderr.write(f"coverage gate: no report: {error}\n")
        return 2
    found = violations(report)
    for sentence in found:
        sys.stderr.write(f"{sentence}\n")
    if not found:
        shown = ", ".join(f"{prefix} {coverage_below(report, prefix).percent:.1f} %" for prefix in BOUNDS_PERCENT)
        sys.stdout.write(f"coverage of lines and branches: {shown}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
