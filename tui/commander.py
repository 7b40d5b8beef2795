"""Commands on their way to the daemon: asked about, given, answered for."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from tui import acting
from tui.beside import begin
from tui.happenings import REFUSALS, error_text, plan_lines
from tui.screens.questions import Question
from tui.screens.readings import Lines
from tui.sources import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.app import App

    from tui.model import Json, Tunnel
    from tui.watch import Watch

_AT_ONCE: Final = 8  # commands under way at the same time


class Commander:
    """One per dashboard. Each method returns at once; the rest happens in a worker of the application."""

    def __init__(self, app: App[str], watch: Watch) -> None:
        self._app = app
        self._watch = watch
        self._is_asking = False

    def give(self, verb: str, tunnels: Sequence[Tunnel]) -> None:
        """Give a command to those of the tunnels that it fits, after a question where it costs somebody something."""
        if tunnels and not self._watch.is_read_only:
            begin(self._app, partial(self._give, verb, tunnels), "commands", is_alone=False)

    def reload(self, tunnels: Sequence[Tunnel]) -> None:
        """Look at the plan, ask where it costs somebody something, and apply it; in a fleet on the tunnels' hosts."""
        if self._watch.view.hosts is None:
            begin(self._app, self._reload, "reload", is_alone=False)
        elif hosts := sorted({tunnel.host for tunnel in tunnels}):
            begin(self._app, partial(self._reload_hosts, hosts), "reload", is_alone=False)

    def plan(self) -> None:
        """Show what a reload would change."""
        begin(self._app, self._plan, "plan")

    def copy(self, name: str) -> None:
        """Put a tunnel's URL into the clipboard."""
        begin(self._app, partial(self._copy, name), "copy")

    def complain(self, text: str) -> None:
        """Say what did not work."""
        self._app.notify(text, severity="warning", markup=False)

    async def _give(self, verb: str, tunnels: Sequence[Tunnel]) -> None:
        chosen, why_not = acting.fitting(verb, tunnels)
        if not chosen:
            self.complain(why_not)
            return
        asked = acting.question(verb, chosen, self._app.size.width)
        if asked and not await self._is_confirmed(asked):
            return
        gate = asyncio.Semaphore(_AT_ONCE)

        async def tell(tunnel: Tunnel) -> tuple[str, str]:
            async with gate:
                try:
                    answer = await self._watch.source.command(verb, tunnel.name)
                except RefusedError as error:
                    return "", f"{verb} {tunnel.name}: {error}"
                return f"{tunnel.name} {answer.get('text') or verb}", ""

        answers = await asyncio.gather(*map(tell, chosen))
        done = [text for text, _ in answers if text]
        refusals = [refusal for _, refusal in answers if refusal]
        if done:
            self._app.notify(done[0] if len(done) == 1 else f"{verb}: {len(done)} tunnels", markup=False, timeout=3)
        if refusals:
            self.complain(_first_of(refusals))

    async def _is_confirmed(self, asked: acting.Asked) -> bool:
        if self._is_asking:  # a key pressed twice, faster than the question came
            return False
        self._is_asking = True
        try:
            question = Question(asked.title, asked.lines, [("yes", asked.answer)])
            return await self._app.push_screen_wait(question) == "yes"
        finally:
            self._is_asking = False

    async def _reload(self) -> None:
        source = self._watch.source
        try:
            plan, width = await source.plan(), self._app.size.width
            asked = acting.reload_question(plan, self._watch.view.tunnels, width)
            if asked and not await self._is_confirmed(asked):
                return
            result = await source.reload()
        except RefusedError as error:
            self.complain(f"reload: {error}")
            return
        self._report("", result)

    def _report(self, host: str, result: Json) -> None:
        """What a reload did; of what it refused, why."""
        if error := result.get("error"):
            self._app.notify(error_text(error), title="Not applied", severity="warning", markup=False)
            return
        self._watch.announce_reload(host, result)
        refused = [
            f"{name}: {entry.get('action')}: {entry.get('detail')}"
            for name, entry in (result.get("results") or {}).items()
            if entry.get("action") in REFUSALS
        ]
        if refused:
            self.complain(_first_of(refused))

    async def _reload_hosts(self, hosts: Sequence[str]) -> None:
        if not await self._is_confirmed(
            acting.far_reload_question(hosts, self._watch.view.tunnels, self._app.size.width)
        ):
            return
        for host in hosts:
            try:
                self._report(host, await self._watch.source.reload(host))
            except RefusedError as error:
                self.complain(f"reload {host}: {error}")

    async def _plan(self) -> None:
        try:
            plan = await self._watch.source.plan()
        except RefusedError as error:
            self.complain(f"plan: {error}")
            return
        await self._app.push_screen(Lines("What a reload would change", partial(plan_lines, plan)))

    async def _copy(self, name: str) -> None:
        try:
            url = str((await self._watch.source.tunnel(name)).get("url") or "")
        except RefusedError as error:
            self.complain(f"copy {name}: {error}")
            return
        if not url:
            self.complain(f"copy {name}: the {self._watch.source.nature.teller} does not tell its URL")
            return
        self._app.copy_to_clipboard(url)
        self._app.notify(url, title="Copied, without its key", markup=False)


def _first_of(complaints: Sequence[str]) -> str:
    return complaints[0] + (f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else "")
