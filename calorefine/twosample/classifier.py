r"""A classifier between two weighted samples: AUC for weights of any sign, JSD for positive ones, and their floor.

The AUC is the weighted Mann-Whitney sum over pairs of a generated event i and a reference event j with scores s,

.. math:: A = \frac{\sum_{ij} w_i w_j \left(1[s_i > s_j] + \tfrac12 1[s_i = s_j]\right)}{\sum_i w_i \sum_j w_j} ,

which is unbiased for weights of any sign; the curve itself would not be monotone.  Its standard error follows from the
influence of each event on A,

.. math:: \frac{w_i}{\sum w} (F_\mathrm{ref}(s_i) - A), \qquad
          \frac{w_j}{\sum w} (1 - F_\mathrm{gen}(s_j) - A) ,

summed over events of equal key (candidates, and events generated at the same conditions) before squaring.

Boosted trees need positive weights to train on: signed ones are replaced by their conditional mean
(`calorefine.weights.positive`), estimated from the training half alone.  They are tested with the signed weights.  The
Jensen-Shannon divergence (ln 2 - BCE) / ln 2 with the test half's cross entropy (BCE) has no such form: with a few
large negative weights, one confident score decides it, so it is not given.

One random half tested gives an AUC with the variance V of its influences.  An event is tested in about half of k
splits, whose average of one and the same classifier has the variance

.. math:: \mathrm{Var}(\bar A) = \frac{V}{2} \left(1 + \frac{1}{k}\right) ,

V / 2 from the sample and V / 2k from the choice of halves; where a share f is tested, :math:`V (f + (1 - f) / k)`.  It
is quoted.  Each split trains a classifier of its own,
which adds two terms of opposite sign: classifiers of different halves order the tested events differently, which
averages out, and what they learned is an accident of training events that the splits share, which doesn't.  The spread
of the splits can't tell these terms, since all splits are of one sample.  In toys with 4 or 10 splits and AUCs of
0.50 to 0.67, the AUC's spread was 0.87 to 1.11 quoted errors; `benchmarks/validate_nulls.py` measures it.

References: DeLong et al., Biometrics 44 (1988) 837; Krause and Shih, arXiv:2106.05285 (AUC and JSD).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]  # no stubs, no py.typed

from calorefine import keys, stats, trees
from calorefine.errors import ConfigError, FitError, WeightError
from calorefine.events import Events
from calorefine.stats import FloatArray
from calorefine.weights.positive import PositiveWeights

N_TREES = 200
SIGNED = "weights are signed: the cross entropy on the test half has no lower bound"


@dataclass(frozen=True)
class Separation:
    """How well a classifier tells two samples apart, averaged over random splits into halves for training and testing.

    Attributes:
        auc: mean AUC; 0.5 if it can't.
        auc_error: standard error of this mean.
        auc_split_error: standard error of the AUC of one split.
        auc_spread: standard deviation over the splits; None for one split.
        jsd: mean Jensen-Shannon divergence in bits, as trained: it is below 0 where an overconfident classifier has
            found nothing.  None with signed weights.
        jsd_spread: standard deviation over the splits.
    """

    auc: float
    auc_error: float
    auc_split_error: float
    auc_spread: float | None
    jsd: float | None
    jsd_spread: float | None


@dataclass(frozen=True)
class ClassifierTest:
    """Generated against reference, and the floor: one random half of the reference against the other.

    Attributes:
        separation: generated against reference; None if it can't be computed.
        floor: with half as many events, so that its error is larger.
        repetitions: number of splits.
        refused: what is not given to the reason why.
    """

    separation: Separation | None
    floor: Separation | None
    repetitions: int
    refused: dict[str, str]


@dataclass(frozen=True)
class Split:
    """Result of one training: the AUC, its variance for given scores, and the divergence if there is one."""

    auc: float
    variance: float
    jsd: float | None


def mann_whitney(generated: FloatArray, reference: FloatArray, *, weights: tuple[FloatArray, FloatArray]) -> float:
    """Weighted probability that a generated event has a higher score than a reference event; ties count one half.

    Args:
        generated: (n,) scores.
        reference: (m,) scores.
        weights: (n,) and (m,), any sign, positive sums.

    Returns:
        The AUC; with signed weights it may fluctuate out of [0, 1].

    Raises:
        WeightError: weights without a positive sum.

    >>> mann_whitney(np.array([2.0, 3.0]), np.array([1.0, 2.0]), weights=(np.ones(2), np.ones(2)))
    0.875
    """
    below, _ = _below(generated, reference, weights)
    return float(stats.mean(below, weights[0]))


def auc_with_error(
    generated: FloatArray,
    reference: FloatArray,
    *,
    weights: tuple[FloatArray, FloatArray],
    event_keys: tuple[keys.KeyArray, keys.KeyArray],
) -> tuple[float, float]:
    """AUC as `mann_whitney`, and its standard error for given scores.

    Args:
        generated: (n,) scores.
        reference: (m,) scores.
        weights: (n,) and (m,), any sign, positive sums.
        event_keys: (n,) and (m,); events of equal key, also of different samples, count as correlated.
    """
    below, above = _below(generated, reference, weights)
    auc = float(stats.mean(below, weights[0]))
    influence = [w * (values - auc) / stats.sum_w(w) for values, w in zip((below, above), weights, strict=True)]
    return auc, float(np.sqrt(stats.sum_w2(stats.group_sums(np.concatenate(influence), keys.group(*event_keys)))))


def classifier_test(generated: Events, reference: Events, *, repetitions: int = 10, seed: int = 0) -> ClassifierTest:
    """`separation` of generated and reference events, and of random halves of the reference.

    Args:
        generated: weights of any sign.
        reference: likewise, and the same columns.
        repetitions: number of splits, at least 1; the floor has new halves for each.
        seed: of the splits.

    Raises:
        ConfigError: no repetition.
    """
    refused = {"jsd": SIGNED} if min(generated.weight.min(), reference.weight.min()) < 0 else {}
    results: dict[str, Separation | None] = {"separation": None, "floor": None}
    for name, sample in (("separation", generated), ("floor", None)):
        try:
            results[name] = separation(sample, reference, repetitions=repetitions, seed=seed)
        except (WeightError, FitError) as error:
            refused[name] = str(error)
    return ClassifierTest(**results, repetitions=repetitions, refused=refused)


def separation(generated: Events | None, reference: Events, *, repetitions: int = 10, seed: int = 0) -> Separation:
    """Train a classifier on features and context of half of the events and test it on the others, several times.

    The half is a function of the event's key: an event and the one generated at the same conditions are on the
    same side.  Both classes get the same sum of weights.

    Args:
        generated: weights of any sign; None compares one random half of the reference with the other.
        reference: likewise, and the same columns.
        repetitions: number of splits, at least 1.
        seed: of the splits.

    Raises:
        ConfigError: no repetition.
        WeightError: a half whose weights have no positive sum, or no conditional mean that is positive.
        FitError: the estimate of the conditional mean fails.
    """
    if repetitions < 1:
        raise ConfigError(f"repetitions: {repetitions} found, expected at least 1")
    ordered, other = _ordered(reference), None if generated is None else _ordered(generated)
    splits = []
    for number in range(repetitions):
        pair = _halves(ordered, "floor", seed, number) if other is None else (other, ordered)
        splits.append(_split(*pair, seed=seed, number=number))
    return summary(splits)


def _ordered(events: Events) -> Events:
    """The events in an order that depends only on what they are."""
    return events.take(np.lexsort((*events.x.T, events.key, events.event_key)))


def _halves(events: Events, purpose: str, seed: int, number: int) -> tuple[Events, Events]:
    """Random halves, by event key."""
    first = keys.uniform(keys.stream(events.event_key, purpose, seed=seed, replica=number)) < 0.5
    return events.take(first), events.take(~first)


def _split(generated: Events, reference: Events, *, seed: int, number: int) -> Split:
    """Train on one half, test on the other."""
    (train_g, test_g), (train_r, test_r) = (_halves(e, "classifier", seed, number) for e in (generated, reference))
    model = HistGradientBoostingClassifier(max_iter=N_TREES, early_stopping=False, random_state=number)
    table = np.concatenate([train_g.table, train_r.table])
    weight = np.concatenate([_training_weight(events) for events in (train_g, train_r)])
    trees.fitted(model, table, np.repeat([1, 0], [len(train_g), len(train_r)]), weight * len(table))
    scores = [model.predict_proba(events.table)[:, 1] for events in (test_g, test_r)]
    weights, event_keys = (test_g.weight, test_r.weight), (test_g.event_key, test_r.event_key)
    auc, error = auc_with_error(scores[0], scores[1], weights=weights, event_keys=event_keys)
    signed = min(events.weight.min() for events in (generated, reference)) < 0
    return Split(auc, error**2, None if signed else jensen_shannon(scores, weights))


def _training_weight(events: Events) -> FloatArray:
    """Positive weights (n,) of sum 1/2: the events' own, or the conditional mean of signed ones."""
    weight = events.weight
    stats.require_positive_sum(weight, f"classifier, {len(events)} training events")
    if weight.min() < 0:
        weight = PositiveWeights(bounds=None).fit(events).weight
    return np.asarray(0.5 * weight / stats.sum_w(weight))


def jensen_shannon(scores: Sequence[FloatArray], weights: tuple[FloatArray, FloatArray]) -> float:
    """Jensen-Shannon divergence in bits, (ln 2 - BCE) / ln 2, with equal shares of both classes.

    Args:
        scores: probabilities to be generated of generated (n,) and reference events (m,).
        weights: (n,) and (m,), not negative, positive sums.
    """
    entropies = (-np.log(np.maximum(share, 1e-12)) for share in (scores[0], 1 - scores[1]))
    means = [float(stats.mean(entropy, w)) for entropy, w in zip(entropies, weights, strict=True)]
    return float(1 - 0.5 * sum(means) / np.log(2))


def summary(splits: list[Split], *, tested: float = 0.5) -> Separation:
    """Averages over random splits, each of which tests this share of the events, and their errors."""
    aucs = [split.auc for split in splits]
    jsds = [split.jsd for split in splits if split.jsd is not None]
    variance = float(np.mean([split.variance for split in splits]))
    return Separation(
        auc=float(np.mean(aucs)),
        auc_error=float(np.sqrt(variance * (tested + (1 - tested) / len(splits)))),
        auc_split_error=float(np.sqrt(variance)),
        auc_spread=_spread(aucs),
        jsd=float(np.mean(jsds)) if jsds else None,
        jsd_spread=_spread(jsds),
    )


def _spread(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _below(
    generated: FloatArray, reference: FloatArray, weights: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Share of the reference below each generated score (n,), of the generated above each reference score (m,)."""
    totals = [stats.require_positive_sum(w, "AUC") for w in weights]
    distinct, group = np.unique(np.concatenate([generated, reference]), return_inverse=True)
    groups = np.split(group, [len(generated)])
    middles = []
    for index, w, total in zip(groups, weights, totals, strict=True):
        inside = stats.group_sums(w, index, len(distinct)) / total
        middles.append(np.cumsum(inside) - 0.5 * inside)
    return middles[1][groups[0]], 1 - middles[0][groups[1]]
