"""`calorefine propagate`: generated events and their replicas in; observables with a covariance by source out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calorefine.errors import ConfigError, ValueRangeError
from calorefine.io.provenance import recorded
from calorefine.io.root import RootFiles
from calorefine.observables import Measured, Observable
from calorefine.stats import FloatArray, error_of_error
from calorefine.systematics.assemble import assemble
from calorefine.systematics.bias import Bias, closure_bias, ensemble_bias, inflate
from calorefine.systematics.equivalent_events import Power, power
from calorefine.systematics.histfactory import Fit
from calorefine.systematics.output import Saved, save
from calorefine.systematics.sources import AlternativesRule
from calorefine.systematics.systematics import MOST_ERROR_OF_ERROR, Bins, Systematics
from calorefine.systematics.variations import Closure, Sample, Variables, Variations, at_equal_totals, is_sum, residual

Outside = Literal["uncertainty", "refuse", "ignore"]
Inflate = Literal["no", "scale", "bias"]
MOST_BINS_SHOWN = 5


@dataclass(frozen=True)
class PropagateSummary:
    """What was found, and the files written.

    Attributes:
        systematics: values and covariance.
        measured: of the nominal sample.
        powers: worth of the generated sample by observable.
        biases: comparisons that should agree: of the replicas' mean with the nominal, of the nominal with the truth.
        saved: the files.
        lines: on closure and domain.
    """

    systematics: Systematics
    measured: Measured
    powers: dict[str, Power]
    biases: dict[str, Bias]
    saved: Saved
    lines: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Report for the terminal."""
        return "\n".join([*self._table(), *self._bias_lines(), *self.lines, *self.saved.notes, self._written()])

    def _table(self) -> list[str]:
        """Root mean square of the errors of each observable, by source, relative to its values'."""
        names = ["total", *self.systematics.sources]
        lines = [f"{'relative error':<22}" + "".join(f"{name:>13}" for name in names) + f"{'worth':>12}"]
        for name, one in self.powers.items():
            errors = [self.systematics.relative_error(name, source) for source in (None, *self.systematics.sources)]
            cells = "".join(f"{error:>12.2%} " for error in errors)
            lines.append(f"{name:<22}{cells}{one.equivalent[one.n_generated <= one.n_eff][-1]:>12.0f}")
        parts = [f"{name} is a part of {one.part_of}" for name, one in self.systematics.sources.items() if one.part_of]
        plateaus = ", ".join(f"{name} {one.plateau:.0f}" for name, one in self.powers.items())
        last = "worth: number of reference events with the same errors; with ever more generated events it goes to "
        return [*lines, *parts, f"{last}{plateaus}"]

    def _bias_lines(self) -> list[str]:
        lines = []
        for name, bias in self.biases.items():
            found = f"{name}: chi2 / ndf {bias.chi2.reduced:.2f}, p {bias.chi2.p_value:.2g}"
            bins = np.flatnonzero(bias.flagged)[:MOST_BINS_SHOWN]
            where = f"; worst bins {', '.join(self._bin(int(k)) for k in bins)}" if len(bins) else ""
            lines.append(f"{'BIAS: ' if bias.significant else ''}{found}{where}")
        return lines

    def _bin(self, k: int) -> str:
        name, index = self.systematics.locate(k)
        return f"{name}[{index}]"

    def _written(self) -> str:
        s = self.saved
        return f"{s.root}, {s.json.name}, {s.npz.name}: {s.n_components} shapes"


@recorded("propagate")
def propagate_files(
    *,
    nominal: str | list[str],
    observables: dict[str, Observable],
    output: str,
    tree: str = "events",
    weight: str = "none",
    calibration: Variations | None = None,
    training: Variations | None = None,
    alternatives: dict[str, Variations] | None = None,
    rule: AlternativesRule = "envelope",
    closure: Closure | None = None,
    outside: Outside = "uncertainty",
    truth: Sample | None = None,
    inflated: Inflate = "no",
    fit: Fit | None = None,
    overwrite: bool = False,
) -> PropagateSummary:
    """Measure observables in generated events and in their variations; write values with a covariance by source.

    Writes `<output>.root` (histograms, shapes, covariances), `<output>.json` (pyhf, cabinetry) and `<output>.npz`.

    Args:
        nominal: ROOT files of generated events; a path, a glob, or a list.
        observables: name to what is measured.
        output: where to write, without suffix.
        tree: name of the tree in all files of generated events.
        weight: branch or expression of the nominal weight, or "none".
        calibration: bootstrap replicas; their spread holds the calibration sample's statistics and the training's
            stochasticity.
        training: the same data and other seeds; a part of the former, never added to it.
        alternatives: name of a choice, such as spectator, to the samples under other choices.
        rule: how several alternatives of one choice combine.
        closure: generated and reference events at the same conditions: what the reweighting has left.
        outside: what to do about events outside the training domain (`in_domain` false): the shift without them is an
            uncertainty, they are refused, or they count as all others.
        truth: what should come out, for validation only: shows the bias; sums of weights at equal totals.
        inflated: enlarge the uncertainty to cover the truth: by a factor on the calibration's errors, or by the
            deviation itself.
        fit: names and signal for the pyhf workspace.
        overwrite: replace existing outputs.

    Raises:
        CalorefineError: bad input, or events outside the domain that are refused.
    """
    if inflated != "no" and truth is None:
        raise ConfigError(f"inflated: {inflated} found without truth, expected events that tell by how much")
    replicated = {"calibration": calibration, "training": training}
    given = {name: one for name, one in replicated.items() if one} | (alternatives or {})
    variables = Variables(RootFiles(nominal, tree), observables, weight, given)
    measured = variables.nominal
    lines = _domain(measured, outside)
    deviation, closes = residual(measured, closure, tree) if closure else (None, [])
    systematics = assemble(
        measured.values[0],
        {name: _bins(one) for name, one in measured.observables.items()},
        calibration=variables.rows.get("calibration"),
        training=variables.rows.get("training"),
        alternatives={name: variables.rows[name] for name in alternatives or {}},
        rule=rule,
        residual=deviation,
        generated=measured.statistics,
        outside=measured.outside if outside == "uncertainty" and measured.outside.any() else None,
    )
    systematics, biases, untested = _compared(systematics, measured, truth, tree, inflated)
    lines = [*lines, *closes, *untested, *_warnings(systematics)]
    powers = {name: power(systematics, name, one.n_eff) for name, one in measured.entries.items()}
    provenance = _provenance(variables, powers, biases, lines)
    saved = save(systematics, Path(output), fit=fit, overwrite=overwrite, provenance=provenance)
    return PropagateSummary(systematics, measured, powers, biases, saved, lines)


def _bins(observable: Observable) -> Bins:
    per_bin = observable.n_values // observable.n_bins
    edges = np.asarray(observable.edges, np.float64)
    return Bins(edges, observable.title, observable.unit or "", is_sum(observable), per_bin)


def _domain(measured: Measured, outside: Outside) -> list[str]:
    """Lines on events outside the training domain.

    Raises:
        ValueRangeError: there are some, and they are refused.
    """
    lines = []
    for name in measured.observables:
        counts = measured.outside_counts[measured.part(name)]
        if counts.any():
            lines.append(
                f"'{name}': {int(counts.sum())} events outside the training domain, in {np.sum(counts > 0)} bins"
            )
        elif measured.outside[measured.part(name)].any():
            lines.append(f"'{name}': events outside the training domain lie beyond its bins, but count in its norm")
    if lines and outside == "refuse":
        msg = f"{'; '.join(lines)}, expected none; cut them away by a selection with in_domain, or give them an "
        raise ValueRangeError(f"{msg}uncertainty: outside: uncertainty")
    return lines


def _compared(
    systematics: Systematics, measured: Measured, truth: Sample | None, tree: str, inflated: Inflate
) -> tuple[Systematics, dict[str, Bias], list[str]]:
    """Systematics, inflated if asked; what should agree; and what can't be tested with so few replicas."""
    tests: dict[str, Callable[[], Bias]] = {}
    if "calibration" in systematics.replicas:
        tests["mean of the replicas - nominal"] = partial(ensemble_bias, systematics)
    if truth is not None:
        true = truth.measured(measured.observables, tree)
        values, covariance = at_equal_totals(true, measured)
        tests["nominal - truth"] = partial(closure_bias, systematics, values, truth_covariance=covariance)
    biases, untested = {}, []
    for name, test in tests.items():
        try:
            biases[name] = test()
        except ConfigError as error:
            untested.append(f"WARNING: {name}: not tested: {error}")
    if truth is not None and inflated != "no":
        systematics = inflate(systematics, values, truth_covariance=covariance, rule=inflated)
    return systematics, biases, untested


def _warnings(systematics: Systematics) -> list[str]:
    """What so few replicas or seeds can't tell."""
    counts = {name: len(rows) for name, rows in systematics.replicas.items()}
    lines = [
        f"WARNING: an error from {count} replicas of '{name}' is known to {error_of_error(count - 1):.0%}"
        for name, count in counts.items()
        if error_of_error(count - 1) > MOST_ERROR_OF_ERROR and systematics.sources[name].part_of is None
    ]
    if "training" in counts and "calibration" in counts:
        spread = systematics.relative_error
        above = [one for one in systematics.bins if spread(one, "training") > spread(one, "calibration")]
        if above:
            msg = (
                f"WARNING: {', '.join(above)}: {counts['training']} seeds spread by more than {counts['calibration']} "
            )
            lines.append(f"{msg}replicas, whose spread holds that of the training: too few of either")
    return lines


def _provenance(
    variables: Variables, powers: Mapping[str, Power], biases: Mapping[str, Bias], lines: list[str]
) -> dict[str, Any]:
    """What the numbers were made from, as JSON types."""
    return {
        "files": variables.provenance(),
        "weight": variables.weight,
        "definitions": {name: one.to_dict() for name, one in variables.nominal.observables.items()},
        "entries": {name: one.to_dict() for name, one in variables.nominal.entries.items()},
        "outside_domain": variables.nominal.outside_counts.tolist(),
        "power": {name: one.to_dict() for name, one in powers.items()},
        "biases": {name: _bias_dict(one) for name, one in biases.items()},
        "messages": lines,
    }


def _bias_dict(bias: Bias) -> dict[str, Any]:
    arrays: dict[str, FloatArray] = {"difference": bias.difference, "error": bias.error, "p_value": bias.p_value}
    chi2 = {"reduced": bias.chi2.reduced, "p_value": bias.chi2.p_value}
    own = {name: array.tolist() for name, array in arrays.items()}
    return own | {"flagged": bias.flagged.tolist(), "chi2": chi2, "significant": bias.significant}
