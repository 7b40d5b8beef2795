"""Words of messages that depend on a number."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``0 visitors``, ``1 visitor``, ``2 visitors``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
