"""Picture of the classifier test."""

from __future__ import annotations

from collections.abc import Mapping

from calorefine.pages.style import COLORS, MARKERS, canvas

NO_SEPARATION = 0.5


def classifier_figure(values: Mapping[str, tuple[float, float]]) -> bytes:
    """Draw the AUC before and after, with errors.

    Args:
        values: name to AUC and its error.

    Returns:
        The picture as SVG.
    """
    with canvas() as (out, axes):
        axes.axhline(NO_SEPARATION, color="gray", linewidth=1.0, linestyle="--", label="no separation")
        for place, (name, (value, error)) in enumerate(values.items()):
            color, marker = COLORS[place], MARKERS[place]
            axes.errorbar(place, value, error, fmt=marker, color=color, markersize=6, capsize=4, label=name)
        top = max(value + 2 * error for value, error in values.values())
        low = min([NO_SEPARATION, *(value - 2 * error for value, error in values.values())])
        margin = 0.1 * (top - low)
        axes.set(xlim=(-0.6, len(values) - 0.4), ylim=(low - margin, top + margin), ylabel="AUC")
        axes.set_xticks(range(len(values)), list(values))
        axes.tick_params(axis="x", which="minor", bottom=False, top=False)
    return out.getvalue()
