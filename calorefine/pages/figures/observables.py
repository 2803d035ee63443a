"""Pictures of observables: values with bands, errors by source, covariance and correlation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from calorefine.pages.style import COLORS, canvas, panels, plain, ratio_canvas
from calorefine.stats import FloatArray
from calorefine.systematics import Systematics

Pair = tuple[FloatArray, ...]
DIVERGING = "RdBu_r"
MANY = 12  # values of a matrix that still get a number each
FILLED = 0.02  # of the largest value: bins below don't set the range of a picture
LONGEST = 30  # letters of the vertical axis' label
HATCHES = ("", "//", "..", "\\\\", "xx", "oo")


@dataclass(frozen=True)
class Shown:
    """One observable.

    Attributes:
        edges: (b + 1,) of the bins.
        nominal: (n,) values, `per_bin` for each bin.
        inner: ends (n,) of the 68 % interval.
        outer: of the 95 % interval.
        truth: values (n,) and errors (n,), if it is known.
        per_bin: values of each bin.
    """

    edges: FloatArray
    nominal: FloatArray
    inner: Pair
    outer: Pair
    truth: tuple[FloatArray, FloatArray] | None
    per_bin: int


def value_figure(shown: Shown, label: str, value_label: str) -> bytes:
    """Draw values with bands, and ratios to the nominal ones below."""
    with ratio_canvas() as (out, upper, lower):
        size = np.where(shown.nominal != 0, shown.nominal, np.nan)
        for level in range(shown.per_bin):
            _bands(upper, shown, level, np.ones_like(size))
            _bands(lower, shown, level, 1 / size)
        if shown.truth is not None:
            _truth(upper, shown, np.ones_like(size))
            _truth(lower, shown, 1 / size)
        lower.axhline(1, color="gray", linewidth=0.8)
        upper.set_ylabel(plain(value_label if len(value_label) <= LONGEST else f"{value_label[: LONGEST - 3]}..."))
        lower.set(xlim=(shown.edges[0], shown.edges[-1]), xlabel=plain(label), ylabel="ratio to nominal")
        lower.set_ylim(*_ratio_range(shown, size))
        lower.yaxis.set_major_locator(MaxNLocator(4))
        lower.xaxis.set_major_locator(MaxNLocator(7))
    return out.getvalue()


def _bands(axes: Axes, shown: Shown, level: int, scale: FloatArray) -> None:
    own = slice(level, None, shown.per_bin)
    color = COLORS[level % len(COLORS)]
    for ends, alpha, name in ((shown.outer, 0.18, "95 %"), (shown.inner, 0.35, "68 %")):
        low, high = (end[own] * scale[own] for end in ends)
        given = name if level == 0 else None
        axes.stairs(high, shown.edges, baseline=low, fill=True, color=color, alpha=alpha, linewidth=0, label=given)
    given = "nominal" if level == 0 else None
    axes.stairs(shown.nominal[own] * scale[own], shown.edges, color=color, linewidth=1.5, baseline=None, label=given)


def _truth(axes: Axes, shown: Shown, scale: FloatArray) -> None:
    if shown.truth is None:
        return
    centers = np.repeat(0.5 * (shown.edges[1:] + shown.edges[:-1]), shown.per_bin)
    values, errors = (one * scale for one in shown.truth)
    axes.errorbar(centers, values, np.abs(errors), fmt="ko", markersize=3.2, elinewidth=1.0, label="truth", zorder=3)


def _filled(nominal: FloatArray) -> NDArray[np.bool_]:
    """Bins that have some content."""
    return np.asarray(np.abs(nominal) > FILLED * np.abs(nominal).max(initial=0.0))


def _ratio_range(shown: Shown, size: FloatArray) -> tuple[float, float]:
    """Range that holds the 95 % band and the truth of all bins that have some content."""
    ends = [np.abs(end / size - 1) for end in shown.outer]
    if shown.truth is not None:
        ends.append(np.abs(shown.truth[0] / size - 1) + np.abs(shown.truth[1] / size))
    away = np.concatenate([one[_filled(shown.nominal)] for one in ends])
    reach = float(np.clip(1.1 * away.max(initial=0.0), 0.01, 1.0))
    return 1 - reach, 1 + reach


def budget_figure(systematics: Systematics, name: str, label: str) -> bytes:
    """Draw relative errors by source: each layer ends at the root of the sum of the squares so far."""
    part, bins = systematics.part(name), systematics.bins[name]
    edges = np.asarray(bins.edges) if bins.per_bin == 1 else np.arange(bins.n + 1) + 0.5
    size = np.where(systematics.nominal[part] != 0, np.abs(systematics.nominal[part]), np.nan)
    variance, below = np.zeros(bins.n), np.zeros(bins.n)
    with canvas() as (out, axes):
        for index, source in enumerate(systematics.added):
            variance = variance + np.diag(systematics.covariance(source))[part]
            top = np.nan_to_num(np.sqrt(variance) / size)
            look: dict[str, Any] = {"color": COLORS[index % len(COLORS)], "hatch": HATCHES[index % len(HATCHES)]}
            axes.stairs(top, edges, baseline=below, fill=True, alpha=0.75, linewidth=0.5, label=source, **look)
            below = top
        axes.stairs(below, edges, color="black", linewidth=1.6, baseline=None, label="total")
        for within in [one for one in systematics.sources.values() if one.part_of]:
            error = np.nan_to_num(np.sqrt(np.diag(within.covariance))[part] / size)
            axes.stairs(error, edges, color="black", linestyle="--", linewidth=1.3, baseline=None, label=within.name)
        axes.set(xlim=(edges[0], edges[-1]), xlabel=plain(label) if bins.per_bin == 1 else "number of the value")
        axes.set_ylim(0, 1.15 * max(below[_filled(systematics.nominal[part])].max(initial=0.0), 1e-6))
        axes.set_ylabel("relative error")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(7))
    return out.getvalue()


def matrices_figure(covariance: FloatArray, correlation: FloatArray, nominal: FloatArray) -> bytes:
    """Draw the relative covariance and the correlation of one observable side by side.

    Args:
        covariance: (n, n) over the products of nominal values, NaN without them.
        correlation: (n, n).
        nominal: (n,) values, of which the small ones don't set the colors' range.

    Returns:
        The picture as SVG.
    """
    chosen = _filled(nominal)
    reach = float(np.abs(covariance[np.ix_(chosen, chosen)]).max(initial=0.0)) or 1.0
    with panels(2, size=4.6) as (out, figure, axes):
        for place, (matrix, most, title) in enumerate(
            ((covariance, reach, "relative covariance"), (correlation, 1.0, "correlation"))
        ):
            drawn = _matrix(axes[place], matrix, most, title)
            figure.colorbar(drawn, ax=axes[place], shrink=0.85, extend="both" if place == 0 else "neither")
            if place == 1 and len(matrix) <= MANY:
                _write(axes[place], matrix)
    return out.getvalue()


def joint_figure(correlation: FloatArray, sizes: Mapping[str, int]) -> bytes:
    """Draw the correlation of all bins, with a line between observables."""
    with panels(1, size=8.5) as (out, figure, axes):
        drawn = _matrix(axes[0], correlation, 1.0, "")
        figure.colorbar(drawn, ax=axes[0], shrink=0.85, label="correlation")
        ends = np.cumsum([0, *sizes.values()]) + 0.5
        for end in ends[1:-1]:
            axes[0].axhline(end, color="black", linewidth=0.8)
            axes[0].axvline(end, color="black", linewidth=0.8)
        middles = 0.5 * (ends[1:] + ends[:-1])
        axes[0].set_xticks(middles, [plain(name) for name in sizes], rotation=0 if len(sizes) < 5 else 60)
        axes[0].set_yticks(middles, [plain(name) for name in sizes], rotation=90, va="center")
        axes[0].set(xlabel="", ylabel="")
    return out.getvalue()


def _matrix(axes: Axes, matrix: FloatArray, most: float, title: str) -> Any:
    n = len(matrix)
    extent = (0.5, n + 0.5, n + 0.5, 0.5)
    drawn = axes.imshow(matrix, cmap=DIVERGING, vmin=-most, vmax=most, extent=extent, interpolation="nearest")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("bin", loc="center")
    axes.set_ylabel("bin", loc="center")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.tick_params(which="both", length=0)
    axes.set_facecolor("0.8")
    return drawn


def _write(axes: Axes, matrix: FloatArray) -> None:
    """Put the numbers into the cells."""
    for (row, column), value in np.ndenumerate(matrix):
        color = "white" if abs(value) > 0.6 else "black"
        axes.text(column + 1, row + 1, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=color)
