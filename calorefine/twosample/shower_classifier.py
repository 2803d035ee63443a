r"""Classifiers of showers: a network on cells, boosted trees on high-level features, and a network that tells models.

Each training has a random split of its own into 60 % of the events to train on, 20 % that tell when to stop and 20 %
that are tested.  The part is a function of the event's key: a shower and the one generated at its conditions are on the
same side.  Split apart, an AUC comes out too low.  AUC and divergence are averages over trainings; the AUC is the
weighted Mann-Whitney sum, with the error of `calorefine.twosample.classifier` at a tested share of 0.2.

Both classes have the same sum of weights in training and in the cross entropy.  Weights must not be negative: the
cross entropy of signed ones has no lower bound.

An AUC depends on the classifier and on the number of events; both are to be named beside it.  Its floor is that of two
halves of the reference (`calorefine.twosample.embedding.halves`), which have half as many events.

`CHALLENGE` is the CaloChallenge's network (Krause et al., arXiv:2410.21611), but for AdamW in the place of Adam, and
for the epoch that is kept: the one of the lowest cross entropy, not of the highest accuracy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]  # no stubs, no py.typed
from torch import nn
from torch.nn.functional import cross_entropy

from calorefine import keys, stats, trees
from calorefine.errors import ConfigError, EmptySelectionError, TrainingError
from calorefine.stats import FloatArray, batch_mean
from calorefine.twosample.classifier import Separation, Split, auc_with_error, jensen_shannon, summary
from calorefine.twosample.distances import Points
from calorefine.twosample.showers import Inputs

PARTS = (0.6, 0.2, 0.2)  # to train on, to stop by, to test
N_TRAININGS = 3
N_TREES = 300
_EVALUATED = 4096  # rows in one go


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Network and its training.

    Args:
        hidden: units of each hidden layer.
        dropout: share of the units that are left out in training.
        learning_rate: of AdamW.
        batch_size: rows in a step.
        epochs: at most.
        patience: epochs without a lower cross entropy after which it stops.

    Raises:
        ConfigError: numbers that are not positive, or a dropout outside of [0, 1).
    """

    hidden: tuple[int, ...] = (512, 512)
    dropout: float = 0.2
    learning_rate: float = 3e-4
    batch_size: int = 256
    epochs: int = 60
    patience: int = 6

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive = (*self.hidden, self.learning_rate, self.batch_size, self.epochs, self.patience)
        if min(positive) <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError(f"network: {self} found, expected positive numbers and a dropout from 0 to below 1")


SMALL = NetworkOptions()
CHALLENGE = NetworkOptions(
    hidden=(2048, 2048), dropout=0.0, learning_rate=2e-4, batch_size=1000, epochs=50, patience=50
)


@dataclass(frozen=True)
class ShowerTest:
    """How well a classifier tells two samples of showers apart.

    Attributes:
        separation: averages over the trainings, their spread, and errors.
        n: numbers of generated and reference events, of which each training tests a fifth.
        n_eff: their effective numbers.
    """

    separation: Separation
    n: tuple[int, int]
    n_eff: tuple[float, float]


@dataclass(frozen=True)
class LogPosterior:
    """Which of several models the reference resembles most.

    Attributes:
        reference: model to the weighted mean of the logarithm of its probability for reference events; ln(1 / number of
            models) for all where they can't be told.
        error: standard errors, of events for given trainings and of the spread of the trainings.
        own: likewise for events of the model itself that were not trained on: what it would be for a perfect model.
        n: numbers of events of each model, and of the reference (`"reference"`).
    """

    reference: dict[str, float]
    error: dict[str, float]
    own: dict[str, float]
    n: dict[str, int]


def network_test(
    generated: Points,
    reference: Points,
    options: NetworkOptions = SMALL,
    *,
    n_trainings: int = N_TRAININGS,
    seed: int = 0,
) -> ShowerTest:
    """Train a network to tell two samples apart, and test it, several times.

    Args:
        generated: such as `linear_inputs` or `frame_inputs`; weights that are not negative.
        reference: likewise, and the same columns.
        options: of the network.
        n_trainings: how many, each with a split of its own.
        seed: of all that is random.

    Raises:
        ConfigError: samples of different columns, or no training.
        EmptySelectionError: a part without events of one sample.
        TrainingError: the cross entropy is NaN or infinite.
        WeightError: negative weights, or a part whose weights don't have a positive sum.
    """

    def scores(parts: list[list[Points]], number: int) -> list[FloatArray]:
        network = _trained(parts, options, seed=seed, number=number)
        return [_margin(_logits(network, points)) for points in parts[2]]

    return _tested([generated, reference], scores, n_trainings=n_trainings, seed=seed)


def boosting_test(generated: Points, reference: Points, *, n_trainings: int = N_TRAININGS, seed: int = 0) -> ShowerTest:
    """Train boosted trees to tell two samples apart, and test them, several times; arguments as of `network_test`.

    300 trees of 15 leaves at most are grown at a rate of 0.06; those up to the lowest cross entropy on the part that
    tells when to stop are kept.  (scikit-learn would split pairs for that.)

    Args:
        generated: such as `high_level`; weights that are not negative.
        reference: likewise, and the same columns.
        n_trainings: how many, each with a split of its own.
        seed: of all that is random.

    Raises:
        ConfigError: samples of different columns, or no training.
        EmptySelectionError: a part without events of one sample.
        WeightError: negative weights, or a part whose weights don't have a positive sum.
    """

    def scores(parts: list[list[Points]], number: int) -> list[FloatArray]:
        return _boosted(parts, seed=seed + 1000 * number)

    return _tested([generated, reference], scores, n_trainings=n_trainings, seed=seed)


def log_posterior(
    models: Mapping[str, Points],
    reference: Points,
    options: NetworkOptions = SMALL,
    *,
    n_trainings: int = N_TRAININGS,
    seed: int = 0,
) -> LogPosterior:
    r"""Train a network to tell models apart, and ask it for the reference, several times.

    The mean of :math:`\ln p(\mathrm{model} \,|\, x)` over the reference ranks models against each other; it says
    nothing about how good the best one is.  All models have the same sum of weights in training.

    Args:
        models: name to rows, at least two; weights that are not negative.
        reference: the same columns; it is not trained on.  Weights of any sign.
        options: of the network.
        n_trainings: how many, each with a split of its own.
        seed: of all that is random.

    Raises:
        ConfigError: fewer than two models, samples of different columns, or no training.
        EmptySelectionError: a part without events of one model.
        TrainingError: the cross entropy is NaN or infinite.
        WeightError: weights that are negative, or whose sum is not positive.

    References: Lim et al., arXiv:2211.11765; Krause et al., arXiv:2410.21611.
    """
    if len(models) < 2:
        raise ConfigError(f"log posterior: {len(models)} models found, expected at least 2")
    samples = list(models.values())
    _check([*samples, reference], n_trainings)
    results = [_posteriors(samples, reference, options, seed=seed, number=number) for number in range(n_trainings)]
    logs, own = (np.stack(arrays) for arrays in zip(*results, strict=True))
    mean, error = _mean_over_trainings(logs, reference)
    columns = (dict(zip(models, values.tolist(), strict=True)) for values in (mean, error, own.mean(axis=0)))
    n = {**{name: len(points.weight) for name, points in models.items()}, "reference": len(reference.weight)}
    return LogPosterior(next(columns), next(columns), next(columns), n)


def _posteriors(
    samples: list[Points], reference: Points, options: NetworkOptions, *, seed: int, number: int
) -> tuple[FloatArray, FloatArray]:
    """Log probabilities (n, models) of the reference, and the means (models,) for tested events of each model."""
    parts = _parts(samples, seed=seed, number=number)
    network = _trained(parts, options, seed=seed, number=number)
    logs = [_log_probabilities(_logits(network, points))[:, k] for k, points in enumerate(parts[2])]
    own = [stats.mean(values, points.weight) for values, points in zip(logs, parts[2], strict=True)]
    return _log_probabilities(_logits(network, reference)), np.array(own)


def _mean_over_trainings(logs: FloatArray, reference: Points) -> tuple[FloatArray, FloatArray]:
    """Weighted means (models,) of log probabilities (trainings, n, models), and their errors."""
    values = stats.mean(logs.swapaxes(0, 1), reference.weight)
    mean = values.mean(axis=0)
    influence = (reference.weight / stats.sum_w(reference.weight))[:, None] * (logs.mean(axis=0) - mean)
    group = keys.group(reference.key)
    variance = np.square(stats.row_sums(influence, group, int(group.max()) + 1)).sum(axis=0)
    if len(logs) > 1:
        variance = variance + values.var(axis=0, ddof=1) / len(logs)
    return mean, np.sqrt(variance)


def _tested(
    samples: list[Points],
    scores: Callable[[list[list[Points]], int], list[FloatArray]],
    *,
    n_trainings: int,
    seed: int,
) -> ShowerTest:
    """Split, train and test; scores are log odds to be generated, of the tested events of both samples."""
    _check(samples, n_trainings)
    splits = []
    for number in range(n_trainings):
        parts = _parts(samples, seed=seed, number=number)
        odds, tested = scores(parts, number), parts[2]
        weights, event_keys = (tested[0].weight, tested[1].weight), (tested[0].key, tested[1].key)
        auc, error = auc_with_error(odds[0], odds[1], weights=weights, event_keys=event_keys)
        shares = [1 / (1 + np.exp(-np.clip(values, -500, 500))) for values in odds]
        splits.append(Split(auc, error**2, jensen_shannon(shares, weights)))
    n, n_eff = ((len(p.weight) for p in samples), (stats.n_eff(p.weight) for p in samples))
    return ShowerTest(summary(splits, tested=PARTS[2]), (next(n), next(n)), (next(n_eff), next(n_eff)))


def _check(samples: Sequence[Points], n_trainings: int) -> None:
    columns = [points.values.shape[1] for points in samples]
    if len(set(columns)) > 1 or n_trainings < 1:
        msg = f"samples of {columns} columns and {n_trainings} trainings found, expected equal numbers of columns "
        raise ConfigError(msg + "and at least one training")


def _parts(samples: Sequence[Points], *, seed: int, number: int) -> list[list[Points]]:
    """Of each of the three parts, the events of each sample, in the order of their keys."""
    parts: list[list[Points]] = [[], [], []]
    for sample in samples:
        stats.require_nonnegative(sample.weight, "classifier of showers: its cross entropy has no lower bound")
        points = sample.take(np.lexsort((sample.values.sum(axis=1), sample.key)))
        uniform = keys.uniform(keys.stream(points.key, "shower_classifier", seed=seed, replica=number))
        part = np.searchsorted(np.cumsum(PARTS[:2]), uniform, side="right")
        for k in range(3):
            if not np.any(part == k):
                raise EmptySelectionError(f"classifier of showers: {len(part)} events are too few for parts of {PARTS}")
            parts[k].append(points.take(part == k))
    return parts


def _shares(part: list[Points]) -> FloatArray:
    """Weights of all events of a part, of mean 1 and equal sums for each sample."""
    total = sum(len(points.weight) for points in part)
    return np.concatenate([points.weight * (total / len(part) / stats.sum_w(points.weight)) for points in part])


def _labels(part: list[Points]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(part)), [len(points.weight) for points in part])


class _Network(nn.Module):
    """Fully connected network with dropout, whose inputs are shifted and scaled as they are in training."""

    def __init__(self, part: list[Points], options: NetworkOptions) -> None:
        """Draw the parameters."""
        super().__init__()
        shift, scale = _scales(part)
        self.shift, self.scale = nn.Buffer(shift), nn.Buffer(scale)
        layers: list[nn.Module] = []
        for first, second in pairwise([len(shift), *options.hidden]):
            layers += [nn.Linear(first, second), nn.LeakyReLU(), nn.Dropout(options.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(options.hidden[-1], len(part)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) of rows (n, d)."""
        return torch.as_tensor(self.layers((x - self.shift) / self.scale))


def _scales(part: list[Points]) -> tuple[torch.Tensor, torch.Tensor]:
    """Means and widths (d,) of the columns, 0 and 1 for those that are taken as they are or have no width."""
    first = part[0]
    raw = first.as_they_are if isinstance(first, Inputs) else 0
    rest = np.concatenate([points.values[:, raw:] for points in part]).astype(np.float64)
    weight = _shares(part)
    mean = stats.mean(rest, weight)
    width = np.sqrt(stats.mean(np.square(rest - mean), weight))
    shift, scale = np.zeros(first.values.shape[1]), np.ones(first.values.shape[1])
    shift[raw:], scale[raw:] = mean, np.where(width > 0, width, 1.0)
    return torch.from_numpy(shift).float(), torch.from_numpy(scale).float()


def _trained(parts: list[list[Points]], options: NetworkOptions, *, seed: int, number: int) -> _Network:
    """Network of the epoch with the lowest cross entropy on the second part."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * seed + number)
        network = _Network(parts[0], options)
        optimizer = torch.optim.AdamW(network.parameters(), options.learning_rate)
        x, y, w = _tensors(parts[0])
        lowest, best, since = math.inf, copy.deepcopy(network.state_dict()), 0
        for _ in range(options.epochs):
            _epoch(network, optimizer, (x, y, w), options.batch_size)
            value = _cross_entropy(network, parts[1])
            if not math.isfinite(value):
                raise TrainingError(f"classifier of showers: the cross entropy is {value}; lower learning_rate")
            since = 0 if value < lowest else since + 1
            if since == 0:
                lowest, best = value, copy.deepcopy(network.state_dict())
            if since >= options.patience:
                break
    network.load_state_dict(best)
    return network.eval()


def _tensors(part: list[Points]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, labels and weights."""
    x = torch.from_numpy(np.concatenate([points.values for points in part], dtype=np.float32))
    return x, torch.from_numpy(_labels(part)), torch.from_numpy(_shares(part)).float()


def _epoch(
    network: _Network,
    optimizer: torch.optim.Optimizer,
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    batch_size: int,
) -> None:
    """One pass over the events; a batch's loss divides by the mean weight of all, which is 1."""
    network.train()
    x, y, w = data
    for index in torch.split(torch.randperm(len(x)), batch_size):
        loss = batch_mean(cross_entropy(network(x[index]), y[index], reduction="none"), w[index], 1.0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        optimizer.step()


def _cross_entropy(network: _Network, part: list[Points]) -> float:
    """Weighted mean cross entropy in nats, with equal shares of the samples."""
    logs = [_log_probabilities(_logits(network, points))[:, k] for k, points in enumerate(part)]
    return -float(np.mean([stats.mean(values, points.weight) for values, points in zip(logs, part, strict=True)]))


@torch.no_grad()
def _logits(network: _Network, points: Points) -> FloatArray:
    """Logits (n, classes)."""
    network.eval()
    starts = range(0, len(points.weight), _EVALUATED)
    blocks = (torch.from_numpy(points.values[k : k + _EVALUATED].astype(np.float32)) for k in starts)
    return np.concatenate([network(block).numpy() for block in blocks]).astype(np.float64)


def _log_probabilities(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _margin(logits: FloatArray) -> FloatArray:
    """Log odds (n,) of the first of two classes."""
    return np.asarray(logits[:, 0] - logits[:, 1])


def _boosted(parts: list[list[Points]], *, seed: int) -> list[FloatArray]:
    """Log odds to be generated of the third part, by as many trees as do best on the second."""
    fixed = {"max_leaf_nodes": 15, "early_stopping": False, "random_state": seed}
    model = HistGradientBoostingClassifier(max_iter=N_TREES, learning_rate=0.06, **fixed)
    tables = [np.concatenate([points.values for points in part]) for part in parts]
    trees.fitted(model, tables[0], 1 - _labels(parts[0]), _shares(parts[0]))
    stop_weight, sign = _shares(parts[1]), 2 * _labels(parts[1]) - 1
    stages = [float(stop_weight @ np.logaddexp(0, sign * odds)) for odds in _staged(model, tables[1])]
    best = int(np.argmin(stages))
    odds = next(values for k, values in enumerate(_staged(model, tables[2])) if k == best)
    size = len(parts[2][0].weight)
    return [odds[:size], odds[size:]]


def _staged(model: HistGradientBoostingClassifier, table: FloatArray) -> map[FloatArray]:
    """Log odds (n,) with one more tree each time."""
    return map(np.ravel, model.staged_decision_function(table))
