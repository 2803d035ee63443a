"""Sections of the report on weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calorefine.events import Columns, units_of
from calorefine.pages.figures.panels import Curve, Panel, panel_figure, per_bin, shares_panel
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.splot import factorization_table
from calorefine.pages.style import COLORS, LINES
from calorefine.text import interval, labelled, number, percent, short, with_error
from calorefine.weights import summary
from calorefine.weights.summary import (
    BinNumbers,
    MeanAndWidth,
    SpeciesNumbers,
    WeightNumbers,
    WeightsReport,
)

NUMBERS: dict[str, Callable[[WeightNumbers], str]] = {
    "events": lambda w: number(w.n_events),
    "events of weight 0": lambda w: number(w.n_zero),
    "sum_w, with its error": lambda w: with_error(w.sum_w, w.sum_w_error),
    "sum_w2": lambda w: number(w.sum_w2),
    "effective number of events n_eff = (sum_w / its error)\u00b2": lambda w: number(w.n_eff),
    "n_eff / events of weight other than 0": lambda w: percent(w.n_eff_fraction),
    "mean weight": lambda w: number(w.mean),
    "smallest weight": lambda w: number(w.minimum),
    "largest weight": lambda w: number(w.maximum),
    "negative, of events of weight other than 0": lambda w: percent(w.negative_fraction),
    "sum of negative weights / sum_w": lambda w: percent(w.negative_share),
    "1 % of events with largest |w|: share of sum |w|": lambda w: percent(w.extreme_share_abs),
    "1 % of events with largest |w|: share of sum_w2": lambda w: percent(w.extreme_share_w2),
    "event with largest |w|: share of sum_w2": lambda w: percent(w.largest_share_w2),
}


def lead(report: WeightsReport) -> str:
    """First line of the page: what was selected."""
    selected = f"{report.n_events} of {report.n_rows} rows"
    return f"Tree '{report.tree}', {selected}" + (f", cut: {report.cut}" if report.cut else "")


def weights_sections(report: WeightsReport, columns: Columns) -> list[Section]:
    """Sections of the page.

    Args:
        report: the numbers.
        columns: description of the columns, for their units.
    """
    known = units_of(columns)
    units = {name: known[name.removeprefix("sum of ")] for name in report.columns}
    return [
        _summary(report),
        _columns(report, units),
        _bins(report, units),
        _sums(report),
        _factorization(report),
        _largest(report, units, columns.key_branches),
    ]


def _summary(report: WeightsReport) -> Section:
    weights = {name: one.weights for name, one in report.species.items()}
    rows = [("branch or expression", *(one.expression for one in report.species.values()))]
    rows += [(name, *(text(w) for w in weights.values())) for name, text in NUMBERS.items()]
    levels = [(f"{100 * q:g} %", *(number(w.quantiles[f"{q:g}"]) for w in weights.values())) for q in summary.QUANTILES]
    caption = "Distribution of the weights, from the smallest to the largest, on a logarithmic scale."
    picture = Picture(_weights_figure(report), f"Histogram of the weights of {', '.join(weights)}", caption)
    text = [] if report.warnings else ["Nothing conspicuous was found."]
    header = ("", *weights)
    tables = [Table("Weights of each species", header, rows), Table("Quantiles of the weight", header, levels)]
    return Section("Summary", text, report.warnings, tables, [picture])


def _weights_figure(report: WeightsReport) -> bytes:
    edges = np.asarray(report.distribution.edges)
    curves = [
        Curve(name, np.asarray(counts), line=LINES[k % len(LINES)], color=COLORS[k % len(COLORS)])
        for k, (name, counts) in enumerate(report.distribution.values.items())
    ]
    return panel_figure(Panel(edges, curves, "weight", per_bin("events", edges), log=True, level=None))


def _columns(report: WeightsReport, units: Mapping[str, str]) -> Section:
    each = [one.moments for one in report.species.values()]
    header = ("column", *(f"{name}, {what}" for name in report.species for what in ("mean", "width")))
    rows = [[labelled(name, unit), *(text for m in each for text in _moments(m[name]))] for name, unit in units.items()]
    figures = []
    for name, shares in report.columns.items():
        alt = f"Distribution of {name} weighted for {', '.join(report.species)}, and of all events unweighted"
        caption = f"{labelled(name, units[name])}; {percent(shares.outside(summary.UNWEIGHTED))} of events outside."
        figures.append(Picture(panel_figure(shares_panel(shares, name, unit=units[name])), alt, caption))
    text = [
        "Each distribution is normalized to its own sum of weights; error bars are the root of sum_w2 in each bin, and "
        "bins may be negative. The gray outline is all events without weights. Pictures span the central 99.6 % of "
        "them.",
        "Errors of means and widths are from sum_w2, for weights that are given. If the weights come from a fit to the "
        "same events, as sWeights do, these errors lack the uncertainty of the fit itself; for that, see the spread "
        "of bootstrap replicas.",
    ]
    without = [name for name, one in report.species.items() if one.weights.sum_w <= 0]
    text += [f"{name} is not drawn: its weights don't have a positive sum." for name in without]
    return Section("Columns", text, (), [Table("Weighted mean and width of each column", header, rows)], figures)


def _moments(m: MeanAndWidth) -> tuple[str, str]:
    return with_error(m.mean, m.mean_error), with_error(m.width, m.width_error)


def _bins(report: WeightsReport, units: Mapping[str, str]) -> Section:
    """Effective number of events where the analysis is differential."""
    tables = []
    for column in next(iter(report.species.values())).bins:
        header = [labelled(column, units[column])]
        header += [f"{name}, {what}" for name in report.species for what in ("sum_w", "n_eff", "n_eff/n")]
        each = list(zip(*(one.bins[column] for one in report.species.values()), strict=True))
        rows = [
            [_where(bins[0], last=bins is each[-1]), *(text for one in bins for text in _bin_cells(one))]
            for bins in each
        ]
        marked = [index for index, bins in enumerate(each) if any(one.sum_w <= 0 for one in bins)]
        tables.append(Table(f"Weights in bins of {column}", header, rows, marked))
    text = [
        "What is measured in bins of context has the statistics of the bin. "
        f"{summary.N_BINS} bins hold equal numbers of events (unweighted; a column of few different values has a bin "
        "for each); n counts events of weight other "
        "than 0. Rows where the weights of a species don't have a positive sum are pointed out.",
        f"Smallest n_eff: {', '.join(_least(name, one) for name, one in report.species.items())}.",
    ]
    return Section("Effective number of events by context", text if tables else ["There is no context."], (), tables)


def _bin_cells(one: BinNumbers) -> tuple[str, str, str]:
    return with_error(one.sum_w, one.sum_w_error), number(one.n_eff), percent(summary.over(one.n_eff, one.n_events))


def _where(one: BinNumbers, *, last: bool) -> str:
    return interval(one.low, one.high, closed=last)


def _least(species: str, numbers: SpeciesNumbers) -> str:
    """Where the effective number of events is smallest."""
    sizes = [
        (one.n_eff, f"{column} {_where(one, last=one is bins[-1])}")
        for column, bins in numbers.bins.items()
        for one in bins
    ]
    size, where = min(sizes, default=(None, "no bin"))
    return f"{species} {number(size)} ({where})"


def _sums(report: WeightsReport) -> Section:
    rules = report.sum_rules
    text = [f"Sum over the species for each event: {summary.sum_rule_text(rules)}."]
    if rules.largest_deviation is not None:
        text.append(
            "sWeights sum to 1 over all species of the fit. Other weights need not, and neither need sWeights if not "
            "all species are given here, or if they are multiplied by something."
        )
    if rules.yields and report.n_events != report.n_rows:
        text.append(
            "Yields are those of the fit to the whole file; since rows are left out here, sums should be smaller."
        )
    table = Table.of(
        "Sums of the weights and yields of the fit, as stored in the file",
        rules.yields.items(),
        {
            "species": lambda one: one[0],
            "sum_w": lambda one: number(one[1]["sum_w"], 6),
            "fitted yield": lambda one: number(one[1]["yield"], 6),
            "relative difference": lambda one: f"{one[1]['relative']:.1e}",
        },
    )
    without = "Sum over the events: no fitted yields of these branches are stored in the file."
    return Section("Sum rules", text if rules.yields else [*text, without], (), [table])


def _factorization(report: WeightsReport) -> Section:
    origin = {
        "test": "Tested now, with the given spectator and shapes.",
        "file": "As stored in the file by the program that made the weights; not tested again.",
        "none": f"{summary.NOT_TESTED[0].upper()}{summary.NOT_TESTED[1:]}.",
    }[report.factorization_from]
    text = (
        "Does the shape of the spectator depend on a column? Then sWeights are biased for that column. "
        "p is the probability of a larger \u03c7\u00b2 if it does not; corrected for the number of tests, a "
        f"value below {summary.LEAST_P_VALUE:g} is hardly chance. Deviations are in standard deviations."
    )
    table = factorization_table(report.factorization)
    return Section("Factorization", [text, origin] if report.factorization else [origin], (), [table])


def _largest(report: WeightsReport, units: Mapping[str, str], key: Sequence[str]) -> Section:
    """Events with the largest absolute weights."""
    cells = {name: labelled(name, units.get(name)) for name in ("row", *key, "weight", *units)}
    tables = [
        Table(
            f"{species}: the {len(one.largest)} events with the largest |weight|",
            list(cells.values()),
            [[short(event.get(name)) for name in cells] for event in one.largest],
        )
        for species, one in report.species.items()
    ]
    return Section("Events with the largest weights", ["Rows are counted from 0 among those selected."], (), tables)
