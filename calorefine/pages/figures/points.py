"""Histories of trainings, values with names, and pulls of many bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from calorefine.pages.style import COLORS, RED, canvas, escaped, points, styled, svg
from calorefine.stats import FloatArray

STARTING = 0.2  # of a history, which doesn't set the vertical range
MOST_NAMES = 4
LEAST_REACH = 3.5


@styled
def history_figure(histories: Mapping[str, Sequence[float]], looks: Mapping[str, tuple[str, str, float]]) -> bytes:
    """Draw what became smaller during a training, as SVG.

    Args:
        histories: name to its values, in order; the last one is drawn on top.
        looks: name to its text in the legend, color and width of the line; wide dashes tell those that failed.
    """
    later = [x for values in histories.values() for x in values[int(STARTING * len(values)) :] if np.isfinite(x)]
    figure, ((axes,),) = canvas()
    for name, values in histories.items():
        label, color, width = looks[name]
        style = "--" if label == "failed" else "-"
        axes.plot(np.arange(1, len(values) + 1), values, style, color=color, linewidth=width, label=label)
    margin = 0.08 * (max(later) - min(later)) or 0.5
    axes.set(ylim=(min(later) - margin, max(later) + margin), xlabel="validation", ylabel="validation loss")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _once(axes)
    return svg(figure)


@styled
def named_figure(
    values: Mapping[str, tuple[float, float]],
    ylabel: str,
    *,
    level: tuple[float, str],
    looks: Mapping[str, tuple[str, str, float]] | None = None,
) -> bytes:
    """Draw a value with its error for each name, as SVG.

    Args:
        values: name to value and error; a few names stand at the axis.
        ylabel: what they are.
        level: where to draw a line, and its name; no name, no entry in the legend.
        looks: name to its text in the legend, color and width; each has its own, if left out.
    """
    figure, ((axes,),) = canvas()
    axes.axhline(level[0], color="gray", linewidth=1.0, linestyle="--", **({"label": level[1]} if level[1] else {}))
    for place, (name, (value, error)) in enumerate(values.items()):
        label, color, _ = looks[name] if looks else (name, COLORS[place % len(COLORS)], 0)
        index = place if looks is None else {"failed": 2}.get(label, 0)
        points(axes, place, value, error, index=index, color=color, label=label, markersize=5, capsize=3)
    names = [escaped(name) for name in values]
    axes.set(xlim=(-0.6, len(values) - 0.4), ylabel=ylabel, xlabel="" if len(names) <= MOST_NAMES else "member")
    axes.set_xticks(range(len(names)) if len(names) <= MOST_NAMES else [], names if len(names) <= MOST_NAMES else [])
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)
    axes.margins(y=0.1)
    _once(axes)
    return svg(figure)


def _once(axes: Axes) -> None:
    """Leave each text in the legend once."""
    handles, labels = axes.get_legend_handles_labels()
    for handle, label, place in zip(handles, labels, range(len(labels)), strict=True):
        if label in labels[:place]:
            handle.set_label("_")


@styled
def pull_figure(pulls: FloatArray, flagged: NDArray[np.bool_], sizes: Mapping[str, int]) -> bytes:
    """Draw the pulls of all bins, those that are off in red, with a line between observables, as SVG.

    Args:
        pulls: (n,), NaN where there is no error.
        flagged: (n,).
        sizes: observable to its number of bins.
    """
    edges, shown = np.arange(len(pulls) + 1) + 0.5, np.nan_to_num(pulls)
    reach = max(LEAST_REACH, 1.12 * float(np.abs(shown).max(initial=0.0)))
    figure, ((axes,),) = canvas()
    for level, shade in ((2, "0.93"), (1, "0.85")):
        axes.axhspan(-level, level, color=shade, linewidth=0, zorder=0)
    for mask, color, name in ((~flagged, COLORS[0], "bins"), (flagged, RED, "off")):
        if mask.any():
            axes.bar(np.flatnonzero(mask) + 1, shown[mask], width=0.8, color=color, label=name)
    axes.axhline(0, color="k", linewidth=0.8)
    name_blocks(axes, sizes)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(-reach, reach), ylabel="difference / error")
    return svg(figure)


def name_blocks(axes: Axes, sizes: Mapping[str, int], *, both: bool = False) -> None:
    """Name groups of bins at the middles, with lines between them; on both axes of a matrix."""
    ends = np.cumsum([0, *sizes.values()]) + 0.5
    middles, names = 0.5 * (ends[1:] + ends[:-1]), [escaped(name) for name in sizes]
    axes.set_xticks(middles, names, rotation=0 if len(names) < 5 else 60)
    axes.tick_params(axis="x", which="both", length=0)
    for end in ends[1:-1]:
        axes.axvline(end, color="k", linewidth=0.8, linestyle="-" if both else ":")
        if both:
            axes.axhline(end, color="k", linewidth=0.8)
    if both:
        axes.set_yticks(middles, names, rotation=90, va="center")
        axes.tick_params(axis="y", which="both", length=0)
