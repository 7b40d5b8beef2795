"""Types of the data that sources deliver: the JSON objects of the status contract, with what a fleet adds to them.

The objects are kept as they arrive; nothing is converted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from orchestrator.status.json_types import DaemonJson, EntryResultJson, EventJson, TunnelDetailsJson, TunnelJson


class TunnelData(TunnelJson, total=False):
    """A tunnel; in a change, only the fields that changed, each whole."""

    host: str
    """the host that it runs on, in a fleet"""
    presence: str
    """that of its host: ``online``, ``silent`` or ``gone``"""
    last_message_at: float | None
    """when its host last sent a message, on our monotonic clock; None while the host is online"""
    last_link: str | None
    """the id of its link, or of the last one it had"""
    lost_links: Sequence[str]
    """the ids of links that it lost while it had others"""


class HostConfigData(TypedDict):
    """The file of a host."""

    ok: bool | None
    error: str | None


class HostData(TypedDict):
    """A host of a fleet."""

    presence: str
    last_message_at: float | None
    label: str
    version: str | None
    generation: int | None
    config: HostConfigData
    commands: bool | None
    """whether it accepts commands"""
    bytes_month: int | None
    """of all its tunnels in both directions, this month; None: unknown"""
    started_at: str | None


class StatusData(DaemonJson, total=False):
    """A complete status, or the part of it that changed."""

    ts: str
    tunnels: Sequence[TunnelData]
    hosts: Mapping[str, HostData]
    """the hosts of a fleet"""
    live: frozenset[str] | None
    """the tunnels whose counters are received as they change; None: all"""


class ChangeData(TypedDict, total=False):
    """What changed since the message before."""

    ts: str
    changed: Mapping[str, TunnelData]
    removed: Sequence[str]
    status: StatusData
    live: frozenset[str] | None


class EventData(EventJson, total=False):
    """An event; that of a reload has results."""

    host: str
    generation: int
    results: dict[str, EntryResultJson]


class TunnelDetails(TunnelDetailsJson, total=False):
    """A tunnel with its entry in the file."""

    note: str
    """why something is missing"""
