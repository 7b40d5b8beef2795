"""Two themes of the same meaning: red says failed and nothing else."""

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
    background="#11151a",
    surface="#171c23",
    panel="#202731",
    dark=True,
    variables={"dim": "#8a97a6", "cursor": "#26405c", "cursor-away": "#232a33"},
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
    surface="#f1f1ec",
    panel="#e4e5df",
    dark=False,
    variables={"dim": "#5d6873", "cursor": "#c5dcf2", "cursor-away": "#e3e4de"},
)
