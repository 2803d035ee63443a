"""Pictures of `calorefine validate` and `plot`: distributions, efficiencies against the context, widths in its bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from calorefine.pages.figures.panels import MOST_REACH, PANELS_PER_ROW, Curve, Panel, grid_figure, reach_of
from calorefine.pages.style import COLORS, SAMPLES, escaped
from calorefine.shares import spans_decades, widened
from calorefine.stats import FloatArray
from calorefine.text import number
from calorefine.twosample.binned import BinWidths, ContextBin, Efficiencies, significant
from calorefine.twosample.comparison import Comparison
from calorefine.twosample.overlay import Overlay

SHOWN_LEVELS = ("0.1", "0.5", "0.9")
RATIO = "gen. / ref."


def overlay_figure(overlays: Mapping[str, Overlay]) -> Figure:
    """Draw the distribution of each feature with the ratio generated over reference below it.

    Args:
        overlays: feature to both distributions.
    """
    return grid_figure([overlay_panel(name, one) for name, one in overlays.items()], per_row=PANELS_PER_ROW)


def overlay_panel(name: str, one: Overlay) -> Panel:
    """Distribution of a feature with the ratio generated over reference below it."""
    color, line = SAMPLES["generated"]
    curves = [
        Curve("reference", one.reference[0], one.reference[1], options={"markersize": 3}),
        Curve("generated", one.generated[0], line=line, color=color),
    ]
    ratio = Curve("", one.ratio[0], one.ratio[1], color=color, options={"markersize": 3, "marker": "."})
    return Panel(one.edges, curves, name, "events / bin", [ratio], RATIO)


def efficiency_figure(
    feature: str, efficiencies: Mapping[str, Efficiencies], bins: Mapping[str, list[ContextBin]]
) -> Figure:
    """Draw the fraction of events above cuts on a feature against each context column, and the ratio to the reference.

    Args:
        feature: its name.
        efficiencies: level of the cut to its efficiencies, from `binned_efficiencies`.
        bins: context column to its bins.
    """
    chosen = [(index, level, efficiencies[level]) for index, level in enumerate(SHOWN_LEVELS)]
    panels = []
    for column, in_bins in bins.items():
        edges = _edges(in_bins)
        curves, ratios = [], []
        for index, level, cut in chosen:
            label = f"above {number(cut.cut, 3)}, the {level} quantile"
            curves += _efficiency_curves(cut.bins[column], in_bins, index, label)
            ratios.append(_ratio_curve(cut.bins[column], in_bins, edges, index))
        options = {"ylim": (-0.03, 1.08)}
        panels.append(
            Panel(edges, curves, column, "efficiency", ratios, RATIO, None, options=options, reach=MOST_REACH)
        )
    title = f"{escaped(feature)}: points reference, lines generated"
    return grid_figure(panels, title=title, sharey="row", per_row=len(panels))


def _efficiency_curves(
    comparisons: Sequence[Comparison], bins: Sequence[ContextBin], index: int, label: str
) -> list[Curve]:
    """Reference as points, generated as a line with a band."""
    values, target = _values(comparisons, "generated")[0], _values(comparisons, "reference")
    ends = np.array([one.generated_interval or (np.nan, np.nan) for one in comparisons])
    around, color = {"low": ends[:, 0], "high": ends[:, 1]}, COLORS[index]
    places = np.array([one.center for one in bins])
    line = Curve("", values, line="-", color=color, bands=[around], options={"linewidth": 1.2})
    return [line, Curve(label, *target, color=color, index=index, x=places)]


def _edges(bins: Sequence[ContextBin]) -> FloatArray:
    """Edges (b + 1,) of bins; where the outermost ones hold a single value each, it is the middle of its bin."""
    low, high, first, last = bins[0].low, bins[-1].high, bins[0].center, bins[-1].center
    edges = np.array([low, *(one.high for one in bins)], np.float64)
    if len(bins) > 1 and (first == low or last == high):
        edges[0], edges[-1] = min(2 * first - edges[1], low), max(2 * last - edges[-2], high)
    return edges if high > low else np.array(widened(low, high, log=False))


def _ratio_curve(comparisons: Sequence[Comparison], bins: Sequence[ContextBin], edges: FloatArray, index: int) -> Curve:
    """Ratios where the reference is known, those of different cuts side by side."""
    ratio, error = _values(comparisons, "ratio")
    ratio[[not significant(one) for one in comparisons]] = np.nan
    center, shift = np.array([one.center for one in bins]), 0.1 * (index - 1)
    places = center * (edges[1:] / edges[:-1]) ** shift if spans_decades(edges) else center + shift * np.diff(edges)
    return Curve("", ratio, error, color=COLORS[index], index=index, x=places)


def widths_figure(moments: Mapping[str, Mapping[str, list[BinWidths]]], bins: Mapping[str, list[ContextBin]]) -> Figure:
    """Draw the ratio of the 68 % half-widths, generated over reference, of each feature in the bins of the context.

    Args:
        moments: feature to context column to its moments, from `binned_moments`.
        bins: context column to its bins, whose numbers are the horizontal axis.
    """
    curves: dict[str, list[Curve]] = {feature: [] for feature in moments}
    for feature, in_columns in moments.items():
        for index, column in enumerate(bins):
            values = _values([one.half_width for one in in_columns[column]], "ratio")
            places = np.arange(1.0, len(values[0]) + 1) + 0.5 * ((index + 1) / (len(bins) + 1) - 0.5)
            color = COLORS[index % len(COLORS)]
            curves[feature].append(Curve(column, *values, color=color, index=index, x=places))
    reach = reach_of([curve for group in curves.values() for curve in group])
    numbers = np.arange(1, max(map(len, bins.values())) + 1)
    options = {"ylim": (1 - reach, 1 + reach), "xticks": numbers}
    edges = np.array([*(numbers - 0.5), numbers[-1] + 0.5])
    panels = [
        Panel(edges, group, "bin of the context column", "half-width ratio", level=1.0, title=feature, options=options)
        for feature, group in curves.items()
    ]
    return grid_figure(panels, sharey=True)


def _values(comparisons: Sequence[Comparison], name: str) -> tuple[FloatArray, FloatArray]:
    """Values and errors, NaN where not defined, which is not drawn."""
    values = [[getattr(one, key) for key in (name, f"{name}_error")] for one in comparisons]
    both = np.array(values, dtype=np.float64)
    return both[:, 0], both[:, 1]
