"""Entries of lists as candidates of their events, as NanoAOD has them: read, trained on, sampled, written back."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
import uproot
import yaml

from calorefine import Column, Columns, Simulator, keys
from calorefine.errors import BranchError, ConfigError, KeyColumnError, ValueRangeError
from calorefine.fit.command import lightning
from calorefine.io.chunks import Request
from calorefine.io.root import RootFiles
from calorefine.io.table import read_table
from calorefine.reweighting import BoostingRatio
from calorefine.verbs.fractions import fractions_file
from calorefine.verbs.log_prob import log_prob_file
from calorefine.verbs.reweight_apply import apply_reweighter
from calorefine.verbs.reweight_fit import fit_reweighter
from calorefine.verbs.sample import sample_file
from calorefine.verbs.unweight import unweight_files
from calorefine.weights.fractions import LabelFractions

N = 700
COLUMNS = {
    "features": {
        "dE": {"expression": "Electron_pt / Electron_gen - 1"},
        "hits": {"expression": "Electron_hits", "transform": "integer"},
    },
    "context": {
        "gen_gev": {"expression": "Electron_gen"},
        "n_jets": {"expression": "count(Jet_pt > 30)"},
        "PV_npvs": None,
    },
    "key": ["run", "event"],
    "collection": "Electron",
    "cut": "Electron_gen > 5 && PV_npvs > 2",
}


def lists(counts, rng, **columns):
    """Lists with these counts: name to a function of a generator and a size."""
    return ak.zip({name: ak.unflatten(make(rng, int(counts.sum())), counts) for name, make in columns.items()})


def nano(n=N, seed=1, first=0):
    """Events with electrons (none in some events), muons and jets of other counts, and numbers of the event."""
    rng = np.random.default_rng(seed)
    gen = lambda rng, size: rng.uniform(4, 50, size).astype(np.float32)  # noqa: E731
    electrons = lists(rng.integers(0, 4, n), rng, gen=gen, hits=lambda rng, size: rng.poisson(3, size).astype(np.int32))
    smeared = ak.flatten(electrons.gen) * rng.normal(1, 0.1, int(ak.count(electrons.gen)))
    electrons["pt"] = ak.values_astype(ak.unflatten(smeared, ak.num(electrons)), np.float32)
    return {
        "run": np.ones(n, np.uint32),
        "event": np.arange(first, first + n, dtype=np.uint64),
        "PV_npvs": rng.integers(1, 40, n).astype(np.int32),
        "Electron": electrons,
        "Muon": lists(rng.integers(0, 3, n), rng, pt=gen),
        "Jet": lists(rng.integers(0, 6, n), rng, pt=lambda rng, size: rng.exponential(30, size).astype(np.float32)),
    }


def write(path, arrays, tree_format="ttree"):
    """Write events: in a TTree with counters, in an RNTuple as vectors."""
    if tree_format == "rntuple":
        records = {name: array for name, array in arrays.items() if isinstance(array, ak.Array)}
        arrays = {name: array for name, array in arrays.items() if name not in records}
        arrays |= {f"{name}_{field}": record[field] for name, record in records.items() for field in record.fields}
    types = {
        name: array.dtype if isinstance(array, np.ndarray) else array.type.content for name, array in arrays.items()
    }
    with uproot.recreate(path) as file:
        make = file.mktree if tree_format == "ttree" else file.mkrntuple
        make("Events", types).extend(arrays)
    return str(path)


@pytest.fixture
def file(tmp_path, tree_format):
    return write(tmp_path / "nano.root", nano(), tree_format)


def chunk_of(path, texts, **options):
    given = {"key": ["run", "event"], "collection": "Electron"} | options
    (chunk,) = RootFiles(path, "Events").chunks(Request(texts, **given))
    return chunk


def test_entries_are_rows(file):
    arrays = nano()
    electrons, jets = arrays["Electron"], arrays["Jet"].pt
    texts = {"pt": "Electron_pt", "sum": "Electron_pt + PV_npvs", "share": "Electron_pt / sum(Electron_pt)"}
    chunk = chunk_of(file, {**texts, "jets": "count(Jet_pt > 30)"})
    counts = ak.to_numpy(ak.num(electrons))
    np.testing.assert_array_equal(chunk.counts, counts)
    assert 0 in chunk.counts
    pt = ak.to_numpy(ak.flatten(electrons.pt)).astype(float)
    np.testing.assert_array_equal(chunk.values["pt"], pt)
    np.testing.assert_array_equal(chunk.values["sum"], pt + np.repeat(arrays["PV_npvs"], counts))
    total = ak.flatten(electrons.pt / ak.sum(electrons.pt, axis=1))
    np.testing.assert_allclose(chunk.values["share"], ak.to_numpy(total), rtol=1e-5)
    np.testing.assert_array_equal(chunk.values["jets"], np.repeat(ak.to_numpy(ak.sum(jets > 30, axis=1)), counts))
    parts = list(RootFiles(file, "Events").chunks(Request(texts, ["run", "event"], collection="Electron"), rows=77))
    np.testing.assert_array_equal(np.concatenate([part.values["share"] for part in parts]), chunk.values["share"])
    np.testing.assert_array_equal(np.concatenate([part.key for part in parts]), chunk.key)


def test_the_place_of_an_entry_is_its_candidate(file):
    """Keys are those of the same candidates as rows of a flat file."""
    chunk = chunk_of(file, {"pt": "Electron_pt"})
    counts = ak.to_numpy(ak.num(nano()["Electron"]))
    event = keys.make_keys([np.ones(N, np.uint32), np.arange(N, dtype=np.uint64)])
    np.testing.assert_array_equal(chunk.event_key, np.repeat(event, counts))
    place = np.concatenate([np.arange(count) for count in counts])
    np.testing.assert_array_equal(chunk.key, keys.combine(chunk.event_key, place))
    assert len(np.unique(chunk.key)) == len(chunk)


def test_cut_on_entries_and_events(file):
    """Events stay, with the entries that pass; those of other lists stay as well."""
    arrays = nano()
    names = ["PV_npvs", "Electron_hits", "Muon_pt"]
    chunk = chunk_of(file, {"pt": "Electron_pt"}, cut="Electron_gen > 20 && PV_npvs > 5", branches=names)
    mask = (arrays["Electron"].gen > 20) & (arrays["PV_npvs"] > 5)
    np.testing.assert_array_equal(chunk.counts, ak.to_numpy(ak.sum(mask, axis=1)))
    np.testing.assert_array_equal(chunk.values["pt"], ak.to_numpy(ak.flatten(arrays["Electron"].pt[mask])))
    assert ak.to_list(chunk.branches["Electron_hits"]) == ak.to_list(arrays["Electron"].hits[mask])
    assert ak.to_list(chunk.branches["Muon_pt"]) == ak.to_list(arrays["Muon"].pt)
    np.testing.assert_array_equal(chunk.branches["PV_npvs"], arrays["PV_npvs"])


def test_entries_that_are_not_finite(tmp_path):
    arrays = nano()
    values = ak.to_numpy(ak.flatten(arrays["Electron"].pt)).copy()
    values[[3, 5]] = np.nan
    arrays["Electron"]["pt"] = ak.unflatten(values, ak.num(arrays["Electron"]))
    path = write(tmp_path / "nan.root", arrays)
    with pytest.raises(ValueRangeError, match=r"in 2 rows \(pt: 2\)"):
        chunk_of(path, {"pt": "Electron_pt"})
    with pytest.warns(UserWarning, match="left out 2"):
        chunk = chunk_of(path, {"pt": "Electron_pt"}, nonfinite="drop")
    assert len(chunk) == chunk.counts.sum() == len(values) - 2


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ({"x": "Elektron_pt"}, {"collection": "Elektron"}, BranchError,
         "no collection 'Elektron'.*did you mean 'Electron'.*collections: Electron, Jet, Muon"),
        ({"x": "Electron_pz"}, {}, BranchError, "there is no branch 'Electron_pz'; did you mean 'Electron_pt'"),
        ({"x": "Electron_pt * Muon_pt"}, {}, BranchError,
         "'Electron_pt \\* Muon_pt': branch 'Muon_pt' holds a list .* none of collection 'Electron'; reduce it"),
        ({"x": "Electron_pt / sum(Muon_pt * Jet_pt)"}, {}, BranchError,
         "'Muon_pt' and 'Jet_pt' have [0-9] and [0-9] elements in an event"),
        ({"x": "Electron_pt"}, {"key": ["run", "Electron_hits"]}, KeyColumnError,
         "key branch 'Electron_hits' has a value for each entry of a list, expected one number per event"),
        ({"x": "Electron_pt"}, {"collection": None}, BranchError, "'Electron_pt' is of type .*expected one number"),
    ],
)  # fmt: skip
def test_what_is_refused(file, texts, options, error, message):
    with pytest.raises(error, match=message):
        chunk_of(file, texts, **options)


def test_lists_of_one_prefix_and_different_counts(tmp_path):
    """Such as the hits of an electron beside its momentum."""
    arrays = nano()
    arrays |= {"Electron_pt": arrays["Electron"].pt, "Electron_jet": arrays.pop("Jet").pt}
    del arrays["Electron"]
    path = write(tmp_path / "odd.root", arrays)
    with pytest.raises(BranchError, match=r"branches 'Electron_\*' and 'Electron_jet' have \d and \d elements in an"):
        chunk_of(path, {"x": "Electron_pt / Electron_jet"})


def test_candidate_and_collection():
    with pytest.raises(ConfigError, match="candidate 'i' and collection 'Electron' given, expected one of them"):
        Columns({"x": None}, {}, key=["event"], candidate="i", collection="Electron")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Function that trains a model on the electrons and returns its checkpoint, once for each."""
    folder, checkpoints = tmp_path_factory.mktemp("electrons"), {}
    path = write(folder / "training.root", nano(seed=5, first=10_000))
    models = {
        "WGAN": {"class_path": "WGAN", "init_args": {"generator_hidden": [8], "critic_hidden": [8]}},
        "Flow": {"class_path": "Flow", "init_args": {"hidden": [8], "n_layers": 2}},
    }
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False}

    def checkpoint(name):
        if name not in checkpoints:
            data = {"files": path, "tree": "Events", "columns": COLUMNS, "batch_size": 64}
            config = folder / f"{name}.yaml"
            config.write_text(yaml.safe_dump({"data": data, "model": models[name], "trainer": trainer}))
            run = lightning(["fit", "-c", str(config), "--runs", str(folder / "runs")])
            checkpoints[name] = run.run_dir / "checkpoints" / "last.ckpt"
        return checkpoints[name]

    return checkpoint


@pytest.mark.parametrize("written", ["ttree", "rntuple"])
def test_trained_on_electrons_and_sampled_into_lists(trained, file, tmp_path, written):
    output, checkpoint = tmp_path / "out.root", trained("WGAN")
    carried = "event,PV_npvs,Electron_gen,Muon_pt"
    summary = sample_file(
        checkpoint=str(checkpoint), conditions=file, output=str(output), tree="Events", pass_through=carried,
        tree_format=written,
    )  # fmt: skip
    arrays = nano()
    counts = ak.to_numpy(ak.num(arrays["Electron"]))
    assert summary.n_generated == counts.sum()
    with uproot.open(output) as opened:
        out = opened["Events"].arrays(library="ak", how=dict)
    assert len(out["event"]) == N
    for name in ("Electron_dE", "Electron_hits", "Electron_in_domain", "Electron_gen"):
        np.testing.assert_array_equal(ak.to_numpy(ak.num(out[name])), counts)
    np.testing.assert_array_equal(out["nElectron"], counts)
    assert ak.to_list(out["Electron_gen"]) == ak.to_list(arrays["Electron"].gen)
    assert ak.to_list(out["Muon_pt"]) == ak.to_list(arrays["Muon"].pt)
    np.testing.assert_array_equal(out["PV_npvs"], arrays["PV_npvs"])
    simulator = Simulator.load(checkpoint)
    chunk = chunk_of(file, simulator.columns.expressions("context"))
    expected = simulator.sample(chunk.values, seed=0, key=chunk.key)
    np.testing.assert_array_equal(ak.to_numpy(ak.flatten(out["Electron_dE"])), expected["dE"])


def test_counters_are_shared_as_in_the_input(trained, tmp_path):
    """Lists of other lengths whose names begin alike have a counter of their own."""
    rng = np.random.default_rng(3)
    tracks = lists(rng.integers(0, 5, N), rng, pt=lambda rng, size: rng.random(size)).pt
    path, output = write(tmp_path / "tracks.root", nano() | {"Electron_track": tracks}), tmp_path / "out.root"
    carried = "nMuon,Muon_pt,Electron_track,Electron_gen"
    sample_file(
        checkpoint=str(trained("WGAN")), conditions=path, output=str(output), tree="Events", pass_through=carried
    )
    with uproot.open(output) as opened:
        tree, names = opened["Events"], opened["Events"].keys()
        counters = {name: tree[name].count_branch.name for name in names if tree[name].count_branch is not None}
        assert ak.to_list(tree["Electron_track"].array()) == ak.to_list(tracks)
    assert counters == {"Electron_track": "nElectron_track", "Muon_pt": "nMuon"} | dict.fromkeys(
        ["Electron_dE", "Electron_hits", "Electron_in_domain", "Electron_gen"], "nElectron"
    )


def test_files_without_any_entry(trained, tmp_path):
    arrays = nano(5)
    arrays["Electron"] = arrays["Electron"][ak.local_index(arrays["Electron"]) < 0]
    path = write(tmp_path / "none.root", arrays)
    output = tmp_path / "out.root"
    sample_file(checkpoint=str(trained("WGAN")), conditions=path, output=str(output), tree="Events")
    with uproot.open(output) as opened:
        assert opened["Events"]["Electron_dE"].array().tolist() == [[]] * 5


def test_names_that_are_taken(trained, file, tmp_path):
    options = {"checkpoint": str(trained("WGAN")), "conditions": file, "tree": "Events"}
    options["output"] = str(tmp_path / "out.root")
    with pytest.raises(ConfigError, match=r"\['Electron_hits'\] are names of generated branches"):
        sample_file(**options, pass_through="Electron_hits")
    with pytest.raises(ConfigError, match="n_per_event: 2 found, expected 1 for the entries of 'Electron'"):
        sample_file(**options, n_per_event=2)
    assert not (tmp_path / "out.root").exists()


def test_a_number_and_a_list_of_the_same_name(tmp_path):
    """Each is read by its own name: a column `pt` is the event's number, never the list of the entries."""
    arrays = nano() | {"pt": np.arange(N, dtype=np.float32)}
    path = write(tmp_path / "same.root", arrays)
    chunk = chunk_of(path, {"pt": "pt", "own": "Electron_pt"})
    np.testing.assert_array_equal(chunk.values["pt"], np.repeat(arrays["pt"], chunk.counts))
    np.testing.assert_array_equal(chunk.values["own"], ak.to_numpy(ak.flatten(arrays["Electron"].pt)))
    with pytest.raises(ConfigError, match="both features and context"):
        Columns({"pt": Column("Electron_pt")}, {"pt": None}, collection="Electron")


def test_log_densities_are_lists_as_well(trained, file, tmp_path):
    options = {"checkpoint": str(trained("Flow")), "files": file, "tree": "Events", "output": str(tmp_path / "p.root")}
    log_prob_file(**options)
    with uproot.open(tmp_path / "p.root") as opened:
        out = opened["Events"].arrays(library="ak", how=dict)
    assert ak.to_list(ak.num(out["Electron_log_prob"])) == ak.to_list(ak.num(nano()["Electron"]))
    assert ak.to_list(out["Jet_pt"]) == ak.to_list(nano()["Jet"].pt)


def test_reductions_in_flat_columns(file):
    """Rows are events without a collection, and lists are reduced as in `propagate`."""
    arrays = nano()
    texts = {"lead": "max(Electron_pt, True, 0)", "jets": "count(Jet_pt > 30) + PV_npvs"}
    table, key, _ = read_table(
        RootFiles(file, "Events"), Request(texts, ["run", "event"], cut="sum(Jet_pt, Jet_pt > 30) < 200")
    )
    keep = ak.to_numpy(ak.sum(arrays["Jet"].pt[arrays["Jet"].pt > 30], axis=1)) < 200
    lead = ak.to_numpy(ak.fill_none(ak.max(arrays["Electron"].pt, axis=1), 0))[keep]
    np.testing.assert_array_equal(table["lead"], lead)
    np.testing.assert_array_equal(table["jets"], (ak.sum(arrays["Jet"].pt > 30, axis=1) + arrays["PV_npvs"])[keep])
    assert len(key) == keep.sum()


@pytest.fixture(scope="module")
def generated(trained, tmp_path_factory):
    """A file of generated electrons, and the one of its conditions."""
    folder = tmp_path_factory.mktemp("generated")
    conditions, output = write(folder / "nano.root", nano()), str(folder / "out.root")
    carried = ["run", "event", "PV_npvs", "Electron_gen", "Jet_pt"]
    checkpoint = str(trained("WGAN"))
    sample_file(checkpoint=checkpoint, conditions=conditions, output=output, tree="Events", pass_through=carried)
    return output, conditions


def test_weights_of_entries_are_lists_as_well(generated, tmp_path):
    output, reference = generated
    options = {"generated": output, "tree": "Events", "generated_weight": "none"}
    trees = BoostingRatio(n_trees=5, max_leaf_nodes=4, min_samples_leaf=50, n_folds=2, n_repeats=1)
    reweighter = str(tmp_path / "r.pt")
    summary = fit_reweighter(**options, reference=reference, output=reweighter, estimator=trees)
    counts = ak.to_numpy(ak.num(nano()["Electron"]))
    assert summary.reweighter.provenance["generated"]["n"] == counts.sum()
    assert summary.reweighter.provenance["twins"] == "keys"
    apply_reweighter(**options, reweighter=reweighter, output=str(tmp_path / "weighted.root"))
    unweight_files(**options, reweighter=reweighter, output=str(tmp_path / "kept.root"))
    with uproot.open(tmp_path / "weighted.root") as one, uproot.open(tmp_path / "kept.root") as other:
        weighted, kept = (file["Events"].arrays(library="ak", how=dict) for file in (one, other))
    np.testing.assert_array_equal(ak.to_numpy(ak.num(weighted["Electron_weight"])), counts)
    assert ak.to_list(weighted["Jet_pt"]) == ak.to_list(kept["Jet_pt"]) == ak.to_list(nano()["Jet"].pt)
    left = ak.to_numpy(ak.num(kept["Electron_gen"]))
    assert len(left) == N
    assert 0 < left.sum() < counts.sum()
    assert np.all(left <= counts)
    assert ak.to_list(ak.num(kept["Electron_dE"])) == left.tolist() == kept["nElectron"].tolist()


def test_several_numbers_for_an_entry_are_refused(file, tmp_path):
    """There is no branch for a list of arrays."""
    columns = Columns({"pt": Column("Electron_pt")}, {}, key=["run", "event"], collection="Electron")
    fractions = LabelFractions(
        fractions={"0": {"signal": 0.8, "rest": 0.2}, "1": {"signal": 0.3, "rest": 0.7}}, sample="PV_npvs % 2"
    )
    options = {"files": file, "tree": "Events", "columns": columns, "weights": fractions}
    fractions_file(**options, output=str(tmp_path / "w.root"))
    with uproot.open(tmp_path / "w.root") as opened:
        written = ak.num(opened["Events"]["Electron_w_signal"].array())
    assert ak.to_list(written) == ak.to_list(ak.num(nano()["Electron"]))
    with pytest.raises(ConfigError, match="w_signal_replica: has several numbers for each entry of 'Electron'"):
        fractions_file(**options, output=str(tmp_path / "r.root"), replicas=2)
