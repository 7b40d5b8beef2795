"""One tunnel with its entry in the file: the URL with its key masked, and each option with its origin."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from orchestrator.status.contract import encode_snapshot
from tunnel.model.options import format_options

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.config.faults import Place
    from orchestrator.config.manifest import Entry
    from orchestrator.status.json_types import SettingJson, TunnelDetailsJson
    from tunnel.model.snapshot import Snapshot


def describe_tunnel(seen: Snapshot, entry: Entry | None, base: Path) -> TunnelDetailsJson:
    """The answer of ``GET /v1/tunnels/NAME``; without an entry the tunnel is gone from the file and drains.

    Places are relative to ``base``, the directory of the file.
    """
    details = cast("TunnelDetailsJson", encode_snapshot(seen))
    if entry is not None:
        details["url"] = entry.url
        details["where"] = _format_place(entry.origin, base)
        details["settings"] = _describe_settings(entry, base)
    return details


def _describe_settings(entry: Entry, base: Path) -> dict[str, SettingJson]:
    settings: dict[str, SettingJson] = {
        name: {
            "value": value,
            "source": origin.source if (origin := entry.origins.get(name)) else "built in",
            "where": _format_place(origin.place, base) if origin and origin.place else None,
        }
        for name, value in format_options(entry.spec).items()
    }
    if entry.spec.named_keys:
        names = ", ".join(named.name for named in entry.spec.named_keys)
        where = next((_format_place(place, base) for place in entry.key_places.values()), None)
        settings["keys"] = {"value": names, "source": "entry", "where": where}
    return settings


def _format_place(place: Place, base: Path) -> str:
    path = place.path.relative_to(base) if place.path.is_relative_to(base) else place.path
    return f"{path}:{place.line}:{place.column}"
