"""Columns: expressions, units, categories; and events as the data module reads and splits them."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine import Column, Columns, EventDataModule, Simulator
from calorefine.errors import BranchError, ConfigError, KeyWarning, ValueRangeError, WeightError
from calorefine.events import Events, unknown_columns
from calorefine.io.chunks import Request
from calorefine.io.root import RootFiles
from calorefine.io.table import read_table


def columns(context, **options):
    return Columns({"x": Column()}, context, ["run", "event"], **options)


@pytest.mark.parametrize(
    ("name", "column", "factor"),
    [
        ("p_gev", Column("P", branch_unit="MeV"), 1e-3),
        ("p_gev", Column("P", branch_unit="GeV"), 1),
        ("p_gev", Column("P"), 1),
        ("p", Column("P", unit="GeV", branch_unit="TeV"), 1e3),
        ("width_mm", Column("P", branch_unit="cm"), 10),
        ("angle_deg", Column("P", branch_unit="mrad"), 0.18 / np.pi),
        ("t_ns", Column("P", branch_unit="ps"), 1e-3),
        ("p_mev", Column("P + 1", branch_unit="GeV"), 1e3),
    ],
)
def test_units(root_file, toy, name, column, factor):
    arrays = toy(20)
    request = Request(columns({name: column}).expressions("context"), ["run", "event"])
    table, *_ = read_table(RootFiles(root_file(arrays), "events"), request)
    expected = (arrays["P"] + (column.expression == "P + 1")) * factor
    np.testing.assert_allclose(table[name], expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("p_gev", Column(unit="MeV"), "column 'p_gev': its name says GeV, its unit says MeV"),
        ("p_gev", Column(branch_unit="mev"), "can't convert from mev to GeV; did you mean 'MeV'"),
        ("p_gev", Column(branch_unit="mm"), "can't convert from mm to GeV"),
        ("p", Column(branch_unit="MeV"), "column 'p': can't convert from MeV to None"),
        ("p", Column(unit="Gev", branch_unit="MeV"), "can't convert from MeV to Gev; did you mean 'GeV'"),
        ("q", Column(categories=[1]), "context 'q': expected at least two distinct categories"),
        ("q", Column(categories=[1, 1]), "context 'q': expected at least two distinct categories"),
        ("x", Column(), r"\['x'\] are both features and context"),
    ],
)
def test_columns_that_can_not_be(name, column, message):
    with pytest.raises(ConfigError, match=message):
        columns({name: column})


def test_descriptions_that_can_not_be():
    with pytest.raises(ConfigError, match="no feature given"):
        Columns({}, {"p": None})
    with pytest.raises(ConfigError, match="feature 'q' is categorical; only context"):
        Columns({"q": Column(categories=[1, 2])}, {})
    with pytest.raises(ConfigError, match="'candidate' needs 'key' branches"):
        Columns({"x": None}, {}, candidate="n")
    with pytest.raises(ConfigError, match="--context: 'momentum' is no column; did you mean 'moment'"):
        unknown_columns(["moment", "momentum"], ["moment", "charge"], option="--context")


def test_description_survives_the_checkpoint():
    made = columns({"p_gev": Column("P", branch_unit="MeV"), "q": Column(categories=[-1, 1])}, cut="x > 0")
    again = Columns.from_dict(made.to_dict())
    assert again == made
    assert again.expressions("features", "context") == made.expressions("features", "context")


def test_categories_become_one_column_each():
    made = columns({"q": Column(categories=[1, -1]), "p": None, "pdg": Column(categories=[1000010020, 1000010030])})
    table = {"p": [0.5, 1.5], "q": np.float32([-1, 1]), "pdg": np.array([1000010030, 1000010020])}
    encoded = made.encode_context({name: np.asarray(values) for name, values in table.items()})
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[0, 1, 0.5, 0, 1], [1, 0, 1.5, 1, 0]]
    assert made.context_names == ["q=1", "q=-1", "p", "pdg=1000010020", "pdg=1000010030"]


def test_unknown_categories_are_counted_and_named():
    made = columns({"q": Column(categories=[-1, 1])})
    table = {"q": np.array([1, 0, 3, 0])}
    with pytest.raises(ValueRangeError, match=r"context 'q': 3 of 4 events have values \[0, 3\].*categories \[-1, 1\]"):
        made.encode_context(table)
    assert made.encode_context(table, strict=False).tolist() == [[0, 1], [0, 0], [0, 0], [0, 0]]


def test_take():
    parts = [np.arange(6.0).reshape(3, 2), np.zeros((3, 0)), np.arange(3.0), np.arange(3), np.arange(3)]
    taken = Events(*parts).take(np.array([True, False, True]))
    assert len(taken) == 2
    assert taken.x.tolist() == [[0, 1], [4, 5]]


@pytest.fixture
def module(root_file, toy, toy_data):
    """Function that makes a data module over toy events with changed branches."""

    def make(changed=None, n=400, tree_format="ttree", **options):
        path = root_file(toy(n) | (changed or {}), "data.root", tree_format=tree_format)
        options = {"columns": toy_data.columns, "weights": "w"} | options
        return EventDataModule(files=str(path), tree="events", **options)

    return make


def test_reading_events(module, toy, tree_format):
    events, arrays = module(tree_format=tree_format).read(), toy(400)
    assert (events.x.dtype, events.context.dtype, events.weight.dtype) == (np.float32, np.float32, np.float64)
    assert np.array_equal(events.x, np.stack([arrays["x"], arrays["k"]], axis=1).astype(np.float32))
    np.testing.assert_allclose(events.context[:, 0], arrays["P"] / 1000, rtol=1e-6)
    assert np.array_equal(events.context[:, 1:], arrays["charge"][:, None] == [-1, 1])
    assert np.array_equal(events.weight, arrays["w"])
    assert len(np.unique(events.key)) == 400


def test_weights_from_nothing_a_branch_or_an_expression(module, toy):
    w, k = toy(400)["w"], toy(400)["k"]
    assert np.array_equal(module(weights="none").read().weight, np.ones(400))
    assert np.array_equal(module(weights="w").read().weight, w)
    np.testing.assert_allclose(
        module(weights="where(k > 1, w * 2, 1 - w)").read().weight, np.where(k > 1, w * 2, 1 - w)
    )
    assert np.array_equal(module(weights="k > 1").read().weight, k > 1)
    with pytest.raises(
        BranchError,
        match=r"data\.root, tree 'events': there is no branch 'W'; did you mean 'w'\? \(asked for by the weight",
    ):
        module(weights="W").read()


@pytest.mark.parametrize("weights", ["w - w", "-w", "0"])
def test_weights_that_sum_to_zero_or_less(module, weights):
    with pytest.raises(WeightError, match=r"data\.root.*weights '.*': the weights of 400 events sum to .*positive sum"):
        module(weights=weights).read()


def test_nonfinite_weights_are_found(module, toy):
    weight = toy(400)["w"]
    weight[3] = np.nan
    with pytest.raises(ValueRangeError, match="NaN or infinite values in 1 rows"):
        module({"w": weight}).read()


def test_unknown_category_in_training_data(module, toy):
    charge = toy(400)["charge"]
    charge[:3] = 0
    with pytest.raises(ValueRangeError, match="context 'charge': 3 of 400 events"):
        module({"charge": charge}).read()


def test_memory_mapped_events_are_the_same(module, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    inside, mapped = module(), module(max_memory_gb=0, cache_dir=str(cache))
    inside.setup()
    mapped.setup()
    assert list(cache.iterdir()) == []
    assert inside.prepared.provenance == mapped.prepared.provenance
    for one, other in zip(inside._train_set.events, mapped._train_set.events, strict=True):
        assert np.array_equal(one, other)


def test_candidates_of_an_event_stay_together_with_noise_of_their_own(module, one_checkpoint):
    changed = {"event": np.arange(400) // 2, "candidate": np.arange(400) % 2}
    events = module(changed, columns=columns({"P": None}, candidate="candidate"))
    train, validation = events.split(events.read())
    assert len(train) + len(validation) == 400
    assert not set(train.event_key) & set(validation.event_key)
    assert len(np.unique(train.event_key)) == len(train) / 2
    context = {"p_gev": np.full(len(train), 3.0), "charge": np.ones(len(train))}
    x = Simulator.load(one_checkpoint).sample(context, seed=0, key=train.key)["x"]
    assert len(np.unique(x)) > 0.95 * len(train)


def test_split_goes_by_event_whatever_the_order_of_files(module, toy):
    events = module()
    train, validation = events.split(events.read())
    order = np.random.default_rng(4).permutation(400)
    shuffled = module({name: array[order] for name, array in toy(400).items()})
    other_train, other_validation = shuffled.split(shuffled.read())
    assert set(train.key) == set(other_train.key)
    assert set(validation.key) == set(other_validation.key)


def test_keys_by_row_warn(module, toy_data):
    by_row = Columns(toy_data.columns.features, toy_data.columns.context)
    with pytest.warns(KeyWarning, match=r"data\.root, tree 'events': no key branches given"):
        module(columns=by_row).read()
