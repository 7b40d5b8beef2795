"""Words of messages that depend on a number."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``0 visitors``, ``1 visitor``, ``2 visitors``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_delay(delay_s: float) -> str:
    """Return when something happens that is due after a delay."""
    return "at once" if delay_s < 0.05 else f"in {delay_s:.1f} s"
