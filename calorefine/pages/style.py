"""What all pictures have in common: size, colors, marks, and the file they end as."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from calorefine.pages.texts import Names, fit_texts, legend_above

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
LONGEST = 72  # letters of a name
DPI = 200  # of pictures in pixels
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


def finished(figure: Figure, *, title: str = "", names: Sequence[Names] = ()) -> Figure:
    """Return the figure with the legend of its first axes above, below a title, and with all texts made to fit."""
    legend_above(figure, title)
    fit_texts(figure, names)
    return figure


@styled
def svg(figure: Figure) -> bytes:
    """Return the figure as SVG that holds only the picture."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return out.getvalue()


@styled
def png(figure: Figure) -> bytes:
    """Return the figure as PNG, for pictures of so many parts that SVG would be large."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


@styled
def save_picture(figure: Figure, path: Path, kind: str = "png") -> None:
    """Write the figure with so many pixels that a page shows it sharp; in the style that it was drawn with."""
    figure.savefig(path, format=kind, dpi=DPI)


def escaped(text: str) -> str:
    r"""Keep a name from being read as a formula, left out of the legend, or cut off.

    >>> escaped("_x$")
    ' _x\\$'
    """
    shown = shortened(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def shortened(text: str, letters: int = LONGEST) -> str:
    """Cut off what is beyond so many letters."""
    return text if len(text) <= letters else f"{text[: letters - 2]}..."


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
