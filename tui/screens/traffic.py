"""The traffic of a tunnel by hour, day or month, over the main screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual import work

from tui.format.text import paragraph
from tui.format.traffic_chart import DAYS, STEPS, traffic_lines
from tui.screens.dialogs import TextModal
from tui.sources.base import SourceError

if TYPE_CHECKING:
    from textual.binding import BindingType

    from orchestrator.status.json_types import TrafficJson
    from tui.session import DashboardSession

_MIN_WIDTH: Final = 30
_REFRESH_S: Final = 10.0


class TrafficModal(TextModal):
    """Bars of what a tunnel carried; the keys h, d and m choose what a bar sums up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *((step[0], f"show_step('{step}')") for step in STEPS),
        ("right,tab", "next_step(1)"),
        ("left,shift+tab", "next_step(-1)"),
    ]

    def __init__(self, session: DashboardSession, name: str) -> None:
        super().__init__(f"Traffic of {name}")
        self._session = session
        self._tunnel = name
        self._step = "day"
        self._answer: TrafficJson | None = None
        self._error = ""

    def on_mount(self) -> None:
        """Ask for the traffic now and from time to time."""
        super().on_mount()
        self.set_interval(_REFRESH_S, self._fetch)
        self._fetch()

    def action_show_step(self, step: str) -> None:
        """Show hours, days or months."""
        self._step = step
        self._fetch()

    def action_next_step(self, step: int) -> None:
        """Show the next of them."""
        self.action_show_step(STEPS[(STEPS.index(self._step) + step) % len(STEPS)])

    @work(exclusive=True)
    async def _fetch(self) -> None:
        step = self._step
        try:
            self._answer = await self._session.source.fetch_traffic(self._tunnel, step, DAYS[step])
            self._error = ""
        except SourceError as error:
            self._error = str(error)
        self._update_if_attached()

    def update_lines(self) -> None:
        """Show the last answer, or why there is none."""
        width = max(_MIN_WIDTH, self.pane.text_width)
        if self._error:
            self.pane.show_lines(paragraph(self._error, width, "warn"))
        elif self._answer is None:
            self.pane.show_lines(paragraph("reading the history …", width, "dim"))
        else:
            self.pane.show_lines(traffic_lines(self._answer, width, self.pane.size.height))
            self.pane.border_subtitle = "h d m choose · Esc closes"
