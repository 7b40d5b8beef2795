"""The tunnels that clients publish: opened on request, observed while they run, removed after their client has left."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.config.address_claims import ClaimTable, address_claims
from orchestrator.config.plan import needs_engine
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.event_bus import SUPERVISOR
from orchestrator.supervisor.handover import Handover
from orchestrator.supervisor.publish_decision import decide, find_rule
from orchestrator.supervisor.registry import DISABLED
from tunnel.model.events import EventKind, EventLog
from tunnel.model.publishing import DEFAULT_GRACE_S, PublishRequest
from tunnel.model.spec import Direction, LogLevel
from tunnel.model.state import State
from tunnel.model.times import format_duration
from tunnel.runtime import listeners
from tunnel.runtime.sockets import NetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.config.manifest import Entry
    from orchestrator.supervisor.event_bus import EventBus
    from orchestrator.supervisor.registry import TunnelRegistry
    from orchestrator.supervisor.runner import TunnelRunner
    from tunnel.model.spec import TunnelSpec

START_TIMEOUT_S: Final = 2.0
"""How long a client waits for the engine of its tunnel to start; its own time limit is longer."""

_CANNOT_LISTEN: Final = frozenset({State.COOLDOWN, State.FAILED})


@dataclass(frozen=True, slots=True)
class _GraceTimer:
    """Removes a tunnel whose client has been away for too long."""

    since: float
    """when the client left, on the loop's clock"""
    grace_s: float
    handle: asyncio.TimerHandle


class PublishedServices:
    """Adds and removes the entries of published tunnels, and nothing else does."""

    def __init__(self, registry: TunnelRegistry, bus: EventBus, drain_timeout: Callable[[], float | None]) -> None:
        """``drain_timeout``: how long the visitors of a tunnel that is removed may stay, in seconds."""
        self._registry = registry
        self._event_log = EventLog(SUPERVISOR, bus.publish)
        self._drain_timeout = drain_timeout
        self._timers: dict[str, _GraceTimer] = {}  # of tunnels whose client is away
        registry.subscribe_published(self._on_state_changed)

    def close(self) -> None:
        """Remove nothing any more."""
        for timer in self._timers.values():
            timer.handle.cancel()
        self._timers.clear()

    # --- requests of clients --------------------------------------------------------------------------------------

    async def publish(self, server: str, request: PublishRequest) -> str | None:
        """Have a tunnel wait for a client that has authenticated at the entry ``server``; or return why not."""
        decision = self._decide(server, request)
        if not isinstance(decision, str) and not self._is_present(decision):
            await Handover(self._registry, None).wait_until_released([decision])
            try:
                await _check_address(decision.spec)
            except NetError as error:
                return str(error)
            decision = self._decide(server, request)  # other clients have not waited
        if isinstance(decision, str):
            return decision
        is_new = not self._is_present(decision)
        runner = self._add(decision) if is_new else self._registry.runner(decision.name)
        await self._registry.wait_until(lambda: runner.snapshot().state is not State.STARTING, START_TIMEOUT_S)
        seen = runner.snapshot()
        if seen.state not in _CANNOT_LISTEN:
            return None
        if is_new:
            self._remove(decision.name, seen.reason or "it cannot listen", runner)
        return seen.reason or f"the server cannot open {decision.spec.target}"

    def _decide(self, server: str, request: PublishRequest) -> Entry | str:
        registry, parent = self._registry, self._registry.entry(server)
        if registry.is_closing or parent is None:
            return "this server is shutting down"
        decision = decide(parent, request, registry.entries())
        present = None if isinstance(decision, str) else registry.entry(decision.name)
        if isinstance(decision, str) or present is None:
            return decision
        seen = registry.snapshot(decision.name)
        if not registry.runner(decision.name).is_wanted:
            return f"the tunnel of the service {request.service} is stopped at the server: {seen.reason}"
        if seen.links and not self._is_present(decision):
            return f"the service {request.service} is published on {present.spec.target}, and its client is present"
        return decision

    def _is_present(self, entry: Entry) -> bool:
        """Whether the tunnel is there; its client may want another address for it."""
        present = self._registry.entry(entry.name)
        return present is not None and present.spec.target == entry.spec.target

    def _add(self, entry: Entry) -> TunnelRunner:
        spec = entry.spec
        self._remove(entry.name, f"its client asks for {spec.target} instead")
        text = f"{entry.name} is published on {spec.target} by the client with the key {spec.published_by}"
        self._event_log.log_paced(LogLevel.INFO, EventKind.SUPERVISOR, "added", text)
        return self._registry.add(entry)

    def _remove(self, name: str, reason: str, runner: TunnelRunner | None = None, *, is_revoked: bool = False) -> None:
        """Drain a published tunnel and forget it; ``runner``: only if it still is the tunnel's."""
        entry = self._registry.entry(name)
        if entry is None or entry.publisher is None or runner not in {None, self._registry.runner(name)}:
            return
        if (timer := self._timers.pop(name, None)) is not None:
            timer.handle.cancel()
        text = f"{name} is no longer published: {reason}"
        self._event_log.log_paced(LogLevel.INFO, EventKind.SUPERVISOR, "removed", text)
        self._registry.retire(self._registry.runner(name), 0.0 if is_revoked else self._drain_timeout(), reason)

    # --- clients that are away ------------------------------------------------------------------------------------

    def _on_state_changed(self, name: str) -> None:
        """Start to count the time in which a tunnel has no client, or stop to."""
        entry = self._registry.entry(name)
        if entry is None or entry.publisher is None or self._registry.is_closing:
            return
        runner = self._registry.runner(name)
        is_away = runner.is_wanted and not runner.snapshot().links
        if is_away and name not in self._timers:
            self._start_timer(name, asyncio.get_running_loop().time(), self._grace_s(entry))
        elif not is_away and name in self._timers:
            self._timers.pop(name).handle.cancel()

    def _start_timer(self, name: str, since: float, grace_s: float) -> None:
        handle = asyncio.get_running_loop().call_at(since + grace_s, self._expire, name, grace_s)
        self._timers[name] = _GraceTimer(since, grace_s, handle)

    def _follow_grace(self, entry: Entry) -> None:
        """Let a tunnel whose client is away wait for as long as the rule says now, from when the client left."""
        timer = self._timers.get(entry.name)
        if timer is not None and (grace_s := self._grace_s(entry)) != timer.grace_s:
            timer.handle.cancel()
            self._start_timer(entry.name, timer.since, grace_s)

    def _grace_s(self, entry: Entry) -> float:
        parent = self._registry.entry(entry.publisher or "")
        rule = find_rule(parent.spec, _request_of(entry)) if parent is not None else None
        return DEFAULT_GRACE_S if rule is None else rule.grace_s

    def _expire(self, name: str, grace_s: float) -> None:
        del self._timers[name]
        self._remove(name, f"its client has been away for {format_duration(grace_s)}")

    # --- changes of the file --------------------------------------------------------------------------------------

    def make_way(self, entries: Iterable[Entry]) -> None:
        """Before a reload: remove the tunnels whose name, service or address an entry of the file wants."""
        names: set[str] = set()
        claims: ClaimTable[Entry] = ClaimTable()
        for entry in entries:
            names.add(entry.name)
            for claim in address_claims(entry.spec) if entry.enabled else ():
                claims.add(claim, entry)
        for published in self._registry.published_entries():
            conflicts = (holder for claim in address_claims(published.spec) for _, holder in claims.conflicts(claim))
            holder = next(conflicts, None)
            if published.name in names or holder is not None:
                owner = published.name if holder is None else holder.name
                self._remove(published.name, f"the tunnel {owner} of the file takes its place")

    def apply_rules(self) -> None:
        """After a reload: adapt the published tunnels to the rules, and remove those that are no longer allowed."""
        for entry in self._registry.published_entries():
            parent = self._registry.entry(entry.publisher or "")
            if parent is None or not parent.enabled:
                self._remove(
                    entry.name, f"{entry.publisher} is {'removed from the file' if parent is None else DISABLED}"
                )
                continue
            others = [one for one in self._registry.entries() if one.name != entry.name]
            decision = decide(parent, _request_of(entry), others)
            if isinstance(decision, str):
                has_key = any(named.name == entry.spec.published_by for named in parent.spec.named_keys)
                self._remove(entry.name, decision, is_revoked=not has_key)
            else:
                self._follow_grace(entry)
                if decision != entry:
                    self._change(entry, decision)

    def _change(self, old: Entry, new: Entry) -> None:
        if needs_engine(old, new):
            self._remove(old.name, f"the entry {new.publisher} was changed; its client may publish it again")
            return
        runner = self._registry.runner(old.name)
        try:
            runner.apply_live_settings(new.spec, new.tags)
        except Exception as error:  # noqa: BLE001  a crash of one engine: the others are adapted all the same
            runner.set_last_error(describe_crash(error))
        else:
            self._registry.update_entry(new)


async def _check_address(spec: TunnelSpec) -> None:
    """Raise NetError if visitors cannot be accepted where a tunnel wants to: then nothing of it is seen or logged."""
    listeners.close(await listeners.bind(spec, listeners.visitor_addresses(spec, Direction.REVERSE)))


def _request_of(entry: Entry) -> PublishRequest:
    """Return the request that a published tunnel is the answer to."""
    return PublishRequest(entry.spec.published_by or "", entry.spec.service, entry.spec.target)
