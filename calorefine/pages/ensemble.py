"""Section on the ensemble: which members there are, how they were trained, how far they are from held-out events."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np

from calorefine.ensemble.members import Ensemble
from calorefine.pages.figures.panels import Curve, Panel, panel_figure
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.style import COLORS
from calorefine.stats import error_of_error
from calorefine.systematics.systematics import MOST_ERROR_OF_ERROR
from calorefine.text import number, with_error

ENOUGH = 100
STARTING = 0.2  # of the validations, which don't set the vertical range
LOOKS = {  # what the legend says, color, width
    "nominal": ("nominal", "black", 2.0),
    "replica": ("bootstrap replicas", COLORS[0], 0.9),
    "seed": ("other seeds", COLORS[1], 1.2),
    "failed": ("failed", COLORS[3], 1.6),
}


def ensemble_section(ensemble: Ensemble, spec: Mapping[str, Any]) -> Section:
    """Members, their losses and distances.

    Args:
        ensemble: members.
        spec: what the nominal checkpoint says of the model and its training.
    """
    replicas, seeds = (len(ensemble.names(kind)) for kind in ("replica", "seed"))
    training, model = spec["provenance"], spec["model"]
    size = number(float(training["n_eff_signed"]))  # of the signed weights, where positive ones were made of them
    positive = "; positive weights were made of them" if training.get("positive") else ""
    text = [
        f"{model}, trained on {', '.join(training['files'])}: {training['n_train']} training and "
        f"{training['n_validation']} held-out events, weights {training['weights']}, sum_w "
        f"{number(training['sum_w'])}, n_eff {size} (of the signed weights{positive}).",
        f"{replicas} bootstrap replicas and {seeds} trainings on the same data with other seeds.",
    ]
    if replicas > 1:
        text[1] += f" An error from {replicas} replicas is known to {error_of_error(replicas - 1):.0%}."
    numbers = [
        ("generator", f"{model}: nominal, {replicas} replicas, {seeds} seeds"),
        ("trained on", f"{training['n_train']} events, n_eff {size}"),
    ]
    missing = [] if replicas else [f"no bootstrap replicas in {ensemble.folder}"]
    missing += [] if seeds else [f"no trainings with other seeds in {ensemble.folder}"]
    warnings = _warnings(ensemble, replicas, seeds)
    return Section("Training", text, warnings, [_table(ensemble)], _figures(ensemble), numbers=numbers, missing=missing)


def _warnings(ensemble: Ensemble, replicas: int, seeds: int) -> list[str]:
    failed = [name for name, one in ensemble.records.items() if one["failed"]]
    out = [f"{', '.join(failed)}: generated events differ from held-out ones: not trained well"] if failed else []
    known = error_of_error(max(replicas - 1, 1))
    if replicas and known > MOST_ERROR_OF_ERROR:
        told = f"an error from them is known to {known:.0%}" if replicas > 1 else "a single one has no spread"
        out.append(f"{replicas} replicas are few: {told}; better {ENOUGH}")
    if not replicas:
        out.append("no bootstrap replicas: the calibration sample's statistics are not in any uncertainty")
    if not seeds:
        out.append("no trainings with other seeds: how much of the spread is the training's own isn't known")
    return out


def _table(ensemble: Ensemble) -> Table:
    return Table.of(
        "Members; the distance is an energy distance, 0 where nothing differs",
        ensemble.records.values(),
        {
            "member": lambda one: one["name"],
            "events": lambda one: number(one["n_train"]),
            "sum_w": lambda one: number(one["sum_w"]),
            "n_eff": lambda one: number(one["n_eff_signed"]),
            "last validation loss": lambda one: number((one.get("val_loss") or [None])[-1]),
            "distance from held-out events": lambda one: with_error(one["distance"], one["distance_error"]),
            "": lambda one: "FAILED" if one["failed"] else "ok",
        },
        lambda one: one["failed"],
    )


def _figures(ensemble: Ensemble) -> list[Picture]:
    losses = {name: [x for x in one.get("val_loss") or [] if isfinite(x)] for name, one in ensemble.records.items()}
    out = []
    if any(losses.values()):
        caption = (
            "Validation loss of every member, on its own held-out events. The vertical range is that of the last four "
            "fifths of the training."
        )
        figure = panel_figure(_loss_panel(ensemble, losses))
        out.append(Picture(figure, "Validation losses against the number of the validation", caption))
    caption = "Energy distance of each member's events from held-out ones, with its standard error."
    figure = panel_figure(_distance_panel(ensemble))
    return [*out, Picture(figure, "Distances of the members from held-out events", caption)]


def _look(record: Mapping[str, Any]) -> tuple[str, str, float]:
    return LOOKS["failed" if record["failed"] else record["kind"]]


def _loss_panel(ensemble: Ensemble, losses: Mapping[str, list[float]]) -> Panel:
    """The nominal member is drawn on top."""
    later = [x for values in losses.values() for x in values[int(STARTING * len(values)) :]]
    margin = 0.08 * (max(later) - min(later)) or 0.5
    curves = []
    for name, record in reversed(ensemble.records.items()):
        label, color, width = _look(record)
        line, x = "--" if record["failed"] else "-", np.arange(1.0, len(losses[name]) + 1)
        curves.append(Curve(label, np.array(losses[name]), None, line, color, x=x, options={"linewidth": width}))
    edges = np.array([0.5, max(map(len, losses.values())) + 0.5])
    options = {"ylim": (min(later) - margin, max(later) + margin)}
    return Panel(edges, curves, "validation", "validation loss", level=None, options=options)


def _distance_panel(ensemble: Ensemble) -> Panel:
    curves = []
    for place, record in enumerate(ensemble.records.values()):
        label, color, _ = _look(record)
        value, error, x = (np.array([float(x)]) for x in (record["distance"], record["distance_error"], place))
        look: Mapping[str, Any] = {"markersize": 5}
        curves.append(Curve(label, value, error, color=color, index=2 * record["failed"], x=x, options=look))
    edges = np.array([-0.5, len(curves) - 0.5])
    return Panel(edges, curves, "member", "energy distance", options={"xticks": []})
