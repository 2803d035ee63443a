"""Page of the diagnostics of a reweighting: its sections with their texts, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calorefine.events import Columns, unit_of
from calorefine.pages.figures.reweighting import histogram_figure, mean_weight_figure
from calorefine.pages.page import Picture, Section, Table, write_page
from calorefine.reweighting.coverage import MOST_COVERED
from calorefine.reweighting.diagnostics import (
    LEAST_P_VALUE,
    MOST_SIGMA,
    N_WORST,
    Diagnostics,
    separation_text,
    share_text,
)
from calorefine.reweighting.reweighter import Reweighter
from calorefine.text import number, with_error
from calorefine.twosample.distances import Distance

SIGN = "\N{PLUS-MINUS SIGN}"
SPECTRUM = (
    "The context may be distributed differently in both samples; the weights leave that alone. Where samples are "
    "compared here, generated events are weighted by the ratio of the context's densities as well."
)


def write_diagnostics(path: Path, diagnostics: Diagnostics, reweighter: Reweighter, *, overwrite: bool = False) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        diagnostics: what to show.
        reweighter: what it is about.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the file exists and may not be replaced.
        FileError: its folder doesn't exist.
    """
    kind = "features given context" if reweighter.conditional else "features and context"
    rounds = f"{len(reweighter.rounds)} round{'s' if len(reweighter.rounds) > 1 else ''}"
    lead = f"{reweighter.estimator}, {rounds}, corrects {kind}"
    sections = page_sections(diagnostics, reweighter.columns)
    write_page(path, "Diagnostics of a reweighting", sections=sections, lead=lead, overwrite=overwrite)


def page_sections(found: Diagnostics, columns: Columns) -> list[Section]:
    """Sections of the page."""
    described = columns.feature_columns | columns.context_columns
    units = {name: unit_of(name, column) or "" for name, column in described.items()}
    return [
        _summary(found),
        _columns_section(found, units),
        _coverage_section(found),
        _residual_section(found),
        _mean_section(found, units),
        _largest_section(found, units),
    ]


def _summary(found: Diagnostics) -> Section:
    w, c, test = found.weights, found.coverage, found.classifier
    rows = [
        ("classifier before", separation_text(test.before, SIGN)),
        ("classifier after", separation_text(test.after, SIGN)),
        ("reference that is not covered", share_text(c.uncovered.value, c.uncovered.error)),
        ("generated that the reference doesn't have", share_text(c.invented.value, c.invented.error)),
        ("generated events", number(w.n)),
        ("effective number before", number(w.n_eff_before)),
        ("effective number after", f"{number(w.n_eff)} ({_percent(w.n_eff_fraction)})"),
        ("mean factor", number(w.mean_factor)),
        ("largest factor", number(w.largest[0].factor)),
        ("largest weight, of the sum", _percent(w.largest_share)),
        ("factors at the bound, of the sum of weights", _percent(w.at_bound)),
        ("context outside of the reference's (factor 1)", _percent(w.outside)),
    ]
    text = [] if found.warnings else ["Nothing conspicuous was found."]
    text += [SPECTRUM] if found.conditional and found.mean_weights else []
    text += [f"Classifier refused: {test.refused}"] if test.refused else []
    text.append(
        "AUC 0.5: an independent classifier can't tell the samples apart. JSD is in bits, as trained: below 0 where an "
        "overconfident classifier found nothing; it isn't given for signed weights."
    )
    return Section("Summary", text, found.warnings, [Table("Main numbers", ("", "value"), rows)])


def _columns_section(found: Diagnostics, units: Mapping[str, str]) -> Section:
    rows, figures = [], []
    for name, (before, after) in found.distances.items():
        cells = [text for one in (before.ks, after.ks, before.energy, after.energy) for text in _distance(one)]
        rows.append([_labelled(name, units), *cells])
    for name, histogram in found.columns.items():
        outside = 1 - sum(histogram.values["reference"])
        caption = f"{_labelled(name, units)}; {_percent(max(round(outside, 9), 0.0))} of the reference outside."
        alt = f"Distribution of {name} in the reference and in generated events before and after"
        figures.append(Picture(histogram_figure(histogram, _labelled(name, units)), alt, caption))
    header = ("feature", "KS before", "p", "KS after", "p", "energy before", "p", "energy after", "p")
    text = ["Each sample is normalized to its own sum of weights; error bars are the root of sum_w2 in each bin."]
    text.append("p-values are from 200 replicates, so that 0.005 is the smallest.")
    return Section("Columns", text, (), [Table("Distances to the reference", header, rows)], figures)


def _distance(one: Distance) -> tuple[str, str]:
    return number(one.value, 3), f"{one.p_value:.3f}"


def _coverage_section(found: Diagnostics) -> Section:
    text = [
        "Where the reference has a tail that the generated events lack, the generator misses a region. "
        "Where generated events have a tail to small log ratios, it makes what the reference doesn't have.",
        f"Not covered is the share of the reference that even {MOST_COVERED:g} times the generated density doesn't "
        "reach: a weight can't help there. It is a lower bound; narrow holes, and slanted ones in many features, are "
        "found in part.",
    ]
    alt = "Histogram of the log ratio in the reference and in generated events"
    caption = "Log ratio under the reference, and under the generated events before the reweighting."
    picture = Picture(histogram_figure(found.log_ratio, "log ratio", log=True), alt, caption)
    return Section("Coverage", text, (), (), [picture])


def _residual_section(found: Diagnostics) -> Section:
    shown = found.residuals[:N_WORST]
    rows = [
        (
            " \u00d7 ".join(one.columns),
            f"{one.chi2_before:.0f}/{one.ndf_before}",
            f"{one.chi2:.0f}/{one.ndf}",
            number(one.p_value, 2),
            number(one.p_corrected, 2),
            _percent(one.difference_before),
            _percent(one.difference),
        )
        for one in shown
    ]
    header = ("column or pair", "\u03c7\u00b2/ndf before", "after", "p", "p, corrected", "difference before", "after")
    marked = [index for index, one in enumerate(shown) if one.p_corrected < LEAST_P_VALUE]
    text = [
        "Histograms at the reference's quantiles (20 of a column, 5 \u00d7 5 of a pair, fewer where the effective "
        "number of events is small), compared by their covariance. "
        f"p is corrected for all {len(found.residuals)} of them; below {LEAST_P_VALUE:g} it is hardly chance.",
        "How much it matters is told by the difference, the share of events that would have to move to another cell; "
        "by accident alone it is not 0. The noise of the training is left out of p.",
    ]
    return Section("Residuals", text, (), [Table(f"The {len(shown)} least probable", header, rows, marked)])


def _mean_section(found: Diagnostics, units: Mapping[str, str]) -> Section:
    tables, figures = [], []
    for name, bins in found.mean_weights.items():
        rows = [
            (
                _short(one.low) if one.low == one.high else f"[{number(one.low, 3)}, {number(one.high, 3)}]",
                with_error(one.mean, one.error),
                "-" if one.pull is None else f"{one.pull:+.1f}",
            )
            for one in bins
        ]
        bad = [k for k, one in enumerate(bins) if found.conditional and abs(one.pull or 0.0) > MOST_SIGMA]
        label = _labelled(name, units)
        tables.append(Table(f"Mean factor in bins of {name}", (label, "mean factor", "pull from 1"), rows, bad))
        figures.append(Picture(mean_weight_figure(label, bins), f"Mean factor against {name}", f"{label}."))
    if not tables:
        return Section("Mean weight by context", ["There is no context."])
    expected = "expected to be 1 everywhere" if found.conditional else "free, since context is corrected as well"
    text = [f"Mean factor of the generated events, {expected}. Errors go by event key."]
    if found.conditional:
        text.append(
            "The events are those that the normalization was learned from: it has followed them, so that pulls are "
            "smaller here than by chance. In new events, the mean weight is away from 1 by about the errors."
        )
    return Section("Mean weight by context", text, (), tables, figures)


def _largest_section(found: Diagnostics, units: Mapping[str, str]) -> Section:
    events = found.weights.largest
    names = list(events[0].values)
    rows = [
        [number(e.factor), number(e.weight), _percent(e.share), *(_short(e.values[name]) for name in names)]
        for e in events
    ]
    header = ("factor", "weight", "of the sum", *(_labelled(name, units) for name in names))
    return Section(
        "Largest factors", (), (), [Table(f"The {len(events)} events with the largest factors", header, rows)]
    )


def _percent(value: float) -> str:
    return f"{number(100 * value, 3)} %"


def _short(value: float) -> str:
    """Integers as such."""
    return number(int(value) if value.is_integer() else value)


def _labelled(name: str, units: Mapping[str, str]) -> str:
    return f"{name} [{units[name]}]" if units.get(name) else name
