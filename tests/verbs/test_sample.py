"""`calorefine sample`: the output contract, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import uproot

from calorefine import Column, Columns, EventDataModule, Simulator
from calorefine.data.module import Prepared
from calorefine.errors import (
    BranchError,
    CalorefineWarning,
    CheckpointError,
    ConfigError,
    EmptySelectionError,
    FileError,
    KeyColumnError,
    KeyWarning,
    ValueRangeError,
)
from calorefine.io.provenance import read_provenance
from calorefine.io.sample import WeightedFiles
from calorefine.io.writer import TreeWriter, replacing, write_tree
from calorefine.models import MODELS
from calorefine.models.base import TrainedModel
from calorefine.twosample.pair import read_samples
from calorefine.verbs.sample import sample_file


@pytest.fixture
def conditions(toy):
    """Conditions of 500 events with branches of odd types to pass through."""
    rng = np.random.default_rng(11)
    arrays = {name: array for name, array in toy(500, seed=9, first=10_000).items() if name not in ("x", "k", "w")}
    return {
        **arrays,
        "pair_id": rng.integers(2**63, 2**64 - 1, 500, np.uint64),
        "isolated": rng.random(500) < 0.3,
        "tag": np.arange(500).astype(np.uint8),
        "eta": np.where(rng.random(500) < 0.1, np.nan, rng.normal(size=500)).astype(np.float32),
    }


@pytest.fixture
def generate(one_checkpoint, root_file, conditions, tmp_path):
    """Function that samples at (changed) conditions and returns the output's arrays."""

    def run(changed=None, *, checkpoint=one_checkpoint, name="out.root", tree_format="ttree", **options):
        source = root_file(changed or conditions, "conditions.root", tree_format=tree_format)
        options = {"checkpoint": str(checkpoint), "conditions": str(source), "output": str(tmp_path / name)} | options
        sample_file(**options)
        with uproot.open(tmp_path / name) as file:
            return file["events"].arrays(library="np")

    return run


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if "out.root" in path.name)


@pytest.mark.parametrize(
    "checkpoint", [name for name in sorted(MODELS) if issubclass(MODELS[name], TrainedModel)], indirect=True
)
def test_rows_order_and_branches(generate, checkpoint, conditions):
    carried = "pair_id, isolated,tag,eta,event"
    out = generate(checkpoint=checkpoint, pass_through=carried)
    assert list(out) == ["x", "k", "in_domain", "pair_id", "isolated", "tag", "eta", "event"]
    for name in carried.replace(" ", "").split(","):
        assert out[name].dtype == conditions[name].dtype
        assert out[name].tobytes() == conditions[name].tobytes()
    assert out["x"].dtype == np.float32
    assert np.isfinite(out["x"]).all()
    assert len(np.unique(out["x"])) > 450  # some of the 121 quantiles of 540 signed events coincide


@pytest.mark.parametrize("written", ["ttree", "rntuple"])
def test_formats_in_and_out_hold_the_same(
    generate, one_checkpoint, root_file, conditions, tree_format, written, tmp_path
):
    expected = generate(name="expected_out.root")
    names = ["pair_id", "isolated", "tag"]
    source = root_file(conditions, "source.root", tree_format=tree_format)
    output = tmp_path / "out.root"
    sample_file(
        checkpoint=str(one_checkpoint),
        conditions=str(source),
        output=str(output),
        pass_through=names,
        tree_format=written,
    )
    with uproot.open(output) as file:
        out = file["events"].arrays(library="np")
    for name in expected:
        assert np.array_equal(out[name], expected[name])
    assert set(names) < set(out)
    with uproot.open(tmp_path / "out.root") as file:
        assert file.classnames()["events;1"] == {"ttree": "TTree", "rntuple": "ROOT::RNTuple"}[written]


def test_values_belong_to_the_event_not_to_its_place(generate, conditions):
    whole = generate()
    order = np.random.default_rng(3).permutation(500)
    shuffled = generate({name: array[order] for name, array in conditions.items()}, name="b_out.root")
    few = generate({name: array[[17]] for name, array in conditions.items()}, name="c_out.root")
    for name in whole:
        assert np.array_equal(shuffled[name], whole[name][order])
        assert np.array_equal(few[name], whole[name][[17]])


def test_seed_and_copies(generate):
    first = generate(name="a_out.root")
    again = generate(name="b_out.root")
    other = generate(name="c_out.root", seed=1)
    copies = generate(name="d_out.root", n_per_event=3, pass_through="event")
    assert np.array_equal(first["x"], again["x"])
    assert np.mean(first["x"] == other["x"]) < 0.01
    assert len(copies["x"]) == 1500
    assert np.array_equal(copies["copy"], np.tile([0, 1, 2], 500))
    assert np.array_equal(copies["event"][::3], copies["event"][2::3])
    assert np.array_equal(copies["x"][::3], first["x"])
    assert np.mean(copies["x"][::3] == copies["x"][1::3]) < 0.01


def test_candidates_of_an_event_have_noise_of_their_own(generate, conditions):
    same = {name: np.repeat(array[:100], 2) for name, array in conditions.items()}
    same["candidate"] = np.tile(np.array([0, 1], np.int8), 100)
    out = generate(same, key=["run", "event", "candidate"])
    assert np.mean(out["x"][::2] == out["x"][1::2]) < 0.05


def test_in_domain_marks_exactly_what_lies_outside(generate, conditions, toy_data):
    low, high = toy_data.prepared.domain[0]
    conditions["P"] = conditions["P"].copy()
    conditions["P"][:4] = 1000 * np.array([low * 0.99, high * 1.01, low, high])
    conditions["charge"] = conditions["charge"].copy()
    conditions["charge"][6] = 3
    out = generate(conditions)
    p = (conditions["P"] * 0.001).astype(np.float32)
    expected = (p >= np.float32(low)) & (p <= np.float32(high)) & np.isin(conditions["charge"], [-1, 1])
    assert np.array_equal(out["in_domain"], expected)
    assert not expected[[0, 1, 6]].any()


def test_conditions_in_another_unit_are_warned_of(generate, conditions):
    conditions["P"] = conditions["P"] * 1000
    with pytest.warns(CalorefineWarning, match=r"500 of 500 conditions are outside.*'p_gev' from [\d.]+ to.*unit"):
        generate(conditions)


def test_rows_of_other_conditions_are_no_reference(generate, root_file, toy, tmp_path):
    """Without key and context, a generated file is paired by row: with the rows it was generated at, in their order."""
    table = toy(500, seed=9)
    generate(table)
    order = np.random.default_rng(1).permutation(500)
    made, whole = WeightedFiles(str(tmp_path / "out.root")), root_file(table, "same.root")
    assert read_samples(made, WeightedFiles(str(whole), weight="w"), columns=None).twins == "rows"
    shuffled = root_file({name: array[order] for name, array in table.items()}, "shuffled.root")
    with pytest.raises(BranchError, match=r"generated at other conditions than the rows of .*shuffled\.root"):
        read_samples(made, WeightedFiles(str(shuffled), weight="w"), columns=None)
    with pytest.warns(CalorefineWarning, match=r"same\.root.*: no weight is given, but .* its branch 'w'"):
        read_samples(made, WeightedFiles(str(whole)), columns=None)


def test_summary_and_provenance(one_checkpoint, root_file, conditions, tmp_path, toy_data):
    conditions["P"] = np.where(np.arange(500) < 5, 99_000.0, conditions["P"])
    source = root_file(conditions, "conditions.root")
    summary = sample_file(
        checkpoint=str(one_checkpoint),
        conditions=str(source),
        output=str(tmp_path / "out.root"),
        seed=4,
        n_per_event=2,
    )
    n_outside = summary.n_outside_any
    assert (summary.n_conditions, summary.n_generated) == (500, 1000)
    assert summary.n_outside["p_gev"] == n_outside >= 5
    assert f"{n_outside} conditions" in str(summary)
    assert f"p_gev {n_outside}" in str(summary)
    found = read_provenance(tmp_path / "out.root")
    assert json.loads(json.dumps(found)) == found
    assert found["checkpoint_sha256"] == hashlib.sha256(one_checkpoint.read_bytes()).hexdigest()
    assert found["training"]["digest"] == toy_data.prepared.provenance["digest"]
    expected = {"seed": 4, "n_per_event": 2, "n_conditions": 500, "n_outside_domain": n_outside}
    assert expected.items() <= found.items()
    assert found["conditions"] == ["conditions.root"]
    assert found["columns"]["features"].keys() == {"x", "k"}


def test_several_files_in_order(one_checkpoint, root_file, conditions, generate, tmp_path):
    whole = generate(name="whole_out.root")
    for number in range(2):
        part = {name: array[number * 250 : (number + 1) * 250] for name, array in conditions.items()}
        root_file(part, f"part_{number}.root", tree_format=("rntuple", "ttree")[number])
    output = tmp_path / "out.root"
    sample_file(checkpoint=str(one_checkpoint), conditions=str(tmp_path / "part_*.root"), output=str(output))
    with uproot.open(output) as file:
        assert np.array_equal(file["events/x"].array(library="np"), whole["x"])


def test_context_under_other_names_and_units(generate, conditions):
    expected = generate(name="expected_out.root")
    other = {name: array for name, array in conditions.items() if name != "P"}
    other["momentum_tev"] = conditions["P"] / 1e6
    out = generate(other, context={"p_gev": Column("momentum_tev", branch_unit="TeV")})
    np.testing.assert_allclose(out["x"], expected["x"], rtol=1e-3, atol=1e-4)


def test_context_that_can_not_be(generate):
    with pytest.raises(ConfigError, match=r"--context: 'p_GeV' is no column; did you mean 'p_gev'"):
        generate(context={"p_GeV": Column("P")})
    with pytest.raises(ConfigError, match=r"unit MeV found, expected GeV as in training; .*branch_unit"):
        generate(context={"p_gev": Column("P", unit="MeV")})


def test_override_keeps_the_unit_of_the_training(toy_data, root_file, toy, tmp_path):
    """The unit may be written in the configuration of the training instead of the name."""
    context = {"p": Column("P", unit="GeV", branch_unit="MeV"), "charge": Column(categories=[-1, 1])}
    columns = Columns({"x": None, "k": None}, context, ["run", "event"])
    torch.manual_seed(0)
    model = next(iter(MODELS.values()))()
    model.prepare(Prepared(**{**vars(toy_data.prepared), "columns": columns}))
    Simulator(model, model.spec).save(tmp_path / "p.ckpt")
    arrays = toy(50)
    source = root_file({**arrays, "p_mev": arrays["P"]})
    outputs = []
    for number, context in enumerate([None, {"p": Column("p_mev", branch_unit="MeV")}]):
        output = tmp_path / f"{number}.root"
        sample_file(checkpoint=str(tmp_path / "p.ckpt"), conditions=str(source), output=str(output), context=context)
        with uproot.open(output) as file:
            outputs.append(file["events/x"].array(library="np"))
    assert np.array_equal(*outputs)


def test_keys_under_other_names_and_by_row(generate, conditions):
    expected = generate(name="expected_out.root")
    other = {("RunNumber" if name == "run" else name): array for name, array in conditions.items()}
    assert np.array_equal(generate(other, key=["RunNumber", "event"])["x"], expected["x"])
    with pytest.warns(KeyWarning, match="identified by file name and row"):
        by_row = generate(other, key=[], name="row_out.root")
    assert np.mean(by_row["x"] == expected["x"]) < 0.01


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"P": None}, {}, BranchError, r"conditions\.root, tree 'events': there is no branch 'P'"),
        ({"run": None}, {}, BranchError, "there is no branch 'run'"),
        ({}, {"pass_through": "pair_idd"}, BranchError, "no branch 'pair_idd'; did you mean 'pair_id'"),
        ({}, {"pass_through": ["x"]}, ConfigError, r"\['x'\] are names of generated branches"),
        ({}, {"tree": "Events"}, FileError, "holds no tree 'Events'; did you mean 'events'"),
        ({}, {"conditions": "nothing.root"}, FileError, r"nothing\.root: no such file"),
        ({}, {"output": "/no/such/folder/out.root"}, FileError, "there is no folder '/no/such/folder'"),
        ({}, {"output": "/tmp"}, FileError, "/tmp: is a folder"),
        ({}, {"n_per_event": 0}, ConfigError, "n_per_event: 0 found, expected at least 1"),
        ({}, {"checkpoint": "nothing.ckpt"}, CheckpointError, r"nothing\.ckpt: no such checkpoint"),
        ({"P": [np.nan, np.inf]}, {}, ValueRangeError, r"in 2 rows \(p_gev: 2\)"),
        ({"event": [5, 5]}, {}, KeyColumnError, r"1 of 500 rows repeat the key \(run, event\).*rows 0 and 1"),
        ({"event": [0.5]}, {}, KeyColumnError, "key branch 'event' is of type float64, expected integers"),
    ],
)
def test_bad_input_is_one_error_and_leaves_nothing(generate, conditions, tmp_path, change, options, error, message):
    for name, first in change.items():
        if first is None:
            del conditions[name]
        else:
            conditions[name] = np.concatenate([first, conditions[name][len(first) :]])
    with pytest.raises(error, match=message):
        generate(conditions, **options)
    assert leftovers(tmp_path) == []


def test_conditions_without_rows(generate, conditions, tmp_path, tree_format):
    with pytest.raises(EmptySelectionError, match=r"conditions\.root, tree 'events': the tree has no rows"):
        generate({name: array[:0] for name, array in conditions.items()}, tree_format=tree_format)
    assert leftovers(tmp_path) == []


def test_existing_output_stays_unless_overwritten(generate, tmp_path):
    (tmp_path / "out.root").write_text("precious")
    with pytest.raises(ConfigError, match=r"out\.root: exists already; .*--overwrite true"):
        generate()
    assert (tmp_path / "out.root").read_text() == "precious"
    assert len(generate(overwrite=True)["x"]) == 500


def test_output_may_not_be_an_input(generate, one_checkpoint, root_file, conditions, tmp_path):
    source = root_file(conditions, "source.root")
    (tmp_path / "out.root").symlink_to(source)
    for clash in (source, one_checkpoint):
        before = clash.read_bytes()
        with pytest.raises(ConfigError, match=rf"{clash.name}: is both input .* and output"):
            generate(conditions=str(source), output=str(clash), overwrite=True)
        assert clash.read_bytes() == before
    with pytest.raises(ConfigError, match=r"out\.root: is both input \('.*source\.root'\) and output"):
        generate(conditions=str(source), overwrite=True)


def test_fixed_size_arrays_are_passed_through(one_checkpoint, conditions, tmp_path):
    arrays = {**conditions, "cells": np.arange(1500, dtype=np.float32).reshape(500, 3)}
    with uproot.recreate(tmp_path / "arrays.root") as file:
        types = {name: np.dtype((array.dtype, array.shape[1:])) for name, array in arrays.items()}
        file.mktree("events", types).extend(arrays)
    options = {"checkpoint": str(one_checkpoint), "conditions": str(tmp_path / "arrays.root"), "n_per_event": 2}
    sample_file(**options, output=str(tmp_path / "out.root"), pass_through="cells")
    with uproot.open(tmp_path / "out.root") as file:
        np.testing.assert_array_equal(file["events/cells"].array(library="np")[1::2], arrays["cells"])


def test_failing_overwrite_leaves_the_old_file(generate, conditions, tmp_path):
    (tmp_path / "out.root").write_text("precious")
    conditions["P"] = np.full(500, np.nan)
    with pytest.raises(ValueRangeError):
        generate(conditions, overwrite=True)
    assert (tmp_path / "out.root").read_text() == "precious"
    assert leftovers(tmp_path) == ["out.root"]


@pytest.mark.parametrize("method", ["extend", "finish"])
def test_interrupt_while_writing_leaves_nothing(generate, tmp_path, monkeypatch, method):
    whole = getattr(TreeWriter, method)

    def interrupted(self, *args):
        whole(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(TreeWriter, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate()
    assert leftovers(tmp_path) == []


SCRIPT = """
import signal, sys, time
from calorefine.io.writer import TreeWriter
from calorefine.verbs.sample import sample_file
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
original = TreeWriter.extend
def slow(self, arrays):
    original(self, arrays)
    print("writing", flush=True)
    time.sleep(30)
TreeWriter.extend = slow
sample_file(checkpoint=sys.argv[1], conditions=sys.argv[2], output=sys.argv[3])
"""


def test_ctrl_c_leaves_nothing(one_checkpoint, root_file, conditions, tmp_path):
    source = root_file(conditions, "conditions.root")
    command = [sys.executable, "-c", SCRIPT, str(one_checkpoint), str(source), str(tmp_path / "out.root")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "writing\n"
        assert len(leftovers(tmp_path)) == 1
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert time.monotonic() - start < 15
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert leftovers(tmp_path) == []


def test_final_name_never_holds_half_a_file(tmp_path):
    path = tmp_path / "out.root"
    with write_tree(path, "events") as writer:
        writer.extend({"x": np.arange(10.0)})
        assert not path.exists()
    with uproot.open(path) as file:
        assert file["events"].num_entries == 10
    with pytest.raises(ZeroDivisionError), replacing(path, overwrite=True) as beside:
        beside.write_text("half")
        1 / 0  # noqa: B018
    assert leftovers(tmp_path) == ["out.root"]
    assert read_provenance(path) == {}


def test_simulator_without_context(root_file, toy, tmp_path):
    """A generator without conditions makes one event for each key."""
    source = root_file(toy(300))
    columns = Columns({"x": None, "k": None}, {}, ["run", "event"])
    data = EventDataModule(files=str(source), tree="events", columns=columns)
    data.setup()
    torch.manual_seed(0)
    model = next(iter(MODELS.values()))()
    model.prepare(data.prepared)
    Simulator(model, model.spec).save(tmp_path / "free.ckpt")
    summary = sample_file(
        checkpoint=str(tmp_path / "free.ckpt"), conditions=str(source), output=str(tmp_path / "out.root")
    )
    assert (summary.n_generated, summary.n_outside_any) == (300, 0)


def test_simulator_refuses_context_of_wrong_shape(one_checkpoint):
    simulator = Simulator.load(one_checkpoint)
    good = simulator.sample({"p_gev": [2.0, 3.0], "charge": [1, -1]}, seed=0)
    assert good["x"].shape == (2,)
    assert simulator.sample({"p_gev": 2.0, "charge": 1}, seed=0)["x"] == good["x"][:1]
    with pytest.raises(ConfigError, match="column 'charge' is missing; did you mean 'Charge'"):
        simulator.sample({"p_gev": [2.0], "Charge": [1]}, seed=0)
    with pytest.raises(ConfigError, match=r"arrays of shapes \{'p_gev': \(1,\), 'charge': \(2,\)\}"):
        simulator.sample({"p_gev": [2.0], "charge": [1, 1]}, seed=0)
    with pytest.raises(ConfigError, match="expected one number for each condition"):
        simulator.sample({"p_gev": [[2.0]], "charge": [[1]]}, seed=0)
    with pytest.raises(ConfigError, match="key: 3 keys found for 1 conditions"):
        simulator.sample({"p_gev": [2.0], "charge": [1]}, seed=0, key=np.arange(3, dtype=np.uint64))
