"""The truth of the toys is the truth.  Seeds are fixed; tolerances are five standard errors, or rounding."""

import numpy as np
import pytest

from calorefine import stats
from calorefine.datasets import LARGEST_TRUE_RATIO, ImpureToy, RatioToy

N = 100_000
TOY = RatioToy()


def five_errors(values):
    return 5 * np.std(values, axis=0) / np.sqrt(len(values))


@pytest.fixture(scope="module")
def generated():
    return TOY.generate(N, seed=1)


@pytest.fixture(scope="module")
def signal():
    return TOY.signal(N, seed=2)


@pytest.fixture(scope="module")
def calibration():
    return TOY.calibration(N, seed=3)


def moments(x):
    """Bounded functions of one and of two features, (n, 36)."""
    scaled = np.tanh((x - TOY.features(np.zeros((1, 8)))) / (1 + np.abs(x)))
    rows, columns = np.triu_indices(8, 1)
    return np.concatenate([scaled, scaled[:, rows] * scaled[:, columns]], axis=1)


def test_ratio_is_normalized_and_bounded(generated):
    ratio = np.exp(generated["log_ratio"])
    assert abs(ratio.mean() - 1) < five_errors(ratio)
    assert 0.5**3 * 0.6 < ratio.min() < ratio.max() < LARGEST_TRUE_RATIO


def test_reweighted_generated_events_are_signal(generated, signal):
    weighted = moments(generated["x"]) * np.exp(generated["log_ratio"])[:, None]
    drawn = moments(signal["x"])
    tolerance = np.hypot(five_errors(weighted), five_errors(drawn))
    assert (np.abs(weighted.mean(axis=0) - drawn.mean(axis=0)) < tolerance).all()
    assert (np.abs(moments(generated["x"]).mean(axis=0) - drawn.mean(axis=0)) > tolerance).any()


def test_sweights_undo_the_background(calibration, signal):
    weight, true = TOY.sweights(calibration["m"]), calibration["true_signal"]
    assert ((calibration["m"] > 0) & (calibration["m"] < 1)).all()
    assert 0.25 < (weight < 0).mean() < 0.32
    assert abs(true.mean() - TOY.fraction) < five_errors(true)
    assert abs(weight[true].mean() - 1) < five_errors(weight[true])
    assert abs(weight[~true].mean()) < five_errors(weight[~true])
    values, drawn = moments(calibration["x"]), moments(signal["x"])
    mean = stats.mean(values, weight)
    tolerance = np.hypot(five_errors((values - mean) * weight[:, None]) / weight.mean(), five_errors(drawn))
    assert (np.abs(mean - drawn.mean(axis=0)) < tolerance).all()


def test_draws_are_functions_of_the_seed(calibration):
    assert "log_ratio" not in calibration
    again = TOY.calibration(N, seed=3)
    for name, values in calibration.items():
        assert values.shape[0] == N
        np.testing.assert_array_equal(values, again[name])
    assert not np.array_equal(TOY.signal(100, seed=1)["x"], TOY.signal(100, seed=2)["x"])


def test_sweights_of_the_impure_toy():
    table = ImpureToy().generate(N, seed=4)
    weight, true = ImpureToy().sweights(table["m"]), table["true_signal"]
    assert abs(weight[true].mean() - 1) < five_errors(weight[true])
    assert abs(weight[~true].mean()) < five_errors(weight[~true])
