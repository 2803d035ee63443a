"""Section on the observables: values with their uncertainty, the budget by source, and the covariance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calorefine.pages.figures.observables import Shown, budget_figure, joint_figure, matrices_figure, value_figure
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.run.propagated import Propagated
from calorefine.pages.run.section import Part, absent, labelled, percent
from calorefine.stats import FloatArray, error_of_error
from calorefine.systematics import Systematics
from calorefine.systematics.systematics import MOST_ERROR_OF_ERROR
from calorefine.text import number, with_error

TITLE = "Observables"
OPTION = ("systematics", "the .npz file of 'calorefine propagate'")
LEVEL_95 = 0.9545


def observables_part(found: Propagated | None, truth: Mapping[str, tuple[FloatArray, FloatArray]]) -> Part:
    """Values, budget by source and covariance.

    Args:
        found: of `calorefine propagate`.
        truth: observable to true values and their errors, where they are known.
    """
    if found is None:
        return absent(TITLE, *OPTION)
    systematics, parts = found.systematics, list(found.systematics.bins)
    text = [
        f"{found.path}: bands are the 68.3 % and 95.5 % intervals by the total covariance, with Student's t for the "
        "finite number of replicas. Sources add up in quadrature; a source that is part of another one is not added.",
        *[f"{name} is a part of {one.part_of}." for name, one in systematics.sources.items() if one.part_of],
    ]
    tables = [_budget_table(found), *(_bin_table(found, name) for name in parts), _source_table(systematics)]
    figures = [picture for name in parts for picture in _figures(found, name, truth.get(name))]
    if len(parts) > 1:
        caption = "Correlation of all bins of all observables, by the total covariance."
        picture = joint_figure(systematics.correlation(), {name: systematics.bins[name].n for name in parts})
        figures.append(Picture(picture, "Correlation matrix of all observables", caption, wide=True))
    warnings = [*systematics.notes, *found.provenance.get("messages", []), *_warnings(systematics)]
    return Part(
        Section(TITLE, text, list(dict.fromkeys(warnings)), tables, figures),
        _numbers(systematics),
        _missing(systematics),
    )


def _names(systematics: Systematics) -> list[str]:
    return ["total", *systematics.sources]


def _budget_table(found: Propagated) -> Table:
    systematics, names = found.systematics, _names(found.systematics)
    rows = []
    for name in systematics.bins:
        own = float(np.mean(systematics.error_of_error[systematics.part(name)]))
        power: Mapping[str, Any] = found.provenance.get("power", {}).get(name, {})
        plateau = number(power.get("plateau"), 3) if power else "-"
        rows.append(
            [
                name,
                *(percent(systematics.relative_error(name, source)) for source in (None, *systematics.sources)),
                percent(own),
                _worth(power),
                plateau,
            ]
        )
    header = ("observable", *names, "error of the error", "worth", "at most")
    caption = (
        "Relative errors by source (root mean square over the bins), how well the total is known, and how many "
        "reference events the generated sample is worth, now and with ever more generated events"
    )
    return Table(caption, header, rows)


def _worth(power: Mapping[str, Any]) -> str:
    """Equivalent number of reference events of the sample as it is."""
    pairs = zip(power.get("n_generated", []), power.get("equivalent", []), strict=True)
    now = [value for n, value in pairs if n <= power["n_eff"] * (1 + 1e-9)]
    return number(now[-1], 3) if now else "-"


def _bin_table(found: Propagated, name: str) -> Table:
    """Values and errors of each bin."""
    systematics, part = found.systematics, found.systematics.part(name)
    bins = systematics.bins[name]
    errors = {source: systematics.errors(None if source == "total" else source)[part] for source in _names(systematics)}
    rows = []
    for index, value in enumerate(systematics.nominal[part]):
        cells = [number(float(own[index]), 3) for own in errors.values()]
        rows.append(
            [bin_text(systematics, name, index), with_error(float(value), float(errors["total"][index])), *cells]
        )
    header = (labelled(bins.title or name, bins.unit), found.label(name), *errors)
    return Table(f"{name}: errors of each bin by source", header, rows)


def bin_text(systematics: Systematics, name: str, index: int) -> str:
    """Interval of a value of an observable, and which of several in a bin."""
    bins = systematics.bins[name]
    bin_, level = divmod(index, bins.per_bin)
    low, high = bins.edges[bin_], bins.edges[bin_ + 1]
    more = f", value {level + 1} of {bins.per_bin}" if bins.per_bin > 1 else ""
    return f"[{low:g}, {high:g}{']' if high == bins.edges[-1] else ')'}{more}"


def _source_table(systematics: Systematics) -> Table:
    rows = [
        [name, one.rule, number(one.dof, 3), one.part_of or "-", number(one.scale, 3)]
        for name, one in systematics.sources.items()
    ]
    return Table(
        "Sources", ("source", "how it was found", "degrees of freedom", "part of", "scale of the errors"), rows
    )


def _figures(found: Propagated, name: str, truth: tuple[FloatArray, FloatArray] | None) -> list[Picture]:
    systematics, part = found.systematics, found.systematics.part(name)
    bins = systematics.bins[name]
    label = labelled(bins.title or name, bins.unit)
    ends = [tuple(end[part] for end in systematics.interval(*level)) for level in ((), (LEVEL_95,))]
    shown = Shown(np.asarray(bins.edges), systematics.nominal[part], ends[0], ends[1], truth, bins.per_bin)
    points = "; points: truth" if truth else ""
    value = value_figure(shown, label, found.label(name))
    budget = budget_figure(systematics, name, label)
    size = np.where(systematics.nominal[part] != 0, np.abs(systematics.nominal[part]), np.nan)
    covariance = systematics.total[part, part] / np.outer(size, size)
    matrices = matrices_figure(covariance, systematics.correlation()[part, part], systematics.nominal[part])
    caption = "relative errors, sources stacked in quadrature up to the total; dashed: part of another source"
    return [
        Picture(value, f"{name} with its uncertainty", f"{name}, {found.label(name)}: nominal with its bands{points}."),
        Picture(budget, f"Relative errors of {name} by source", f"{name}: {caption}."),
        Picture(
            matrices,
            f"Covariance and correlation of {name}",
            f"{name}: relative covariance and correlation of its bins.",
            wide=True,
        ),
    ]


def _warnings(systematics: Systematics) -> list[str]:
    out = []
    for name, rows in systematics.replicas.items():
        own = error_of_error(len(rows) - 1)
        if own > MOST_ERROR_OF_ERROR:
            out.append(f"{len(rows)} replicas of '{name}': its errors are known to {own:.0%} only")
    return out


def _missing(systematics: Systematics) -> list[str]:
    """Sources without which the total is incomplete, and the one that tells it apart."""
    wanted = {"calibration": "the calibration sample's statistics", "training": "the part of the training alone"}
    return [f"{TITLE}: no source '{k}' ({what})" for k, what in wanted.items() if k not in systematics.sources]


def _numbers(systematics: Systematics) -> list[tuple[str, str]]:
    return [(f"relative error of {name}", percent(systematics.relative_error(name))) for name in systematics.bins]
