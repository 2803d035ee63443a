r"""Section on the features: generated, reweighted and reference events, each of its own sum of weights.

A bin's value is its share of the sum of weights.  The band of the reweighted events is the spread of the bootstrap
replicas, so the calibration sample's statistics with the training's stochasticity.  The numbers compare with the
reference by `systematics.closure_bias`, whose covariance is that of the sample's own statistics, of the replicas where
there are some, and of the reference.  If the reference is the calibration sample that the generator was trained on,
the two fluctuate together, and the numbers are smaller than for an independent one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from calorefine import stats
from calorefine.errors import ConfigError
from calorefine.observables import Histogram, Regular
from calorefine.pages.figures.distributions import Drawn, feature_figure
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.run.samples import REFERENCE, Files, Shown, Sources, shown_columns
from calorefine.pages.run.section import Part, collected, labelled, percent
from calorefine.stats import FloatArray
from calorefine.systematics import ObservableBins, Systematics, assemble, closure_bias
from calorefine.systematics.variations import Variables
from calorefine.text import number
from calorefine.twosample.context_check import warn_of_file_contexts

TITLE = "Features"
INSIDE = (0.002, 0.998)  # quantiles of the reference that the pictures span
LEAST_N_EFF = 0.5
OPTIONS = {
    "generated": "events as 'calorefine sample' writes them",
    "weighted": "the same with weights of 'calorefine reweight --apply'",
    "reference": "events to compare with",
}


def features_part(files: Files, *, features: Sequence[str] | None, bins: int) -> Part:
    """Distributions with ratios, and how well they agree.

    Args:
        files: the samples.
        features: columns to show; features and context by the provenance, if left out.
        bins: number of bins.

    Raises:
        ConfigError: no bin, or nothing tells what the features are.
        CalorefineError: a file can't be read.
    """
    if bins < 1:
        raise ConfigError(f"bins: {bins} found, expected at least 1")
    sources = files.sources()
    given = {"generated": files.generated, "weighted": files.weighted, "reference": files.reference}
    missing = [f"{TITLE}: not given ({name}: {OPTIONS[name]})" for name, one in given.items() if not one]
    if not set(sources) - {REFERENCE}:
        text = f"Not given. It needs generated, {OPTIONS['generated']}, or weighted, {OPTIONS['weighted']}."
        return Part(Section(TITLE, [text]), (), missing)
    columns, lacking = shown_columns(sources, features)
    with collected() as found:
        if REFERENCE in sources:
            made = sources["reweighted" if "reweighted" in sources else "generated"]
            warn_of_file_contexts(made, sources[REFERENCE])
        measured = _measured(files, sources, columns, bins)
        tests = _tests(measured)
    return _part(sources, columns, measured, tests, found, [*missing, *(f"{TITLE}: {text}" for text in lacking)])


def _measured(files: Files, sources: Sources, columns: Mapping[str, Shown], bins: int) -> dict[str, Variables]:
    """Histograms of every sample in the same bins."""
    last, files_last = list(sources.items())[-1]
    rows = files_last.rows(files_last.request(None, {name: one.texts[last] for name, one in columns.items()}))
    axes = {name: _axis(rows.table[name], rows.weight, bins) for name in columns}
    out = {}
    for sample, weighted in sources.items():
        histograms = {
            name: Histogram(one.texts[sample], bins=axes[name], normalize="unit") for name, one in columns.items()
        }
        variations = files.replicas(weighted.source) if sample == "reweighted" else None
        out[sample] = Variables(
            weighted.source, histograms, weighted.weight, {"calibration": variations} if variations else {}
        )
    return out


def _axis(values: FloatArray, weight: FloatArray, bins: int) -> Regular:
    """Central 99.6 % of the sample and a margin; bins of whole numbers where values are some."""
    low, high = map(float, stats.quantile(values, weight, INSIDE))
    if np.all(values == np.rint(values)):
        step = max(1, -(-int(high - low + 1) // bins))
        n = -(-int(high - low + 1) // step)
        return Regular(n, low - 0.5, low - 0.5 + n * step)
    margin = 0.05 * (high - low) or 0.5
    return Regular(bins, low - margin, high + margin)


def systematics_of(one: Variables) -> Systematics:
    """Values with the covariance of the sample's own statistics and of the replicas."""
    measured = one.nominal
    bins = {name: ObservableBins(np.asarray(o.edges), counts=False) for name, o in measured.observables.items()}
    return assemble(measured.values[0], bins, calibration=one.rows.get("calibration"), generated=measured.statistics)


def _tests(measured: Mapping[str, Variables]) -> dict[str, dict[str, tuple[float, float]]]:
    """Sample to feature to reduced chi2 and p-value against the reference."""
    if "reference" not in measured:
        return {}
    target = measured["reference"].nominal
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for sample in [name for name in measured if name != "reference"]:
        everything, out[sample] = systematics_of(measured[sample]), {}
        for name in target.observables:
            part = target.part(name)
            truth, own = target.values[0][part], target.statistics[part, part]
            chi2 = closure_bias(everything.only(name), truth, truth_covariance=own).chi2
            out[sample][name] = (chi2.reduced, chi2.p_value)
    return out


def _part(
    sources: Sources,
    columns: Mapping[str, Shown],
    measured: Mapping[str, Variables],
    tests: Mapping[str, Mapping[str, tuple[float, float]]],
    found: Sequence[str],
    missing: Sequence[str],
) -> Part:
    text = [
        "Each sample is normalized to its own sum of weights. Error bars are the root of sum_w2 in each bin; ratios "
        "are left out where the lower sample is below three standard deviations.",
    ]
    rows = measured["reweighted"].rows.get("calibration") if "reweighted" in measured else None
    if rows is None:
        text.append("There is no systematic band: no replicas of the reweighted events are given (calibration).")
    else:
        text.append(f"The band is the spread of {len(rows)} replicas: calibration statistics and training.")
    tables = [_samples_table(sources, measured)]
    tables += [_tests_table(columns, tests)] if tests else []
    figures = [_picture(name, one, measured) for name, one in columns.items()]
    warnings = [*found, *_domain(measured)]
    return Part(Section(TITLE, text, warnings, tables, figures), _numbers(measured), missing)


def _samples_table(sources: Sources, measured: Mapping[str, Variables]) -> Table:
    rows = []
    for name, sample in sources.items():
        one = next(iter(measured[name].nominal.entries.values()))
        paths = ", ".join(path.name for path in sample.source.paths[:3]) + (
            ", ..." if len(sample.source.paths) > 3 else ""
        )
        rows.append([name, paths, sample.weight, number(one.n_selected), number(one.sum_w, 5), number(one.n_eff, 5)])
    return Table("Samples", ("sample", "files", "weight", "events", "sum_w", "n_eff"), rows)


def _tests_table(columns: Mapping[str, Shown], tests: Mapping[str, Mapping[str, tuple[float, float]]]) -> Table:
    header = ["column", *(text for sample in tests for text in (f"{sample}: reduced \u03c7\u00b2", "p"))]
    rows = []
    for name, one in columns.items():
        cells = [
            number(value, digits) for own in tests.values() for value, digits in zip(own[name], (3, 2), strict=True)
        ]
        rows.append([labelled(name, one.unit), *cells])
    caption = (
        "Agreement with the reference, by the statistics of both samples and, for reweighted events, by the replicas; "
        "bins are grouped where there are few replicas"
    )
    return Table(caption, header, rows)


def _picture(name: str, column: Shown, measured: Mapping[str, Variables]) -> Picture:
    drawn, edges = {}, np.zeros(0)
    for sample, one in measured.items():
        part = one.nominal.part(name)
        edges = np.asarray(one.nominal.observables[name].edges)
        rows = one.rows.get("calibration")
        band = None if rows is None or len(rows) < 2 else rows[:, part].std(axis=0, ddof=1)
        errors = np.sqrt(np.diag(one.nominal.statistics)[part])
        drawn[sample] = Drawn(one.nominal.values[0][part], errors, band)
    label = labelled(name, column.unit)
    outside = {sample: max(round(1 - float(one.values.sum()), 9), 0.0) for sample, one in drawn.items()}
    caption = f"{label}. Outside of the picture: {', '.join(f'{k} {percent(v)}' for k, v in outside.items())}."
    alt = f"Distribution of {name} in {', '.join(drawn)} events, with ratios"
    return Picture(feature_figure(drawn, edges, label), alt, caption)


def _domain(measured: Mapping[str, Variables]) -> list[str]:
    """Generated events outside of the training domain, and a loss of effective events."""
    out = []
    for sample, one in measured.items():
        first = next(iter(one.nominal.entries))
        entries, outside = one.nominal.entries[first], int(one.nominal.outside_counts[one.nominal.part(first)].sum())
        if sample != "reference" and outside:
            share = percent(outside / entries.n_selected)
            out.append(f"{sample}: {outside} events ({share}) are outside of the training domain (in_domain = false)")
        if sample == "reweighted" and entries.n_eff < LEAST_N_EFF * entries.n_selected:
            out.append(f"reweighted: n_eff {number(entries.n_eff)} of {entries.n_selected} events")
    return out


def _numbers(measured: Mapping[str, Variables]) -> list[tuple[str, str]]:
    out = []
    for sample, one in measured.items():
        entries = next(iter(one.nominal.entries.values()))
        out.append((f"{sample} events", f"{entries.n_selected}, n_eff {number(entries.n_eff, 5)}"))
    return out
