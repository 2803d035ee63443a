"""What `calorefine validate --showers true` finds: records, and their tables for the terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calorefine.text import aligned, number, percent, with_error
from calorefine.twosample.binned import BinWidths, ContextBin
from calorefine.twosample.neighbors import TrainingDistances
from calorefine.twosample.pair import Twins
from calorefine.twosample.results import SampleNumbers
from calorefine.twosample.shower_classifier import LogPosterior
from calorefine.twosample.shower_distances import Observable, Overlap, WithFloor
from calorefine.twosample.shower_judges import Judgment
from calorefine.twosample.shower_means import Means

TIMES = "CPU ms per shower"
SHOWN = 10  # observables of largest separation power in the terminal
GROWS = "an AUC grows with the number of showers: compare it only with others of as many, by the same classifier"
OF_LAYERS = ("longitudinal", "occupancy")  # means in bins that are layers
OVERLAP = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Times:
    """CPU milliseconds per shower, the inverse preprocessing included.

    Attributes:
        per_shower: number of showers in a call to milliseconds for each.
        threads: that torch may use.
    """

    per_shower: dict[int, float]
    threads: int


@dataclass(frozen=True)
class ShowerValidation:
    """What the JSON file says.

    Attributes:
        output: the JSON file.
        page: beside it.
        generated: the generated sample.
        reference: the reference.
        twins: how showers of the samples that share their conditions are known.
        n_cells: of the geometry.
        layers: their numbers.
        threshold_mev: of the readout, on both sides.
        classifiers: `lin`, `frame` and `high` to what they say.
        observables: all of them, the one of largest separation power first.
        energy_bins: of the incident energy in MeV: one for each energy of a reference with few, or of equal numbers.
        responses: mean, 68 % half-width and standard deviation of the response in each; the errors of ratios hold the
            statistics of the generator's training sample, where the generated file tells it.
        means: `longitudinal`, `occupancy`, `spectrum`, `lateral_0_eta` and so on to mean numbers per shower.
        distances: `fpd` and `kpd`.
        overlap: precision, recall, density and coverage.
        training: distances to the nearest training shower; None without a training file.
        posterior: which of several models the reference resembles most; None for one model.
        times: None without a checkpoint.
        refused: what is not given to the reason why.
    """

    output: Path
    page: Path
    generated: SampleNumbers
    reference: SampleNumbers
    twins: Twins
    n_cells: int
    layers: list[int]
    threshold_mev: float
    classifiers: dict[str, Judgment]
    observables: list[Observable]
    energy_bins: list[ContextBin]
    responses: list[BinWidths]
    means: dict[str, Means]
    distances: dict[str, WithFloor]
    overlap: Overlap | None
    training: TrainingDistances | None
    posterior: LogPosterior | None
    times: Times | None
    refused: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the distributions, as JSON types, without NaN."""
        plain = ("generated", "reference", "overlap", "training", "posterior", "times")
        responses = [
            {"e_inc_mev": asdict(at)} | asdict(found)
            for at, found in zip(self.energy_bins, self.responses, strict=True)
        ]
        return {
            "output": str(self.output),
            "page": str(self.page),
            "twins": self.twins,
            "n_cells": self.n_cells,
            "layers": self.layers,
            "threshold_mev": self.threshold_mev,
            **{name: getattr(self, name) and asdict(getattr(self, name)) for name in plain},
            "classifiers": {name: found.to_dict() for name, found in self.classifiers.items()},
            "separation": {found.name: asdict(found.separation) for found in self.observables if found.separation},
            "responses": responses,
            "means": {name: found.to_dict() for name, found in self.means.items()},
            **{name: asdict(found) for name, found in self.distances.items()},
            "refused": self.refused,
        }

    def __str__(self) -> str:
        """Tables for the terminal."""
        parts = [
            self._samples(),
            [*aligned(classifier_rows(self.classifiers)), GROWS] if self.classifiers else [],
            self._separations(),
            aligned(response_rows(self)),
            aligned(worst_rows(self)),
            aligned(distance_rows(self)) if self.distances or self.overlap else [],
            aligned(posterior_rows(self.posterior)) if self.posterior else [],
            self._lines(),
        ]
        text = "\n\n".join("\n".join(part) for part in parts if part)
        return f"{text}\n\n{self.output}: all numbers; {self.page}: the page"

    def _samples(self) -> list[str]:
        lines = []
        for label, sample in (("generated", self.generated), ("reference", self.reference)):
            sizes = f"{sample.n} showers, sum of weights {number(sample.sum_w, 6)}, n_eff {sample.n_eff:.0f}"
            lines.append(f"{label}: {', '.join(sample.files)}, tree '{sample.tree}', weight '{sample.weight}': {sizes}")
        lines.append(f"{self.n_cells} cells, 0 below {number(self.threshold_mev, 3)} MeV on both sides")
        return [*lines, f"showers that share their conditions are known by: {self.twins}"]

    def _separations(self) -> list[str]:
        rows = [["separation power, worst first", "value", "by accident"]]
        for found in self.observables[:SHOWN]:
            if found.separation:
                one = found.separation
                rows.append([found.name, with_error(one.value, one.error), with_error(one.floor, one.floor_error)])
        return aligned(rows)

    def _lines(self) -> list[str]:
        lines = [training_text(self.training)] if self.training else []
        lines += [times_text(self.times)] if self.times else []
        return lines + [f"{name} refused: {why}" for name, why in self.refused.items()]


def classifier_rows(classifiers: dict[str, Judgment]) -> list[list[str]]:
    """Table of the classifiers; the first row is the header."""
    rows = [["classifier", "AUC", "JSD", "of n", "AUC of halves", "of n", "sees smearing"]]
    for one in classifiers.values():
        n, n_floor = f"{one.n_generated} + {one.n_reference}", " + ".join(map(str, one.n_floor))
        aucs = with_error(one.auc, one.auc_error), with_error(one.floor, one.floor_error)
        rows.append([one.about, aucs[0], number(one.jsd, 2), n, aucs[1], n_floor, sees_text(one)])
    return rows


def sees_text(judgment: Judgment) -> str:
    """Smallest smearing that is seen."""
    if judgment.sees is None:
        return f"not {100 * float(list(judgment.smeared)[-1]):g} %"
    return f"{100 * judgment.sees:g} %"


def response_rows(found: ShowerValidation) -> list[list[str]]:
    """Table of the responses; the first row is the header."""
    rows = [["E_inc [GeV]", *(f"{what} {kind}" for what in ("mean", "std") for kind in ("gen.", "ref.", "ratio"))]]
    for at, one in zip(found.energy_bins, found.responses, strict=True):
        row = [energy_text(at, found.energy_bins)]
        for pair in (one.mean, one.std):
            row += [with_error(pair.generated, pair.generated_error), with_error(pair.reference, pair.reference_error)]
            row.append(with_error(pair.ratio, pair.ratio_error))
        rows.append(row)
    return rows


def energy_text(at: ContextBin, bins: list[ContextBin]) -> str:
    """Energy of a bin in GeV: its only one where bins are single energies."""
    if is_discrete(bins):
        return number(at.center / 1000, 3)
    return f"{number(at.low / 1000, 3)} to {number(at.high / 1000, 3)}"


def is_discrete(bins: list[ContextBin]) -> bool:
    """Whether bins are single energies: the outermost ones are at their ends."""
    return bins[0].center == bins[0].low and bins[-1].center == bins[-1].high


def worst_rows(result: ShowerValidation) -> list[list[str]]:
    """Table of the largest pulls of mean numbers; the first row is the header."""
    rows = [["mean per shower of", "bins", "worst bin", "at", "ratio", "pull", "p (of all)"]]
    for name, one in result.means.items():
        if one.worst is None:
            rows.append([name, str(len(one.edges) - 1), *["-"] * 5])
            continue
        place, pull, p_value = one.worst
        at = number(float(np.mean(one.edges[place : place + 2])), 3)
        at = f"layer {result.layers[place]}" if name in OF_LAYERS else at
        ratio = with_error(*one.ratio[:, place].tolist())
        rows.append([name, str(len(one.edges) - 1), str(place + 1), at, ratio, f"{pull:+.1f}", number(p_value, 2)])
    return rows


def distance_rows(found: ShowerValidation) -> list[list[str]]:
    """Table of distances and overlap with their floors; the first row is the header."""
    rows = [["", "value", "the reference's halves"]]
    for name, one in found.distances.items():
        pair = (with_error(part.value, part.error) for part in (one.value, one.floor))
        rows.append([name.upper(), *pair])
    if found.overlap:
        for name in OVERLAP:
            parts = (getattr(part, name) for part in (found.overlap.found, found.overlap.floor))
            rows.append([name, *(with_error(part.value, part.error) for part in parts)])
    return rows


def training_text(training: TrainingDistances) -> str:
    """Distances to the nearest training shower."""
    ratio = with_error(training.median.ratio, training.median.ratio_error)
    return (
        f"nearest of {training.n[2]} training showers: median distance {ratio} of the reference's, "
        f"{percent(training.copies)} copied"
    )


def posterior_rows(posterior: LogPosterior) -> list[list[str]]:
    """Table of the log posteriors, the most probable model first; the first row is the header."""
    rows = [["mean log posterior", "of the reference", "of its own showers", "n"]]
    chance = f"by chance {number(-float(np.log(len(posterior.own))))}"
    for name in sorted(posterior.own, key=lambda name: -posterior.reference[name]):
        value = with_error(posterior.reference[name], posterior.error[name])
        rows.append([name, value, number(posterior.own[name]), str(posterior.n[name])])
    return [*rows, [chance, "", "", ""]]


def times_text(times: Times) -> str:
    """Times of the generator."""
    return f"{TIMES} with {times.threads} thread{'s' * (times.threads > 1)}: {calls_text(times)}"


def calls_text(times: Times) -> str:
    """Milliseconds by the number of showers in a call."""
    return ", ".join(f"{number(ms, 3)} in calls of {n}" for n, ms in times.per_shower.items())
