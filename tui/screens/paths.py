"""What lies over the main screen to show paths: one as a picture, all as a list, and the hosts of a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.style import Style
from textual.geometry import Size

from tui.lines import Line, wrap
from tui.path import Path, all_paths, path_of
from tui.path_picture import path_lines
from tui.path_rows import host_lines, path_heading, path_row
from tui.screens.questions import Reading
from tui.widgets.pane import Pane

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.binding import BindingType
    from textual.strip import Strip

    from tui.watch import Watch


class OnePath(Reading):
    """The path that a tunnel is part of, for as long as it is looked at."""

    BINDINGS: ClassVar[list[BindingType]] = [("p,v", "all")]

    is_live = True

    def __init__(self, watch: Watch, name: str) -> None:
        super().__init__(f"Path of {name}")
        self._watch = watch
        self._of = name
        self.looked_at = frozenset({name})

    def fill(self) -> None:
        """Show it as it is now."""
        watch, width = self._watch, max(40, self.pane.room)
        path = path_of(watch.view.tunnels, self._of)
        if path is None:
            self.pane.show([((part, "warn"),) for part in wrap(f"{self._of} is gone.", width)])
            return
        self.looked_at = frozenset(end.name for end in path.ends)
        is_fleet = watch.view.hosts is not None
        self.pane.show(path_lines(path, width, watch.now(), watch.wall(), is_fleet=is_fleet))
        self.pane.border_subtitle = "p all paths · Esc closes"

    def action_all(self) -> None:
        """All paths in the place of this one."""
        self.app.switch_screen(AllPaths(self._watch, self._of))


class PathList(Pane, inherit_bindings=False):
    """One row per path under a row of titles that stays; only rows that are seen are made."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--cursor", "table--heading"}

    def __init__(self) -> None:
        super().__init__(id="reading", focusable=True)
        self.paths: Sequence[Path] = ()
        self.cursor = 0

    def show_paths(self, paths: Sequence[Path], cursor: int) -> None:
        """Show these, and put the cursor on one."""
        has_moved = cursor != self.cursor
        self.paths, self.cursor = paths, cursor
        self.virtual_size = Size(0, len(paths) + 1)
        top, rows = self.scroll_offset.y, max(1, self.size.height - 1)
        if has_moved and not top <= cursor < top + rows:  # or else the wheel looks elsewhere
            self.scroll_to(y=cursor if cursor < top else cursor - rows + 1, animate=False, force=True)
        self.refresh()

    def line_at(self, y: int) -> Line:
        """The row of a path; ``y`` counts the titles' row as 0."""
        return path_row(self.paths[y - 1], self.room) if 0 < y <= len(self.paths) else ()

    def row_style(self, y: int) -> Style:
        """The cursor's row has a colour of its own."""
        if y - 1 != self.cursor:
            return Style.null()
        return self.get_component_rich_style("table--cursor", partial=True)

    def render_line(self, y: int) -> Strip:
        """The titles stay where they are."""
        if y == 0:
            under = self.get_component_rich_style("table--heading", partial=True)
            return self.strip(path_heading(self.room), under, self.room)
        return super().render_line(y)


class AllPaths(Reading):
    """All paths, what is wrong first; Enter shows one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("enter,p", "open"),
        ("down", "down"),
        ("up", "up"),
        ("pagedown", "page(1)"),
        ("pageup", "page(-1)"),
        ("home,g", "move(-1000000)"),
        ("end,G", "move(1000000)"),
    ]

    is_live = True

    def __init__(self, watch: Watch, chosen: str = "") -> None:
        self._list = PathList()
        super().__init__("Paths", self._list)
        self._watch = watch
        self._chosen = chosen
        """a tunnel of the path under the cursor"""

    def fill(self) -> None:
        """Show all as they are now; the cursor stays with its path, wherever that moves."""
        paths = all_paths(self._watch.view.tunnels.values())
        cursor = next((index for index, path in enumerate(paths) if self._is_chosen(path)), 0)
        self._list.show_paths(paths, cursor)
        self._keep(paths, cursor)
        broken = sum(path.rank[0] == 0 for path in paths)
        halves = sum(path.rank[0] == 1 for path in paths)
        parts = [f"{len(paths)} paths", *([f"{broken} broken"] if broken else [])]
        parts += [f"{halves} with one end not seen"] if halves else []
        self._list.border_title = ", ".join(parts)
        self._list.border_subtitle = "⏎ shows one · Esc closes"
        top = self._list.scroll_offset.y
        seen = paths[top : top + self._list.size.height]
        self.looked_at = frozenset(end.name for path in seen for end in path.ends)

    def _is_chosen(self, path: Path) -> bool:
        return any(end.name == self._chosen for end in path.ends)

    def _keep(self, paths: Sequence[Path], cursor: int) -> None:
        self._chosen = paths[cursor].ends[0].name if paths and not self._is_chosen(paths[cursor]) else self._chosen

    def action_move(self, step: int) -> None:
        """So many rows down, or up."""
        paths = self._list.paths
        if paths:
            cursor = min(max(0, self._list.cursor + step), len(paths) - 1)
            self._chosen = paths[cursor].ends[0].name
            self._list.show_paths(paths, cursor)

    def action_page(self, step: int) -> None:
        """One page down, or up."""
        self.action_move(step * max(1, self._list.size.height - 2))

    def action_down(self) -> None:
        """One row down."""
        self.action_move(1)

    def action_up(self) -> None:
        """One row up."""
        self.action_move(-1)

    def action_open(self) -> None:
        """The path under the cursor."""
        if self._chosen:
            self.app.push_screen(OnePath(self._watch, self._chosen))


class Hosts(Reading):
    """The hosts of a fleet."""

    is_live = True

    def __init__(self, watch: Watch) -> None:
        super().__init__("Hosts")
        self._watch = watch

    def fill(self) -> None:
        """Show them as they are now."""
        view, width = self._watch.view, max(20, self.pane.room)
        if view.hosts is None:
            text = "This is one daemon. nodepass-orch top --mqtt URL shows all hosts that publish to a broker."
            self.pane.show([((part, "dim"),) for part in wrap(text, width)])
            return
        self.pane.show(host_lines(view.hosts, list(view.tunnels.values()), width, self._watch.now()))
