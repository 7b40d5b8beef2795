"""What is kept of a run: a page with the tables of each section, and its picture."""

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

Written by `make bench`; the [method](../README.md) says what the words mean. Each section has the date of its own
last run.
"""


def block(section: Section, outcomes: Sequence[report.Outcome], facts: Mapping[str, str], *, picture: bool) -> str:
    """A section of the page."""
    parts = [f"## {section.title}", "\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
    parts += [f"![{section.title}]({section.name}.svg)"] * picture
    parts.append(f"```\n{report.render(outcomes, section.sheet)}\n```")
    return "\n\n".join(parts) + "\n"


def merged(page: str, blocks: Mapping[str, str], order: Sequence[str]) -> str:
    """The page with these sections in the place of what it had under their titles; the others stay.

    ``order`` has the titles of all sections there are.
    """
    kept = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", page, re.MULTILINE))
    found = {title: f"## {title}\n{text.rstrip()}\n" for title, text in kept.items()} | dict(blocks)
    return "\n".join([_TITLE, *(found[title] for title in order if title in found)])


def write(
    directory: Path,
    measured: Mapping[Section, Sequence[report.Outcome]],
    facts: Mapping[str, str],
    order: Sequence[str],
) -> str | None:
    """Write the page and the pictures. Returns why there are no pictures, if so. Raises BenchError."""
    bars, missing = _bars()
    page = directory / PAGE
    blocks = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for section, outcomes in measured.items():
            panels = report.panels(outcomes, section.sheet)
            if panels and bars:
                bars(directory / f"{section.name}.svg", panels, strong=section.sheet.judged or section.sheet.variants)
            blocks[section.title] = block(section, outcomes, facts, picture=bool(panels and bars))
        before = page.read_text() if page.exists() else ""
        page.write_text(merged(before, blocks, order))
    except OSError as error:
        raise BenchError(f"--results {directory}: {error.strerror}") from None
    return missing


def _bars() -> tuple[Callable[..., None] | None, str | None]:
    """How bars are drawn; or why they cannot be."""
    try:
        from tests.support import charts  # noqa: PLC0415  only where results are kept, and only there matplotlib is needed
    except ImportError:
        return None, "matplotlib is not installed: pip install -e '.[plots]'"
    return charts.bars, None
