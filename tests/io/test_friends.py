"""Friends: branches of the same events in other files."""

from __future__ import annotations

import json

import awkward as ak
import numpy as np
import pytest
import uproot

from calorefine import Column, Columns, EventDataModule
from calorefine.cli import calorefine
from calorefine.errors import BranchError, ConfigError, FileError, KeyColumnError
from calorefine.io.chunks import Request
from calorefine.io.formats import open_source
from calorefine.io.sample import WeightedFiles
from calorefine.verbs.fractions import fractions_file

REQUEST = Request({"x": "x", "both": "P * sw"}, key=["run", "event"], cut="sw > -10", branches=["sw"])


@pytest.fixture
def two(root_file, toy):
    """Two files of events, and the same with other branches, in the same order."""
    tables = [toy(500, seed=1), toy(300, seed=2, first=500)]
    for k, table in enumerate(tables):
        root_file(table, f"events{k}.root")
        friend = {"sw": np.sin(table["x"]), "event": table["event"], "run": table["run"]}
        root_file(friend, f"weights{k}.root", tree="w", step=70)
    return tables


def read(source, rows=130):
    chunks = list(source.chunks(REQUEST, rows=rows))
    return {
        "x": np.concatenate([chunk.values["x"] for chunk in chunks]),
        "both": np.concatenate([chunk.values["both"] for chunk in chunks]),
        "sw": np.concatenate([chunk.branches["sw"] for chunk in chunks]),
    }


def expected(tables):
    x, momentum = (np.concatenate([table[name] for table in tables]) for name in ("x", "P"))
    return {"x": x, "both": momentum * np.sin(x), "sw": np.sin(x)}


def test_branches_stand_beside(tmp_path, two):
    source = open_source(str(tmp_path / "events*.root"), "events", [f"{tmp_path}/weights*.root:w"])
    assert {"x", "sw"} <= set(source.branch_names("number"))
    for name, values in read(source).items():
        np.testing.assert_allclose(values, expected(two)[name], rtol=1e-6)


def test_rows_in_another_order_are_found_by_key(tmp_path, root_file, two):
    rng = np.random.default_rng(3)
    everything = {name: np.concatenate([table[name] for table in two]) for name in ("run", "event", "x")}
    order = rng.permutation(800)
    table = {"run": everything["run"], "event": everything["event"], "sw": np.sin(everything["x"])}
    path = root_file({name: values[order] for name, values in table.items()}, "all.root")
    source = open_source(str(tmp_path / "events?.root"), "events", [str(path)], ["run", "event"])
    for name, values in read(source).items():
        np.testing.assert_allclose(values, expected(two)[name], rtol=1e-6)
    path = root_file({name: values[order[:-7]] for name, values in table.items()}, "some.root")
    source = open_source(str(tmp_path / "events?.root"), "events", [str(path)], ["run", "event"])
    with pytest.raises(
        KeyColumnError, match=r"rows aren't in the friend .*some\.root, tree 'events', first run 7, event"
    ):
        read(source)
    path = root_file({name: np.append(values, values[:2]) for name, values in table.items()}, "twice.root")
    source = open_source(str(tmp_path / "events?.root"), "events", [str(path)], ["run", "event"])
    with pytest.raises(KeyColumnError, match="2 rows have the same run, event as another"):
        read(source)
    with pytest.raises(KeyColumnError, match="key branch 'sw' is of type float32, expected integers"):
        read(open_source(str(tmp_path / "events0.root"), "events", [str(path)], ["sw"]))


def test_rows_of_other_events_are_refused(tmp_path, root_file, two):
    """A branch that both have and that is read tells; here it is the key."""
    table, weights = two[0], [f"{tmp_path}/weights0.root:w"]
    wrong = np.roll(np.arange(500), 1)
    path = root_file({"event": table["event"][wrong], "sw": np.sin(table["x"])}, "rolled.root")
    with pytest.raises(FileError, match=r"branch 'event' differs in rows 0 to 130, .*friends_by"):
        read(open_source(str(tmp_path / "events0.root"), "events", [str(path)]))
    path = root_file({"sw": np.ones(499)}, "short.root")
    with pytest.raises(FileError, match=r"has 500 entries, its friend .*short\.root 499, expected as many"):
        read(open_source(str(tmp_path / "events0.root"), "events", [str(path)]))
    with pytest.raises(FileError, match=r"has 2 files, its friend .* 1, expected one for each"):
        open_source(str(tmp_path / "events?.root"), "events", [str(path)])
    with pytest.raises(FileError, match=r"no such file.*did you mean '.*weights0\.root'"):
        open_source(str(tmp_path / "events0.root"), "events", [str(tmp_path / "weight0.root")])
    with pytest.raises(ConfigError, match="friends: trees a, b found, expected one name"):
        open_source(str(tmp_path / "events0.root"), "events", ["x.root:a", "y.root:b"])
    with pytest.raises(BranchError, match="there is no branch 'swt'; did you mean 'sw'"):
        list(open_source(str(tmp_path / "events0.root"), "events", weights).chunks(Request({"a": "swt"})))


@pytest.mark.usefixtures("two")
def test_lists_in_a_friend(tmp_path):
    jets = {"jet_pt": ak.Array([[1.0] * (k % 3) for k in range(500)])}
    with uproot.recreate(tmp_path / "jets.root") as file:
        file.mktree("events", {"jet_pt": "var * float64"}).extend(jets)
    source = open_source(str(tmp_path / "events0.root"), "events", [str(tmp_path / "jets.root")])
    (chunk,) = source.chunks(Request({"n": "count(jet_pt > 0)", "x": "x"}))
    assert chunk.values["n"].tolist() == [k % 3 for k in range(500)]


def test_training_on_weights_of_a_friend(tmp_path, two):
    columns = Columns(features={"x": Column()}, context={"P": Column()}, key=["run", "event"])
    data = EventDataModule(
        files=str(tmp_path / "events?.root"),
        tree="events",
        columns=columns,
        weights="sw * sw",
        friends=[f"{tmp_path}/weights?.root:w"],
    )
    data.setup()
    weight = np.sin(np.concatenate([table["x"] for table in two])) ** 2
    assert data.train.weight.sum() + data.validation.weight.sum() == pytest.approx(weight.sum())
    assert data.prepared.provenance["friends"] == ["weights0.root", "weights1.root"]


@pytest.mark.usefixtures("two")
def test_samples_of_verbs_have_friends(tmp_path):
    sample = WeightedFiles(str(tmp_path / "events0.root"), "events", "sw", [f"{tmp_path}/weights0.root:w"])
    assert "sw" in sample.branches
    files = ["--generated", f"{tmp_path}/events0.root", "--reference", f"{tmp_path}/events0.root"]
    friend = ["--reference.weight", "sw * sw", "--reference.friends", f'["{tmp_path}/weights0.root:w"]']
    calorefine(["plot", *files, *friend, "--features", "[x]", "--output", str(tmp_path / "plots.png")])
    assert (tmp_path / "plots.png").is_file()


def test_weights_are_made_of_the_branches_of_friends(tmp_path, root_file):
    rng = np.random.default_rng(5)
    n = 3000
    label, event = rng.integers(0, 2, n), np.arange(n)
    signal = rng.random(n) < np.where(label, 0.7, 0.3)
    table = {"x": rng.normal(size=n) + 2 * signal, "P": rng.random(n), "event": event}
    root_file(table, "events.root")
    mass = np.where(signal, rng.normal(0.5, 0.05, n), rng.random(n))
    root_file({"m": mass, "label": label, "event": event}, "spectators.root", tree="s", step=700)
    columns = "{features: {x: null}, context: {P: null}, key: [event]}"
    files = ["--files", f"{tmp_path}/events.root", "--tree", "events", "--columns", columns]
    files += ["--friends", f'["{tmp_path}/spectators.root:s"]']
    shapes = "{signal: {class_path: Gaussian}, background: {class_path: Exponential}}"
    splot = ["--splot.spectator", "m", "--splot.range", "[0, 1]", "--splot.species", shapes]
    calorefine(["splot", *files, *splot, "--output", str(tmp_path / "sw.root")])
    init = "{sample: label, fractions: {'0': {signal: 0.3, background: 0.7}, '1': {signal: 0.7, background: 0.3}}}"
    fractions = ["--weights", f"{{class_path: LabelFractions, init_args: {init}}}"]
    calorefine(["fractions", *files, *fractions, "--output", str(tmp_path / "w.root")])
    for name, weight in (("sw", "sw_signal"), ("w", "w_signal")):
        with uproot.open(tmp_path / f"{name}.root") as file:
            written = file["events"].arrays(library="np")
        assert np.array_equal(written["m"], mass) and np.array_equal(written["x"], table["x"])
        assert abs(written[weight].sum() - signal.sum()) < 5 * np.sqrt(np.sum(written[weight] ** 2))
    report = ["--weights", "{signal: 2 * m}", "--output", str(tmp_path / "report.html")]
    calorefine(["weights-report", *files, *report])
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["species"]["signal"]["weights"]["sum_w"] == pytest.approx(2 * mass.sum())
    with pytest.raises(ConfigError, match="friends: given beside files for each sample"):
        fractions_file(files={"a": "x"}, tree="t", columns=None, weights=None, output="w.root", friends=["f"])
