"""Maps of simulators: each slice's events are those of its own simulator, and what is in no slice is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from six_slices import BY, COLUMNS, EDGES, conditions, cut_of, simulator, six

from calorefine import Column, Simulator, SimulatorMap, keys, load_simulator
from calorefine.errors import CheckpointError, ConfigError, ValueRangeError
from calorefine.io.cuts import Interval, any_of, interval_of
from calorefine.models import MODELS
from calorefine.simulator import COMBINATION, warn_of_outside

MIXED = tuple(sorted(MODELS))


def merged(simulators, by=BY, **options):
    """A map of simulators by name."""
    named = {str(name): one for name, one in simulators.items()}
    return SimulatorMap.merge(named, by, digests=dict.fromkeys(named, "0" * 64), **options)


def table_of(arrays):
    """Conditions in the units of the columns, and keys."""
    table = {"p_gev": arrays["P"] / 1000, "eta": arrays["eta"], "charge": arrays["charge"]}
    return table, keys.make_keys([arrays["run"], arrays["event"]])


@pytest.fixture(scope="module")
def whole():
    """A map of all recipes in turn, and its simulators by slice."""
    simulators = six(MIXED)
    return merged(simulators), simulators


@pytest.mark.parametrize("copies", [1, 3])
def test_each_slice_is_its_own_simulator(whole, copies):
    together, simulators = whole
    table, key = table_of(conditions())
    out = together.sample(table, seed=4, key=key, n_per_event=copies)
    assert list(out) == ["x", "k", "in_domain"]
    in_any = np.zeros(400, bool)
    for (charge, ring), one in simulators.items():
        size = np.abs(table["eta"])
        rows = (table["charge"] == charge) & (EDGES[ring] <= size) & (size < EDGES[ring + 1])
        assert rows.sum() > 30
        own = {name: table[name][rows] for name in ("p_gev", "eta")}
        alone = one.sample(own, seed=4, key=key[rows], n_per_event=copies)
        for name, values in alone.items():
            assert out[name].dtype == values.dtype
            assert np.array_equal(out[name][np.repeat(rows, copies)], values), name
        in_any |= rows
    outside = ~np.repeat(in_any, copies)
    assert outside.sum() > 20
    assert not out["in_domain"][outside].any()
    assert np.isfinite(out["x"]).all()


def test_rows_do_not_depend_on_each_other(whole):
    together, _ = whole
    table, key = table_of(conditions())
    out = together.sample(table, seed=4, key=key)
    order = np.random.default_rng(0).permutation(400)
    shuffled = together.sample({name: values[order] for name, values in table.items()}, seed=4, key=key[order])
    few = together.sample({name: values[[17]] for name, values in table.items()}, seed=4, key=key[[17]])
    for name, values in out.items():
        assert np.array_equal(shuffled[name], values[order])
        assert np.array_equal(few[name], values[[17]])


def test_what_is_in_no_slice_is_flagged_and_made_by_the_nearest(whole):
    together, simulators = whole
    table = {"p_gev": [4.0, 4.0, 4.0], "eta": [-2.7, 0.3, 2.7], "charge": [1, 1, -1]}
    out = together.sample(table, seed=0)
    assert out["in_domain"].tolist() == [False, True, False]
    key = keys.make_keys([np.arange(3)])
    for row, place in ((0, (1, 2)), (2, (-1, 2))):
        own = {"p_gev": [4.0], "eta": [table["eta"][row]]}
        assert out["x"][row] == simulators[place].sample(own, seed=0, key=key[[row]])["x"][0]
    inside = together.inside(table)
    assert inside["abs(eta)"].tolist() == [False, True, False]
    assert inside["charge"].all()
    assert together.count_outside(table)["abs(eta)"] == 2
    third = together.sample({"p_gev": [4.0], "eta": [0.3], "charge": [0]}, seed=0)
    assert not third["in_domain"][0]
    assert np.isfinite(third["x"][0])


def test_all_that_is_told_outside_is_what_the_flag_says(whole):
    together, _ = whole
    arrays = conditions(2000, most=3.5)
    arrays["P"][:50] = 60_000.0
    table, key = table_of(arrays)
    flag = together.sample(table, seed=0, key=key)["in_domain"]
    inside = together.inside(table)
    assert np.array_equal(flag, np.logical_and.reduce([*inside.values()]))
    assert not inside["p_gev"][:50].any()


def test_a_combination_that_no_slice_has():
    simulators = six()
    del simulators[1, 2]
    together = merged(simulators)
    inside = together.inside({"p_gev": [4.0, 4.0], "eta": [2.0, 2.0], "charge": [1, -1]})
    assert inside["charge"].all()
    assert inside["abs(eta)"].all()
    assert inside[COMBINATION].tolist() == [False, True]


def test_log_prob_is_that_of_the_slice():
    simulators = six()
    together = merged(simulators)
    table, key = table_of(conditions(most=2.4))
    events = {name: together.sample(table, seed=1, key=key)[name] for name in ("x", "k")}
    values = together.log_prob(table | events)
    for number, part in enumerate(together.parts):
        rows = np.flatnonzero(together._placed(table).part == number)
        own = {name: array[rows] for name, array in (table | events).items() if name != "charge"}
        assert np.array_equal(values[rows], part.simulator.log_prob(own))
    assert together.has_likelihood


def test_a_part_without_likelihood_is_named(whole):
    together, _ = whole
    assert not together.has_likelihood
    with pytest.raises(ConfigError, match=r"charge = -1, abs\(eta\) in .*: a CramerGAN has no likelihood, expected"):
        together.log_prob({})


def test_columns_say_what_the_slices_need(whole):
    together, _ = whole
    columns = together.columns
    assert [*columns.context] == ["p_gev", "eta", "charge"]
    assert columns.context_columns["charge"].categories == [-1, 1]
    assert columns.cut.startswith("P > 500 && (charge == -1 && 0.0 <= abs(eta)")
    assert columns.cut.count("||") == 5
    domain = np.array(together.spec["domain"])
    assert domain.shape == (len(columns.context_names), 2)
    assert domain[1, 0] < -2.4
    with pytest.warns(UserWarning, match="the training sample had 'eta' from -2"):
        warn_of_outside("f", 8, 9, {"eta": 8}, together)


def test_saved_and_loaded(whole, tmp_path):
    together, _ = whole
    together.save(tmp_path / "map.ckpt")
    again = load_simulator(tmp_path / "map.ckpt")
    assert isinstance(again, SimulatorMap)
    assert again.spec == together.spec
    table, key = table_of(conditions())
    for name, values in together.sample(table, seed=2, key=key).items():
        assert np.array_equal(again.sample(table, seed=2, key=key)[name], values)
    again.save(tmp_path / "again.ckpt")
    assert SimulatorMap.load(tmp_path / "again.ckpt").spec == together.spec
    assert torch.load(tmp_path / "map.ckpt", weights_only=True).keys() == {"calorefine_map", "parts"}


def test_provenance_of_all_parts(whole):
    together, simulators = whole
    told = together.spec["provenance"]
    assert [part["name"] for part in told["parts"]] == [str(place) for place in simulators]
    assert all(part["sha256"] == "0" * 64 for part in told["parts"])
    assert [part["cut"] for part in told["parts"]] == [cut_of(*place) for place in simulators]
    assert told["parts"][0]["slice"]["charge"] == {"low": -1.0, "high": -1.0, "with_low": True, "with_high": True}
    assert (told["n_train"], told["tree"], told["by"]) == (1800, "events", BY)
    assert told["n_eff"] == pytest.approx(1200, rel=0.05)
    assert told["weights_dof"] == pytest.approx(300, rel=0.05)


def change(path, edit):
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)
    return path


def spoil(content):
    next(t for t in content["parts"][3]["state_dict"].values() if t.is_floating_point()).view(-1)[0] = torch.nan


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["calorefine_map"].update(format=9), "holds a map in format 9, expected format 1"),
        (lambda c: c["calorefine_map"].pop("by"), "entry 'by' is missing"),
        (lambda c: c["calorefine_map"].update(by=["no such("]), "can't be rebuilt, the map is damaged or was changed"),
        (lambda c: c["parts"].pop(), "can't be rebuilt"),
        (lambda c: c["parts"][1].pop("state_dict"), "entry 'state_dict' is missing"),
        (spoil, "numbers that are NaN"),
        (lambda c: c["calorefine_map"]["parts"][0]["slice"]["charge"].update(low=float("nan")), "can't be rebuilt"),
        (lambda c: c["calorefine_map"]["parts"][0]["slice"].pop("charge"), "entry 'charge' is missing"),
        (lambda c: c["calorefine_map"]["parts"][0].update(slice=c["calorefine_map"]["parts"][1]["slice"]), "overlap"),
    ],
)
def test_changed_files_are_refused(tmp_path, edit, message):
    merged(six()).save(tmp_path / "map.ckpt")
    with pytest.raises(CheckpointError, match=message):
        load_simulator(change(tmp_path / "map.ckpt", edit))


def test_damaged_and_other_files(tmp_path):
    together = merged(six())
    together.save(tmp_path / "map.ckpt")
    content = (tmp_path / "map.ckpt").read_bytes()
    tensor = max(together.parts[2].simulator.model.state_dict().values(), key=torch.numel)
    at = content.index(tensor.numpy().tobytes()) + 40
    (tmp_path / "map.ckpt").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(CheckpointError, match=r"map\.ckpt: damaged: '.*' in it differs from its checksum"):
        load_simulator(tmp_path / "map.ckpt")
    (tmp_path / "map.ckpt").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"map\.ckpt: not a readable checkpoint"):
        load_simulator(tmp_path / "map.ckpt")
    (tmp_path / "map.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"holds a map of simulators, expected one; calorefine\.load_simulator"):
        Simulator.load(tmp_path / "map.ckpt")
    together.parts[0].simulator.save(tmp_path / "one.ckpt")
    assert isinstance(load_simulator(tmp_path / "one.ckpt"), Simulator)
    with pytest.raises(CheckpointError, match=r"one\.ckpt: holds a single simulator, expected a map"):
        SimulatorMap.load(tmp_path / "one.ckpt")
    with pytest.raises(CheckpointError, match=r"mapp\.ckpt: no such checkpoint.*did you mean '.*map\.ckpt'"):
        load_simulator(tmp_path / "mapp.ckpt")


def two(first, second, by=("abs(eta)",)):
    """Map of two simulators with these options."""
    return merged({"a.ckpt": simulator("Flow", **first), "b.ckpt": simulator("Flow", seed=1, **second)}, by)


BARREL, ENDCAP = {"cut": "abs(eta) < 0.8"}, {"cut": "abs(eta) >= 0.8 && P > 1", "eta": (0.8, 1.5)}
OTHER = replace(COLUMNS, features={"x": Column(unit="GeV"), "k": Column(transform="integer")})
NAMED = replace(COLUMNS, features={"y": None, "k": Column(transform="integer")})


@pytest.mark.parametrize(
    ("second", "by", "message"),
    [
        (
            {"cut": "abs(eta) > 0.5"},
            ["abs(eta)"],
            r"'a.ckpt' \(abs\(eta\) in \(-inf, 0.8\)\) and 'b.ckpt' .*overlap",
        ),
        (
            {"cut": "P > 1"},
            ["abs(eta)"],
            r"b.ckpt: .* the cut 'P > 1', which doesn't compare 'abs\(eta\)'",
        ),
        ({}, ["abs(eta)"], r"b.ckpt: was trained with no cut, and 'abs\(eta\)' is no column of its context"),
        ({"cut": "abs(eta) < 0.8 || P > 3"}, ["abs(eta)"], "b.ckpt: cut .* which is no one interval"),
        ({"cut": "abs(eta) != 1"}, ["abs(eta)"], "which is no one interval"),
        ({"cut": "abs(eta) < 1 && abs(eta) > 2"}, ["abs(eta)"], r"lets no value of 'abs\(eta\)' pass"),
        (
            ENDCAP | {"columns": OTHER},
            ["abs(eta)"],
            "b.ckpt: feature 'x': unit 'GeV' found, expected None as",
        ),
        (ENDCAP | {"columns": NAMED}, ["abs(eta)"], r"b.ckpt: features \['y', 'k'\] found, expected \['x', 'k'\]"),
        (ENDCAP | {"key": ["event"]}, ["abs(eta)"], r"b.ckpt: key \['event'\] found, expected \['run', 'event'\]"),
        (ENDCAP, [], "by: nothing found, expected expressions"),
        (ENDCAP, ["abs(eta)", "abs(eta)"], r"by: 'abs\(eta\)' found 2 times"),
        (ENDCAP, ["abs(x)"], r"by: 'abs\(x\)' needs 'x', which is generated"),
        (ENDCAP, ["abs(eta"], "by: expression 'abs.eta' can't be parsed"),
        (ENDCAP, ["1 + 1"], "is the same for all rows"),
    ],
)
def test_what_does_not_go_together(second, by, message):
    with pytest.raises(ConfigError, match=message):
        two(BARREL, second, by)


def test_other_context_is_refused():
    fewer = replace(COLUMNS, context={"p_gev": Column("P", branch_unit="MeV")})
    with pytest.raises(ConfigError, match=r"b.ckpt: context \['p_gev'\] found, expected \['p_gev', 'eta'\]"):
        two(BARREL, ENDCAP | {"columns": fewer})


def test_conditions_that_can_not_be(whole):
    together, _ = whole
    good = {"p_gev": [2.0, 3.0], "eta": [0.1, 0.2], "charge": [1, -1]}
    with pytest.raises(ConfigError, match="column 'charge' is missing; did you mean 'Charge'"):
        together.sample({"p_gev": [2.0], "eta": [0.1], "Charge": [1]}, seed=0)
    with pytest.raises(ValueRangeError, match="context 'eta': 1 of 2 values are NaN"):
        together.sample(good | {"eta": [np.nan, 0.1]}, seed=0)
    with pytest.raises(ConfigError, match="n_per_event: 0 found"):
        together.sample(good, seed=0, n_per_event=0)
    with pytest.raises(ConfigError, match="key: 3 keys found for 2 conditions"):
        together.sample(good, seed=0, key=np.arange(3, dtype=np.uint64))
    none = together.sample({name: [] for name in good}, seed=0)
    assert {name: values.shape for name, values in none.items()} == {"x": (0,), "k": (0,), "in_domain": (0,)}


def test_slices_by_the_range_of_the_training():
    """A column of the context that no cut compares with a number; gaps between the ranges are in no slice."""
    simulators = {"low": simulator("Flow", eta=(0.2, 0.8)), "high": simulator("Flow", seed=1, eta=(1.0, 1.5))}
    for one in simulators.values():  # one side only
        assert one.columns.cut is None
    pairs = {"pt": {"low": (1, 4), "high": (6, 9)}}
    domains = {name: np.array([pairs["pt"][name], (-1.5, 1.5)], float) for name in simulators}
    for name, one in simulators.items():
        one.domain = domains[name]
    together = merged(simulators, ["p_gev"])
    values = np.array([1.0, 4.0, np.nextafter(4.0, 5), 5.0, 6.0, 9.0, 9.1])
    out = together.inside({"p_gev": values, "eta": np.full(7, 0.5)})
    assert out["p_gev"].tolist() == [True, True, True, False, True, True, False]
    assert [*together.columns.context] == ["p_gev", "eta"]
    assert str(together.parts[0]) == "p_gev in (1, 4)"


def test_slices_by_categories_of_the_context():
    context = {**COLUMNS.context, "charge": Column(categories=[-1, 1])}
    simulators = {}
    for number, charge in enumerate((-1, 1)):
        one = simulator("Flow", seed=number)
        one.columns = replace(COLUMNS, context=context)
        one.domain = np.vstack([one.domain, [[charge < 0] * 2, [charge > 0] * 2]])
        simulators[str(charge)] = one
    together = merged(simulators, ["charge"])
    assert [part.slice["charge"].point for part in together.parts] == [-1, 1]
    assert [*together.columns.context] == [*context]


def test_a_cut_in_the_file_s_units():
    simulators = {
        "low": simulator("Flow", cut="P < 4000 && P > 100"),
        "high": simulator("Flow", seed=1, cut="4000 <= P"),
    }
    together = merged(simulators, ["p_gev"])
    assert [str(part) for part in together.parts] == ["p_gev in (0.1, 4)", "p_gev in [4, inf)"]


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("2 > abs(eta) && tight", Interval(high=2)),
        ("(abs(eta) > 1) & (abs(eta) <= 2) & tight", Interval(1, 2, with_high=True)),
        ("1 < abs(eta) < 2 && 1.2 <= abs(eta)", Interval(1.2, 2, with_low=True)),
        ("abs(eta) == 3 / 2", Interval(1.5, 1.5, with_low=True, with_high=True)),
        ("abs(eta) > -1e-3 && (p > 1 || q > 2)", Interval(-0.001)),
        ("eta < 2 && count(jet_pt > 20) > 1", None),
        ("flags & 4", None),
    ],
)
def test_intervals_of_cuts(cut, expected):
    assert interval_of(cut, "abs( eta )") == expected


def test_any_of_cuts():
    assert any_of(["a > 1", None]) is None
    assert any_of(["a > 1", "a > 1"]) == "a > 1"
    assert any_of(["a > 1", "a > 1 && b > 2"]) == "a > 1"
    assert any_of(["`K-pt` > 1 && (b > 2 || c)", "d"]) == "`K-pt` > 1 && (b > 2 or c) || d"
    many = any_of([f"p > 3 && n == {k}" for k in range(40)])
    assert many == "p > 3"


def test_one_of_the_ends_belongs_to_one_slice():
    together = two(BARREL, ENDCAP)
    values = np.array([0.8, np.nextafter(0.8, 0), -0.8, 0.79])
    assert together._placed({"p_gev": np.ones(4), "eta": values}).part.tolist() == [1, 0, 1, 0]
    assert [*together.columns.context] == ["p_gev", "eta"]
    assert together.columns.cut == "abs(eta) < 0.8 || abs(eta) >= 0.8 && P > 1"
