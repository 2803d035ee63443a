"""Values in bins, with ratios below: distributions, efficiencies, widths, errors, means and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from calorefine.pages import style
from calorefine.pages.style import SAMPLES, escaped, styled
from calorefine.pages.texts import MOST_TICKS, Names
from calorefine.shares import Shares, middles, spans_decades
from calorefine.stats import FloatArray
from calorefine.text import number

PANELS_PER_ROW = 4
STEPS = [1, 2, 2.5, 5, 10]  # of ticks
LEAST_REACH, MOST_REACH = 0.02, 0.5  # of a ratio's distance from 1 that is shown
FILLED = 0.02  # of the largest value: bins below don't set a range


@dataclass(frozen=True)
class Curve:
    """One row of values, one for each bin or each point.

    Attributes:
        label: in the legend, once for each text.
        values: (b,), NaN where nothing is drawn.
        errors: (b,) of points.
        line: style of a line with a step at each edge; style.points, if empty.
        color: of line, points and bands.
        index: of the mark of points.
        x: (b,) places of style.points, the centers of the bins if left out; a line through these isn't stepped.
        bands: `low` (b,) and `high` (b,) of each, and options of `style.band`.
        options: of the line or the points.
    """

    label: str
    values: FloatArray
    errors: FloatArray | None = None
    line: Any = ""
    color: str = "black"
    index: int = 0
    x: FloatArray | None = None
    bands: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, axes: Axes, edges: FloatArray) -> None:
        """Draw bands first."""
        for one in self.bands:
            style.band(axes, edges, **{"color": self.color, **one})
        x, look = self.places(edges), {"color": self.color, "label": self.label, **self.options}
        if not self.line:
            style.points(axes, x, self.values, self.errors, index=self.index, **{"zorder": 3, **look})
        elif self.x is None:
            style.steps(axes, edges, self.values, linestyle=self.line, **look)
        else:
            axes.plot(x, self.values, linestyle=self.line, **{**look, "label": escaped(self.label) or "_"})

    def places(self, edges: FloatArray) -> FloatArray:
        """Where the points are (b,)."""
        return middles(edges) if self.x is None else self.x

    def over(self, denominator: FloatArray) -> Curve:
        """Divide by other values (b,), NaN where they aren't known."""
        bands = [{k: v / denominator if k in ("low", "high") else v for k, v in one.items()} for one in self.bands]
        errors = None if self.errors is None else np.abs(self.errors / denominator)
        return replace(self, values=self.values / denominator, errors=errors, bands=bands)

    def away(self) -> FloatArray:
        """How far values with errors, or bands, are from 1 (b,)."""
        ends = [self.values + (0 if self.errors is None else sign * self.errors) for sign in (-1, 1)]
        ends += [one[k] for one in self.bands for k in ("low", "high")]
        away: FloatArray = np.max(np.abs(np.array(ends) - 1), axis=0)
        return away


@dataclass(frozen=True)
class Panel:
    """Curves over the same bins, with ratios below if there are some.

    Attributes:
        edges: (b + 1,); halves of odd numbers where the axis counts something.
        curves: in the order of the legend.
        xlabel: of the horizontal axis.
        ylabel: of the vertical one.
        ratios: curves of the lower panel.
        ratio_label: of its vertical axis.
        level: where to draw a line.
        log: logarithmic values; bins of values that are not positive are left out.
        title: above.
        options: of the upper axes, as `ylim`.
        reach: half of the range around 1 of the ratios; what holds most of them, if left out.
        percent: whether values are shares, to be written in percent.
        blocks: group of bins to its size; the axis names them, with lines between them.
    """

    edges: FloatArray
    curves: Sequence[Curve]
    xlabel: str
    ylabel: str
    ratios: Sequence[Curve] = ()
    ratio_label: str = ""
    level: float | None = 0.0
    log: bool = False
    title: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    reach: float | None = None
    percent: bool = False
    blocks: Mapping[str, int] | None = None

    def draw(self, upper: Axes, lower: Axes | None = None) -> None:
        """Draw all curves."""
        for curve in self.curves:
            curve.draw(upper, self.edges)
        if self.level is not None:
            upper.axhline(self.level, color="k", linewidth=0.8)
        whole = bool(np.all(self.edges % 1 == 0.5))  # numbers, not values
        if lower is not None and not upper.get_shared_x_axes().joined(upper, lower):
            lower.sharex(upper)
        if spans_decades(self.edges):
            upper.set_xscale("log")
        else:
            upper.xaxis.set_major_locator(MaxNLocator(MOST_TICKS, steps=STEPS, integer=whole))
        for axes in (upper, lower) if lower is not None else (upper,):
            if whole:
                axes.tick_params(axis="x", which="minor", bottom=False, top=False)
            if self.edges[-1] > self.edges[0]:
                axes.set_xlim(self.edges[0], self.edges[-1])
        upper.set(ylabel=escaped(self.ylabel), **self.options)
        if "ylim" in self.options:
            mark_beyond(upper, self.curves, self.edges)
        if self.percent:
            upper.yaxis.set_major_formatter(PercentFormatter(1.0))
        if self.log:
            upper.set_yscale("log")
            upper.set_ylim(bottom=0.5 * self._smallest())
        if self.title:
            upper.set_title(escaped(self.title), loc="left", pad=4)
        if lower is not None:
            upper.tick_params(labelbottom=False)
            self._draw_ratios(lower)
        (lower or upper).set_xlabel(escaped(self.xlabel))

    def _draw_ratios(self, axes: Axes) -> None:
        """Ratios around 1."""
        reach = reach_of(self.ratios) if self.reach is None else self.reach
        axes.axhline(1, color="gray", linewidth=0.8)
        for curve in self.ratios:
            replace(curve, label="").draw(axes, self.edges)
        axes.set(ylabel=self.ratio_label, ylim=(1 - reach, 1 + reach))
        mark_beyond(axes, self.ratios, self.edges)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS, prune="both"))

    def _smallest(self) -> float:
        """Smallest value that is drawn and not an accident of signed weights."""
        each = [
            curve.values[curve.values >= 0.9 * (0 if curve.errors is None else curve.errors)] for curve in self.curves
        ]
        values = np.concatenate(each)
        return max(float(values[values > 0].min(initial=np.inf)), 1e-7) if (values > 0).any() else 1e-6


def mark_beyond(axes: Axes, curves: Sequence[Curve], edges: FloatArray) -> None:
    """Draw points beyond the axes as open marks at their edge."""
    low, high = axes.get_ylim()
    for curve in curves:
        for end, beyond in ((low, curve.values < low), (high, curve.values > high)) if not curve.line else ():
            look: dict[str, Any] = {"facecolors": "white", "edgecolors": curve.color, "s": 16, "clip_on": False}
            axes.scatter(curve.places(edges)[beyond], np.full(int(beyond.sum()), end), zorder=5, **look)


def name_blocks(axes: Axes, sizes: Mapping[str, int], *, both: bool = False) -> list[Names]:
    """Name groups of bins at the middles, with lines between them; on both axes of a matrix."""
    ends = np.cumsum([0, *sizes.values()]) + 0.5
    for end in ends[1:-1]:
        axes.axvline(end, color="k", linewidth=0.8, linestyle="-" if both else ":")
        if both:
            axes.axhline(end, color="k", linewidth=0.8)
    axes.tick_params(axis="both" if both else "x", which="both", length=0)
    named = (axes.xaxis, axes.yaxis) if both else (axes.xaxis,)
    return [Names(axis, 0.5 * (ends[1:] + ends[:-1]), [escaped(name) for name in sizes]) for axis in named]


def reach_of(ratios: Sequence[Curve], *, most: float = MOST_REACH) -> float:
    """Half of a range around 1 that holds most ratios with their errors."""
    away = np.concatenate([np.zeros(0), *(curve.away() for curve in ratios)])
    away = away[np.isfinite(away)]
    return float(np.clip(1.15 * np.quantile(away, 0.97), LEAST_REACH, most)) if len(away) else most


def filled(values: ArrayLike) -> Any:
    """Bins (b,) that have some content."""
    size = np.abs(np.asarray(values, np.float64))
    return size > FILLED * size.max(initial=0.0)


@styled
def panel_figure(panel: Panel) -> bytes:
    """Draw one panel, with its ratios below, as SVG."""
    two = bool(panel.ratios)
    figure, axes = style.canvas(
        1 + two, size=(style.WIDTH, 4.3 if two else 3.4), sharex=True, height_ratios=[2.6, 1][: 1 + two]
    )
    panel.draw(*axes[:, 0])
    names = name_blocks(axes[0, 0], panel.blocks) if panel.blocks else []
    return style.svg(style.finished(figure, names=names))


@styled
def grid_figure(panels: Sequence[Panel], *, per_row: int = PANELS_PER_ROW, title: str = "", **shared: Any) -> Figure:
    """Draw several panels in rows, with one legend above.

    Args:
        panels: at least one; all of them have ratios, or none.
        per_row: most of them in a row.
        title: above all.
        shared: `sharey`, of matplotlib's `subplots`.
    """
    per_row = min(len(panels), per_row)
    lines, high = -(-len(panels) // per_row), 2 if panels[0].ratios else 1
    size = (3.3 * max(per_row, 2), (3.7 if high == 2 else 2.6) * lines)
    ratios = ([2.6, 1] if high == 2 else [1]) * lines
    figure, axes = style.canvas(lines * high, per_row, size=size, height_ratios=ratios, **shared)
    for index, panel in enumerate(panels):
        line, column = divmod(index, per_row)
        own = axes[line * high : (line + 1) * high, column]
        panel.draw(*own)
        if column and shared.get("sharey"):
            for one in own:
                one.set_ylabel("")
    for unused in axes.flat[len(panels) :] if high == 1 else axes[-high:, len(panels) - per_row * (lines - 1) :].flat:
        unused.set_visible(False)
    return style.finished(figure, title=title)


def shares_panel(shares: Shares, label: str, *, unit: str = "", log: bool = False) -> Panel:
    """Shares of samples: known ones as in `style.SAMPLES`, the first of others as a gray line, the rest as points."""
    edges, curves = np.asarray(shares.edges), []
    others = [name for name in shares.values if name not in SAMPLES]
    for name, values in shares.values.items():
        errors = np.asarray(shares.errors[name])
        filled_bins = np.where(errors > 0, values, np.nan)
        if name in SAMPLES:
            color, line = SAMPLES[name]
            curves.append(Curve(name, np.asarray(values) if line else filled_bins, errors, line, color))
        elif name == others[0]:
            curves.append(Curve(name, np.asarray(values), line="-", color=style.GRAY))
        else:
            index = others.index(name)
            x = within(edges, 0.25 + 0.5 * index / len(others))
            curves.append(Curve(name, np.asarray(values), errors, color=style.color(index - 1), index=index - 1, x=x))
    axis = f"{label} [{unit}]" if unit else label
    return Panel(edges, curves, axis, per_bin("fraction", edges, unit), log=log, level=None if log else 0.0)


def within(edges: FloatArray, share: float) -> FloatArray:
    """Places in all bins (b,), at a share of their width as it is seen."""
    if spans_decades(edges):
        return edges[:-1] ** (1 - share) * edges[1:] ** share
    return edges[:-1] + share * np.diff(edges)


def per_bin(what: str, edges: FloatArray, unit: str = "") -> str:
    """Label of contents of bins, with their width if that is the same in all."""
    widths = np.diff(edges)
    if not np.allclose(widths, widths[0]):
        return f"{what} / bin"
    return f"{what} / {float(number(float(widths[0]), 3)):g} {unit}".rstrip()
