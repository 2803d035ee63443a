"""Section on the ensemble: which members there are, how they were trained, how far they are from held-out events."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from calorefine.ensemble.members import Ensemble
from calorefine.pages.figures.training import distance_figure, history_figure
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.run.section import SIGN, Part, absent
from calorefine.simulator import Simulator
from calorefine.stats import error_of_error
from calorefine.text import number, with_error

TITLE = "Training"
OPTION = ("ensemble", "the folder of 'calorefine ensemble'")
FEW, ENOUGH = 10, 100


def training_part(ensemble: str | None) -> Part:
    """Members, their losses and distances.

    Args:
        ensemble: folder of `calorefine ensemble`.

    Raises:
        FileError, ConfigError: it is none.
    """
    if ensemble is None:
        return absent(TITLE, *OPTION)
    found = Ensemble.load(ensemble)
    spec = Simulator.load(found.checkpoint("nominal")).spec
    replicas, seeds = (len(found.names(kind)) for kind in ("replica", "seed"))
    text = [_data_text(spec), _replica_text(replicas, seeds)]
    missing = [] if replicas else [f"{TITLE}: no bootstrap replicas in {ensemble}"]
    missing += [] if seeds else [f"{TITLE}: no trainings with other seeds in {ensemble}"]
    section = Section(TITLE, text, _warnings(found), [_table(found)], _figures(found))
    what = f"{spec['model']}: nominal, {replicas} replicas, {seeds} seeds"
    training = spec["provenance"]
    numbers = [("generator", what), ("trained on", f"{training['n_train']} events, n_eff {number(_n_eff(training))}")]
    return Part(section, numbers, missing)


def _n_eff(training: Mapping[str, Any]) -> float:
    """Of the signed weights, where positive ones were made of them."""
    return float(training["n_eff_signed"])


def _data_text(spec: Mapping[str, Any]) -> str:
    data = spec["provenance"]
    positive = "; positive weights were made of them" if data.get("positive") else ""
    return (
        f"{spec['model']}, trained on {', '.join(data['files'])}: {data['n_train']} training and "
        f"{data['n_validation']} held-out events, weights {data['weights']}, sum_w {number(data['sum_w'])}, "
        f"n_eff {number(_n_eff(data))} (of the signed weights{positive})."
    )


def _replica_text(replicas: int, seeds: int) -> str:
    text = f"{replicas} bootstrap replicas and {seeds} trainings on the same data with other seeds."
    if replicas > 1:
        return f"{text} An error from {replicas} replicas is known to {error_of_error(replicas - 1):.0%}."
    return text


def _warnings(found: Ensemble) -> list[str]:
    failed = [name for name, one in found.records.items() if one["failed"]]
    out = [f"{', '.join(failed)}: generated events differ from held-out ones: not trained well"] if failed else []
    replicas, seeds = (len(found.names(kind)) for kind in ("replica", "seed"))
    if 0 < replicas < FEW:
        out.append(f"{replicas} replicas are few: expected {FEW} or more, better {ENOUGH}")
    if not replicas:
        out.append("no bootstrap replicas: the calibration sample's statistics are not in any uncertainty")
    if not seeds:
        out.append("no trainings with other seeds: how much of the spread is the training's own isn't known")
    return out


def _table(found: Ensemble) -> Table:
    rows = [
        [
            name,
            number(one["n_train"]),
            number(one["sum_w"]),
            number(one["n_eff_signed"]),
            _last_loss(one),
            with_error(one["distance"], one["distance_error"], SIGN),
            "FAILED" if one["failed"] else "ok",
        ]
        for name, one in found.records.items()
    ]
    bad = [index for index, one in enumerate(found.records.values()) if one["failed"]]
    header = ("member", "events", "sum_w", "n_eff", "last validation loss", "distance from held-out events", "")
    return Table("Members; the distance is an energy distance, 0 where nothing differs", header, rows, bad)


def _last_loss(record: Mapping[str, Any]) -> str:
    losses = record.get("val_loss") or []
    return number(losses[-1]) if losses else "-"


def _figures(found: Ensemble) -> list[Picture]:
    losses = {name: [x for x in one.get("val_loss") or [] if isfinite(x)] for name, one in found.records.items()}
    failed = {name for name, one in found.records.items() if one["failed"]}
    out = []
    if any(losses.values()):
        caption = (
            "Validation loss of every member, on its own held-out events. The vertical range is that of the last four "
            "fifths of the training."
        )
        picture = history_figure(losses, failed)
        out.append(Picture(picture, "Validation losses against the number of the validation", caption))
    records = found.records.values()
    points = [(one["name"], one["distance"], one["distance_error"]) for one in records]
    caption = "Energy distance of each member's events from held-out ones, with its standard error."
    return [*out, Picture(distance_figure(points, failed), "Distances of the members from held-out events", caption)]
