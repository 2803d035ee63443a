"""Sections on a reweighting: what it leaves, what it can't reach, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calorefine.events import units_of
from calorefine.pages.figures.panels import Curve, Panel, panel_figure, shares_panel
from calorefine.pages.page import Picture, Record, Section, Table, merged, write_page
from calorefine.pages.style import SAMPLES, color
from calorefine.reweighting.coverage import MOST_COVERED
from calorefine.reweighting.diagnostics import LEAST_P_VALUE, MOST_SIGMA, N_WORST, Diagnostics, separation_text
from calorefine.reweighting.reweighter import Reweighter
from calorefine.shares import Shares, spans_decades, widened
from calorefine.text import interval, labelled, number, percent, share_text, short, with_error
from calorefine.twosample.classifier import Separation

CHI2 = "\u03c7\u00b2/ndf"


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
    page = diagnostics_sections(diagnostics.to_dict(), units_of(reweighter.columns))
    write_page(path, "Diagnostics of a reweighting", sections=page, lead=lead, overwrite=overwrite)


def diagnostics_sections(record: Record, units: Mapping[str, str]) -> list[Section]:
    """Sections of the page.

    Args:
        record: the diagnostics, as in the JSON file.
        units: column to its unit, an empty text for none.
    """
    parts = [_columns(record, units), _coverage(record), _residuals(record), _means(record, units)]
    return [_summary(record), *parts, _largest(record, units)]


def classifier_section(title: str, source: str, record: Record) -> Section:
    """What the report says of a reweighting: the classifier before and after first.

    Args:
        title: of the section.
        source: the JSON file.
        record: its diagnostics.
    """
    tests = _tests(record)
    text = (
        f"{source}: an independent classifier is trained to tell generated from reference events. All diagnostics are "
        f"in {Path(source).with_suffix('.html').name}."
    )
    distances = Section("", tables=[_distance_table(record)])
    numbers = [(f"classifier {name}", separation_text(one)) for name, one in tests.items()]
    known = {name: (one.auc, one.auc_error) for name, one in tests.items() if one}
    values = ", ".join(f"{name} {with_error(*pair)}" for name, pair in known.items())
    caption = f"AUC of an independent classifier: {values}; line: no separation."
    figures = [Picture(_classifier_figure(known), f"AUC of the classifier {values}", caption)] if known else []
    first = Section(title, [text], figures=figures, numbers=numbers)
    others = [replace(part, text=()) for part in (distances, _coverage(record), _residuals(record))]
    return merged(title, [first, _summary(record), *others])


def _classifier_figure(values: Mapping[str, tuple[float, float]]) -> bytes:
    options = {"markersize": 6, "capsize": 4}
    curves = [
        Curve(name, np.array([value]), np.array([error]), "", color(k), k, np.array([float(k)]), options=options)
        for k, (name, (value, error)) in enumerate(values.items())
    ]
    names = {"xticks": range(len(curves)), "xticklabels": list(values)}
    edges = np.array([-0.5, len(curves) - 0.5])
    return panel_figure(Panel(edges, curves, "", "AUC", level=0.5, options=names))


def _tests(record: Record) -> dict[str, Separation | None]:
    tests = {name: record["classifier"][name] for name in ("before", "after")}
    return {name: one and Separation(**one) for name, one in tests.items()}


def _summary(record: Record) -> Section:
    w, coverage, refused = record["weights"], record["coverage"], record["classifier"]["refused"]
    rows = [(f"classifier {name}", separation_text(one)) for name, one in _tests(record).items()]
    rows += [
        ("reference that is not covered", share_text(**coverage["uncovered"])),
        ("generated that the reference doesn't have", share_text(**coverage["invented"])),
        ("generated events", number(w["n"])),
        ("effective number before", number(w["n_eff_before"])),
        ("effective number after", f"{number(w['n_eff'])} ({percent(w['n_eff_fraction'])})"),
        ("mean factor", number(w["mean_factor"])),
        ("largest factor", number(w["largest"][0]["factor"])),
        ("largest weight, of the sum", percent(w["largest_share"])),
        ("factors at the bound, of the sum of weights", percent(w["at_bound"])),
        ("context outside of the reference's (factor 1)", percent(w["outside"])),
    ]
    text = [] if record["warnings"] else ["Nothing conspicuous was found."]
    if record["conditional"] and record["mean_weights"]:
        text.append(
            "The context may be distributed differently in both samples; the weights leave that alone. Where samples "
            "are compared here, generated events are weighted by the ratio of the context's densities as well."
        )
    text += [f"Classifier refused: {refused}"] if refused else []
    text.append(
        "AUC 0.5: an independent classifier can't tell the samples apart. JSD is in bits, as trained: below 0 where an "
        "overconfident classifier found nothing; it isn't given for signed weights."
    )
    return Section("Summary", text, record["warnings"], [Table("Main numbers", ("", "value"), rows)])


def _columns(record: Record, units: Mapping[str, str]) -> Section:
    figures = []
    for name, values in record["columns"].items():
        shares, label = Shares(**values), labelled(name, units.get(name))
        caption = f"{label}; {percent(shares.outside('reference'))} of the reference outside."
        alt = f"Distribution of {name} in the reference and in generated events before and after"
        figures.append(Picture(panel_figure(shares_panel(shares, label)), alt, caption))
    text = [
        "Each sample is normalized to its own sum of weights; error bars are the root of sum_w2 in each bin.",
        "p-values are from 200 replicates, so that 0.005 is the smallest.",
    ]
    return Section("Columns", text, (), [_distance_table(record, units)], figures)


def _distance_table(record: Record, units: Mapping[str, str] | None = None) -> Table:
    """Distances of each feature before and after."""
    rows = []
    for name, pair in record["distances"].items():
        each = [one[kind] for kind in ("ks", "energy") for one in pair]
        cells = [text for one in each for text in (number(one["value"], 3), f"{one['p_value']:.3f}")]
        rows.append([labelled(name, (units or {}).get(name)), *cells])
    header = ("feature", "KS before", "p", "KS after", "p", "energy before", "p", "energy after", "p")
    return Table("Distances to the reference", header, rows)


def _coverage(record: Record) -> Section:
    text = [
        "Where the reference has a tail that the generated events lack, the generator misses a region. "
        "Where generated events have a tail to small log ratios, it makes what the reference doesn't have.",
        f"Not covered is the share of the reference that even {MOST_COVERED:g} times the generated density doesn't "
        "reach: a weight can't help there. It is a lower bound; narrow holes, and slanted ones in many features, are "
        "found in part.",
    ]
    alt = "Histogram of the log ratio in the reference and in generated events"
    caption = "Log ratio under the reference, and under the generated events before the reweighting."
    figure = panel_figure(shares_panel(Shares(**record["log_ratio"]), "log ratio", log=True))
    return Section("Coverage", text, figures=[Picture(figure, alt, caption)])


def _residuals(record: Record) -> Section:
    shown = record["residuals"][:N_WORST]
    table = Table.of(
        f"The {len(shown)} least probable columns and pairs",
        shown,
        {
            "column or pair": lambda one: " \u00d7 ".join(one["columns"]),
            f"{CHI2} before": lambda one: f"{one['chi2_before']:.0f}/{one['ndf_before']}",
            "after": lambda one: f"{one['chi2']:.0f}/{one['ndf']}",
            "p": lambda one: number(one["p_value"], 2),
            "p, corrected": lambda one: number(one["p_corrected"], 2),
            "difference before": lambda one: percent(one["difference_before"]),
            "difference after": lambda one: percent(one["difference"]),
        },
        lambda one: one["p_corrected"] < LEAST_P_VALUE,
    )
    text = [
        "Histograms at the reference's quantiles (20 of a column, 5 \u00d7 5 of a pair, fewer where the effective "
        "number of events is small), compared by their covariance. "
        f"p is corrected for all {len(record['residuals'])} of them; below {LEAST_P_VALUE:g} it is hardly chance.",
        "How much it matters is told by the difference, the share of events that would have to move to another cell; "
        "by accident alone it is not 0. The noise of the training is left out of p.",
    ]
    return Section("Residuals", text, tables=[table])


def _means(record: Record, units: Mapping[str, str]) -> Section:
    tables, figures = [], []
    for name, bins in record["mean_weights"].items():
        label = labelled(name, units.get(name))
        cells = {
            label: lambda one: interval(one["low"], one["high"]),
            "mean factor": lambda one: with_error(one["mean"], one["error"]),
            "pull from 1": lambda one: "-" if one["pull"] is None else f"{one['pull']:+.1f}",
        }
        tables.append(Table.of(f"Mean factor in bins of {name}", bins, cells, lambda one: _is_off(record, one)))
        figures.append(Picture(_mean_figure(label, bins), f"Mean factor against {name}", f"{label}."))
    expected = "expected to be 1 everywhere" if record["conditional"] else "free, since context is corrected as well"
    text = [f"Mean factor of the generated events, {expected}. Errors go by event key."]
    if record["conditional"]:
        text.append(
            "The events are those that the normalization was learned from: it has followed them, so that pulls are "
            "smaller here than by chance. In new events, the mean weight is away from 1 by about the errors."
        )
    return Section("Mean weight by context", text if tables else ["There is no context."], (), tables, figures)


def _is_off(record: Record, one: Record) -> bool:
    return bool(record["conditional"]) and abs(one["pull"] or 0.0) > MOST_SIGMA


def _mean_figure(label: str, bins: Sequence[Record]) -> bytes:
    low, high, mean, error = (np.array([one[k] for one in bins]) for k in ("low", "high", "mean", "error"))
    log = spans_decades(np.array([*low, high[-1]]))
    x = np.sqrt(low * high) if log else 0.5 * (low + high)
    look = {"color": SAMPLES["reweighted"][0], "x": x, "options": {"xerr": np.stack([x - low, high - x])}}
    curve = Curve("generated events", mean, error, **look)
    start, end = widened(float(low[0]), float(high[-1]), log=log)
    edges = np.geomspace(start, end, len(bins) + 1) if log else np.array([start, end])
    return panel_figure(Panel(edges, [curve], label, "mean factor", level=1.0))


def _largest(record: Record, units: Mapping[str, str]) -> Section:
    events = record["weights"]["largest"]
    names = list(events[0]["values"])
    rows = [
        [number(e["factor"]), number(e["weight"]), percent(e["share"]), *(short(e["values"][name]) for name in names)]
        for e in events
    ]
    header = ("factor", "weight", "of the sum", *(labelled(name, units.get(name)) for name in names))
    return Section(
        "Largest factors", tables=[Table(f"The {len(events)} events with the largest factors", header, rows)]
    )
