"""The correction of x given context: it corrects, its mean weight is 1 at each context, also with another spectrum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calorefine import Columns, keys, stats
from calorefine.errors import CheckpointError, ConfigError, EmptySelectionError
from calorefine.events import Events
from calorefine.reweighting import BoostingRatio, NetworkRatio, Reweighter
from calorefine.twosample.classifier import separation

COLUMNS = Columns({"x": None, "y": None}, {"c": None})
N = 30_000


def events(x, c, *, weight=None, first=0):
    n = len(c)
    key = keys.make_keys([np.arange(first, first + n)])
    return Events(
        x.astype(np.float32), c[:, None].astype(np.float32), np.ones(n) if weight is None else weight, key, key
    )


def drawn(n, rng, *, spectrum):
    """x, y correlated given c; c of this power-law spectrum in [0, 1]."""
    c = rng.random(n) ** spectrum
    x = rng.normal(size=(n, 2)) * (0.5 + 0.5 * c[:, None]) + c[:, None]
    x[:, 1] += 0.5 * x[:, 0]
    return x, c


def truth(x):
    """Factor of the injected mismodelling, bounded, not normalized."""
    return 1 + 0.8 * np.tanh(2 * (x[:, 0] - 0.5)) * np.tanh(x[:, 1])


def reference(n, rng, *, spectrum):
    """Events with the factor: accepted with a probability proportional to it, at given context."""
    x, c = drawn(4 * n, rng, spectrum=spectrum)
    kept = rng.random(4 * n) < truth(x) / 1.8
    return x[kept][:n], c[kept][:n]


@pytest.fixture(scope="module")
def fitted():
    """A reweighter learned with one spectrum of the generated, another one of the reference; seed 3."""
    rng = np.random.default_rng(3)
    generated = events(*drawn(N, rng, spectrum=1.0))
    target = events(*reference(N, rng, spectrum=0.7), first=10**6)
    return Reweighter.fit(generated, target, COLUMNS), generated, target


def test_mean_weight_is_one_at_each_context_of_another_spectrum(fitted):
    """Ten bins, pulls below 4.

    The error holds the statistics of these events and of those that the mean was learned from.  Of
    12 trainings of other seeds at the same data the largest pull is 1.63 +- 0.27.
    """
    reweighter, generated, _ = fitted
    other = events(*drawn(50_000, np.random.default_rng(5), spectrum=2.5), first=10**7)
    inside = reweighter.in_domain(other.context)
    other = other.take(inside)
    weight = reweighter.factors(other)
    edges = np.quantile(other.context, np.linspace(0, 1, 11))
    own, learned = (np.digitize(e.context[:, 0], edges[1:-1]) for e in (other, generated))
    for k in range(10):
        found = weight[own == k]
        error = found.std() * np.sqrt(1 / len(found) + 1 / np.sum(learned == k))
        assert abs(found.mean() - 1) < 4 * error


def test_injected_mismodelling_is_corrected(fitted):
    """An independent classifier on new events: AUC at most 0.51 after, seed 11.

    Of 12 trainings of other seeds it is 0.5060 +- 0.0009, and n_eff / N 0.873 to 0.874.
    """
    reweighter, *_ = fitted
    rng = np.random.default_rng(11)
    made = events(*drawn(N, rng, spectrum=1.0), first=10**8)
    target = events(*reference(N, rng, spectrum=1.0), first=10**9)
    context = made.context[:, 0]
    mean = np.interp(context, *_mean_factor())  # acceptance changes the reference's spectrum: weigh it back in
    before = separation(Events(made.x, made.context, mean, made.key, made.event_key), target, repetitions=2)
    weight = mean * reweighter.factors(made)
    after = separation(Events(made.x, made.context, weight, made.key, made.event_key), target, repetitions=2)
    assert before.auc > 0.56
    assert after.auc < 0.51
    assert stats.n_eff(weight) > 0.6 * N


def _mean_factor():
    """Mean of the factor at each of some contexts, by simulation."""
    points = np.linspace(0, 1, 41)
    z = np.random.default_rng(0).normal(size=(20_000, 2))
    means = []
    for c in points:
        x = z * (0.5 + 0.5 * c) + c
        x[:, 1] += 0.5 * x[:, 0]
        means.append(truth(x).mean())
    return points, means


def test_saved_and_loaded_it_is_the_same(fitted, tmp_path):
    reweighter, generated, _ = fitted
    reweighter.save(tmp_path / "r.pt")
    loaded = Reweighter.load(tmp_path / "r.pt")
    np.testing.assert_array_equal(loaded.factors(generated), reweighter.factors(generated))
    assert (loaded.largest, loaded.conditional) == (reweighter.largest, True)
    assert loaded.largest == pytest.approx(reweighter.factors(generated).max())


def test_outside_of_the_domain_nothing_is_corrected(fitted):
    reweighter, *_ = fitted
    far = events(np.ones((3, 2)), np.array([-0.1, 0.5, 1.2]), first=10**9)
    np.testing.assert_array_equal(reweighter.in_domain(far.context), [False, True, False])
    assert (reweighter.factors(far)[[0, 2]] == 1).all()


def test_a_further_round_corrects_what_is_left():
    """Too weak an estimator, without tilt, leaves a difference; a second round makes the mean more alike.

    Seed 1; of 12 trainings with other folds 0.31 to 0.37 of the difference is left.
    """
    rng = np.random.default_rng(1)
    generated = events(*drawn(5000, rng, spectrum=1.0))
    target = events(*reference(5000, rng, spectrum=1.0), first=10**6)
    weak = BoostingRatio(n_trees=3, learning_rate=0.1, n_folds=2, n_repeats=1)
    first = Reweighter.fit(generated, target, COLUMNS, estimator=weak)
    (alone,) = first.rounds
    first = first.with_rounds([replace(alone, ratio=replace(alone.ratio, tilt=None))])
    second = first.improved(generated, target, estimator=weak)
    product = target.x[:, 0] * target.x[:, 1]
    wanted = float(np.mean(product))
    off = [
        abs(float(stats.mean(generated.x[:, 0] * generated.x[:, 1], one.factors(generated))) - wanted)
        for one in (first, second)
    ]
    assert off[1] < off[0]
    assert len(second.rounds) == 2
    with pytest.raises(ConfigError, match="a NetworkRatio found, expected a BoostingRatio as before"):
        first.improved(generated, target, estimator=NetworkRatio())


def test_what_is_no_reweighter_is_refused(tmp_path):
    (tmp_path / "r.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"r\.pt: not a readable reweighter"):
        Reweighter.load(tmp_path / "r.pt")
    with pytest.raises(CheckpointError, match=r"q\.pt: no such reweighter; did you mean '.*r\.pt'"):
        Reweighter.load(tmp_path / "q.pt")


def test_where_no_event_was_generated_nothing_is_corrected():
    """The reference reaches further in context than the generated events: factor 1 there, not the largest."""
    rng = np.random.default_rng(2)
    x, c = drawn(5000, rng, spectrum=1.0)
    generated, target = events(x, 0.6 * c), events(*drawn(5000, rng, spectrum=1.0), first=10**6)
    reweighter = Reweighter.fit(generated, target, COLUMNS, estimator=NetworkRatio(hidden=[16], n_repeats=1))
    far = events(*drawn(1000, rng, spectrum=1.0), first=10**8)
    beyond = far.context[:, 0] > 0.6
    assert (reweighter.factors(far)[beyond] == 1).all()
    with pytest.raises(
        EmptySelectionError, match="context 'c': generated and reference events have no value in common"
    ):
        Reweighter.fit(events(x, c + 2), target, COLUMNS)
