"""Section on the observables: values with their uncertainty, the budget by source, and the covariance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calorefine.pages.figures.matrices import Matrix, matrices_figure
from calorefine.pages.figures.panels import Curve, Panel, filled, panel_figure
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.style import COLORS
from calorefine.stats import FloatArray
from calorefine.systematics import Systematics
from calorefine.systematics.closure import Compared
from calorefine.systematics.propagated import Propagated
from calorefine.text import labelled, number, percent, with_error

LEVEL_95 = 0.9545
HATCHES = ("", "//", "..", "\\\\", "xx", "oo")
EXPECTED = {"calibration": "the calibration sample's statistics", "training": "the part of the training alone"}


def observables_section(propagated: Propagated, truth: Compared | None) -> Section:
    """Values, budget by source and covariance.

    Args:
        propagated: of `calorefine propagate`.
        truth: true values, if they are known.
    """
    systematics, names = propagated.systematics, list(propagated.systematics.bins)
    text = [
        f"{propagated.path}: bands are the 68.3 % and 95.5 % intervals by the total covariance, with Student's t for "
        "the finite number of replicas. Sources add up in quadrature; a source that is part of another one is not "
        "added.",
        *[f"{name} is a part of {one.part_of}." for name, one in systematics.sources.items() if one.part_of],
    ]
    figures = [picture for name in names for picture in _figures(propagated, name, truth)]
    if len(names) > 1:
        sizes = {name: systematics.bins[name].n for name in names}
        picture = matrices_figure([Matrix(systematics.correlation(), sizes=sizes)], size=8.5)
        caption = "Correlation of all bins of all observables, by the total covariance."
        figures.append(Picture(picture, "Correlation matrix of all observables", caption, wide=True))
    messages: list[str] = propagated.provenance.get("messages", [])
    serious = [message.removeprefix("WARNING: ") for message in messages if message.startswith("WARNING: ")]
    text += [message for message in messages if not message.startswith("WARNING: ")]
    return Section(
        "Observables",
        text,
        list(dict.fromkeys([*systematics.notes, *serious])),
        [_budget_table(propagated), *(_bin_table(propagated, name) for name in names), _source_table(systematics)],
        figures,
        numbers=[(f"relative error of {name}", percent(systematics.relative_error(name))) for name in names],
        missing=[f"no source '{name}' ({what})" for name, what in EXPECTED.items() if name not in systematics.sources],
    )


def _budget_table(propagated: Propagated) -> Table:
    systematics = propagated.systematics
    powers: Mapping[str, Any] = propagated.provenance.get("power", {})
    rows = [
        [
            name,
            *(percent(systematics.relative_error(name, source)) for source in (None, *systematics.sources)),
            percent(float(np.mean(systematics.error_of_error[systematics.part(name)]))),
            _equivalent(powers.get(name, {})),
            number(powers.get(name, {}).get("plateau"), 3),
        ]
        for name in systematics.bins
    ]
    header = ("observable", "total", *systematics.sources, "error of the error", "equivalent events", "at most")
    caption = (
        "Relative errors by source (root mean square over the bins), how well the total is known, and how many "
        "reference events have the same errors as the generated sample, now and with ever more generated events"
    )
    return Table(caption, header, rows)


def _equivalent(power: Mapping[str, Any]) -> str:
    """Equivalent number of reference events of the sample as it is."""
    pairs = zip(power.get("n_generated", []), power.get("equivalent", []), strict=True)
    return number(next((value for n, value in reversed(list(pairs)) if n <= power["n_eff"] * (1 + 1e-9)), None), 3)


def _bin_table(propagated: Propagated, name: str) -> Table:
    """Values and errors of each bin."""
    systematics, part = propagated.systematics, propagated.systematics.part(name)
    bins = systematics.bins[name]
    errors = {source or "total": systematics.errors(source)[part] for source in (None, *systematics.sources)}
    rows = [
        [
            bin_text(systematics, name, index),
            with_error(float(value), float(errors["total"][index])),
            *(number(float(error[index]), 3) for error in errors.values()),
        ]
        for index, value in enumerate(systematics.nominal[part])
    ]
    header = (labelled(bins.title or name, bins.unit), propagated.label(name), *errors)
    return Table(f"{name}: errors of each bin by source", header, rows)


def bin_text(systematics: Systematics, name: str, index: int) -> str:
    """Interval of a value of an observable, and which of several in a bin."""
    bins = systematics.bins[name]
    bin_, level = divmod(index, bins.per_bin)
    low, high = bins.edges[bin_], bins.edges[bin_ + 1]
    more = f", value {level + 1} of {bins.per_bin}" if bins.per_bin > 1 else ""
    return f"[{low:g}, {high:g}{']' if high == bins.edges[-1] else ')'}{more}"


def _source_table(systematics: Systematics) -> Table:
    return Table.of(
        "Sources",
        systematics.sources.values(),
        {
            "source": lambda one: one.name,
            "how it was found": lambda one: one.rule,
            "degrees of freedom": lambda one: number(one.dof, 3),
            "part of": lambda one: one.part_of or "-",
            "scale of the errors": lambda one: number(one.scale, 3),
        },
    )


def _figures(propagated: Propagated, name: str, truth: Compared | None) -> list[Picture]:
    systematics, part = propagated.systematics, propagated.systematics.part(name)
    bins, nominal = systematics.bins[name], systematics.nominal[part]
    label, values = labelled(bins.title or name, bins.unit), propagated.label(name)
    size = np.abs(_nonzero(nominal))
    covariance, filled_bins = systematics.total[part, part] / np.outer(size, size), filled(nominal)
    most = float(np.abs(covariance[np.ix_(filled_bins, filled_bins)]).max(initial=0.0)) or 1.0
    correlation = Matrix(systematics.correlation()[part, part], "correlation", numbers=True)
    matrices = matrices_figure([Matrix(covariance, "relative covariance", most), correlation])
    points = "; points: truth" if truth else ""
    budget = "relative errors, sources stacked in quadrature up to the total; dashed: part of another source"
    both = f"{name}: relative covariance and correlation of its bins."
    return [
        Picture(
            panel_figure(_value_panel(systematics, name, label, values, truth)),
            f"{name} with its uncertainty",
            f"{name}, {values}: nominal with its bands{points}.",
        ),
        Picture(
            panel_figure(_budget_panel(systematics, name, label)),
            f"Relative errors of {name} by source",
            f"{name}: {budget}.",
        ),
        Picture(matrices, f"Covariance and correlation of {name}", both, wide=True),
    ]


def _nonzero(values: FloatArray) -> FloatArray:
    return np.where(values != 0, values, np.nan)


def _value_panel(systematics: Systematics, name: str, label: str, values: str, truth: Compared | None) -> Panel:
    """Values with bands, and ratios to the nominal ones below; several values of a bin in different colors."""
    part, bins = systematics.part(name), systematics.bins[name]
    nominal, edges = systematics.nominal[part], np.asarray(bins.edges)
    outer, inner = ([end[part] for end in systematics.interval(*level)] for level in ((LEVEL_95,), ()))
    curves: list[Curve] = []
    ratios: list[Curve] = []
    for level in range(bins.per_bin):
        own = slice(level, None, bins.per_bin)
        bands = [
            {"low": low[own], "high": high[own], "alpha": alpha, "label": "" if level else text}
            for (low, high), alpha, text in ((outer, 0.18, "95 %"), (inner, 0.35, "68 %"))
        ]
        color, text = COLORS[level % len(COLORS)], "" if level else "nominal"
        curves.append(Curve(text, nominal[own], line="-", color=color, bands=bands))
        if truth:
            errors = np.sqrt(np.diag(truth.covariance))[part][own]
            curves.append(Curve("" if level else "truth", truth.values[part][own], errors))
        ratios += [one.over(_nonzero(nominal[own])) for one in curves[len(ratios) :]]
    chosen = [filled(nominal[level :: bins.per_bin]) for level in range(bins.per_bin) for _ in range(1 + bool(truth))]
    away = np.concatenate([ratio.away()[mask] for ratio, mask in zip(ratios, chosen, strict=True)])
    reach = float(np.clip(1.1 * np.nanmax(away, initial=0.0), 0.01, 1.0))
    return Panel(edges, curves, label, values, ratios, "ratio to nominal", None, reach=reach)


def _budget_panel(systematics: Systematics, name: str, label: str) -> Panel:
    """Relative errors by source: each layer ends at the root of the sum of the squares so far."""
    part, bins = systematics.part(name), systematics.bins[name]
    nominal = systematics.nominal[part]
    edges = np.asarray(bins.edges if bins.per_bin == 1 else np.arange(bins.n + 1) + 0.5, np.float64)
    variance, total, curves = np.zeros(bins.n), np.zeros(bins.n), []
    for index, source in enumerate(systematics.added):
        below, variance = total, variance + np.diag(systematics.covariance(source))[part]
        total = np.nan_to_num(np.sqrt(variance) / np.abs(_nonzero(nominal)))
        look = {"alpha": 0.75, "label": source, "hatch": HATCHES[index % len(HATCHES)]}
        layer = {"low": below, "high": total} | look
        curves.append(Curve("", total, line="-", color=COLORS[index % len(COLORS)], bands=[layer]))
    curves.append(Curve("total", total, line="-", options={"linewidth": 1.6}))
    for one in systematics.sources.values():
        if one.part_of:
            errors = np.nan_to_num(np.sqrt(np.diag(one.covariance))[part] / np.abs(_nonzero(nominal)))
            curves.append(Curve(one.name, errors, line="--", options={"linewidth": 1.3}))
    top = 1.15 * max(total[filled(nominal)].max(initial=0.0), 1e-6)
    axis = label if bins.per_bin == 1 else "number of the value"
    return Panel(edges, curves, axis, "relative error", level=None, options={"ylim": (0, top)}, percent=True)
