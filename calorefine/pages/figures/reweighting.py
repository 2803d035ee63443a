"""Pictures of the diagnostics: columns before and after, log ratios, mean weights at given context."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from calorefine.pages.figures.weights import COLORS, STYLE, WIDTH
from calorefine.reweighting.summary import Histogram, MeanWeightBin
from calorefine.stats import FloatArray

LOOKS = {  # color, line
    "reference": ("black", "none"),
    "generated": (COLORS[0], "--"),
    "reweighted": (COLORS[1], "-"),
}


def histogram_figure(histogram: Histogram, label: str, *, log: bool = False) -> bytes:
    """Draw the shares of samples: points with errors for the reference, lines for the others.

    Args:
        histogram: of samples named as in `LOOKS`.
        label: of the axis.
        log: logarithmic shares; bins of sums that are not positive are left out.

    Returns:
        The picture as SVG.
    """
    edges = np.asarray(histogram.edges)
    with _canvas() as (out, axes):
        for name, values in histogram.values.items():
            color, line = LOOKS[name]
            if line == "none":
                _points(axes, edges, values, histogram.errors[name], name)
            else:
                axes.stairs(values, edges, color=color, linestyle=line, linewidth=1.6, label=name)
        if log:
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.5 * _smallest(histogram))
        else:
            axes.axhline(0, color="k", linewidth=0.8)
        axes.set(xlim=(edges[0], edges[-1]), xlabel=label.replace("$", r"\$"))
        axes.set_ylabel(f"fraction / {edges[1] - edges[0]:.3g}")
    return out.getvalue()


def _smallest(histogram: Histogram) -> float:
    """Smallest share that is drawn and not an accident of signed weights."""
    shares = [v for name in histogram.values for v in _significant(histogram, name)]
    return max(min(shares, default=1e-6), 1e-7)


def _significant(histogram: Histogram, name: str) -> list[float]:
    pairs = zip(histogram.values[name], histogram.errors[name], strict=True)
    return [value for value, error in pairs if value > 0 and value >= 0.9 * error]


def mean_weight_figure(label: str, bins: Sequence[MeanWeightBin]) -> bytes:
    """Draw the mean weight in bins of a context column.

    Args:
        label: of the axis.
        bins: of one column.

    Returns:
        The picture as SVG.
    """
    centers = np.array([0.5 * (one.low + one.high) for one in bins])
    halves = np.array([0.5 * (one.high - one.low) for one in bins])
    with _canvas() as (out, axes):
        means, errors = [one.mean for one in bins], [one.error for one in bins]
        axes.errorbar(
            centers,
            means,
            xerr=halves,
            yerr=errors,
            color=COLORS[1],
            marker="o",
            markersize=3.5,
            linestyle="none",
            elinewidth=1.1,
            label="generated events",
        )
        axes.margins(x=0.04)
        axes.axhline(1, color="k", linewidth=0.8)
        axes.set(xlabel=label.replace("$", r"\$"), ylabel="mean factor")
    return out.getvalue()


def _points(axes: Axes, edges: FloatArray, values: Sequence[float], errors: Sequence[float], name: str) -> None:
    shown = np.asarray(errors) > 0
    axes.errorbar(
        (0.5 * (edges[1:] + edges[:-1]))[shown],
        np.asarray(values)[shown],
        np.asarray(errors)[shown],
        color="black",
        marker="o",
        markersize=3,
        linestyle="none",
        elinewidth=1.0,
        label=name,
    )


@contextmanager
def _canvas() -> Iterator[tuple[io.BytesIO, Axes]]:
    """Axes to draw on; what is drawn is written with its legend above when done."""
    out = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.use_sticky_edges = False
        yield out, axes
        figure.legend(loc="outside upper center", ncols=3, handlelength=1.6, columnspacing=1.2)
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
