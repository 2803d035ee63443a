"""The page of a tiny run: its sections, what it warns of first, and what it says is missing."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import uproot
import yaml

from calorefine.cli import calorefine
from calorefine.datasets import ImpureToy
from calorefine.ensemble.members import RECORD
from calorefine.errors import BranchError, ConfigError, FileError
from calorefine.io.provenance import read_provenance
from calorefine.io.sample import WeightedFiles
from calorefine.io.writer import write_tree
from calorefine.pages.provenance import command_line
from calorefine.systematics.variations import Variations
from calorefine.verbs.report import report_files

SECTIONS = [
    "Summary",
    "Bias",
    "Calibration sample",
    "Training",
    "Features",
    "Classifier test",
    "Observables",
    "Provenance",
]
SHAPES = {"signal": {"class_path": "Gaussian"}, "background": {"class_path": "Exponential"}}
SPLOT = {"spectator": "m", "range": [0, 1], "species": SHAPES}
COLUMNS = {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]}
OBSERVABLES = {
    "x": {"class_path": "Histogram", "init_args": {"expression": "x", "bins": {"n": 6, "low": -0.5, "high": 3}}},
    "high": {"class_path": "Efficiency", "init_args": {"passed": "x > 1.3", "expression": "c", "edges": [0, 0.5, 1]}},
}
N, K = 1200, 12


def save(path, content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def fit_config(folder):
    return save(
        folder / "fit.yaml",
        {
            "seed_everything": 4,
            "data": {
                "files": str(folder / "toy.root"),
                "tree": "events",
                "columns": COLUMNS,
                "weights": {"class_path": "SPlot", "init_args": SPLOT},
                "batch_size": 256,
            },
            "model": {"class_path": "WGAN", "init_args": {"generator_hidden": [16], "critic_hidden": [16]}},
            "trainer": {"accelerator": "cpu", "max_epochs": 3, "log_every_n_steps": 5},
        },
    )


def weigh(folder):
    """The generated events with weights of 1, and with those of K replicas."""
    rng = np.random.default_rng(8)
    generated = folder / "generated.root"
    with uproot.open(generated) as file:
        table = file["events"].arrays(library="np")
    table["weight"] = np.ones(N)
    table["weight_replica"] = rng.poisson(1, (N, K)).astype(np.float64)
    with write_tree(folder / "weighted.root", "events") as writer:
        writer.extend(table)
        writer.finish(read_provenance(generated))


def propagate(folder, name="systematics", **options):
    content = {
        "nominal": str(folder / "weighted.root"),
        "weight": "weight",
        "calibration": {"weights": "weight_replica"},
        "observables": OBSERVABLES,
        "output": str(folder / name),
    }
    calorefine(["propagate", "-c", save(folder / "propagate.yaml", content | options)])


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A folder with the files of a run: every stage by its own command, the weights by hand."""
    folder = tmp_path_factory.mktemp("run")
    table = ImpureToy(fraction=0.5, resolution=0.05).generate(N, seed=11)
    with uproot.recreate(folder / "toy.root") as file:
        file.mktree("events", {k: v.dtype for k, v in table.items()}).extend(table)
    content = {"files": str(folder / "toy.root"), "tree": "events", "columns": COLUMNS, "splot": SPLOT}
    content |= {"output": str(folder / "sw.root"), "replicas": 3, "dependence": "warn"}
    calorefine(["splot", "-c", save(folder / "splot.yaml", content)])
    given = ["--output", str(folder / "ensemble"), "--replicas", "2", "--seeds", "1", "--processes", "1"]
    calorefine(["ensemble", "--fit", fit_config(folder), *given])
    sample = ["--checkpoint", str(folder / "ensemble" / "nominal" / "best.ckpt"), "--pass-through", "run,event,c"]
    calorefine(["sample", *sample, "--conditions", str(folder / "sw.root"), "--output", str(folder / "generated.root")])
    weigh(folder)
    propagate(folder)
    (folder / "reweighter.json").write_text(json.dumps(diagnostics()))
    return folder


def diagnostics():
    """What `calorefine reweight` writes, as far as the page shows it."""
    separation = {"auc_error": 0.004, "auc_split_error": 0.005, "auc_spread": 0.002, "jsd": 0.01, "jsd_spread": 0.002}
    share = {"value": 0.001, "error": 0.0004}
    distance = {"ks": {"value": 0.02, "p_value": 0.4}, "energy": {"value": 0.001, "p_value": 0.3}}
    histogram = {"reference": [0.2, 0.8], "generated": [0.3, 0.7]}
    pair = {"columns": ["x", "y"], "chi2_before": 30.0, "ndf_before": 24, "chi2": 20.0, "ndf": 24, "p_corrected": 0.6}
    pair |= {"p_value": 0.6, "difference_before": 0.03}
    weights = {"n_eff_before": 1200.0, "n_eff": 1100.0, "n_eff_fraction": 1100 / 1200, "mean_factor": 1.0}
    weights |= {"n": 1200, "largest_share": 0.003, "at_bound": 0.0}
    sample = {"files": ["generated.root"], "weight": "none"}
    found = {
        "classifier": {"before": {"auc": 0.55} | separation, "after": {"auc": 0.51} | separation, "refused": None},
        "coverage": {"uncovered": share, "invented": share},
        "weights": weights | {"outside": 0.0, "largest": [{"factor": 3.0}]},
        "distances": {"x": [distance, distance]},
        "residuals": [pair | {"difference": 0.02}],
        "log_ratio": {"edges": [-1.0, 0.0, 1.0], "values": histogram, "errors": histogram},
        "conditional": True,
        "mean_weights": {},
        "warnings": ["the classifier <still> tells them apart"],
    }
    made = {"generated": sample, "reference": {"files": ["sw.root"], "weight": "sw_signal"}, "seed": 0}
    return {"diagnostics": found, "provenance": made}


def everything(run, **options):
    """Options with every input."""
    given = {
        "splot": str(run / "sw.json"),
        "ensemble": str(run / "ensemble"),
        "generated": WeightedFiles(str(run / "generated.root")),
        "weighted": WeightedFiles(str(run / "weighted.root"), weight="weight"),
        "reference": WeightedFiles(str(run / "sw.root"), weight="sw_signal"),
        "reweighter": str(run / "reweighter.json"),
        "systematics": str(run / "systematics.npz"),
        "bins": 12,
    }
    return given | options


@pytest.fixture(scope="session")
def page(run):
    """The page with every input, and its summary."""
    path = run / "report.html"
    summary = report_files(output=str(path), **everything(run, configs={"splot": str(run / "splot.yaml")}))
    return path.read_text(), summary


def headings(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


def part(text, title):
    """The section of this title."""
    return next(one for one in text.split("<section")[1:] if f"<h2>{title}</h2>" in one)


def test_page_has_every_section_and_refers_to_nothing(run, page, self_contained):
    text, summary = page
    outline = self_contained(text)
    assert headings(text) == SECTIONS
    assert str(summary).endswith(f"{len(summary.missing)} things missing")
    words = " ".join(outline.texts)
    for expected in ("n_eff", "replica_002", "AUC", "error of the error", "SHA-256"):
        assert expected in words
    assert outline.tags.count("img") > 12
    commands = part(text, "Provenance")
    for verb in ("splot -c", "ensemble", "sample", "reweight", "propagate"):
        assert f"calorefine {verb}" in commands
    assert f"--conditions {run}/sw.root --output {run}/generated.root --seed 0" in commands
    assert "--pass_through run,event,c  # the nominal events" in commands
    assert "class_path: Exponential" in commands  # the configuration that was named
    assert "The band is the spread of 12 replicas" in part(text, "Features")


def test_warnings_come_first(run, page):
    text, summary = page
    first = part(text, "Summary")
    assert len(summary.warnings) >= 3
    assert first.count('class="warning"') == len(summary.warnings)
    assert first.count('class="alarm"') == len(summary.alarms)
    assert first.index('class="warning"') < first.index("<table>")
    assert "Classifier test: the classifier &lt;still&gt; tells them apart" in first
    assert "2 replicas are few" in first
    assert "12 replicas of &#39;calibration&#39;" in first
    assert "tells them apart" in part(text, "Classifier test")
    failed = [w for w in summary.warnings if "not trained well" in w]
    assert len(failed) == int(any(json.loads(p.read_text())["failed"] for p in run.glob(f"ensemble/*/{RECORD}")))


def shifted(run, folder, by):
    """The weighted events with x shifted, as a truth."""
    with uproot.open(run / "weighted.root") as file:
        table = file["events"].arrays(["x", "y", "c"], library="np")
    table["x"] = table["x"] + np.float32(by)
    with write_tree(folder / "truth.root", "events") as writer:
        writer.extend(table)
        writer.finish({})
    return WeightedFiles(str(folder / "truth.root"))


@pytest.mark.parametrize("by", [0.0, 1.0])
def test_bias_is_red_where_the_truth_is_off_and_only_there(tmp_path, run, by):
    """The events themselves are the truth: no chance of a deviation; shifted ones are off by many errors."""
    path = tmp_path / "report.html"
    given = {"systematics": str(run / "systematics.npz"), "truth": shifted(run, tmp_path, by)}
    summary = report_files(output=str(path), reweighter=str(run / "reweighter.json"), **given)
    text = path.read_text()
    red = [text for text in summary.alarms if text.startswith("Bias: nominal - truth is off by more than its error")]
    assert len(red) == (1 if by else 0)
    bias = part(text, "Bias")
    assert bias.count('class="alarm"') == len(summary.alarms) == (2 if by else 0)
    assert ("bins that are off</caption>" in bias) == bool(by)
    assert ("OFF: " in part(text, "Summary")) == bool(by)
    assert ".alarm {" in text
    assert "--red: #b00020" in text
    if by:
        assert "x in [" in red[0]
        assert text.index('class="alarm"') < text.index('class="warning"')
        assert "mean of the replicas - truth" in summary.alarms[1]


def test_truth_of_another_size_is_compared_at_equal_totals(tmp_path, run):
    with uproot.open(run / "weighted.root") as file:
        table = file["events"].arrays(["x", "y", "c"], library="np")
    with write_tree(tmp_path / "truth.root", "events") as writer:
        writer.extend({name: np.tile(array, 3) for name, array in table.items()})
        writer.finish({})
    path = tmp_path / "report.html"
    given = {"systematics": str(run / "systematics.npz"), "truth": WeightedFiles(str(tmp_path / "truth.root"))}
    summary = report_files(output=str(path), **given)
    assert summary.alarms == []
    assert "multiplied by: x 0.3333" in part(path.read_text(), "Bias")


def test_mean_of_the_replicas_needs_seeds_to_be_red(tmp_path, run):
    """All replicas are shifted the same way: off, but perhaps by the nominal training's accident."""
    with uproot.open(run / "weighted.root") as file:
        table = file["events"].arrays(library="np")
    tilt = np.clip(1 + 0.5 * (table["x"] - 1.3), 0.2, 3)[:, None]
    table["weight_replica"] = table["weight_replica"] * tilt
    table["weight_seed"] = 1 + 0.3 * np.random.default_rng(2).normal(size=(N, 8))
    with write_tree(tmp_path / "weighted.root", "events") as writer:
        writer.extend(table)
        writer.finish({})
    found = {}
    for name, more in (("alone", {}), ("seeds", {"training": {"weights": "weight_seed"}})):
        propagate(tmp_path, name, **more)
        systematics = str(tmp_path / f"{name}.npz")
        found[name] = report_files(output=str(tmp_path / f"{name}.html"), systematics=systematics)
    assert found["alone"].alarms == []
    assert any("an unlucky one" in text for text in found["alone"].warnings)
    assert found["seeds"].alarms[0].startswith("Bias: mean of the replicas - nominal is off by more than 0.25 ")


def test_bias_that_propagate_found_is_shown(tmp_path, run):
    truth = shifted(run, tmp_path, 1.0)
    (tmp_path / "weighted.root").write_bytes((run / "weighted.root").read_bytes())
    propagate(tmp_path, truth={"files": truth.files})
    summary = report_files(output=str(tmp_path / "report.html"), systematics=str(tmp_path / "systematics.npz"))
    assert [text for text in summary.alarms if "nominal - truth" in text]


def test_what_is_missing_is_named(tmp_path, run):
    path = tmp_path / "report.html"
    summary = report_files(output=str(path), splot=str(run / "sw.json"))
    text = path.read_text()
    assert headings(text) == SECTIONS
    told = " ".join(summary.missing)
    for option in ("ensemble", "generated", "weighted", "reference", "reweighter", "systematics"):
        assert option in told
    assert part(text, "Summary").count("not given") == len(summary.missing) == told.count("not given")
    for title in ("Training", "Features", "Classifier test", "Observables", "Bias"):
        assert "Not given. It needs" in part(text, title)


def test_without_replicas_there_is_no_band(tmp_path, run):
    path = tmp_path / "report.html"
    summary = report_files(output=str(path), generated=WeightedFiles(str(run / "generated.root")), bins=8)
    features = part(path.read_text(), "Features")
    assert "There is no systematic band" in features
    assert features.count("<img") == 3
    assert any(text.startswith("Features: not given (reference") for text in summary.missing)


def test_replicas_in_files_give_the_same_band_as_weights(tmp_path, run):
    with uproot.open(run / "weighted.root") as file:
        table = file["events"].arrays(library="np")
    replicas = table.pop("weight_replica")
    for k in range(K):
        with write_tree(tmp_path / f"replica_{k:02d}.root", "events") as writer:
            writer.extend(table | {"weight": np.ascontiguousarray(replicas[:, k])})
            writer.finish({})
    pages = {}
    for name, calibration in (("weights", None), ("files", Variations(files=str(tmp_path / "replica_*.root")))):
        path = tmp_path / f"{name}.html"
        weighted = WeightedFiles(str(run / "weighted.root"), weight="weight")
        report_files(output=str(path), weighted=weighted, calibration=calibration, bins=8)
        pages[name] = part(path.read_text(), "Features")
    assert pages["files"] == pages["weights"]


def test_other_contexts_are_warned_of(tmp_path, run):
    """Chance of no warning: none, the reference holds half of the context's range."""
    with uproot.open(run / "sw.root") as file:
        table = file["events"].arrays(["run", "event", "x", "y", "c"], library="np")
    half = table["c"] > np.median(table["c"])
    with write_tree(tmp_path / "half.root", "events") as writer:
        writer.extend({name: array[half] for name, array in table.items()})
        writer.finish({})
    given = {
        name: WeightedFiles(str(path))
        for name, path in (("generated", run / "generated.root"), ("reference", tmp_path / "half.root"))
    }
    summary = report_files(output=str(tmp_path / "report.html"), bins=8, **given)
    assert any("distributed differently" in text for text in summary.warnings)


def test_each_sample_has_the_weight_of_its_conditions(tmp_path, run):
    """sWeights on the reference alone change its contexts: said for each sample, gone with weights on both sides.

    The weights vary fivefold with the context, and p-values of equal contexts are never below 1e-6: chance below 1e-5.
    """
    tables = {}
    for name in ("generated", "weighted", "sw"):
        with uproot.open(run / f"{name}.root") as file:
            tables[name] = file["events"].arrays(library="np")
    extreme = np.where(tables["sw"]["c"] < np.median(tables["sw"]["c"]), 1.0, 0.2)
    for name, table in tables.items():
        with write_tree(tmp_path / f"{name}.root", "events") as writer:
            writer.extend({key: table[key] for key in ("run", "event", "x", "y", "c")} | {"sw": extreme})
            writer.finish(read_provenance(run / f"{name}.root"))
    warned = {}
    for weight in ("1", "sw"):
        samples = {
            "generated": WeightedFiles(str(tmp_path / "generated.root"), weight="none" if weight == "1" else weight)
        }
        samples |= {"weighted": WeightedFiles(str(tmp_path / "weighted.root"), weight="sw")}
        samples |= {"reference": WeightedFiles(str(tmp_path / "sw.root"), weight="sw")}
        summary = report_files(output=str(tmp_path / f"{weight}.html"), bins=8, **samples)
        warned[weight] = [text for text in summary.warnings if "distributed differently" in text]
    assert warned["sw"] == []
    assert len(warned["1"]) == 1
    assert "then --generated.weight 'sw'" in warned["1"][0]


def test_files_of_different_runs_are_told(tmp_path, run):
    with uproot.open(run / "weighted.root") as file:
        table = file["events"].arrays(library="np")
    with write_tree(tmp_path / "weighted.root", "events") as writer:
        writer.extend(table)
        writer.finish(read_provenance(run / "weighted.root") | {"checkpoint_sha256": "0" * 64})
    given = {name: everything(run)[name] for name in ("ensemble", "generated", "systematics")}
    given |= {"weighted": WeightedFiles(str(tmp_path / "weighted.root"), weight="weight"), "features": ["x"]}
    summary = report_files(output=str(tmp_path / "report.html"), **given)
    told = [text for text in summary.warnings if text.startswith("Provenance")]
    assert any("by another checkpoint than the nominal one" in text for text in told)
    assert any("systematics were made from other events" in text for text in told)


def test_commands_of_the_page_run_again(tmp_path, run):
    """Without configurations, the command holds all that made the file."""
    words = shlex.split(command_line(read_provenance(run / "sw.root"), {}))
    words[words.index("--output") + 1] = str(tmp_path / "sw.root")
    calorefine(words[1:])
    with uproot.open(run / "sw.root") as first, uproot.open(tmp_path / "sw.root") as second:
        names = ["sw_signal", "sw_background", "sw_signal_replica"]
        arrays = [file["events"].arrays(names, library="np") for file in (first, second)]
    for name in names:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name])


def test_files_of_an_earlier_version_have_no_command(tmp_path, run):
    told = read_provenance(run / "generated.root")
    with uproot.open(run / "generated.root") as file:
        table = file["events"].arrays(library="np")
    with write_tree(tmp_path / "generated.root", "events") as writer:
        writer.extend(table)
        writer.finish({name: value for name, value in told.items() if name not in ("verb", "options", "changed")})
    report_files(
        output=str(tmp_path / "report.html"), generated=WeightedFiles(str(tmp_path / "generated.root")), bins=8
    )
    provenance = part((tmp_path / "report.html").read_text(), "Provenance")
    assert "# generated: written by an earlier version of &#39;calorefine sample&#39;: its command" in provenance


def test_page_on_the_command_line(tmp_path, run):
    content = {"output": str(tmp_path / "report.html"), "splot": str(run / "sw.json"), "title": "A & B"}
    config = save(tmp_path / "report.yaml", content)
    summary = calorefine(["report", "-c", config])
    assert "report.html: 0 alarms" in str(summary)
    assert "<h1>A &amp; B</h1>" in (tmp_path / "report.html").read_text()
    with pytest.raises(ConfigError, match="exists already"):
        calorefine(["report", "-c", config])


def test_shipped_configuration_names_options(tmp_path):
    path = Path(__file__).resolve().parents[2] / "configs" / "report.yaml"
    with pytest.raises(FileError, match="no such f"):  # the run's files aren't there; all options are known
        calorefine(["report", "-c", str(path), "--output", str(tmp_path / "report.html")])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, "no input is given"),
        ({"splot": "sw.jsn"}, FileError, r"sw\.jsn: no such file; did you mean '.*sw\.json'\?"),
        ({"splot": "reweighter.json"}, FileError, "has no 'n_effective', expected a file of 'calorefine splot'"),
        ({"splot": "toy.root"}, FileError, r"toy\.root: not JSON"),
        ({"reweighter": "sw.json"}, FileError, "expected a file of 'calorefine reweight'"),
        ({"ensemble": "ensembl"}, FileError, r"no such folder; did you mean '.*ensemble'"),
        ({"systematics": "systematic.npz"}, FileError, r"did you mean '.*systematics\.npz'"),
        ({"systematics": "systematics.json"}, FileError, r"ends in \.npz"),
        ({"generated": "toy.root"}, ConfigError, "name them by the option features"),
        ({"generated": "generated.root", "features": ["xx"]}, BranchError, "there is no branch 'xx'; did you mean 'x'"),
        ({"generated": "generated.root", "bins": 0}, ConfigError, "bins: 0 found, expected at least 1"),
        ({"splot": "sw.json", "truth": "toy.root"}, ConfigError, "truth: given without systematics"),
        ({"weighted": "weighted.root"}, ConfigError, r"weighted\.weight: none given, expected the correction's"),
        ({"splot": "sw.json", "output": "page.txt"}, ConfigError, r"expected a name that ends in \.html"),
        ({"splot": "sw.json", "configs": {"splot": "splt.yaml"}}, FileError, r"configs\.splot: .*splot\.yaml'\?"),
    ],
)
def test_errors_say_what_is_expected(tmp_path, run, options, error, message):
    given = {"output": str(tmp_path / "report.html")}
    for name, value in options.items():
        if name == "configs":
            given[name] = {verb: str(run / file) for verb, file in value.items()}
        elif name in ("truth", "generated", "weighted"):
            given[name] = WeightedFiles(str(run / value))
        else:
            given[name] = str(run / value) if isinstance(value, str) else value
    with pytest.raises(error, match=message):
        report_files(**given)
    assert list(tmp_path.iterdir()) == []
