"""What a command means before it is given: whom it concerns, what it costs, what to ask. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tui.happenings import plan_lines, touched
from tui.lines import Line, fit, wrap
from tunnel.model.state import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tui.model import Json, Tunnel

VERBS: Final = ("start", "stop", "restart", "drain", "retry")
_CUTTING: Final = frozenset({"stop", "restart", "drain"})
_LISTED: Final = 8  # tunnels named in a question; the others are counted
_NAMED_HOSTS: Final = 6
_WIDE: Final = 62  # columns of a question, where the screen has them
_FRAME: Final = 6  # columns around it


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: its title, what stands below, the label of the answer that is not Cancel."""

    title: str
    lines: tuple[Line, ...]
    answer: str


def visitors(count: int) -> str:
    """A number of visitors."""
    return f"{count or 'no'} visitor{'' if count == 1 else 's'}"


def named(tunnels: Sequence[Tunnel]) -> str:
    """The tunnel's name, or how many they are."""
    return tunnels[0].name if len(tunnels) == 1 else f"{len(tunnels)} tunnels"


def hosts_of(tunnels: Sequence[Tunnel]) -> str:
    """The hosts that they run on, where they are several each with its visitors; empty for one daemon."""
    active: dict[str, int] = {}
    for tunnel in tunnels:
        active[tunnel.host] = active.get(tunnel.host, 0) + tunnel.active
    if len(active) == 1:
        return next(iter(active))
    named = [f"{host} ({count})" for host, count in active.items()]
    if len(named) > _NAMED_HOSTS:
        return f"{len(named)} hosts"
    return f"{', '.join(named[:-1])} and {named[-1]}" if named else ""


def toggled(tunnels: Sequence[Tunnel]) -> tuple[str, list[Tunnel]]:
    """What start/stop means for these: stop those that run or, where none does, start them."""
    running = [tunnel for tunnel in tunnels if tunnel.is_running]
    return ("stop", running) if running else ("start", list(tunnels))


def fitting(verb: str, tunnels: Sequence[Tunnel]) -> tuple[list[Tunnel], str]:
    """Those of the tunnels to which the command can be given; and why not, where there is none."""
    if all(tunnel.is_gone for tunnel in tunnels):
        return [], f"{named(tunnels)}: nobody is there to do it, for {hosts_of(tunnels)} is gone"
    tunnels = [tunnel for tunnel in tunnels if not tunnel.is_gone]
    if verb == "retry":
        chosen = [tunnel for tunnel in tunnels if tunnel.state in {State.COOLDOWN, State.FAILED}]
        return chosen, f"{named(tunnels)}: there is no cooldown to end"
    if verb in {"stop", "drain"}:
        return [tunnel for tunnel in tunnels if tunnel.is_running], f"{named(tunnels)}: not running"
    if verb == "start":
        return [tunnel for tunnel in tunnels if not tunnel.is_running], f"{named(tunnels)}: running already"
    return list(tunnels), ""


def question(verb: str, tunnels: Sequence[Tunnel], width: int) -> Asked | None:
    """What to ask, on a screen of ``width``, before a command; None where it costs nobody anything."""
    if verb not in _CUTTING:
        return None
    active = sum(tunnel.active for tunnel in tunnels)
    one = active == 1
    patience = "the file's drain_timeout" if verb == "drain" else "SHUTDOWN_TIMEOUT"
    where = f" on {hosts_of(tunnels)}" if hosts_of(tunnels) else ""
    if active:
        text = (
            f"{visitors(active)} {'is' if one else 'are'} being served{where}. {'It' if one else 'They'} may finish "
            f"within {patience}; whoever is left then is cut off: {visitors(active)} at the most."
        )
    else:
        text = f"Nobody is being served{where} just now: no visitor will be cut off."
    lines = [*_told(text, width), *_list([(tunnel.name, tunnel.active) for tunnel in tunnels])]
    return Asked(f"{verb.capitalize()} {named(tunnels)}?", tuple(lines), _answer(verb.capitalize(), active))


def reload_question(plan: Json, tunnels: Mapping[str, Tunnel], width: int) -> Asked | None:
    """What to ask, on a screen of ``width``, before a reload; None where it takes nothing away from anybody."""
    names = touched(plan)
    if not names:
        return None
    active = sum(tunnels[name].active for name in names if name in tunnels)
    text = (
        f"{visitors(active).capitalize()} of theirs may finish within drain_timeout; whoever is left then is cut off."
    )
    told = _told(text if active else "No visitor will be cut off.", width)
    lines = [*told, (), *plan_lines(plan, _room(width))]
    return Asked("Apply the file?", tuple(lines), _answer("Reload", active))


def far_reload_question(hosts: Sequence[str], tunnels: Mapping[str, Tunnel], width: int) -> Asked:
    """What to ask before hosts read their files again: from here nobody sees what would change there."""
    theirs = [tunnel for tunnel in tunnels.values() if tunnel.host in hosts]
    active = sum(tunnel.active for tunnel in theirs)
    which = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts"
    serving = (
        f"{visitors(active).capitalize()} {'is' if active == 1 else 'are'} being served on {hosts_of(theirs) or which}"
    )
    text = (
        "What would change is known on the host alone (nodepass-orch plan there). Visitors of tunnels that change or "
        f"go may finish within drain_timeout; whoever is left then is cut off. {serving}."
    )
    title = f"Have {which} read {'its file' if len(hosts) == 1 else 'their files'} again?"
    return Asked(title, tuple(_told(text, width)), f"Reload, cut up to {active}")


def leave_question(tunnels: Sequence[Tunnel], ending: str, width: int) -> Asked:
    """What to ask, on a screen of ``width``, before the dashboard that started the daemon is left.

    ``ending`` is the command that ends the daemon.
    """
    active = sum(tunnel.active for tunnel in tunnels)
    text = (
        "Tunnels left running stay in the background: nodepass-orch top shows them again, "
        f"{ending} ends them. Ending them drains first; then "
        + (
            f"{visitors(active)} at the most {'is' if active == 1 else 'are'} cut off."
            if active
            else "nobody is cut off."
        )
    )
    return Asked("Leave the dashboard?", tuple(_told(text, width)), _answer("End tunnels", active))


def _answer(deed: str, active: int) -> str:
    return f"{deed}, cut {active}" if active else deed


def _room(width: int) -> int:
    return min(_WIDE, width - _FRAME)


def _told(text: str, width: int) -> list[Line]:
    return [((part, ""),) for part in wrap(text, _room(width))]


def _list(entries: Sequence[tuple[str, int]]) -> list[Line]:
    if len(entries) < 2:
        return []
    entries = sorted(entries, key=lambda entry: -entry[1])
    lines: list[Line] = [()]
    lines += [((f"{fit(name, 40)} ", "title"), (visitors(count), "dim")) for name, count in entries[:_LISTED]]
    if len(entries) > _LISTED:
        lines.append(((f"and {len(entries) - _LISTED} more", "dim"),))
    return lines
