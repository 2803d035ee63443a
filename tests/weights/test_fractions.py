"""Label fractions give the truth of each species, exactly where algebra says so and within errors where chance does.

Toys have fixed seeds; a test's chance of failing by accident is the one under a change of its seed.
"""

from __future__ import annotations

import json
import pickle
from itertools import combinations

import jsonargparse
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from calorefine import keys, stats
from calorefine.errors import (
    BranchError,
    ConfigError,
    EmptySelectionError,
    FactorizationError,
    FactorizationWarning,
    FitError,
    SumRuleWarning,
    ValueRangeError,
)
from calorefine.weights.bootstrap import bootstrap_weights
from calorefine.weights.consistency import consistency_test
from calorefine.weights.fraction_errors import balanced_variances, can_balance
from calorefine.weights.fractions import LabelFractions, LabelProbabilities
from calorefine.weights.labels import LabelFit
from calorefine.weights.source import EVENT, WeightSource

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
SPECIES = ("signal", "background", "other")
PURE = {"a": {"signal": 0.9, "background": 0.1}, "b": {"signal": 0.2, "background": 0.8}}


def named(matrix, species=SPECIES):
    """Fractions, sample to species, of a matrix (K, L), or (B, K, L) for bins."""
    rows = np.moveaxis(np.asarray(matrix, float), 0, -1) if np.ndim(matrix) == 3 else np.asarray(matrix, float)
    return {
        f"s{k}": {name: row[i].tolist() for i, name in enumerate(species[: len(row)])} for k, row in enumerate(rows)
    }


def make(matrix, **options):
    return LabelFractions(fractions=named(matrix), **options)


def numbers(sizes):
    """Sample of each event, for samples of the given sizes."""
    return {"sample": np.repeat(np.arange(len(sizes)), sizes).astype(float)}


MIXED = {"rich": {"signal": 0.9, "background": 0.1}, "middle": {"signal": 0.5, "background": 0.5}}
MIXED |= {"poor": {"signal": 0.2, "background": 0.8}}
MATRICES = {
    "2x2": [[0.8, 0.2], [0.3, 0.7]],
    "3x2": [[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]],
    "4x3": [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.3, 0.4, 0.3]],
}


# Closure


@pytest.mark.parametrize("name", MATRICES)
def test_means_and_widths_of_each_species_close(name):
    """Seed 41; 14 numbers within 4 bootstrap errors of 50 replicas: false alarm below 3e-3 for all together."""
    matrix = np.array(MATRICES[name])
    rng = np.random.default_rng(41)
    table = numbers([4000, 3000, 2000, 1000][: len(matrix)])
    species = (rng.random((len(table["sample"]), 1)) > np.cumsum(matrix, 1)[table["sample"].astype(int)]).sum(1)
    x = rng.normal(species, 0.5 + 0.25 * species)
    key = keys.make_keys([np.arange(len(x))])
    for i, target in enumerate(SPECIES[: matrix.shape[1]]):
        replicas = bootstrap_weights(make(matrix, target=target), table, key, n_replicas=50, seed=41)
        found = np.array([[stats.mean(x, w), np.sqrt(stats.covariance(x[:, None], w)[0, 0])] for w in replicas])
        error = found[1:].std(axis=0, ddof=1)
        assert np.all(np.abs(found[0] - [i, 0.5 + 0.25 * i]) < 4 * error)
        assert np.all(error < 0.1)


def context_toy(seed):
    """Prior and features depend on the context c: 200 000 events, fractions (2, 2, 2) of bins, samples, species."""
    rng = np.random.default_rng(seed)
    purity = np.array([[0.9, 0.6], [0.5, 0.1]])
    c, sample = rng.random(200_000), rng.integers(0, 2, 200_000)
    signal = rng.random(200_000) < purity[(c > 0.5).astype(int), sample]
    x = rng.normal(np.where(signal, 1 + 2 * c, -2 * c), 0.5)
    return {"sample": sample.astype(float), "c": c}, x, np.stack([purity, 1 - purity], axis=-1)


def test_bins_of_context_remove_the_bias():
    """Seed 42; the signal's mean of x, weighted to a flat c, is 2: within 4 standard deviations (6e-5), or 8 off."""
    table, x, fractions = context_toy(42)
    pulls = []
    for source in (make(fractions, in_bins_of={"c": [0, 0.5, 1]}), make(fractions.mean(axis=0))):
        weight = source.weights(table)
        means = []
        for half in (table["c"] < 0.5, table["c"] >= 0.5):
            error = (
                np.sqrt(stats.sum_w2(weight[half] * (x[half] - stats.mean(x[half], weight[half])))) / weight[half].sum()
            )
            means.append((stats.mean(x[half], weight[half]), error))
        pulls.append(abs(np.mean([m for m, _ in means]) - 2) / (0.5 * np.hypot(means[0][1], means[1][1])))
    assert pulls[0] < 4
    assert pulls[1] > 8


# Algebra


@st.composite
def problems(draw):
    """Fractions (B, K, L), each species most frequent in one sample; and sizes (B, K)."""
    n_bins, n_species = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    n_samples = draw(st.integers(n_species, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mixed = rng.dirichlet(np.ones(n_species), (n_bins, n_samples))
    matrix = 0.4 * mixed + 0.6 * np.eye(n_species)[np.arange(n_samples) % n_species]
    return matrix, rng.integers(1, 200, (n_bins, n_samples))


def table_of(sizes):
    """Events of bins and samples of the given sizes (B, K), in order."""
    in_bin, sample = np.indices(sizes.shape).reshape(2, -1)
    return {name: np.repeat(v, sizes.ravel()).astype(float) for name, v in (("sample", sample), ("c", in_bin))}


def binned(matrix, fractions=None, **options):
    edges = (np.arange(len(matrix) + 1) - 0.5).tolist()
    return LabelFractions(fractions=fractions or named(matrix), in_bins_of={"c": edges}, **options)


@PROPERTY
@given(problems())
def test_sum_rules_and_formula(problem):
    matrix, sizes = problem
    table = table_of(sizes)
    fit = binned(matrix).fit(table)
    weight = np.stack([fit.weights(table, name) for name in fit.species])
    np.testing.assert_allclose(weight.sum(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(fit.yields, np.einsum("bk,bkl->bl", sizes, matrix), rtol=1e-12)
    np.testing.assert_allclose(fit.yields.sum(axis=1), sizes.sum(axis=1), rtol=1e-12)
    for b in range(len(sizes)):
        v = matrix[b].T @ np.diag(sizes[b]) @ matrix[b]
        expected = np.diag(fit.yields[b]) @ np.linalg.inv(v) @ matrix[b].T
        found = weight[:, table["c"] == b]
        np.testing.assert_allclose(found, np.repeat(expected, sizes[b], axis=1), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.sum(axis=1), fit.yields[b], rtol=1e-9)
        np.testing.assert_allclose((found**2).sum(axis=1), fit.sum_w2[b], rtol=1e-9)
        np.testing.assert_allclose(_cosine(found), fit.correlation[b], atol=1e-9)
    for name, row in zip(fit.species, weight, strict=True):
        assert fit.n_eff[name] == pytest.approx(stats.n_eff(row), rel=1e-9)
    assert max(fit.sum_rule.values()) < 1e-10
    np.testing.assert_allclose(fit.n_eff_over_yield, fit.yields / fit.sum_w2)


def _cosine(weight):
    product = weight @ weight.T
    return product / np.sqrt(np.outer(np.diag(product), np.diag(product)))


@PROPERTY
@given(problems(), st.randoms())
def test_order_of_events_samples_and_species_changes_nothing(problem, random):
    matrix, sizes = problem
    table = table_of(sizes)
    nominal = binned(matrix).weights(table)
    order = np.array(random.sample(range(len(nominal)), len(nominal)))
    np.testing.assert_array_equal(binned(matrix).weights({k: v[order] for k, v in table.items()}), nominal[order])
    samples = random.sample(range(sizes.shape[1]), sizes.shape[1])
    given_fractions = list(named(matrix).items())
    reordered = dict(given_fractions[k] for k in samples)
    renumbered = table | {"sample": np.argsort(samples)[table["sample"].astype(int)].astype(float)}
    np.testing.assert_allclose(binned(matrix, reordered).weights(renumbered), nominal, rtol=1e-9, atol=1e-9)
    swapped = {name: dict(reversed(row.items())) for name, row in given_fractions}
    np.testing.assert_allclose(binned(matrix, swapped).weights(table), nominal, rtol=1e-9, atol=1e-9)


@PROPERTY
@given(problems(), st.integers(0, 2**32))
def test_multiplicity_equals_repeating_events(problem, seed):
    """Exactly: sizes are integers."""
    matrix, sizes = problem
    table = table_of(sizes + 10)
    counts = np.random.default_rng(seed).poisson(1, len(table["c"]))
    counts[np.unique(table_index(table, sizes), return_index=True)[1]] = 1
    fit = binned(matrix).fit(table, multiplicity=counts)
    repeated = binned(matrix).fit({name: np.repeat(values, counts) for name, values in table.items()})
    np.testing.assert_array_equal(fit.weights(table), repeated.weights(table))
    assert fit.to_dict() == repeated.to_dict()


def table_index(table, sizes):
    return table["c"] * sizes.shape[1] + table["sample"]


@PROPERTY
@given(problems())
def test_probabilities_equal_to_the_fractions_give_the_same(problem):
    matrix, sizes = problem
    table = table_of(sizes)
    fractions = binned(matrix).fit(table)
    posterior = matrix[table["c"].astype(int), table["sample"].astype(int)]
    names = SPECIES[: matrix.shape[2]]
    table |= {f"p_{name}": column for name, column in zip(names, posterior.T, strict=True)}
    edges = {"c": (np.arange(len(matrix) + 1) - 0.5).tolist()}
    fit = LabelProbabilities(probabilities={name: f"p_{name}" for name in names}, in_bins_of=edges).fit(table)
    np.testing.assert_allclose(fit.yields, fractions.yields, rtol=1e-10)
    for name in names:
        np.testing.assert_allclose(fit.weights(table, name), fractions.weights(table, name), rtol=1e-8, atol=1e-8)


def test_as_many_samples_as_species_is_matrix_inversion():
    matrix, sizes = np.array(MATRICES["2x2"]), np.array([300, 500])
    fit = make(matrix).fit(numbers(sizes))
    expected = np.diag(sizes @ matrix) @ np.linalg.inv(np.diag(sizes) @ matrix)
    for name, row in zip(fit.species, expected, strict=True):
        np.testing.assert_allclose(fit.weights({"sample": np.arange(2.0)}, name), row, rtol=1e-12)


def test_pure_samples_weigh_1_and_0():
    fit = make(np.eye(2)).fit(numbers([3, 5]))
    assert fit.weights({"sample": np.array([0.0, 1.0])}).tolist() == [1, 0]
    assert fit.n_eff == {"signal": 3, "background": 5}
    np.testing.assert_array_equal(fit.n_eff_over_yield, 1)
    np.testing.assert_allclose(fit.condition, 1)


def test_all_samples_are_better_than_any_pair():
    matrix, sizes = np.array(MATRICES["3x2"]), np.array([3000, 4000, 5000])
    best = make(matrix).fit(numbers(sizes)).n_eff
    for pair in combinations(range(3), 2):
        worse = make(matrix[list(pair)]).fit(numbers(sizes[list(pair)])).n_eff
        assert all(worse[name] < best[name] for name in best)


@PROPERTY
@given(problems(), st.integers(0, 2**32))
def test_no_other_weights_with_the_same_estimand_have_a_smaller_variance(problem, seed):
    """Others differ by z with sum_k n_k F_km z_k = 0; for K = L there are none."""
    (matrix, *_), (sizes, *_) = problem
    fit = make(matrix).fit(numbers(sizes))
    weight = fit.weights({"sample": np.arange(len(sizes)).astype(float)})
    condition = sizes[:, None] * matrix
    z = np.random.default_rng(seed).normal(size=len(sizes))
    z -= condition @ np.linalg.lstsq(condition, z, rcond=None)[0]
    np.testing.assert_allclose((weight + z) @ condition, [fit.yields[0, 0], *np.zeros(matrix.shape[1] - 1)], atol=1e-8)
    assert sizes @ (weight + z) ** 2 >= sizes @ weight**2 * (1 - 1e-9)


# Uncertain fractions

ERRORS = {"s0": {"signal": 0.02, "background": 0.03, "other": 0.025}, "s2": {"signal": 0.01, "other": 0.01}}


def test_draws_have_the_given_errors_and_sums():
    """4000 replicas, seed 0; standard deviations, means and correlations of two samples within 5 deviations (6e-7)."""
    source = make(MATRICES["4x3"], errors=ERRORS)
    drawn = np.array([source.varied(r).values[0] for r in range(1, 4001)])
    np.testing.assert_allclose(drawn.sum(axis=-1), 1, atol=1e-12)
    error = source.errors[0]
    np.testing.assert_array_equal(drawn[:, error == 0], np.broadcast_to(source.values[0][error == 0], (4000, 7)))
    np.testing.assert_allclose(drawn.std(axis=0), error, rtol=5 / np.sqrt(8000), atol=1e-12)
    assert np.all(np.abs(drawn.mean(axis=0) - source.values[0]) <= 5 * error / np.sqrt(4000) + 1e-12)
    between = np.corrcoef(drawn[:, 0].T, drawn[:, 2, :1].T)[:3, 3]
    assert np.all(np.abs(between) < 5 / np.sqrt(4000))


@PROPERTY
@given(st.lists(st.integers(0, 50), min_size=2, max_size=6).map(lambda e: np.array(e) / 1000))
def test_balanced_variances_give_the_errors(error):
    if not can_balance(error):
        return
    a = balanced_variances(error)
    if not error.any():
        assert not a.any()
        return
    covariance = np.diag(a) - np.outer(a, a) / a.sum()
    top = np.argmax(error)
    limit = np.sqrt(np.sum(np.delete(error, top) ** 2))
    expected = np.where(np.arange(len(error)) == top, np.minimum(error, limit), error)
    np.testing.assert_allclose(np.sqrt(np.maximum(np.diag(covariance), 0)), expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(covariance.sum(axis=0), 0, atol=1e-8 * a.sum())


def test_error_of_one_minus_the_others_is_the_limit():
    """Seed 0, 4000 replicas: "other" is what the first two, independent, leave; 5 standard deviations (6e-7)."""
    source = make(MATRICES["4x3"], errors={"s1": {"signal": 0.01, "background": 0.02, "other": 0.0224}})
    drawn = np.array([source.varied(r).values[0, 1] for r in range(1, 4001)])
    np.testing.assert_allclose(drawn.std(axis=0), [0.01, 0.02, np.hypot(0.01, 0.02)], rtol=5 / np.sqrt(8000))
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / np.sqrt(4000)


def test_with_two_species_one_error_stands_for_both():
    one = LabelFractions(fractions=PURE, errors={"b": {"background": 0.05}}).varied(3, 1)
    both = LabelFractions(fractions=PURE, errors={"b": {"background": 0.05, "signal": 0.05}}).varied(3, 1)
    np.testing.assert_array_equal(one.values, both.values)
    assert one.values[0, 0].tolist() == [0.9, 0.1]
    assert one.values[0, 1, 0] - 0.2 == pytest.approx(0.8 - one.values[0, 1, 1], rel=1e-9)


def test_draw_depends_on_names_replica_and_seed_alone():
    source = make(MATRICES["4x3"], errors=ERRORS)
    fractions = dict(reversed(named(MATRICES["4x3"]).items()))
    other = LabelFractions(fractions={k: dict(reversed(v.items())) for k, v in fractions.items()}, errors=ERRORS)
    for replica, seed in ((1, 0), (7, 3)):
        once = source.varied(replica, seed)
        np.testing.assert_array_equal(once.values, source.varied(replica, seed).values)
        np.testing.assert_allclose(other.varied(replica, seed).values[:, ::-1, ::-1], once.values, rtol=1e-12)
    drawn = [source.varied(*which).values[0, 0, 0] for which in ((1, 0), (2, 0), (1, 1))]
    assert len(set(drawn)) == 3
    # The same on every machine: a change here changes every published replica.
    known = [0.7276131, 0.1831453, 0.0892415]
    np.testing.assert_allclose(source.varied(1).values[0, 0], known, atol=1e-6)


def test_nominal_and_certain_sources_are_not_varied():
    uncertain, certain = make(MATRICES["4x3"], errors=ERRORS), make(MATRICES["4x3"])
    assert uncertain.varied(0) is uncertain
    assert certain.varied(5) is certain
    drawn = uncertain.varied(5)
    assert drawn is not uncertain
    assert drawn.varied(6) is drawn
    np.testing.assert_array_equal(uncertain.values, certain.values)


def test_spread_of_yields_is_the_propagated_error():
    """600 replicas, seed 2, two bins; within 4 standard deviations of the spread (6e-5 each)."""
    errors = {"s0": {"signal": [0.02, 0.05]}, "s1": {"signal": 0.03}}
    fractions = [MATRICES["2x2"], [[0.6, 0.4], [0.1, 0.9]]]
    sizes = np.array([[400, 700], [500, 300]])
    source, table = binned(np.array(fractions), errors=errors), table_of(sizes)
    found = np.array([source.varied(r, 2).fit(table).yields for r in range(1, 601)])
    expected = np.sqrt(np.sum((sizes * [[0.02, 0.03], [0.05, 0.03]]) ** 2, axis=1))
    np.testing.assert_allclose(found.std(axis=0), np.stack([expected, expected], axis=1), rtol=4 / np.sqrt(1200))
    np.testing.assert_allclose(found.sum(axis=2), np.broadcast_to(sizes.sum(axis=1), (600, 2)), rtol=1e-12)
    total = found.sum(axis=1)[:, 0]
    assert total.std() == pytest.approx(np.hypot(*expected), rel=4 / np.sqrt(1200))


# Results


@pytest.fixture
def fit():
    """Two bins and an empty one; two events outside."""
    table = table_of(np.array([[30, 50], [20, 40], [0, 0]]))
    table = {
        name: np.append(values, extra) for (name, values), extra in zip(table.items(), ([0, 1], [-1, 9]), strict=True)
    }
    return binned(np.array([MATRICES["2x2"]] * 3)).fit(table)


def test_events_outside_and_in_empty_bins_weigh_nothing(fit):
    assert isinstance(fit, LabelFit)
    assert fit.n_outside == 2
    assert fit.sizes.tolist() == [[30, 50], [20, 40], [0, 0]]
    weight = fit.weights({"sample": np.zeros(4), "c": np.array([0.0, 2, -3, 7])})
    assert weight[0] > 1
    assert weight[1:].tolist() == [0, 0, 0]
    assert fit.yields[2].tolist() == [0, 0]


def test_report_pickles_and_serializes(fit):
    read = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert read["yields"]["signal"] == pytest.approx(0.8 * 50 + 0.3 * 90)
    assert read["inputs"]["fractions"]["s1"] == {"signal": [0.3] * 3, "background": [0.7] * 3}
    assert read["in_bins"]["condition"][2] is None
    assert read["in_bins"]["correlation"][2] == [[None, None], [None, None]]
    assert read["in_bins"]["n_eff_over_yield"][2] == [0, 0]
    assert read["bins"][0] == "-0.5 <= c < 0.5"
    table = {"sample": np.array([0.0, 1.0]), "c": np.array([0.0, 1.0])}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fit)).weights(table), fit.weights(table))


def test_summary_has_sizes_yields_and_effective_sizes(fit):
    lines = fit.summary().splitlines()
    assert lines[0] == "label weights of signal: 140 events in 3 bins (2 outside, weight 0)"
    assert lines[1].split() == ["bin", "s0", "s1", "species", "yield", "+-", "n_eff", "n_eff/yield"]
    assert len({len(line) for line in lines[1:8]}) == 1
    assert lines[2].split()[-7:-4] == ["30", "50", "signal"]
    value, error, size, ratio = map(float, lines[2].split()[-4:])
    assert value == pytest.approx(39)
    assert error == pytest.approx(fit.yield_errors[0, 0], abs=0.05)
    assert size == pytest.approx(39 * ratio, rel=0.01)
    assert lines[-1].startswith("effective number of events: signal ")


def test_summary_of_probabilities():
    source = LabelProbabilities(probabilities={"signal": "p", "background": "1 - p"})
    p = np.array([0.9, 0.8, 0.1, 0.2])
    fit = source.fit({"p": p, "1 - p": 1 - p})
    assert source.branches == {"p": "p", "1 - p": "1 - p"}
    assert fit.summary().splitlines()[2].split()[:4] == ["all", "events", "4", "signal"]
    assert fit.to_dict()["inputs"] == {"signal": "p", "background": "1 - p"}


def test_probabilities_outside_of_the_bins_are_not_looked_at():
    source = LabelProbabilities(probabilities={"signal": "p", "background": "q"}, in_bins_of={"c": [0, 1]})
    table = {"p": np.array([0.9, -999, 0.2]), "q": np.array([0.1, np.nan, 0.8]), "c": np.array([0.0, 2, 1])}
    fit = source.fit(table)
    assert (fit.n_outside, fit.weights(table)[1]) == (1, 0)
    np.testing.assert_allclose(fit.weights(table, "signal") + fit.weights(table, "background"), [1, 0, 1])


def test_branches_are_the_sample_and_the_columns_of_the_bins():
    source = LabelFractions(fractions=PURE, sample="is_muon + 0", in_bins_of={"p": [0, 1]})
    assert source.branches == {"is_muon + 0": "is_muon + 0", "p": "p"}
    assert source.fractions == {name: {k: [v] for k, v in row.items()} for name, row in PURE.items()}


def test_yaml_makes_both():
    """The configuration schema is the constructor."""
    text = """
    one:
      class_path: calorefine.weights.fractions.LabelFractions
      init_args:
        fractions: {a: {signal: [0.9, 0.8], background: [0.1, 0.2]}, b: {signal: 0, background: 1}}
        errors: {a: {signal: 0.01}}
        in_bins_of: {p: [0, 1, 2]}
    two:
      class_path: calorefine.weights.fractions.LabelProbabilities
      init_args:
        probabilities: {signal: p, background: 1 - p}
        target: background
    """
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--one", type=WeightSource)
    parser.add_argument("--two", type=WeightSource)
    made = parser.instantiate(parser.parse_string(text))
    assert made.one.values.tolist() == [[[0.9, 0.1], [0, 1]], [[0.8, 0.2], [0, 1]]]
    assert made.one.errors[:, 0].tolist() == [[0.01, 0.01]] * 2
    assert made.two.target == "background"


# Errors

TWO_BINS = {"p": [0, 1, 2]}
THREE = {"a": {"x": 0.5, "y": 0.3, "z": 0.2}, "b": {"x": 0.2, "y": 0.3, "z": 0.5}}


def changed(**row):
    return {"fractions": PURE | {"a": PURE["a"] | row}}


def with_errors(species=None, **errors):
    return {"fractions": species or PURE, "errors": errors}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            changed(signal=1.2),
            r"fractions of sample 'a' in all events: signal 1.2, .* expected numbers within \[0, 1\]",
        ),
        (changed(signal=-0.1), r"signal -0.1, background 0.1 found, expected numbers within"),
        (changed(signal=float("nan")), "signal nan"),
        (
            changed(signal=0.8),
            "fractions of sample 'a' in all events sum to 0.9: signal 0.8, background 0.1 found, expected 1 within",
        ),
        (changed(signal=0.8998), "sum to 0.9998"),
        (
            changed(signal=[0.9, 0.7]) | {"in_bins_of": TWO_BINS},
            "of sample 'a' in 1 <= p <= 2 sum to 0.8: signal 0.7, background 0.1",
        ),
        (
            {"fractions": PURE | {"b": {"signal": 0.2, "backgruond": 0.8}}},
            "fractions of sample 'b': species 'backgruond' is not among signal, background; did you mean 'background'",
        ),
        ({"fractions": PURE | {"b": {"signal": 1.0}}}, "sample 'b': species 'background' is not among signal"),
        ({"fractions": THREE, "target": "x"}, r"2 samples \(a, b\), 3 species found, expected no fewer samples"),
        ({"fractions": {"a": {"signal": 1.0}}}, "at least two species, found signal"),
        ({"fractions": {}}, "at least two species, found none"),
        (
            changed(signal=[0.9, 0.9]),
            "fractions of 'signal' in sample 'a': 2 numbers found, expected one, or 1: one per bin",
        ),
        (changed(signal=[0.9] * 3) | {"in_bins_of": TWO_BINS}, "3 numbers found, expected one, or 2"),
        (
            {"fractions": PURE, "target": "signl"},
            "species 'signl' is not among signal, background; did you mean 'signal'",
        ),
        ({"fractions": PURE, "in_bins_of": {"p": [1, 0]}}, "in_bins_of p"),
        (with_errors(A={"signal": 0.1}), "errors: sample 'A' is not among a, b; did you mean 'a'"),
        (with_errors(a={"sgnal": 0.1}), "errors of sample 'a': species 'sgnal' is not among .*; did you mean 'signal'"),
        (with_errors(a={"signal": [0.1, 0.1]}), "errors of 'signal' in sample 'a': 2 numbers found"),
        (with_errors(a={"signal": -0.1}), "errors of sample 'a' in all events: signal -0.1, .* not negative"),
        (with_errors(a={"signal": float("nan")}), "not negative"),
        (with_errors(b={"signal": 0.1, "background": 0.2}), "errors of sample 'b' .* equal for two"),
        (
            with_errors(b={"signal": 0.1, "background": 0.0}),
            "signal 0.1, background 0 found, .* the others balance the largest",
        ),
        (
            with_errors(THREE | {"c": THREE["a"]}, a={"x": 0.1, "y": 0.05, "z": 0.05}) | {"target": "x"},
            "x 0.1, y 0.05, z 0.05 found, .* at most the root of the sum of squares of the others",
        ),
        (with_errors(THREE | {"c": THREE["a"]}, a={"x": 0.1}) | {"target": "x"}, "x 0.1, y 0, z 0 found"),
    ],
)
def test_options_of_fractions_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        LabelFractions(**options)


def test_options_of_probabilities_are_checked():
    with pytest.raises(ConfigError, match="at least two species, found signal"):
        LabelProbabilities(probabilities={"signal": "p"})
    with pytest.raises(ConfigError, match="species 'signal' is not among pion, kaon"):
        LabelProbabilities(probabilities={"pion": "p", "kaon": "q"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1, 2], r"sample: 1 of 3 values are no number of a sample, such as 2; expected 0 \(a\), 1 \(b\)"),
        ([0, 0.5, -1], "2 of 3 values are no number of a sample, such as 0.5"),
        ([0, np.nan, 1], "1 of 3 values are no number of a sample, such as nan"),
    ],
)
def test_numbers_of_samples_are_checked(values, message):
    with pytest.raises(ValueRangeError, match=message):
        LabelFractions(fractions=PURE).fit({"sample": np.array(values, float)})


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([0.5, 1.5], [0.5, -0.5], r"probability of signal: 1 of 2 values are not, such as 1.5; expected .* \[0, 1\]"),
        ([0.5, np.nan], [0.5, 0.5], "probability of signal: 1 of 2 values are not, such as nan"),
        ([0.5, 0.9], [0.5, 0.098], "the sum over signal, background is off 1 by up to 0.002, expected below 0.001"),
    ],
)
def test_probabilities_are_checked(p, q, message):
    source = LabelProbabilities(probabilities={"signal": "p", "background": "q"})
    with pytest.raises(ValueRangeError, match=message):
        source.fit({"p": np.array(p), "q": np.array(q)})


def test_missing_columns_are_named():
    with pytest.raises(BranchError, match="sample: 'sample' is not among Sample; did you mean 'Sample'"):
        LabelFractions(fractions=PURE).fit({"Sample": np.zeros(2)})
    with pytest.raises(BranchError, match="probability of background: 'q' is not among p"):
        LabelProbabilities(probabilities={"signal": "p", "background": "q"}).fit({"p": np.zeros(2)})
    with pytest.raises(BranchError, match="in_bins_of: 'p' is not among sample"):
        LabelFractions(fractions=PURE, in_bins_of=TWO_BINS).fit({"sample": np.zeros(2)})


def test_unknown_species_has_no_weights():
    table = numbers([3, 4])
    with pytest.raises(ConfigError, match="species 'signall' is not among signal, background; did you mean 'signal'"):
        LabelFractions(fractions=PURE).fit(table).weights(table, "signall")


@pytest.mark.parametrize("counts", [np.ones(3), np.full(7, 0.5), np.full(7, -1)])
def test_multiplicities_are_counts(counts):
    with pytest.raises(ValueRangeError, match="multiplicity"):
        LabelFractions(fractions=PURE).fit(numbers([3, 4]), multiplicity=counts)


def test_no_events_is_an_error():
    source = LabelFractions(fractions=PURE, in_bins_of=TWO_BINS)
    with pytest.raises(EmptySelectionError, match="none of 2 events is in the bins of p"):
        source.fit({"sample": np.zeros(2), "p": np.array([-1.0, 3.0])})
    with pytest.raises(EmptySelectionError, match="none of 0 events is there: the input is empty"):
        LabelFractions(fractions=PURE).fit({"sample": np.zeros(0)})


def test_species_that_are_alike_are_named_with_their_bin():
    """In the second bin "x" and "z" have the same fractions up to 0.001; "y" is apart."""
    second = [[0.3, 0.4, 0.3], [0.4, 0.201, 0.399], [0.1, 0.8, 0.1]]
    matrix = np.array([[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], second])
    source = LabelFractions(fractions=named(matrix, ("x", "y", "z")), in_bins_of=TWO_BINS, target="x")
    table = {"sample": np.tile([0.0, 1, 2], 20), "p": np.repeat([0.5, 1.5], 30)}
    message = (
        r"can't separate the species in 1 <= p <= 2: condition number \S+, expected below 10000; "
        "most alike are 'x' and 'z', their fractions have a correlation of 1.00000"
    )
    with pytest.raises(FitError, match=message):
        source.fit(table)


def test_condition_number_is_that_of_the_correlation_of_yields():
    """For two species (1 + r) / (1 - r); the threshold lies at r = 0.9998."""
    fit = make([[0.52, 0.48], [0.48, 0.52]]).fit(numbers([500, 500]))
    r = -fit.correlation[0, 0, 1]
    assert fit.condition[0] == pytest.approx((1 + r) / (1 - r), rel=1e-9)
    assert fit.n_eff["signal"] < 0.01 * 1000
    with pytest.raises(FitError, match=r"correlation of 0.9998"):
        make([[0.505, 0.495], [0.496, 0.504]]).fit(numbers([500, 500]))


def test_sample_that_is_missing_is_named():
    source = LabelFractions(fractions=PURE, in_bins_of=TWO_BINS)
    table = {"sample": np.array([0.0, 1, 0, 0]), "p": np.array([0.5, 0.5, 1.5, 1.5])}
    with pytest.raises(FitError, match=r"in 1 <= p <= 2 \(where sample 'b' has no events\): condition number"):
        source.fit(table)


def test_missing_sample_is_fine_if_the_others_separate():
    matrix = np.array(MATRICES["3x2"])
    weight = make(matrix).weights(numbers([30, 0, 50]))
    np.testing.assert_allclose(weight, make(matrix[[0, 2]]).weights(numbers([30, 50])), rtol=1e-12)


def test_species_that_is_nowhere_is_named():
    with pytest.raises(FitError, match="species 'other' has fraction 0 in each sample with events in all events"):
        make([[0.5, 0.5, 0], [0.2, 0.8, 0], [0, 0, 1]]).fit(numbers([10, 10, 0]))


def test_sum_rule_warns_of_probabilities_that_are_too_rough():
    """Sums are off by 9e-4, alike species make it 20 times that."""
    p = np.tile([0.52, 0.48], 500)
    q = 1 - p + np.where(p > 0.5, 9e-4, -9e-4)
    source = LabelProbabilities(probabilities={"signal": "p", "background": "q"})
    with pytest.warns(SumRuleWarning, match="a sum rule is off by .* expected below 0.005"):
        source.fit({"p": p, "q": q})


@pytest.mark.parametrize("error", [0.0, 0.03])
def test_errors_of_yields_are_their_spread(error):
    """Seed 41, 2000 Poisson samples and draws of the fractions: within 4.5 standard errors of the spread (7e-6)."""
    rng = np.random.default_rng(41)
    n = 1500
    errors = {name: {"signal": error} for name in ("rich", "poor")} if error else None
    given = {"rich": {"signal": 0.9, "background": 0.1}, "poor": {"signal": 0.2, "background": 0.8}}
    source = LabelFractions(fractions=given, errors=errors)
    fit = source.fit({"sample": np.repeat([0.0, 1.0], n)})
    yields = []
    for replica in range(1, 2001):
        sizes = rng.poisson(n, 2)
        yields.append(source.varied(replica).fit({"sample": np.repeat([0.0, 1.0], sizes)}).yields[0])
    spread = np.std(yields, axis=0)
    assert np.all(np.abs(spread / fit.yield_errors[0] - 1) < 4.5 / np.sqrt(2 * 2000))


def test_candidates_of_an_event_count_together():
    """Each event twice, in one sample: twice the root of what single events have; by a loop for mixed samples."""
    table = numbers([300, 200])
    twice = {"sample": np.repeat(table["sample"], 2), EVENT: np.repeat(np.arange(500, dtype=np.uint64), 2)}
    source = LabelFractions(fractions=PURE)
    single, double = source.fit(table), source.fit(twice)
    np.testing.assert_allclose(double.yields, 2 * single.yields)
    np.testing.assert_allclose(double.yield_errors, 2 * single.yield_errors)
    assert double.n_eff == pytest.approx(single.n_eff)
    rng = np.random.default_rng(43)
    mixed = {"sample": rng.integers(0, 2, 400).astype(float), EVENT: rng.integers(0, 150, 400).astype(np.uint64)}
    fit, weight = source.fit(mixed), source.weights(mixed)
    by_key = [weight[mixed[EVENT] == key].sum() for key in range(150)]
    assert fit.sum_w2[0, 0] == pytest.approx(np.sum(np.square(by_key)))


def overdetermined(seed, *, error=0.0, off=0.0, copies=1):
    """Table and columns of three samples of two species; the middle one's fraction is off, all of them by an error."""
    rng = np.random.default_rng(seed)
    sample = np.repeat([0.0, 1.0, 2.0], [3000, 2000, 1000])
    fraction = np.array([0.9, 0.5 + off, 0.2]) + rng.normal(0, error, 3)
    signal = rng.random(6000) < fraction[sample.astype(int)]
    x, flag = np.where(signal, rng.normal(1, 0.5, 6000), rng.normal(0, 0.5, 6000)), rng.integers(0, 2, 6000) * 1.0
    table = {"sample": sample, EVENT: np.arange(6000, dtype=np.uint64)}
    return tuple({k: np.repeat(v, copies) for k, v in named.items()} for named in (table, {"x": x, "flag": flag}))


@pytest.mark.parametrize("options", [{}, {"error": 0.03}, {"copies": 2}])
def test_consistency_of_more_samples_than_species(options):
    """Seeds (45, 0..99): p-values are uniform (KS above 1e-4), with errors of the fractions and with candidates."""
    errors = {name: {"signal": options["error"]} for name in MIXED} if "error" in options else None
    source = LabelFractions(fractions=MIXED, errors=errors)
    p_values = [consistency_test(source, *overdetermined([45, seed], **options))[0].p_value for seed in range(100)]
    assert distributions.kstest(p_values, "uniform").pvalue > 1e-4


def test_samples_that_disagree_are_refused():
    """Seed 46: 0.65 where 0.5 is claimed, p about 1e-12; two samples of two species always agree."""
    table, columns = overdetermined(46, off=0.15)
    source = LabelFractions(fractions=MIXED)
    with pytest.raises(FactorizationError, match="same species with these fractions, by x: chi2/ndf"):
        source.check(source.fit(table), table, columns)
    with pytest.warns(FactorizationWarning, match="by x: .* largest deviation: middle by"):
        tests = source.check(source.fit(table), table, columns, dependence="warn")
    assert [test.ndf for test in tests] == [4, 1]
    two = LabelFractions(fractions=PURE)
    assert two.check(two.fit(numbers([300, 200])), numbers([300, 200]), {"x": np.arange(500.0)}) == []


def test_consistency_in_bins_of_context():
    """Seed 47: both bins count; the one that deviates is named."""
    table, columns = overdetermined(47, off=0.2)
    table["c"] = np.where(table["sample"] == 1, 1.5, np.arange(6000) % 2)
    source = LabelFractions(fractions=MIXED, in_bins_of={"c": [0.0, 1.0, 2.0]})
    test = consistency_test(source, table, columns)[0]
    assert (test.ndf, test.where) == (4, "1 <= c <= 2")
