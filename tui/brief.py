"""The tunnel under the cursor in a line or two, where its details have no room: above all, what is wrong. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tui.details import MEANINGS, since
from tui.lines import Line, Span, clip, fit, length, seconds, wrap

if TYPE_CHECKING:
    from tui.model import Tunnel


def brief_lines(tunnel: Tunnel, width: int, height: int, now: float, wall: float) -> list[Line]:
    """At most ``height`` lines; the reason, where there is one, before everything else.

    ``now`` is the monotonic clock, ``wall`` the time of day in seconds since the epoch.
    """
    reason = wrap(tunnel.reason, width - 2) if tunnel.reason else []
    if len(reason) > height:
        reason[height - 1 :] = [fit(" ".join(reason[height - 1 :]), width - 2)]
    told: list[Line] = [((f" {part}", "warn"),) for part in reason]
    if told:
        told[-1] = _with_attempt(told[-1], tunnel, width, now)
    if len(told) < height:
        told.insert(0, _path(tunnel, wall))
    if len(told) < height:
        told.append(((f" {MEANINGS.get(tunnel.state, '')}", "dim"),))
    return [clip(line, width) for line in told]


def _path(tunnel: Tunnel, wall: float) -> Line:
    spans: list[Span] = [(f" {tunnel.name}", "title"), (f"  {since(tunnel, wall)}", "dim")]
    if tunnel.text("auth") == "open":
        spans.append(("  open", "warn"))
    addresses = f"{tunnel.text('role')}://{tunnel.text('tunnel_addr')}/{tunnel.text('target_addr')}"
    return (*spans, (f"  {tunnel.text('direction')}", ""), (f"  {addresses}", ""))


def _with_attempt(line: Line, tunnel: Tunnel, width: int, now: float) -> Line:
    left = tunnel.remaining(now)
    span = (f"; attempt {tunnel.attempt + 1} in {seconds(left)}", "")
    return (*line, span) if left > 0 and length(line) + len(span[0]) <= width else line
