"""The reference of all options, for docs/."""

from __future__ import annotations

from tunnel.model.options import OPTIONS


def render_option_table() -> str:
    """Return the reference of all options as a Markdown table, for docs/."""
    heading = [("option", "values", "default", "live", "environment", "meaning"), ("---",) * 6]
    rows = [
        (
            f"`{option.name}`",
            option.type.values,
            "" if option.is_secret or option.is_file or not option.default else f"`{option.default}`",
            "yes" if option.is_live else "no",
            f"`{option.variable}`" if option.variable else "",
            option.doc,
        )
        for option in OPTIONS.values()
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (*heading, *rows))
