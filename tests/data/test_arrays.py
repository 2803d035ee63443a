"""Array columns: one entry of the configuration, one fixed-size branch, and no work that grows as their square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import uproot
import yaml

from calorefine import Column, Columns, EventDataModule, Events, Simulator, keys
from calorefine.cli import calorefine
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.module import Prepared
from calorefine.data.preprocessing import Preprocessing
from calorefine.errors import BranchError, CheckpointError, ConfigError, ValueRangeError
from calorefine.fit.command import lightning
from calorefine.models import MODELS
from calorefine.weights import PositiveWeights

SHAPE, DEAD = (12, 42), 7


def showers(n, *, seed=0):
    """Cells (n, 12, 42) that share an energy, most of them 0 and one dead, with energy and weight of the event."""
    rng = np.random.default_rng(seed)
    energy = rng.uniform(10, 100, n)
    hit = rng.random((n, *SHAPE)) < rng.uniform(0.1, 0.8, SHAPE)
    cells = np.where(hit, energy[:, None, None] * rng.gamma(2, 0.01, (n, *SHAPE)), 0).astype(np.float32)
    cells[:, 0, DEAD] = 0
    key = {"run": np.ones(n, np.uint32), "event": np.arange(n, dtype=np.uint64)}
    return {"cells": cells, "energy": energy, "width": rng.normal(3, 1, n), "w": rng.normal(0.5, 1, n), **key}


def write(path, arrays):
    with uproot.recreate(path) as file:
        file.mktree("events", {k: np.dtype((v.dtype, v.shape[1:])) for k, v in arrays.items()}).extend(arrays)
    return path


COLUMNS = Columns(
    {"width": None, "cells": Column(shape=list(SHAPE), bounds=(0, None))}, {"energy": None}, ["run", "event"]
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data module over 1500 showers, set up."""
    path = write(tmp_path_factory.mktemp("showers") / "showers.root", showers(1500))
    made = EventDataModule(files=str(path), tree="events", columns=COLUMNS, weights="w")
    made.setup()
    return made


def test_one_entry_is_many_columns():
    columns = Columns({"a": None, "b": Column(shape=[2, 2]), "c": None}, {})
    assert columns.feature_names == ["a", "b[0,0]", "b[0,1]", "b[1,0]", "b[1,1]", "c"]
    assert columns.slices == {"a": slice(0, 1), "b": slice(1, 5), "c": slice(5, 6)}
    assert columns.n_features == 6
    table = {"a": np.arange(3.0), "b": np.arange(12.0).reshape(3, 2, 2), "c": np.arange(3.0) + 7}
    x = columns.encode_features(table)
    assert (x.shape, x.dtype) == ((3, 6), np.float32)
    for name, values in columns.decode_features(x).items():
        np.testing.assert_array_equal(values, table[name])
    with pytest.raises(ValueRangeError, match=r"feature 'b': \(3,\) numbers in each event found, expected \(2, 2\)"):
        columns.encode_features(table | {"b": np.zeros((3, 3))})
    assert Columns.from_dict(columns.to_dict()) == columns


def test_description_without_shape_is_a_scalar():
    stored = Columns({"a": None}, {}).to_dict()
    del stored["features"]["a"]["shape"]
    assert Columns.from_dict(stored).feature_names == ["a"]


@pytest.mark.parametrize("shape", [[], [0], [3, -1]])
def test_shapes_that_can_not_be(shape):
    with pytest.raises(ConfigError, match=r"feature 'b': shape \[.*\] found, expected positive numbers"):
        Columns({"b": Column(shape=shape)}, {})


def test_context_is_scalar():
    with pytest.raises(ConfigError, match=r"context 'b': shape \[3\] given; only features can be arrays"):
        Columns({"a": None}, {"b": Column(shape=[3])})


def test_branch_of_another_shape(tmp_path):
    path = write(tmp_path / "flat.root", showers(50) | {"cells": np.zeros((50, 9), np.float32)})
    with pytest.raises(BranchError, match=r"cells.*9 numbers per event, expected 504"):
        EventDataModule(files=str(path), tree="events", columns=COLUMNS).setup()


def test_cells_are_standardized_one_by_one_and_scalars_whitened(data):
    """Moments of the dequantized cells within 5 standard errors (1e-3 by chance over 504 cells; seed 0).

    They come back but for the few that are clipped.
    """
    features = data.prepared.features
    assert features.mixing.shape == (2, 1)
    assert features.scalars.tolist() == [0]
    train, noise = data.network_events, torch.Generator().manual_seed(0)
    spread = features.dequantize(train.x, noise)
    weight = train.weight / train.weight.sum()
    error = (weight.square().sum()).sqrt()
    alive = torch.arange(505) != 1 + DEAD
    assert ((weight @ spread)[alive].abs() < 5 * error).all()
    assert ((weight @ spread.square() - 1)[alive].abs() < 10 * error).all()
    back = features.inverse(spread).numpy()
    np.testing.assert_array_equal(back == 0, data.train.x == 0)
    assert np.isclose(back, data.train.x, rtol=1e-3).mean() > 0.9999


def test_dead_cell_stays_what_it_is(data):
    features = data.prepared.features
    u = torch.randn(200, 505, generator=torch.Generator().manual_seed(1)) * 4
    made = features.inverse(u)
    assert (made[:, 1 + DEAD] == 0).all()
    assert torch.isfinite(made).all()
    assert (made[:, 1:] >= 0).all()
    low, high = features.intervals(made)
    assert (low[:, 1 + DEAD] < high[:, 1 + DEAD]).all()
    made[0, 1 + DEAD] = 1.0
    assert torch.isinf(features.intervals(made)[:, 0, 1 + DEAD]).all()


def test_cells_are_mapped_as_scalars_are(data):
    """Knots of a cell are those of a scalar of the same values."""
    features, train = data.prepared.features, data.train
    for j in (1, 200, 504):
        alone = ColumnTransforms().fit_columns(train.x[:, [j]], train.weight, ["quantile"], ["c"], bounds=[(0, None)])
        for part in ("knots", "slopes", "bounds"):
            assert torch.equal(getattr(alone, part)[0], getattr(features, part)[j])


@pytest.mark.parametrize("kind", ["standard", "integer"])
def test_other_transforms_of_cells(kind):
    rng = np.random.default_rng(3)
    x = rng.poisson(2, (2000, 30)).astype(np.float32)
    x[:, 4] = 3
    fitted = ColumnTransforms().fit_described(x, np.ones(2000), {"n": Column(shape=[30], transform=kind)})
    u = fitted(torch.from_numpy(x))
    np.testing.assert_allclose(fitted.inverse(u).numpy(), x, atol=1e-5)
    spread = fitted.dequantize(u, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(fitted.inverse(spread).numpy(), x, atol=1e-5)
    assert (fitted.inverse(3 * torch.randn(500, 30))[:, 4] == 3).all()


def test_constant_scalar_beside_an_array_is_an_error():
    x = np.ones((20, 3), np.float32)
    with pytest.raises(ValueRangeError, match="column 'a': all 20 values are 1, expected it to vary"):
        ColumnTransforms().fit_described(x, np.ones(20), {"a": Column(), "b": Column(shape=[2])})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_save_load_sample_gives_the_same_bits(name, tmp_path):
    """With four cells and a scalar; seed of data and networks."""
    rng, n = np.random.default_rng(2), 300
    columns = Columns({"cells": Column(shape=[2, 2]), "a": None}, {"p": None})
    x = np.where(rng.random((n, 5)) < 0.3, 0, rng.gamma(2, 1, (n, 5))).astype(np.float32)
    context, weight, key = rng.random((n, 1)).astype(np.float32), rng.random(n), keys.make_keys([np.arange(n)])
    events = Events(x, context, weight, key, key)
    torch.manual_seed(2)
    made = MODELS[name]()
    features = ColumnTransforms().fit_described(x, weight, columns.feature_columns)
    maps = features, ColumnTransforms().fit_described(context, weight, columns.context_columns)
    made.prepare(Prepared(columns, *maps, np.array([[0.0, 1.0]]), float(weight.mean()), {}))
    made.take_events(events)
    simulator = Simulator(made, made.spec)
    simulator.save(tmp_path / "model.ckpt")
    again = Simulator.load(tmp_path / "model.ckpt")
    first, second = (one.sample({"p": np.linspace(0, 1, 64)}, seed=1) for one in (simulator, again))
    assert first["cells"].shape == (64, 2, 2)
    assert first["a"].shape == (64,)
    for part, values in first.items():
        np.testing.assert_array_equal(values, second[part])


def test_a_flow_tells_what_it_can_not_integrate():
    """Many empty cells at once have a probability, but a lattice of 256 points can't find it."""
    rng, n = np.random.default_rng(3), 300
    columns = Columns({"cells": Column(shape=[20])}, {})
    x = np.where(rng.random((n, 20)) < 0.3, rng.gamma(2, 1, (n, 20)), 0).astype(np.float32)
    features = ColumnTransforms().fit_described(x, np.ones(n), columns.feature_columns)
    nothing = ColumnTransforms().fit_described(np.zeros((n, 0)), np.ones(n), {})
    flow = MODELS["Flow"]()
    flow.prepare(Prepared(columns, features, nothing, np.zeros((0, 2)), 1.0, {}))
    few = np.where(np.arange(20) < 10, 0, 1.5).astype(np.float32)[None]
    assert np.isfinite(Simulator(flow, flow.spec).log_prob({"cells": few})).all()
    with pytest.raises(
        ConfigError, match="an event with 20 features that are atoms or integers found, expected at most 10"
    ):
        Simulator(flow, flow.spec).log_prob({"cells": np.zeros((1, 20), np.float32)})


def test_an_outlier_does_not_set_the_width_of_its_cell():
    """Rare hits with a long tail: where no value is beyond |z| = 8, mean and width of z stay of order 1."""
    rng, n = np.random.default_rng(4), 20_000
    x = np.where(rng.random((n, 20)) < 0.003, rng.lognormal(0, 2.5, (n, 20)), 0).astype(np.float32)
    fitted = ColumnTransforms().fit_described(x, np.ones(n), {"cells": Column(shape=[20], bounds=(0, None))})
    assert fitted.scales[1].max() < 3


def test_verbs_on_weights_take_the_sum_of_the_cells(tmp_path):
    """`calorefine splot` tests the sum, and `calorefine weights-report` shows it."""
    rng, n = np.random.default_rng(5), 4000
    signal = rng.random(n) < 0.4
    m = np.where(signal, rng.normal(5, 0.3, n), rng.exponential(4, n)).astype(np.float64)
    table = {"m": m, "cells": rng.gamma(2, 1, (n, 6)).astype(np.float32), "run": np.ones(n, np.uint32)}
    path = write(tmp_path / "toy.root", table | {"event": np.arange(n, dtype=np.uint64)})
    columns = {"features": {"cells": {"shape": [6]}}, "context": {}, "key": ["run", "event"]}
    species = {"signal": {"class_path": "Gaussian"}, "background": {"class_path": "Exponential"}}
    splot = {"spectator": "m", "range": [3.0, 7.0], "species": species}
    common = {"tree": "events", "columns": columns}
    config = {**common, "files": str(path), "output": str(tmp_path / "sw.root"), "splot": splot}
    (tmp_path / "splot.yaml").write_text(yaml.safe_dump(config))
    assert "sum of cells" in str(calorefine(["splot", "-c", str(tmp_path / "splot.yaml")]))
    output = str(tmp_path / "w.html")
    report = {**common, "files": config["output"], "output": output, "weights": {"signal": "sw_signal"}}
    (tmp_path / "report.yaml").write_text(yaml.safe_dump(report))
    assert "sum of cells" in calorefine(["weights-report", "-c", str(tmp_path / "report.yaml")]).columns


def test_positive_weights_see_the_sum_of_the_cells(data):
    """Sums of weights and of weights times the energy in the cells are kept; the cells make no product."""
    train = data.train
    few = Events(train.x[:, :40], train.context, train.weight, train.key, train.event_key)
    names = [*COLUMNS.feature_names[:40], "energy"]
    result = PositiveWeights(n_folds=2, bounds=None).fit(few, names=names, arrays={"cells": slice(1, 40)})
    assert list(result.columns) == ["width", "sum of cells", "energy"]
    assert result.sum_factor == pytest.approx(1)
    assert abs(result.columns["sum of cells"].pull) < 1
    mean = np.average(few.x[:, 1:].sum(axis=1), weights=few.weight)
    assert result.columns["sum of cells"].mean_before == pytest.approx(mean, rel=1e-5)


class Centered(Preprocessing):
    """Mean 0 and width 1 of each column: what a user may write."""

    def __init__(self, least: float = 1e-3) -> None:
        super().__init__()
        self.least = least

    def fit(self, events, columns):  # noqa: ARG002
        values, weight = events.x, events.weight
        mean = np.average(values, axis=0, weights=weight)
        width = np.maximum(np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight)), self.least)
        return self.restore({name: torch.from_numpy(a).float() for name, a in (("mean", mean), ("width", width))})

    def forward(self, x, context):  # noqa: ARG002
        return (x.float() - self.mean) / self.width

    def inverse(self, u, context):  # noqa: ARG002
        return self.mean + u * self.width

    @property
    def n_columns(self):
        return len(self.mean)


@pytest.mark.parametrize("name", [name for name in sorted(MODELS) if name != "Flow"])
def test_preprocessing_of_ones_own(data, tmp_path, name):
    module = EventDataModule(
        files=[str(path) for path in data.source.paths], tree="events", columns=COLUMNS, preprocessing=Centered(0.5)
    )
    module.setup()
    made = MODELS[name]()
    made.set_up(module)
    simulator = Simulator(made, made.spec)
    simulator.save(tmp_path / "model.ckpt")
    again = Simulator.load(tmp_path / "model.ckpt")
    assert isinstance(again.model.features, Centered)
    assert again.model.features.least == 0.5
    context = {"energy": np.linspace(20, 80, 50)}
    np.testing.assert_array_equal(simulator.sample(context, seed=1)["cells"], again.sample(context, seed=1)["cells"])


def test_preprocessing_that_is_not_known_is_refused():
    state = {"mean": torch.zeros(1), "width": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"'Centred' is not known; did you mean 'Centered'.*import the module"):
        Preprocessing.from_dict({"name": "Centred", "init_args": {}}, state, COLUMNS)
    with pytest.raises(ConfigError, match=r"'ColumnTransforms': .*column_transforms and elsewhere define it"):
        type("ColumnTransforms", (Centered,), {"__module__": "elsewhere"})


def test_from_one_configuration_to_a_sample(tmp_path):
    """504 cells as one column: set-up, one epoch of the WGAN, sampling."""
    path = write(tmp_path / "showers.root", showers(2000) | {"cells": showers(2000)["cells"].reshape(-1, 504)})
    features = {"cells": {"shape": [504], "bounds": [0, None]}}
    columns = {"features": features, "context": {"energy": None}, "key": ["run", "event"]}
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False}
    config = {
        "data": {"files": str(path), "tree": "events", "columns": columns, "weights": "w"}
        | {"preprocessing": {"class_path": "ColumnTransforms"}},
        "model": {"class_path": "WGAN"},
        "trainer": trainer,
    }
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(config))
    run = lightning(["fit", "-c", str(tmp_path / "cells.yaml"), "--runs", str(tmp_path / "runs")])
    checkpoint, output = run.run_dir / "checkpoints" / "last.ckpt", tmp_path / "sample.root"
    given = ["--checkpoint", str(checkpoint), "--conditions", str(path), "--output", str(output)]
    calorefine(["sample", *given, "--seed", "3"])
    with uproot.open(output) as file:
        assert file["events"]["cells"].typename == "float[504]"
        cells = file["events"]["cells"].array(library="np")
    assert cells.shape == (2000, 504)
    assert np.isfinite(cells).all()
    assert (cells >= 0).all()
    assert (cells[:, DEAD] == 0).all()
    again = Simulator.load(checkpoint).sample(
        {"energy": showers(2000)["energy"]}, seed=3, key=keys.make_keys([np.ones(2000, np.uint32), np.arange(2000)])
    )
    np.testing.assert_array_equal(again["cells"], cells)
