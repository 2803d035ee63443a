r"""Reweighter: what turns generated events into the reference's, event by event, and a user keeps.

Two questions, two ratios:

- *conditional* (the default): p_ref(x | context) / p_gen(x | context).  The spectrum of the context is left alone, so
  that the weights hold for any other spectrum as well.  First a tilt g gives generated events the reference's spectrum
  of the context; then the ratio of the joint densities is estimated, with generated events weighted by g; then a `tilt`
  gives it the reference's means of the columns' terms, so that no bias is left in those; last it is divided by its mean
  at each context (`mean_weight`): the mean weight is 1 everywhere.
- *joint*: p_ref(x, context) / p_gen(x, context), with mean weight 1 over the generated events.

Each *round* corrects what the last one left.  A log weight is the sum over rounds, within the bound of the ratio.  An
event whose context lies outside the range that both samples reach gets weight 1 in the conditional case: nothing is
known there.  The range is that of each column; corners that neither sample reaches are not seen as such.

References: Rogozhnikov, arXiv:1608.05806 (reweighting by a classifier); Andreassen and Nachman, arXiv:1907.08209.
"""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calorefine import stats
from calorefine.errors import CalorefineWarning, CheckpointError, ConfigError, EmptySelectionError, FitError
from calorefine.events import Columns, Events
from calorefine.io.saved import read_saved, rebuilding, require_numbers
from calorefine.io.writer import replacing
from calorefine.reweighting.boosting import BoostingRatio
from calorefine.reweighting.mean_weight import MeanWeight
from calorefine.reweighting.network import NetworkRatio
from calorefine.reweighting.ratio import Ratio, RatioEstimator, WeightedRows, fit_ratio, fold_of
from calorefine.reweighting.tilt import Terms, Tilt, Weighted, exponential
from calorefine.stats import FloatArray

ESTIMATORS: dict[str, type[RatioEstimator]] = {kind.__name__: kind for kind in (NetworkRatio, BoostingRatio)}
FORMAT = 1
STATE_KEY = "calorefine_reweighter"


@dataclass(frozen=True)
class Round:
    """One correction.

    Attributes:
        ratio: joint log ratio of features and context.
        mean: its mean over generated events, at each context or overall.
    """

    ratio: Ratio
    mean: MeanWeight


@dataclass(eq=False)
class Reweighter:
    """Weights of generated events.

    Args:
        columns: features and context, in this order.
        rounds: the corrections, one after the other.
        estimator: name of the estimator's class.
        conditional: whether the context's spectrum is left alone.
        domain: (c, 2) range of the context that both samples reach.
        largest: largest factor of the generated events trained on.
        provenance: what it was made from, plain containers.
        replicas: linear tilts of the factors for bootstrap copies of the reference (`replicas`).
    """

    columns: Columns
    rounds: list[Round]
    _: KW_ONLY
    estimator: str
    conditional: bool
    domain: FloatArray
    largest: float = 1.0
    provenance: dict[str, Any] = field(default_factory=dict)
    replicas: Tilt | None = None

    @classmethod
    def fit(
        cls,
        generated: Events,
        reference: Events,
        columns: Columns,
        *,
        estimator: RatioEstimator | None = None,
        conditional: bool = True,
        seed: int = 0,
    ) -> Reweighter:
        """Learn the first round.

        Args:
            generated: weights that are not negative; contexts may be distributed otherwise than the reference's.
            reference: weights of any sign.
            columns: what they are.
            estimator: of the density ratio; networks, if left out.
            conditional: correct x given context, or x and context.
            seed: of folds and training.

        Raises:
            EmptySelectionError: no context that both samples reach.
            ConfigError, WeightError, ValueRangeError: as `fit_ratio`.
        """
        domain = _common_range(generated, reference, columns)
        estimator = estimator or NetworkRatio()
        empty = cls(columns, [], estimator=type(estimator).__name__, conditional=conditional, domain=domain)
        return empty.improved(generated, reference, estimator=estimator, seed=seed)

    def improved(self, generated: Events, reference: Events, *, estimator: RatioEstimator, seed: int = 0) -> Reweighter:
        """Return a reweighter with one more round, learned from the events with the weights so far."""
        if type(estimator).__name__ != self.estimator:
            raise ConfigError(f"estimator: a {type(estimator).__name__} found, expected a {self.estimator} as before")
        before = self._total(generated)
        so_far = generated.weight * np.exp(self._limited(before, generated.context))
        weight = so_far * self.context_factors(replace(generated, weight=so_far), reference)
        rows = _joint(replace(generated, weight=weight)), _joint(reference)
        ratio = fit_ratio(*rows, estimator, seed=seed + len(self.rounds))
        log_ratio = ratio(generated.table, generated.event_key)
        ratio = replace(ratio, tilt=self._tilt(replace(generated, weight=so_far * np.exp(log_ratio)), reference, ratio))
        log_ratio = ratio(generated.table, generated.event_key)
        mean = MeanWeight.fit(self.conditions(generated), np.exp(log_ratio), so_far)
        after = before + log_ratio - mean.log(self.conditions(generated))
        better = self.with_rounds([*self.rounds, Round(ratio, mean)])
        seen = generated.weight > 0
        return replace(better, largest=float(np.exp(better._limited(after, generated.context)[seen].max())))

    def _tilt(self, generated: Events, reference: Events, ratio: Ratio) -> Tilt:
        """Exponential tilts of weighted generated events to the reference's means, by events outside of each fold.

        Only events where a correction is known count; a tilt for events that it was learned from would be too good, and
        the mean factor of new ones not 1.
        """
        generated, reference = (e.take(self.in_domain(e.context)) for e in (generated, reference))
        stats.require_positive_sum(reference.weight, "reference events at contexts that both samples reach")
        n_free = generated.x.shape[1] if self.conditional else generated.table.shape[1]
        samples = [(events.table, events.weight) for events in (generated, reference)]
        terms, coefficients = Terms.chosen(samples[0], samples[1], n_free), []
        folds = [fold_of(events.event_key, ratio.n_folds, ratio.seed) for events in (generated, reference)]
        for number in range(ratio.n_folds):
            own, other = (
                Weighted(terms, *(part[fold != number] for part in one))
                for one, fold in zip(samples, folds, strict=True)
            )
            coefficients.append(exponential(own, other))
        return Tilt(terms, np.stack(coefficients, axis=1))

    def context_factors(self, generated: Events, reference: Events) -> FloatArray:
        """Factors (n,) that give generated events the reference's spectrum of context; 1 in the joint case."""
        if not self.conditional or generated.context.shape[1] == 0:
            return np.ones(len(generated))
        own, other = ((events.context, events.weight) for events in (generated, reference))
        terms = Terms.chosen(own, other, 0)
        return np.exp(Tilt(terms, exponential(Weighted(terms, *own), Weighted(terms, *other)))(generated.context))

    def require_same_features(self, columns: Columns, where: str) -> None:
        """Refuse events whose features stand for something else than where this was learned, if that is known.

        Args:
            columns: what the events were generated as.
            where: who they are, for the message.

        Raises:
            ConfigError: a feature of the same name was made of another expression.
        """
        learned = self.provenance.get("generated", {}).get("provenance", {}).get("columns")
        expected = Columns.from_dict(learned).expressions("features") if learned else {}
        made = columns.expressions("features")
        for name in (name for name in expected if name in self.columns.features and name in made):
            if made[name] != expected[name]:
                msg = f"{where}: feature '{name}' was generated as '{made[name]}', the reweighter learned it as "
                raise ConfigError(f"{msg}'{expected[name]}'; expected a reweighter of the same columns")

    def with_rounds(self, rounds: list[Round]) -> Reweighter:
        """Return one of the same columns and domain with these corrections."""
        return replace(self, rounds=rounds, largest=1.0, replicas=None)

    def conditions(self, events: Events) -> NDArray[np.float32]:
        """What the mean weight is 1 at: context (n, c), or nothing (n, 0) in the joint case."""
        return events.context if self.conditional else events.context[:, :0]

    def log_ratio(self, events: Events) -> FloatArray:
        """Log factors (n,), each of members that did not see the event; 0 outside the domain.

        The cut of `columns` is in terms of branches, which events don't have: who calls knows that they pass it.
        """
        return self._limited(self._total(events), events.context)

    def _total(self, events: Events) -> FloatArray:
        """Sum of the rounds' log factors (n,), without limits."""
        total, table = np.zeros(len(events)), events.table
        for correction in self.rounds:
            total += correction.ratio(table, events.event_key) - correction.mean.log(self.conditions(events))
        return total

    def _limited(self, total: FloatArray, context: NDArray[np.float32]) -> FloatArray:
        """Log factors (n,) within the bound, and 0 outside the domain.

        Raises:
            FitError: one is NaN, of a correction that can't be used.
        """
        if bad := int(np.isnan(total).sum()):
            raise FitError(
                f"reweighter: the factors of {bad} of {len(total)} events are NaN, expected numbers; fit it anew"
            )
        return np.where(self.in_domain(context), np.clip(total, -self.bound, self.bound), 0.0)

    @property
    def bound(self) -> float:
        """Largest absolute log factor."""
        return self.rounds[0].ratio.bound if self.rounds else 0.0

    def factors(self, events: Events) -> FloatArray:
        """Factors (n,) on the weights of generated events."""
        return np.exp(self.log_ratio(events))

    @property
    def n_replicas(self) -> int:
        """Number K of replicas."""
        return self.replicas.coefficients.shape[1] if self.replicas else 0

    def replica_ratios(self, events: Events) -> FloatArray:
        """Factors (n, K) of each replica over the nominal ones; a few may be negative, their means are right."""
        if self.replicas is None:
            return np.ones((len(events), 0))
        return np.where(self.in_domain(events.context)[:, None], 1 + self.replicas(events.table), 1.0)

    def in_domain(self, context: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether a correction is known at context (n, c): everywhere in the joint case."""
        return self.columns.in_domain(context, self.domain) if self.conditional else np.ones(len(context), bool)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write it to one file.

        Raises:
            ConfigError: the file exists and may not be replaced.
            FileError: there is no such folder.
        """
        state = {
            **vars(self),
            "format": FORMAT,
            "columns": self.columns.to_dict(),
            "domain": torch.from_numpy(self.domain),
            "rounds": [{"ratio": one.ratio.state(), "mean": one.mean.state()} for one in self.rounds],
            "replicas": self.replicas and self.replicas.state(),
        }
        with replacing(Path(path), overwrite=overwrite) as beside:
            torch.save({STATE_KEY: state}, beside)

    @classmethod
    def load(cls, path: str | Path) -> Reweighter:
        """Read it, without running code from the file.

        Raises:
            CheckpointError: the file is missing, is no reweighter, or was written by another version.
        """
        state = _read(path := Path(path))
        members, replicas = ESTIMATORS[state["estimator"]].members, state.get("replicas")
        if isinstance(replicas, list) and replicas:
            msg = f"{path}: its {len(replicas)} replicas were shrunk towards no correction, and spread too little"
            warnings.warn(f"{msg}; they are left out: fit it again with --replicas", CalorefineWarning, stacklevel=2)
        with rebuilding(path, "reweighter"):
            options = {name: state[name] for name in ("estimator", "conditional", "largest", "provenance")}
            parts = [(Ratio.from_state(one["ratio"], members), one["mean"]) for one in state["rounds"]]
            rounds = [Round(ratio, MeanWeight.from_state(mean)) for ratio, mean in parts]
            options |= {"replicas": Tilt.from_state(replicas) if isinstance(replicas, dict) else None}
            return cls(Columns.from_dict(state["columns"]), rounds, domain=state["domain"].numpy(), **options)._tried()

    def _tried(self) -> Reweighter:
        """Weigh an event at the middle of the domain: what was put together of parts that don't fit, can't."""
        if self.domain.shape != (expected := (len(self.columns.context_names), 2)):
            raise ValueError(f"domain of shape {tuple(self.domain.shape)}, expected {expected}")
        context = self.domain.mean(axis=1, keepdims=True).T.astype(np.float32)
        key, x = np.zeros(1, np.uint64), np.zeros((1, self.columns.n_features), np.float32)
        event = Events(x, context, np.ones(1), key, key)
        dict(self.provenance), float(self.largest), self.log_ratio(event), self.replica_ratios(event)
        return self


def _common_range(generated: Events, reference: Events, columns: Columns) -> FloatArray:
    """Range (c, 2) of each context column that both samples reach."""
    used = [events.context[events.weight != 0] for events in (generated, reference)]
    low, high = np.max([c.min(axis=0) for c in used], axis=0), np.min([c.max(axis=0) for c in used], axis=0)
    for name, first, last in zip(columns.context_names, low, high, strict=True):
        if first > last:
            msg = f"context '{name}': generated and reference events have no value in common (the larger of the lowest "
            raise EmptySelectionError(f"{msg}values is {first:g}, the smaller of the highest {last:g})")
    return np.stack([low, high], axis=1).astype(np.float64)


def _joint(events: Events) -> WeightedRows:
    return WeightedRows(events.table, events.weight, events.event_key)


def _read(path: Path) -> dict[str, Any]:
    content = read_saved(path, STATE_KEY, what="reweighter", expected="a file of 'calorefine reweight'")
    state: dict[str, Any] = content[STATE_KEY]
    with rebuilding(path, "reweighter"):
        if state["format"] != FORMAT or state["estimator"] not in ESTIMATORS:
            known = f"expected format {FORMAT} with one of {', '.join(ESTIMATORS)}"
            raise CheckpointError(f"{path}: format {state['format']} with '{state['estimator']}'; {known}")
        require_numbers(path, {name: part for name, part in state.items() if name != "provenance"}, STATE_KEY)
    return state
