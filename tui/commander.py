"""Commands on their way to the daemon: asked about, given, answered for."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from tui import acting
from tui.happenings import plan_lines
from tui.screens.questions import Question
from tui.screens.readings import Lines
from tui.sources import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tui.app import Dashboard
    from tui.model import Tunnel

_AT_ONCE: Final = 8  # commands under way at the same time


class Commander:
    """One per dashboard. Each method returns at once; the rest happens in a worker of the application."""

    def __init__(self, app: Dashboard) -> None:
        self._app = app

    def give(self, verb: str, tunnels: Sequence[Tunnel]) -> None:
        """Give a command to those of the tunnels that it fits, after a question where it costs somebody something."""
        if tunnels and not self._app.is_read_only:
            self._app.begin(partial(self._give, verb, tunnels), "commands", is_alone=False)

    def reload(self) -> None:
        """Look at the plan, ask where it costs somebody something, and apply it."""
        self._app.begin(self._reload, "reload")

    def plan(self) -> None:
        """Show what a reload would change."""
        self._app.begin(self._plan, "plan")

    def copy(self, name: str) -> None:
        """Put a tunnel's URL into the clipboard."""
        self._app.begin(partial(self._copy, name), "copy")

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

        async def tell(tunnel: Tunnel) -> str | None:
            async with gate:
                try:
                    await self._app.source.command(verb, tunnel.name)
                except RefusedError as error:
                    return str(error)
                return None

        answers = await asyncio.gather(*map(tell, chosen))
        done = [tunnel for tunnel, refusal in zip(chosen, answers, strict=True) if refusal is None]
        refusals = [f"{verb} {t.name}: {refusal}" for t, refusal in zip(chosen, answers, strict=True) if refusal]
        if done:
            self._app.notify(f"{verb}: {acting.named(done)}", markup=False, timeout=3)
        if refusals:
            self.complain(refusals[0] + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else ""))

    async def _is_confirmed(self, asked: acting.Asked) -> bool:
        question = Question(asked.title, asked.lines, [("yes", asked.answer)])
        return await self._app.push_screen_wait(question) == "yes"

    async def _reload(self) -> None:
        source = self._app.source
        try:
            asked = acting.reload_question(await source.plan(), self._app.view.tunnels, self._app.size.width)
            if asked and not await self._is_confirmed(asked):
                return
            result = await source.reload()
        except RefusedError as error:
            self.complain(f"reload: {error}")
            return
        self._app.tell_reload(result)

    async def _plan(self) -> None:
        try:
            plan = await self._app.source.plan()
        except RefusedError as error:
            self.complain(f"plan: {error}")
            return
        await self._app.push_screen(Lines("What a reload would change", partial(plan_lines, plan)))

    async def _copy(self, name: str) -> None:
        try:
            url = str((await self._app.source.tunnel(name)).get("url") or "")
        except RefusedError as error:
            self.complain(f"copy {name}: {error}")
            return
        if not url:
            self.complain(f"copy {name}: the daemon does not tell its URL")
            return
        self._app.copy_to_clipboard(url)
        self._app.notify(url, title="Copied, without its key", markup=False)
