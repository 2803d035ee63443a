"""Texts that fit: labels in lines, as many ticks as have room, names of groups side by side, the legend in the figure.

Widths of letters aren't known beforehand: all is measured in a layout without drawing, and mended where it is too long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

FEWEST_INTERVALS, MOST_TICKS = 1, 6
GAP = 0.06  # inches between neighbors
SPACED = 1.25  # room of a name, in its own size
LONGEST_NAME = 24  # letters of a line of a group's name
LEADER = 0.1  # inches of the lines from names to what they name


def wrapped(text: str, letters: int) -> str:
    r"""Break a text into lines of so many letters, after underscores, spaces and slashes where there are some.

    >>> wrapped("probe_isolation_energy", 16), wrapped("abcdef", 4)
    ('probe_isolation_\nenergy', 'abcd\nef')
    """
    lines = [""]
    for piece in re.findall(rf"[^_\s/]{{0,{letters - 1}}}[_\s/]|[^_\s/]{{1,{letters}}}", text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > letters:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def spread(places: NDArray[np.float64], sizes: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Places (n,), increasing, moved as little as possible for intervals of these sizes (n,) not to overlap.

    >>> spread(np.array([1.0, 1.0, 5.0]), np.ones(3), 0.0, 6.0)
    array([0.5, 1.5, 5. ])
    """
    offsets = np.cumsum(sizes) - sizes / 2
    moved = isotonic_regression(places - offsets).x
    return np.asarray(np.clip(moved, low, max(high - sizes.sum(), low)) + offsets)


class Names:
    """Names of groups instead of numbers on an axis, side by side with lines to their groups where these are narrow.

    Args:
        axis: in order of the places.
        places: (n,) middles of the groups.
        names: of each.
    """

    def __init__(self, axis: Axis, places: ArrayLike, names: Sequence[str]) -> None:
        """Keep places for the names."""
        self.axis, self.places, self.names = axis, np.asarray(places, np.float64), list(names)
        self.lines: list[Line2D] = []
        self.across = isinstance(axis, XAxis)
        axis.set_ticks(self.places, [""] * len(self.names))  # the first layout is without

    def fit(self) -> None:
        """Find places by the present size: level ones if these have room, else upright ones on a horizontal axis."""
        for line in self.lines:
            line.remove()
        self.lines = []
        size = mpl.rcParams["font.size"]
        names = [wrapped(name, LONGEST_NAME) for name in self.names]
        self._set(self.places, names, size, rotation=0.0)
        if not crowded(self.axis):
            return
        rotation = 90.0 if self.across else 0.0
        self._set(self.places, names, size, rotation)
        ends = self.axis.axes.transAxes.transform([(0, 0), (1, 1)])[:, int(not self.across)]
        if (needed := self._sizes().sum()) > ends[1] - ends[0]:
            size *= (ends[1] - ends[0]) / needed
            self._set(self.places, names, size, rotation)
        low, high = self.axis.get_view_interval()
        middles = ends[0] + (self.places - low) / (high - low) * (ends[1] - ends[0])
        order = np.argsort(middles)
        moved = np.empty_like(middles)
        moved[order] = spread(middles[order], self._sizes()[order], *ends)
        self._set(low + (moved - ends[0]) / (ends[1] - ends[0]) * (high - low), names, size, rotation)
        self._lead((middles - ends[0]) / (ends[1] - ends[0]), (moved - ends[0]) / (ends[1] - ends[0]))

    def _set(self, places: NDArray[np.float64], names: list[str], size: float, rotation: float) -> None:
        ha, va = ("center", "top") if self.across else ("right", "center")
        self.axis.set_ticks(places, names, rotation=rotation, fontsize=size, ha=ha, va=va)
        self.axis.set_tick_params(length=0, pad=4)

    @property
    def depth(self) -> float:
        """Inches that upright names take more than level ones."""
        boxes = [label.get_window_extent() for label in self.axis.get_majorticklabels()]
        upright = max(float(box.height) for box in boxes) / self.axis.axes.figure.dpi if self.lines else 0.0
        return upright + LEADER * bool(self.lines)

    def _sizes(self) -> NDArray[np.float64]:
        """Pixels that each name takes of the axis (n,), with the gap to the next."""
        return np.array([SPACED * np.ptp(_ends(label, self.axis)) for label in self.axis.get_majorticklabels()])

    def _lead(self, middles: NDArray[np.float64], moved: NDArray[np.float64]) -> None:
        """Lines from the names to what they name, all in shares of the axes."""
        axes = self.axis.axes
        self.axis.set_tick_params(pad=4 + 72 * LEADER)
        box = axes.get_window_extent()
        out = -LEADER * axes.figure.dpi / (box.height if self.across else box.width)
        for one, other in zip(middles, moved, strict=True):
            along, beside = [one, other], [0.0, out]
            x, y = (along, beside) if self.across else (beside, along)
            line = Line2D(x, y, transform=axes.transAxes, clip_on=False, color="0.45", linewidth=0.7)
            axes.add_artist(line)
            self.lines.append(line)


def legend_above(figure: Figure, title: str = "") -> None:
    """Put the legend of the first axes above them all, below a title; the figure grows by it."""
    handles, texts = figure.axes[0].get_legend_handles_labels()
    entries = dict(zip(texts, handles, strict=True))
    if not entries:
        return
    width, height = figure.get_size_inches()
    most = (width - 2 * GAP) * figure.dpi
    for rows in range(1, len(entries) + 1):
        columns = -(-len(entries) // rows)
        legend = _legend(figure, entries, title, columns)
        if _across(legend) <= most or columns == 1:
            break
        legend.remove()
    beside = _across(legend) - max(map(_length, legend.get_texts()))
    for text in legend.get_texts() if _across(legend) > most else ():
        wrap(text, most - beside, text.get_text())
    wrap(legend.get_title(), most, title)
    legend.get_title().set_multialignment("center")
    figure.set_size_inches(width, height + legend.get_window_extent().height / figure.dpi)


def _legend(figure: Figure, entries: dict[str, Artist], title: str, columns: int) -> Legend:
    options: dict[str, Any] = {"handlelength": 1.6, "columnspacing": 1.2, "borderaxespad": 0.1, "handletextpad": 0.5}
    options |= {"ncols": columns, "title": title or None}
    return figure.legend(list(entries.values()), list(entries), loc="outside upper center", **options)


def _across(legend: Legend) -> float:
    """Width of the entries of a legend, without the title."""
    title = legend.get_title()
    shown = title.get_text()
    title.set_text("")
    width = float(legend.get_window_extent().width)
    title.set_text(shown)
    return width


def fit_texts(figure: Figure, names: Sequence[Names] = ()) -> None:
    """Make labels, titles and ticks of all axes fit; what one changes may move the others, so twice."""
    plain: dict[Text, str] = {}
    for turn in range(2):
        figure.draw_without_rendering()
        for axes in figure.axes:
            if axes.get_visible():
                _fit(axes, plain)
        for one in names:
            one.fit()
        if turn == 0 and names and all(one.across for one in names):
            width, height = figure.get_size_inches()
            figure.set_size_inches(width, height + max(one.depth for one in names))


def _fit(axes: Axes, plain: dict[Text, str]) -> None:
    """Ticks first, since a common power of ten goes into the label; `plain` holds texts without breaks."""
    box = axes.get_window_extent()
    for axis in (axes.xaxis, axes.yaxis):
        _thin_out(axis)
        _move_exponent(axis)
    titles = [(title, box.width) for title in (axes.title, axes._left_title)]  # type: ignore[attr-defined]
    for text, room in ((axes.xaxis.label, box.width), (axes.yaxis.label, box.height), *titles):
        wrap(text, room, plain.setdefault(text, text.get_text()))


def _length(text: Text) -> float:
    """Pixels along the direction of reading."""
    box = text.get_window_extent()
    return float(box.height if text.get_rotation() == 90 else box.width)


def wrap(text: Text, most: float, plain: str) -> None:
    """Set a text, in lines of at most so many pixels."""
    letters = len(plain)
    text.set_text(plain)
    while letters > 1 and (length := _length(text)) > most:
        letters = max(min(letters - 1, int(letters * most / length)), 1)
        text.set_text(wrapped(plain, letters))


def crowded(axis: Axis) -> bool:
    """Whether tick labels come closer than `GAP`, or touch on a vertical axis."""
    ends = sorted(tuple(_ends(label, axis)) for label in _labels(axis))
    least = GAP * axis.axes.figure.dpi if isinstance(axis, XAxis) else 0.0
    return any(first[1] + least > second[0] for first, second in pairwise(ends))


def _labels(axis: Axis) -> list[Text]:
    """Tick labels that are seen."""
    low, high = sorted(axis.get_view_interval())
    margin, along = 1e-6 * (high - low), int(not isinstance(axis, XAxis))
    within = [one for one in axis.get_majorticklabels() if low - margin <= one.get_position()[along] <= high + margin]
    return [label for label in within if label.get_text().strip()]


def _ends(label: Text, axis: Axis) -> NDArray[np.float64]:
    """Pixels that a label has along its axis (2,)."""
    ends: NDArray[np.float64] = label.get_window_extent().get_points()[:, int(not isinstance(axis, XAxis))]
    return ends


def _thin_out(axis: Axis) -> None:
    """Fewer ticks, until their labels have room."""
    locator = axis.get_major_locator()
    for n in range(MOST_TICKS - 1, FEWEST_INTERVALS - 1, -1):
        if not crowded(axis):
            return
        if isinstance(locator, MaxNLocator):
            locator.set_params(nbins=n, min_n_ticks=1)
        elif isinstance(locator, LogLocator):
            locator.set_params(numticks=n + 1)


def _move_exponent(axis: Axis) -> None:
    """Write a common power of ten into the label, before the unit: beside the axis it would be on top of the label."""
    formatter, exponent, label = axis.get_major_formatter(), axis.get_offset_text(), axis.label.get_text()
    if not isinstance(formatter, ScalarFormatter) or not exponent.get_visible():
        return
    _labels(axis)  # makes the formatter find the power
    power = formatter.get_offset()
    if isinstance(axis, XAxis) and not label:
        exponent.set_visible(False)  # the axis below tells
    elif power and label:
        formatter.set_powerlimits((int(power.removeprefix("1e")),) * 2)  # whatever the ticks become
        name, bracket, unit = label.rpartition(" [")
        axis.label.set_text(f"{name} [{power} {unit}" if bracket and unit.endswith("]") else f"{label} [{power}]")
        exponent.set_visible(False)
