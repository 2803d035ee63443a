"""Bins by one sort: those of scikit-learn to the last bit, and trees and predictions with them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.ensemble._hist_gradient_boosting import binning

from calorefine import trees
from calorefine.reweighting import BoostingRatio, Ratio, WeightedRows, fit_ratio

PLAIN = binning._find_binning_thresholds
pytestmark = pytest.mark.skipif(
    "sample_weight" not in inspect.signature(PLAIN).parameters, reason="bins of this scikit-learn ignore weights"
)
N, N_BINS = 900, 16


def columns() -> dict[str, np.ndarray]:
    """Columns of 900 values, from easy to difficult."""
    random = np.random.default_rng(1)
    normal = random.normal(size=N)
    spike, missing, infinite = normal.copy(), normal.copy(), normal.copy()
    spike[:600], missing[::7], infinite[::9], infinite[1::150] = 0.5, np.nan, np.inf, -np.inf
    return {
        "continuous": normal,
        "float32": normal.astype(np.float32).astype(np.float64),
        "ties": normal.round(2),
        "300 values": random.integers(300, size=N).astype(float),
        "as many values as bins": np.resize(np.arange(N_BINS), N).astype(float),
        "one value more": np.resize(np.arange(N_BINS + 1), N).astype(float),
        "few values": random.integers(-2, 3, size=N).astype(float),
        "one value": np.full(N, 3.0),
        "spike": spike,
        "missing": missing,
        "all but one missing": np.append(np.full(N - 1, np.nan), 1.0),
        "infinite": infinite,
        "huge": 1e305 * normal / np.abs(normal).max() * 1e3,
        "signed zeros": np.where(random.random(N) < 0.3, np.copysign(0.0, normal), normal),
        "sorted": np.sort(normal),
        "reversed": -np.sort(normal),
    }


def weights() -> dict[str, np.ndarray]:
    """Weights of 900 events."""
    random = np.random.default_rng(2)
    gamma, half = random.gamma(0.7, size=N), random.random(N) < 0.5
    return {
        "continuous": gamma,
        "zeros": np.where(half, gamma, 0.0),
        "counts": random.poisson(1.0, N).astype(float),
        "equal": np.ones(N),
        "tenths": random.integers(1, 4, N) * 0.1,
        "most in one": np.append(gamma[1:], 1e4),
        "tiny": gamma * 1e-20,
        "spread": 10.0 ** random.uniform(-18, 3, N),
    }


@pytest.mark.parametrize("weight", list(weights()))
@pytest.mark.parametrize("column", list(columns()))
def test_the_thresholds_are_scikit_learns_to_the_last_bit(column: str, weight: str) -> None:
    values, w = columns()[column], weights()[weight]
    if column == "all but one missing":
        w = np.maximum(w, 0.1)
    assert trees.thresholds(values, N_BINS, w).tobytes() == PLAIN(values, N_BINS, w).tobytes()


@pytest.mark.parametrize("weight", [None, np.resize([1.0, -0.5, 2.0], N)])
def test_columns_without_weights_or_with_signed_ones_are_left_to_scikit_learn(weight: np.ndarray | None) -> None:
    for values in (values for name, values in columns().items() if name != "infinite"):
        assert trees.thresholds(values, N_BINS, weight).tobytes() == PLAIN(values, N_BINS, weight).tobytes()


def test_the_thresholds_of_random_columns_are_scikit_learns() -> None:
    random = np.random.default_rng(3)
    for _ in range(25):
        n, step = random.integers(2, 1500), random.choice([1e-9, 0.01, 0.1])
        values = (random.normal(size=n) / step).round() * step
        weight = random.integers(5, size=n) * random.choice([0.1, 0.25, 1 / 3]) + random.choice([0.0, 1e-17])
        weight[0] = 1.0
        assert trees.thresholds(values, 15, weight).tobytes() == PLAIN(values, 15, weight).tobytes()


def model(kind: type, **options: object) -> HistGradientBoostingClassifier:
    """Few trees on a part of the columns each."""
    return kind(max_iter=8, max_features=0.5, random_state=4, **options)


def problem(n: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table with missing values, classes and weights."""
    random = np.random.default_rng(5)
    table = random.normal(size=(n, 4))
    table[:, 1], table[:, 2] = table[:, 1].round(1), random.integers(5, size=n)
    target = (table[:, 0] + table[:, 2] > random.normal(size=n)).astype(int)
    table[::11, 3] = np.nan
    return table, target, np.where(random.random(n) < 0.1, 0.0, random.gamma(1.0, size=n))


@pytest.mark.parametrize("options", [{"early_stopping": False}, {"early_stopping": True}, {"max_bins": 20}])
@pytest.mark.parametrize("kind", [HistGradientBoostingClassifier, HistGradientBoostingRegressor])
def test_trees_and_predictions_are_those_of_the_plain_estimator(kind: type, options: dict[str, object]) -> None:
    table, target, weight = problem()
    plain = model(kind, **options).fit(table, target, sample_weight=weight)
    fast = trees.fitted(model(kind, **options), table, target, weight)
    assert type(fast) is kind
    assert fast._baseline_prediction.tobytes() == plain._baseline_prediction.tobytes()
    for one, other in zip(np.ravel(fast._predictors), np.ravel(plain._predictors), strict=True):
        assert one.nodes.tobytes() == other.nodes.tobytes()
    np.testing.assert_array_equal(fast.predict(table), plain.predict(table))


def test_a_part_of_the_events_tells_the_bins_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    table, target, weight = problem(200_500)
    counted = []
    monkeypatch.setattr(trees, "_quantiles", lambda *args: counted.append(args))
    options = {"early_stopping": False, "max_iter": 3}
    plain = HistGradientBoostingClassifier(**options, random_state=4).fit(table, target, sample_weight=weight)
    fast = trees.fitted(HistGradientBoostingClassifier(**options, random_state=4), table, target, weight)
    assert not counted  # drawn by weight, and then without weights: nothing to gain
    np.testing.assert_array_equal(fast.decision_function(table[:1000]), plain.decision_function(table[:1000]))


def test_the_installed_scikit_learn_is_one_whose_bins_are_known() -> None:
    assert trees.same_bins(), "its bins are no longer those of calorefine.trees: fits are right, and slow"


def test_all_columns_of_a_fit_go_by_one_sort_and_none_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, sorts = [], []
    one_sort, their_sort = trees._quantiles, binning._weighted_percentile
    monkeypatch.setattr(trees, "_quantiles", lambda *args: (cut.append(args), one_sort(*args))[1])
    monkeypatch.setattr(binning, "_weighted_percentile", lambda *a, **b: (sorts.append(a), their_sort(*a, **b))[1])
    table, target, weight = problem()
    trees.fitted(model(HistGradientBoostingClassifier), table, target, weight)
    assert (len(cut), len(sorts)) == (2, 0)  # the others have fewer values than bins
    model(HistGradientBoostingClassifier).fit(table, target, sample_weight=weight)
    assert (len(cut), len(sorts)) == (2, 2 * 254)


def test_scikit_learns_function_is_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="inconsistent"):
        trees.fitted(model(HistGradientBoostingClassifier), np.zeros((3, 1)), np.zeros(2), np.ones(3))
    assert binning._find_binning_thresholds is PLAIN


def another_quantile(col_data: np.ndarray, max_bins: int, sample_weight: np.ndarray | None = None) -> np.ndarray:
    """Bins by another definition."""
    return np.nextafter(PLAIN(col_data, max_bins, sample_weight), np.inf)


def other_arguments(col_data: np.ndarray, max_bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The same bins of other arguments."""
    return PLAIN(col_data, max_bins, weights)


def no_weights(col_data: np.ndarray, max_bins: int) -> np.ndarray:
    """Bins that ignore weights."""
    return PLAIN(col_data, max_bins)


@pytest.mark.parametrize("function", [another_quantile, other_arguments, no_weights, None])
def test_a_scikit_learn_that_bins_otherwise_bins_itself(function: object, monkeypatch: pytest.MonkeyPatch) -> None:
    if function is None:
        monkeypatch.delattr(binning, "_find_binning_thresholds")
    else:
        monkeypatch.setattr(binning, "_find_binning_thresholds", function)
    trees.same_bins.cache_clear(), trees.scikit_learn_cut.cache_clear()
    try:
        with trees.one_sort():
            assert getattr(binning, "_find_binning_thresholds", None) is function
        assert not trees.same_bins()
    finally:
        trees.same_bins.cache_clear(), trees.scikit_learn_cut.cache_clear()


def test_a_density_ratio_by_trees_is_that_of_plain_ones_and_is_kept_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = np.random.default_rng(6)
    key = np.arange(4000, dtype=np.uint64)
    rows = [
        WeightedRows(random.normal(mean, 1, (2000, 3)).astype(np.float32), random.gamma(1.0, size=2000), own)
        for mean, own in zip((0, 0.5), np.split(key, 2), strict=True)
    ]
    fast = fit_ratio(*rows, BoostingRatio(n_trees=10, n_folds=2, n_repeats=1))
    monkeypatch.setattr(trees, "fitted", lambda one, *args: one.fit(*args))
    plain = fit_ratio(*rows, BoostingRatio(n_trees=10, n_folds=2, n_repeats=1))
    expected = plain(rows[0].values, rows[0].event_key)
    np.testing.assert_array_equal(fast(rows[0].values, rows[0].event_key), expected)
    again = Ratio.from_state(fast.state(), BoostingRatio.members)
    np.testing.assert_array_equal(again(rows[0].values, rows[0].event_key), expected)
    assert [type(one) for one in again.members.classifiers] == [HistGradientBoostingClassifier] * 2
