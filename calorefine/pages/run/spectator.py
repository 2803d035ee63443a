"""Section on the calibration sample: the spectator fit, its sWeights, and how many events they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.run.section import Part, absent, percent, read_json
from calorefine.text import number, with_error

TITLE = "Calibration sample"
LEAST_P_VALUE = 0.01
OPTION = ("splot", "the JSON file that 'calorefine splot' writes beside its output")


def spectator_part(splot: str | None) -> Part:
    """Yields, effective numbers of events, tests and pictures.

    Args:
        splot: JSON file of `calorefine splot`.

    Raises:
        FileError: it is none.
    """
    if splot is None:
        return absent(TITLE, *OPTION)
    path = Path(splot)
    content = read_json(path, ("n_effective", "yields"), "calorefine splot")
    fits = content.get("bins") or [content]
    found, missing = _pictures(path, [fit.get("bin", "") for fit in fits])
    low, high = fits[0]["range"]
    text = [
        f"{path}: fit of the spectator {fits[0]['spectator']} in [{number(low)}, {number(high)}]; the weights are "
        f"those of {fits[0]['target']}. n_eff = (sum_w)\u00b2 / sum_w2 is the size of an unweighted sample with "
        "the same relative error."
    ]
    tables = [_species_table(content, fits), _parameter_table(fits), *_alternatives(content), *_factorization(content)]
    section = Section(TITLE, text, _warnings(content, fits), tables, found)
    target = fits[0]["target"]
    n_eff = content["n_effective"][target]
    size = f"{number(_total(fits, 'n_events'))} events, n_eff of {target} {number(n_eff)}"
    return Part(section, [("calibration sample", size)], missing)


def _total(fits: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(fit[name]) for fit in fits)


def _species_table(content: Mapping[str, Any], fits: Sequence[Mapping[str, Any]]) -> Table:
    """Yields, effective numbers and what the replicas have of them."""
    replicas = content.get("replicas") or {}
    n_replicas = replicas.get("n", 0)
    events = _total(fits, "n_events")
    rows = []
    for name, size in content["yields"].items():
        n_eff = content["n_effective"][name]
        spread = replicas.get("n_eff", {}).get(f"sw_{name}", [])
        span = f"{number(min(spread))} to {number(max(spread))}" if spread else "-"
        rows.append([name, number(size), number(n_eff), percent(n_eff / events), span])
    header = ("species", "yield", "n_eff", "n_eff / events", f"n_eff of {n_replicas} replicas, counts included")
    return Table(f"{events} events fitted, {_total(fits, 'n_outside')} outside of the range (weight 0)", header, rows)


def _parameter_table(fits: Sequence[Mapping[str, Any]]) -> Table:
    """Parameters of every fit, and how well it describes the spectator."""
    rows: list[list[str]] = []
    bad: list[int] = []
    for index, fit in enumerate(fits):
        prefix = f"bin {index}: " if len(fits) > 1 else ""
        for name, value, error in zip(fit["names"], fit["values"], fit["errors"], strict=True):
            note = "fixed" if name in fit["fixed"] else "at its limit" if name in fit["at_limit"] else ""
            bad += [len(rows)] if note == "at its limit" else []
            rows.append([prefix + name, number(value) if note == "fixed" else with_error(value, error), note])
        rows.append(
            [f"{prefix}\u03c7\u00b2/ndf", f"{fit['chi2']:.1f}/{fit['ndf']}", f"p = {number(fit['p_value'], 2)}"]
        )
    return Table("Parameters of the fit", ("parameter", "value", "note"), rows, bad)


def _alternatives(content: Mapping[str, Any]) -> list[Table]:
    """Yields under other shapes."""
    others = content.get("alternatives") or {}
    species = list(content["yields"])
    rows = [[name, *(number(one["yields"][s]) for s in species)] for name, one in others.items()]
    return [Table("Yields with alternative shapes", ("shapes", *species), rows)] if rows else []


def _factorization(content: Mapping[str, Any]) -> list[Table]:
    tests = content.get("factorization") or []
    rows = [
        [one["column"], f"{one['chi2']:.1f}/{one['ndf']}", number(one["p_value"], 2), number(one["p_corrected"], 2)]
        for one in tests
    ]
    marked = [k for k, one in enumerate(tests) if one["p_corrected"] < LEAST_P_VALUE]
    header = ("column", "\u03c7\u00b2/ndf", "p", "p, corrected")
    return [Table("Does the spectator's shape depend on a column?", header, rows, marked)] if rows else []


def _warnings(content: Mapping[str, Any], fits: Sequence[Mapping[str, Any]]) -> list[str]:
    out = []
    for fit in fits:
        where = f"spectator fit at {fit['bin']}" if fit.get("bin") else "spectator fit"
        out += [] if fit["valid"] else [f"{where}: did not converge"]
        out += [f"{where}: {', '.join(fit['at_limit'])} at the limit"] if fit["at_limit"] else []
        p = fit["p_value"]
        out += [f"{where}: p = {p:.2g}, the shapes don't describe it"] if p is not None and p < LEAST_P_VALUE else []
    bad = [one["column"] for one in content.get("factorization") or [] if one["p_corrected"] < LEAST_P_VALUE]
    out += [f"the spectator's shape depends on {', '.join(bad)}: sWeights are biased there"] if bad else []
    replicas = content.get("replicas") or {}
    if replicas.get("n") and not replicas.get("refit"):
        out.append("replicas of the sWeights keep the nominal fit: their spread lacks its uncertainty")
    return out


def _pictures(path: Path, bins: Sequence[str]) -> tuple[list[Picture], list[str]]:
    """Pictures beside the file, and those that are missing."""
    names = [path.with_suffix(".png"), *(path.with_name(f"{path.stem}_{k}.png") for k in range(1, len(bins)))]
    found, missing = [], []
    for label, name in zip(bins, names, strict=True):
        where = f" at {label}" if label else ""
        if name.is_file():
            caption = f"Fit of the spectator{where}: data, species, and pulls."
            found.append(Picture(name.read_bytes(), f"Spectator fit{where}", caption))
        else:
            missing.append(f"{TITLE}: there is no picture {name}")
    return found, missing
