"""The coverage gate reports packages below their bound and accepts the others."""

from __future__ import annotations

from typing import Any

from tests.coverage_gate import BOUNDS_PERCENT, coverage_below, violations


def file(covered: int, total: int) -> dict[str, Any]:
    return {
        "summary": {
            "covered_lines": covered - 1,
            "num_statements": total - 1,
            "covered_branches": 1,
            "num_branches": 1,
        }
    }


def test_lines_and_branches_of_a_package_are_added_up() -> None:
    report = {
        "files": {"tunnel/model/a.py": file(30, 40), "tunnel/model/b.py": file(60, 60), "tunnel/c.py": file(1, 9)}
    }
    coverage = coverage_below(report, "tunnel/model/")
    assert coverage.percent == 90.0
    assert coverage.incomplete == ("tunnel/model/a.py (10 of 40 missing)",)


def test_full_coverage_violates_no_bound() -> None:
    assert violations({"files": {f"{prefix}x.py": file(100, 100) for prefix in BOUNDS_PERCENT}}) == []


def test_a_package_below_its_bound_is_reported_in_one_sentence() -> None:
    (sentence,) = violations({"files": {"tunnel/runtime/x.py": file(80, 100)}})
    assert sentence == "coverage of tunnel/ is 80.0 %, below 90 %: tunnel/runtime/x.py (20 of 100 missing)"
