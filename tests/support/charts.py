"""Pictures of figures, as SVG that is the same whenever the figures are: for the bench and the soak."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Line = Sequence[tuple[float, float]]
"""Points of one line, from left to right."""

_COLOURS: Final = ("#0b6e99", "#d9730d", "#6b8e23", "#9b51e0", "#8d6e63", "#c0392b", "#607d8b")
_PALE: Final = "#b8c4ca"
_WIDTH: Final = 7.5  # inches
_STYLE: Final[dict[Any, Any]] = {  # matplotlib's own type lists its three hundred names
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: small, searchable, and drawn with the reader's own font
    "svg.hashsalt": "nodepass-orch",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}


def lines(path: Path, panels: Mapping[str, Mapping[str, Line]], *, across: str) -> None:
    """Panels below one another over one axis ``across``: the title of each, with its unit, and its lines by name."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 1.7 * len(panels) + 0.6), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for panel, (title, named) in zip(axes, panels.items(), strict=True):
            for colour, (name, points) in zip(_COLOURS, named.items(), strict=False):
                panel.plot([x for x, _ in points], [y for _, y in points], label=name, color=colour, linewidth=1.4)
            panel.set_ylim(bottom=0)
            _finish(panel, title, legend=len(named) > 1)
        axes[-1].set_xlabel(across)
        _save(figure, path)


def bars(path: Path, panels: Mapping[str, Mapping[str, float]], *, strong: Collection[str]) -> None:
    """Panels below one another: the title of each, with its unit, and a bar for each name, its figure at its end.

    The ``strong`` ones are coloured.
    """
    with mpl.rc_context(_STYLE):
        heights = [0.32 * len(named) + 0.6 for named in panels.values()]
        figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
        axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
        for panel, (title, named) in zip(axes, panels.items(), strict=True):
            colours = [_COLOURS[0] if name in strong else _PALE for name in named]
            drawn = panel.barh(list(named), list(named.values()), color=colours)
            panel.bar_label(drawn, [_figure(value) for value in named.values()], padding=4)
            panel.invert_yaxis()
            panel.margins(x=0.12)
            panel.set_xticks([])
            panel.spines["bottom"].set_visible(False)
            _finish(panel, title, legend=False)
        _save(figure, path)


def _figure(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _finish(panel: Axes, title: str, *, legend: bool) -> None:
    panel.set_title(title)
    if legend:
        panel.legend(frameon=False, ncols=4, loc="upper right", fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
