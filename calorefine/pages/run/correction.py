"""Section on the reweighting: the classifier test before and after, what can't be reached, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calorefine.pages.figures.correction import classifier_figure
from calorefine.pages.figures.reweighting import histogram_figure
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.run.section import SIGN, Part, absent, percent, read_json
from calorefine.reweighting.diagnostics import N_WORST, separation_text, share_text
from calorefine.reweighting.summary import Histogram
from calorefine.text import number, with_error
from calorefine.twosample.classifier import Separation

TITLE = "Classifier test"
OPTION = ("reweighter", "the JSON file that 'calorefine reweight' writes beside its output")


def correction_part(reweighter: str | None) -> Part:
    """AUC before and after by an independent classifier, coverage and weights.

    Args:
        reweighter: JSON file of `calorefine reweight`.

    Raises:
        FileError: it is none.
    """
    if reweighter is None:
        return absent(TITLE, *OPTION)
    path = Path(reweighter)
    content = read_json(path, ("diagnostics", "provenance"), "calorefine reweight")
    found = content["diagnostics"]
    tests = {name: _separation(found["classifier"][name]) for name in ("before", "after")}
    text = [
        f"{path}: an independent classifier is trained to tell generated from reference events; AUC 0.5: it can't. "
        f"All diagnostics are in {path.with_suffix('.html').name}."
    ]
    if found["classifier"]["refused"]:
        text.append(f"Classifier refused: {found['classifier']['refused']}")
    tables = [_main_table(found, tests), *_distance_table(found), *_residual_table(found)]
    section = Section(TITLE, text, found["warnings"], tables, _figures(found, tests))
    numbers = [(f"classifier {name}", separation_text(one, SIGN)) for name, one in tests.items()]
    return Part(section, numbers)


def _separation(one: Mapping[str, Any] | None) -> Separation | None:
    return None if one is None else Separation(**one)


def _main_table(found: Mapping[str, Any], tests: Mapping[str, Separation | None]) -> Table:
    w, coverage = found["weights"], found["coverage"]
    shares = {name: share_text(coverage[name]["value"], coverage[name]["error"]) for name in ("uncovered", "invented")}
    rows = [
        *((f"classifier {name}", separation_text(one, SIGN)) for name, one in tests.items()),
        ("reference that is not covered", shares["uncovered"]),
        ("generated that the reference doesn't have", shares["invented"]),
        ("effective number before", number(w["n_eff_before"])),
        ("effective number after", f"{number(w['n_eff'])} ({percent(w['n_eff_fraction'])})"),
        ("mean factor", number(w["mean_factor"])),
        ("largest factor", number(w["largest"][0]["factor"])),
        ("context outside of the reference's (factor 1)", percent(w["outside"])),
    ]
    return Table("Main numbers of the fit's own samples", ("", "value"), rows)


def _distance_table(found: Mapping[str, Any]) -> list[Table]:
    """Distances of each feature before and after."""
    rows = [
        [name, *(text for one in pair for key in ("ks", "energy") for text in _distance(one[key]))]
        for name, pair in found["distances"].items()
    ]
    header = ["feature", *(f"{what} {when}" for when in ("before", "after") for what in ("KS", "p", "energy", "p"))]
    return [Table("Distances to the reference", header, rows)] if rows else []


def _distance(one: Mapping[str, float]) -> tuple[str, str]:
    return number(one["value"], 3), f"{one['p_value']:.3f}"


def _residual_table(found: Mapping[str, Any]) -> list[Table]:
    rows = [
        [
            " \u00d7 ".join(one["columns"]),
            f"{one['chi2_before']:.0f}/{one['ndf_before']}",
            f"{one['chi2']:.0f}/{one['ndf']}",
            number(one["p_corrected"], 2),
            percent(one["difference"]),
        ]
        for one in found["residuals"][:N_WORST]
    ]
    header = ("column or pair", "\u03c7\u00b2/ndf before", "after", "p after, corrected", "difference after")
    return [Table(f"The {len(rows)} least probable columns and pairs", header, rows)] if rows else []


def _figures(found: Mapping[str, Any], tests: Mapping[str, Separation | None]) -> list[Picture]:
    out = []
    if known := {name: (one.auc, one.auc_error) for name, one in tests.items() if one}:
        values = ", ".join(f"{name} {with_error(*pair)}" for name, pair in known.items())
        picture = classifier_figure(known)
        out.append(Picture(picture, f"AUC of the classifier {values}", f"AUC of an independent classifier: {values}."))
    caption = "Log ratio under the reference, and under the generated events before the reweighting."
    alt = "Histogram of the log ratio in the reference and in generated events"
    picture = histogram_figure(Histogram(**found["log_ratio"]), "log ratio", log=True)
    return [*out, Picture(picture, alt, caption)]
