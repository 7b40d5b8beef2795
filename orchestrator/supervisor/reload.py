"""From the file to the tunnels, again and again: the last good configuration stays until a better one is there."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from orchestrator.config.faults import ConfigError, Fault, Place
from orchestrator.config.file_set import run_in_file_thread
from orchestrator.config.plan import EntryResult, Plan, diff_manifests, effective_settings
from orchestrator.supervisor.crash_reports import describe_crash
from orchestrator.supervisor.reconciler import apply
from tunnel.model.spec import LogLevel
from tunnel.model.times import format_timestamp

if TYPE_CHECKING:
    from orchestrator.config.manifest import Manifest
    from orchestrator.supervisor.event_bus import EventBus
    from orchestrator.supervisor.registry import Tunnels

RELOAD_EVENT: Final = "reload"
"""The kind of the events that say what became of a reload."""

_NEWS: Final = 5.0  # seconds in which a command that comes after the watcher still hears of the same save
_ACTIONS: Final = ("added", "removed", "restarted", "changed", "rejected", "failed", "unchanged")


class Reloader:
    """Reads the file, compares, applies: one reload after the other.

    Whoever asks while one waits for its turn gets the answer of that one.
    """

    def __init__(self, manifest: Manifest, *, tunnels: Tunnels, bus: EventBus) -> None:
        self.manifest = manifest
        """what is in force: of an entry that was rejected, what it was before"""
        self.sources = manifest.sources
        """what was looked at last, good or not"""
        self.generation = 1
        self._tunnels = tunnels
        self._bus = bus
        self._loaded_at = format_timestamp(time.time())
        self._fault: Fault | None = None
        self._warnings = [str(warning) for warning in manifest.warnings]
        self._turn = asyncio.Lock()
        self._waiting: asyncio.Task[dict[str, Any]] | None = None
        self._news: tuple[float, dict[str, Any]] = 0.0, {}

    def status(self) -> dict[str, Any]:
        """The file as ``ps --json`` shows it."""
        fault = self._fault
        return {
            "path": str(self.manifest.path.absolute()),
            "ok": fault is None,
            "error": str(fault) if fault else None,
            "line": fault.place.line if fault else None,
            "column": fault.place.column if fault else None,
            "warnings": list(self._warnings),
            "loaded_at": self._loaded_at,
        }

    async def plan(self) -> dict[str, Any]:
        """What a reload would do now."""
        new = await self._read()
        if isinstance(new, ConfigError):
            return {"ok": False, "error": _error(new.faults[0]), **Plan().as_json()}
        return {"ok": True, "error": None, **diff_manifests(self.manifest, new).as_json()}

    async def reload(self) -> dict[str, Any]:
        """Read the file as it is now, or a moment later, and do what it says. A wrong file raises nothing."""
        answer = await self._next()
        (until, news), self._news = self._news, (0.0, answer)
        is_news = time.monotonic() < until and news["generation"] == answer["generation"]
        return news if is_news and answer["ok"] and not _did_anything(answer) else answer

    async def follow(self) -> None:
        """As ``reload``, but by nobody's command: whoever asks within seconds hears what became of it."""
        answer = await self._next()
        if _did_anything(answer):
            self._news = time.monotonic() + _NEWS, answer

    async def _next(self) -> dict[str, Any]:
        if self._waiting is None:
            self._waiting = asyncio.create_task(self._in_turn())
        return await asyncio.shield(self._waiting)

    async def _in_turn(self) -> dict[str, Any]:
        async with self._turn:
            self._waiting = None
            new = await self._read()
            if self._tunnels.is_closing:
                return self._answer({}, Fault(Place(self.manifest.path), "the daemon is shutting down"))
            if isinstance(new, ConfigError):
                return self._refuse(new)
            return await self._apply(new)

    async def _read(self) -> Manifest | ConfigError:
        """The file; in a thread, because a disk may be slow, and visitors do not care."""
        try:
            return await run_in_file_thread(self.manifest.reload)
        except ConfigError as error:
            return error
        except Exception as error:  # noqa: BLE001  a defect of the reader must not change what runs, nor end it
            return ConfigError([Fault(Place(self.manifest.path), describe_crash(error))])

    def _refuse(self, error: ConfigError) -> dict[str, Any]:
        self.sources = error.sources or self.sources
        self._fault = error.faults[0]
        more = f" (and {len(error.faults) - 1} more)" if len(error.faults) > 1 else ""
        text = f"the file is not applied, generation {self.generation} serves on: {self._fault}{more}"
        self._bus.emit(
            LogLevel.ERROR, RELOAD_EVENT, text, generation=self.generation, error=_error(self._fault), results={}
        )
        return self._answer({}, self._fault)

    async def _apply(self, new: Manifest) -> dict[str, Any]:
        plan = diff_manifests(self.manifest, new)
        was_wrong, self._fault = self._fault is not None, None
        self.sources = new.sources
        self._warn(new, plan)
        results = await apply(self._tunnels, plan, new.entries, new.supervisor.drain_timeout)
        is_same = new.sources == self.manifest.sources and all(
            result.action in {"unchanged", "rejected"} for result in results.values()
        )
        self.manifest = replace(
            new,
            supervisor=effective_settings(self.manifest.supervisor, new.supervisor),
            entries=tuple(self._tunnels.entries.values()),
        )
        if not is_same:
            self.generation += 1
            self._loaded_at = format_timestamp(time.time())
        self._report(results, is_same=is_same, was_wrong=was_wrong)
        return self._answer(results)

    def _warn(self, new: Manifest, plan: Plan) -> None:
        warnings = [*map(str, new.warnings), *plan.warnings]
        for text in warnings:
            if text not in self._warnings:
                self._bus.emit(LogLevel.WARN, "config", text)
        self._warnings = warnings

    def _report(self, results: dict[str, EntryResult], *, is_same: bool, was_wrong: bool) -> None:
        changed = {name: result for name, result in results.items() if result.action != "unchanged"}
        counted = Counter(result.action for result in results.values())
        counts = ", ".join(f"{counted[action]} {action}" for action in _ACTIONS if counted[action]) or "no tunnels"
        if is_same:
            text = f"generation {self.generation} stays: the file says what it said before"
        else:
            text = f"generation {self.generation}: {counts}"
        if was_wrong:
            text = f"the file is valid again; {text}"
        for name, result in changed.items():
            if not result.is_good:
                self._bus.emit(LogLevel.ERROR, RELOAD_EVENT, f"{result.action}: {result.detail}", tunnel=name)
        level = LogLevel.INFO if all(result.is_good for result in changed.values()) else LogLevel.WARN
        shown = {name: result.as_json() for name, result in changed.items()}
        self._bus.emit(level, RELOAD_EVENT, text, generation=self.generation, results=shown)

    def _answer(self, results: dict[str, EntryResult], fault: Fault | None = None) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "ok": fault is None and all(result.is_good for result in results.values()),
            "error": _error(fault) if fault else None,
            "results": {name: result.as_json() for name, result in results.items()},
        }


def _did_anything(answer: dict[str, Any]) -> bool:
    return any(result["action"] != "unchanged" for result in answer["results"].values())


def _error(fault: Fault) -> dict[str, Any]:
    place = fault.place
    return {"file": str(place.path), "line": place.line, "column": place.column, "message": fault.message}
