"""`calorefine weights-report`: what the weights of a file are worth, on one page, whoever made them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine import stats
from calorefine.errors import ConfigError, KeyWarning
from calorefine.events import Columns
from calorefine.io.provenance import read_provenance, recorded
from calorefine.io.root import NonFinite, Request, RootFiles, read_table
from calorefine.io.writer import replacing
from calorefine.keys import KeyArray
from calorefine.pages.page import write_page
from calorefine.pages.weights import lead, page_sections
from calorefine.stats import FloatArray
from calorefine.weights.factorization import column_edges, factorization_test
from calorefine.weights.splot import SPlot
from calorefine.weights.summary import (
    N_BINS,
    Dependence,
    SpeciesNumbers,
    SumRules,
    WeightsReport,
    in_bins,
    shown,
    weight_numbers,
    weighted_moments,
)

N_LARGEST = 10


@dataclass(frozen=True)
class _Sample:
    """Columns and what the spectator fit needs, by name; weights by species; keys; all (n,)."""

    table: dict[str, FloatArray]
    weights: dict[str, FloatArray]
    key: KeyArray


@recorded("weights-report")
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
        write_page(page, f"Weights of {shown(report.files)}", sections=sections, lead=lead(report))
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
    table = {name: sample.table[name] for name in [*columns.features, *columns.context]}
    edges = {name: column_edges(table[name], N_BINS) for name in columns.context}
    rows = {name: largest(weight) for name, weight in sample.weights.items()}
    known = _identified(source, columns, sample.key[np.concatenate(list(rows.values()))])
    species = {}
    for name, weight in sample.weights.items():
        events = [
            {"row": int(row), **known.get(int(sample.key[row]), {}), "weight": float(weight[row])}
            | {column: float(values[row]) for column, values in table.items()}
            for row in rows[name]
        ]
        moments = {column: weighted_moments(values, weight) for column, values in table.items()}
        bins = {column: in_bins(table[column], weight, edges=cuts) for column, cuts in edges.items()}
        species[name] = SpeciesNumbers(expressions[name], weight_numbers(weight), events, moments, bins)
    return species


def largest(weight: FloatArray, count: int = N_LARGEST) -> NDArray[np.int64]:
    """Rows of the events with the largest absolute weights (at most `count`,), largest first, the earlier of equals."""
    size = np.abs(weight)
    last = np.partition(size, len(size) - min(count, len(size)))[len(size) - min(count, len(size))]
    rows = np.flatnonzero(size > last)
    rows = np.concatenate([rows, np.flatnonzero(size == last)[: min(count, len(size)) - len(rows)]])
    return rows[np.lexsort((rows, -size[rows]))]


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
