r"""`calorefine weights-report`: what the weights of a file are worth, on one page, whoever made them.

For weights w of one species, :math:`\sum w \pm \sqrt{\sum w^2}` estimates its number of events and
:math:`n_\mathrm{eff} = (\sum w)^2 / \sum w^2` is the size of the unweighted sample that would know it as well.  A
column's mean and width follow with

.. math:: \sigma^2(\bar x) = \frac{\sum w^2 (x-\bar x)^2}{(\sum w)^2} , \qquad
          \sigma^2(s) = \frac{\sum w^2 \left((x-\bar x)^2 - s^2\right)^2}{4 s^2 (\sum w)^2} ,

for weights that are functions given beforehand.  sWeights come from a fit to the same events, whose own uncertainty
these errors lack; bootstrap replicas, in which the fit is repeated, have it.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import stats
from calorefine.errors import ConfigError, KeyWarning
from calorefine.events import Columns, unit_of
from calorefine.io.page import Picture, Section, Table, number, with_error, write_page
from calorefine.io.root import NonFinite, Request, RootFiles, read_table
from calorefine.io.writer import read_provenance, replacing
from calorefine.keys import KeyArray
from calorefine.weights.factorization import column_edges, factorization_test
from calorefine.weights.report_plots import column_figure, weights_figure
from calorefine.weights.splot import SPlot

FloatArray = NDArray[np.float64]
LEVELS = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
N_LARGEST, N_BINS = 10, 5
LEAST_N_EFF, LARGEST_SHARE, SUM_TOLERANCE, LEAST_P_VALUE = 0.01, 0.05, 1e-3, 0.01
NOT_TESTED = "not tested: give `splot`, the spectator and the shapes"


@dataclass(frozen=True)
class WeightNumbers:
    """Numbers of one species' weights; None where they are not defined, as all weights or their sum are 0.

    Attributes:
        n_events: events.
        n_zero: events of weight 0.
        sum_w: sum of the weights.
        sum_w_error: its standard deviation, the root of `sum_w2`.
        sum_w2: sum of the squared weights.
        n_eff: effective number of events.
        n_eff_fraction: `n_eff` over the number of events whose weight is not 0.
        mean: mean weight of all events.
        minimum: smallest weight.
        maximum: largest weight.
        negative_fraction: events of negative weight, over those whose weight is not 0.
        negative_share: sum of the negative weights over `sum_w`.
        extreme_share_abs: share of the sum of |w| carried by the 1 % of events with the largest |w|.
        extreme_share_w2: their share of `sum_w2`.
        largest_share_w2: share of `sum_w2` carried by the one event with the largest |w|.
        quantiles: level to the quantile of the weight among all events.
    """

    n_events: int
    n_zero: int
    sum_w: float
    sum_w_error: float
    sum_w2: float
    n_eff: float
    n_eff_fraction: float | None
    mean: float
    minimum: float
    maximum: float
    negative_fraction: float | None
    negative_share: float | None
    extreme_share_abs: float | None
    extreme_share_w2: float | None
    largest_share_w2: float | None
    quantiles: dict[str, float]


@dataclass(frozen=True)
class Moments:
    """Weighted mean and width of a column with their standard errors, in its unit; None where not defined.

    The mean needs a positive sum of weights, and the width a positive variance, which negative weights don't promise.
    """

    mean: float | None
    mean_error: float | None
    width: float | None
    width_error: float | None


@dataclass(frozen=True)
class BinNumbers:
    """Weights in a bin of context, [low, high) or, the last one, [low, high]; `n_events` have a weight other than 0.

    A bin that holds a single value has it as both `low` and `high`.
    """

    low: float
    high: float
    n_events: int
    sum_w: float
    sum_w_error: float
    n_eff: float


@dataclass(frozen=True)
class SpeciesNumbers:
    """All about the weights of one species.

    Attributes:
        expression: branch or expression that they are.
        weights: their numbers.
        largest: the events with the largest |w|: row among those selected, key, weight and columns.
        moments: column to its weighted mean and width.
        bins: context column to the numbers in its bins.
    """

    expression: str
    weights: WeightNumbers
    largest: list[dict[str, float | int]]
    moments: dict[str, Moments]
    bins: dict[str, list[BinNumbers]]


@dataclass(frozen=True)
class SumRules:
    """Sums over species and over events.

    Attributes:
        n_events: events with any weight other than 0; 0 if there is only one species.
        largest_deviation: largest |sum over species - 1| among them; None for only one species.
        yields: species to sum of weights, fitted yield by the file's provenance, and their relative difference.
    """

    n_events: int
    largest_deviation: float | None
    yields: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Dependence:
    """Factorization test of one column; `deviation` of `parameter`, in standard deviations, is its largest."""

    column: str
    chi2: float
    ndf: int
    p_value: float
    p_corrected: float
    parameter: str
    deviation: float
    low: float | None
    high: float | None
    where: str


@dataclass(frozen=True)
class WeightsReport:
    """What the page and the JSON file beside it say.

    Attributes:
        output: the page.
        files: names of the input files.
        tree: name of the tree.
        cut: selection, if any.
        n_rows: rows in the files.
        n_events: rows selected.
        species: name to its numbers.
        sum_rules: over species and events.
        factorization_from: "test" if done now, "file" if read from the provenance, "none".
        factorization: one test per column.
    """

    output: Path
    files: list[str]
    tree: str
    cut: str | None
    n_rows: int
    n_events: int
    species: dict[str, SpeciesNumbers]
    sum_rules: SumRules
    factorization_from: str
    factorization: list[Dependence]

    @property
    def warnings(self) -> list[str]:
        """What is off, in plain words."""
        found = [text for name, one in self.species.items() for text in _verdicts(name, one.weights)]
        for name, sums in self.sum_rules.yields.items() if self.n_events == self.n_rows else ():
            if abs(sums["relative"]) > SUM_TOLERANCE:
                found.append(f"{name}: sum_w {sums['sum_w']:.6g} is not the fitted yield {sums['yield']:.6g}")
        for test in self.factorization:
            if test.p_corrected < LEAST_P_VALUE:
                found.append(f"the spectator's shape depends on {test.column}: p = {test.p_corrected:.2g} (corrected)")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, without NaN."""
        return asdict(self) | {"output": str(self.output), "warnings": self.warnings}

    def __str__(self) -> str:
        """Summary for the terminal."""
        titles = ("sum_w", "n_eff", "n_eff/n", "negative", "smallest", "largest")
        rows = [("species", *titles)] + [(name, *_terminal_cells(one.weights)) for name, one in self.species.items()]
        widths = [max(map(len, cells)) + 2 for cells in zip(*rows, strict=True)]
        lines = [f"weights of {_shown(self.files)}, tree '{self.tree}': {self.n_events} of {self.n_rows} rows"]
        for name, *cells in rows:
            texts = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append(f"{name:<{widths[0]}}{''.join(texts)}")
        lines += [f"sum rule: {_sum_rule_text(self.sum_rules)}", f"factorization: {_factorization_text(self)}"]
        lines += [f"WARNING: {text}" for text in self.warnings]
        return "\n".join([*lines, f"{self.output}: the page; its numbers in {self.output.stem}.json"])


@dataclass(frozen=True)
class _Sample:
    """Columns and what the spectator fit needs, by name; weights by species; keys; all (n,)."""

    table: dict[str, FloatArray]
    weights: dict[str, FloatArray]
    key: KeyArray


def weights_report(
    *,
    files: str | list[str],
    tree: str,
    columns: Columns,
    weights: dict[str, str],
    output: str,
    splot: SPlot | None = None,
    nonfinite: NonFinite = "error",
    overwrite: bool = False,
) -> WeightsReport:
    """Report on the weights of a ROOT file, whoever wrote it: one page with tables and pictures, and its numbers.

    The page is a single HTML file; a JSON file of the same stem beside it has all numbers.

    Args:
        files: ROOT files; a path, a glob, or a list.
        tree: name of the tree.
        columns: features and context to show by weight, key and cut.
        weights: species to its weight, a branch or expression; any sign, and a single species will do.
        output: the page to write, an .html file.
        splot: spectator and shapes, to test factorization; without it, tests found in the file are shown.
        nonfinite: what to do about rows with NaN or infinite values in the columns, weights or the spectator.
        overwrite: replace existing outputs.

    Returns:
        All numbers.

    Raises:
        CalorefineError: bad input.
        ConfigError: no weights are given, or the output exists or is no .html file.
        FitError: the fit for the factorization test fails.
    """
    target = Path(output)
    if not weights:
        raise ConfigError("weights: none given, expected species and branches, such as {signal: sw_signal}")
    if target.suffix != ".html":
        raise ConfigError(f"{output}: expected the name of an .html file")
    source = RootFiles(files, tree)
    with (
        replacing(target, overwrite=overwrite) as page,
        replacing(target.with_suffix(".json"), overwrite=overwrite) as numbers,
    ):
        sample = _read(source, columns, weights=weights, splot=splot, nonfinite=nonfinite)
        report = _report(target, source, columns=columns, expressions=weights, splot=splot, sample=sample)
        numbers.write_text(json.dumps(report.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
        sections = page_sections(report, columns, table=sample.table, weights=sample.weights)
        write_page(page, f"Weights of {_shown(report.files)}", sections=sections, lead=_lead(report))
    return report


def _read(
    source: RootFiles, columns: Columns, *, weights: Mapping[str, str], splot: SPlot | None, nonfinite: NonFinite
) -> _Sample:
    hidden = {f"\0weight of {name}": text for name, text in weights.items()}
    wanted = columns.expressions("features", "context") | (splot.branches if splot else {}) | hidden
    request = Request(wanted, columns.key, columns.candidate, columns.cut, nonfinite=nonfinite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KeyWarning)  # nothing here goes by the key
        table, key, _ = read_table(source, request)
    return _Sample(table, {name: table.pop(column) for name, column in zip(weights, hidden, strict=True)}, key)


def _report(
    output: Path,
    source: RootFiles,
    *,
    columns: Columns,
    expressions: Mapping[str, str],
    splot: SPlot | None,
    sample: _Sample,
) -> WeightsReport:
    found = [_provenance(path) for path in source.paths]
    origin, tests = _tests(splot, columns, table=sample.table, found=found)
    return WeightsReport(
        output=output,
        files=[path.name for path in source.paths],
        tree=source.tree,
        cut=columns.cut,
        n_rows=source.n_entries(),
        n_events=len(sample.key),
        species=_species(source, columns, expressions=expressions, sample=sample),
        sum_rules=_sum_rules(expressions, sample.weights, found=found),
        factorization_from=origin,
        factorization=tests,
    )


def _species(
    source: RootFiles, columns: Columns, *, expressions: Mapping[str, str], sample: _Sample
) -> dict[str, SpeciesNumbers]:
    shown = {name: sample.table[name] for name in [*columns.features, *columns.context]}
    edges = {name: column_edges(shown[name], N_BINS) for name in columns.context}
    rows = {name: largest(weight) for name, weight in sample.weights.items()}
    known = _identified(source, columns, sample.key[np.concatenate(list(rows.values()))])
    species = {}
    for name, weight in sample.weights.items():
        events = [
            {"row": int(row), **known.get(int(sample.key[row]), {}), "weight": float(weight[row])}
            | {column: float(values[row]) for column, values in shown.items()}
            for row in rows[name]
        ]
        moments = {column: weighted_moments(values, weight) for column, values in shown.items()}
        bins = {column: in_bins(shown[column], weight, edges=cuts) for column, cuts in edges.items()}
        species[name] = SpeciesNumbers(expressions[name], weight_numbers(weight), events, moments, bins)
    return species


def weight_numbers(weight: FloatArray) -> WeightNumbers:
    """Numbers of the weights of one species.

    Args:
        weight: (n,), any sign, at least one.
    """
    total, squares, used = stats.sum_w(weight), stats.sum_w2(weight), int(np.count_nonzero(weight))
    size, ones = np.abs(weight), np.ones(len(weight))
    n_extreme = math.ceil(0.01 * len(weight))
    extreme = np.partition(size, len(size) - n_extreme)[len(size) - n_extreme :]
    negative = weight[weight < 0]
    return WeightNumbers(
        n_events=len(weight),
        n_zero=len(weight) - used,
        sum_w=total,
        sum_w_error=math.sqrt(squares),
        sum_w2=squares,
        n_eff=stats.n_eff(weight),
        n_eff_fraction=_over(stats.n_eff(weight), used),
        mean=float(stats.mean(weight, ones)),
        minimum=float(np.min(weight)),
        maximum=float(np.max(weight)),
        negative_fraction=_over(len(negative), used),
        negative_share=_over(stats.sum_w(negative), total),
        extreme_share_abs=_over(stats.sum_w(extreme), stats.sum_w(size)),
        extreme_share_w2=_over(stats.sum_w2(extreme), squares),
        largest_share_w2=_over(float(np.max(size)) ** 2, squares),
        quantiles={f"{q:g}": float(v) for q, v in zip(LEVELS, stats.quantile(weight, ones, LEVELS), strict=True)},
    )


def largest(weight: FloatArray, count: int = N_LARGEST) -> NDArray[np.int64]:
    """Rows of the events with the largest absolute weights (at most `count`,), largest first, the earlier of equals."""
    size = np.abs(weight)
    last = np.partition(size, len(size) - min(count, len(size)))[len(size) - min(count, len(size))]
    rows = np.flatnonzero(size > last)
    rows = np.concatenate([rows, np.flatnonzero(size == last)[: min(count, len(size)) - len(rows)]])
    return rows[np.lexsort((rows, -size[rows]))]


def weighted_moments(values: FloatArray, weight: FloatArray) -> Moments:
    """Weighted mean and width of a column, with their errors by sum w^2.

    Args:
        values: (n,).
        weight: (n,), any sign.
    """
    total = stats.sum_w(weight)
    if total <= 0:
        return Moments(None, None, None, None)
    mean = float(stats.mean(values, weight))
    squared = (values - mean) ** 2
    mean_error = math.sqrt(stats.sum_w2(weight * (values - mean))) / total
    variance = float(stats.mean(squared, weight))
    if variance <= 0:
        return Moments(mean, mean_error, 0.0 if variance == 0 else None, None)
    width = math.sqrt(variance)
    width_error = math.sqrt(stats.sum_w2(weight * (squared - variance))) / (2 * width * total)
    return Moments(mean, mean_error, width, width_error)


def in_bins(values: FloatArray, weight: FloatArray, *, edges: FloatArray) -> list[BinNumbers]:
    """Numbers of the weights in bins of a column.

    Args:
        values: (n,), within the edges.
        weight: (n,), any sign.
        edges: (b + 1,) increasing, or the single value of a constant column.

    Returns:
        One record for each bin; the last one is closed on both sides.
    """
    index = np.searchsorted(edges[1:-1], values, side="right")
    highs = edges[1:] if len(edges) > 1 else edges
    bins = []
    for which, (low, high) in enumerate(zip(edges, highs, strict=False)):
        inside = index == which
        own, found = weight[inside], values[inside]
        if len(found) and found.min() == found.max():
            low = high = found[0]
        sums = stats.sum_w(own), math.sqrt(stats.sum_w2(own)), stats.n_eff(own)
        bins.append(BinNumbers(float(low), float(high), int(np.count_nonzero(own)), *sums))
    return bins


def _identified(source: RootFiles, columns: Columns, wanted: KeyArray) -> dict[int, dict[str, int]]:
    """Values of the key branches of these keys, exactly, read once more; empty without key branches."""
    if not columns.key:
        return {}
    request = Request({}, columns.key, columns.candidate, columns.cut, branches=columns.key_branches)
    found = {}
    for chunk in source.chunks(request):
        for row in np.flatnonzero(np.isin(chunk.key, wanted)):
            found[int(chunk.key[row])] = {name: int(chunk.branches[name][row]) for name in columns.key_branches}
    return found


def _sum_rules(
    expressions: Mapping[str, str], weights: Mapping[str, FloatArray], *, found: list[dict[str, Any]]
) -> SumRules:
    yields = _yields(expressions, weights, found=found)
    if len(weights) < 2:
        return SumRules(0, None, yields)
    used = np.logical_or.reduce([weight != 0 for weight in weights.values()])
    total = np.sum([weight[used] for weight in weights.values()], axis=0)
    return SumRules(int(np.sum(used)), float(np.max(np.abs(total - 1), initial=0.0)), yields)


def _provenance(path: Path) -> dict[str, Any]:
    """What the file says about the making of its weights; empty if nothing, or in a way not known here."""
    try:
        found = read_provenance(path)
    except ValueError:
        return {}
    parts = [found.get(name) for name in ("splot", "fractions", "weights")] if isinstance(found, dict) else []
    return next((part for part in parts if isinstance(part, dict)), {})


def _yields(
    expressions: Mapping[str, str], weights: Mapping[str, FloatArray], *, found: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Sums of the weight branches against the fitted yields, summed over the files; empty if any has none."""
    out = {}
    for name, text in expressions.items():
        prefix, _, fitted = text.strip().partition("_")
        yields = [_yield_in(part, fitted) for part in found] if prefix in ("sw", "w") else [None]
        numbers = [value for value in yields if value is not None]
        expected = math.fsum(numbers)
        if len(numbers) == len(yields) and expected != 0:
            total = stats.sum_w(weights[name])
            out[name] = {"sum_w": total, "yield": expected, "relative": total / expected - 1}
    return out


def _yield_in(part: Mapping[str, Any], species: str) -> float | None:
    """Fitted yield of a species in the provenance; None if it isn't there."""
    table = part.get("yields")
    value = table.get(species) if isinstance(table, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _tests(
    splot: SPlot | None, columns: Columns, *, table: Mapping[str, FloatArray], found: list[dict[str, Any]]
) -> tuple[str, list[Dependence]]:
    """Factorization tests: done now, or found in the files, or none; and which."""
    if splot:
        bins = [name for name in splot.branches if name != splot.spectator]
        tested = {name: table[name] for name in [*columns.features, *columns.context, *bins]}
        results = factorization_test(splot, table[splot.spectator], tested)
        return "test", [test for result in results if (test := _dependence(vars(result)))]
    tests = []
    for count, part in enumerate(found, start=1):
        entries = part.get("factorization")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and (test := _dependence(entry, f"file {count}" if len(found) > 1 else "")):
                tests.append(test)
    return ("file" if tests else "none"), tests


def _dependence(entry: Mapping[str, Any], file: str = "") -> Dependence | None:
    """Record of a test from its fields; None if the fields are not those of a test."""
    try:
        edges, named = entry.get("edges") or (), entry.get("deviations") or {}
        pulls = [(abs(v), name, v, i) for name, vs in named.items() for i, v in enumerate(vs) if v is not None]
        _, parameter, deviation, index = max(pulls, default=(0.0, "", 0.0, 0))
        low, high = (float(edges[index]), float(edges[index + 1])) if parameter else (None, None)
        sizes = [float(entry[name]) for name in ("chi2", "p_value", "p_corrected")]
        where = ", ".join(filter(None, [str(entry.get("where") or ""), file]))
        column, ndf = str(entry["column"]), int(entry["ndf"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return None
    if not np.all(np.isfinite([*sizes, deviation])):
        return None
    return Dependence(column, sizes[0], ndf, sizes[1], sizes[2], parameter, float(deviation), low, high, where)


def _terminal_cells(w: WeightNumbers) -> tuple[str, ...]:
    sizes = with_error(w.sum_w, w.sum_w_error, "+-"), number(w.n_eff), _percent(w.n_eff_fraction)
    return *sizes, _percent(w.negative_fraction), number(w.minimum), number(w.maximum)


def _verdicts(name: str, w: WeightNumbers) -> list[str]:
    """What is off with the weights of one species."""
    found = []
    if w.sum_w <= 0:
        found.append(f"{name}: the weights sum to {number(w.sum_w)}, expected a positive sum")
    if w.n_eff_fraction is not None and w.n_eff_fraction < LEAST_N_EFF:
        found.append(f"{name}: n_eff is only {_percent(w.n_eff_fraction)} of the events with a weight other than 0")
    if w.largest_share_w2 is not None and w.largest_share_w2 > LARGEST_SHARE:
        found.append(f"{name}: a single event carries {_percent(w.largest_share_w2)} of sum_w2")
    return found


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
        ("n_eff / events of weight other than 0", *(_percent(w.n_eff_fraction) for w in each)),
        ("mean weight", *(number(w.mean) for w in each)),
        ("smallest weight", *(number(w.minimum) for w in each)),
        ("largest weight", *(number(w.maximum) for w in each)),
        ("negative, of events of weight other than 0", *(_percent(w.negative_fraction) for w in each)),
        ("sum of negative weights / sum_w", *(_percent(w.negative_share) for w in each)),
        ("1 % of events with largest |w|: share of sum |w|", *(_percent(w.extreme_share_abs) for w in each)),
        ("1 % of events with largest |w|: share of sum_w2", *(_percent(w.extreme_share_w2) for w in each)),
        ("event with largest |w|: share of sum_w2", *(_percent(w.largest_share_w2) for w in each)),
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
        caption = f"{_labelled(name, unit)}; {_percent(max(outside, 0.0))} of events outside."
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
    return with_error(one.sum_w, one.sum_w_error), number(one.n_eff), _percent(_over(one.n_eff, one.n_events))


def _interval(one: BinNumbers, *, last: bool) -> str:
    if one.low == one.high:
        return _short(one.low)
    return f"[{_short(one.low)}, {_short(one.high)}{']' if last else ')'}"


def _short(value: float | None) -> str:
    """Integers as such."""
    return number(int(value) if value is not None and float(value).is_integer() else value)


def _sum_section(report: WeightsReport) -> Section:
    rules = report.sum_rules
    text = [f"Sum over the species for each event: {_sum_rule_text(rules)}."]
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


def _lead(report: WeightsReport) -> str:
    selected = f"{report.n_events} of {report.n_rows} rows"
    return f"Tree '{report.tree}', {selected}" + (f", cut: {report.cut}" if report.cut else "")


def _shown(files: list[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _sum_rule_text(rules: SumRules) -> str:
    if rules.largest_deviation is None:
        return "there is only one species"
    deviation = number(rules.largest_deviation, 2)
    text = f"largest |sum - 1| is {deviation} over {rules.n_events} events of weights other than 0"
    return text + ("" if rules.largest_deviation <= SUM_TOLERANCE else ", so they do not sum to 1")


def _factorization_text(report: WeightsReport) -> str:
    if not report.factorization:
        return NOT_TESTED
    worst = min(report.factorization, key=lambda test: test.p_corrected)
    origin = "tested now" if report.factorization_from == "test" else "as stored in the file"
    return (
        f"{len(report.factorization)} columns, {origin}; smallest p {worst.p_corrected:.2g} (corrected), {worst.column}"
    )


def _without_sum(report: WeightsReport) -> list[str]:
    return [name for name, one in report.species.items() if one.weights.sum_w <= 0]


def _labelled(name: str, unit: str) -> str:
    return f"{name} [{unit}]" if unit else name


def _over(value: float, total: float) -> float | None:
    return value / total if total != 0 else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{number(100 * value, 3)} %"
