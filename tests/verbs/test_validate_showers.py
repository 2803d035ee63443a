"""The verb on showers: HDF5 files and a checkpoint in, JSON and a page out."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from calorefine import EventDataModule, Simulator
from calorefine.cli import calorefine
from calorefine.data.showers import Showers as ShowerMap
from calorefine.errors import CheckpointError, ConfigError
from calorefine.models.flow import Flow
from calorefine.models.two_step import TwoStep
from calorefine.models.vae import VAE
from calorefine.pages import shower_panels, style
from calorefine.pages.validation import overlay_figure
from calorefine.twosample import embedding, shower_classifier
from calorefine.verbs import shower_generator, validate_showers
from tests.data.shower_toy import COLUMNS, ENTRY, draw

ROOT = Path(__file__).parent.parent.parent
QUICK = ["--network", "{hidden: [8], epochs: 1}", "--repetitions", "1", "--tree", "/"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Little time for each part."""
    monkeypatch.setattr(shower_classifier, "N_TREES", 10)
    monkeypatch.setattr(embedding, "N_PER_SIZE", 2)
    monkeypatch.setattr(embedding, "N_REPLICAS", 3)
    monkeypatch.setattr(style, "fit_texts", lambda *_: None)  # which measures all texts of a picture again and again
    monkeypatch.setattr(style, "DPI", 40)
    two = lambda drawn: overlay_figure(dict(list(drawn.items())[:2]))  # noqa: E731  # of the panels of a layer
    monkeypatch.setattr(shower_panels, "overlay_figure", two)
    monkeypatch.setattr(shower_generator, "TIMED_FOR", 0.01)
    monkeypatch.setattr(shower_generator, "BATCHES", (1, 20))


def write(path, seed, n=300, scale=1.0):
    """A file of toy showers, with weights and rows."""
    events = draw(n, seed)
    with h5py.File(path, "w") as file:
        file["showers"], file["row"] = events.x * np.float32(scale), np.arange(n) + 1000 * seed
        file["w"], file["incident_energies"] = events.weight, 1000 * events.context[:, 0]
        for place, name in enumerate(("e_inc_gev", *ENTRY)):
            file[name] = events.context[:, place]
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Reference, training showers, a generator that wasn't trained, and its showers."""
    folder = tmp_path_factory.mktemp("showers")
    reference, training = write(folder / "reference.h5", 1), write(folder / "training.h5", 2)
    columns = {**COLUMNS.to_dict(), "key": ["row"]}
    (folder / "columns.yaml").write_text(yaml.safe_dump(columns))
    data = EventDataModule(
        files=str(training), tree="/", columns=type(COLUMNS).from_dict(columns), preprocessing=ShowerMap(epochs=2)
    )
    data.setup()
    torch.manual_seed(0)
    model = TwoStep(first=Flow(hidden=[16]), then=VAE())
    model.prepare(data.prepared)
    Simulator(model, model.spec).save(folder / "model.ckpt")
    options = [
        "--tree",
        "/",
        "--conditions",
        str(reference),
        "--pass_through",
        "row,incident_energies,e_inc_gev,x_mm,y_mm,w",
    ]
    calorefine(["sample", "--checkpoint", str(folder / "model.ckpt"), "--output", str(folder / "made.h5"), *options])
    return folder


def test_everything_from_files_to_a_page(folder, tmp_path, self_contained, capsys):
    output = tmp_path / "v.json"
    options = {"generated": "made.h5", "reference": "reference.h5"}
    options |= {"training": "training.h5", "checkpoint": "model.ckpt"}
    given = [f"--{name}={folder / file}" for name, file in options.items()]
    given += ["--others", f"{{again: {{files: {folder / 'made.h5'}, weight: w}}}}", "--generated.weight", "w"]
    found = calorefine(["validate", "--showers", "true", *given, *QUICK, "--output", str(output)])
    content = json.loads(output.read_text())
    assert content.pop("provenance")["options"]["showers"] is True
    assert content == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["twins"] == "keys" and content["generated"]["n_eff"] < 300
    assert set(content["classifiers"]) == {"lin", "frame", "high"}
    assert set(content["times"]["per_shower"]) == {"1", "20"} and content["training"]["n"] == [300, 300, 300]
    assert set(content["posterior"]["own"]) == {"generated", "again"}
    page = output.with_suffix(".html").read_text()
    outline = self_contained(page)
    pictures = [text for text in outline.references if text.startswith("data:")]
    # response 2, average, singles, profiles 1 + 4 + 2, whole showers 3, layers 2, traversals 3
    assert len(pictures) == 2 + 2 + 7 + 3 + 2 + 3
    for part in ("300 + 300", "varied, everything else and the noise the same", "sees smearing", "Spectrum"):
        assert part in page
    assert "s: pictures" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"v.json", "v.html"}


def test_the_same_seed_gives_the_same_numbers(folder, tmp_path, monkeypatch):
    """By the shipped configuration; its page is that of the test above."""
    monkeypatch.setattr(validate_showers, "shower_sections", lambda *_: [])
    config = yaml.safe_load((ROOT / "configs" / "validate_showers.yaml").read_text())
    config |= {"generated": str(folder / "made.h5"), "reference": str(folder / "reference.h5")}
    (tmp_path / "v.yaml").write_text(yaml.safe_dump(config))
    texts = []
    for name in ("a", "b"):
        output = tmp_path / f"{name}.json"
        calorefine(["validate", "-c", str(tmp_path / "v.yaml"), *QUICK, "--output", str(output)])
        content = json.loads(output.read_text())
        texts.append({key: value for key, value in content.items() if key not in ("output", "page", "provenance")})
    assert texts[0] == texts[1]
    assert texts[0]["classifiers"]["lin"]["about"].endswith("8")


def test_what_is_refused(folder, tmp_path):
    files = {"generated": str(folder / "made.h5"), "reference": str(folder / "reference.h5")}
    given = [*(f"--{name}={file}" for name, file in files.items()), "--tree", "/", "--output", str(tmp_path / "v.json")]
    shower = ["validate", "--showers", "true", *given]
    with pytest.raises(ConfigError, match="'generated' is the name of the model of the option generated"):
        calorefine([*shower, "--others", f"{{generated: {{files: {files['generated']}}}}}"])
    with pytest.raises(ConfigError, match="network: given without showers"):
        calorefine(["validate", *given, "--network.epochs", "3"])
    with pytest.raises(CheckpointError, match="with which"):
        write(tmp_path / "other.h5", 3)
        told = ["--columns", str(folder / "columns.yaml"), "--checkpoint", str(folder / "model.ckpt")]
        calorefine([*shower, *told, "--generated", str(tmp_path / "other.h5")])
    columns = yaml.safe_load((folder / "columns.yaml").read_text())
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump({**columns, "showers": None}))
    with pytest.raises(ConfigError, match="`showers` isn't given, expected the geometry"):
        calorefine([*shower, "--columns", str(tmp_path / "plain.yaml")])
    assert not list(tmp_path.glob("v.*"))
