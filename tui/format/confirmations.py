"""What a command does before it is sent: which tunnels it applies to, what it costs, what to confirm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tui.format.event_format import interrupted_tunnels, plan_lines
from tui.format.text import Line, fit, paragraph, plural
from tui.model.tunnels import Tunnel
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.status.json_types import PlanJson
    from tui.format.member_rows import TunnelMember

_MAX_LISTED_TUNNELS: Final = 8
_MAX_LISTED_HOSTS: Final = 6
_MAX_WIDTH: Final = 62
_FRAME_WIDTH: Final = 6


@dataclass(frozen=True, slots=True)
class Verb:
    """A command for a tunnel."""

    name: str
    applies_to: Callable[[Tunnel], bool]
    refusal: str = ""
    """why a tunnel is left out"""
    drain_limit: str = ""
    """what limits the time that visitors have to finish; empty if no visitor is disconnected"""


def _waits_for_next_attempt(tunnel: Tunnel) -> bool:
    """Whether the daemon accepts ``retry``: in a cooldown, or while data connections fail (a reason to connect)."""
    has_failed_dials = tunnel.state == State.CONNECTING and tunnel.reason is not None
    return has_failed_dials or tunnel.state == State.COOLDOWN


VERBS: Final[Mapping[str, Verb]] = {
    verb.name: verb
    for verb in (
        Verb("start", lambda tunnel: not tunnel.is_running, "already running"),
        Verb("stop", lambda tunnel: tunnel.is_running, "not running", "SHUTDOWN_TIMEOUT"),
        Verb("restart", lambda _: True, "", "SHUTDOWN_TIMEOUT"),
        Verb("drain", lambda tunnel: tunnel.is_running, "not running", "the file's drain_timeout"),
        Verb("retry", _waits_for_next_attempt, "there is no cooldown to end"),
    )
}
"""One row for each command that a tunnel accepts."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What a dialog asks: its title, the lines below, the label of the button that is not Cancel."""

    title: str
    lines: tuple[Line, ...]
    answer: str


def confirm_kick(question: str, names: Sequence[str], width: int) -> Confirmation:
    """Return the question before visitors of these tunnels are disconnected."""
    where = names[0] if len(names) == 1 else plural(len(names), "tunnel")
    text = f"Of {where}. The connection is reset at once, at both ends; the visitor may connect again."
    lines = paragraph(text, max(20, min(_MAX_WIDTH, width - _FRAME_WIDTH)))
    return Confirmation(question, tuple(lines), "Disconnect")


def confirm_member(member: TunnelMember, others: Sequence[TunnelMember], where: str, width: int) -> Confirmation:
    """Return the question before a link or target of the tunnel ``where`` is drained; ``others`` are all of it."""
    same = [one for one in others if one.kind == member.kind and one.name != member.name]
    up = sum(one.is_up for one in same)
    stay = f" Its {plural(member.visitors, 'present visitor')} may stay." if member.visitors else ""
    rest = f"They go to {plural(up, f'other {member.kind}')} instead."
    if not up:
        rest = f"No other {member.kind} is up: visitors may not be served."
    lines = _wrap(f"It gets no new visitors.{stay}", width)
    lines += paragraph(rest, _room(width), "" if up else "warn")
    return Confirmation(f"Drain {member.kind} {member.name} of {where}?", tuple(lines), "Drain")


def name_tunnels(tunnels: Sequence[Tunnel]) -> str:
    """Return the tunnel's name, or how many there are."""
    return tunnels[0].name if len(tunnels) == 1 else plural(len(tunnels), "tunnel")


def name_hosts(tunnels: Iterable[Tunnel]) -> str:
    """Return the hosts of the tunnels, each with its visitors if there are several; empty for a single daemon."""
    visitors: dict[str, int] = {}
    for tunnel in tunnels:
        visitors[tunnel.host] = visitors.get(tunnel.host, 0) + tunnel.visitors
    if len(visitors) == 1:
        return next(iter(visitors))
    parts = [f"{host} ({count})" for host, count in visitors.items()]
    if len(parts) > _MAX_LISTED_HOSTS:
        return plural(len(parts), "host")
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def choose_toggle(tunnels: Sequence[Tunnel]) -> tuple[str, list[Tunnel]]:
    """Return what start/stop does: stop the running tunnels or, if none runs, start all."""
    running = [tunnel for tunnel in tunnels if tunnel.is_running]
    return ("stop", running) if running else ("start", list(tunnels))


def applicable_tunnels(verb: str, tunnels: Sequence[Tunnel]) -> tuple[list[Tunnel], str]:
    """Return the tunnels to which a command applies; and why, if there is none."""
    online = [tunnel for tunnel in tunnels if not tunnel.is_host_offline]
    if not online:
        return [], f"{name_tunnels(tunnels)}: {name_hosts(tunnels)} is offline"
    chosen = [tunnel for tunnel in online if VERBS[verb].applies_to(tunnel)]
    return chosen, "" if chosen else f"{name_tunnels(online)}: {VERBS[verb].refusal}"


def confirm_command(verb: str, tunnels: Sequence[Tunnel], width: int) -> Confirmation | None:
    """Return what to confirm before a command, on a screen of ``width``; None if it disconnects no visitor."""
    limit = VERBS[verb].drain_limit
    if not limit:
        return None
    active = sum(tunnel.visitors for tunnel in tunnels)
    hosts = name_hosts(tunnels)
    where = f" on {hosts}" if hosts else ""
    if active:
        be, they = ("is", "It") if active == 1 else ("are", "They")
        text = (
            f"{plural(active, 'visitor')} {be} being served{where}. {they} may finish within {limit}; "
            f"then the remaining ones are disconnected, at most {active}."
        )
    else:
        text = f"No visitor is being served{where} now: none will be disconnected."
    lines = [*_wrap(text, width), *_list_visitors([(tunnel.name, tunnel.visitors) for tunnel in tunnels])]
    title = f"{verb.capitalize()} {name_tunnels(tunnels)}?"
    return Confirmation(title, tuple(lines), _answer(verb.capitalize(), active))


def confirm_reload(plan: PlanJson, tunnels: Mapping[str, Tunnel], width: int) -> Confirmation | None:
    """Return what to confirm before a reload, on a screen of ``width``; None if it interrupts no tunnel."""
    names = interrupted_tunnels(plan)
    if not names:
        return None
    active = sum(tunnels[name].visitors for name in names if name in tunnels)
    text = "No visitor will be disconnected."
    if active:
        text = (
            f"{plural(active, 'visitor')} of these tunnels may finish within drain_timeout; then the remaining ones "
            "are disconnected."
        )
    lines = [*_wrap(text, width), (), *plan_lines(plan, _room(width))]
    return Confirmation("Apply the file?", tuple(lines), _answer("Reload", active))


def confirm_fleet_reload(hosts: Sequence[str], tunnels: Mapping[str, Tunnel], width: int) -> Confirmation:
    """Return what to confirm before hosts of a fleet reload: their plans are not published."""
    affected = [tunnel for tunnel in tunnels.values() if tunnel.host in hosts]
    active = sum(tunnel.visitors for tunnel in affected)
    which = hosts[0] if len(hosts) == 1 else plural(len(hosts), "host")
    count = plural(active, "visitor").capitalize()
    text = (
        "Only the host knows what would change (run nodepass-orch plan there). Visitors of changed or removed tunnels "
        "may finish within drain_timeout; then the remaining ones are disconnected. "
        f"{count} {'is' if active == 1 else 'are'} being served on {name_hosts(affected) or which}."
    )
    title = f"Reload the {'file' if len(hosts) == 1 else 'files'} of {which}?"
    return Confirmation(title, tuple(_wrap(text, width)), f"Reload, disconnect up to {active}")


def confirm_quit(tunnels: Sequence[Tunnel], stop_command: str, width: int) -> Confirmation:
    """Return what to ask before the dashboard that started the daemon is closed, on a screen of ``width``.

    ``stop_command`` is the shell command that stops the daemon.
    """
    active = sum(tunnel.visitors for tunnel in tunnels)
    cost = f"at most {plural(active, 'visitor')} will be disconnected" if active else "no visitor will be disconnected"
    text = (
        "Tunnels that are left running stay in the background: nodepass-orch top shows them again, "
        f"{stop_command} stops them. Stopping them now drains them first; then {cost}."
    )
    return Confirmation("Quit the dashboard?", tuple(_wrap(text, width)), _answer("Stop tunnels", active))


def _answer(action: str, active: int) -> str:
    return f"{action}, disconnect {active}" if active else action


def _room(width: int) -> int:
    return min(_MAX_WIDTH, width - _FRAME_WIDTH)


def _wrap(text: str, width: int) -> list[Line]:
    return paragraph(text, _room(width))


def _list_visitors(counts: Sequence[tuple[str, int]]) -> list[Line]:
    """Return the tunnels with their visitors, the most first, if there are several."""
    if len(counts) < 2:
        return []
    counts = sorted(counts, key=lambda entry: -entry[1])
    lines: list[Line] = [()]
    lines += [
        ((f"{fit(name, 40)} ", "title"), (plural(count, "visitor"), "dim"))
        for name, count in counts[:_MAX_LISTED_TUNNELS]
    ]
    if len(counts) > _MAX_LISTED_TUNNELS:
        lines.append(((f"and {len(counts) - _MAX_LISTED_TUNNELS} more", "dim"),))
    return lines
