"""Everything random about an event is a pure function of its key."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from calorefine import keys

PURPOSES = [
    {"purpose": "split"},
    {"purpose": "latent"},
    {"purpose": "latent", "seed": 1},
    {"purpose": "latent", "replica": 1},
    {"purpose": "latent", "copy": 1},
]


@pytest.fixture(scope="module")
def sequential():
    """Keys of 200 000 consecutive events of one run: the least random input there is."""
    return keys.make_keys([np.full(200_000, 358_031), np.arange(200_000)])


def test_values_are_the_same_on_every_machine():
    """A change here changes every split, bootstrap weight and sampled event: it needs a new checkpoint format."""
    key = keys.make_keys([np.array([1, 1, 2]), np.array([1, 2, 1])])
    assert key.tolist() == [11482776676245303331, 7118362998017462325, 1373306952958753982]
    large = keys.make_keys([np.array([-1]), np.array([2**63], np.uint64)])
    assert large.tolist() == [17191885587667977617]
    split = keys.stream(key, "split")
    assert split.tolist() == [10845054323998406884, 10211265910778635059, 770831867604323071]
    other = keys.stream(key, "latent", seed=5, replica=7, copy=2)
    assert other.tolist() == [18189159741234930122, 14889574666753757853, 11539727734485000945]
    np.testing.assert_allclose(keys.uniform(split), [0.58791157, 0.55355383, 0.04178688], atol=1e-8)
    expected = [
        [-1.7972698, -0.5933252, -0.394032],
        [-0.1432374, 0.5757211, -0.414926],
        [0.9837419, -0.5809634, 0.446748],
    ]
    np.testing.assert_allclose(keys.normal(keys.stream(key, "latent"), 3), expected, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_the_integer_type_does_not_matter(dtype):
    numbers = [np.array([3, 100], dtype), np.array([0, 127], dtype)]
    assert np.array_equal(keys.make_keys(numbers), keys.make_keys([n.astype(np.int64) for n in numbers]))


def test_keys_of_neighbours_and_of_swapped_numbers_differ():
    """2 000 000 keys: two of them agree by chance with probability 1e-7."""
    run, event = np.divmod(np.arange(1_000_000), 1000)
    both = np.concatenate([keys.make_keys([run, event + 1000]), keys.make_keys([event + 1000, run])])
    assert len(np.unique(both)) == 2_000_000
    large = np.arange(1000, dtype=np.uint64) + np.uint64(2**63)
    assert len(np.unique(keys.make_keys([large]))) == 1000


def test_a_key_may_be_extended_number_by_number():
    numbers = [np.arange(50), np.arange(50) % 7, np.arange(50) % 3]
    assert np.array_equal(keys.make_keys(numbers), keys.combine(keys.make_keys(numbers[:2]), numbers[2]))


@pytest.mark.parametrize("seed", [0, -1, 2**32, 2**63, 2**64 - 1])
def test_any_seed(sequential, seed):
    draw = keys.uniform(keys.stream(sequential, "split", seed=seed))
    assert abs(draw.mean() - 0.5) < 5 * np.sqrt(1 / 12 / len(draw))


@pytest.mark.parametrize("options", PURPOSES)
def test_streams_of_consecutive_events_are_uniform(sequential, options):
    """Chi-square of 256 bins and the mean of each of 64 bits; seeds as written, chance of failure 4e-6 a stream."""
    stream = keys.stream(sequential, **options)
    draw = keys.uniform(stream)
    assert draw.min() >= 0
    assert draw.max() < 1
    counts = np.bincount((draw * 256).astype(int), minlength=256)
    expected = len(draw) / 256
    assert chi2(255).sf(np.sum((counts - expected) ** 2) / expected) > 1e-6
    bits = (stream[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.all(np.abs(bits.mean(axis=0) - 0.5) < 5.5 * 0.5 / np.sqrt(len(draw)))


def test_streams_are_independent(sequential):
    """Correlations of all pairs of streams, and of neighbouring events, within 5 standard errors: chance 9e-6."""
    draws = [keys.uniform(keys.stream(sequential, **options)) for options in PURPOSES]
    table = np.corrcoef([*draws, np.roll(draws[0], 1)])
    assert np.all(np.abs(table[np.triu_indices(6, 1)]) < 5 / np.sqrt(len(sequential)))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_normal_numbers(sequential, size):
    """Kolmogorov-Smirnov test and first four moments of each, and correlations: chance of failure below 1e-4."""
    noise = keys.normal(keys.stream(sequential, "latent"), size).astype(float)
    n = len(noise)
    assert noise.shape == (n, size)
    for column in noise.T:
        assert kstest(column, "norm").pvalue > 1e-6
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert np.all(np.abs((noise**power).mean(axis=0) - mean) < 5 * np.sqrt(variance / n))
    if size > 1:
        for table in (noise, noise**2):
            correlation = np.corrcoef(table.T)[np.triu_indices(size, 1)]
            assert np.all(np.abs(correlation) < 5 / np.sqrt(n))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 17])
def test_chunks_order_and_company_change_no_bit(sequential, size):
    stream = keys.stream(sequential[:20_000], "latent")
    whole = keys.normal(stream, size)
    assert np.array_equal(np.concatenate([keys.normal(part, size) for part in np.array_split(stream, 77)]), whole)
    order = np.random.default_rng(1).permutation(20_000)
    assert np.array_equal(keys.normal(stream[order], size), whole[order])
    assert np.array_equal(keys.normal(stream[[8191]], size), whole[[8191]])
    assert keys.normal(stream[:0], size).shape == (0, size)
