"""Covariance and correlation matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from calorefine.pages.figures.panels import name_blocks
from calorefine.pages.style import canvas, finished, styled, svg
from calorefine.pages.texts import Names
from calorefine.stats import FloatArray

MANY = 12  # values of a matrix that still get a number each


@dataclass(frozen=True)
class Matrix:
    """A matrix to draw.

    Attributes:
        values: (n, n).
        title: above.
        most: absolute value at the end of the colors.
        numbers: whether to write the values into the cells, where there are few.
        sizes: group of bins to its size; the axes then name these.
    """

    values: FloatArray
    title: str = ""
    most: float = 1.0
    numbers: bool = False
    sizes: Mapping[str, int] | None = None


@styled
def matrices_figure(matrices: Sequence[Matrix], *, size: float = 4.6) -> bytes:
    """Draw matrices side by side, each `size` inches high, as SVG."""
    figure, panels = canvas(1, len(matrices), size=(1.25 * size * len(matrices), size))
    names: list[Names] = []
    for axes, matrix in zip(panels[0], matrices, strict=True):
        n, most = len(matrix.values), matrix.most
        extent = (0.5, n + 0.5, n + 0.5, 0.5)
        image = axes.imshow(matrix.values, cmap="RdBu_r", vmin=-most, vmax=most, extent=extent, interpolation="nearest")
        axes.set_facecolor("0.8")
        axes.set_title(matrix.title)
        axes.tick_params(which="both", length=0)
        axes.minorticks_off()
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        if matrix.sizes:
            names += name_blocks(axes, matrix.sizes, both=True)
        else:
            axes.set_xlabel("bin", loc="center")
            axes.set_ylabel("bin", loc="center")
        _write(axes, matrix, size)
        beyond = bool(np.nanmax(np.abs(matrix.values), initial=0.0) > most * (1 + 1e-9))
        figure.colorbar(image, ax=axes, shrink=0.85, extend="both" if beyond else "neither")
    return svg(finished(figure, names=names))


def _write(axes: Axes, matrix: Matrix, size: float) -> None:
    """Put the numbers into the cells, as large as these allow."""
    if not matrix.numbers or len(matrix.values) > MANY:
        return
    letters = min(9.0, 72 * 0.2 * size / len(matrix.values))
    for (row, column), value in np.ndenumerate(matrix.values):
        color = "white" if abs(value) > 0.6 * matrix.most else "black"
        axes.text(column + 1, row + 1, f"{value:.2f}", ha="center", va="center", fontsize=letters, color=color)
