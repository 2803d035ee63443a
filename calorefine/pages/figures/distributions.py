"""Pictures of the features: distributions above, ratios to the reference below, with the systematic band."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from calorefine.pages.style import COLORS, plain, ratio_canvas
from calorefine.stats import FloatArray

LOOKS = {"generated": (COLORS[0], "--"), "reweighted": (COLORS[1], "-"), "reference": ("black", "")}
REACH, LEAST_REACH, SIGNIFICANT = 0.5, 0.06, 3.0


@dataclass(frozen=True)
class Drawn:
    """One sample's histogram: values (b,), statistical errors (b,) and the spread of its replicas (b,), if any."""

    values: FloatArray
    errors: FloatArray
    band: FloatArray | None


def feature_figure(samples: Mapping[str, Drawn], edges: FloatArray, label: str) -> bytes:
    """Draw one feature.

    Args:
        samples: by name; ratios are to the last one.
        edges: (b + 1,).
        label: of the horizontal axis.

    Returns:
        The picture as SVG.
    """
    name, lowest = list(samples.items())[-1]
    with ratio_canvas() as (out, upper, lower):
        for sample, one in samples.items():
            _draw(upper, sample, one, edges)
        upper.axhline(0, color="k", linewidth=0.8)
        upper.set_ylabel(f"fraction / {edges[1] - edges[0]:.3g}")
        known = lowest.values > SIGNIFICANT * lowest.errors
        ratios = {sample: _over(one, lowest.values, known) for sample, one in samples.items()}
        for sample, one in ratios.items():
            _draw(lower, sample, one, edges)
        reach = _reach(ratios)
        lower.axhline(1, color="gray", linewidth=0.8)
        lower.set(xlim=(edges[0], edges[-1]), ylim=(1 - reach, 1 + reach), xlabel=plain(label))
        lower.set_ylabel("ratio to ref." if name == "reference" else f"ratio to {name}")
        lower.xaxis.set_major_locator(MaxNLocator(6))
        lower.yaxis.set_major_locator(MaxNLocator(4))
    return out.getvalue()


def _draw(axes: Axes, sample: str, one: Drawn, edges: FloatArray) -> None:
    color, line = LOOKS[sample]
    if not line:
        centers = 0.5 * (edges[1:] + edges[:-1])
        axes.errorbar(
            centers,
            one.values,
            one.errors,
            fmt="o",
            color=color,
            markersize=2.8,
            elinewidth=0.9,
            label=sample,
            zorder=3,
        )
        return
    if one.band is not None:
        low, high = one.values - one.band, one.values + one.band
        axes.stairs(high, edges, baseline=low, fill=True, color=color, alpha=0.3, linewidth=0)
    axes.stairs(one.values, edges, color=color, linestyle=line, linewidth=1.5, baseline=None, label=sample)


def _over(one: Drawn, denominator: FloatArray, known: NDArray[np.bool_]) -> Drawn:
    """Divide, where the denominator is known."""
    scale = np.divide(1.0, denominator, out=np.full(len(denominator), np.nan), where=known)
    return Drawn(one.values * scale, one.errors * scale, None if one.band is None else one.band * scale)


def _reach(ratios: Mapping[str, Drawn]) -> float:
    """Half a range around 1 that holds most ratios."""
    away = np.concatenate([np.abs(one.values - 1) + one.errors for one in ratios.values()])
    away = away[np.isfinite(away)]
    return float(np.clip(1.15 * np.quantile(away, 0.97), LEAST_REACH, REACH)) if len(away) else REACH
