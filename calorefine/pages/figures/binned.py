"""Pictures of `calorefine validate`: efficiencies against the context, and widths in its bins, with ratio panels."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from calorefine.pages.figures.overlay import PANELS_PER_ROW, STYLE
from calorefine.stats import FloatArray
from calorefine.twosample.binned import BinWidths, Comparison, ContextBin, Efficiencies, significant

SHOWN_LEVELS = ("0.1", "0.5", "0.9")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by all
MARKERS = ("o", "s", "^", "v", "D", "P")
LARGEST_RATIO = 0.5  # of a ratio's distance from 1 that is shown


def efficiency_figure(
    feature: str, efficiencies: Mapping[str, Efficiencies], bins: Mapping[str, list[ContextBin]]
) -> Figure:
    """Draw the fraction of events above cuts on a feature against each context column, and the ratio to the reference.

    Args:
        feature: its name.
        efficiencies: level of the cut to its efficiencies, from `binned_efficiencies`.
        bins: context column to its bins.
    """
    with mpl.rc_context(STYLE):
        width, height = 3.4 * max(len(bins), 2), 4.3
        figure = Figure(figsize=(width, height))
        panels = figure.subplots(2, len(bins), squeeze=False, sharex="col", sharey="row", height_ratios=[2, 1])
        _margins(figure, top=0.62, hspace=0.08)
        for column, (name, own) in enumerate(bins.items()):
            for index, level in enumerate(SHOWN_LEVELS):
                chosen = efficiencies[level]
                label = f"above {chosen.cut:.3g}, the {level} quantile"
                _efficiency(panels[0, column], chosen.bins[name], own, index=index, label=label)
                _ratio(panels[1, column], chosen.bins[name], own, index=index)
            panels[1, column].axhline(1, color="gray", linewidth=0.8)
            panels[1, column].set_xlabel(_plain(name))
            panels[1, column].xaxis.set_major_locator(MaxNLocator(5))
        panels[0, 0].set(ylabel="efficiency", ylim=(-0.03, 1.08))
        panels[1, 0].set(ylabel="gen. / ref.", ylim=(1 - LARGEST_RATIO, 1 + LARGEST_RATIO), yticks=[0.6, 1.0, 1.4])
        title = f"{_plain(feature)}: points reference, lines generated"
        figure.text(0.62 / width, 1 - 0.12 / height, title, va="top", fontsize=10)
        _legend(figure, top=0.28)
    return figure


def widths_figure(moments: Mapping[str, Mapping[str, list[BinWidths]]], bins: Mapping[str, list[ContextBin]]) -> Figure:
    """Draw the ratio of the 68 % half-widths, generated over reference, of each feature in the bins of the context.

    Args:
        moments: feature to context column to its moments, from `binned_moments`.
        bins: context column to its bins, whose numbers are the horizontal axis.
    """
    columns = min(len(moments), PANELS_PER_ROW)
    rows = -(-len(moments) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * max(columns, 2), 2.4 * rows + 0.9))
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
        _margins(figure, top=0.62, hspace=0.22)
        largest = max(map(len, bins.values()))
        for number, (axes, feature) in enumerate(zip(panels.flat, moments, strict=False)):
            _widths(axes, feature, moments[feature], bins)
            if number + columns >= len(moments):
                axes.tick_params(labelbottom=True)
                axes.set_xlabel("bin of the context column")
            if number % columns == 0:
                axes.set_ylabel("half-width ratio")
        for axes in panels.flat[len(moments) :]:
            axes.set_visible(False)
        reach = _reach([one.half_width for f in moments.values() for lists in f.values() for one in lists])
        panels[0, 0].set(xlim=(0.5, largest + 0.5), ylim=(1 - reach, 1 + reach), xticks=range(1, largest + 1))
        panels[0, 0].tick_params(which="minor", bottom=False, top=False)
        _legend(figure, top=0.05)
    return figure


def _widths(
    axes: Axes, feature: str, moments: Mapping[str, list[BinWidths]], bins: Mapping[str, list[ContextBin]]
) -> None:
    """One feature's panel."""
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)
    for index, name in enumerate(bins):
        ratio, error = _values([one.half_width for one in moments[name]], "ratio")
        place = np.arange(1.0, len(ratio) + 1) + 0.5 * ((index + 1) / (len(bins) + 1) - 0.5)
        _points(axes, place, ratio, error, index=index, label=_plain(name))
    axes.set_title(_plain(feature), loc="left", fontsize=10, pad=4)


def _efficiency(axes: Axes, comparisons: list[Comparison], bins: list[ContextBin], *, index: int, label: str) -> None:
    """Reference as points, generated as a line with a band."""
    edges = np.array([bins[0].low, *(one.high for one in bins)])
    color = COLORS[index]
    made, error = _values(comparisons, "generated")
    axes.stairs(made + error, edges, baseline=made - error, fill=True, color=color, alpha=0.3, linewidth=0)
    axes.stairs(made, edges, color=color, linewidth=1.2, baseline=None)
    target, error = _values(comparisons, "reference")
    _points(axes, np.array([one.center for one in bins]), target, error, index=index, label=label)
    if edges[-1] > edges[0]:
        axes.set_xlim(edges[0], edges[-1])


def _ratio(axes: Axes, comparisons: list[Comparison], bins: list[ContextBin], *, index: int) -> None:
    """Ratios where the reference is known; those out of the panel as an open mark at its edge."""
    ratio, error = _values(comparisons, "ratio")
    ratio[[not significant(one) for one in comparisons]] = np.nan
    widths = np.array([one.high - one.low for one in bins])
    place = np.array([one.center for one in bins]) + 0.1 * (index - 1) * widths
    _points(axes, place, ratio, error, index=index)
    for beyond, edge in (
        (ratio > 1 + LARGEST_RATIO, 1 + LARGEST_RATIO),
        (ratio < 1 - LARGEST_RATIO, 1 - LARGEST_RATIO),
    ):
        y = np.full(int(beyond.sum()), edge)
        color = COLORS[index]
        axes.scatter(
            place[beyond], y, s=18, marker=MARKERS[index], facecolors="white", edgecolors=color, clip_on=False, zorder=5
        )


def _points(
    axes: Axes, x: FloatArray, y: FloatArray, error: FloatArray, *, index: int, label: str | None = None
) -> None:
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    axes.errorbar(x, y, error, fmt=marker, color=color, markersize=3.5, elinewidth=1.0, label=label)


def _margins(figure: Figure, *, top: float, hspace: float) -> None:
    """Margins in inches."""
    width, height = figure.get_size_inches()
    sides = {"left": 0.62 / width, "right": 1 - 0.12 / width, "bottom": 0.55 / height, "top": 1 - top / height}
    figure.subplots_adjust(**sides, wspace=0.08, hspace=hspace)


def _legend(figure: Figure, *, top: float) -> None:
    """One row, so many inches below the upper edge."""
    width, height = figure.get_size_inches()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    place = (0.45 / width, 1 - top / height)
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=place, ncols=len(labels), frameon=False)


def _reach(comparisons: list[Comparison]) -> float:
    """Half a range around 1 that holds the ratios with most of their errors, as far as `LARGEST_RATIO`."""
    ratio, error = _values(comparisons, "ratio")
    known = (np.abs(ratio - 1) + error)[np.isfinite(ratio)]
    return min(max(1.1 * float(known.max(initial=0.0)), 0.06), LARGEST_RATIO)


def _values(comparisons: list[Comparison], name: str) -> tuple[FloatArray, FloatArray]:
    """Values and errors, NaN where not defined, which is not drawn."""
    values = [[getattr(one, key) for key in (name, f"{name}_error")] for one in comparisons]
    found = np.array(values, dtype=np.float64)
    return found[:, 0], found[:, 1]


def _plain(text: str) -> str:
    """Keep a name from being read as a formula or left out of the legend."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped
