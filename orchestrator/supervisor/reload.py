"""Reads the configuration file and applies it; the last valid configuration stays in force until the next one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from orchestrator.config.faults import ConfigError, Fault, Place
from orchestrator.config.file_set import run_in_file_thread
from orchestrator.config.plan import EntryResult, Plan, diff_manifests, effective_settings
from orchestrator.process.file_replacement import replace_file
from orchestrator.status.contract import ConfigStatus
from orchestrator.status.json_types import FinishingJson
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.reconciler import reconcile
from tunnel.model.events import EventKind
from tunnel.model.spec import LogLevel
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.config.candidate import Candidate
    from orchestrator.config.manifest import Manifest
    from orchestrator.status.json_types import EntryResultJson, FaultJson, PlanJson, ReloadJson
    from orchestrator.supervisor.event_bus import EventBus
    from orchestrator.supervisor.published_services import PublishedServices
    from orchestrator.supervisor.registry import TunnelRegistry

RELOAD_EVENT: Final = EventKind.RELOAD
"""The kind of the events that report the result of a reload."""

RECENT_RELOAD_S: Final = 5.0
"""How long after a reload by the watcher a command is answered with the result of that one: both mean the same save."""

_ACTIONS: Final = ("added", "removed", "restarted", "changed", "rejected", "failed", "unchanged")


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What a reload did."""

    generation: int
    results: Mapping[str, EntryResult] = field(default_factory=dict)
    fault: Fault | None = None
    """why the file was not applied at all"""

    @property
    def is_ok(self) -> bool:
        """Whether every entry of the file is in force."""
        return self.fault is None and all(result.is_good for result in self.results.values())

    @property
    def has_changes(self) -> bool:
        """Whether anything but reading was done."""
        return any(result.action != "unchanged" for result in self.results.values())

    def as_json(self) -> ReloadJson:
        """The answer of ``POST /v1/reload``."""
        return {
            "generation": self.generation,
            "ok": self.is_ok,
            "error": _encode_fault(self.fault) if self.fault else None,
            "results": _encode_results(self.results),
        }


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a reload would do."""

    plan: Plan
    fault: Fault | None = None
    """why the file could not be applied"""
    finishing: tuple[FinishingJson, ...] = ()
    """present visitors of engines that would end, which may finish for a time"""

    def as_json(self) -> PlanJson:
        """The answer of ``GET /v1/plan``."""
        error = _encode_fault(self.fault) if self.fault else None
        shown = {"ok": self.fault is None, "error": error, "finishing": list(self.finishing), **self.plan.as_json()}
        return cast("PlanJson", shown)


class Reloader:
    """Makes one reload after the other. Callers that come while one waits for its turn share its result."""

    def __init__(
        self, manifest: Manifest, *, registry: TunnelRegistry, published: PublishedServices, bus: EventBus
    ) -> None:
        self.manifest = manifest
        """what is in force; of an entry that was rejected, its former version"""
        self.sources = manifest.sources
        """the files as they were last read, valid or not"""
        self.generation = 1
        self._registry = registry
        self._published = published
        self._bus = bus
        self._loaded_at = format_timestamp(time.time())
        self._fault: Fault | None = None
        self._warnings = [str(warning) for warning in manifest.warnings]
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Task[ReloadResult] | None = None
        self._recent: tuple[float, ReloadResult] | None = None

    def status(self) -> ConfigStatus:
        """The file as ``ps --json`` shows it."""
        fault = self._fault
        return ConfigStatus(
            path=str(self.manifest.path.absolute()),
            ok=fault is None,
            error=str(fault) if fault else None,
            line=fault.place.line if fault else None,
            column=fault.place.column if fault else None,
            warnings=tuple(self._warnings),
            loaded_at=self._loaded_at,
        )

    async def plan(self) -> PlanResult:
        """What a reload would do now."""
        return self._plan(await self._read())

    async def plan_candidate(self, candidate: Candidate) -> PlanResult:
        """What a candidate in place of the file would change."""
        return self._plan(await self._read(candidate))

    def _plan(self, new: Manifest | ConfigError) -> PlanResult:
        if isinstance(new, ConfigError):
            return PlanResult(Plan(), new.faults[0])
        plan = diff_manifests(self.manifest, new)
        finishing = []
        for entry in plan.ending:
            visitors = self._registry.runner(entry.name).snapshot().connections.active
            limit = new.supervisor.drain_timeout
            timeout_s = entry.spec.settings.shutdown_timeout if limit is None else limit
            if visitors:
                finishing.append(FinishingJson(name=entry.name, visitors=visitors, timeout_s=timeout_s))
        return PlanResult(plan, finishing=tuple(finishing))

    async def apply_candidate(self, candidate: Candidate) -> ReloadResult:
        """Put a candidate in place of the file and apply it. An invalid one changes nothing, nor does a full disk."""
        async with self._turn:
            new = await self._read(candidate)
            if not isinstance(new, ConfigError):
                try:
                    await run_in_file_thread(partial(replace_file, self.manifest.path, candidate.content))
                except OSError as error:  # ThreadShortageError is one
                    reason = error.strerror or error
                    new = ConfigError([Fault(Place(self.manifest.path), f"cannot write the file: {reason}")])
            if isinstance(new, ConfigError):
                return self._refuse_candidate(candidate, new)
            return await self._reload_now()

    def _refuse_candidate(self, candidate: Candidate, error: ConfigError) -> ReloadResult:
        fault = error.faults[0]
        more = f" (and {len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
        text = f"the candidate {candidate.name} is not applied: {fault}{more}"
        self._bus.emit(LogLevel.ERROR, EventKind.CONFIG, text)
        return ReloadResult(self.generation, fault=fault)

    async def reload(self) -> ReloadResult:
        """Read the file as it is now, or a moment later, and apply it. An invalid file raises nothing."""
        result = await self._next_result()
        recent, self._recent = self._recent, None
        if recent is None or not result.is_ok or result.has_changes:
            return result
        until, earlier = recent
        return earlier if time.monotonic() < until and earlier.generation == result.generation else result

    async def reload_after_change(self) -> None:
        """As ``reload``, by the watcher: a command within RECENT_RELOAD_S is answered with this result."""
        result = await self._next_result()
        if result.has_changes:
            self._recent = time.monotonic() + RECENT_RELOAD_S, result

    async def _next_result(self) -> ReloadResult:
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._reload_in_turn())
        return await asyncio.shield(self._waiting)

    async def _reload_in_turn(self) -> ReloadResult:
        async with self._turn:
            self._waiting = None
            return await self._reload_now()

    async def _reload_now(self) -> ReloadResult:
        """Read the file and apply it; the caller holds the turn."""
        new = await self._read()
        if self._registry.is_closing:
            fault = Fault(Place(self.manifest.path), "the daemon is shutting down")
            return ReloadResult(self.generation, fault=fault)
        if isinstance(new, ConfigError):
            return self._refuse(new)
        return await self._apply(new)

    async def _read(self, candidate: Candidate | None = None) -> Manifest | ConfigError:
        """The file, or a candidate; read in a thread: a disk may be slow and visitors must not wait for it."""
        content = candidate.content if candidate else None
        try:
            return await run_in_file_thread(partial(self.manifest.reload, content=content))
        except ConfigError as error:
            return candidate.relocate(error, self.manifest.path) if candidate else error
        except OSError as error:  # StuckFileError, ThreadShortageError
            fault = Fault(Place(self.manifest.path), f"cannot read the configuration: {error.strerror or error}")
            return ConfigError([fault], replace(self.sources, is_unread=True))
        except Exception as error:  # noqa: BLE001  a crash of the reader must not change or end what runs
            return ConfigError([Fault(Place(self.manifest.path), describe_crash(error))])

    def _refuse(self, error: ConfigError) -> ReloadResult:
        was_unread, former_fault = self.sources.is_unread, self._fault
        self.sources = error.sources or self.sources
        fault = self._fault = error.faults[0]
        if was_unread and self.sources.is_unread and fault == former_fault:  # the watcher tries again with every scan
            return ReloadResult(self.generation, fault=fault)
        more = f" (and {len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
        text = f"the file is not applied, generation {self.generation} stays in force: {fault}{more}"
        error_data = _encode_fault(fault)
        self._bus.emit(LogLevel.ERROR, RELOAD_EVENT, text, generation=self.generation, error=error_data, results={})
        return ReloadResult(self.generation, fault=fault)

    async def _apply(self, new: Manifest) -> ReloadResult:
        plan = diff_manifests(self.manifest, new)
        was_invalid, self._fault = self._fault is not None, None
        self.sources = new.sources
        self._emit_warnings(new, plan)
        self._published.make_way(new.entries)
        results = await reconcile(self._registry, plan, new.entries, new.supervisor.drain_timeout)
        self._published.apply_rules()
        is_same = new.sources == self.manifest.sources and all(
            result.action in {"unchanged", "rejected"} for result in results.values()
        )
        self.manifest = replace(
            new,
            supervisor=effective_settings(self.manifest.supervisor, new.supervisor),
            entries=self._registry.file_entries(),
        )
        if not is_same:
            self.generation += 1
            self._loaded_at = format_timestamp(time.time())
        self._emit_results(results, is_same=is_same, was_invalid=was_invalid)
        return ReloadResult(self.generation, results)

    def _emit_warnings(self, new: Manifest, plan: Plan) -> None:
        warnings = [*map(str, new.warnings), *plan.warnings]
        for text in warnings:
            if text not in self._warnings:
                self._bus.emit(LogLevel.WARN, EventKind.CONFIG, text)
        self._warnings = warnings

    def _emit_results(self, results: Mapping[str, EntryResult], *, is_same: bool, was_invalid: bool) -> None:
        changed = {name: result for name, result in results.items() if result.action != "unchanged"}
        counted = Counter(result.action for result in results.values())
        counts = ", ".join(f"{counted[action]} {action}" for action in _ACTIONS if counted[action]) or "no tunnels"
        text = f"no change (generation {self.generation})" if is_same else f"generation {self.generation}: {counts}"
        if was_invalid:
            text = f"the file is valid again; {text}"
        failed = {name: result for name, result in changed.items() if not result.is_good}
        for name, result in failed.items():
            self._bus.emit(LogLevel.ERROR, RELOAD_EVENT, f"{result.action}: {result.detail}", tunnel=name)
        level = LogLevel.WARN if failed else LogLevel.INFO
        self._bus.emit(level, RELOAD_EVENT, text, generation=self.generation, results=_encode_results(changed))


def _encode_results(results: Mapping[str, EntryResult]) -> dict[str, EntryResultJson]:
    return {name: cast("EntryResultJson", result.as_json()) for name, result in results.items()}


def _encode_fault(fault: Fault) -> FaultJson:
    place = fault.place
    return {"file": str(place.path), "line": place.line, "column": place.column, "message": fault.message}
