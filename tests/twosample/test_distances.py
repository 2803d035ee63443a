"""Distances of weighted samples against brute force, scipy, and what weights mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from calorefine import stats
from calorefine.errors import ConfigError, EmptySelectionError, WeightError
from calorefine.twosample.distances import (
    Points,
    compare_columns,
    exact_distances,
    nearest_distances,
    sliced_wasserstein,
    standardized,
)


def exact(index):
    return lambda a, b, *, weights: exact_distances(a, b, weights=weights)[index]


ks_distance, wasserstein_distance, energy_distance = map(exact, range(3))
ALL = (ks_distance, wasserstein_distance, energy_distance)


def points(values, weight=None, first=0):
    values = np.asarray(values, np.float64)
    weight = np.ones(len(values)) if weight is None else np.asarray(weight, np.float64)
    return Points(values, weight, np.arange(first, first + len(values), dtype=np.uint64))


def signed(n, seed):
    """Sample with ties and signed weights of positive sum."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 12, n).astype(float), rng.normal(0.7, 1, n) + 0.3


def brute_energy(a, b, wa, wb):
    def mean(x, y, wx, wy):
        return np.sum(wx[:, None] * wy * np.abs(x[:, None] - y)) / wx.sum() / wy.sum()

    return 2 * mean(a, b, wa, wb) - mean(a, a, wa, wa) - mean(b, b, wb, wb)


def test_unit_weights_agree_with_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=300).round(1), rng.normal(0.3, 1.2, 200).round(1)
    weights = np.ones(300), np.ones(200)
    assert ks_distance(a, b, weights=weights) == pytest.approx(scipy_stats.ks_2samp(a, b).statistic)
    assert wasserstein_distance(a, b, weights=weights) == pytest.approx(scipy_stats.wasserstein_distance(a, b))
    assert energy_distance(a, b, weights=weights) == pytest.approx(scipy_stats.energy_distance(a, b) ** 2)


def test_signed_weights_agree_with_brute_force():
    (a, wa), (b, wb) = signed(80, 1), signed(60, 2)
    grid = np.arange(12.0)
    functions = [np.array([w[x <= t].sum() / w.sum() for t in grid]) for x, w in ((a, wa), (b, wb))]
    difference = np.abs(functions[0] - functions[1])
    assert ks_distance(a, b, weights=(wa, wb)) == pytest.approx(difference.max())
    assert wasserstein_distance(a, b, weights=(wa, wb)) == pytest.approx(difference[:-1].sum())
    assert energy_distance(a, b, weights=(wa, wb)) == pytest.approx(brute_energy(a, b, wa, wb))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), scale=st.floats(1e-3, 1e3))
def test_order_scale_repetition_and_zero_weights(seed, scale):
    (a, wa), (b, _) = signed(40, seed), signed(30, seed + 1)
    rng = np.random.default_rng(seed)
    wa = np.where(wa.sum() > 1, wa, np.abs(wa))
    counts, order = rng.integers(0, 4, 30) + (np.arange(30) == 0), rng.permutation(40)
    for distance in ALL:
        value = distance(a, b, weights=(wa, counts))
        repeated = np.repeat(b, counts)
        assert distance(a[order], repeated, weights=(scale * wa[order], np.ones(len(repeated)))) == pytest.approx(value)
        assert distance(b, a, weights=(counts, wa)) == pytest.approx(value)


def test_values_of_columns_are_exact_and_the_table_of_columns_is_each_column():
    a, b = np.random.default_rng(3).normal(size=(2, 5000, 2))
    both = compare_columns(points(a), points(b, first=10**6), n_replicates=50)
    alone = compare_columns(points(a[:, 1]), points(b[:, 1], first=10**6), n_replicates=50)
    assert both[1] == alone[0]
    assert both[0].ks.value == pytest.approx(scipy_stats.ks_2samp(a[:, 0], b[:, 0]).statistic)


def test_a_shift_is_found_and_its_absence_is_not():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 3000, 3))
    wa, wb = rng.normal(0.6, 1, (2, 3000))
    same = compare_columns(points(a, wa), points(b, wb, first=10**6))
    lowest = min(d.p_value for one in same for d in (one.ks, one.wasserstein, one.energy))
    assert lowest > 0.01  # of 9 correlated ones: another seed would fail in less than 9 % of cases
    b[:, 1] += 0.4
    moved = compare_columns(points(a, wa), points(b, wb, first=10**6))
    assert [one.wasserstein.p_value < 0.01 for one in moved] == [False, True, False]
    assert sliced_wasserstein(points(a, wa), points(b, wb, first=10**6)).p_value < 0.01


def test_p_values_do_not_depend_on_the_order_of_events_or_the_scale_of_weights():
    rng = np.random.default_rng(5)
    a, b, order = (
        points(rng.normal(size=(400, 2)), rng.random(400)),
        points(rng.normal(size=(300, 2))),
        rng.permutation(400),
    )
    shuffled = Points(a.values[order], 3 * a.weight[order], a.key[order])
    for one, other in zip(compare_columns(a, b), compare_columns(shuffled, b), strict=True):
        assert other.energy.p_value == pytest.approx(one.energy.p_value, abs=0.011)
        assert other.energy.value == pytest.approx(one.energy.value)


def test_twins_fluctuate_together():
    """Values that are mostly the shared condition: their difference is found if, and only if, twins are known."""
    rng = np.random.default_rng(6)
    shared = rng.normal(size=2000)
    a, b = shared + 0.05 * rng.normal(size=2000), shared + 0.05 * rng.normal(size=2000) + 0.01
    assert compare_columns(points(a), points(b))[0].wasserstein.p_value < 0.01
    assert compare_columns(points(a), points(b, first=10**6))[0].wasserstein.p_value > 0.5


def test_identical_samples_have_no_distance():
    sample = points(np.random.default_rng(7).normal(size=(200, 2)))
    for one in compare_columns(sample, sample, n_replicates=20):
        assert (one.ks.value, one.ks.p_value) == (0.0, 1.0)


def test_standardized_by_the_reference():
    rng = np.random.default_rng(8)
    values = np.stack([rng.normal(5, 3, 4000), np.full(4000, 2.0), rng.random(4000) < 0.05], axis=1)
    reference, other = standardized(points(values), points(values + 3))
    assert stats.quantile(reference.values[:, 0], np.ones(4000), [0.5]) == 0
    assert np.std(reference.values[:, 0]) == pytest.approx(1, abs=0.05)
    assert np.all(reference.values[:, 1] == 0)
    assert np.std(reference.values[:, 2]) == pytest.approx(1)
    assert other.values[0, 0] - reference.values[0, 0] == pytest.approx(1, abs=0.05)


def test_nearest_distances_by_brute_force():
    rng = np.random.default_rng(9)
    a, b = rng.normal(size=(50, 3)), rng.normal(size=(40, 3))
    expected = np.linalg.norm(a[:, None] - b, axis=2).min(axis=1)
    np.testing.assert_allclose(nearest_distances(a, b), expected)


def test_nearest_distance_of_a_copy_is_zero_in_many_columns():
    training = 1000 + np.random.default_rng(10).normal(size=(300, 20))
    assert np.all(nearest_distances(training[:40], training) == 0)


def test_errors():
    good = points([1.0, 2.0])
    with pytest.raises(WeightError, match="sum to -1"):
        points([1.0, 2.0], [1, -2])
    with pytest.raises(WeightError, match="sum to 0"):
        ks_distance(np.zeros(2), np.zeros(2), weights=(np.array([1, -1]), np.ones(2)))
    with pytest.raises(EmptySelectionError):
        points([])
    with pytest.raises(ConfigError, match="n_replicates: 0"):
        compare_columns(good, good, n_replicates=0)
    with pytest.raises(ConfigError, match="2 and 1 columns"):
        compare_columns(points(np.zeros((3, 2))), good)
    with pytest.raises(ConfigError, match="n_directions: 0"):
        sliced_wasserstein(good, good, n_directions=0)
