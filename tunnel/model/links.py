"""What a link of several is doing."""

from __future__ import annotations

import enum


class LinkState(enum.StrEnum):
    """Whether visitors can be served over a link, and why not."""

    UP = "up"
    CONNECTING = "connecting"
    """there was no data connection yet"""
    COOLDOWN = "cooldown"
    """its target cannot be reached"""
    DRAINING = "draining"
    """by command it gets no new visitors, and the present ones may finish"""
    DRAINED = "drained"
    """by command it gets no new visitors, and has none"""
