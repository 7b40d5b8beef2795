"""The stored results: a page with the tables of each section, and a chart for each section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import report
from .processes import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .section import Section

PAGE: Final = "README.md"

_TITLE: Final = """\
# Results

Written by `make bench`; the [method](../README.md) explains the terms. Each section shows the date of its own
last run.
"""


def format_section(
    section: Section, outcomes: Sequence[report.Outcome], facts: Mapping[str, str], *, has_chart: bool
) -> str:
    """Return a section of the page."""
    parts = [f"## {section.title}", "\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
    parts += [f"![{section.title}]({section.name}.svg)"] * has_chart
    parts.append(f"```\n{report.render(outcomes, section.sheet)}\n```")
    return "\n\n".join(parts) + "\n"


def merge_page(page: str, blocks: Mapping[str, str], order: Sequence[str]) -> str:
    """Return the page with these sections replaced or added; the other sections stay.

    ``order`` lists the titles of all sections.
    """
    sections = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", page, re.MULTILINE))
    found = {title: f"## {title}\n{text.rstrip()}\n" for title, text in sections.items()} | dict(blocks)
    return "\n".join([_TITLE, *(found[title] for title in order if title in found)])


def write(
    directory: Path,
    measured: Mapping[Section, Sequence[report.Outcome]],
    facts: Mapping[str, str],
    order: Sequence[str],
) -> str | None:
    """Write the page and the charts. Return the reason if there are no charts. Raises BenchError."""
    bars, missing = _load_charts()
    page = directory / PAGE
    blocks = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for section, outcomes in measured.items():
            chart_panels = report.chart_panels(outcomes, section.sheet)
            if chart_panels and bars:
                bars(
                    directory / f"{section.name}.svg",
                    chart_panels,
                    strong=section.sheet.judged or section.sheet.variants,
                )
            blocks[section.title] = format_section(section, outcomes, facts, has_chart=bool(chart_panels and bars))
        before = page.read_text() if page.exists() else ""
        page.write_text(merge_page(before, blocks, order))
    except OSError as error:
        raise BenchError(f"--results {directory}: {error.strerror}") from None
    return missing


def _load_charts() -> tuple[Callable[..., None] | None, str | None]:
    """Return the function that draws bar charts, or the reason why there is none."""
    try:
        from tests.support import charts  # noqa: PLC0415  only stored results need matplotlib
    except ImportError:
        return None, "matplotlib is not installed: pip install -e '.[plots]'"
    return charts.bars, None
