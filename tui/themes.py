"""Two themes with the same meaning: red means failed and nothing else.

The greys are neutral enough for terminals of 256 colours to show them as greys, and not as the nearest navy.
"""

from __future__ import annotations

from typing import Final

from textual.theme import Theme

DARK: Final = Theme(
    name="dark",
    primary="#5fafff",
    secondary="#87afd7",
    accent="#5fd7d7",
    success="#5fd787",
    warning="#ffbf5f",
    error="#ff5f5f",
    foreground="#d8dee6",
    background="#14171a",
    surface="#1a1d22",
    panel="#252930",
    dark=True,
    variables={"dim": "#8a97a6", "cursor": "#26405c", "cursor-away": "#2a2f36"},
)
LIGHT: Final = Theme(
    name="light",
    primary="#005f9f",
    secondary="#3a6080",
    accent="#00707a",
    success="#1a7331",
    warning="#8a5a00",
    error="#b3201f",
    foreground="#1b2229",
    background="#fbfbf8",
    surface="#f0f0ee",
    panel="#e4e5df",
    dark=False,
    variables={"dim": "#5d6873", "cursor": "#c5dcf2", "cursor-away": "#e3e4de"},
)


def opposite_theme(name: str) -> str:
    """Return the name of the light theme for the dark one, and the other way round."""
    return LIGHT.name if name == DARK.name else DARK.name
