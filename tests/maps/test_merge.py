"""`calorefine merge`: files and ensembles in, a map that the other verbs take as a checkpoint out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import uproot
from six_slices import BY, EDGES, conditions, simulator, six

from calorefine import SimulatorMap
from calorefine.cli import calorefine
from calorefine.ensemble.members import CHECKPOINT, RECORD, Ensemble
from calorefine.errors import CheckpointError, ConfigError, FileError
from calorefine.io.provenance import digest, read_provenance
from calorefine.io.sample import WeightedFiles
from calorefine.models import MODELS
from calorefine.observables import Histogram, Regular
from calorefine.simulator_map import load_simulator
from calorefine.systematics.variations import Variations
from calorefine.verbs.log_prob import log_prob_file
from calorefine.verbs.merge import merge_files
from calorefine.verbs.propagate import propagate_files
from calorefine.verbs.replica_weights import replica_weights
from calorefine.verbs.report import report_files
from calorefine.verbs.sample import sample_file
from calorefine.verbs.validate import validate_files

MEMBERS = ["nominal", "replica_001", "replica_002"]
LEAST = "ignore:.*(effective number|mean ratio|replicas|not trained well|few|outside)"


def write(path, arrays):
    """Write a flat tree."""
    with uproot.recreate(path) as file:
        file.mktree("events", {name: values.dtype for name, values in arrays.items()}).extend(arrays)
    return path


def arrays_of(path):
    with uproot.open(path) as file:
        return file["events"].arrays(library="np")


@pytest.fixture
def files(tmp_path):
    """Checkpoints of six slices, all of which have the same name, by slice."""
    paths = {}
    for (charge, ring), one in six(tuple(sorted(MODELS))).items():
        folder = tmp_path / f"q{charge}_ring{ring}" / "checkpoints"
        folder.mkdir(parents=True)
        one.save(folder / "best.ckpt")
        paths[charge, ring] = folder / "best.ckpt"
    return paths


def test_command_line(files, tmp_path):
    """The acceptance test: two charges, three rings; each slice is what its own simulator gives, in files as well."""
    output = tmp_path / "map.ckpt"
    calorefine(["merge", *map(str, files.values()), "--by", "charge,abs(eta)", "--output", str(output)])
    source = write(tmp_path / "conditions.root", conditions(600))
    given = ["--checkpoint", str(output), "--conditions", str(source), "--output", str(tmp_path / "out.root")]
    calorefine(["sample", *given, "--pass-through", "charge,eta,P,run,event", "--seed", "3"])
    out = arrays_of(tmp_path / "out.root")
    size, in_any = np.abs(out["eta"].astype(float)), np.zeros(600, bool)
    for (charge, ring), path in files.items():
        rows = (out["charge"] == charge) & (EDGES[ring] <= size) & (size < EDGES[ring + 1])
        own = write(tmp_path / "own.root", {name: values[rows] for name, values in conditions(600).items()})
        sample_file(
            checkpoint=str(path), conditions=str(own), output=str(tmp_path / "alone.root"), seed=3, overwrite=True
        )
        alone = arrays_of(tmp_path / "alone.root")
        for name in ("x", "k", "in_domain"):
            assert np.array_equal(out[name][rows], alone[name])
        in_any |= rows
    assert 20 < np.sum(~in_any) < 200
    assert not out["in_domain"][~in_any].any()
    told = read_provenance(tmp_path / "out.root")
    assert told["checkpoint_sha256"] == digest(output)
    assert [part["sha256"] for part in told["training"]["parts"]] == [digest(path) for path in files.values()]
    assert told["training"]["parts"][0]["name"] == "q-1_ring0/checkpoints/best.ckpt"
    assert told["training"]["merged"]["options"]["by"] == "charge,abs(eta)"
    assert told["columns"]["context"].keys() == {"p_gev", "eta", "charge"}
    assert told["n_outside_domain"] == np.sum(~out["in_domain"])


def test_summary(files, tmp_path):
    summary = merge_files(checkpoints=[*map(str, files.values())], by=BY, output=str(tmp_path / "map.ckpt"))
    lines = str(summary).splitlines()
    assert lines[0] == f"{tmp_path / 'map.ckpt'}: 6 slices by charge, abs(eta)"
    assert lines[2] == "charge = -1, abs(eta) in [0.8, 1.5): q-1_ring1/checkpoints/best.ckpt"


def test_branches_under_other_names(files, tmp_path):
    output = tmp_path / "map.ckpt"
    merge_files(checkpoints=[*map(str, files.values())], by=BY, output=str(output))
    arrays = conditions(100)
    outputs = []
    for number, names in enumerate([{}, {"charge": "q"}]):
        source = write(tmp_path / "c.root", {names.get(name, name): values for name, values in arrays.items()})
        path, options = tmp_path / f"{number}.root", ["--context", "{charge: {expression: q}}"] if names else []
        given = ["--checkpoint", str(output), "--conditions", str(source), "--output", str(path)]
        calorefine(["sample", *given, *options])
        outputs.append(arrays_of(path)["x"])
    assert np.array_equal(*outputs)


@pytest.mark.filterwarnings(LEAST)
def test_verbs_take_a_map(tmp_path):
    """What `log-prob` and `validate` make of a map's events."""
    output, paths = tmp_path / "map.ckpt", []
    for number, one in enumerate(six().values()):
        paths.append(str(tmp_path / f"{number}.ckpt"))
        one.save(paths[-1])
    merge_files(checkpoints=paths, by="charge, abs(eta)", output=str(output))
    source = write(tmp_path / "conditions.root", conditions(400))
    given = {"conditions": str(source), "pass_through": "charge,eta,P,run,event"}
    for seed, name in ((1, "generated.root"), (2, "reference.root")):
        sample_file(checkpoint=str(output), output=str(tmp_path / name), seed=seed, **given)
    log_prob_file(checkpoint=str(output), files=str(tmp_path / "generated.root"), output=str(tmp_path / "lp.root"))
    out = arrays_of(tmp_path / "lp.root")
    table = {name: out[name] for name in ("x", "k", "charge", "eta")} | {"p_gev": out["P"] * 0.001}
    assert np.array_equal(out["log_prob"], load_simulator(output).log_prob(table))
    assert np.array_equal(out["log_prob_in_domain"], out["in_domain"])
    pair = {name: WeightedFiles(str(tmp_path / f"{name}.root")) for name in ("generated", "reference")}
    validate_files(**pair, output=str(tmp_path / "validation.json"), repetitions=1)
    assert "charge" in (tmp_path / "validation.json").read_text()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoints": []}, ConfigError, "checkpoints: none given"),
        ({"checkpoints": ["a.ckpt", "a.ckpt"]}, ConfigError, "checkpoints: 'a.ckpt' found 2 times"),
        ({"checkpoints": ["a.ckpt", "c.ckpt"]}, CheckpointError, "c.ckpt: no such checkpoint.*did you mean"),
        (
            {"checkpoints": ["a.ckpt", "map.ckpt"]},
            CheckpointError,
            "map.ckpt: is a map itself, expected",
        ),
        ({"checkpoints": ["a.ckpt", "folder"]}, ConfigError, "'folder' is a folder, 'a.ckpt' is none"),
        ({"by": "eta"}, ConfigError, "slices of 'a.ckpt'.*overlap"),
        ({"by": "sign"}, ConfigError, "a.ckpt: was trained with the cut .*which doesn't compare 'sign'"),
        ({"output": "a.ckpt"}, ConfigError, "a.ckpt: is both input .* and output"),
        ({"output": "map.ckpt"}, ConfigError, "map.ckpt: exists already"),
        ({"output": "no/such.ckpt"}, FileError, "there is no folder 'no'"),
    ],
)
def test_errors_leave_nothing(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    simulator("Flow", cut="abs(eta) < 0.8").save("a.ckpt")
    simulator("Flow", seed=1, eta=(0.8, 1.5), cut="abs(eta) >= 0.8").save("b.ckpt")
    (tmp_path / "folder").mkdir()
    given = {"checkpoints": ["a.ckpt", "b.ckpt"], "by": "abs(eta)", "output": "new.ckpt"}
    merge_files(**given | {"output": "map.ckpt"})
    before = {path: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    with pytest.raises(error, match=message):
        merge_files(**given | options)
    assert {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()} == before


def ensemble(folder, make, *, members=MEMBERS, replica=None):
    """An ensemble of untrained simulators, with the records that a training leaves."""
    for member in members:
        kind, _, index = member.partition("_")
        one = make(int(index or 0))
        if kind == "replica":
            one.spec["provenance"]["replica"] |= replica or {}
        (folder / member).mkdir(parents=True)
        one.save(folder / member / CHECKPOINT)
        told = {key: one.spec["provenance"][key] for key in ("replica", "n_train", "sum_w", "n_eff_signed", "digest")}
        record = {"name": member, "kind": kind, "index": int(index or 0), "seed": 1, "fit": "fit.yaml", "options": []}
        record |= {"checkpoint_sha256": digest(folder / member / CHECKPOINT), "failed": False, **told}
        record |= {"distance": 0.01, "distance_error": 0.002, "val_loss": [0.3, 0.2]}
        record |= {"config_sha256": folder.name, "data_sha256": folder.name}
        (folder / member / RECORD).write_text(json.dumps(record))
    return folder


@pytest.fixture
def ensembles(tmp_path):
    """Function that makes ensembles of two slices of a context without eta, with options of the second one."""

    def make(**options):
        first = ensemble(tmp_path / "barrel", lambda k: simulator("Flow", seed=k, cut="abs(eta) < 0.8", replica=k))
        cut, eta = "abs(eta) >= 0.8 && abs(eta) < 1.5", (0.8, 1.5)
        second = ensemble(
            tmp_path / "endcap", lambda k: simulator("Flow", seed=5 + k, cut=cut, eta=eta, replica=k), **options
        )
        return [str(first), str(second)]

    return make


@pytest.mark.filterwarnings(LEAST)
def test_ensembles_merge_member_by_member(ensembles, tmp_path):
    folders, output = ensembles(), tmp_path / "whole"
    summary = merge_files(checkpoints=folders, by="abs(eta)", output=str(output))
    assert str(summary).startswith(f"{output}: 2 slices by abs(eta), 3 members\n")
    whole = Ensemble.load(output)
    assert [*whole.records] == MEMBERS
    for member in MEMBERS:
        one = SimulatorMap.load(whole.checkpoint(member))
        assert [part.name for part in one.parts] == ["barrel", "endcap"]
        assert [part.sha256 for part in one.parts] == [
            digest(tmp_path / part / member / CHECKPOINT) for part in ("barrel", "endcap")
        ]
        assert whole.records[member]["parts"]["barrel"]["distance"] == 0.01
        assert whole.records[member]["n_train"] == 600
    source = write(tmp_path / "conditions.root", conditions(300, most=1.4))
    paths = [tmp_path / f"{member}.root" for member in MEMBERS]
    for member, path in zip(MEMBERS, paths, strict=True):
        sample_file(
            checkpoint=str(whole.checkpoint(member)),
            conditions=str(source),
            output=str(path),
            pass_through="eta,P,run,event",
        )
    assert np.mean(arrays_of(paths[0])["x"] == arrays_of(paths[1])["x"]) < 0.01
    replica_weights(ensemble=str(output), generated=str(paths[0]), output=str(tmp_path / "weights.root"))
    assert arrays_of(tmp_path / "weights.root")["weight_replica"].shape == (300, 2)
    propagate_files(
        nominal=str(paths[0]),
        observables={"x": Histogram("x", bins=Regular(3, -2, 4))},
        calibration=Variations(files=[*map(str, paths[1:])]),
        output=str(tmp_path / "systematics"),
    )
    assert (tmp_path / "systematics.npz").is_file()
    report_files(output=str(tmp_path / "report.html"), ensemble=str(output))
    text = (tmp_path / "report.html").read_text()
    assert "map of 2 Flow" in text
    assert "calorefine merge --checkpoints" in text


def test_slices_of_replicas_are_those_of_the_nominal_member(tmp_path):
    """Those of a replica's training range would be narrower."""
    for name, low in (("a", 0.0), ("b", 2.0)):

        def make(k, low=low):
            one = simulator("Flow", seed=k, replica=k)
            one.spec["domain"][0] = [1 + low + 0.1 * k, 2.5 + low - 0.1 * k]
            return one

        ensemble(tmp_path / name, make)
    folders = [str(tmp_path / name) for name in "ab"]
    merge_files(checkpoints=folders, by="p_gev", output=str(tmp_path / "whole"))
    slices = [
        [part.slice for part in SimulatorMap.load(tmp_path / "whole" / member / CHECKPOINT).parts] for member in MEMBERS
    ]
    assert slices[0] == slices[1] == slices[2]
    assert slices[0][0]["p_gev"].high == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": MEMBERS[:2]}, "endcap: there is no 'replica_002', which 'barrel' has; expected the same members"),
        ({"members": [*MEMBERS, "seed_001"]}, "barrel: there is no 'seed_001', which 'endcap' has"),
        ({"replica": {"seed": 7}}, r"endcap: 'replica_001' has data.replica.seed 7 .*expected 0 as in 'barrel'"),
        ({"replica": {"refit": False}}, "data.replica.refit False"),
        ({"replica": {"block": ["run"]}}, r"data.replica.block \['run'\]"),
    ],
)
def test_replicas_that_do_not_pair(ensembles, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        merge_files(checkpoints=ensembles(**options), by="abs(eta)", output=str(tmp_path / "whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["barrel", "endcap"]


def test_only_merged_folders_are_replaced(ensembles, tmp_path):
    folders, output = ensembles(), tmp_path / "whole"
    merge_files(checkpoints=folders, by="abs(eta)", output=str(output))
    with pytest.raises(ConfigError, match="whole: exists already"):
        merge_files(checkpoints=folders, by="abs(eta)", output=str(output))
    merge_files(checkpoints=folders, by="abs(eta)", output=str(output), overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("")
    with pytest.raises(ConfigError, match="mine: holds something else than merged ensembles"):
        merge_files(checkpoints=folders, by="abs(eta)", output=str(tmp_path / "mine"), overwrite=True)
    with pytest.raises(ConfigError, match=r"is both input .* and output"):
        merge_files(checkpoints=folders, by="abs(eta)", output=folders[0], overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["barrel", "endcap", "mine", "whole"]
