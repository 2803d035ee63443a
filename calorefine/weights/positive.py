r"""Positive weights: the conditional mean of signed ones, :math:`E[w | x, \mathrm{context}]`.

A weighted likelihood has no lower bound with signed weights.  It doesn't need them: for any function h of features and
context alone,

.. math:: E[w \, h(x, c)] = E[\, E[w | x, c] \, h(x, c)] ,

so weights replaced by their conditional mean give the same expectation of the loss, and for sWeights, custom orthogonal
weights and label fractions this mean is the probability :math:`P(\mathrm{species} | x, c)`, between 0 and 1 (`source`).

Two steps estimate it.  A *cross-fitted regression* of w on (x, c): the prediction for an event comes from a model that
saw no event of its fold, and the fold is a function of the event's key, so that the noise of an event's own weight, or
of another candidate of its event, does not come back as its prediction.  Predictions of trees scatter around 0 where
the probability is small, and clipping them would bias sums.  A *calibration* (its module has the text)
therefore maps prediction p to

.. math:: q = 1 / (1 + e^{-\eta}), \qquad \eta = \mathrm{logit}(p) + \beta \cdot \phi(x, c, p),

where :math:`\phi` holds 1, the columns, their squares and products, logit(p), and hats at the quantiles of p and
of each column; an array counts as one column, the sum of its cells.  :math:`\beta` solves

.. math:: \sum_i n_i (w_i - q_i) \, \phi_i = \lambda \beta .

Without penalty on the constant the sum of the weights is kept exactly; with :math:`\lambda` a fraction of the standard
error of such a sum, sums in quantiles of the prediction and along each column, means and covariances are kept within
theirs, and a solution always exists.  Where the truth is 0, a positive estimate can't be centered: the positive part
of a normal number has the mean 0.40.

What it costs: the variance moves from the weights to the regression.  The number of effective events of the positive
weights overstates the information; quote that of the signed ones, and estimate errors by a bootstrap that redoes
the regression.  What depends on anything else than (x, c) is lost: the weights serve these columns only.  With
functions of them as `inputs` they serve these functions, and x as far as these tell the species apart as well as x.

References: Borisyak and Kazeev, arXiv:1905.11719 (sWeights); Nachman and Thaler, arXiv:2007.11586 (event generators).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin, clone  # type: ignore[import-untyped]  # no stubs, no py.typed
from sklearn.ensemble import HistGradientBoostingRegressor  # type: ignore[import-untyped]  # no stubs, no py.typed
from sklearn.utils.validation import has_fit_parameter  # type: ignore[import-untyped]  # no stubs, no py.typed

from calorefine import keys, stats, trees
from calorefine.errors import ConfigError, FitError, ValueRangeError, WeightError
from calorefine.events import Events
from calorefine.stats import FloatArray, IntArray
from calorefine.weights.calibration import calibrated
from calorefine.weights.positive_result import PositiveResult, result_of
from calorefine.weights.source import checked_counts

N_BINS = 255


class QuantileTrees(HistGradientBoostingRegressor):  # type: ignore[misc]  # no stubs
    """Boosted trees that see the quantile bin of each value: the bins of their base, for all bootstrap counts at once.

    With `sample_weight` the base class sorts each column once for each bin, which takes six times as long as the trees.
    """

    def fit(self, table: FloatArray, weight: FloatArray, sample_weight: FloatArray | None = None) -> QuantileTrees:
        """Fit trees to signed weights; `sample_weight` are bootstrap counts."""
        levels = np.arange(1, N_BINS) / N_BINS
        self.edges_ = [np.unique(np.quantile(column, levels, method="inverted_cdf")) for column in table.T]
        return super().fit(self._binned(table), weight, sample_weight)  # type: ignore[no-any-return]

    def predict(self, table: FloatArray) -> FloatArray:
        """Predictions (n,)."""
        return np.asarray(super().predict(self._binned(table)))

    def _binned(self, table: FloatArray) -> FloatArray:
        bins = [np.searchsorted(edges, column) for edges, column in zip(self.edges_, table.T, strict=True)]
        return np.stack(bins, axis=1).astype(np.float64)


def default_estimator() -> QuantileTrees:
    """Boosted trees: stopped early on a tenth of the events, whatever the size of the sample.

    Few leaves, since signed weights are noisy: 31 leaves made the error of raw predictions up to 20 % larger on
    `ImpureToy` with 50 000 events, 8 leaves were better there by 10 % and worse on the electron sample.  The largest
    number of trees bounds the time for a million events to a minute.
    """
    return QuantileTrees(
        learning_rate=0.1,
        max_iter=300,
        max_leaf_nodes=15,
        min_samples_leaf=100,
        early_stopping=True,
        validation_fraction=0.1,
        n_iter_no_change=15,
    )


class PositiveWeights:
    """Cross-fitted regression of signed weights on features and context.

    Args:
        estimator: scikit-learn regressor; boosted trees if left out.  Its `random_state`, if it has one that is None,
            is set to `seed`.
        n_folds: number of folds, at least 2.
        seed: of the folds and the estimator.
        bounds: where the conditional mean lies; (0, 1) for weights that `source` describes.  None for weights that are
            products with something else: from 0 to the largest weight.
        inputs: expressions that the regression sees in the place of the features, beside the context: functions of
            features and context that hold what tells the species apart, such as a few observables of showers with
            hundreds of cells.  Whoever reads the events evaluates them.

    Raises:
        ConfigError: fewer than two folds, or bounds that are not in order.
    """

    def __init__(
        self,
        *,
        estimator: RegressorMixin | None = None,
        n_folds: int = 5,
        seed: int = 0,
        bounds: tuple[float, float] | None = (0.0, 1.0),
        inputs: list[str] = [],  # noqa: B006 (never changed; shown by --print_config)
    ) -> None:
        """Check the options."""
        if n_folds < 2:
            raise ConfigError(f"positive weights: n_folds is {n_folds}, expected at least 2")
        if bounds is not None and not 0 <= bounds[0] < bounds[1] < np.inf:
            raise ConfigError(f"positive weights: bounds are {list(bounds)}, expected 0 <= lower < upper, or null")
        self.estimator = default_estimator() if estimator is None else estimator
        self.n_folds = n_folds
        self.seed = seed
        self.bounds = bounds
        self.inputs = inputs

    def fit(
        self,
        events: Events,
        *,
        multiplicity: NDArray[Any] | None = None,
        names: Sequence[str] | None = None,
        arrays: Mapping[str, slice] | None = None,
    ) -> PositiveResult:
        """Estimate the conditional mean of the events' weights.

        The result doesn't depend on the order of the events.

        Args:
            events: with weights of any sign.
            multiplicity: (n,) bootstrap counts; an event that counts 0 times is left out of all fits and gets its
                prediction like the others.
            names: of the columns, features before context, for the report.
            arrays: places of the cells of each array among the columns, by name.  The regression sees the cells, the
                calibration and the report their sum.

        Raises:
            WeightError: weights with a sum that is not positive, or whose conditional mean is not within the bounds.
            ValueRangeError: columns, weights or counts that are not finite numbers of the right kind.
            ConfigError: counts given, and an estimator that does not take `sample_weight`; names of other columns.
            FitError: the estimator fails, or predicts what is not finite.
        """
        order = np.lexsort((events.key, events.event_key))
        counts = checked_counts(multiplicity, len(events))[order]
        events = events.take(order)
        table = np.concatenate([events.x, events.context], axis=1, dtype=np.float64)
        labels = _labels(names, table.shape[1])
        _require_finite(table, events.weight, labels)
        low, high = self._checked_bounds(events.weight, counts)
        raw, iterations = self._cross_fit(table, events, counts)
        table, labels = _summed(table, labels, arrays or {})
        unit, scaled = (events.weight - low) / (high - low), (raw - low) / (high - low)
        if multiplicity is None:  # replicas repeat what the nominal sample's weights are
            _require_conditional_mean(scaled, unit, counts, (low, high))
        positive = low + (high - low) * calibrated(table, scaled, unit, counts)
        positive = np.clip(positive, low, high)  # rounding
        result = result_of(positive, raw, (low, high), table, events, counts, labels, iterations)
        weight = np.empty_like(positive)
        weight[order] = positive
        return dataclasses.replace(result, weight=weight)

    def _checked_bounds(self, weight: FloatArray, counts: IntArray) -> tuple[float, float]:
        """Bounds, after a look at whether the mean weight lies between them."""
        stats.require_positive_sum(weight * counts, "positive weights")
        low, high = self.bounds or (0.0, float(weight[counts > 0].max()))
        mean = float(stats.mean(weight, counts))
        if not low < mean < high:
            remedy = (
                "they are no weights of one species alone; for products of such weights with others give `bounds: null`"
                if self.bounds
                else "they have no negative values to remove"
            )
            raise WeightError(
                f"positive weights: mean weight {mean:g}, expected between {low:g} and {high:g}; {remedy}"
            )
        return low, high

    def _cross_fit(self, table: FloatArray, events: Events, counts: IntArray) -> tuple[FloatArray, tuple[int, ...]]:
        """Predict each event by a model that saw no event of its fold."""
        fold = folds(events.event_key, self.n_folds, seed=self.seed)
        raw, iterations = np.empty(len(events)), []
        for number in range(self.n_folds):
            inside = fold == number
            if not inside.any():
                continue
            used = ~inside & (counts > 0)
            model = self._fitted(table[used], events.weight[used], counts[used], number)
            raw[inside] = self._guarded(model, "predict", number, table[inside])
            if isinstance(found := getattr(model, "n_iter_", None), int | np.integer):
                iterations.append(int(found))
        if not np.isfinite(raw).all():
            count, name = int(np.sum(~np.isfinite(raw))), type(self.estimator).__name__
            raise FitError(f"positive weights: {name} predicts NaN or infinity for {count} of {len(raw)} events")
        return raw, tuple(iterations)

    def _fitted(self, table: FloatArray, weight: FloatArray, counts: IntArray, number: int) -> Any:
        model: Any = clone(self.estimator)
        if "random_state" in (parameters := model.get_params(deep=False)) and parameters["random_state"] is None:
            model.set_params(random_state=self.seed)
        options = {}
        if np.any(counts != 1):
            if not has_fit_parameter(model, "sample_weight"):
                name = type(model).__name__
                raise ConfigError(f"positive weights: {name}.fit takes no sample_weight, which a bootstrap needs")
            options["sample_weight"] = counts.astype(np.float64)
        with trees.one_sort():
            self._guarded(model, "fit", number, table, weight, **options)
        return model

    def _guarded(
        self, model: Any, method: str, number: int, table: FloatArray, *rest: FloatArray, **options: Any
    ) -> Any:
        try:
            return getattr(model, method)(table, *rest, **options)
        except Exception as error:
            msg = (
                f"positive weights: {type(model).__name__}.{method} fails in fold {number + 1} of {self.n_folds}, "
                f"with {table.shape[0]} events and {table.shape[1]} columns: {error}"
            )
            raise FitError(msg) from error


def folds(event_key: keys.KeyArray, n_folds: int, *, seed: int = 0) -> IntArray:
    """Fold (n,) of each event, from 0: a function of its key, the same for its candidates and bootstrap copies."""
    return (keys.uniform(keys.stream(event_key, "fold", seed=seed)) * n_folds).astype(np.int64)


def _labels(names: Sequence[str] | None, n_columns: int) -> list[str]:
    if names is None:
        return [f"column {i}" for i in range(n_columns)]
    if len(names) != n_columns:
        raise ConfigError(f"positive weights: {len(names)} names for {n_columns} columns of features and context")
    return list(names)


def _summed(table: FloatArray, labels: list[str], arrays: Mapping[str, slice]) -> tuple[FloatArray, list[str]]:
    """Columns and their names, with the sum of each array's cells in place of its cells."""
    starts = {columns.start: name for name, columns in arrays.items()}
    cells = {j for columns in arrays.values() for j in range(columns.start, columns.stop)}
    kept = [j for j in range(len(labels)) if j in starts or j not in cells]
    out = table[:, kept] if arrays else table
    for columns in arrays.values():
        out[:, kept.index(columns.start)] = table[:, columns].sum(axis=1)
    return out, [f"sum of {starts[j]}" if j in starts else labels[j] for j in kept]


def _require_finite(table: FloatArray, weight: FloatArray, labels: Sequence[str]) -> None:
    for names, values in ((labels, table), (["weight"], weight[:, None])):
        bad = np.sum(~np.isfinite(values), axis=0)
        for j in np.flatnonzero(bad)[:1]:
            raise ValueRangeError(f"{names[j]}: {bad[j]} of {len(values)} values are NaN or infinite")


def _require_conditional_mean(raw: FloatArray, unit: FloatArray, counts: IntArray, bounds: tuple[float, float]) -> None:
    """Raise if events predicted out of bounds really lie there: in the mean of their own, independent weights.

    Args:
        raw: (n,) cross-fitted predictions in units of the bounds.
        unit: (n,) signed weights in these units.
        counts: (n,) multiplicities.
        bounds: the bounds, for the message.
    """
    for excess, beyond, side in ((raw - 1, unit - 1, "above"), (-raw, -unit, "below")):
        chosen = excess > 0
        total = float(np.sum((counts * beyond)[chosen]))
        size = max(int(np.sum(counts[chosen])), 1)
        error = np.sqrt(stats.sum_w2((counts * beyond)[chosen]))
        if total > 5 * error and total > 0.1 * size:
            low, high = bounds
            shift = total / size * (high - low)
            where = f"{high + shift if side == 'above' else low - shift:.3g}, {side} the bounds [{low:g}, {high:g}]"
            msg = (
                f"positive weights: {size} of {int(counts.sum())} events lie where the mean weight is {where}; either "
                "these are no weights of one species alone, or its spectator depends on the columns, or copies of "
                "events have other keys; for products of such weights with others give `bounds: null`"
            )
            raise WeightError(msg)
