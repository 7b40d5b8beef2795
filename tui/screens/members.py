"""The links, servers and targets of a tunnel over the main screen; keys drain one, or give it visitors again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tui.format.member_rows import TunnelMember, member_heading, member_row, tunnel_members
from tui.format.text import Line
from tui.screens.list_modal import ListModal
from tui.widgets.list_table import ListTable

if TYPE_CHECKING:
    from textual.binding import BindingType

    from tui.screens.actions import ActionRunner
    from tui.session import DashboardSession


class MemberTable(ListTable[TunnelMember], inherit_bindings=False):
    """One row for each link, server or target."""

    def heading_line(self) -> Line:
        """Return the row of titles."""
        return member_heading(self.line_width)

    def item_line(self, item: TunnelMember) -> Line:
        """Return the row of a link, server or target."""
        return member_row(item, self.line_width)


class MemberListModal(ListModal):
    """The links, servers and targets of a tunnel as they are now."""

    BINDINGS: ClassVar[list[BindingType]] = [("d", "drain"), ("s", "resume"), ("m", "dismiss")]

    def __init__(self, session: DashboardSession, actions: ActionRunner, name: str) -> None:
        """``name`` is the tunnel."""
        self._table = MemberTable()
        super().__init__(f"Links and targets of {name}", self._table)
        self._session = session
        self._actions = actions
        self._tunnel = name
        self._chosen: tuple[str, str] | None = None
        """kind and name of what is under the cursor"""
        self.shown_tunnels = frozenset({name})

    def update_lines(self) -> None:
        """Show what the tunnel has now; the cursor follows its link or target to another row."""
        table = self._table
        tunnel = self._session.view.tunnels.get(self._tunnel)
        members = tunnel_members(tunnel) if tunnel is not None else []
        cursor = next((index for index, one in enumerate(members) if (one.kind, one.name) == self._chosen), None)
        if cursor is None:  # it is gone: the next one moves up to its row
            cursor = min(table.cursor, max(0, len(members) - 1))
            self._chosen = (members[cursor].kind, members[cursor].name) if members else None
        table.show_items(members, cursor)
        hint = "d drain · s visitors again · Esc closes"
        if not members:
            hint = f"{'no link and no target' if tunnel is not None else 'the tunnel was removed'} · Esc closes"
        table.border_subtitle = hint

    def choose(self, index: int) -> None:
        """Put the cursor on a link, server or target."""
        member = self._table.items[index]
        self._chosen = (member.kind, member.name)
        self._table.show_items(self._table.items, index)

    def action_drain(self) -> None:
        """Give the link or target under the cursor no new visitors, after a question."""
        self._send("drain")

    def action_resume(self) -> None:
        """Give the link or target under the cursor new visitors again."""
        self._send("start")

    def _send(self, verb: str) -> None:
        members, cursor = self._table.items, self._table.cursor
        tunnel = self._session.view.tunnels.get(self._tunnel)
        if tunnel is None or cursor >= len(members):
            self._actions.show_error("No link and no target is selected.")
        else:
            self._actions.command_member(verb, tunnel, members[cursor])
