"""What all pictures have in common: size, colors, marks, a legend above, and the file they end as."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

WIDTH = 4.8  # inches
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by all
RED, GRAY = "#B00020", "0.45"
MARKERS = ("o", "s", "^", "v", "D", "P")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
SAMPLES = {  # color, and line or, for points with errors, none
    "generated": (COLORS[0], "--"),
    "reweighted": (COLORS[1], "-"),
    "reference": ("black", ""),
}
LONGEST = 48  # letters of a name
PER_INCH = 11.5  # letters of a legend, with 6 for each sign
styled = mpl.rc_context(  # decorator of all that draws
    {
        **{key: value for key, value in mplhep.style.ATLAS.items() if not key.startswith(("font", "mathtext"))},
        "font.family": ["DejaVu Sans"],
        "font.size": 10,
        "axes.labelsize": 11,
        "axes.titlesize": 10,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "svg.hashsalt": "calorefine",
        "axes.formatter.useoffset": False,
        "axes.formatter.limits": (-5, 6),
        "axes.formatter.use_mathtext": False,
        "axes.autolimit_mode": "data",
        "axes.ymargin": 0.08,
        "figure.constrained_layout.hspace": 0.0,
        "figure.constrained_layout.wspace": 0.0,
    }
)


def canvas(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (WIDTH, 3.4), **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure with a grid of axes.

    Args:
        rows: of the grid.
        columns: of the grid.
        size: of the figure without its legend, in inches.
        options: of matplotlib's `subplots`, such as `height_ratios` and `sharex`.
    """
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in panels.flat:
        axes.use_sticky_edges = False
    return figure, panels


def legend_above(figure: Figure, title: str = "") -> None:
    """Put the legend of the first axes above them all, below a title; the figure grows by its rows."""
    handles, texts = figure.axes[0].get_legend_handles_labels()
    entries = dict(zip(texts, handles, strict=True))
    labels = list(entries)
    if not labels:
        return
    width, height = figure.get_size_inches()
    most = int(width * PER_INCH / (max(map(len, labels)) + 6))
    columns = len(labels) if sum(map(len, labels)) + 6 * len(labels) <= width * PER_INCH else max(most, 1)
    figure.set_size_inches(width, height + 0.22 * (-(-len(labels) // columns) + bool(title)))
    options = {"handlelength": 1.6, "columnspacing": 1.2, "borderaxespad": 0.1, "handletextpad": 0.5}
    figure.legend(entries.values(), labels, loc="outside upper center", ncols=columns, title=title or None, **options)


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG that holds only the picture, with the legend of its first axes above."""
    legend_above(figure)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return out.getvalue()


def escaped(text: str) -> str:
    r"""Keep a name from being read as a formula, left out of the legend, or cut off.

    >>> escaped("_x$")
    ' _x\\$'
    """
    shown = (text if len(text) <= LONGEST else f"{text[: LONGEST - 2]}...").replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def color(index: int) -> str:
    """Color of the curve of this number."""
    return COLORS[index % len(COLORS)]


def points(axes: Axes, x: Any, y: Any, error: Any, *, index: int = 0, label: str = "", **options: Any) -> None:
    """Draw values with errors as marks; `index` chooses color and mark."""
    look: dict[str, Any] = {"marker": MARKERS[index % len(MARKERS)], "color": color(index), "linestyle": "none"}
    axes.errorbar(x, y, error, **look | {"markersize": 3.5, "elinewidth": 1.0, **_labelled(label), **options})


def _labelled(label: str) -> dict[str, Any]:
    return {"label": escaped(label)} if label else {}


def steps(axes: Axes, edges: Any, values: Any, *, label: str = "", **options: Any) -> None:
    """Draw values as a line with a step at each edge."""
    axes.stairs(values, np.asarray(edges), **{"linewidth": 1.5, "baseline": None, **_labelled(label), **options})


def band(axes: Axes, edges: Any, low: Any, high: Any, *, label: str = "", **options: Any) -> None:
    """Fill between two lines with a step at each edge."""
    look = {"alpha": 0.3, "linewidth": 0.0, "fill": True, **_labelled(label), **options}
    axes.stairs(high, np.asarray(edges), baseline=low, **look)
