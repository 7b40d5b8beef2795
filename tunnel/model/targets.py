"""The targets of a tunnel as they are configured: addresses with weights, and how their health is checked."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from tunnel.model.weighted_address import WeightedAddress

MAX_TARGETS: Final = 64
"""Targets of one tunnel: each is checked on its own, and each is a candidate for every visitor."""


@dataclass(frozen=True, slots=True)
class TargetSpec(WeightedAddress):
    """One of several targets."""


class CheckKind(enum.StrEnum):
    """How the health of a target is found out."""

    OFF = "off"
    """only by visitors' dials; a target that is down is dialled to see whether it has returned"""
    TCP = "tcp"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class TargetCheck:
    """A check of a target's health."""

    kind: CheckKind
    path: str = ""
    """of HTTP: the path, with its query"""

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" if self.path else self.kind.value


CHECK_OFF: Final = TargetCheck(CheckKind.OFF)
CHECK_TCP: Final = TargetCheck(CheckKind.TCP)


class TargetState(enum.StrEnum):
    """What a target is doing."""

    UP = "up"
    DOWN = "down"
    """it failed its checks, or visitors could not reach it"""
    DRAINING = "draining"
    """by command it gets no new visitors, and the present ones may finish"""
    DRAINED = "drained"
    """by command it gets no new visitors, and has none"""
