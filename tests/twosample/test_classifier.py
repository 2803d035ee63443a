"""Weighted AUC and the classifier test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from calorefine import keys
from calorefine.errors import ConfigError, WeightError
from calorefine.events import Events
from calorefine.twosample.classifier import (
    Split,
    auc_with_error,
    classifier_test,
    mann_whitney,
    separation,
    summary,
)


def events(n, *, seed, shift=0.0, weight=None, first=0):
    rng = np.random.default_rng(seed)
    key = keys.make_keys([np.arange(first, first + n)])
    context = rng.random((n, 1)).astype(np.float32)
    x = (rng.normal(size=(n, 2)) + context + shift).astype(np.float32)
    return Events(x, context, np.ones(n) if weight is None else weight, key, key)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_positive_weights_with_ties_agree_with_sklearn(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 9, 50) / 8, rng.integers(0, 7, 70) / 8
    weights = rng.random(50) + 0.01, rng.random(70) + 0.01
    expected = roc_auc_score(np.repeat([1, 0], [50, 70]), np.concatenate([a, b]), sample_weight=np.concatenate(weights))
    assert mann_whitney(a, b, weights=weights) == pytest.approx(expected)
    assert mann_whitney(b, a, weights=weights[::-1]) == pytest.approx(1 - expected)


def test_signed_weights_agree_with_brute_force():
    rng = np.random.default_rng(1)
    a, b, wa, wb = rng.integers(0, 9, 40), rng.integers(0, 9, 30), rng.normal(1, 1, 40), rng.normal(1, 1, 30)
    order = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    expected = np.sum(wa[:, None] * wb * order) / wa.sum() / wb.sum()
    assert mann_whitney(a, b, weights=(wa, wb)) == pytest.approx(expected)
    assert mann_whitney(a, b, weights=(5 * wa, wb / 3)) == pytest.approx(expected)


def test_integer_weights_are_repetitions():
    rng = np.random.default_rng(2)
    a, b, counts = rng.random(40), rng.random(30), rng.integers(0, 4, 40)
    plain = mann_whitney(np.repeat(a, counts), b, weights=(np.ones(counts.sum()), np.ones(30)))
    assert mann_whitney(a, b, weights=(counts, np.ones(30))) == pytest.approx(plain)


@pytest.mark.parametrize("twins", [False, True])
def test_error_is_the_spread_over_samples(twins):
    """300 samples: the standard deviation is known to 4 %; 15 % fails by accident less than once in 1000 runs."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        shared = rng.normal(size=200) if twins else 0.0
        a, b = (shared + 0.5 * rng.normal(size=200) for _ in range(2))
        weights = rng.normal(0.6, 1.0, 200)
        pair = (weights, weights) if twins else (weights, np.ones(200))
        own = np.arange(200, dtype=np.uint64)
        found.append(auc_with_error(a, b, weights=pair, event_keys=(own, own if twins else own + np.uint64(200))))
    aucs, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.15)
    assert np.mean(aucs) == pytest.approx(0.5, abs=4 * np.std(aucs) / np.sqrt(300))


@pytest.mark.parametrize("k", [1, 4, 10])
def test_error_of_the_mean_over_random_halves_is_the_spread_over_samples(k):
    """Of given scores; 300 samples: known to 4 %; 15 % fails by accident less than once in 1000 runs."""
    rng = np.random.default_rng(4)
    own = np.arange(200, dtype=np.uint64)
    found = []
    for _ in range(300):
        a, b = rng.normal(0.3, 1.0, 200), rng.normal(size=200)
        splits = []
        for _ in range(k):
            tested = rng.random((2, 200)) < 0.5
            pair = [values[chosen] for values, chosen in zip((a, b), tested, strict=True)]
            event_keys = own[tested[0]], own[tested[1]] + np.uint64(200)
            auc, error = auc_with_error(*pair, weights=tuple(map(np.ones_like, pair)), event_keys=event_keys)
            splits.append(Split(auc, error**2, None))
        found.append(summary(splits))
    errors = [one.auc_error for one in found]
    assert np.mean(errors) == pytest.approx(np.std([one.auc for one in found]), rel=0.15)
    assert np.std(errors) < 0.05 * np.mean(errors)


def test_difference_is_found_with_unit_weights():
    test = classifier_test(events(800, seed=1, shift=1.5), events(800, seed=2, first=10**6), repetitions=2)
    assert test.separation.auc > 0.5 + 5 * test.separation.auc_split_error
    assert test.separation.jsd > test.floor.jsd
    assert abs(test.floor.auc - 0.5) < 4 * test.floor.auc_split_error
    assert test.refused == {}
    assert test.separation.auc_spread > 0


def test_signed_weights_give_an_auc_and_refuse_the_jsd():
    rng = np.random.default_rng(5)
    weight = np.where(rng.random(1500) < 0.3, -0.5, 1.2)
    test = classifier_test(events(900, seed=1), events(1500, seed=2, weight=weight, first=10**6), repetitions=1)
    assert abs(test.separation.auc - 0.5) < 4 * test.separation.auc_error
    assert (test.separation.jsd, test.separation.auc_spread) == (None, None)
    assert "signed" in test.refused["jsd"]


def test_order_and_scale_change_nothing():
    a, b = events(300, seed=1), events(300, seed=2, first=10**6)
    order = np.random.default_rng(0).permutation(300)
    plain, other = separation(a, b, repetitions=1), separation(a.take(order), b, repetitions=1)
    assert other == plain
    scaled = Events(b.x, b.context, 2 * b.weight, b.key, b.event_key)
    assert separation(a, scaled, repetitions=1).auc == pytest.approx(plain.auc, abs=1e-6)


def test_impossible_weights_are_refused_with_the_reason():
    weight = np.where(np.arange(400) % 2, -1.0, 1.001)
    test = classifier_test(events(400, seed=1), events(400, seed=2, weight=weight), repetitions=1)
    assert test.floor is None
    assert "sum to" in test.refused["floor"]


def test_errors():
    sample = events(100, seed=1)
    with pytest.raises(ConfigError, match="repetitions: 0"):
        separation(sample, sample, repetitions=0)
    with pytest.raises(WeightError, match="sum to 0"):
        mann_whitney(np.ones(2), np.ones(2), weights=(np.array([1, -1]), np.ones(2)))
