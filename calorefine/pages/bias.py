"""Section on bias: what should agree, and in red what doesn't.

A comparison with the truth is red if a bin, corrected for their number, or the chi2 of all bins has a p-value below
0.01; the mean of the replicas, where a bin is off by more than 0.25 of their spread, with such a p-value.  One that may
be off without a bias is a warning.
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
from calorefine.systematics.bias import ALLOWED, FLAGGED_BELOW, OF_MEAN, OF_NOMINAL
from calorefine.systematics.closure import Compared
from calorefine.systematics.propagated import Agreement, Propagated
from calorefine.text import number

N_SHOWN, LEAST_REACH = 3, 3.5


def bias_section(propagated: Propagated, truth: Compared | None) -> Section:
    """Comparisons that should agree.

    Args:
        propagated: of `calorefine propagate`.
        truth: true values of its observables.
    """
    systematics = propagated.systematics
    with collected() as warned:
        comparisons = propagated.comparisons(truth)
    off = [one for one in comparisons if one.bias.off]
    sizes = {name: bins.n for name, bins in systematics.bins.items()}
    figures = [
        Picture(panel_figure(_pull_panel(one, sizes)), f"Pulls of {one.name}", f"{one.name}, in its errors.")
        for one in comparisons
    ]
    names = [one.name for one in comparisons]
    untested = [f"{one.name}, all bins together: {one.bias.untested}" for one in comparisons if one.bias.untested]
    missing = [] if OF_NOMINAL in names else ["no truth of the observables is given (truth: events)"]
    missing += [] if OF_MEAN in names else ["no bootstrap replicas, whose mean could be off"]
    missing += untested
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
    pulls, flagged = np.nan_to_num(one.bias.pulls), one.bias.exceeds
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


def _text(comparisons: Sequence[Agreement], truth: Compared | None) -> list[str]:
    if not comparisons:
        return ["There is nothing to compare: neither replicas nor a truth."]
    text = [] if any(one.bias.off for one in comparisons) else ["Nothing is off by more than its error."]
    text.append(
        f"Each difference should be 0 within its errors. It is off if a bin has a p-value below {FLAGGED_BELOW:g}, "
        "corrected for the number of bins, or the \u03c7\u00b2 of all bins has (grouped, where replicas are few). "
        f"The mean of the replicas is shown in units of their spread, of which it may be {ALLOWED:g} off: a bin is off "
        f"if it is further from the nominal than that and the error of a mean of so few replicas explain, with such a "
        "p-value: where nothing is biased by more, in less than 1 % of ensembles."
    )
    if truth is None and any(one.name == OF_NOMINAL for one in comparisons):
        text.append("The truth is that of 'calorefine propagate', before any inflation of the errors.")
    scaled = [f"{name} {number(scale)}" for name, scale in (truth.scales if truth else {}).items() if scale != 1]
    compared = "Sums of weights are compared at equal totals; true ones were multiplied by"
    return [*text, f"{compared}: {', '.join(scaled)}."] if scaled else text


def _sentence(one: Agreement, systematics: Systematics) -> str:
    """What is off, and where most."""
    bias, parts = one.bias, []
    if bias.exceeds.any():
        order = [int(k) for k in np.argsort(-np.abs(bias.pulls), kind="stable") if bias.exceeds[k]]
        shown = ", ".join(f"{_where(systematics, k)} {bias.pulls[k]:+.1f} errors" for k in order[:N_SHOWN])
        more = ", ..." if len(order) > N_SHOWN else ""
        parts.append(f"{len(order)} of {len(bias.exceeds)} bins: {shown}{more}")
    if bias.chi2 and bias.chi2.p_value < FLAGGED_BELOW:
        chi2 = f"reduced \u03c7\u00b2 {number(bias.chi2.reduced, 3)}, p {number(bias.chi2.p_value, 2)}"
        parts.append(f"all bins together: {chi2}")
    than = f"{bias.allowed:g} errors" if bias.allowed else "its error"
    return f"{one.name} is off by more than {than}: {'; '.join(parts)}."


def _where(systematics: Systematics, index: int) -> str:
    """Observable and bin of a value."""
    name, place = systematics.locate(index)
    return f"{name} in {bin_text(systematics, name, place)}"


def _verdict(one: Agreement) -> str:
    bias = one.bias
    if bias.off:
        return f"OFF: {bias.numbers()}"
    if bias.allowed and bias.above.any():
        return f"can't tell: {bias.numbers()}"
    return f"{'agrees' if bias.chi2 else 'no bin is off'}: {bias.numbers()}"


def _table(comparisons: Sequence[Agreement], systematics: Systematics) -> Table:
    def worst(one: Agreement) -> int:
        return int(np.argmax(np.nan_to_num(np.abs(one.bias.pulls))))

    return Table.of(
        "What should agree",
        comparisons,
        {
            "difference": lambda one: one.name,
            "bins that are off": lambda one: f"{int(one.bias.exceeds.sum())} of {len(one.bias.exceeds)}",
            "largest, in errors": lambda one: f"{np.nan_to_num(one.bias.pulls)[worst(one)]:+.1f}",
            "where": lambda one: _where(systematics, worst(one)),
            "reduced \u03c7\u00b2": lambda one: number(one.bias.chi2 and one.bias.chi2.reduced, 3),
            "p": lambda one: number(one.bias.chi2 and one.bias.chi2.p_value, 2),
            "verdict": lambda one: _verdict(one).partition(":")[0].lower(),
        },
        lambda one: one.bias.off,
    )


def _off_table(one: Agreement, systematics: Systematics) -> Table:
    """Bins that are off."""
    bias = one.bias
    return Table.of(
        f"{one.name}: bins that are off",
        np.flatnonzero(bias.exceeds).tolist(),
        {
            "bin": lambda k: _where(systematics, k),
            "difference": lambda k: number(float(bias.difference[k]), 3),
            "error": lambda k: number(float(bias.error[k]), 2),
            "in errors": lambda k: f"{bias.pulls[k]:+.1f}",
            "p, corrected": lambda k: number(sidak(float(bias.p_value[k]), len(bias.p_value)), 2),
        },
    )
