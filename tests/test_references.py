"""The generated pages, tables and schema are those of the present code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.references import render_all, replace_tables

TEXTS = render_all()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text("utf-8") == TEXTS[path], "run: make references"


def test_a_table_is_replaced_and_the_text_around_it_stays() -> None:
    page = "# A\n\n| a |\n|---|\n| 1 |\n| 2 |\n\nb\n\n| c |\n|---|\n"
    assert replace_tables(page, "| a |\n|---|\n| \\3 |\n") == page.replace("| 1 |\n| 2 |", "| \\3 |")
    with pytest.raises(ValueError, match="has 0 tables"):
        replace_tables(page, "| d |\n")
