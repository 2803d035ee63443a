"""Section on the features: distributions of all samples with ratios, and how well they agree."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from calorefine.pages.figures.panels import Curve, Panel, panel_figure, per_bin
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.style import SAMPLES
from calorefine.systematics.features import REFERENCE, REWEIGHTED, Features
from calorefine.systematics.variations import Variables
from calorefine.text import first_three, labelled, number, percent
from calorefine.twosample.overlay import SIGNIFICANT

LEAST_N_EFF = 0.5
OPTIONS = {
    "generated": "events as 'calorefine sample' writes them",
    "weighted": "the same with weights of 'calorefine reweight --apply'",
    "reference": "events to compare with",
}


def features_section(features: Features | None, given: Collection[str], warned: Sequence[str]) -> Section:
    """Distributions with ratios, and how well they agree.

    Args:
        features: what was measured; None without generated events.
        given: options that name files.
        warned: warnings of the measurement.
    """
    missing = [f"not given ({name}: {what})" for name, what in OPTIONS.items() if name not in given]
    if features is None:
        needed = f"generated, {OPTIONS['generated']}, or weighted, {OPTIONS['weighted']}"
        return Section("Features", [f"Not given. It needs {needed}."], missing=missing)
    samples = features.samples
    text = [
        "Each sample is normalized to its own sum of weights. Error bars are the root of sum_w2 in each bin; ratios "
        "are left out where the lower sample is below three standard deviations.",
    ]
    rows = samples[REWEIGHTED].rows.get("calibration") if REWEIGHTED in samples else None
    if rows is None:
        text.append("There is no systematic band: no replicas of the reweighted events are given (calibration).")
    else:
        text.append(f"The band is the spread of {len(rows)} replicas: calibration statistics and training.")
    entries = {name: next(iter(one.nominal.entries.values())) for name, one in samples.items()}
    return Section(
        "Features",
        text,
        [*warned, *_warnings(features)],
        [_samples_table(features), _tests_table(features)],
        [_picture(features, name) for name in features.units],
        numbers=[(f"{k} events", f"{one.n_selected}, n_eff {number(one.n_eff, 5)}") for k, one in entries.items()],
        missing=[*missing, *features.lacking],
    )


def _samples_table(features: Features) -> Table:
    records = [(name, one, next(iter(one.nominal.entries.values()))) for name, one in features.samples.items()]
    return Table.of(
        "Samples",
        records,
        {
            "sample": lambda record: record[0],
            "files": lambda record: first_three([path.name for path in record[1].source.paths]),
            "weight": lambda record: record[1].weight,
            "events": lambda record: number(record[2].n_selected),
            "sum_w": lambda record: number(record[2].sum_w, 5),
            "n_eff": lambda record: number(record[2].n_eff, 5),
        },
    )


def _tests_table(features: Features) -> Table:
    header = ["column", *(text for sample in features.tests for text in (f"{sample}: reduced \u03c7\u00b2", "p"))]
    rows = [
        [labelled(name, unit), *(number(x, 3 - k) for own in features.tests.values() for k, x in enumerate(own[name]))]
        for name, unit in (features.units if features.tests else {}).items()
    ]
    caption = (
        "Agreement with the reference, by the statistics of both samples and, for reweighted events, by the replicas; "
        "bins are grouped where there are few replicas"
    )
    return Table(caption, header, rows)


def _picture(features: Features, name: str) -> Picture:
    edges = np.asarray(next(iter(features.samples.values())).nominal.observables[name].edges)
    curves = [_curve(sample, one, name) for sample, one in features.samples.items()]
    lowest, last = curves[-1], curves[-1].label
    known = lowest.values > SIGNIFICANT * (np.zeros(1) if lowest.errors is None else lowest.errors)
    ratios = [curve.over(np.where(known, lowest.values, np.nan)) for curve in curves]
    label, ratio = labelled(name, features.units[name]), "ratio to ref." if last == REFERENCE else f"ratio to {last}"
    figure = panel_figure(Panel(edges, curves, label, per_bin("fraction", edges), ratios, ratio))
    outside = {curve.label: max(round(1 - float(curve.values.sum()), 9), 0.0) for curve in curves}
    caption = f"{label}. Outside of the picture: {', '.join(f'{k} {percent(v)}' for k, v in outside.items())}."
    return Picture(figure, f"Distribution of {name} in {', '.join(outside)} events, with ratios", caption)


def _curve(sample: str, measured: Variables, name: str) -> Curve:
    """Values with statistical errors, and the spread of the replicas as a band."""
    part, rows = measured.nominal.part(name), measured.rows.get("calibration")
    values, bands = measured.nominal.values[0][part], []
    if rows is not None and len(rows) > 1:
        spread = rows[:, part].std(axis=0, ddof=1)
        bands.append({"low": values - spread, "high": values + spread})
    color, line = SAMPLES[sample]
    look = {"markersize": 2.8} if not line else {}
    errors = np.sqrt(np.diag(measured.nominal.statistics)[part])
    return Curve(sample, values, errors, line, color, bands=bands, options=look)


def _warnings(features: Features) -> list[str]:
    """Generated events outside of the training domain, and a loss of effective events."""
    out = []
    for sample, one in features.samples.items():
        first = next(iter(one.nominal.entries))
        entries, outside = one.nominal.entries[first], int(one.nominal.outside_counts[one.nominal.part(first)].sum())
        if sample != REFERENCE and outside:
            share = percent(outside / entries.n_selected)
            out.append(f"{sample}: {outside} events ({share}) are outside of the training domain (in_domain = false)")
        if sample == REWEIGHTED and entries.n_eff < LEAST_N_EFF * entries.n_selected:
            out.append(f"reweighted: n_eff {number(entries.n_eff)} of {entries.n_selected} events")
    return out
