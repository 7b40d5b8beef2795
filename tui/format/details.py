"""One tunnel as lines: the detail pane, and the summary of one or two lines where there is no room for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from rich.cells import cell_len

from tui.format.columns import state_cell
from tui.format.text import (
    NOTHING,
    Line,
    Span,
    clip,
    fit,
    format_bytes,
    format_count,
    format_milliseconds,
    format_seconds,
    format_time,
    length,
    paragraph,
    plural,
    sparkline,
    wrap,
)
from tui.model.states import STATE_MEANINGS
from tui.model.tunnels import HistorySample, Tunnel, parse_timestamp
from tunnel.model.quota import describe_size
from tunnel.model.rate import Rate
from tunnel.model.state import State

if TYPE_CHECKING:
    from orchestrator.status.json_types import LinkJson, ServerJson, TargetJson
    from tui.model.messages import TunnelDetails

_LABEL_WIDTH: Final = 9
_TREND_LABEL_WIDTH: Final = 14
_FIGURE_WIDTH: Final = 12


def detail_lines(tunnel: Tunnel, more: TunnelDetails | None, width: int, now: float, wall: float) -> list[Line]:
    """Return the detail pane of a tunnel.

    ``more`` is its entry in the file (URL, settings, place), None until it has arrived; ``now`` is the monotonic clock,
    ``wall`` the time of day in seconds since the epoch.
    """
    text, style = state_cell(tunnel, now)
    lines = paragraph(tunnel.name, width, "title")
    lines.append(clip(((text, style), (f"  {state_age(tunnel, wall)}", "dim")), width))
    if tunnel.reason and not tunnel.is_host_offline:
        lines += paragraph(tunnel.reason, width, "warn" if tunnel.state != State.UP else "")
    else:
        lines += paragraph(STATE_MEANINGS.get(tunnel.state, ""), width, "dim")
    left = tunnel.cooldown_left(now)
    if left > 0:
        lines.append(((f"attempt {tunnel.attempt + 1} in {format_seconds(left)}, at {format_time(wall + left)}", ""),))
    elif tunnel.attempt and tunnel.state != State.UP:
        lines.append(((f"attempt {tunnel.attempt}", ""),))
    lines += [(), *_sparklines(tunnel, width), (), *_fact_lines(tunnel, width, wall)]
    if more:
        lines += _file_lines(more, width)
    return [clip(line, width) for line in lines]


def state_age(tunnel: Tunnel, wall: float) -> str:
    """Return how long it has been in its state, empty if unknown; while its host is offline, its last state."""
    if tunnel.is_host_offline:
        return f"was {tunnel.last_state}"
    began = parse_timestamp(tunnel.data.get("since"))
    return "" if began is None else f"for {format_seconds(max(0.0, wall - began))}"


# --- sparklines -------------------------------------------------------------------------------------------------------


def _part(count: int, whole: int) -> str:
    return f"{format_count(count)}/{format_count(whole)}"


def _rtt(tunnel: Tunnel) -> str:
    return NOTHING if tunnel.rtt_ms is None else format_milliseconds(tunnel.rtt_ms)


def _pool_scale(tunnel: Tunnel) -> float:
    return float(max([tunnel.pool["capacity"], *(sample.idle for sample in tunnel.history)]))


@dataclass(frozen=True, slots=True)
class Trend:
    """A value with a history."""

    label: str
    figure: Callable[[Tunnel], str]
    """formats the present value"""
    value: Callable[[HistorySample], float | None]
    scale: Callable[[Tunnel], float] | None = None
    """the value of a full bar; None: the highest value that is shown"""


TRENDS: Final = (
    Trend("pool", lambda t: _part(t.pool["idle"], t.pool["capacity"]), lambda s: s.idle, _pool_scale),
    Trend("signals", lambda t: _part(t.signals["queued"], t.signals.get("limit", 0)), lambda s: s.queued),
    Trend("to visitors", lambda t: f"{format_bytes(t.rate_out)}/s", lambda s: s.rate_out),
    Trend("from visitors", lambda t: f"{format_bytes(t.rate_in)}/s", lambda s: s.rate_in),
    Trend("rtt", _rtt, lambda s: s.rtt_ms),
)
"""One row for each sparkline."""


def _sparklines(tunnel: Tunnel, width: int) -> list[Line]:
    room = max(8, width - _TREND_LABEL_WIDTH - _FIGURE_WIDTH)
    return [
        (
            (fit(trend.label, _TREND_LABEL_WIDTH), "dim"),
            (trend_sparkline(trend, tunnel, room), "spark"),
            (fit(f" {trend.figure(tunnel)}", _FIGURE_WIDTH), ""),
        )
        for trend in TRENDS
    ]


def trend_sparkline(trend: Trend, tunnel: Tunnel, width: int) -> str:
    """Return the history of one value as a sparkline of ``width`` columns."""
    scale = trend.scale(tunnel) if trend.scale else None
    return sparkline([trend.value(sample) for sample in tunnel.history], width, scale)


# --- facts ------------------------------------------------------------------------------------------------------------

_TLS_TEXTS: Final = {0: "in the clear if both ends agree", 1: "encrypted", 2: "encrypted, certificates verified"}
_PROTOCOLS: Final = {"udp": "UDP", "both": "TCP and UDP"}
_END_TEXTS: Final = {None: "", True: "ingress: accepts visitors", False: "egress: dials targets"}


def _carrier(tunnel: Tunnel) -> str:
    """Whether data connections are encrypted: what the link has agreed on, else what this end asks for."""
    return "in the clear" if tunnel.data.get("carrier") == "tcp" else _TLS_TEXTS.get(tunnel.data.get("data_tls", 0), "")


def _protocol(tunnel: Tunnel) -> str:
    """Return what a tunnel with UDP forwards, and how UDP travels over each of its links; empty for TCP alone."""
    protocol = _PROTOCOLS.get(tunnel.data.get("proto", ""))
    if protocol is None:
        return ""
    links = cast("list[LinkJson]", tunnel.data.get("links") or [])
    ways = {"datagram": "as datagrams", "stream": "over data connections"}
    texts = [
        " ".join(filter(None, (ways[link["udp_carrier"]], link["udp_reason"] and f"({link['udp_reason']})")))
        for link in links
        if link["udp_carrier"]
    ]
    return ", ".join((protocol, *dict.fromkeys(texts)))


def _fact_lines(tunnel: Tunnel, width: int, wall: float) -> list[Line]:
    return [line for label, fact in _FACTS for line in _fact(label, fact(tunnel, wall), width)]


def _key(tunnel: Tunnel, _: float) -> str:
    if tunnel.text("auth") == "open":
        return "none: open to anyone who finds the port"
    return tunnel.text("key_name") or "shared key"


def _pool(tunnel: Tunnel, _: float) -> str:
    pool = tunnel.pool
    dialing = pool.get("dialing")  # only the client, which dials, knows
    return f"{pool.get('min', NOTHING)} to {pool.get('max', NOTHING)}" + (
        "" if dialing is None else f", {dialing} being dialled"
    )


def _visitors(tunnel: Tunnel, _: float) -> str:
    connections = tunnel.connections
    lanes = [count for link in tunnel.links if (count := link["lanes"]) is not None]
    now = f"{connections['active']}/{connections.get('limit', NOTHING)} now"
    return f"{now}{_describe_lanes(sum(lanes) if lanes else None)}, {connections['total']} in total"


def _describe_lanes(count: int | None) -> str:
    return "" if count is None else f", {count} in lanes"


def _bytes(tunnel: Tunnel, _: float) -> str:
    to_visitors, from_visitors = tunnel.bytes["out"], tunnel.bytes["in"]
    return f"{format_bytes(to_visitors)} to, {format_bytes(from_visitors)} from visitors"


_REFUSED_VISITORS: Final = {
    "allow": "address not allowed",
    "per_address": "too many of one address",
    "rate": "too many new ones of one address",
    "proxy": "no valid PROXY header",
    "quota": "quota used up",
    "limit": "limit of the tunnel",
}
"""Why visitors are refused, by the key in ``refused``."""


def _quota(tunnel: Tunnel, _: float) -> str:
    quota = tunnel.data.get("quota")
    if not quota:
        return ""
    until = f", until {quota['until'][:16].replace('T', ' ')}" if quota["until"] else ""
    if quota["used"] is None:
        return f"{describe_size(quota['limit'])}; what is used is not known yet"
    part = 100 * quota["used"] // quota["limit"]
    return f"{describe_size(quota['used'])} of {describe_size(quota['limit'])} used, {part} %{until}"


def _rate(tunnel: Tunnel, _: float) -> str:
    limits = tunnel.data.get("rate_limits")
    if not limits:
        return ""
    rates = (("", limits["rate_bps"]), (" for each visitor", limits["visitor_rate_bps"]))
    texts = [f"{Rate(bits)}{whose}" for whose, bits in rates if bits is not None]
    held = [
        f"{format_seconds(seconds)} {way}"
        for way, seconds in (("to", limits["paused_out_s"]), ("from", limits["paused_in_s"]))
        if seconds >= 1
    ]
    return ", ".join(texts) + (f"; held back {', '.join(held)} visitors" if held else "")


def _refused(tunnel: Tunnel, _: float) -> str:
    refused = tunnel.refused
    count = refused.get("handshakes", 0) + refused.get("prefaces", 0) + refused.get("silent", 0)
    texts = [plural(count, "connection attempt")] if count else []
    texts += [
        f"{plural(number, 'visitor')}: {reason}"
        for key, reason in _REFUSED_VISITORS.items()
        if (number := cast("int", refused.get(key) or 0))
    ]
    return "; ".join(texts)


def _targets(tunnel: Tunnel, _: float) -> str:
    """Return the targets of a group; of a single target the state of the tunnel says everything."""
    found = [each for each in tunnel.data.get("targets", ()) if each["checks"] is not None]
    return "; ".join(map(_target, found))


def _target(target: TargetJson) -> str:
    facts = [
        target["state"],
        plural(target["visitors"], "visitor"),
        f"weight {target['weight']}" if target["weight"] != 1 else "",
        "backup" if target["backup"] else "",
        target["reason"] or "",
    ]
    return f"{target['address']} {', '.join(filter(None, facts))}"


def _links(tunnel: Tunnel, _: float) -> str:
    """Return each link in words, if a server has several clients or may have them."""
    links = cast("list[LinkJson]", tunnel.data.get("links") or [])
    has_several = max(len(links), tunnel.data.get("clients") or 1) > 1
    return "; ".join(map(_describe_link, links)) if has_several and not tunnel.data.get("servers") else ""


def _describe_link(link: LinkJson) -> str:
    name = " ".join(filter(None, (link["id"], link["client"], link["peer"])))
    share = "backup" if link["backup"] else f"weight {link['weight']}"
    return f"{name} {link['state']}, {share}, {_describe_load(link)}"


def _describe_load(link: LinkJson) -> str:
    rtt = "" if link["rtt_ms"] is None else f", {link['rtt_ms']:.1f} ms"
    return f"{plural(link['visitors'], 'visitor')}{_describe_lanes(link['lanes'])}, {link['pool']} idle{rtt}"


def _servers(tunnel: Tunnel, _: float) -> str:
    """Return each server of a client that has several, with its link."""
    links = {link["id"]: link for link in cast("list[LinkJson]", tunnel.data.get("links") or [])}
    servers = cast("list[ServerJson]", tunnel.data.get("servers") or [])
    return "; ".join(_describe_server(server, links.get(server["link"] or "")) for server in servers)


def _describe_server(server: ServerJson, link: LinkJson | None) -> str:
    share = f"weight {server['weight']}" if server["weight"] != 1 else ""
    facts = [
        server["state"],
        share,
        "backup" if server["backup"] else "",
        server["reason"],
        f"link {link['id']}, {_describe_load(link)}" if link else "",
    ]
    return f"{server['address']} {', '.join(filter(None, facts))}"


def _last_error(tunnel: Tunnel, wall: float) -> str:
    text, at = tunnel.text("last_error"), parse_timestamp(tunnel.data.get("last_error_at"))
    if not text or (tunnel.reason and text.startswith(tunnel.reason)):  # the error may also count its repetitions
        return ""
    return text if at is None else f"{text} ({format_seconds(max(0.0, wall - at))} ago)"


_FACTS: Final[tuple[tuple[str, Callable[[Tunnel, float], str]], ...]] = (
    ("host", lambda t, _: t.host),
    ("role", lambda t, _: f"{t.text('role')} {t.text('direction')}"),
    ("end", lambda t, _: _END_TEXTS[t.is_ingress]),
    ("tunnel", lambda t, _: t.text("tunnel_addr")),
    ("target", lambda t, _: t.text("target_addr")),
    ("targets", _targets),
    ("data", lambda t, _: t.text("data_addr")),
    ("peer", lambda t, _: t.text("peer")),
    ("link", lambda t, _: t.text("link")),
    ("links", _links),
    ("servers", _servers),
    ("service", lambda t, _: t.text("service")),
    ("protocol", lambda t, _: _protocol(t)),
    ("key", _key),
    ("published", lambda t, _: f"by the key {t.text('published_by')}" if t.data.get("published_by") else ""),
    ("carrier", lambda t, _: _carrier(t)),
    ("pool", _pool),
    ("visitors", _visitors),
    ("failed", lambda t, _: str(t.connections.get("failed") or "")),
    ("bytes", _bytes),
    ("rate", _rate),
    ("quota", _quota),
    ("refused", _refused),
    ("restarts", lambda t, _: str(t.data.get("restarts") or "")),
    ("worker", lambda t, _: str(t.data.get("worker") or "")),
    ("tags", lambda t, _: ", ".join(t.tags)),
    ("error", _last_error),
)
"""One row for each fact: its label, and its text from a tunnel and the time of day; an empty text is not shown."""


def _fact(label: str, value: str, width: int) -> list[Line]:
    if not value:
        return []
    first, *rest = wrap(value, width - _LABEL_WIDTH)
    return [
        ((fit(label, _LABEL_WIDTH), "dim"), (first, "")),
        *(((" " * _LABEL_WIDTH, ""), (part, "")) for part in rest),
    ]


def _file_lines(more: TunnelDetails, width: int) -> list[Line]:
    """Return the place in the file, the URL and the settings with their sources."""
    lines: list[Line] = [()]
    for label, value in (("file", more.get("where")), ("URL", more.get("url")), ("", more.get("note"))):
        lines += _fact(label, value or "", width)
    settings = more.get("settings")
    if not settings:
        return lines
    lines += [(), (("settings", "dim"),)]
    name_width = max(map(len, settings)) + 1
    for name, setting in settings.items():
        is_default = setting["source"] == "built in"
        place = setting["where"] or setting["source"]
        value = "" if setting["value"] is None else str(setting["value"])
        first, *rest = wrap(value, width - name_width)
        lines.append(((fit(name, name_width), "dim"), (first, "dim" if is_default else "")))
        lines += [((" " * name_width + part, ""),) for part in rest]
        style = "dim" if is_default else "spark"
        gap = width - length(lines[-1]) - cell_len(place)
        if gap > 0:
            lines[-1] = (*lines[-1], (" " * gap + place, style))
        else:  # in full on lines of its own
            lines += [((fit(part, width, right=True), style),) for part in wrap(place, width)]
    return lines


# --- summary ----------------------------------------------------------------------------------------------------------


def summary_lines(tunnel: Tunnel, width: int, height: int, now: float, wall: float) -> list[Line]:
    """Return at most ``height`` lines; the reason, if there is one, before everything else. Clocks as above."""
    reason = wrap(tunnel.reason, width - 2) if tunnel.reason else []
    if len(reason) > height:
        reason[height - 1 :] = [fit(" ".join(reason[height - 1 :]), width - 2)]
    lines: list[Line] = [((f" {part}", "warn"),) for part in reason]
    if lines:
        lines[-1] = _with_attempt(lines[-1], tunnel, width, now)
    if len(lines) < height:
        lines.insert(0, _endpoints(tunnel, wall))
    if len(lines) < height:
        lines.append(((f" {STATE_MEANINGS.get(tunnel.state, '')}", "dim"),))
    return [clip(line, width) for line in lines]


def _endpoints(tunnel: Tunnel, wall: float) -> Line:
    spans: list[Span] = [(f" {tunnel.name}", "title"), (f"  {state_age(tunnel, wall)}", "dim")]
    if tunnel.text("auth") == "open":
        spans.append(("  open", "warn"))
    addresses = f"{tunnel.text('role')}://{tunnel.text('tunnel_addr')}/{tunnel.text('target_addr')}"
    return (*spans, (f"  {tunnel.text('direction')}", ""), (f"  {addresses}", ""))


def _with_attempt(line: Line, tunnel: Tunnel, width: int, now: float) -> Line:
    left = tunnel.cooldown_left(now)
    span = (f"; attempt {tunnel.attempt + 1} in {format_seconds(left)}", "")
    return (*line, span) if left > 0 and length(line) + len(span[0]) <= width else line
