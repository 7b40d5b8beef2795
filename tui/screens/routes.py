"""Routes over the main screen (one as a diagram, all as a list), and the hosts of a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tui.format.route_diagram import path_lines
from tui.format.route_rows import host_lines, route_heading, route_row
from tui.format.text import Line, paragraph, plural
from tui.model.routes import TunnelRoute, all_routes, routes_of
from tui.screens.dialogs import TextModal
from tui.screens.list_modal import ListModal
from tui.widgets.list_table import ListTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.binding import BindingType

    from tui.session import DashboardSession


class RouteModal(TextModal):
    """The routes that contain a tunnel."""

    BINDINGS: ClassVar[list[BindingType]] = [("p,v", "show_all")]

    is_live = True

    def __init__(self, session: DashboardSession, name: str) -> None:
        super().__init__(f"Route of {name}")
        self._session = session
        self._tunnel = name
        self.shown_tunnels = frozenset({name})

    def update_lines(self) -> None:
        """Show the routes as they are now."""
        session, width = self._session, max(40, self.pane.line_width)
        routes = routes_of(session.view.tunnels, self._tunnel)
        if not routes:
            self.pane.show_lines(paragraph(f"{self._tunnel} was removed.", width, "warn"))
            return
        self.shown_tunnels = frozenset(end.name for route in routes for end in route.ends)
        self.pane.show_lines(path_lines(routes, width, session.now(), session.wall(), is_fleet=session.is_fleet))
        self.pane.border_subtitle = "p all routes · Esc closes"

    def action_show_all(self) -> None:
        """Show all routes instead of this one."""
        self.app.switch_screen(RouteListModal(self._session, self._tunnel))


class RouteTable(ListTable[TunnelRoute], inherit_bindings=False):
    """One row for each route."""

    def heading_line(self) -> Line:
        """Return the row of titles."""
        return route_heading(self.line_width)

    def item_line(self, item: TunnelRoute) -> Line:
        """Return the row of a route."""
        return route_row(item, self.line_width)


class RouteListModal(ListModal):
    """All routes, broken ones first; Enter shows one."""

    BINDINGS: ClassVar[list[BindingType]] = [("enter,p", "open")]

    def __init__(self, session: DashboardSession, chosen: str = "") -> None:
        self._table = RouteTable()
        super().__init__("Routes", self._table)
        self._session = session
        self._chosen = chosen
        """a tunnel of the route under the cursor"""
        self._chosen_key = ""
        """the key of that route, once it is known"""

    def update_lines(self) -> None:
        """Show all routes as they are now; the cursor follows its route to another row."""
        routes = all_routes(self._session.view.tunnels.values())
        cursor = next((index for index, route in enumerate(routes) if route.key == self._chosen_key), None)
        if cursor is None:
            cursor = next((index for index, route in enumerate(routes) if self._contains_chosen(route)), 0)
        self._table.show_items(routes, cursor)
        if routes:
            self._chosen_key = routes[cursor].key
            if not self._contains_chosen(routes[cursor]):
                self._chosen = routes[cursor].ends[0].name
        self._table.border_title = _count_routes(routes)
        self._table.border_subtitle = "⏎ shows one · Esc closes"
        self.shown_tunnels = frozenset(end.name for route in self._table.visible_items() for end in route.ends)

    def _contains_chosen(self, route: TunnelRoute) -> bool:
        return any(end.name == self._chosen for end in route.ends)

    def choose(self, index: int) -> None:
        """Put the cursor on a route."""
        route = self._table.items[index]
        self._chosen, self._chosen_key = route.ends[0].name, route.key
        self._table.show_items(self._table.items, index)

    def action_open(self) -> None:
        """Show the route under the cursor."""
        if self._chosen:
            self.app.push_screen(RouteModal(self._session, self._chosen))


def _count_routes(routes: Sequence[TunnelRoute]) -> str:
    broken = sum(route.rank[0] == 0 for route in routes)
    incomplete = sum(route.rank[0] == 1 for route in routes)
    parts = [plural(len(routes), "route")]
    parts += [f"{broken} broken"] if broken else []
    parts += [f"{incomplete} with one end unknown"] if incomplete else []
    return ", ".join(parts)


class HostsModal(TextModal):
    """The hosts of a fleet."""

    is_live = True

    def __init__(self, session: DashboardSession) -> None:
        super().__init__("Hosts")
        self._session = session

    def update_lines(self) -> None:
        """Show the hosts as they are now."""
        view, width = self._session.view, max(20, self.pane.line_width)
        if view.hosts is None:
            text = "This is a single daemon. nodepass-orch top --mqtt URL shows all hosts that publish to a broker."
            self.pane.show_lines(paragraph(text, width, "dim"))
            return
        self.pane.show_lines(host_lines(view.hosts, list(view.tunnels.values()), width, self._session.now()))
