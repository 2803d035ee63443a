"""Page of the report on weights: its sections with their texts, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping

from calorefine.events import Columns, unit_of
from calorefine.pages.figures.weights import column_figure, weights_figure
from calorefine.pages.page import Picture, Section, Table
from calorefine.stats import FloatArray
from calorefine.text import number, with_error
from calorefine.weights.summary import (
    LEAST_P_VALUE,
    LEVELS,
    N_BINS,
    NOT_TESTED,
    BinNumbers,
    Dependence,
    SpeciesNumbers,
    WeightsReport,
    over,
    percent,
    sum_rule_text,
)


def page_sections(
    report: WeightsReport, columns: Columns, *, table: Mapping[str, FloatArray], weights: Mapping[str, FloatArray]
) -> list[Section]:
    """Sections of the page.

    Args:
        report: the numbers.
        columns: description of the columns, for their units.
        table: column to its values (n,).
        weights: species to its weights (n,).
    """
    units = {
        name: unit_of(name, column) or ""
        for name, column in (columns.feature_columns | columns.context_columns).items()
    }
    return [
        _summary_section(report, weights),
        _columns_section(report, units, table=table, weights=weights),
        _bins_section(report, units),
        _sum_section(report),
        _factorization_section(report),
        _extreme_section(report, units, key=columns.key_branches),
    ]


def _summary_section(report: WeightsReport, weights: Mapping[str, FloatArray]) -> Section:
    each = [one.weights for one in report.species.values()]
    rows = [
        ("branch or expression", *(one.expression for one in report.species.values())),
        ("events", *(number(w.n_events) for w in each)),
        ("events of weight 0", *(number(w.n_zero) for w in each)),
        ("sum_w, with root of sum_w2", *(with_error(w.sum_w, w.sum_w_error) for w in each)),
        ("sum_w2", *(number(w.sum_w2) for w in each)),
        ("effective number of events n_eff = (sum_w)\u00b2 / sum_w2", *(number(w.n_eff) for w in each)),
        ("n_eff / events of weight other than 0", *(percent(w.n_eff_fraction) for w in each)),
        ("mean weight", *(number(w.mean) for w in each)),
        ("smallest weight", *(number(w.minimum) for w in each)),
        ("largest weight", *(number(w.maximum) for w in each)),
        ("negative, of events of weight other than 0", *(percent(w.negative_fraction) for w in each)),
        ("sum of negative weights / sum_w", *(percent(w.negative_share) for w in each)),
        ("1 % of events with largest |w|: share of sum |w|", *(percent(w.extreme_share_abs) for w in each)),
        ("1 % of events with largest |w|: share of sum_w2", *(percent(w.extreme_share_w2) for w in each)),
        ("event with largest |w|: share of sum_w2", *(percent(w.largest_share_w2) for w in each)),
    ]
    levels = [(f"{100 * q:g} %", *(number(w.quantiles[f"{q:g}"]) for w in each)) for q in LEVELS]
    header = ("", *report.species)
    tables = [Table("Weights of each species", header, rows), Table("Quantiles of the weight", header, levels)]
    caption = "Distribution of the weights, from the smallest to the largest, on a logarithmic scale."
    picture = Picture(weights_figure(weights), f"Histogram of the weights of {', '.join(weights)}", caption)
    text = [] if report.warnings else ["Nothing conspicuous was found."]
    return Section("Summary", text, report.warnings, tables, [picture])


def _columns_section(
    report: WeightsReport,
    units: Mapping[str, str],
    *,
    table: Mapping[str, FloatArray],
    weights: Mapping[str, FloatArray],
) -> Section:
    header = ["column", *(f"{name}, {what}" for name in report.species for what in ("mean", "width"))]
    rows, figures = [], []
    for name, unit in units.items():
        moments = [one.moments[name] for one in report.species.values()]
        cells = [(with_error(m.mean, m.mean_error), with_error(m.width, m.width_error)) for m in moments]
        rows.append([_labelled(name, unit), *(cell for pair in cells for cell in pair)])
        svg, outside = column_figure(name, table[name], weights=weights, unit=unit)
        alt = f"Distribution of {name} weighted for {', '.join(weights)}, and of all events unweighted"
        caption = f"{_labelled(name, unit)}; {percent(max(outside, 0.0))} of events outside."
        figures.append(Picture(svg, alt, caption))
    text = [
        "Each distribution is normalized to its own sum of weights; error bars are the root of sum_w2 in each bin, and "
        "bins may be negative. The gray outline is all events without weights. Pictures span the central 99 % of them.",
        "Errors of means and widths are from sum_w2, for weights that are given. If the weights come from a fit to the "
        "same events, as sWeights do, these errors lack the uncertainty of the fit itself; for that, see the spread "
        "of bootstrap replicas.",
    ]
    text += [f"{name} is not drawn: its weights don't have a positive sum." for name in _without_sum(report)]
    return Section("Columns", text, (), [Table("Weighted mean and width of each column", header, rows)], figures)


def _bins_section(report: WeightsReport, units: Mapping[str, str]) -> Section:
    """Effective number of events where the analysis is differential."""
    tables = []
    for column in next(iter(report.species.values())).bins:
        header = [_labelled(column, units[column])]
        header += [f"{name}, {what}" for name in report.species for what in ("sum_w", "n_eff", "n_eff/n")]
        each = [one.bins[column] for one in report.species.values()]
        rows = []
        for index, first in enumerate(each[0]):
            cells = [_bin_cells(bins[index]) for bins in each]
            rows.append([_interval(first, last=index == len(each[0]) - 1), *(text for cell in cells for text in cell)])
        bad = [index for index, bins in enumerate(zip(*each, strict=True)) if any(one.sum_w <= 0 for one in bins)]
        tables.append(Table(f"Weights in bins of {column}", header, rows, bad))
    text = [
        f"What is measured in bins of context has the statistics of the bin. {N_BINS} bins hold equal numbers of "
        "events (unweighted; a column of few different values has a bin for each); n counts events of weight other "
        "than 0. Rows where the weights of a species don't have a positive sum are pointed out.",
        f"Smallest n_eff: {', '.join(_least(name, one) for name, one in report.species.items())}.",
    ]
    return Section("Effective number of events by context", text if tables else ["There is no context."], (), tables)


def _least(species: str, numbers: SpeciesNumbers) -> str:
    """Where the effective number of events is smallest."""
    found = [
        (one.n_eff, f"{column} {_interval(one, last=one is bins[-1])}")
        for column, bins in numbers.bins.items()
        for one in bins
    ]
    size, where = min(found, default=(None, "no bin"))
    return f"{species} {number(size)} ({where})"


def _bin_cells(one: BinNumbers) -> tuple[str, str, str]:
    return with_error(one.sum_w, one.sum_w_error), number(one.n_eff), percent(over(one.n_eff, one.n_events))


def _interval(one: BinNumbers, *, last: bool) -> str:
    if one.low == one.high:
        return _short(one.low)
    return f"[{_short(one.low)}, {_short(one.high)}{']' if last else ')'}"


def _short(value: float | None) -> str:
    """Integers as such."""
    return number(int(value) if value is not None and float(value).is_integer() else value)


def _sum_section(report: WeightsReport) -> Section:
    rules = report.sum_rules
    text = [f"Sum over the species for each event: {sum_rule_text(rules)}."]
    if rules.largest_deviation is not None:
        text.append(
            "sWeights sum to 1 over all species of the fit. Other weights need not, and neither need sWeights if not "
            "all species are given here, or if they are multiplied by something."
        )
    rows = [
        [name, number(sums["sum_w"], 6), number(sums["yield"], 6), f"{sums['relative']:.1e}"]
        for name, sums in rules.yields.items()
    ]
    if rows and report.n_events != report.n_rows:
        text.append(
            "Yields are those of the fit to the whole file; since rows are left out here, sums should be smaller."
        )
    header = ("species", "sum_w", "fitted yield", "relative difference")
    tables = [Table("Sums of the weights and yields of the fit, as stored in the file", header, rows)] if rows else []
    text += [] if rows else ["Sum over the events: no fitted yields of these branches are stored in the file."]
    return Section("Sum rules", text, (), tables)


def _factorization_section(report: WeightsReport) -> Section:
    origin = {
        "test": "Tested now, with the given spectator and shapes.",
        "file": "As stored in the file by the program that made the weights; not tested again.",
        "none": f"{NOT_TESTED[0].upper()}{NOT_TESTED[1:]}.",
    }[report.factorization_from]
    if not report.factorization:
        return Section("Factorization", [origin])
    header = ("column", "\u03c7\u00b2/ndf", "p", "p, corrected", "largest deviation", "where", "verdict")
    rows = [_test_cells(test) for test in report.factorization]
    marked = [index for index, test in enumerate(report.factorization) if test.p_corrected < LEAST_P_VALUE]
    text = [
        "Does the shape of the spectator depend on a column? Then sWeights are biased for that column. "
        "p is the probability of a larger \u03c7\u00b2 if it does not; corrected for the number of columns tested, a "
        f"value below {LEAST_P_VALUE:g} is hardly chance. Deviations are in standard deviations.",
        origin,
    ]
    caption = "Tests that the spectator's shape does not depend on a column"
    return Section("Factorization", text, (), [Table(caption, header, rows, marked)])


def _test_cells(test: Dependence) -> list[str]:
    chi2, p, corrected = f"{test.chi2:.1f}/{test.ndf}", number(test.p_value, 2), number(test.p_corrected, 2)
    within = f"{test.column} in [{_short(test.low)}, {_short(test.high)}]" if test.parameter else "-"
    where = f"{within}, {test.where}" if test.where else within
    deviation = f"{test.parameter} {test.deviation:+.1f}" if test.parameter else "-"
    verdict = "dependent" if test.p_corrected < LEAST_P_VALUE else "no sign of it" if test.ndf else "not testable"
    return [test.column, chi2, p, corrected, deviation, where, verdict]


def _extreme_section(report: WeightsReport, units: Mapping[str, str], *, key: list[str]) -> Section:
    """Events with the largest absolute weights."""
    header = ["row", *key, "weight", *(_labelled(name, unit) for name, unit in units.items())]
    names = ["row", *key, "weight", *units]
    tables = [
        Table(
            f"{species}: the {len(one.largest)} events with the largest |weight|",
            header,
            [[_short(event.get(name)) for name in names] for event in one.largest],
        )
        for species, one in report.species.items()
    ]
    return Section("Events with the largest weights", ["Rows are counted from 0 among those selected."], (), tables)


def lead(report: WeightsReport) -> str:
    """First line of the page: what was selected."""
    selected = f"{report.n_events} of {report.n_rows} rows"
    return f"Tree '{report.tree}', {selected}" + (f", cut: {report.cut}" if report.cut else "")


def _without_sum(report: WeightsReport) -> list[str]:
    return [name for name, one in report.species.items() if one.weights.sum_w <= 0]


def _labelled(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name
