"""Commands on their way to the source: confirm, send, show the result."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from textual.app import SuspendNotSupported

from orchestrator.process.terminal_text import printable_lines
from tui.format.command_line import command_line
from tui.format.confirmations import (
    applicable_tunnels,
    confirm_command,
    confirm_fleet_reload,
    confirm_kick,
    confirm_member,
    confirm_reload,
)
from tui.format.editor import editor_command, parse_place
from tui.format.event_format import error_text, plan_lines, refusal_texts
from tui.format.member_rows import tunnel_members
from tui.format.text import plural
from tui.format.tunnel_test import tunnel_test_lines
from tui.screens.dialogs import ConfirmDialog, DialogAnswer
from tui.screens.texts import LinesModal
from tui.sources.base import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from textual.app import App
    from textual.worker import Worker

    from orchestrator.status.json_types import ReloadJson
    from tui.format.confirmations import Confirmation
    from tui.format.member_rows import TunnelMember
    from tui.model.tunnels import Tunnel
    from tui.session import DashboardSession

_MAX_PARALLEL_COMMANDS: Final = 8
NO_TUNNEL: Final = "No tunnel is selected."
_RESULT_S: Final = 3
"""How long the result of a command is shown."""


class ActionRunner:
    """One per dashboard. Each method returns at once; the rest runs in a worker of the application."""

    def __init__(self, app: App[str], session: DashboardSession) -> None:
        self._app = app
        self._session = session
        self._is_confirming = False

    def send_command(self, verb: str, tunnels: Sequence[Tunnel]) -> None:
        """Send a command for the tunnels to which it applies, after a confirmation if it disconnects visitors."""
        if self._can_send(verb, tunnels):
            self._run(partial(self._send_command, verb, tunnels), "commands")

    def reload(self, tunnels: Sequence[Tunnel]) -> None:
        """Reload the file, after a confirmation if it interrupts tunnels; in a fleet, the files of their hosts."""
        if not self._session.is_fleet:
            if self._can_send("reload", None):
                self._run(self._reload, "reload")
        elif self._can_send("reload", tunnels):
            hosts = sorted({tunnel.host for tunnel in tunnels})
            self._run(partial(self._reload_hosts, hosts), "reload")

    def kick(self, which: str, names: Sequence[str], question: str) -> None:
        """Disconnect visitors of some tunnels, by ID, address or network, after a question."""
        if self._can_send("kick", None):
            self._run(partial(self._kick, which, names, question), "commands")

    def command_member(self, verb: str, tunnel: Tunnel, member: TunnelMember) -> None:
        """Drain one link or target of a tunnel, after a question, or give it visitors again."""
        if member.kind == "server":
            then = "that could be drained." if verb == "drain" else "yet: visitors go to it once its link is up."
            self.show_error(f"{member.name} has no link {then}")
        elif self._can_send(verb, [tunnel]):
            self._run(partial(self._command_member, verb, tunnel, member), "commands")

    def show_plan(self) -> None:
        """Show what a reload would change."""
        self._run(self._show_plan, "plan", exclusive=True)

    def test(self, name: str) -> None:
        """Dial a tunnel's target through the tunnel, and show how long each leg took."""
        if self._can_send("test", None):
            self._run(partial(self._test, name), "test", exclusive=True)

    def copy_url(self, name: str) -> None:
        """Copy a tunnel's URL to the clipboard."""
        self._run(partial(self._copy_url, name), "copy", exclusive=True)

    def show_error(self, text: str) -> None:
        """Show why something failed."""
        self._app.notify(printable_lines(text), severity="warning", markup=False)

    def _notify_result(self, text: str, command: str) -> None:
        """Show what a command did, and the command line that does the same."""
        lines = f"{printable_lines(text)}\n$ {printable_lines(command)}"
        self._app.notify(lines, markup=False, timeout=_RESULT_S)

    def edit(self, name: str) -> None:
        """Open the user's editor at a tunnel's entry; the dashboard waits meanwhile."""
        if self._can_send("edit", None):
            self._run(partial(self._edit, name), "edit", exclusive=True)

    def _can_send(self, verb: str, tunnels: Sequence[Tunnel] | None) -> bool:
        """Return whether there is something to send, or say why not. ``tunnels`` is None if the command needs none."""
        if reason := self._session.read_only_reason:
            self.show_error(f"Read-only, {verb} was not sent: {reason}.")
            return False
        if tunnels is not None and not tunnels:
            self.show_error(NO_TUNNEL)
            return False
        return True

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]], group: str, *, exclusive: bool = False) -> None:
        # a function and not a coroutine: one that is cancelled before its start would never be awaited
        _: Worker[None] = self._app.run_worker(work, group=group, exclusive=exclusive)

    # -- commands ----------------------------------------------------------------------------------------------------

    async def _send_command(self, verb: str, tunnels: Sequence[Tunnel]) -> None:
        chosen, refusal = applicable_tunnels(verb, tunnels)
        if not chosen:
            self.show_error(refusal)
            return
        confirmation = confirm_command(verb, chosen, self._app.size.width)
        if confirmation and not await self._is_confirmed(confirmation):
            return
        semaphore = asyncio.Semaphore(_MAX_PARALLEL_COMMANDS)

        async def send(tunnel: Tunnel) -> tuple[str, str]:
            """Return the result and the error, one of them empty."""
            async with semaphore:
                try:
                    answer = await self._session.source.send_command(verb, tunnel.name)
                except SourceError as error:
                    return "", f"{verb} {tunnel.name}: {error}"
                return f"{tunnel.name} {answer.get('text') or verb}", ""

        answers = await asyncio.gather(*map(send, chosen))
        results = [result for result, _ in answers if result]
        if results:
            text = results[0] if len(results) == 1 else f"{verb}: {len(results)} tunnels"
            names = [tunnel.name for tunnel in chosen]
            self._notify_result(text, command_line(verb, names, is_fleet=self._session.is_fleet))
        self._show_errors([error for _, error in answers if error])

    async def _is_confirmed(self, confirmation: Confirmation) -> bool:
        if self._is_confirming:  # a key was pressed twice before the dialog opened
            return False
        self._is_confirming = True
        try:
            dialog = ConfirmDialog(confirmation.title, confirmation.lines, [DialogAnswer("yes", confirmation.answer)])
            return await self._app.push_screen_wait(dialog) == "yes"
        finally:
            self._is_confirming = False

    async def _kick(self, which: str, names: Sequence[str], question: str) -> None:
        if not await self._is_confirmed(confirm_kick(question, names, self._app.size.width)):
            return
        try:
            kicked = (await self._session.source.kick(which, names))["kicked"]
        except SourceError as error:
            self.show_error(f"kick: {error}")
            return
        text = f"{plural(len(kicked), 'visitor')} disconnected" if kicked else "The visitor has left already"
        self._notify_result(text, command_line("kick", [which, *names]))

    async def _command_member(self, verb: str, tunnel: Tunnel, member: TunnelMember) -> None:
        if tunnel.is_host_offline:
            self.show_error(f"{tunnel.name}: {tunnel.host} is offline")
            return
        if verb == "drain":
            question = confirm_member(member, tunnel_members(tunnel), tunnel.name, self._app.size.width)
            if not await self._is_confirmed(question):
                return
        which: dict[str, str] = {member.kind: member.name}
        try:
            answer = await self._session.source.send_command(verb, tunnel.name, which)
        except SourceError as error:
            self.show_error(f"{verb} {tunnel.name}: {error}")
            return
        line = command_line(verb, [tunnel.name], is_fleet=self._session.is_fleet, member=which)
        self._notify_result(f"{tunnel.name} {answer.get('text') or verb}", line)

    # -- the file ----------------------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        source = self._session.source
        try:
            plan = await source.fetch_plan()
            confirmation = confirm_reload(plan, self._session.view.tunnels, self._app.size.width)
            if confirmation and not await self._is_confirmed(confirmation):
                return
            result = await source.reload()
        except SourceError as error:
            self.show_error(f"reload: {error}")
            return
        self._show_reload_result("", result)

    async def _reload_hosts(self, hosts: Sequence[str]) -> None:
        confirmation = confirm_fleet_reload(hosts, self._session.view.tunnels, self._app.size.width)
        if not await self._is_confirmed(confirmation):
            return
        for host in hosts:
            try:
                self._show_reload_result(host, await self._session.source.reload(host))
            except SourceError as error:
                self.show_error(f"reload {host}: {error}")

    def _show_reload_result(self, host: str, result: ReloadJson) -> None:
        """Show what a reload did, and why it refused entries."""
        if error := result["error"]:
            self._app.notify(printable_lines(error_text(error)), title="Not applied", severity="warning", markup=False)
            return
        self._session.show_reload_result(host, result["generation"], result["results"])
        self._show_errors(refusal_texts(result["results"]))

    async def _show_plan(self) -> None:
        try:
            plan = await self._session.source.fetch_plan()
        except SourceError as error:
            self.show_error(f"plan: {error}")
            return
        await self._app.push_screen(LinesModal("What a reload would change", partial(plan_lines, plan)))

    async def _test(self, name: str) -> None:
        self._app.notify(f"testing {printable_lines(name)}", markup=False, timeout=_RESULT_S)
        try:
            found = await self._session.source.test(name)
        except SourceError as error:
            self.show_error(f"test {name}: {error}")
            return
        title = f"Test of {name}: {'passed' if found['ok'] else 'failed'}"
        await self._app.push_screen(LinesModal(title, partial(tunnel_test_lines, found)))

    # -- others ------------------------------------------------------------------------------------------------------

    async def _copy_url(self, name: str) -> None:
        source = self._session.source
        try:
            url = str((await source.fetch_tunnel(name)).get("url") or "")
        except SourceError as error:
            self.show_error(f"copy {name}: {error}")
            return
        if not url:
            self.show_error(f"copy {name}: its URL is not published to the {source.info.peer_name}")
            return
        self._app.copy_to_clipboard(url)
        self._app.notify(url, title="Copied, without its key", markup=False)

    async def _edit(self, name: str) -> None:
        try:
            if not self._session.source.place.startswith("unix:"):
                raise SourceError("a file can be edited only on the host of its daemon")
            where = (await self._session.source.fetch_tunnel(name)).get("where")
            config = self._session.view.status.get("config")
            if not where or config is None:
                raise SourceError("its place in the file is not known here")
            file, line = parse_place(where, Path(config["path"]).parent)
            if not file.is_file():
                raise SourceError(f"there is no file {file} on this host")
            command = editor_command(os.environ, file, line)
            with self._app.suspend():
                code = subprocess.run(command, check=False).returncode  # noqa: ASYNC221, S603  the user's own editor
        except (SourceError, ValueError, OSError, SuspendNotSupported) as error:
            self.show_error(f"edit {name}: {error}")
            return
        self._app.refresh(layout=True)
        if code:
            self.show_error(f"edit {name}: {shlex.join(command)} ended with code {code}")

    def _show_errors(self, errors: Sequence[str]) -> None:
        """Show the first error, and how many more there are."""
        if errors:
            self.show_error(errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""))
