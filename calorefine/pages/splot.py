"""Section on the calibration sample: the spectator fit, its sWeights, and their effective numbers of events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from calorefine.pages.page import Picture, Record, Section, Table
from calorefine.text import number, percent, short, with_error
from calorefine.weights.stored import stored_tests
from calorefine.weights.summary import LEAST_P_VALUE, Dependence

LOW = 0.05  # p-value from which on pairs of columns are left out


def fits_of(record: Record) -> list[Record]:
    """The fits in a JSON file of `calorefine splot`: one for each bin of context, or one for all events."""
    return record.get("bins") or [record]


def splot_section(path: Path, record: Record, pictures: Mapping[Path, bytes | None]) -> Section:
    """Yields, effective numbers of events, tests and pictures.

    Args:
        path: JSON file of `calorefine splot`.
        record: what it holds.
        pictures: file to picture of each fit; None if there is no such file.
    """
    fits, tests = fits_of(record), stored_tests([record])
    target, (low, high), n_eff = fits[0]["target"], fits[0]["range"], record["n_effective"]
    text = (
        f"{path}: fit of the spectator {fits[0]['spectator']} in [{number(low)}, {number(high)}]; the weights are "
        f"those of {target}. n_eff = (sum_w)\u00b2 / sum_w2 is the size of an unweighted sample with "
        "the same relative error."
    )
    size = f"{_total(fits, 'n_events')} events, n_eff of {target} {number(n_eff[target])}"
    figures = []
    for fit, data in zip(fits, pictures.values(), strict=True):
        where = f" at {fit['bin']}" if fit.get("bin") else ""
        caption = f"Fit of the spectator{where}: data, species, and pulls."
        figures += [Picture(data, f"Spectator fit{where}", caption)] if data else []
    return Section(
        "Calibration sample",
        [text],
        _warnings(record, fits, tests),
        [_species(record, fits), _parameters(fits), _alternatives(record), factorization_table(tests)],
        figures,
        numbers=[("calibration sample", size)],
        missing=[f"there is no picture {name}" for name, data in pictures.items() if data is None],
    )


def _total(fits: Sequence[Record], name: str) -> int:
    return sum(int(fit[name]) for fit in fits)


def _species(record: Record, fits: Sequence[Record]) -> Table:
    """Yields, effective numbers and what the replicas have of them."""
    replicas, events, n_eff = record.get("replicas") or {}, _total(fits, "n_events"), record["n_effective"]

    def span(name: str) -> str:
        spread = replicas.get("n_eff", {}).get(f"sw_{name}", [])
        return f"{number(min(spread))} to {number(max(spread))}" if spread else "-"

    return Table.of(
        f"{events} events fitted, {_total(fits, 'n_outside')} outside of the range (weight 0)",
        record["yields"],
        {
            "species": str,
            "yield": lambda name: number(record["yields"][name]),
            "n_eff": lambda name: number(n_eff[name]),
            "n_eff / events": lambda name: percent(n_eff[name] / events),
            f"n_eff of {replicas.get('n', 0)} replicas, counts included": span,
        },
    )


def _parameters(fits: Sequence[Record]) -> Table:
    """Parameters of every fit, and how well it describes the spectator."""
    rows = []
    for index, fit in enumerate(fits):
        prefix = f"bin {index}: " if len(fits) > 1 else ""
        for name, value, error in zip(fit["names"], fit["values"], fit["errors"], strict=True):
            note = "fixed" if name in fit["fixed"] else "at its limit" if name in fit["at_limit"] else ""
            rows.append((prefix + name, number(value) if note == "fixed" else with_error(value, error), note))
        chi2 = f"{fit['chi2']:.1f}/{fit['ndf']}"
        rows.append((f"{prefix}\u03c7\u00b2/ndf", chi2, f"p = {number(fit['p_value'], 2)}"))
    marked = [k for k, (_, _, note) in enumerate(rows) if note == "at its limit"]
    return Table("Parameters of the fit", ("parameter", "value", "note"), rows, marked)


def _alternatives(record: Record) -> Table:
    """Yields under other shapes."""
    others, species = record.get("alternatives") or {}, list(record["yields"])
    rows = [[name, *(number(one["yields"][key]) for key in species)] for name, one in others.items()]
    return Table("Yields with alternative shapes", ("shapes", *species), rows)


def factorization_table(tests: Sequence[Dependence]) -> Table:
    """What was tested, and the verdict; columns on which the spectator's shape depends are pointed out."""
    return Table.of(
        f"Does the spectator's shape depend on a column, or on two together (pairs of p < {LOW})?",
        [test for test in tests if test.low is not None or test.p_value < LOW or not test.ndf],
        {
            "column": lambda test: test.column,
            "\u03c7\u00b2/ndf": lambda test: f"{test.chi2:.1f}/{test.ndf}",
            "p": lambda test: number(test.p_value, 2),
            "p, corrected": lambda test: number(test.p_corrected, 2),
            "largest deviation": lambda test: f"{test.parameter} {test.deviation:+.1f}" if test.parameter else "-",
            "where": _tested_where,
            "verdict": lambda test: "dependent" if test.depends else "no sign of it" if test.ndf else "not testable",
        },
        lambda test: test.depends,
    )


def _tested_where(test: Dependence) -> str:
    within = f"{test.column} in [{short(test.low)}, {short(test.high)}]" if test.low is not None else ""
    return ", ".join(filter(None, [within, test.where])) or "-"


def _warnings(record: Record, fits: Sequence[Record], tests: Sequence[Dependence]) -> list[str]:
    out = []
    for fit in fits:
        where = f"spectator fit at {fit['bin']}" if fit.get("bin") else "spectator fit"
        p = fit["p_value"]
        out += [] if fit["valid"] else [f"{where}: did not converge"]
        out += [f"{where}: {', '.join(fit['at_limit'])} at the limit"] if fit["at_limit"] else []
        out += [f"{where}: p = {p:.2g}, the shapes don't describe it"] if p is not None and p < LEAST_P_VALUE else []
    dependent = [test.column for test in tests if test.depends]
    out += [f"the spectator's shape depends on {', '.join(dependent)}: sWeights are biased there"] if dependent else []
    replicas = record.get("replicas") or {}
    odd, left_out = replicas.get("fits") or {}, replicas.get("left_out") or {}
    out += [f"{len(odd)} of {replicas['n']} replicas had a fit that ran away or ended at a limit"] if odd else []
    out += [f"replica {index} is left out, with weights 0: {text}" for index, text in left_out.items()]
    if replicas.get("n") and not replicas.get("refit"):
        out.append("replicas of the sWeights keep the nominal fit: their spread lacks its uncertainty")
    return out
