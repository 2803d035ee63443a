"""`calorefine compare`: training or loading, sampling and validation of several generators, one table, one page."""

import json
from pathlib import Path

import numpy as np
import pytest
import uproot
import yaml

from calorefine.cli import calorefine
from calorefine.datasets import CorrelatedToy, ImpureToy
from calorefine.errors import ConfigError, FileError, TrainingError
from calorefine.fit.command import lightning


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A toy sample, its reference, a configuration of a library and one of a flow."""
    folder = tmp_path_factory.mktemp("compare")
    for name, seed in (("training", 61), ("reference", 62)):
        table = CorrelatedToy(fraction=1.0).generate(1500, seed=seed)
        with uproot.recreate(folder / f"{name}.root") as file:
            file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    data = {
        "files": str(folder / "training.root"),
        "tree": "events",
        "columns": {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]},
    }
    trainer = {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False}
    for model, options in (("Library", {}), ("Flow", {}), ("Student", {"teacher": "none", "width": 16})):
        content = {"data": data, "model": {"class_path": model, "init_args": options}, "trainer": trainer}
        (folder / f"{model}.yaml").write_text(yaml.safe_dump(content))
    return folder


def compare(folder, models, *options, output="comparison.html"):
    given = ["--models", json.dumps(models), "--reference", str(folder / "reference.root"), "--repetitions", "2"]
    return calorefine(["compare", *given, "--output", str(folder / output), *options])


def test_trained_and_loaded_generators(folder, self_contained):
    run = lightning(["fit", "-c", str(folder / "Flow.yaml"), "--runs", str(folder)]).run_dir
    models = {
        "nearest": {"config": str(folder / "Library.yaml")},
        "flow": {"checkpoint": str(run / "checkpoints" / "best.ckpt")},
        "student": {"config": str(folder / "Student.yaml"), "options": ["--model.init_args.teacher", "{flow}"]},
    }
    result = compare(folder, models, "--training", str(folder / "training.root"))
    content = json.loads((folder / "comparison.json").read_text())
    assert content["provenance"]["verb"] == "compare"
    rows = content["generators"]
    assert [row["name"] for row in rows] == ["nearest", "flow", "student"]
    assert [row["likelihood"] for row in rows] == [False, True, False]
    assert rows[0]["train_seconds"] > 0 and rows[1]["train_seconds"] is None
    assert rows[0]["n_parameters"] == 0 and rows[1]["n_parameters"] > 1000
    assert rows[0]["nearest"] < 0.5 < rows[1]["nearest"]
    found = [json.loads((folder / "comparison" / f"{row['name']}.json").read_text()) for row in rows]
    for row, one in zip(rows, found, strict=True):
        smallest = min(distances["ks"]["p_value"] for distances in one["distances"].values())
        assert row["smallest_p"] == pytest.approx(1 - (1 - smallest) ** 2)
        assert one["training_n_eff"] == row["n_eff"]
    assert found[0]["memorization"]["zero_generated"] == 1.0 > found[1]["memorization"]["zero_generated"]
    assert all(0.4 < row["auc"] < 1 and list(row["microseconds"]) == ["1", "1000", "100000"] for row in rows)
    assert all(0 < row["microseconds"]["100000"] < row["microseconds"]["1"] for row in rows)
    assert (folder / "comparison.md").read_text() == result.markdown()
    page = (folder / "comparison.html").read_text()
    self_contained(page)
    assert "can't be below 0.0099" in page.replace("&#39;", "'")
    assert "| flow | Flow |" in str(result)
    with pytest.raises(ConfigError, match=r"comparison\.html: exists already"):
        compare(folder, models)


def test_weights_of_an_impure_reference_are_those_of_its_conditions(folder):
    """The same AUC as by `sample` and `validate`, and no warning of contexts: an identity, without any chance."""
    table = ImpureToy(fraction=0.4, resolution=0.05).generate(1500, seed=63)
    table["sw"] = ImpureToy(fraction=0.4, resolution=0.05).sweights(table["m"])
    reference = folder / "impure.root"
    with uproot.recreate(reference) as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    run = lightning(["fit", "-c", str(folder / "Library.yaml"), "--runs", str(folder)]).run_dir
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    models = json.dumps({"known": {"checkpoint": checkpoint}})
    options = ["--reference", str(reference), "--reference.weight", "sw", "--repetitions", "2"]
    given = ["--models", models, "--output", str(folder / "impure.html"), "--seed", "3"]
    compared = calorefine(["compare", *given, *options]).rows[0]
    generated = ["--conditions", str(reference), "--output", str(folder / "made.root"), "--pass-through", "sw"]
    calorefine(["sample", "--checkpoint", checkpoint, *generated, "--seed", "3"])
    samples = ["--generated", str(folder / "made.root"), "--generated.weight", "sw", *options]
    validated = calorefine(["validate", *samples, "--output", str(folder / "made.json")])
    assert compared.auc == validated.classifier.separation.auc
    assert validated.generated.sum_w == pytest.approx(table["sw"].sum())


def test_options_of_before_are_answered_by_those_of_now(folder, capsys):
    for option, now in (("--reference_weight", "reference.weight"), ("--reference-tree", "reference.tree")):
        with pytest.raises(SystemExit):
            compare(folder, {}, option, "w")
        assert f"did you mean '{now}'?" in capsys.readouterr().err


def test_errors(folder):
    config = str(folder / "Flow.yaml")
    with pytest.raises(ConfigError, match="'a' has both or neither of `config` and `checkpoint`"):
        compare(folder, {"a": {}}, output="a.html")
    with pytest.raises(FileError, match=r"'a': there is no file 'nowhere\.yaml'"):
        compare(folder, {"a": {"config": "nowhere.yaml"}}, output="a.html")
    later = {"a": {"config": config, "options": ["--x", "{b}"]}, "b": {"config": config}}
    with pytest.raises(ConfigError, match=r"'a': option '\{b\}' found, expected a generator before it; before .* none"):
        compare(folder, later, output="a.html")
    with pytest.raises(ConfigError, match=r"a\.txt found, expected a name that ends in \.html"):
        compare(folder, {"a": {"config": config}}, output="a.txt")
    with pytest.raises(TrainingError, match=r"training of 'a' failed: .*n_bins: 1 found"):
        compare(folder, {"a": {"config": config, "options": ["--model.init_args.n_bins", "1"]}}, output="a.html")
    mapping = {"a": {"config": config, "options": ["--data.columns.context", "{c: }", "--model.init_args.n_bins", "1"]}}
    with pytest.raises(TrainingError, match="n_bins: 1 found"):  # braces of a mapping name no generator
        compare(folder, mapping, output="a.html")
    assert not (folder / "a.html").exists()


def test_shipped_configuration_names_what_exists():
    content = yaml.safe_load(Path("configs/compare.yaml").read_text())
    assert all(Path(model["config"]).is_file() for model in content["models"].values())
    assert np.all([Path(content[name]).is_file() for name in ("reference", "training")])
