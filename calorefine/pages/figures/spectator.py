"""Pictures of spectator fits: data, species and total above, pulls below."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calorefine.events import Column, unit_of
from calorefine.pages.figures.panels import Curve, Panel
from calorefine.pages.style import COLORS, LINES, LONGEST, canvas, finished, shortened, steps, styled
from calorefine.text import labelled, number, with_error
from calorefine.weights.splot_fit import SPlotFit


@styled
def fit_figure(fit: SPlotFit, *, unit: str = "", title: str = "") -> Figure:
    """Draw the fitted spectator with pulls.

    Data points carry Poisson errors (the root of the count); counts are bootstrap counts if the fit used them.
    Pulls are observed minus expected over the root of expected.

    Args:
        fit: result of `SPlot.fit`.
        title: what is fitted, such as a bin of context.
        unit: of the spectator, for the axis; guessed from a suffix such as `_gev` if empty.

    Returns:
        A figure without pyplot's state; save it with ``figure.savefig(path)``.
    """
    unit = unit or unit_of(fit.spectator.lower(), Column()) or ""
    figure, ((upper,), (lower,)) = canvas(2, size=(5.4, 4.6), sharex=True, height_ratios=[3, 1])
    panel = _panel(fit, unit)
    panel.draw(upper)
    upper.tick_params(labelbottom=False)
    upper.set_xlabel("")
    goodness = f"\u03c7\u00b2/ndf = {fit.chi2:.1f}/{fit.ndf}, p = {number(fit.p_value, 2)}"
    _draw_pulls(lower, fit)
    lower.set(xlabel=panel.xlabel, ylabel="pull")
    return finished(figure, title=f"{title + ': ' if title else ''}{fit.n_events} events, {fit.method}; {goodness}")


def _panel(fit: SPlotFit, unit: str) -> Panel:
    """Data as points, densities as lines."""
    widths = np.diff(fit.edges)
    width = float(np.min(widths))
    scale = width / widths
    m = np.linspace(fit.mixture.low, fit.mixture.high, 1000)
    densities = {name: density * width for name, density in fit.densities(m).items()}
    total = np.sum(list(densities.values()), axis=0)
    data = Curve("data", fit.observed * scale, np.sqrt(fit.observed) * scale, options={"xerr": widths / 2})
    curves = [data, Curve("fit", total, line="-", color="black", x=m)]
    for index, (name, density) in enumerate(densities.items()):
        value = with_error(fit.yields[name], fit.yield_error(name))
        label = f"{shortened(name, LONGEST - len(value) - 2)}: {value}"
        look = {"color": COLORS[index % len(COLORS)], "line": LINES[1 + index % (len(LINES) - 1)]}
        curves.append(Curve(label, density, x=m, **look))
    ylabel = f"events / {width:.3g} {unit}".rstrip()
    top = {"ylim": (0, 1.1 * float(np.max((fit.observed + np.sqrt(fit.observed)) * scale)))}
    return Panel(fit.edges, curves, labelled(fit.spectator, unit), ylabel, options=top)


def _draw_pulls(axes: Axes, fit: SPlotFit) -> None:
    steps(axes, fit.edges, fit.pulls, color="0.6", fill=True, baseline=0)
    for level in (-3, 0, 3):
        axes.axhline(level, color="k", linewidth=0.8, linestyle="-" if level == 0 else ":")
    reach = max(4.0, float(np.max(np.abs(fit.pulls))) + 1)
    axes.set(ylim=(-reach, reach), yticks=(-3, 0, 3))
