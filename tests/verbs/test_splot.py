"""`calorefine splot` and `calorefine fractions`: files in, the same rows with weights and replicas out."""

import json

import numpy as np
import pytest
import uproot

from calorefine import keys
from calorefine.cli import calorefine, calorefine_main
from calorefine.datasets import CorrelatedToy
from calorefine.errors import (
    CalorefineWarning,
    ConfigError,
    FactorizationError,
    FactorizationWarning,
    KeyColumnError,
)
from calorefine.io.provenance import read_provenance
from calorefine.weights import Exponential, Gaussian, LabelFractions, SPlot, bootstrap_weights

COLUMNS = ["--columns.features", "{x: , y: }", "--columns.context", "{c: }", "--columns.key", "[run, event]"]
SPECIES = "{signal: {class_path: Gaussian}, background: {class_path: Exponential}}"
FIT = ["--splot.spectator", "m", "--splot.range", "[0, 1]", "--splot.species", SPECIES]
FRACTIONS = {"rich": {"signal": 0.7, "background": 0.3}, "poor": {"signal": 0.2, "background": 0.8}}


def source():
    return SPlot(spectator="m", range=(0, 1), species={"signal": Gaussian(), "background": Exponential()})


@pytest.fixture
def toy_file(root_file):
    """Function that writes a toy and returns its path and its arrays."""

    def write(n=3000, *, seed=31, name="toy.root", tree="events", run=1, fraction=0.3, **options):
        arrays = CorrelatedToy(fraction=fraction, **options).generate(n, seed=seed)
        arrays["run"][:] = run
        return root_file(arrays, name, tree=tree), arrays

    return write


def read(path, tree="events"):
    with uproot.open(path) as file:
        return file[tree].arrays(library="np")


def splot(path, output, *options):
    return calorefine(
        ["splot", "--files", str(path), "--tree", "events", "--output", str(output), *COLUMNS, *FIT, *options]
    )


def fractions(files, output, *options, tree="events"):
    weights = ["--weights", "LabelFractions", "--weights.fractions", json.dumps(FRACTIONS)]
    files, tree = (given if isinstance(given, str) else json.dumps(given) for given in (files, tree))
    return calorefine(
        ["fractions", "--files", files, "--tree", tree, "--output", str(output), *COLUMNS, *weights, *options]
    )


@pytest.mark.parametrize("refit", ["true", "false"])
@pytest.mark.parametrize("tree_format", ["ttree", "rntuple"])
def test_splot_writes_replicas(toy_file, tmp_path, refit, tree_format):
    path, arrays = toy_file()
    output = tmp_path / "weighted.root"
    options = ["--replicas", "3", "--seed", "5", "--refit", refit, "--tree_format", tree_format]
    splot(path, output, *options)
    written = read(output)
    key = keys.make_keys([arrays["run"], arrays["event"]])
    expected = list(bootstrap_weights(source(), arrays, key, n_replicas=3, seed=5, refit=refit == "true"))
    np.testing.assert_allclose(written["sw_signal"], expected[0], rtol=1e-9)
    np.testing.assert_allclose(written["sw_signal_replica"], np.stack(expected[1:], axis=1), rtol=1e-5, atol=1e-6)
    replicas = read_provenance(output)["splot"]["replicas"]
    assert (replicas["n"], replicas["seed"], replicas["refit"]) == (3, 5, refit == "true")
    n_eff = [w.sum() ** 2 / (w**2).sum() for w in expected[1:]]
    np.testing.assert_allclose(replicas["n_eff"]["sw_signal"], n_eff, rtol=1e-4)
    assert json.loads(output.with_suffix(".json").read_text())["replicas"] == replicas


def test_splot_writes_alternatives_and_bins(toy_file, tmp_path):
    path, arrays = toy_file()
    other = "{line: {background: {class_path: Chebyshev, init_args: {degree: 1}}}}"
    report = splot(path, tmp_path / "a.root", "--splot.alternatives", other, "--splot.in_bins_of", "{c: [0, 0.5, 1]}")
    written = read(tmp_path / "a.root")
    assert {"sw_signal", "sw_background", "sw_signal_line", "sw_background_line"} == set(written) - set(arrays)
    assert 0 < np.max(np.abs(written["sw_signal_line"] - written["sw_signal"])) < 0.5
    content = json.loads((tmp_path / "a.json").read_text())
    assert (content["provenance"]["verb"], content["provenance"]["options"]["tree"]) == ("splot", "events")
    assert len(content["bins"]) == len(content["alternatives"]["line"]["bins"]) == 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"a.png", "a_1.png"}
    assert "alternative shapes: yields" in str(report)


def test_splot_counts_by_block(toy_file, tmp_path):
    """Two runs, so an event's count is its run's: with seed 0, replicas 1 to 4."""
    path, arrays = toy_file()
    arrays["run"] = (np.arange(len(arrays["m"])) % 2 + 1).astype(np.uint32)
    with uproot.recreate(path) as file:
        file.mktree("events", {name: values.dtype for name, values in arrays.items()})
        file["events"].extend(arrays)
    with pytest.warns(CalorefineWarning, match=r"block \[run\]: 2 blocks in .* events: replicas differ by few"):
        splot(path, tmp_path / "b.root", "--columns.block", "[run]", "--replicas", "4", "--refit", "false")
    written = read(tmp_path / "b.root")
    count = written["sw_signal_replica"] / written["sw_signal"][:, None]
    for run in (1, 2):
        own = count[arrays["run"] == run]
        np.testing.assert_allclose(own, np.broadcast_to(np.round(own[0]), own.shape), atol=1e-4)
    assert read_provenance(tmp_path / "b.root")["splot"]["replicas"]["block"] == ["run"]


def test_one_block_is_refused(toy_file, tmp_path):
    path, _ = toy_file()
    with pytest.raises(ConfigError, match=r"block \[run\]: 1 block in .* events, expected several"):
        splot(path, tmp_path / "b.root", "--columns.block", "[run]", "--replicas", "4")
    splot(path, tmp_path / "b.root", "--columns.block", "[run]")


def test_alternatives_are_tested_too(toy_file, tmp_path):
    path, _ = toy_file(20_000, background_dependence=2.0)
    nominal = "{signal: {class_path: Gaussian}, background: {class_path: Bernstein, init_args: {degree: 3}}}"
    other = "{exponential: {background: {class_path: Exponential}}}"
    options = ["--splot.species", nominal, "--splot.alternatives", other]
    with pytest.raises(FactorizationError, match=r"alternative 'exponential': .* depends on x"):
        splot(path, tmp_path / "c.root", *options)
    with pytest.warns(FactorizationWarning, match="alternative 'exponential'"):
        splot(path, tmp_path / "c.root", *options, "--dependence", "warn")
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["alternatives"]["exponential"]["factorization"][0]["p_corrected"] < 1e-3


def test_a_fit_without_a_peak_is_reported(toy_file, tmp_path):
    path, _ = toy_file(fraction=0.3)
    report = splot(path, tmp_path / "k.root", "--splot.range", "[0.6, 1]")
    assert "WARNING: the yield of signal is" in str(report)


def test_wrapped_errors_are_shown_alone(toy_file, tmp_path, capsys, monkeypatch):
    """Options of union types: jsonargparse wraps the error in its own."""
    path, _ = toy_file()
    wrong = json.dumps({"rich": {"signal": 0.7, "background": 0.4}, "poor": {"signal": 0.2, "background": 0.8}})
    arguments = ["--files", str(path), "--tree", "events", "--output", str(tmp_path / "l.root"), *COLUMNS]
    given = ["fractions", *arguments, "--weights", "LabelFractions", "--weights.fractions", wrong]
    monkeypatch.setattr("sys.argv", ["calorefine", *given])
    with pytest.raises(SystemExit):
        calorefine_main()
    printed = capsys.readouterr().err
    assert printed.startswith("error: fractions of sample 'rich' in all events sum to 1.1")
    assert "Traceback" not in printed


def test_splot_refuses_a_dependent_spectator(toy_file, tmp_path):
    path, _ = toy_file(20_000, background_dependence=2.0)
    with pytest.raises(FactorizationError, match="depends on x"):
        splot(path, tmp_path / "c.root")
    assert not list(tmp_path.glob("c.*"))
    with pytest.warns(FactorizationWarning, match="depends on x"):
        splot(path, tmp_path / "c.root", "--dependence", "warn")
    bernstein = "{class_path: Bernstein, init_args: {degree: 3}}"
    splot(
        path, tmp_path / "d.root", "--splot.species", f"{{signal: {{class_path: Gaussian}}, background: {bernstein}}}"
    )
    assert set(read(tmp_path / "d.root")) - set(read(path)) == {"sw_signal", "sw_background"}


def test_splot_leaves_out_branches_that_are_no_numbers(toy_file, tmp_path):
    path, arrays = toy_file()
    arrays["cov"] = np.zeros((len(arrays["m"]), 3), np.float32)
    with uproot.recreate(path) as file:
        file.mktree("events", {name: np.dtype((v.dtype, v.shape[1:])) for name, v in arrays.items()})
        file["events"].extend(arrays)
    with pytest.warns(CalorefineWarning, match="branches cov are left out"):
        splot(path, tmp_path / "e.root")
    assert "cov" not in read(tmp_path / "e.root")


def test_fractions_of_files(toy_file, tmp_path):
    rich, first = toy_file(seed=32, name="rich.root", fraction=0.7)
    poor, second = toy_file(seed=33, name="poor.root", fraction=0.2, run=2)
    output = tmp_path / "f.root"
    fractions({"poor": str(poor), "rich": [str(rich)]}, output, "--replicas", "2")
    written = read(output)
    np.testing.assert_array_equal(written["x"], np.concatenate([first["x"], second["x"]]))
    np.testing.assert_array_equal(written["sample"], np.repeat([0, 1], [len(first["x"]), len(second["x"])]))
    expected = LabelFractions(fractions=FRACTIONS).weights({"sample": written["sample"]})
    np.testing.assert_allclose(written["w_signal"], expected)
    key = keys.make_keys([written["run"], written["event"]])
    replicas = bootstrap_weights(LabelFractions(fractions=FRACTIONS), {"sample": written["sample"]}, key, n_replicas=2)
    np.testing.assert_allclose(written["w_signal_replica"][:, 1], list(replicas)[2], rtol=1e-5)
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["yields"]["signal"] == pytest.approx(written["w_signal"].sum())


def test_fractions_of_trees_and_of_a_branch(toy_file, tmp_path):
    path, arrays = toy_file(seed=34)
    other = CorrelatedToy().generate(2000, seed=35) | {}
    other["run"][:] = 2
    with uproot.recreate(path) as file:
        for tree, values in (("tight", arrays), ("loose", other)):
            file.mktree(tree, {name: v.dtype for name, v in values.items()})
            file[tree].extend(values)
    both = {"rich": str(path), "poor": str(path)}
    fractions(both, tmp_path / "g.root", tree={"rich": "tight", "poor": "loose"})
    written = read(tmp_path / "g.root", "tight")
    assert len(written["x"]) == len(arrays["x"]) + len(other["x"])
    one, _ = toy_file(seed=36, name="one.root")
    fractions(str(one), tmp_path / "h.root", "--weights.sample", "m > 0.4")
    written = read(tmp_path / "h.root")
    assert len(np.unique(written["w_signal"][written["m"] > 0.4])) == 1


def test_fractions_errors(toy_file, tmp_path):
    path, _ = toy_file()
    with pytest.raises(ConfigError, match=r"files: sample 'ritch' is not among .*; did you mean 'rich'"):
        fractions({"ritch": str(path), "poor": str(path)}, tmp_path / "i.root")
    with pytest.raises(ConfigError, match="files: none for sample 'rich'"):
        fractions({"poor": str(path)}, tmp_path / "i.root")
    with pytest.raises(KeyColumnError, match=r"keys \(run, event\) are in both"):
        fractions({"rich": str(path), "poor": str(path)}, tmp_path / "i.root")
    with pytest.raises(ConfigError, match="replicas: -1 found"):
        fractions(str(path), tmp_path / "i.root", "--weights.sample", "m > 0.4", "--replicas", "-1")
    with pytest.raises(ConfigError, match=r"no branch 'sample', the default .* files: \{rich: \.\.\., poor: \.\.\.\}"):
        fractions(str(path), tmp_path / "i.root")
    with pytest.raises(ConfigError, match="tree: one for each sample given"):
        fractions(str(path), tmp_path / "i.root", tree={"rich": "events", "poor": "events"})
    with pytest.raises(ConfigError, match=r"sample: 'm > 0\.4' given, expected the default"):
        fractions({"rich": str(path), "poor": str(path)}, tmp_path / "i.root", "--weights.sample", "m > 0.4")
    assert not list(tmp_path.glob("i.*"))


def test_fractions_of_samples_that_disagree(toy_file, tmp_path):
    """Three samples, the third with another fraction than claimed: refused, and with a warning written and told."""
    files = {}
    for run, (name, fraction) in enumerate({"rich": 0.7, "poor": 0.2, "middle": 0.7}.items(), 1):
        files[name] = str(toy_file(4000, seed=[37, run], name=f"{name}.root", fraction=fraction, run=run)[0])
    three = FRACTIONS | {"middle": {"signal": 0.4, "background": 0.6}}
    options = ["--weights.fractions", json.dumps(three)]
    with pytest.raises(FactorizationError, match="not mixtures of the same species"):
        fractions(files, tmp_path / "m.root", *options)
    assert not list(tmp_path.glob("m.*"))
    with pytest.warns(FactorizationWarning, match="not mixtures of the same species"):
        report = fractions(files, tmp_path / "m.root", *options, "--dependence", "warn")
    assert "consistency: are the samples mixtures of the same species" in str(report)
    stored = read_provenance(tmp_path / "m.root")["fractions"]["consistency"]
    assert [test["column"] for test in stored] == ["x", "y", "c"]
    assert min(test["p_corrected"] for test in stored) < 1e-3


def test_large_numbers_keep_their_digits(root_file, tmp_path):
    """All stays in double precision: a time stamp as context tests the same as its small part, and nothing is said."""
    arrays = CorrelatedToy().generate(2000, seed=35)
    arrays["t"] = 2.0**31 + arrays["c"]
    path = root_file(arrays, "stamps.root")
    found = {}
    for name in ("c", "t"):
        columns = ["--columns.features", "{x: }", "--columns.context", f"{{{name}: }}", "--columns.key", "[run, event]"]
        files = ["--files", str(path), "--tree", "events", "--output", str(tmp_path / f"{name}.root")]
        (found[name],) = [
            one for one in calorefine(["splot", *files, *columns, *FIT]).factorization if one.column == name
        ]
    assert found["t"].chi2 == pytest.approx(found["c"].chi2, rel=1e-3)
    assert found["t"].ndf == found["c"].ndf
