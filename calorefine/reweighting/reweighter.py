r"""Reweighter: what turns generated events into the reference's, event by event, and a user keeps.

Two questions, two ratios:

- *conditional* (the default): p_ref(x | context) / p_gen(x | context).  The spectrum of the context is left alone, so
  that the weights hold for any other spectrum as well.  First the ratio g of the context's densities is estimated from
  the context alone; then that of the joint densities, with generated events weighted by g, so that their context is the
  reference's; last it is divided by its mean at each context (`contexts`): the mean weight is 1 everywhere.
- *joint*: p_ref(x, context) / p_gen(x, context), with mean weight 1 over the generated events.

Each *round* corrects what the last one left.  A log weight is the sum over rounds, within the bound of the ratio.  An
event whose context lies outside the range that both samples reach gets weight 1 in the conditional case: nothing is
known there.  The range is that of each column; corners that neither sample reaches are not seen as such.

References: Rogozhnikov, arXiv:1608.05806 (reweighting by a classifier); Andreassen and Nachman, arXiv:1907.08209.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calorefine.errors import CheckpointError, ConfigError, EmptySelectionError, nearest
from calorefine.events import Columns, Events
from calorefine.io.writer import replacing
from calorefine.reweighting.boosting import BoostingRatio
from calorefine.reweighting.mean_weight import MeanWeight
from calorefine.reweighting.network import NetworkRatio
from calorefine.reweighting.ratio import Members, Ratio, RatioEstimator, Table, fit_ratio
from calorefine.stats import FloatArray

ESTIMATORS: dict[str, type[RatioEstimator]] = {one.__name__: one for one in (NetworkRatio, BoostingRatio)}
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
        replicas: reweighters learned from bootstrap copies of the reference (`replicas`), with as many rounds.
    """

    def __init__(
        self,
        columns: Columns,
        rounds: list[Round],
        *,
        estimator: str,
        conditional: bool,
        domain: FloatArray,
        largest: float = 1.0,
        provenance: Mapping[str, Any] | None = None,
        replicas: Sequence[Reweighter] = (),
    ) -> None:
        """Store them."""
        self.columns, self.rounds, self.estimator, self.conditional = columns, rounds, estimator, conditional
        self.domain, self.largest, self.provenance = domain, largest, dict(provenance or {})
        self.replicas = list(replicas)

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
        weight = generated.weight * np.exp(self._limited(before, generated.context))
        if self.conditional and generated.context.shape[1]:
            weight = weight * self.context_factors(generated, reference, weight, estimator, seed)
        ratio = fit_ratio(
            _joint(replace(generated, weight=weight)), _joint(reference), estimator, seed=seed + len(self.rounds)
        )
        log_ratio = ratio(generated.table, generated.event_key)
        context = generated.context if self.conditional else generated.context[:, :0]
        mean = MeanWeight.fit(context, np.exp(log_ratio), weight)
        better = self._with([*self.rounds, Round(ratio, mean)])
        after = better._limited(before + log_ratio - mean.log(context), generated.context)
        better.largest = float(np.exp(after[generated.weight > 0].max()))
        return better

    def context_factors(
        self, generated: Events, reference: Events, weight: FloatArray, estimator: RatioEstimator, seed: int
    ) -> FloatArray:
        """Ratio (n,) of the context's densities at the generated events."""
        tables = [Table(e.context, w, e.event_key) for e, w in ((generated, weight), (reference, reference.weight))]
        ratio = fit_ratio(tables[0], tables[1], estimator, seed=seed + len(self.rounds))
        return np.exp(ratio(generated.context, generated.event_key))

    def without_rounds(self) -> Reweighter:
        """Return one of the same columns and domain that corrects nothing yet."""
        return self._with([])

    def _with(self, rounds: list[Round]) -> Reweighter:
        return Reweighter(
            self.columns,
            rounds,
            estimator=self.estimator,
            conditional=self.conditional,
            domain=self.domain,
            provenance=self.provenance,
        )

    def log_ratio(self, events: Events) -> FloatArray:
        """Log factors (n,), each of members that did not see the event; 0 outside the domain.

        The cut of `columns` is in terms of branches, which events don't have: who calls knows that they pass it.
        """
        return self._limited(self._total(events), events.context)

    def _total(self, events: Events) -> FloatArray:
        """Sum of the rounds' log factors (n,), without limits."""
        total = np.zeros(len(events))
        context = events.context if self.conditional else events.context[:, :0]
        table = events.table
        for one in self.rounds:
            total += one.ratio(table, events.event_key) - one.mean.log(context)
        return total

    def _limited(self, total: FloatArray, context: NDArray[np.float32]) -> FloatArray:
        """Log factors (n,) within the bound, and 0 outside the domain."""
        return np.where(self.in_domain(context), np.clip(total, -self.bound, self.bound), 0.0)

    @property
    def bound(self) -> float:
        """Largest absolute log factor."""
        return self.rounds[0].ratio.bound if self.rounds else 0.0

    def factors(self, events: Events) -> FloatArray:
        """Factors (n,) on the weights of generated events."""
        return np.exp(self.log_ratio(events))

    def replica_factors(self, events: Events) -> FloatArray:
        """Factors (n, K) of each replica."""
        out = np.empty((len(events), len(self.replicas)))
        for index, one in enumerate(self.replicas):
            out[:, index] = one.factors(events)
        return out

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
            "format": FORMAT,
            "columns": self.columns.to_dict(),
            "estimator": self.estimator,
            "conditional": self.conditional,
            "domain": torch.from_numpy(self.domain),
            "largest": self.largest,
            "provenance": self.provenance,
            "rounds": _rounds_state(self.rounds),
            "replicas": [_rounds_state(one.rounds, known=False) for one in self.replicas],
        }
        with replacing(Path(path), overwrite=overwrite) as beside:
            torch.save({STATE_KEY: state}, beside)

    @classmethod
    def load(cls, path: str | Path) -> Reweighter:
        """Read it, without running code from the file.

        Raises:
            CheckpointError: the file is missing, is no reweighter, or was written by another version.
        """
        state = _read(Path(path))
        members = ESTIMATORS[state["estimator"]].members
        nominal = cls(
            Columns.from_dict(state["columns"]),
            _rounds(state["rounds"], members),
            estimator=state["estimator"],
            conditional=state["conditional"],
            domain=state["domain"].numpy(),
            largest=state["largest"],
            provenance=state["provenance"],
        )
        for own in state.get("replicas", ()):
            known = state["rounds"][0]["ratio"]["known"]
            rounds = [{**one, "ratio": {**one["ratio"], "known": known}} for one in own]
            nominal.replicas.append(nominal._with(_rounds(rounds, members)))
        return nominal


def _rounds_state(rounds: Sequence[Round], *, known: bool = True) -> list[dict[str, Any]]:
    """Rounds as tensors and plain containers; without the known events, for replicas, whose are the nominal ones."""
    states = [{"ratio": one.ratio.state(), "mean": one.mean.state()} for one in rounds]
    return [one if known else {**one, "ratio": {**one["ratio"], "known": None}} for one in states]


def _rounds(states: Sequence[Mapping[str, Any]], members: type[Members]) -> list[Round]:
    """Inverse of `_rounds_state`."""
    return [Round(Ratio.from_state(one["ratio"], members), MeanWeight.from_state(one["mean"])) for one in states]


def _common_range(generated: Events, reference: Events, columns: Columns) -> FloatArray:
    """Range (c, 2) of each context column that both samples reach."""
    used = [events.context[events.weight != 0] for events in (generated, reference)]
    low, high = np.max([one.min(axis=0) for one in used], axis=0), np.min([one.max(axis=0) for one in used], axis=0)
    for name, first, last in zip(columns.context_names, low, high, strict=True):
        if first > last:
            msg = f"context '{name}': generated and reference events have no value in common (the larger of the lowest "
            raise EmptySelectionError(f"{msg}values is {first:g}, the smaller of the highest {last:g})")
    return np.stack([low, high], axis=1).astype(np.float64)


def _joint(events: Events) -> Table:
    return Table(events.table, events.weight, events.event_key)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [str(found) for found in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such reweighter{nearest(str(path), siblings)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file that is none of its own
        raise CheckpointError(f"{path}: not a readable reweighter; expected a file of 'calorefine reweight'") from error
    if not isinstance(content, dict) or STATE_KEY not in content:
        raise CheckpointError(f"{path}: not a reweighter; expected a file of 'calorefine reweight'")
    state: dict[str, Any] = content[STATE_KEY]
    if state["format"] != FORMAT or state["estimator"] not in ESTIMATORS:
        found = f"format {state['format']} with '{state['estimator']}'"
        raise CheckpointError(f"{path}: {found}; expected format {FORMAT} with one of {', '.join(ESTIMATORS)}")
    return state
