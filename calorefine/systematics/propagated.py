r"""The file of `calorefine propagate` read again: numbers, what was measured, and what should agree.

In a closure test the observables are measured in other events, in the same bins.  Sums of weights are compared at equal
totals of the selected events: with the nominal sample's sum :math:`W` and the truth's :math:`W'`, true values are
scaled by :math:`W / W'`, with the covariance of shares.  Three comparisons should then agree, all by
`calorefine.systematics.bias`:

- mean of the bootstrap replicas - nominal, in units of the replicas' spread, where 0.25 is allowed;
- nominal - truth, with the total covariance and the truth's own;
- mean of the replicas - truth, with the same, and that of a mean of K replicas: it fluctuates with the data as the
  nominal does, and by a K-th of their spread.

Without trainings with other seeds the first one can't tell a bias from an unlucky nominal training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser

from calorefine.errors import ConfigError, FileError, nearest
from calorefine.events import Columns
from calorefine.io.sample import WeightedFiles
from calorefine.observables import Observable
from calorefine.systematics.bias import OF_MEAN, OF_NOMINAL, Bias, closure_bias, ensemble_bias
from calorefine.systematics.closure import Compared, at_totals, is_sum
from calorefine.systematics.hotelling import Chi2
from calorefine.systematics.output import load
from calorefine.systematics.systematics import Systematics

UNLUCKY = "Or the nominal training is an unlucky one: more trainings with other seeds would tell."
MEAN_OF_TRUTH = "mean of the replicas - truth"


@dataclass(frozen=True)
class Agreement:
    """A difference that should be 0, and why it may be off without a bias; None if there is no such reason."""

    name: str
    bias: Bias
    doubt: str | None = None


@dataclass(frozen=True)
class Propagated:
    """Systematics with their provenance.

    Attributes:
        path: the file.
        systematics: values and covariance.
        provenance: what `calorefine propagate` says of it.
    """

    path: Path
    systematics: Systematics
    provenance: dict[str, Any]

    @classmethod
    def load(cls, name: str) -> Propagated:
        """Read `systematics.npz`.

        Raises:
            FileError: no such file, or it isn't one of `calorefine propagate`.
        """
        path = Path(name)
        if not path.is_file():
            raise FileError(f"{path}: no such file{nearest(name, map(str, path.parent.glob('*.npz')))}")
        if path.suffix != ".npz":
            raise FileError(f"{path}: expected the file of 'calorefine propagate' that ends in .npz")
        systematics = load(path)
        with np.load(path, allow_pickle=False) as file:
            return cls(path, systematics, json.loads(str(file["provenance"])))

    @property
    def observables(self) -> dict[str, Observable]:
        """What was measured; empty if the file doesn't tell."""
        described: Mapping[str, Any] = self.provenance.get("definitions") or {}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--observables", type=dict[str, Observable])
        return dict(parser.instantiate(parser.parse_object({"observables": dict(described)})).observables)

    def label(self, name: str) -> str:
        """What the values of an observable are."""
        observable = self.observables.get(name)
        return observable.value_label if observable else "value"

    def truth(self, sample: WeightedFiles, tree: str) -> Compared:
        """Measure the truth.

        Args:
            sample: events.
            tree: name of their tree, if the sample doesn't tell.

        Raises:
            ConfigError: it isn't known how the observables were measured.
            CalorefineError: they can't be measured in these events.
        """
        bins, observables = self.systematics.bins, self.observables
        if set(observables) != set(bins):
            msg = f"{self.path}: doesn't say how {', '.join(bins)} were measured, so that truth can't be measured; "
            raise ConfigError(f"{msg}run 'calorefine propagate' again")
        known = self.provenance.get("entries", {})
        totals = {name: known[name]["sum_w"] for name in bins if name in known and is_sum(observables[name])}
        told = self.provenance.get("columns")
        described = sample.within(tree, Columns.from_dict(told) if told else None)
        return at_totals(described, {name: observables[name] for name in bins}, totals)

    def comparisons(self, truth: Compared | None) -> list[Agreement]:
        """What should agree; with the truth that `calorefine propagate` was given, if there is no other one."""
        systematics, out = self.systematics, []
        rows = systematics.replicas.get("calibration")
        if rows is not None:
            bias = ensemble_bias(systematics)
            doubt = None if bias.significant and "training" in systematics.sources else UNLUCKY
            out.append(Agreement(OF_MEAN, bias, doubt))
        if truth is None:
            known = self.provenance.get("biases", {}).get(OF_NOMINAL)
            return [*out, Agreement(OF_NOMINAL, _stored_bias(known))] if known else out
        given = {"truth": truth.values, "truth_covariance": truth.covariance}
        out.append(Agreement(OF_NOMINAL, closure_bias(systematics, **given)))
        if rows is not None:
            spread = systematics.sources["calibration"]
            wider = {"calibration": replace(spread, covariance=spread.covariance * (1 + 1 / len(rows)))}
            mean = replace(systematics, nominal=rows.mean(axis=0), sources=systematics.sources | wider)
            out.append(Agreement(MEAN_OF_TRUTH, closure_bias(mean, **given)))
        return out


def _stored_bias(record: Mapping[str, Any]) -> Bias:
    """What a provenance has of a bias."""
    difference, error, p_value = (np.asarray(record[key], np.float64) for key in ("difference", "error", "p_value"))
    flagged, chi2, untested = np.asarray(record["flagged"], bool), record["chi2"], record.get("untested", "")
    stored = chi2 and Chi2(np.nan, 0, chi2["p_value"], chi2["reduced"], np.nan, 0, len(flagged))
    return Bias(difference, error, p_value, flagged, stored, error, flagged, untested=untested)
