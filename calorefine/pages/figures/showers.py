"""Pictures of showers: energies of cells where these are, in rows of layers with one scale of colors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from calorefine.geometry import Layer
from calorefine.pages import style
from calorefine.pages.style import escaped, styled
from calorefine.stats import FloatArray

DECADES = 4.0  # of energy that the colors span
RATIO_REACH = 0.5  # of the colors of ratios around 1
ENERGY_COLORS, RATIO_COLORS, EMPTY = "viridis", "RdBu_r", "0.9"
ANGLES = 72  # corners of a circle at least
SIZE, HIGH = 2.0, 1.7  # inches of a layer with its labels


@dataclass(frozen=True)
class ImageRow:
    """Layers side by side.

    Attributes:
        label: to the left.
        values: (cells,) of each layer: energies in MeV, 0 where there is none; or ratios, NaN where there is none.
        ratios: whether they are ratios.
    """

    label: str
    values: Sequence[NDArray[np.floating]]
    ratios: bool = False


@styled
def images_figure(layers: Sequence[Layer], rows: Sequence[ImageRow], titles: Sequence[str], *, label: str) -> Figure:
    """Draw layers in rows.

    Args:
        layers: of each column.
        rows: from above; those of ratios last.
        titles: of each column.
        label: of the scale of energies.
    """
    size = (SIZE * len(layers) + 1.4, HIGH * len(rows) + 0.5)
    figure, panels = style.canvas(len(rows), len(layers), size=size, sharex="col", sharey="col")
    for kind, text in ((False, label), (True, "ratio")):
        chosen = [k for k, row in enumerate(rows) if row.ratios == kind]
        if chosen:
            scale = _scale([rows[k] for k in chosen])
            drawn = [
                draw_layer(panels[k, column], layer, values, scale, RATIO_COLORS if kind else ENERGY_COLORS)
                for k in chosen
                for column, (layer, values) in enumerate(zip(layers, rows[k].values, strict=True))
            ]
            beside: dict[str, Any] = {"ax": panels[chosen].ravel().tolist(), "aspect": 14 * len(chosen)}
            figure.colorbar(drawn[0], label=text, pad=0.01, extend="both", **beside)
    _label(panels, rows, titles)
    return style.finished(figure)


def _label(panels: NDArray[Any], rows: Sequence[ImageRow], titles: Sequence[str]) -> None:
    """Titles above, labels to the left, and millimeters at the outer axes."""
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(escaped(title), pad=4)
    for axes, row in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(escaped(row.label))
    for axes in panels.flat:
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            axis.set_major_formatter(ScalarFormatter())
        axes.tick_params(labelsize=8, direction="out", top=False, right=False, length=3)
    for axes in panels[-1]:
        axes.set_xlabel("mm", labelpad=1)


def _scale(rows: Sequence[ImageRow]) -> Normalize:
    """Colors of all rows."""
    if rows[0].ratios:
        return Normalize(1 - RATIO_REACH, 1 + RATIO_REACH)
    most = max((float(np.max(values, initial=0.0)) for row in rows for values in row.values), default=0.0) or 1.0
    positive = [values[values > 0] for row in rows for values in row.values]
    least = min((float(values.min()) for values in positive if values.size), default=most)
    return LogNorm(max(min(least, most / 2), most / 10**DECADES), most)


def draw_layer(axes: Axes, layer: Layer, values: NDArray[np.floating], scale: Normalize, colors: str) -> Any:
    """Draw cells (n,): grids and rings as they are, others as marks at their centers; 0 and NaN are left gray."""
    axes.set_facecolor(EMPTY)
    axes.set_aspect("equal")
    shown = np.where(values == 0, np.nan, np.asarray(values, np.float64))
    look: dict[str, Any] = {"norm": scale, "cmap": colors, "rasterized": True}
    if layer.grid and layer.pitch_mm:
        rows, columns = layer.grid
        edges = [(np.arange(n + 1) - n / 2) * pitch for n, pitch in zip((columns, rows), layer.pitch_mm, strict=True)]
        axes.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
        return axes.pcolormesh(edges[0], edges[1], shown.reshape(rows, columns), **look)
    if layer.edges_mm:
        x, y, repeated = _rings(layer)
        axes.set(xlim=(-layer.edges_mm[-1], layer.edges_mm[-1]), ylim=(-layer.edges_mm[-1], layer.edges_mm[-1]))
        return axes.pcolormesh(x, y, np.repeat(shown.reshape(-1, len(layer.edges_mm) - 1), repeated, axis=0), **look)
    drawn = axes.scatter(layer.eta, layer.phi, c=shown, s=_mark(len(layer)), linewidths=0, plotnonfinite=False, **look)
    reach = 1.1 * max(float(np.abs([layer.eta, layer.phi]).max()), 1e-3)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    return drawn


def _rings(layer: Layer) -> tuple[FloatArray, FloatArray, int]:
    """Corners along eta and phi (angles, radii) of cells in rings, each cell divided into so many to look round."""
    radii = np.asarray(layer.edges_mm)
    n_alpha = len(layer) // (len(radii) - 1)
    repeated = -(-ANGLES // n_alpha)
    angles = np.linspace(-np.pi, np.pi, n_alpha * repeated + 1)
    return np.outer(np.cos(angles), radii), np.outer(np.sin(angles), radii), repeated


def _mark(n: int) -> float:
    """Area of a mark in square points, for so many to lie side by side in a panel."""
    return float(np.clip(0.4 * (72 * SIZE * 0.8) ** 2 / n, 2.0, 120.0))
