"""Corrected events without weights.

The simulator draws x ~ N(0, 1) at any context; the reference is N(0.3 c, 1) for the context c in [-1, 1], so that the
density ratio is known.  Statistical bounds are 4 standard errors on 40 000 events, three numbers: by chance about one
failure in 5000 runs of other seeds.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from calorefine import Column, Columns, keys
from calorefine.errors import CalorefineWarning, ConfigError
from calorefine.events import Events
from calorefine.reweighting import NetworkRatio, RefinedSimulator, Reweighter
from calorefine.reweighting.latent_resampling import accepted

COLUMNS = Columns({"x": None}, {"c": None})
N = 40_000


class Normal:
    """A simulator of standard normal numbers, with the interface of `Simulator`."""

    columns = COLUMNS

    def sample(self, context, *, seed, key=None, n_per_event=1):
        n = len(np.atleast_1d(context["c"]))
        key = keys.make_keys([np.arange(n)]) if key is None else key
        drawn = [keys.normal(keys.stream(key, "latent", seed=seed, copy=copy), 1)[:, 0] for copy in range(n_per_event)]
        return {"x": np.stack(drawn, axis=1).ravel(), "in_domain": np.ones(n * n_per_event, bool)}


def events(x, c, first):
    key = keys.make_keys([np.arange(first, first + len(x))])
    return Events(x[:, None].astype(np.float32), c[:, None].astype(np.float32), np.ones(len(x)), key, key)


@pytest.fixture(scope="module")
def reweighter():
    rng = np.random.default_rng(4)
    c = rng.uniform(-1, 1, (2, 20_000))
    generated, reference = events(rng.normal(size=20_000), c[0], 0), events(rng.normal(0.3 * c[1]), c[1], 10**6)
    return Reweighter.fit(generated, reference, COLUMNS, estimator=NetworkRatio(hidden=[32, 32], n_repeats=1))


def test_a_cut_that_sampling_can_not_apply_is_told(reweighter):
    other = copy(reweighter)
    other.columns = replace(reweighter.columns, cut="trigger > 0")
    with pytest.warns(CalorefineWarning, match="learned with the cut 'trigger > 0', which sampling doesn't apply"):
        RefinedSimulator(Normal(), other)


def test_refined_events_follow_the_reference_without_weights(reweighter):
    refined = RefinedSimulator(Normal(), reweighter)
    c = np.repeat([-0.8, 0.8], N // 2)
    x = refined.sample({"c": c}, seed=2)["x"].reshape(2, -1)
    plain = Normal().sample({"c": c}, seed=3)["x"].reshape(2, -1)
    weight = reweighter.factors(events(plain.ravel(), c, 10**8)).reshape(2, -1)
    error = 4 * np.sqrt(2 / (N // 2))
    expected = np.sum(weight * plain, axis=1) / weight.sum(axis=1)
    np.testing.assert_allclose(x.mean(axis=1), expected, atol=error)
    np.testing.assert_allclose(expected, [-0.24, 0.24], atol=0.05)  # what the networks have learned of it
    assert refined.n_attempts / refined.n_sampled == pytest.approx(reweighter.largest, rel=0.1)
    assert refined.n_given_up == 0


def test_refined_events_depend_on_key_seed_and_copy_alone(reweighter):
    c, key = np.linspace(-0.9, 0.9, 500), keys.make_keys([np.arange(500)])
    refined = RefinedSimulator(Normal(), reweighter)
    once = refined.sample({"c": c}, seed=1, key=key, n_per_event=2)["x"].reshape(500, 2)
    part = refined.sample({"c": c[100:120][::-1]}, seed=1, key=key[100:120][::-1], n_per_event=2)["x"].reshape(20, 2)
    np.testing.assert_array_equal(part[::-1], once[100:120])
    assert not np.any(once[:, 0] == once[:, 1])
    assert np.mean(refined.sample({"c": c}, seed=5, key=key)["x"] == once[:, 0]) == 0


def test_a_joint_reweighter_or_other_columns_are_refused(reweighter):
    joint = Reweighter(COLUMNS, [], estimator="NetworkRatio", conditional=False, domain=reweighter.domain)
    with pytest.raises(ConfigError, match="a joint one found, expected a conditional one"):
        RefinedSimulator(Normal(), joint)
    other = Reweighter(
        Columns({"y": None}, {"c": None}), [], estimator="NetworkRatio", conditional=True, domain=reweighter.domain
    )
    with pytest.raises(ConfigError, match=r"features \['y'\] found, expected \['x'\]"):
        RefinedSimulator(Normal(), other)


def test_features_that_stand_for_something_else_are_refused(reweighter):
    """The simulator makes x of the branch x; the reweighter has learned x that were made of its logarithm."""
    made = Columns({"x": Column("log(x)")}, {"c": None}).to_dict()
    other = replace(reweighter, provenance={"generated": {"provenance": {"columns": made}}})
    with pytest.raises(ConfigError, match=r"feature 'x' was generated as 'x', the reweighter learned it as 'log\(x\)'"):
        RefinedSimulator(Normal(), other)


def test_accepted_events_have_the_weighted_mean():
    x = np.random.default_rng(1).normal(size=N)
    factor = 1 + 0.5 * np.tanh(x)
    kept = accepted(factor, keys.make_keys([np.arange(N)]), largest=1.5, seed=0, purpose="test")
    assert kept.mean() == pytest.approx(1 / 1.5, abs=4 * np.sqrt(2 / 9 / N))
    assert x[kept].mean() == pytest.approx(np.average(x, weights=factor), abs=4 / np.sqrt(kept.sum()))
