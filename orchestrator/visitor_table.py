"""The table of visitors that ``visitors`` and ``kick`` print, and the orders in which it can be sorted."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from orchestrator.process.terminal_text import printable
from orchestrator.table import align_columns, format_bytes, format_rate
from tunnel.model.spec import Proto

if TYPE_CHECKING:
    from orchestrator.status.json_types import VisitorJson

SortValue = tuple[object, ...]


def total_bytes(visitor: VisitorJson) -> int:
    """Return the bytes of both directions."""
    return visitor["bytes"]["in"] + visitor["bytes"]["out"]


def total_rate(visitor: VisitorJson) -> int:
    """Return the bits per second of both directions; 0 if they are not known."""
    rates = visitor["rates"]
    return rates["in_bps"] + rates["out_bps"] if rates else 0


def address_order(text: str | None) -> SortValue:
    """Return what sorts addresses by their numbers, IPv4 first, unknown ones last."""
    host, _, port = (text or "").rpartition(":")
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return (9, 0, 0)
    return (ip.version, int(ip), int(port) if port.isdigit() else 0)


SORT_KEYS: Final[dict[str, Callable[[VisitorJson], SortValue]]] = {
    "rate": lambda v: (-total_rate(v),),
    "bytes": lambda v: (-total_bytes(v),),
    "age": lambda v: (-(v["age_s"] or 0.0),),
    "address": lambda v: address_order(v["address"]),
    "tunnel": lambda v: (v["tunnel"],),
    "target": lambda v: (v["target"] is None, v["target"] or ""),
}
"""By name: what sorts the largest rates, bytes and ages first, and texts upwards."""


def sort_visitors(visitors: Iterable[VisitorJson], key: str, limit: int | None = None) -> list[VisitorJson]:
    """Return visitors in an order of SORT_KEYS, those of one tunnel and address together, at most ``limit``."""
    order = SORT_KEYS[key]
    ordered = sorted(visitors, key=lambda v: (*order(v), v["tunnel"], *address_order(v["address"]), v["id"] or ""))
    return ordered[:limit]


def format_age(seconds: float | None) -> str:
    """Return a duration in at most six characters: ``7s``, ``4m10s``, ``3h05m``, ``12d03h``."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole // 60 % 60:02}m"
    return f"{whole // 86400}d{whole // 3600 % 24:02}h"


def format_visitors(visitors: Sequence[VisitorJson]) -> str:
    """Return a line of headings and one for each visitor; what is the same or unknown for all has no column."""
    has_rates = any(visitor["rates"] for visitor in visitors)
    has_udp = any(visitor["proto"] == Proto.UDP for visitor in visitors)
    has_limits = any(visitor["paused_s"] is not None for visitor in visitors)
    titles = ["TUNNEL", "ADDRESS", *(["PROTO"] if has_udp else []), "STATE", "AGE", "FROM VISITOR", "TO VISITOR"]
    rows = [
        [
            *titles,
            *(["RATE FROM", "RATE TO"] if has_rates else []),
            *(["HELD BACK"] if has_limits else []),
            "TARGET",
            "ID",
        ]
    ]
    for one in visitors:
        rates = one["rates"]
        cells = [one["tunnel"], one["address"] or "-", *([one["proto"]] if has_udp else [])]
        cells += [one["state"], format_age(one["age_s"])]
        cells += [format_bytes(one["bytes"]["in"]), format_bytes(one["bytes"]["out"])]
        if has_rates:
            cells += [format_rate(rates and rates["in_bps"]), format_rate(rates and rates["out_bps"])]
        if has_limits:
            cells.append(format_age(one["paused_s"]))
        rows.append([printable(cell) for cell in (*cells, one["target"] or "-", one["id"] or "-")])
    return align_columns(rows)
