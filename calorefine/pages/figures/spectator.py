"""Pictures of spectator fits: data, species and total above, pulls below."""

from __future__ import annotations

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from calorefine.weights.splot_fit import SPlotFit


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
    style = {key: value for key, value in mplhep.style.ATLAS.items() if not key.startswith(("font", "mathtext"))}
    with mpl.rc_context({**style, "font.size": 13, "legend.frameon": False, "figure.constrained_layout.use": False}):
        figure = Figure(figsize=(8, 7))
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 1, height_ratios=(3, 1), hspace=0.06, left=0.13, right=0.97, top=0.95, bottom=0.1)
        above = figure.add_subplot(grid[0])
        below = figure.add_subplot(grid[1], sharex=above)
        _draw_fit(above, fit, unit or _unit(fit.spectator))
        if title:
            above.text(0.03, 0.94, title, transform=above.transAxes, va="top")
        _draw_pulls(below, fit, unit or _unit(fit.spectator))
    return figure


def _draw_fit(axes: Axes, fit: SPlotFit, unit: str) -> None:
    low, high = fit.mixture.low, fit.mixture.high
    widths, centers = np.diff(fit.edges), (fit.edges[1:] + fit.edges[:-1]) / 2
    width = float(np.min(widths))
    scale = width / widths
    m = np.linspace(low, high, 1000)
    densities = {name: density * width for name, density in fit.densities(m).items()}
    error = np.sqrt(fit.observed) * scale
    axes.errorbar(centers, fit.observed * scale, error, widths / 2, fmt="k.", markersize=5, elinewidth=1, label="data")
    axes.plot(m, np.sum(list(densities.values()), axis=0), color="tab:red", label="fit")
    styles = ("--", "-.", ":", (0, (5, 1)))
    for index, (name, density) in enumerate(densities.items()):
        label = rf"{name}: ${fit.yields[name]:.0f} \pm {fit.yield_error(name):.0f}$"
        axes.plot(m, density, linestyle=styles[index % len(styles)], color=f"C{index}", label=label)
    axes.set(ylabel=f"events / {width:.3g} {unit}".rstrip(), xlim=(low, high))
    axes.set_ylim(0, 1.25 * float(np.max(fit.observed * scale)))
    axes.tick_params(labelbottom=False)
    title = rf"{fit.n_events} events, {fit.method}; $\chi^2$/ndf = {fit.chi2:.1f}/{fit.ndf}, $p$ = {fit.p_value:.2g}"
    axes.set_title(title, loc="left", fontsize=12)
    axes.legend(loc="upper right")


def _draw_pulls(axes: Axes, fit: SPlotFit, unit: str) -> None:
    axes.stairs(fit.pulls, fit.edges, fill=True, color="0.6")
    for level in (-3, 0, 3):
        axes.axhline(level, color="k", linewidth=0.8, linestyle="-" if level == 0 else ":")
    reach = max(4.0, float(np.max(np.abs(fit.pulls))) + 1)
    axes.set(
        ylim=(-reach, reach),
        yticks=(-3, 0, 3),
        ylabel="pull",
        xlabel=f"{fit.spectator} [{unit}]" if unit else fit.spectator,
    )


def _unit(name: str) -> str:
    """Unit by the suffix of a name; an empty string for none.

    >>> _unit("m_ee_gev")
    'GeV'
    """
    units = {"gev": "GeV", "mev": "MeV", "tev": "TeV", "mm": "mm", "ns": "ns"}
    return units.get(name.rpartition("_")[2].lower(), "")
