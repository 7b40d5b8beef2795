"""Everything about one tunnel, as lines. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.mqtt.fleet import GONE, SILENT
from tui.lines import NOTHING, Line, amount, clip, clock, fit, length, seconds, spark, wrap
from tui.model import Json, Tunnel, moment
from tui.rows import milliseconds, state_cell
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Sequence

_LABEL: Final = 9
_FIGURES: Final = 13


MEANINGS: Final[dict[str, str]] = {
    State.UP: "linked, and visitors can be served",
    State.CONNECTING: "making a link",
    State.STARTING: "just begun",
    State.WAITING: "no client has come yet",
    State.COOLDOWN: "waits before the next attempt",
    State.DRAINING: "accepts nobody new, lets the present visitors finish",
    State.FAILED: "cannot work as it is written: mend the file",
    State.STOPPED: "rests, because somebody said so",
    GONE: "its host said farewell, or was cut off: this is its last word",
    SILENT: "its host has not spoken for too long: this is its last word",
}
"""What each state means."""


def detail_lines(tunnel: Tunnel, more: Json | None, width: int, now: float, wall: float) -> list[Line]:
    """The detail pane of a tunnel.

    ``more`` is the API's object of this tunnel alone (URL, settings, place in the file), None until it has come;
    ``now`` is the monotonic clock, ``wall`` the time of day in seconds since the epoch.
    """
    text, style = state_cell(tunnel, now)
    lines: list[Line] = [((part, "title"),) for part in wrap(tunnel.name, width)]
    lines.append(clip(((text, style), (f"  {since(tunnel, wall)}", "dim")), width))
    if tunnel.reason and not tunnel.is_gone:
        lines += [((part, "warn" if style != State.UP else ""),) for part in wrap(tunnel.reason, width)]
    else:
        lines += [((part, "dim"),) for part in wrap(MEANINGS.get(tunnel.state, ""), width)]
    left = tunnel.remaining(now)
    if left > 0:
        lines.append(((f"attempt {tunnel.attempt + 1} in {seconds(left)}, at {clock(wall + left)}", ""),))
    elif tunnel.attempt and tunnel.state != State.UP:
        lines.append(((f"attempt {tunnel.attempt}", ""),))
    lines += [(), *_pictures(tunnel, width), (), *_facts(tunnel, width, wall)]
    if more:
        lines += _written(more, width)
    return [clip(line, width) for line in lines]


def since(tunnel: Tunnel, wall: float) -> str:
    """For how long it has been in this state, empty where unknown; or its last state, where nobody knows it now."""
    if tunnel.is_gone:
        return f"was {tunnel.told_state}"
    began = moment(tunnel.data.get("since"))
    return "" if began is None else f"for {seconds(max(0.0, wall - began))}"


def _pictures(tunnel: Tunnel, width: int) -> list[Line]:
    past = tunnel.history
    pool, signals = tunnel.part("pool"), tunnel.part("signals")
    capacity = float(max([tunnel.count("pool", "capacity"), *(sample.idle for sample in past)], default=0))
    rtt = tunnel.rtt_ms
    wanted: list[tuple[str, Sequence[float | None], str, float | None]] = [
        ("pool", [s.idle for s in past], f"{pool.get('idle', 0)}/{pool.get('capacity', 0)}", capacity),
        ("signals", [s.queued for s in past], f"{signals.get('queued', 0)}/{signals.get('limit', 0)}", None),
        ("↓ out", [s.rate_out for s in past], f"{amount(tunnel.rate_out)}/s", None),
        ("↑ in", [s.rate_in for s in past], f"{amount(tunnel.rate_in)}/s", None),
        ("rtt", [s.rtt_ms for s in past], NOTHING if rtt is None else milliseconds(rtt), None),
    ]
    room = max(8, width - _LABEL - _FIGURES)
    return [
        ((fit(label, _LABEL), "dim"), (spark(values, room, top), "spark"), (fit(f" {figure}", _FIGURES), ""))
        for label, values, figure, top in wanted
    ]


def _facts(tunnel: Tunnel, width: int, wall: float) -> list[Line]:
    pool, moved = tunnel.part("pool"), tunnel.part("bytes")
    encrypted = {0: "control channel only", 1: "data too (pinned)", 2: "data too (verified)"}
    refused = sum(int(value or 0) for value in tunnel.part("refused").values())
    facts = [
        ("host", tunnel.host),
        ("role", f"{tunnel.text('role')} {tunnel.text('direction')}"),
        ("end", {None: "", True: "entrance: accepts visitors", False: "exit: dials targets"}[tunnel.entrance]),
        ("tunnel", tunnel.text("tunnel_addr")),
        ("target", tunnel.text("target_addr")),
        ("data", tunnel.text("data_addr")),
        ("peer", tunnel.text("peer")),
        ("link", tunnel.text("link")),
        ("key", {"open": "none: open to anyone who finds the port"}.get(tunnel.text("auth"), "shared key")),
        ("TLS", encrypted.get(tunnel.count_of("data_tls"), "")),
        ("pool", f"{pool.get('min', NOTHING)} to {pool.get('max', NOTHING)}, {pool.get('dialing', 0)} being dialled"),
        ("visitors", _visitors(tunnel)),
        ("in vain", str(tunnel.count("connections", "failed") or "")),
        ("bytes", f"{amount(int(moved.get('out') or 0))} out, {amount(int(moved.get('in') or 0))} in"),
        ("refused", f"{refused} strangers" if refused else ""),
        ("restarts", str(tunnel.count_of("restarts") or "")),
        ("worker", str(tunnel.count_of("worker") or "")),
        ("tags", ", ".join(map(str, tunnel.data.get("tags") or ()))),
        ("error", _last_error(tunnel, wall)),
    ]  # fmt: skip
    lines: list[Line] = []
    for label, value in facts:
        lines += _fact(label, value, width)
    return lines


def _visitors(tunnel: Tunnel) -> str:
    connections = tunnel.part("connections")
    return f"{tunnel.active}/{connections.get('limit', NOTHING)} now, {connections.get('total', 0)} in all"


def _last_error(tunnel: Tunnel, wall: float) -> str:
    text, at = tunnel.text("last_error"), moment(tunnel.data.get("last_error_at"))
    if not text or (tunnel.reason and text.startswith(tunnel.reason)):  # it may tell how often, too
        return ""
    return text if at is None else f"{text} ({seconds(max(0.0, wall - at))} ago)"


def _fact(label: str, value: str, width: int) -> list[Line]:
    if not value:
        return []
    first, *rest = wrap(value, width - _LABEL)
    return [((fit(label, _LABEL), "dim"), (first, "")), *(((" " * _LABEL, ""), (part, "")) for part in rest)]


def _written(more: Json, width: int) -> list[Line]:
    lines: list[Line] = [()]
    for label, key in (("file", "where"), ("URL", "url"), ("", "note")):
        lines += _fact(label, str(more.get(key) or ""), width)
    settings = more.get("settings") or {}
    if not settings:
        return lines
    lines += [(), (("settings", "dim"),)]
    name_width = max(len(str(name)) for name in settings) + 1
    for name, found in settings.items():
        value, source = str(found.get("value", "")), str(found.get("source") or "")
        is_plain = source == "built in"
        place = str(found.get("where") or "") or source
        line: Line = ((fit(str(name), name_width), "dim"), (value, "dim" if is_plain else ""))
        gap = width - length(line) - len(place)
        line = (*line, (" " * max(1, gap) + place, "dim" if is_plain else "spark"))
        lines.append(clip(line, width))
    return lines
