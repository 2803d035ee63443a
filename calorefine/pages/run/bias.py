r"""Section on bias: what should agree, and in red what doesn't.

Three comparisons, all by `calorefine.systematics.bias`:

- mean of the bootstrap replicas - nominal, where the error is that of the mean and the nominal training's own;
- nominal - truth, with the total covariance and the truth's own;
- mean of the replicas - truth, with the same, and that of a mean of K replicas: it fluctuates with the data as the
  nominal does, and by a K-th of their spread.

A comparison is red if a bin, corrected for their number, or the chi2 of all bins has a p-value below 0.01.  Without
trainings with other seeds the first one can't tell a bias from an unlucky nominal training: it is then a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.pages.figures.bias import pull_figure
from calorefine.pages.page import Picture, Section, Table
from calorefine.pages.run.observables import OPTION, bin_text
from calorefine.pages.run.propagated import Propagated
from calorefine.pages.run.section import Part, absent, collected
from calorefine.pages.run.truth import Truth
from calorefine.stats import FloatArray, sidak
from calorefine.systematics import Bias, Systematics, closure_bias, ensemble_bias
from calorefine.systematics.bias import FLAGGED_BELOW
from calorefine.text import number

TITLE = "Bias"
OF_MEAN = "mean of the replicas - nominal"
OF_NOMINAL = "nominal - truth"
MEAN_OF_TRUTH = "mean of the replicas - truth"
N_SHOWN = 3


@dataclass(frozen=True)
class Compared:
    """One comparison of all bins.

    Attributes:
        name: of the difference.
        difference: (n,).
        error: (n,).
        p_value: (n,) of each bin, not corrected.
        flagged: (n,) bins that are off.
        reduced: chi2 over its degrees of freedom.
        chi2_p: its p-value.
        doubtful: why it may be off without a bias; None if there is no such reason.
    """

    name: str
    difference: FloatArray
    error: FloatArray
    p_value: FloatArray
    flagged: NDArray[np.bool_]
    reduced: float
    chi2_p: float
    doubtful: str | None = None

    @classmethod
    def of(cls, name: str, bias: Bias) -> Compared:
        """Take over a `Bias`."""
        arrays = bias.difference, bias.error, bias.p_value, bias.flagged
        return cls(name, *arrays, bias.chi2.reduced, bias.chi2.p_value)

    @classmethod
    def from_dict(cls, name: str, one: Mapping[str, Any]) -> Compared:
        """Take over what a provenance has of a `Bias`."""
        difference, error, p_value = (np.asarray(one[key], np.float64) for key in ("difference", "error", "p_value"))
        flagged, chi2 = np.asarray(one["flagged"], bool), one["chi2"]
        return cls(name, difference, error, p_value, flagged, chi2["reduced"], chi2["p_value"])

    @property
    def off(self) -> bool:
        """Whether a bin, or all of them together, are off."""
        return bool(self.flagged.any()) or self.chi2_p < FLAGGED_BELOW

    @property
    def pulls(self) -> FloatArray:
        """Differences in errors (n,), NaN without an error."""
        nothing = np.full(len(self.error), np.nan)
        pulls: FloatArray = np.divide(self.difference, self.error, out=nothing, where=self.error > 0)
        return pulls


def bias_part(found: Propagated | None, truth: Truth | None) -> Part:
    """Comparisons that should agree.

    Args:
        found: of `calorefine propagate`.
        truth: true values of its observables.
    """
    if found is None:
        return absent(TITLE, *OPTION)
    systematics = found.systematics
    with collected() as warned:
        compared = _compared(found, truth)
    red = [one for one in compared if one.off and one.doubtful is None]
    doubtful = [f"{_sentence(one, systematics)} {one.doubtful}" for one in compared if one.off and one.doubtful]
    alarms = [_sentence(one, systematics) for one in red]
    text = [*_introduction(compared, truth), *_scaled_text(truth)]
    tables = [_table(compared, systematics)] if compared else []
    tables += [table for one in compared if (table := _flagged_table(one, systematics))]
    sizes = {name: systematics.bins[name].n for name in systematics.bins}
    figures = [
        Picture(pull_figure(one.pulls, one.flagged, sizes), f"Pulls of {one.name}", f"{one.name}, in its errors.")
        for one in compared
    ]
    names = [one.name for one in compared]
    missing = [] if OF_NOMINAL in names else [f"{TITLE}: no truth of the observables is given (truth: events)"]
    missing += [] if OF_MEAN in names else [f"{TITLE}: no bootstrap replicas, whose mean could be off"]
    section = Section(TITLE, text, [*doubtful, *warned], tables, figures, alarms)
    return Part(section, [(one.name, _verdict(one)) for one in compared], missing)


def _compared(found: Propagated, truth: Truth | None) -> list[Compared]:
    systematics, out = found.systematics, []
    rows = systematics.replicas.get("calibration")
    if rows is not None:
        one = Compared.of(OF_MEAN, ensemble_bias(systematics))
        if "training" not in systematics.sources:
            why = "Or the nominal training is an unlucky one: trainings with other seeds would tell."
            one = replace(one, doubtful=why)
        out.append(one)
    if truth is None:
        known = found.provenance.get("biases", {})
        return out + [Compared.from_dict(name, one) for name, one in known.items() if name == OF_NOMINAL]
    given = {"truth": truth.values, "truth_covariance": truth.covariance}
    out.append(Compared.of(OF_NOMINAL, closure_bias(systematics, **given)))
    if rows is not None:
        spread = systematics.sources["calibration"]
        wider = replace(spread, covariance=spread.covariance * (1 + 1 / len(rows)))
        own = systematics.sources | {"calibration": wider}
        mean = replace(systematics, nominal=rows.mean(axis=0), sources=own)
        out.append(Compared.of(MEAN_OF_TRUTH, closure_bias(mean, **given)))
    return out


def _introduction(compared: Sequence[Compared], truth: Truth | None) -> list[str]:
    if not compared:
        return ["There is nothing to compare: neither replicas nor a truth."]
    text = [
        f"Each difference should be 0 within its errors. It is off if a bin has a p-value below {FLAGGED_BELOW:g}, "
        "corrected for the number of bins, or the \u03c7\u00b2 of all bins has (grouped, where replicas are few)."
    ]
    if truth is None and any(one.name == OF_NOMINAL for one in compared):
        text.append("The truth is that of 'calorefine propagate', before any inflation of the errors.")
    return text if any(one.off for one in compared) else ["Nothing is off by more than its error.", *text]


def _scaled_text(truth: Truth | None) -> list[str]:
    scaled = {} if truth is None else {name: scale for name, scale in truth.scales.items() if scale != 1}
    if not scaled:
        return []
    factors = ", ".join(f"{name} {number(scale)}" for name, scale in scaled.items())
    return [f"Sums of weights are compared at equal totals; true ones were multiplied by: {factors}."]


def _sentence(one: Compared, systematics: Systematics) -> str:
    """What is off, and where most."""
    parts = [f"{one.name} is off by more than its error"]
    if one.flagged.any():
        order = [int(k) for k in np.argsort(one.p_value, kind="stable") if one.flagged[k]]
        shown = ", ".join(f"{_where(systematics, k)} {one.pulls[k]:+.1f} errors" for k in order[:N_SHOWN])
        more = ", ..." if len(order) > N_SHOWN else ""
        parts.append(f"{len(order)} of {len(one.flagged)} bins: {shown}{more}")
    if one.chi2_p < FLAGGED_BELOW:
        parts.append(f"all bins together: reduced \u03c7\u00b2 {number(one.reduced, 3)}, p {number(one.chi2_p, 2)}")
    return f"{parts[0]}: {'; '.join(parts[1:])}."


def _where(systematics: Systematics, index: int) -> str:
    """Observable and bin of a value."""
    name, own = systematics.locate(index)
    return f"{name} in {bin_text(systematics, name, own)}"


def _verdict(one: Compared) -> str:
    if not one.off:
        return f"agrees, p {number(one.chi2_p, 2)}"
    return f"OFF: {int(one.flagged.sum())} of {len(one.flagged)} bins, p of all {number(one.chi2_p, 2)}"


def _table(compared: Sequence[Compared], systematics: Systematics) -> Table:
    rows = []
    for one in compared:
        known = np.nan_to_num(np.abs(one.pulls))
        worst = int(np.argmax(known))
        rows.append(
            [
                one.name,
                f"{int(one.flagged.sum())} of {len(one.flagged)}",
                f"{np.nan_to_num(one.pulls)[worst]:+.1f}",
                _where(systematics, worst),
                number(one.reduced, 3),
                number(one.chi2_p, 2),
                "off" if one.off else "agrees",
            ]
        )
    header = ("difference", "bins that are off", "largest, in errors", "where", "reduced \u03c7\u00b2", "p", "verdict")
    return Table("What should agree", header, rows, [k for k, one in enumerate(compared) if one.off])


def _flagged_table(one: Compared, systematics: Systematics) -> Table | None:
    """Bins that are off."""
    chosen = [int(k) for k in np.flatnonzero(one.flagged)]
    rows = [
        [
            _where(systematics, k),
            number(float(one.difference[k]), 3),
            number(float(one.error[k]), 2),
            f"{one.pulls[k]:+.1f}",
            number(sidak(float(one.p_value[k]), len(one.p_value)), 2),
        ]
        for k in chosen
    ]
    header = ("bin", "difference", "error", "in errors", "p, corrected")
    return Table(f"{one.name}: bins that are off", header, rows) if rows else None
