"""What the pictures of the report have in common: size, style, a legend above, SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from calorefine.pages.figures.weights import COLORS, MARKERS, STYLE, WIDTH

__all__ = ["COLORS", "MARKERS", "RED", "canvas", "panels", "plain", "ratio_canvas"]
RED = "#B00020"
LEFT, RIGHT, BOTTOM, TOP, ROW = 0.95, 0.22, 0.58, 0.12, 0.22  # inches; a row is one of the legend
PER_LINE = 52  # letters of a legend, with 6 for each sign


@contextmanager
def canvas() -> Iterator[tuple[io.BytesIO, Axes]]:
    """Axes to draw on; written as SVG with the legend above when done."""
    with _figure(2.75) as (out, figure):
        yield out, _plain_axes(figure.add_subplot())


@contextmanager
def ratio_canvas() -> Iterator[tuple[io.BytesIO, Axes, Axes]]:
    """Axes with a panel of ratios below, which has the same horizontal axis."""
    with _figure(3.6) as (out, figure):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 1], gridspec_kw={"hspace": 0.07})
        _plain_axes(upper).tick_params(labelbottom=False)
        yield out, upper, _plain_axes(lower)


@contextmanager
def panels(count: int, *, size: float) -> Iterator[tuple[io.BytesIO, Figure, list[Axes]]]:
    """Square axes side by side, for matrices.

    Args:
        count: how many.
        size: of each, in inches.
    """
    with mpl.rc_context({**STYLE, "xtick.minor.visible": False, "ytick.minor.visible": False}):
        out, figure = io.BytesIO(), Figure(figsize=(1.25 * size * count, size), layout="constrained")
        FigureCanvasAgg(figure)
        yield out, figure, list(figure.subplots(1, count, squeeze=False)[0])
        _save(figure, out)


@contextmanager
def _figure(height: float) -> Iterator[tuple[io.BytesIO, Figure]]:
    """Figure whose axes are so high, in inches."""
    with mpl.rc_context(STYLE):
        out, figure = io.BytesIO(), Figure()
        FigureCanvasAgg(figure)
        yield out, figure
        handles, labels = figure.axes[0].get_legend_handles_labels()
        columns = _columns([len(label) for label in labels])
        rows = -(-len(labels) // columns)
        total = BOTTOM + height + TOP + ROW * rows
        figure.set_size_inches(WIDTH, total)
        upper = (BOTTOM + height) / total
        figure.subplots_adjust(left=LEFT / WIDTH, right=1 - RIGHT / WIDTH, bottom=BOTTOM / total, top=upper)
        if labels:
            options = {"handlelength": 1.6, "columnspacing": 1.2, "borderaxespad": 0.1, "handletextpad": 0.5}
            figure.legend(handles, labels, loc="upper center", ncols=columns, **options)
        _save(figure, out)


def _columns(lengths: list[int]) -> int:
    """Largest number of columns of a legend that fit into the width.

    >>> _columns([8, 8, 9]), _columns([20, 20, 20, 20]), _columns([60, 60]), _columns([])
    (3, 2, 1, 1)
    """
    fitting = [n for n in range(1, len(lengths) + 1) if n * (max(lengths) + 6) <= PER_LINE]
    return max(fitting, default=1)


def _save(figure: Figure, out: io.BytesIO) -> None:
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))


def _plain_axes(axes: Axes) -> Axes:
    axes.use_sticky_edges = False
    return axes


def plain(text: str) -> str:
    """Keep a name from being read as a formula, left out of the legend, or cut off."""
    escaped = (text if len(text) <= 48 else f"{text[:46]}...").replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
