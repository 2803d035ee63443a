"""Density ratios: their laws, their accuracy, and that no event can take over.

Statistical tests state their seeds; their bounds are far from what other seeds give (three tried for each), so that an
accidental failure is less probable than one in a thousand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from calorefine import keys, stats
from calorefine.datasets import RatioToy
from calorefine.errors import ConfigError, EmptySelectionError, ValueRangeError, WeightError
from calorefine.reweighting import BoostingRatio, NetworkRatio, Ratio, WeightedRows, fit_ratio
from calorefine.reweighting.ratio import fold_of

SMALL = {
    "network": lambda: NetworkRatio(hidden=[16, 16], updates=100, n_folds=2, n_repeats=1),
    "boosting": lambda: BoostingRatio(n_trees=10, n_folds=2, n_repeats=1),
}


def table(values, *, weight=None, first=0):
    n = len(values)
    values = np.asarray(values, np.float32).reshape(n, -1)
    return WeightedRows(values, np.ones(n) if weight is None else weight, keys.make_keys([np.arange(first, first + n)]))


def normal(n, mean, *, seed, first=0, weight=None):
    return table(np.random.default_rng(seed).normal(mean, 1, (n, 2)), first=first, weight=weight)


@pytest.fixture(params=SMALL)
def estimator(request):
    return SMALL[request.param]()


def test_order_and_scale_of_the_weights_change_nothing(estimator):
    generated, reference = normal(2000, 0, seed=1), normal(2000, 0.5, seed=2, first=10**6)
    rng = np.random.default_rng(3)
    order = rng.permutation(2000)
    other = fit_ratio(
        WeightedRows(generated.values[order], 3 * generated.weight, generated.event_key[order]),
        WeightedRows(reference.values[order], 0.2 * reference.weight, reference.event_key[order]),
        estimator,
    )
    first = fit_ratio(generated, reference, estimator)
    args = generated.values, generated.event_key
    np.testing.assert_allclose(other(*args), first(*args), atol=2e-6)


def test_state_holds_all(estimator):
    ratio = fit_ratio(normal(1000, 0, seed=1), normal(1000, 0.5, seed=2, first=10**6), estimator)
    again = Ratio.from_state(ratio.state(), type(estimator).members)
    probe = normal(100, 0, seed=5)
    np.testing.assert_array_equal(again(probe.values, probe.event_key), ratio(probe.values, probe.event_key))


def test_events_trained_on_are_weighed_by_members_that_left_them_out(estimator):
    """An event's ratio doesn't change if its own fold is replaced by other events."""
    generated, reference = normal(2000, 0, seed=1), normal(2000, 0.5, seed=2, first=10**6)
    ratio = fit_ratio(generated, reference, estimator)
    fold = fold_of(generated.event_key, 2, 0)
    changed = generated.values.copy()
    changed[fold == 0] += 5
    other = fit_ratio(WeightedRows(changed, generated.weight, generated.event_key), reference, estimator)
    mine = fold == 0
    members = [r.members.log_ratios(generated.values[mine], np.array([0])) for r in (ratio, other)]
    if isinstance(estimator, BoostingRatio):  # the networks' preprocessing sees all events
        np.testing.assert_array_equal(members[0], members[1])
    expected = members[0].mean(axis=0)
    np.testing.assert_allclose(ratio(generated.values[mine], generated.event_key[mine]), expected, atol=1e-12)


def test_class_prior_is_that_of_the_rows_a_member_sees(estimator):
    """One law, but the reference's weight is 3 in one fold and 1 in the other: each member's ratio is still 1.

    With weights of mean 1 over all events, the networks' mean log ratios are -0.57 and 0.34.  Seeds 1 and 2.
    """
    generated, reference = normal(4000, 0, seed=1), normal(4000, 0, seed=2, first=10**6)
    weight = np.where(fold_of(reference.event_key, 2, 0) == 0, 3.0, 1.0)
    ratio = fit_ratio(generated, WeightedRows(reference.values, weight, reference.event_key), estimator)
    means = ratio.members.log_ratios(generated.values, np.arange(2)).mean(axis=1)
    assert np.abs(means).max() < 0.1


def test_ratio_of_an_event_does_not_depend_on_those_beside_it(estimator):
    generated, reference = normal(2000, 0, seed=1), normal(2000, 0.5, seed=2, first=10**6)
    ratio = fit_ratio(generated, reference, estimator)
    probe = table(np.concatenate([generated.values, normal(23_000, 0, seed=5).values]))  # some were trained on
    whole = ratio(probe.values, probe.event_key)
    for size, n in ((1, 50), (37, 3000), (10_000, 25_000)):
        parts = [slice(first, first + size) for first in range(0, n, size)]
        found = np.concatenate([ratio(probe.values[rows], probe.event_key[rows]) for rows in parts])
        np.testing.assert_allclose(np.exp(found), np.exp(whole[: len(found)]), rtol=1e-9)


def test_no_event_can_take_over(estimator):
    """Signed weights, supports that hardly overlap: the ratio stays within its bound."""
    rng = np.random.default_rng(1)
    weight = rng.choice([-1.0, 3.0], 2000, p=[0.4, 0.6])
    generated, reference = normal(2000, 0, seed=1), normal(2000, 4, seed=2, first=10**6, weight=weight)
    ratio = fit_ratio(generated, reference, estimator)
    everywhere = table(rng.uniform(-50, 50, (5000, 2)), first=10**7)
    assert np.abs(ratio(everywhere.values, everywhere.event_key)).max() <= np.log(estimator.max_ratio) + 1e-9


def test_network_on_signed_weights_finds_the_ratio():
    """Fixed samples; over ten seeds of the training 0.0366 with a standard deviation of 0.0010 (hep_ml 0.11)."""
    toy = RatioToy()
    made, data, held_out = toy.generate(20_000, seed=7), toy.calibration(20_000, seed=8), toy.generate(50_000, seed=9)
    weight = toy.sweights(data["m"])
    assert np.mean(weight < 0) == pytest.approx(0.28, abs=0.02)
    ratio = fit_ratio(table(made["x"]), table(data["x"], weight=weight, first=10**6), NetworkRatio())
    probe = table(held_out["x"], first=10**7)
    found = ratio(probe.values, probe.event_key)
    found -= np.log(np.mean(np.exp(found)))
    assert np.mean((found - held_out["log_ratio"]) ** 2) < 0.045
    weight = np.exp(found)
    assert weight.max() / weight.sum() < 1e-3


def test_new_events_get_the_mean_ratio_of_the_folds(estimator):
    """Then their mean factor is that of events trained on, each by its own fold, however noisy the members are.

    No chance in it.  With 20 000 events, ten fits with context (networks) gave 1.0006 +- 0.0010 on new events.
    """
    estimator = replace(estimator, n_repeats=2)
    ratio = fit_ratio(normal(2000, 0, seed=1), normal(2000, 0.5, seed=2, first=10**6), estimator)
    new = normal(500, 0, seed=5, first=10**7)
    logs = ratio.members.log_ratios(new.values, np.arange(4))
    folds = [np.exp(logs[[k, k + 2]].mean(axis=0)) for k in range(2)]
    np.testing.assert_allclose(np.exp(ratio(new.values, new.event_key)), np.mean(folds, axis=0), rtol=1e-6)


@pytest.mark.slow
def test_two_samples_of_one_law_get_weights_of_one():
    """Two samples of 200 000: the width of the weights is below 0.05."""
    generated, reference = normal(200_000, 0, seed=1), normal(200_000, 0, seed=2, first=10**6)
    ratio = fit_ratio(generated, reference, NetworkRatio())
    assert np.std(np.exp(ratio(generated.values, generated.event_key))) < 0.05


def test_training_leaves_the_global_generators_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    fit_ratio(normal(500, 0, seed=1), normal(500, 0.5, seed=2, first=10**6), SMALL["network"]())
    assert torch.rand(1) == expected


def test_bad_input_is_refused():
    good, estimator = normal(500, 0, seed=1), SMALL["network"]()
    negative = normal(500, 0, seed=2, weight=np.where(np.arange(500) < 3, -1.0, 1.0))
    with pytest.raises(WeightError, match="3 of 500 generated weights are negative"):
        fit_ratio(negative, good, estimator)
    with pytest.raises(WeightError, match="expected a positive sum"):
        normal(500, 0, seed=2, weight=-np.ones(500))
    with pytest.raises(ValueRangeError, match="1 of 4 values are NaN"):
        table([[1.0, 2.0], [np.nan, 3.0]])
    with pytest.raises(ConfigError, match="2 and 1 columns found"):
        fit_ratio(good, table(np.zeros(500)), estimator)
    with pytest.raises(EmptySelectionError, match="1 generated events found, too few for 2 folds"):
        fit_ratio(normal(1, 0, seed=1), good, estimator)
    for options, message in (
        ({"n_folds": 1}, "expected at least 2 and 1"),
        ({"max_ratio": 1.0}, "max_ratio: 1.0 found"),
        ({"hidden": [0]}, "hidden, layer 0: 0 found"),
        ({"updates": 0}, "updates: 0 found"),
    ):
        with pytest.raises(ConfigError, match=message):
            NetworkRatio(**options)


def test_positive_weights_are_used_where_asked():
    rng = np.random.default_rng(1)
    weight = rng.choice([-1.0, 3.0], 4000, p=[0.3, 0.7])
    samples = normal(4000, 0, seed=1), normal(4000, 0.5, seed=2, first=10**6, weight=weight)
    options = {"hidden": [16], "updates": 100, "n_folds": 2, "n_repeats": 1}
    signed, positive = (fit_ratio(*samples, NetworkRatio(positive=on, **options)) for on in (False, True))
    args = samples[0].values, samples[0].event_key
    assert not np.allclose(signed(*args), positive(*args))
    assert np.corrcoef(positive(*args), samples[0].values.sum(axis=1))[0, 1] > 0.9
    assert stats.n_eff(np.exp(positive(*args))) < 4000
