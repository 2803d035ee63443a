"""Picture of differences in units of their errors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from calorefine.pages.style import COLORS, RED, canvas, plain
from calorefine.stats import FloatArray

LEAST_REACH = 3.5


def pull_figure(pulls: FloatArray, flagged: NDArray[np.bool_], sizes: Mapping[str, int]) -> bytes:
    """Draw the pulls of all bins, those that are off in red, with a line between observables.

    Args:
        pulls: (n,), NaN where there is no error.
        flagged: (n,).
        sizes: observable to its number of bins.

    Returns:
        The picture as SVG.
    """
    edges = np.arange(len(pulls) + 1) + 0.5
    shown = np.nan_to_num(pulls)
    reach = max(LEAST_REACH, 1.12 * float(np.abs(shown).max(initial=0.0)))
    with canvas() as (out, axes):
        for level, shade in ((2, "0.93"), (1, "0.85")):
            axes.axhspan(-level, level, color=shade, linewidth=0, zorder=0)
        for mask, color, name in ((~flagged, COLORS[0], "bins"), (flagged, RED, "off")):
            if mask.any():
                axes.bar(np.flatnonzero(mask) + 1, shown[mask], width=0.8, color=color, label=name)
        axes.axhline(0, color="k", linewidth=0.8)
        ends = np.cumsum([0, *sizes.values()]) + 0.5
        for end in ends[1:-1]:
            axes.axvline(end, color="k", linewidth=0.8, linestyle=":")
        axes.set_xticks(0.5 * (ends[1:] + ends[:-1]), [plain(name) for name in sizes])
        axes.tick_params(axis="x", which="both", length=0)
        axes.set(xlim=(edges[0], edges[-1]), ylim=(-reach, reach), ylabel="difference / error")
    return out.getvalue()
