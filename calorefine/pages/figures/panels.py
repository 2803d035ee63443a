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

from calorefine.pages.style import (
    COLORS,
    GRAY,
    SAMPLES,
    WIDTH,
    band,
    canvas,
    escaped,
    legend_above,
    points,
    steps,
    styled,
    svg,
)
from calorefine.shares import Shares
from calorefine.stats import FloatArray

PANELS_PER_ROW = 4
SIGNIFICANT = 3.0  # errors that a denominator has to be above 0 by
LEAST_REACH, MOST_REACH = 0.02, 0.5  # of a ratio's distance from 1 that is shown
FILLED = 0.02  # of the largest value: bins below don't set a range


@dataclass(frozen=True)
class Curve:
    """One row of values, one for each bin or each point.

    Attributes:
        label: in the legend, once for each text.
        values: (b,), NaN where nothing is drawn.
        errors: (b,) of points.
        line: style of a line with a step at each edge; points, if empty.
        color: of line, points and bands.
        index: of the mark of points.
        x: (b,) places of points, the centers of the bins if left out; a line through these isn't stepped.
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
            band(axes, edges, color=self.color, **one)
        x = 0.5 * (edges[1:] + edges[:-1]) if self.x is None else self.x
        if not self.line:
            points(axes, x, self.values, self.errors, index=self.index, color=self.color, label=self.label, zorder=3,
                   **self.options)  # fmt: skip
        elif self.x is None:
            steps(axes, edges, self.values, color=self.color, linestyle=self.line, label=self.label, **self.options)
        else:
            axes.plot(x, self.values, color=self.color, linestyle=self.line, label=escaped(self.label), **self.options)

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
        edges: (b + 1,).
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

    def draw(self, upper: Axes, lower: Axes | None = None) -> None:
        """Draw all curves."""
        for curve in self.curves:
            curve.draw(upper, self.edges)
        if self.level is not None:
            upper.axhline(self.level, color="k", linewidth=0.8)
        for axes in (upper, lower) if lower is not None else (upper,):
            axes.xaxis.set_major_locator(MaxNLocator(6))
            if self.edges[-1] > self.edges[0]:
                axes.set_xlim(self.edges[0], self.edges[-1])
        upper.set(ylabel=escaped(self.ylabel), **self.options)
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
        """Ratios; those of points beyond the panel as open marks at its edge."""
        reach = reach_of(self.ratios) if self.reach is None else self.reach
        axes.axhline(1, color="gray", linewidth=0.8)
        for curve in self.ratios:
            replace(curve, label="").draw(axes, self.edges)
            x = 0.5 * (self.edges[1:] + self.edges[:-1]) if curve.x is None else curve.x
            for side in (-1, 1) if not curve.line else ():
                beyond = side * (curve.values - 1) > reach
                place = np.full(int(np.sum(beyond)), 1 + side * reach)
                look: dict[str, Any] = {"facecolors": "white", "edgecolors": curve.color, "s": 16, "clip_on": False}
                axes.scatter(x[beyond], place, zorder=5, **look)
        axes.set(ylabel=self.ratio_label, ylim=(1 - reach, 1 + reach))
        axes.yaxis.set_major_locator(MaxNLocator(4))

    def _smallest(self) -> float:
        """Smallest value that is drawn and not an accident of signed weights."""
        values = [
            value
            for curve in self.curves
            for value, error in zip(curve.values, _zeros(curve) if curve.errors is None else curve.errors, strict=True)
            if value > 0 and value >= 0.9 * error
        ]
        return max(min(values, default=1e-6), 1e-7)


def _zeros(curve: Curve) -> FloatArray:
    return np.zeros(len(curve.values))


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
    figure, axes = canvas(1 + two, size=(WIDTH, 4.3 if two else 3.4), sharex=True, height_ratios=[2.6, 1][: 1 + two])
    panel.draw(*axes[:, 0])
    return svg(figure)


@styled
def grid_figure(panels: Sequence[Panel], *, per_row: int = PANELS_PER_ROW, title: str = "", **shared: Any) -> Figure:
    """Draw several panels in rows, with one legend above.

    Args:
        panels: at least one; all of them have ratios, or none.
        per_row: most of them in a row.
        title: above all.
        shared: `sharex` and `sharey`, of matplotlib's `subplots`.
    """
    per_row = min(len(panels), per_row)
    lines, high = -(-len(panels) // per_row), 2 if panels[0].ratios else 1
    size = (3.3 * max(per_row, 2), (3.7 if high == 2 else 2.6) * lines)
    ratios = ([2.6, 1] if high == 2 else [1]) * lines
    figure, axes = canvas(lines * high, per_row, size=size, height_ratios=ratios, **shared)
    for number, panel in enumerate(panels):
        line, column = divmod(number, per_row)
        panel.draw(*axes[line * high : (line + 1) * high, column])
    for unused in axes.flat[len(panels) :] if high == 1 else axes[-high:, len(panels) - per_row * (lines - 1) :].flat:
        unused.set_visible(False)
    if title:
        figure.suptitle(escaped(title), fontsize=11)
    legend_above(figure)
    return figure


def shares_panel(shares: Shares, label: str, *, unit: str = "", log: bool = False) -> Panel:
    """Shares of samples: known ones as in `style.SAMPLES`, the first of others as a gray line, the rest as points."""
    edges, curves = np.asarray(shares.edges), []
    others = [name for name in shares.values if name not in SAMPLES]
    for name, values in shares.values.items():
        values_, errors = np.asarray(values), np.asarray(shares.errors[name])
        if name in SAMPLES:
            color, line = SAMPLES[name]
            errors = np.where(errors > 0, errors, np.nan)
            curves.append(Curve(name, values_ if line else np.where(errors > 0, values_, np.nan), errors, line, color))
        elif name == others[0]:
            curves.append(Curve(name, values_, line="-", color=GRAY))
        else:
            index = others.index(name) - 1
            shift = (others.index(name) / len(others) - 0.5) * 0.5 * np.diff(edges)
            x = 0.5 * (edges[1:] + edges[:-1]) + shift
            curves.append(Curve(name, values_, errors, color=COLORS[index % len(COLORS)], index=index, x=x))
    axis = f"{label} [{unit}]" if unit else label
    ylabel = f"fraction / {edges[1] - edges[0]:.3g} {unit}".rstrip()
    return Panel(edges, curves, axis, ylabel, log=log, level=None if log else 0.0)
