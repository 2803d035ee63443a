"""Pictures of the training: losses of all members, and their distances from held-out events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from calorefine.pages.style import COLORS, canvas

LOOKS = {  # color, width, what the legend says
    "nominal": ("black", 2.0, "nominal"),
    "replica": (COLORS[0], 0.9, "bootstrap replicas"),
    "seed": (COLORS[1], 1.2, "other seeds"),
    "failed": (COLORS[3], 1.6, "failed"),
}
STARTING = 0.2  # of the validations, which don't set the vertical range


def history_figure(losses: Mapping[str, Sequence[float]], failed: Set[str]) -> bytes:
    """Draw the validation losses.

    Args:
        losses: member to its losses, in order; empty ones are left out.
        failed: members that didn't train well.

    Returns:
        The picture as SVG.
    """
    later = [value for own in losses.values() for value in own[int(STARTING * len(own)) :] if np.isfinite(value)]
    with canvas() as (out, axes):
        for name in sorted(losses, key=lambda name: name == "nominal"):
            color, width, _ = LOOKS[_look(name, failed)]
            style = "--" if name in failed else "-"
            axes.plot(np.arange(1, len(losses[name]) + 1), losses[name], style, color=color, linewidth=width)
        margin = 0.08 * (max(later) - min(later)) or 0.5
        axes.set(ylim=(min(later) - margin, max(later) + margin), xlabel="validation", ylabel="validation loss")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _name_looks(axes, [_look(name, failed) for name in losses])
    return out.getvalue()


def distance_figure(points: Sequence[tuple[str, float, float]], failed: Set[str]) -> bytes:
    """Draw each member's distance with its error.

    Args:
        points: name, value and error of each.
        failed: members that didn't train well.

    Returns:
        The picture as SVG.
    """
    with canvas() as (out, axes):
        for place, (name, value, error) in enumerate(points):
            color = LOOKS[_look(name, failed)][0]
            axes.errorbar(place, value, error, fmt="x" if name in failed else "o", color=color, markersize=4)
        axes.axhline(0, color="k", linewidth=0.8)
        axes.set(xlim=(-0.7, len(points) - 0.3), xlabel="member", ylabel="energy distance")
        axes.set_xticks([])
        _name_looks(axes, [_look(name, failed) for name, _, _ in points])
    return out.getvalue()


def _look(name: str, failed: Set[str]) -> str:
    return "failed" if name in failed else name.partition("_")[0]


def _name_looks(axes: Axes, used: Sequence[str]) -> None:
    """Entries of the legend, each kind once."""
    for kind, (color, width, label) in LOOKS.items():
        if kind in used:
            axes.plot([], [], color=color, linewidth=width, label=label)
