"""The list of a tunnel's links, servers and targets: each as a row.

A new column is one row of _COLUMNS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from tui.format.text import NOTHING, Line, Span, fit, format_count, format_milliseconds
from tunnel.model.links import LinkState
from tunnel.model.targets import TargetState

if TYPE_CHECKING:
    from orchestrator.status.json_types import LinkJson, ServerJson, TargetJson
    from tui.model.tunnels import Tunnel

_GAP: Final = " "
_STYLES: Final = {
    LinkState.UP.value: "good",
    LinkState.CONNECTING.value: "warn",
    LinkState.COOLDOWN.value: "warn",
    LinkState.DRAINING.value: "dim",
    LinkState.DRAINED.value: "dim",
    TargetState.DOWN.value: "error",
}
_DRAINED: Final = frozenset({LinkState.DRAINING.value, LinkState.DRAINED.value})

MemberKind = Literal["link", "server", "target"]


@dataclass(frozen=True, slots=True)
class TunnelMember:
    """A link, a server that has no link, or a target of a tunnel."""

    kind: MemberKind
    name: str
    """what a command calls it: the ID of the link, the address of the server or target"""
    state: str
    about: str = ""
    """of a link: the client, or the address of the server"""
    reason: str = ""
    weight: int | None = None
    is_backup: bool = False
    visitors: int | None = None
    idle: int | None = None
    """idle data connections of a link"""
    rtt_ms: float | None = None

    @property
    def is_up(self) -> bool:
        """Whether it gets new visitors."""
        return self.state == LinkState.UP

    @property
    def is_drained(self) -> bool:
        """Whether it gets no new visitors by command."""
        return self.state in _DRAINED


def tunnel_members(tunnel: Tunnel) -> list[TunnelMember]:
    """Return the links of a tunnel, then those of its servers that have no link, then its targets."""
    data = tunnel.data
    servers = cast("list[ServerJson]", data.get("servers") or [])
    addresses = {server["link"]: server["address"] for server in servers}
    links = cast("list[LinkJson]", data.get("links") or [])
    members = [_link(link, addresses.get(link["id"])) for link in links]
    known = {link["id"] for link in links}
    members += [
        TunnelMember(
            "server", server["address"], server["state"], "", server["reason"] or "", server["weight"], server["backup"]
        )
        for server in servers
        if server["link"] not in known
    ]
    return members + [_target(target) for target in cast("list[TargetJson]", data.get("targets") or [])]


def _link(link: LinkJson, server: str | None) -> TunnelMember:
    about = server or " ".join(filter(None, (link["client"], link["peer"])))
    return TunnelMember(
        "link", link["id"], link["state"], about, link["reason"] or "", link["weight"], link["backup"],
        link["visitors"], link["pool"], link["rtt_ms"],
    )  # fmt: skip


def _target(target: TargetJson) -> TunnelMember:
    return TunnelMember(
        "target", target["address"], target["state"], "", target["reason"] or "", target["weight"], target["backup"],
        target["visitors"],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _MemberColumn:
    """A column of the list."""

    title: str
    width: int
    min_screen: int
    """width of the screen from which on it is shown"""
    cell: Callable[[TunnelMember], Span]
    is_right: bool = False


def _share(member: TunnelMember) -> Span:
    if member.weight is None:
        return NOTHING, "dim"
    return f"{member.weight} backup" if member.is_backup else str(member.weight), ""


def _count(number: int | None) -> Span:
    return (NOTHING, "dim") if number is None else (format_count(number), "" if number else "dim")


def _rtt(member: TunnelMember) -> Span:
    return (NOTHING, "dim") if member.rtt_ms is None else (format_milliseconds(member.rtt_ms), "")


_COLUMNS: Final = (
    _MemberColumn("KIND", 6, 44, lambda m: (m.kind, "dim")),
    _MemberColumn("NAME", 22, 0, lambda m: (m.name, "title")),
    _MemberColumn("STATE", 10, 0, lambda m: (m.state, _STYLES.get(m.state, ""))),
    _MemberColumn("WITH", 24, 108, lambda m: (m.about or NOTHING, "" if m.about else "dim")),
    _MemberColumn("WEIGHT", 10, 70, _share),
    _MemberColumn("VISITORS", 8, 54, lambda m: _count(m.visitors), is_right=True),
    _MemberColumn("IDLE", 6, 84, lambda m: _count(m.idle), is_right=True),
    _MemberColumn("RTT", 8, 84, _rtt, is_right=True),
    _MemberColumn("REASON", 0, 0, lambda m: (m.reason, "warn")),
)
"""The last one has the rest of the width."""


def member_heading(width: int) -> Line:
    """Return the row of titles of the list."""
    titles: list[Span] = [(fit(one.title, cells, right=one.is_right) + _GAP, "dim") for one, cells in _laid_out(width)]
    return ((" ", ""), *titles)


def member_row(member: TunnelMember, width: int) -> Line:
    """Return a link, server or target as a row."""
    spans: list[Span] = [(" ", "")]
    for column, cells in _laid_out(width):
        text, style = column.cell(member)
        spans.append((fit(text, cells, right=column.is_right) + _GAP, style))
    return tuple(spans)


def _laid_out(width: int) -> list[tuple[_MemberColumn, int]]:
    """Return the columns that fit with their widths."""
    columns = [column for column in _COLUMNS if width >= column.min_screen]
    left = width - 1 - sum(column.width + len(_GAP) for column in columns)
    return [(column, column.width or max(0, left)) for column in columns]
