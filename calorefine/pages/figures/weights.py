"""Pictures of the report on weights: weighted distributions of every species, and of the weights themselves."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import mplhep
import numpy as np
from hist import Hist
from hist.axis import Regular
from hist.storage import Weight
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from calorefine import stats
from calorefine.stats import FloatArray
from calorefine.text import number

BINS, MOST_INTEGERS = 40, 60
WIDTH = 4.8  # inches
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by all
MARKERS = ("o", "s", "^", "v", "D", "P")
STYLE = {
    **{key: value for key, value in mplhep.style.ATLAS.items() if not key.startswith(("font", "mathtext"))},
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "svg.hashsalt": "calorefine",
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-5, 6),
    "axes.formatter.use_mathtext": False,
    "axes.autolimit_mode": "data",
    "axes.ymargin": 0.08,
}


def column_axis(values: FloatArray, name: str = "x") -> Regular:
    """Bins over the central 99 % of all events, unweighted; whole numbers of integers where values are integers.

    Args:
        values: (n,) of all events, at least one.
        name: of the axis.

    >>> column_axis(np.array([0.0, 1.0, 1.0, 3.0])).edges
    array([-0.5,  0.5,  1.5,  2.5,  3.5])
    """
    low, high = map(float, stats.quantile(values, np.ones(len(values)), [0.005, 0.995]))
    if _integers(values):
        span = int(high - low) + 1
        step = 1 if span <= MOST_INTEGERS else -(-span // BINS)
        bins = -(-span // step)
        return Regular(bins, low - 0.5, low - 0.5 + bins * step, name=name)
    margin = 0.02 * (high - low) or 0.5
    return Regular(BINS, low - margin, high + margin, name=name)


def column_figure(
    label: str, values: FloatArray, *, weights: Mapping[str, FloatArray], unit: str = ""
) -> tuple[bytes, float]:
    """Draw a column's distribution for every species, and for all events unweighted.

    Each is normalized to its own sum of weights, events outside of the picture included; error bars are sqrt(sum_w2)
    in each bin.  A species whose weights don't have a positive sum is left out.

    Args:
        label: name of the column.
        values: (n,).
        weights: species to its weights (n,), any sign.
        unit: of the column, if it has one.

    Returns:
        The picture as SVG, and the fraction of events outside of it.
    """
    axis = column_axis(values)
    everything = _filled(axis, values, np.ones(len(values)))
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        axes.stairs(everything.values(), axis.edges, color="0.45", linewidth=1.4, label="all, unweighted")
        for index, (name, weight) in enumerate(weights.items()):
            if stats.sum_w(weight) > 0:
                _draw_species(axes, _filled(axis, values, weight), index=index, n_species=len(weights), name=name)
        axes.axhline(0, color="k", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=_integers(values)))
        width = float(axis.edges[1] - axis.edges[0])
        axes.set(xlim=(axis.edges[0], axis.edges[-1]), xlabel=_plain(f"{label} [{unit}]" if unit else label))
        axes.set_ylabel(f"fraction / {width:.3g} {unit}".rstrip())
        picture = _finished(figure)
    return picture, 1 - float(np.sum(everything.values()))


def weights_figure(weights: Mapping[str, FloatArray]) -> bytes:
    """Draw the distributions of the weights themselves on a logarithmic scale, from the smallest to the largest.

    Args:
        weights: species to its weights (n,), any sign.

    Returns:
        The picture as SVG.
    """
    low = min(float(np.min(weight)) for weight in weights.values())
    high = max(float(np.max(weight)) for weight in weights.values())
    margin = 0.01 * (high - low) or 0.5
    axis = Regular(80, low - margin, high + margin, name="w")
    with mpl.rc_context(STYLE):
        figure, axes = _figure()
        for index, (name, weight) in enumerate(weights.items()):
            counts = Hist(axis).fill(weight).values()
            color = COLORS[index % len(COLORS)]
            axes.stairs(counts, axis.edges, color=color, linewidth=1.6, linestyle=_line(index), label=_plain(name))
        axes.axvline(0, color="k", linewidth=0.8)
        axes.set(yscale="log", xlim=(axis.edges[0], axis.edges[-1]), xlabel="weight")
        axes.set_ylim(bottom=0.5)
        axes.set_ylabel(f"events / {number(float(axis.edges[1] - axis.edges[0]), 2)}")
        return _finished(figure)


def _integers(values: FloatArray) -> bool:
    return bool(np.all(values == np.rint(values)))


def _filled(axis: Regular, values: FloatArray, weight: FloatArray) -> Any:
    """Histogram of sum_w and sum_w2 in each bin, over the sum of all weights."""
    return Hist(axis, storage=Weight()).fill(values, weight=weight) * (1 / stats.sum_w(weight))


def _draw_species(axes: Axes, filled: Any, *, index: int, n_species: int, name: str) -> None:
    """Points with error bars, those of different species side by side within the bin."""
    axis = filled.axes[0]
    shift = ((index + 1) / (n_species + 1) - 0.5) * 0.5 * axis.widths
    axes.errorbar(
        axis.centers + shift,
        filled.values(),
        np.sqrt(filled.variances()),
        color=COLORS[index % len(COLORS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=3.5,
        linestyle="none",
        elinewidth=1.1,
        label=_plain(name),
    )


def _line(index: int) -> Any:
    return ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))[index % 6]


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 3.6))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.use_sticky_edges = False
    return figure, axes


def _finished(figure: Figure) -> bytes:
    """Put the legend above the axes, in as many rows as it needs; return the SVG, which holds only the picture."""
    axes = figure.axes[0]
    labels = axes.get_legend_handles_labels()[1]
    columns = _legend_columns([len(label) for label in labels])
    height = 3.42 + 0.2 * -(-len(labels) // columns)
    figure.set_size_inches(WIDTH, height)
    axes.set_position((0.95 / WIDTH, 0.58 / height, 1 - 1.17 / WIDTH, 2.72 / height))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.2, 1.01),
        ncols=columns,
        columnspacing=1.2,
        handletextpad=0.5,
        handlelength=1.6,
        borderaxespad=0,
        borderpad=0.2,
    )
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return out.getvalue()


def _legend_columns(lengths: list[int]) -> int:
    """Largest number of columns that fit the width, for labels of these lengths, which fill column after column.

    >>> _legend_columns([10, 6, 10]), _legend_columns([16, 16, 16, 16]), _legend_columns([40, 40])
    (3, 2, 1)
    """
    for columns in range(len(lengths), 1, -1):
        widest = [max(part) for part in np.array_split(lengths, columns)]
        if sum(0.5 + 0.085 * length for length in widest) <= WIDTH - 0.2:
            return columns
    return 1


def _plain(text: str) -> str:
    """Keep a name from being read as a formula, left out of the legend, or cut off."""
    escaped = (text if len(text) <= 40 else f"{text[:38]}...").replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
