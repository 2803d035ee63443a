"""`calorefine propagate`: generated events and their replicas in; observables with a covariance by source out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calorefine.errors import ConfigError, FitError, ValueRangeError
from calorefine.events import Columns
from calorefine.io.names import ENTRY
from calorefine.io.provenance import read_provenance, recorded
from calorefine.io.reductions import branches
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import Source
from calorefine.io.writer import check_outputs
from calorefine.observables import Measured, Observable
from calorefine.reweighting.resolved import resolved
from calorefine.stats import FloatArray
from calorefine.systematics import checks
from calorefine.systematics.assemble import assemble
from calorefine.systematics.bias import Bias, inflate, with_bias
from calorefine.systematics.closure import Closure, at_totals, residual, totals_of
from calorefine.systematics.equivalent_events import Power, power
from calorefine.systematics.histfactory import Fit
from calorefine.systematics.output import Saved, output_paths, save
from calorefine.systematics.sources import AlternativesRule
from calorefine.systematics.systematics import Systematics
from calorefine.systematics.variations import Noise, Variables, Variations, bins_of

Outside = Literal["uncertainty", "refuse", "ignore"]
Inflate = Literal["no", "scale", "bias"]
MOST_BINS_SHOWN = 5


@dataclass(frozen=True)
class PropagateSummary:
    """What was found, and the files written.

    Attributes:
        systematics: values and covariance.
        measured: of the nominal sample.
        powers: equivalent events of the generated sample by observable.
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
        saved, biases = self.saved, [self._bias_line(name, bias) for name, bias in self.biases.items()]
        written = f"{saved.root}, {saved.json.name}, {saved.npz.name}: {saved.n_components} shapes"
        return "\n".join([*self._table(), *biases, *self.lines, *saved.notes, written])

    def _table(self) -> list[str]:
        """Root mean square of the errors of each observable, by source, relative to its values'."""
        sources = self.systematics.sources
        lines = [f"{'relative error':<22}{'total':>13}{''.join(f'{name:>13}' for name in sources)}{'equivalent':>12}"]
        for name, equivalent in self.powers.items():
            errors = [self.systematics.relative_error(name, source) for source in (None, *sources)]
            cells = "".join(f"{'-' if np.isnan(error) else f'{error:.2%}':>12} " for error in errors)
            present = equivalent.equivalent[equivalent.n_generated <= equivalent.n_eff][-1]
            lines.append(f"{name:<22}{cells}{'-' if np.isnan(errors[0]) else f'{present:.0f}':>12}")
        lines += [f"{name} is a part of {source.part_of}" for name, source in sources.items() if source.part_of]
        plateaus = ", ".join(f"{name} {equivalent.plateau:.0f}" for name, equivalent in self.powers.items())
        last = "equivalent events: number of reference events with the same errors; with ever more generated events it "
        return [*lines, f"{last}goes to {plateaus}"]

    def _bias_line(self, name: str, bias: Bias) -> str:
        worst = [self.systematics.locate(int(k)) for k in np.flatnonzero(bias.exceeds)[:MOST_BINS_SHOWN]]
        where = "; worst bins " + ", ".join(f"{observable}[{index}]" for observable, index in worst) if worst else ""
        return f"{'BIAS: ' if bias.off else ''}{name}: {bias.numbers()}{where}"


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
    noise: Noise = "measured",
    outside: Outside = "uncertainty",
    truth: WeightedFiles | None = None,
    replica_bias: bool = False,
    inflated: Inflate = "no",
    fit: Fit | None = None,
    columns: Columns | None = None,
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
        noise: whether files of members share their latent noise: their spread holds the generated statistics that they
            don't share, which then isn't added again.  Measured by events of the same key, or say shared or own.
        outside: what to do about events outside the training domain (`in_domain` false): the shift without them is an
            uncertainty, they are refused, or they count as all others.
        truth: what should come out, for validation only: shows the bias; sums of weights at equal totals.
        replica_bias: count the mean of the replicas minus the nominal, beyond its error, as a source `bias`.
        inflated: enlarge the uncertainty to cover the truth: by a factor on the calibration's errors, or by the
            deviation itself.
        fit: names and signal for the pyhf workspace.
        columns: of showers, for their observables (`shower.width_eta_1`); those that the nominal files were made with,
            if left out.
        overwrite: replace existing outputs.

    Raises:
        CalorefineError: bad input, or events outside the domain that are refused.
    """
    if inflated != "no" and truth is None:
        raise ConfigError(f"inflated: {inflated} found without truth, expected events that tell by how much")
    replicated = {name: given for name, given in (("calibration", calibration), ("training", training)) if given}
    check_outputs(*output_paths(Path(output)), overwrite=overwrite)
    sample = WeightedFiles(nominal, tree, weight).within(tree, columns)
    columns = sample.shower_columns()
    variables = Variables(sample.source, observables, weight, replicated | (alternatives or {}), columns)
    measured, rows = variables.nominal, variables.rows
    lines = [*_outside(measured, outside), *measured.notes()]
    missing, resolved_lines = _unresolved(variables, sample, replicated)
    own, noise_lines = variables.own_noise(noise)
    deviation, closes = residual(measured, closure.within(tree, columns), tree) if closure else (None, [])
    systematics = assemble(
        measured.values[0],
        bins_of(measured),
        calibration=rows.get("calibration"),
        training=rows.get("training"),
        alternatives={name: rows[name] for name in alternatives or {}},
        retrained=[name for name in alternatives or {} if variables.retrained(name)],
        rule=rule,
        residual=deviation,
        generated=measured.statistics,
        own_noise=own,
        unresolved=missing,
        data_dof=_data_dof(variables.source),
        outside=measured.outside if outside == "uncertainty" and measured.outside.any() else None,
    )
    true = at_totals(truth.within(tree, columns), measured.observables, totals_of(measured)) if truth else None
    biases = checks.biases(systematics, true)
    systematics = with_bias(systematics) if replica_bias else systematics
    if true and inflated != "no":
        systematics = inflate(systematics, true.values, truth_covariance=true.covariance, rule=inflated)
    lines += [*noise_lines, *resolved_lines, *closes, *checks.replica_warnings(systematics)]
    powers = {name: power(systematics, name, entries.n_eff) for name, entries in measured.entries.items()}
    told = _provenance(variables, powers, biases, lines)
    saved = save(systematics, Path(output), fit=fit, overwrite=overwrite, provenance=told)
    return PropagateSummary(systematics, measured, powers, biases, saved, lines)


def _outside(measured: Measured, outside: Outside) -> list[str]:
    """What is said of events outside the domain, if they are not refused."""
    lines = checks.outside_lines(measured)
    if lines and outside == "refuse":
        msg = f"{'; '.join(lines)}, expected none; cut them away by a selection with in_domain, or give them an "
        raise ValueRangeError(f"{msg}uncertainty: outside: uncertainty")
    return lines


def _unresolved(
    variables: Variables, sample: WeightedFiles, replicated: Mapping[str, Variations]
) -> tuple[FloatArray | None, list[str]]:
    """Covariance (n, n) that weights of calibration replicas lack, and how much of a shift they recover.

    Raises:
        FitError: weights of replicas or of seeds recover less than 0.9 of the shifts of an observable.
    """
    measured, missing, lines = variables.nominal, None, []
    parts = {name: measured.part(name) for name in measured.observables}
    for name, given in replicated.items():
        every = [branch for column in given.columns for branch in branches(column.text)]
        arrays = [match[1] if (match := ENTRY.fullmatch(branch)) else branch for branch in every]
        for branch in dict.fromkeys(arrays):
            try:
                held = resolved(sample, measured.observables, branch)
            except FitError as few:
                lines.append(f"WARNING: {few}; errors may be too small")
                continue
            if held:
                held.require(parts, branch)
                lines.append(f"'{branch}' recovers {held.slope.min():.2f} of a shift or more in each bin")
                if name == "calibration":
                    missing = held.missing(np.cov(variables.rows[name], rowvar=False))
    return missing, lines


def _data_dof(source: Source) -> float:
    """Degrees of freedom that the generator's training sample allows; its effective number where it isn't told."""
    training = read_provenance(source.paths[0]).get("training", {})
    return float(training.get("weights_dof") or training.get("n_eff_signed") or np.inf)


def _provenance(
    variables: Variables, powers: Mapping[str, Power], biases: Mapping[str, Bias], lines: list[str]
) -> dict[str, Any]:
    """What the numbers were made from, as JSON types."""
    measured = variables.nominal
    records: dict[str, Mapping[str, Any]] = {
        "definitions": measured.observables,
        "entries": measured.entries,
        "power": powers,
        "biases": biases,
    }
    return {
        "files": variables.provenance(),
        **({"columns": variables.columns.to_dict()} if variables.columns else {}),
        "weight": variables.weight,
        "outside_domain": measured.outside_counts.tolist(),
        "messages": lines,
        "intervals": measured.intervals.tolist(),
        **{key: {name: record.to_dict() for name, record in named.items()} for key, named in records.items()},
    }
