"""Drift of means and widths: sign, size and error."""

import numpy as np
import pytest

from calorefine import Events, keys
from calorefine.twosample.drift import Drift, drift


def sample(values, weight, key):
    """Values, and events that carry weights and keys."""
    empty = np.zeros((len(values), 0), np.float32)
    return values, Events(empty, empty, weight, key, key)


def both(rng, n=4000, *, paired, shift=0.3, scale=1.1):
    """A reference of width 2, and generated events moved by 0.3 and 10 % wider; weights of both signs."""
    weight = np.where(rng.random(n) < 0.2, -0.5, 1.5)
    reference = 5 + 2 * rng.normal(size=n)
    noise = reference if paired else 5 + 2 * rng.normal(size=n)
    generated = 5 + scale * (noise - 5) + 2 * shift
    key = keys.make_keys([np.arange(n)])
    other = key if paired else keys.make_keys([np.arange(n, 2 * n)])
    return sample(generated, weight, other), sample(reference, weight, key)


def test_drift_has_sign_and_size():
    """Of the mean 0.3, of the width 0.1, within 4 errors (1e-4 by chance; seed 1); errors as of n_eff events."""
    generated, reference = both(np.random.default_rng(1), paired=False)
    n_eff = generated[1].weight.sum() ** 2 / (generated[1].weight ** 2).sum()
    for statistic, expected, error in (("mean", 0.3, 1.0), ("width", 0.1, 0.5**0.5)):
        found = drift(statistic, generated, reference)
        assert abs(found.value - expected) < 4 * found.error
        assert found.error == pytest.approx(error * np.sqrt((1 + 1.1**2) / n_eff), rel=0.15)


def test_events_of_equal_key_are_correlated():
    """If generated events are the reference's, moved, the shift has no error; a training sample has its own."""
    generated, reference = both(np.random.default_rng(2), paired=True, scale=1.0)
    found = drift("mean", generated, reference)
    assert found.value == pytest.approx(0.3, rel=0.05)
    assert found.error == pytest.approx(0, abs=1e-9)
    learned = drift("mean", generated, reference, training=1.0)
    assert learned.error > 0.01
    assert drift("mean", generated, reference, training=4.0).error == pytest.approx(2 * learned.error)


def test_errors_are_those_of_repetitions():
    """Over 300 pairs of samples the pulls have width 1 within 4 errors of 0.041 (1e-4 by chance; seed 3)."""
    rng = np.random.default_rng(3)
    found = [drift("width", *both(rng, 500, paired=False)) for _ in range(300)]
    pulls = np.array([(one.value - 0.1) / one.error for one in found])
    assert abs(pulls.std() - 1) < 4 * 0.041 + 0.05  # the ratio is not quite normal for 500 events


def test_weights_that_leave_no_width():
    values, weight = np.array([0.0, 0.0, 1.0]), np.array([2.0, 2.0, -1.0])
    one = sample(values, weight, keys.make_keys([np.arange(3)]))
    assert drift("mean", one, one) == Drift()
