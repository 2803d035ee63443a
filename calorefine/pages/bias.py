"""Section on bias: what should agree, and in red what doesn't.

A comparison is red if a bin, corrected for their number, or the chi2 of all bins has a p-value below 0.01.  One that
may be off without a bias is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calorefine.pages.figures.panels import Curve, Panel, panel_figure
from calorefine.pages.observables import bin_text
from calorefine.pages.page import Picture, Section, Table, collected
from calorefine.pages.style import COLORS, RED
from calorefine.stats import sidak
from calorefine.systematics import Systematics
from calorefine.systematics.bias import FLAGGED_BELOW
from calorefine.systematics.propagated import OF_MEAN, OF_NOMINAL, Agreement, Propagated, Truth
from calorefine.text import number

N_SHOWN, LEAST_REACH = 3, 3.5


def bias_section(propagated: Propagated, truth: Truth | None) -> Section:
    """Comparisons that should agree.

    Args:
        propagated: of `calorefine propagate`.
        truth: true values of its observables.
    """
    systematics = propagated.systematics
    with collected() as warned:
        comparisons = propagated.comparisons(truth)
    off = [one for one in comparisons if one.bias.significant]
    sizes = {name: bins.n for name, bins in systematics.bins.items()}
    figures = [
        Picture(panel_figure(_pull_panel(one, sizes)), f"Pulls of {one.name}", f"{one.name}, in its errors.")
        for one in comparisons
    ]
    names = [one.name for one in comparisons]
    missing = [] if OF_NOMINAL in names else ["no truth of the observables is given (truth: events)"]
    missing += [] if OF_MEAN in names else ["no bootstrap replicas, whose mean could be off"]
    return Section(
        "Bias",
        _text(comparisons, truth),
        [*(f"{_sentence(one, systematics)} {one.doubt}" for one in off if one.doubt), *warned],
        [_table(comparisons, systematics), *(_off_table(one, systematics) for one in comparisons)],
        figures,
        [_sentence(one, systematics) for one in off if one.doubt is None],
        numbers=[(one.name, _verdict(one)) for one in comparisons],
        missing=missing,
    )


def _pull_panel(one: Agreement, sizes: Mapping[str, int]) -> Panel:
    """Pulls of all bins, those that are off in red."""
    pulls, flagged = np.nan_to_num(one.pulls), one.bias.flagged
    zero, curves = np.zeros(len(pulls)), []
    for level, shade in ((2, "0.93"), (1, "0.85")):
        band = {"low": zero - level, "high": zero + level, "color": shade, "alpha": 1.0}
        curves.append(Curve("", zero, line="-", bands=[band]))
    for mask, color, name in ((~flagged, COLORS[0], "bins"), (flagged, RED, "off")):
        if mask.any():
            bars = {"low": zero, "high": np.where(mask, pulls, 0.0), "alpha": 1.0, "label": name}
            curves.append(Curve("", zero, line="-", color=color, bands=[bars]))
    reach = max(LEAST_REACH, 1.12 * float(np.abs(pulls).max(initial=0.0)))
    edges = np.arange(len(pulls) + 1, dtype=np.float64) + 0.5
    options = {"ylim": (-reach, reach)}
    return Panel(edges, curves, "", "difference / error", options=options, blocks=sizes)


def _text(comparisons: Sequence[Agreement], truth: Truth | None) -> list[str]:
    if not comparisons:
        return ["There is nothing to compare: neither replicas nor a truth."]
    text = [] if any(one.bias.significant for one in comparisons) else ["Nothing is off by more than its error."]
    text.append(
        f"Each difference should be 0 within its errors. It is off if a bin has a p-value below {FLAGGED_BELOW:g}, "
        "corrected for the number of bins, or the \u03c7\u00b2 of all bins has (grouped, where replicas are few)."
    )
    if truth is None and any(one.name == OF_NOMINAL for one in comparisons):
        text.append("The truth is that of 'calorefine propagate', before any inflation of the errors.")
    scaled = [f"{name} {number(scale)}" for name, scale in (truth.scales if truth else {}).items() if scale != 1]
    compared = "Sums of weights are compared at equal totals; true ones were multiplied by"
    return [*text, f"{compared}: {', '.join(scaled)}."] if scaled else text


def _sentence(one: Agreement, systematics: Systematics) -> str:
    """What is off, and where most."""
    bias, parts = one.bias, []
    if bias.flagged.any():
        order = [int(k) for k in np.argsort(bias.p_value, kind="stable") if bias.flagged[k]]
        shown = ", ".join(f"{_where(systematics, k)} {one.pulls[k]:+.1f} errors" for k in order[:N_SHOWN])
        more = ", ..." if len(order) > N_SHOWN else ""
        parts.append(f"{len(order)} of {len(bias.flagged)} bins: {shown}{more}")
    if bias.chi2.p_value < FLAGGED_BELOW:
        chi2 = f"reduced \u03c7\u00b2 {number(bias.chi2.reduced, 3)}, p {number(bias.chi2.p_value, 2)}"
        parts.append(f"all bins together: {chi2}")
    return f"{one.name} is off by more than its error: {'; '.join(parts)}."


def _where(systematics: Systematics, index: int) -> str:
    """Observable and bin of a value."""
    name, place = systematics.locate(index)
    return f"{name} in {bin_text(systematics, name, place)}"


def _verdict(one: Agreement) -> str:
    p = number(one.bias.chi2.p_value, 2)
    if not one.bias.significant:
        return f"agrees, p {p}"
    return f"OFF: {int(one.bias.flagged.sum())} of {len(one.bias.flagged)} bins, p of all {p}"


def _table(comparisons: Sequence[Agreement], systematics: Systematics) -> Table:
    def worst(one: Agreement) -> int:
        return int(np.argmax(np.nan_to_num(np.abs(one.pulls))))

    return Table.of(
        "What should agree",
        comparisons,
        {
            "difference": lambda one: one.name,
            "bins that are off": lambda one: f"{int(one.bias.flagged.sum())} of {len(one.bias.flagged)}",
            "largest, in errors": lambda one: f"{np.nan_to_num(one.pulls)[worst(one)]:+.1f}",
            "where": lambda one: _where(systematics, worst(one)),
            "reduced \u03c7\u00b2": lambda one: number(one.bias.chi2.reduced, 3),
            "p": lambda one: number(one.bias.chi2.p_value, 2),
            "verdict": lambda one: "off" if one.bias.significant else "agrees",
        },
        lambda one: one.bias.significant,
    )


def _off_table(one: Agreement, systematics: Systematics) -> Table:
    """Bins that are off."""
    bias = one.bias
    return Table.of(
        f"{one.name}: bins that are off",
        np.flatnonzero(bias.flagged).tolist(),
        {
            "bin": lambda k: _where(systematics, k),
            "difference": lambda k: number(float(bias.difference[k]), 3),
            "error": lambda k: number(float(bias.error[k]), 2),
            "in errors": lambda k: f"{one.pulls[k]:+.1f}",
            "p, corrected": lambda k: number(sidak(float(bias.p_value[k]), len(bias.p_value)), 2),
        },
    )
