"""Small ROOT files, small checkpoints and a check of pages, for all tests."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import uproot

from calorefine import Column, Columns, EventDataModule, Simulator
from calorefine.models import MODELS

FORMATS = ("ttree", "rntuple")
collect_ignore_glob = ["data/written_by_0.1/*"]  # a script for version 0.1


@pytest.fixture(autouse=True)
def one_thread():
    """Several processes test at the same time: what a configuration says of threads ends with its test."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def write_root(path, arrays, *, tree="events", tree_format="ttree", step=None):
    """Write a flat tree; `step` rows to an extension."""
    n = len(next(iter(arrays.values())))
    with uproot.recreate(path) as file:
        make = file.mktree if tree_format == "ttree" else file.mkrntuple
        target = make(tree, {name: array.dtype for name, array in arrays.items()})
        for first in range(0, n, step or max(n, 1)):
            target.extend({name: array[first : first + (step or n)] for name, array in arrays.items()})
    return path


@pytest.fixture(params=FORMATS)
def tree_format(request):
    """TTree and RNTuple."""
    return request.param


@pytest.fixture
def root_file(tmp_path):
    """Function that writes arrays to a ROOT file in the test's folder and returns its path."""

    def write(arrays, name="events.root", **options):
        return write_root(tmp_path / name, arrays, **options)

    return write


def toy_arrays(n, *, seed=0, first=0):
    """Events with features `x`, `k` (an integer), context `P` (MeV), `charge`, weight `w` (signed) and keys."""
    rng = np.random.default_rng(seed)
    momentum = rng.uniform(1000, 10000, n)
    return {
        "run": np.full(n, 7, np.uint32),
        "event": np.arange(first, first + n, dtype=np.int64) + 2**60,
        "P": momentum,
        "charge": rng.choice([-1, 1], n).astype(np.int32),
        "x": rng.normal(momentum / 5000, 1.0).astype(np.float32),
        "k": rng.poisson(2, n).astype(np.int32),
        "w": rng.normal(0.5, 1.0, n),
    }


@pytest.fixture
def toy():
    """The function `toy_arrays`."""
    return toy_arrays


TOY_COLUMNS = Columns(
    features={"x": Column(), "k": Column(transform="standard")},
    context={"p_gev": Column("P", branch_unit="MeV"), "charge": Column(categories=[-1, 1])},
    key=["run", "event"],
)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """A data module over 600 toy events, set up."""
    path = write_root(tmp_path_factory.mktemp("toy") / "training.root", toy_arrays(600))
    data = EventDataModule(files=str(path), tree="events", columns=TOY_COLUMNS, weights="w", batch_size=64)
    data.setup()
    return data


@pytest.fixture(scope="session", params=sorted(MODELS))
def checkpoint(request, toy_data, tmp_path_factory):
    """A checkpoint of every registered model, prepared on toy data and not trained."""
    torch.manual_seed(3)
    model = MODELS[request.param]()
    model.prepare(toy_data.prepared)
    path = tmp_path_factory.mktemp("checkpoint") / f"{request.param}.ckpt"
    Simulator(model, model.spec).save(path)
    return path


@pytest.fixture(scope="session")
def one_checkpoint(toy_data, tmp_path_factory):
    """The checkpoint of one model, where the model doesn't matter."""
    torch.manual_seed(3)
    model = next(iter(MODELS.values()))()
    model.prepare(toy_data.prepared)
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    Simulator(model, model.spec).save(path)
    return path


class Outline(HTMLParser):
    """Checks that tags are balanced, and collects texts, tags and references."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.references, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        assert not any(name.startswith("on") for name in names)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parse_self_contained(text):
    """Parse a page and check that it refers to nothing outside."""
    outline = Outline(text)
    assert all(reference.startswith(("data:image/", "#part-")) for reference in outline.references)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(outline.tags)
    assert len(outline.ids) == len(set(outline.ids))
    assert {reference[1:] for reference in outline.references if reference.startswith("#")} == set(outline.ids)
    styles = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in styles
    assert "@import" not in styles
    assert "http" not in "".join(outline.texts)
    return outline


@pytest.fixture
def self_contained():
    """The function `parse_self_contained`."""
    return parse_self_contained
