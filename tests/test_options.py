"""Options that can't be used: one line with place, value, near names and classes, for both commands."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml

from calorefine.cli import calorefine_main, lightning_main
from calorefine.errors import ConfigError
from calorefine.options import load_yaml

CONFIGS = Path(__file__).parents[1] / "configs"
BASE = yaml.safe_load((CONFIGS / "weighted_cramer_gan.yaml").read_text())
BASE["data"]["columns"] = str(CONFIGS / "electron_columns.yaml")
MODELS = "expected .*CramerGAN, .*WGAN.*or one of your own"
COLUMNS = {"features": {"x": None}, "context": {"p": None}}


def changed(place, value):
    """The configuration with another value somewhere; None takes it out."""
    config = copy.deepcopy(BASE)
    *groups, last = place.split("/")
    part = config
    for group in groups:
        part = part.setdefault(group, {})
    if value is None:
        del part[last]
    else:
        part[last] = value
    return config


def message(main, words, monkeypatch, capsys):
    """What a command says as it ends with an error."""
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (1, 2)
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    return printed.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("datas", BASE["data"], "datas: no such option; did you mean 'data'?"),
        ("data/batchsize", 3, "data.batchsize: no such option; did you mean 'data.batch_size'?"),
        ("trainer/max_epoch", 3, "trainer.max_epoch: no such option; did you mean 'trainer.max_epochs'?"),
        ("model/class_path", "CramerGan", f"model: 'CramerGan' .*did you mean 'CramerGAN'.*{MODELS}"),
        ("model/class_path", "SPlot", f"model: 'SPlot' is no class that fits; {MODELS}"),
        ("model/init_args", {"n_critics": 3}, "model.init_args.n_critics: no option of CramerGAN; .*'n_critic'.*act,"),
        ("model", 3, "model: '3' found, expected a class \\(.*CramerGAN.*"),
        ("data/weights/class_path", "Splot", "data.weights: 'Splot' .*'SPlot'.*LabelFractions.*"),
        (
            "data/weights/init_args/species/signal",
            {"class_path": "Gausian"},
            ".*species: 'Gausian' .*'Gaussian'.*Voigt.*",
        ),
        ("data/weights/init_args/range", "wide", "data.weights.init_args.range: 'wide' found, expected a list"),
        ("data/weights/init_args/range", [1], ".*init_args.range: '\\[1\\]' found, expected a list of 2"),
        ("data/weights/init_args/spectator", None, "data.weights.init_args.spectator: missing, and without a default"),
        ("trainer/max_epochs", "many", "trainer.max_epochs: 'many' found, expected an integer or null"),
        ("data/files", None, "data.files: missing, and without a default"),
        ("data/columns", "none.yaml", "data.columns: 'none.yaml' is no file.*"),
        (
            "data/columns",
            COLUMNS | {"contex": {"q": None}},
            "data.columns.contex: .*did you mean 'data.columns.context'.*",
        ),
        (
            "data/columns",
            COLUMNS | {"features": {"x": {"transform": "standart"}}},
            ".*'quantile' or .*mean 'standard'.*",
        ),
        ("data/columns", COLUMNS | {"features": {"x": {"expresion": "y"}}}, ".*no option of Column; .*'expression'.*"),
        ("data/columns", COLUMNS | {"cut": 1}, "data.columns.cut: '1' found, expected text or null; .* in quotes"),
        ("data/columns", COLUMNS | {"key": ["run", False]}, "data.columns.key: 'False' found, .* in quotes"),
        (
            "data/columns",
            COLUMNS | {"features": {False: None}},
            ".*line 7: YAML reads the key 'false' as .* in quotes.*",
        ),
        ("data/weights", False, "data.weights: 'False' found, expected a class .*text; .* in quotes"),
        ("trainer", 3, "trainer: 3 found, expected a mapping of options"),
        ("trainer", [3], "trainer: \\[3\\] found, expected a mapping of options"),
        ("threads", 0, "threads: 0 found, expected 1 to 512"),
        ("seed_everything", -1, "seed_everything: -1 found, expected 0 to 4294967295"),
    ],
)
def test_fit(place, value, expected, tmp_path, monkeypatch, capsys):
    config = tmp_path / "wrong.yaml"
    config.write_text(yaml.safe_dump(changed(place, value)))
    found = message(lightning_main, ["lightning", "fit", "-c", config], monkeypatch, capsys)
    assert re.fullmatch(expected + ".*", found)
    assert len(found) < 400


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"data": BASE["data"] | {"weights": None}}, "data.weights: null found, .* in quotes"),
        ({"threads": None}, "threads: null found, .* in quotes"),
        ({"seed_everything": None}, "seed_everything: null found, .* in quotes"),
        ({"trainer": None}, "trainer: (null|None) found, expected a mapping of options"),
    ],
)
def test_nulls(changed, expected, tmp_path, monkeypatch, capsys):
    config = tmp_path / "wrong.yaml"
    config.write_text(yaml.safe_dump(BASE | changed))
    found = message(lightning_main, ["lightning", "fit", "-c", config], monkeypatch, capsys)
    assert re.fullmatch(expected + ".*", found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lightning", "fti"], "'fti' is no verb; did you mean 'fit'?"),
        (["lightning", "fit", "--max_epochs", "3"], "max_epochs: no such option; did you mean 'trainer.max_epochs'?"),
        (["lightning", "fit", "c.yaml"], "'c.yaml' found where an option is expected, as in '-c c.yaml'"),
        (["calorefine", "sample"], "checkpoint, conditions, output: missing, and without a default"),
        (["calorefine", "sample", "--checkpont", "a"], "checkpont: no such option; did you mean 'checkpoint'?"),
        (["calorefine", "reweight", "--rounds", "x"], "rounds: 'x' found, expected an integer"),
        (["calorefine", "reweight", "--tree_format", "tree"], "tree_format: "),
        (["calorefine", "reweight", "--estimator", "BostingRatio"], "estimator: 'BostingRatio' is no class that fits"),
        (
            ["calorefine", "reweight", "--estimator", "BoostingRatio", "--estimator.n_tree", "3"],
            "estimator.init_args.n_tree",
        ),
        (["calorefine", "splot", "-c", CONFIGS / "reweight.yaml"], "estimator: no such option; expected one of "),
        (
            ["calorefine", "splot", "-c", CONFIGS / "splt.yaml"],
            f"config: '{CONFIGS / 'splt.yaml'}' is no file; did you mean",
        ),
    ],
)
def test_command_lines(words, expected, monkeypatch, capsys):
    main = {"lightning": lightning_main, "calorefine": calorefine_main}[words[0]]
    found = message(main, words, monkeypatch, capsys)
    assert found.startswith(expected)
    assert "\n" not in found


@pytest.mark.parametrize("words", [["lightning", "fit"], ["calorefine", "splot"]])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("files: a.root\ntree: t\nfiles: b.root\n", "line 3: 'files' is there already in line 1"),
        ("columns: {features: {no: }, context: {}}", "line 1: YAML reads the key 'no' as true or false"),
        ("columns: {features: {1: }, context: {}}", "line 1: YAML reads the key '1' as a number"),
        ("files: [a\ntree: x\n", "line 2, column 5: "),
        ("- a\n- b\n", "'- a - b' found, expected options by name"),
    ],
)
def test_yaml(words, text, expected, tmp_path, monkeypatch, capsys):
    """Sub-files of columns are read in the same way."""
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    main = {"lightning": lightning_main, "calorefine": calorefine_main}[words[0]]
    assert expected in message(main, [*words, "-c", path], monkeypatch, capsys)


def test_keys_of_yaml():
    assert load_yaml("a: &x {b: 1}\nc: {<<: *x, d: 'no'}\ne: [{f: 1}, {f: 2}]\n")["c"] == {"b": 1, "d": "no"}
    with pytest.raises(ConfigError, match="line 4: 'cut' is there already in line 2"):
        load_yaml("columns:\n  cut: x > 0\n  key: [run]\n  cut: y > 0\n")


def test_errors_of_constructors_within_unions(monkeypatch, capsys):
    labels = "{class_path: LabelProbabilities, init_args: {probabilities: {a: p, b: q}}}"
    columns = "{features: {x: }, context: {}}"
    words = ["calorefine", "fractions", "--files", "a", "--tree", "t", "--columns", columns, "--weights", labels]
    found = message(calorefine_main, [*words, "--output", "o.root"], monkeypatch, capsys)
    assert found == "target: species 'signal' is not among a, b"
