"""Bootstrap counts are a pure function of the key, Poisson, independent; replicas redo what is fitted.

Keys and seeds are fixed, so no test fails by chance.  The chances given are those of a failure after a change of the
hash or of the toy.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, poisson

from calorefine import keys
from calorefine.errors import ConfigError, ValueRangeError
from calorefine.weights import bootstrap
from calorefine.weights.bootstrap import Replica, bootstrap_weights, counts, replica_fit
from calorefine.weights.fractions import LabelFractions

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
N = 1_000_000
integers = st.integers(0, 2**64 - 1)


@pytest.fixture(scope="module")
def key():
    """Keys of 10^6 consecutive events of one run: the least random input there is."""
    return keys.make_keys([np.full(N, 358_031), np.arange(N)])


@PROPERTY
@given(st.lists(integers, min_size=1, max_size=50), st.integers(0, 10**6), st.integers(-5, 2**40), st.randoms())
def test_count_depends_on_the_event_alone(numbers, replica, seed, random):
    """Any order, any subset, one by one: the same count."""
    key = np.array(numbers, np.uint64)
    together = counts(key, replica=replica, seed=seed)
    chosen = random.sample(range(len(key)), random.randint(1, len(key)))
    np.testing.assert_array_equal(counts(key[chosen], replica=replica, seed=seed), together[chosen])
    np.testing.assert_array_equal(Replica(replica, seed).counts(key[:1]), together[:1])


def test_count_does_not_depend_on_blocks(key):
    """40 000 keys, more than are treated at once."""
    together = counts(key[:40_000], replica=3)
    parts = [counts(part, replica=3) for part in np.array_split(key[:40_000], 7)]
    np.testing.assert_array_equal(np.concatenate(parts), together)
    np.testing.assert_array_equal(counts(key[:40_000][::-1], replica=3)[::-1], together)


def test_replica_0_counts_each_event_once(key):
    for seed in (0, 5):
        nominal = counts(key, replica=0, seed=seed)
        assert nominal.dtype == np.uint8
        assert np.all(nominal == 1)


@pytest.mark.parametrize(
    ("replica", "seed", "expected"),
    [
        (1, 0, [2, 0, 2, 1, 2, 1, 1, 0, 0, 2, 1, 1, 2, 1, 0, 3, 0, 2, 1, 1, 1, 0, 1, 0]),
        (2, 0, [0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 3, 1, 2, 1, 0, 1, 1, 3, 2, 1, 1, 2, 0]),
        (1, 7, [1, 1, 1, 0, 1, 1, 0, 1, 2, 1, 1, 1, 4, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 0]),
        (100, 0, [2, 2, 2, 0, 3, 1, 1, 2, 0, 1, 1, 0, 1, 0, 0, 0, 5, 2, 0, 1, 1, 1, 2, 1]),
    ],
)
def test_counts_are_the_same_on_every_machine(key, replica, seed, expected):
    """A change here changes every published replica."""
    assert counts(key[:24], replica=replica, seed=seed).tolist() == expected


def test_thresholds_are_the_poisson_distribution_function():
    """By another route: partial sums of k!/j! over k! e, in exact integers but for e."""
    with localcontext() as context:
        context.prec = 80
        e, factorial, partial = Decimal(1).exp(), 1, 1
        for k, threshold in enumerate(bootstrap._THRESHOLDS.tolist()):
            if k:
                factorial, partial = factorial * k, partial * k + 1
            assert abs(Decimal(partial) / (factorial * e) * 2**64 - threshold) < 1
    assert len(bootstrap._THRESHOLDS) == 20


@PROPERTY
@given(st.lists(integers, min_size=1, max_size=50), st.integers(0, 19), st.integers(-2, 2))
def test_table_agrees_with_the_thresholds(numbers, k, step):
    """Also next to the thresholds, where the upper 16 bits do not decide."""
    edge = min(max(int(bootstrap._THRESHOLDS[k]) + step, 0), 2**64 - 1)
    bits = np.array([*numbers, edge], np.uint64)
    expected = [sum(value >= int(threshold) for threshold in bootstrap._THRESHOLDS) for value in bits.tolist()]
    assert bootstrap._poisson(bits).tolist() == expected


@pytest.mark.parametrize(("replica", "seed"), [(1, 0), (2, 0), (1, 1), (999, 12345)])
def test_counts_are_poisson(key, replica, seed):
    """Mean and variance within 5 standard deviations (6e-7 each), chi2 over 0, 1, ..., 7, >= 8 at 1e-6."""
    found = counts(key, replica=replica, seed=seed).astype(float)
    assert abs(found.mean() - 1) < 5 / np.sqrt(N)
    assert abs(found.var() - 1) < 5 * np.sqrt(3 / N)
    observed = np.bincount(np.minimum(found, 8).astype(int), minlength=9)
    expected = N * np.append(poisson.pmf(np.arange(8), 1), poisson.sf(7, 1))
    assert chi2.sf(np.sum((observed - expected) ** 2 / expected), 8) > 1e-6


def test_counts_of_replicas_seeds_and_neighbors_are_independent(key):
    """Ten pairs: correlation within 5 standard deviations (6e-7 each), chi2 of joint counts up to >= 4 at 1e-6."""
    first = counts(key, replica=1)
    others = [counts(key, replica=2), counts(key, replica=1, seed=1), np.roll(first, 1)]
    candidates = counts(keys.combine(key, 1), replica=1)
    probability = np.append(poisson.pmf(np.arange(4), 1), poisson.sf(3, 1))
    expected = N * np.outer(probability, probability)
    for one, other in combinations([first, *others, candidates], 2):
        assert abs(np.mean((one - 1.0) * (other - 1.0))) < 5 / np.sqrt(N)
        joint = np.bincount(5 * np.minimum(one, 4) + np.minimum(other, 4), minlength=25).reshape(5, 5)
        assert chi2.sf(np.sum((joint - expected) ** 2 / expected), 24) > 1e-6


def test_sum_over_replicas_is_poisson_for_each_event(key):
    """Two events, 20 000 replicas each: mean and variance within 5 standard deviations (6e-7 each)."""
    found = np.array([counts(key[:2], replica=r) for r in range(1, 20_001)], float)
    assert np.all(np.abs(found.mean(axis=0) - 1) < 5 / np.sqrt(20_000))
    assert np.all(np.abs(found.var(axis=0) - 1) < 5 * np.sqrt(3 / 20_000))


@pytest.fixture
def sample():
    """A source with uncertain fractions, a table of 3000 events, and their keys; seed 31."""
    numbers = np.random.default_rng(31).integers(0, 2, 3000).astype(float)
    pure = {"a": {"signal": 0.9, "background": 0.1}, "b": {"signal": 0.2, "background": 0.8}}
    source = LabelFractions(fractions=pure, errors={"a": {"signal": 0.01}})
    return source, {"sample": numbers}, keys.make_keys([np.arange(3000)])


def test_replica_with_refit_redoes_fit_and_fractions(sample):
    source, table, key = sample
    for index, weight in enumerate(bootstrap_weights(source, table, key, n_replicas=3, seed=4)):
        count = counts(key, replica=index, seed=4)
        own = source.varied(index, 4).fit(table, multiplicity=count)
        np.testing.assert_array_equal(weight, count * own.weights(table))
        assert weight.sum() == pytest.approx(own.yields.sum(axis=0)[0], rel=1e-12)


def test_replica_without_refit_keeps_the_weights(sample):
    source, table, key = sample
    nominal = source.weights(table)
    replicas = list(bootstrap_weights(source, table, key, n_replicas=3, seed=4, refit=False))
    assert len(replicas) == 4
    np.testing.assert_array_equal(replicas[0], nominal)
    for index, weight in enumerate(replicas):
        np.testing.assert_array_equal(weight, counts(key, replica=index, seed=4) * nominal)


def test_nominal_fit_is_returned_as_it_is(sample):
    source, table, key = sample
    nominal = source.fit(table)
    assert replica_fit(source, nominal, table, key, Replica()) is nominal
    assert replica_fit(source, nominal, table, key, Replica(5, refit=False)) is nominal
    assert replica_fit(source, nominal, table, key, Replica(5)) is not nominal


def test_spread_is_the_standard_deviation_of_a_weighted_sum(sample):
    """400 replicas, without refit: root of the sum of the squared weights, within 4 standard deviations (6e-5)."""
    source, table, key = sample
    replicas = bootstrap_weights(source, table, key, n_replicas=400, refit=False)
    nominal = next(replicas)
    spread = np.std([weight.sum() for weight in replicas], ddof=1)
    assert spread == pytest.approx(np.sqrt(np.sum(nominal**2)), rel=4 / np.sqrt(800))


def test_events_of_a_block_stay_together(sample):
    """300 blocks of 10 events: counts agree within a block, and 400 replicas have the blocks' spread (4 deviations)."""
    source, table, _ = sample
    block = np.repeat(np.arange(300), 10)
    key = keys.make_keys([block])
    assert np.all(np.ptp(counts(key, replica=1).reshape(300, 10), axis=1) == 0)
    replicas = bootstrap_weights(source, table, key, n_replicas=400, refit=False)
    per_block = np.bincount(block, next(replicas))
    spread = np.std([weight.sum() for weight in replicas], ddof=1)
    assert spread == pytest.approx(np.sqrt(np.sum(per_block**2)), rel=4 / np.sqrt(800))


def test_bad_replicas_and_keys_are_errors(sample):
    source, table, key = sample
    with pytest.raises(ConfigError, match="replica: index -1 found, expected 0"):
        Replica(-1)
    with pytest.raises(ValueRangeError, match=r"key has shape \(1,\), expected \(3000,\)"):
        list(bootstrap_weights(source, table, key[:1], n_replicas=1))
