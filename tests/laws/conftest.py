"""The recipes that the laws are for: those of the package, one of a user's file, and GANs with other critics."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calorefine import Column, Columns, Events, keys
from calorefine.data.batches import Batch
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.module import Prepared
from calorefine.models import MODELS
from calorefine.models.base import TrainedModel
from calorefine.models.distillation import FlowStudent, Student, Taught
from calorefine.models.vae import VAE

sys.path.append(str(Path(__file__).parent))

from gan_recipes import OPTIONS, BatchWGAN, SumWGAN
from my_generators import TinyVAE


class FlowVAE(VAE):
    """A VAE whose prior is learned."""

    def __init__(self):
        super().__init__(prior="flow")


RECIPES = (
    MODELS
    | {recipe.__name__: recipe for recipe in (TinyVAE, FlowVAE, BatchWGAN, SumWGAN, Student, FlowStudent)}
    | OPTIONS
)
CLASSES = {name: getattr(recipe, "func", recipe) for name, recipe in RECIPES.items()}
TRAINED = sorted(name for name, recipe in CLASSES.items() if issubclass(recipe, TrainedModel))
OF_BATCHES = {"BatchWGAN", "SimilarWGAN"}
N, D = 240, 3
COLUMNS = Columns(features={"a": Column(), "b": Column(), "d": Column()}, context={"p": Column(), "q": Column()})


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads make single-event inference many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(recipe, rng):
    """Weights (N,) with n_eff far below N: signed ones, if the recipe can take them."""
    return rng.normal(0.5, 1.0, N) if recipe.signed_weights else rng.random(N) ** 4


def make_untrained(name, seed=5, *, kind="quantile", dtype=torch.float64):
    """A model as it is after set-up, but for its numbers of another type; its last feature is of this kind."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, context = rng.normal(size=(N, D)), rng.random((N, 2))
    x[:, 2] = np.round(2 * x[:, 2]) if kind == "integer" else x[:, 2]
    weight = weights(CLASSES[name], rng)
    prepared = Prepared(
        columns=COLUMNS,
        features=ColumnTransforms().fit_columns(
            x, weight, ["quantile", "standard", kind], ["a", "b", "d"], whiten=True
        ),
        context=ColumnTransforms().fit_columns(context, weight, ["quantile", "standard"], ["p", "q"]),
        domain=np.array([[0.0, 1.0], [0.0, 1.0]]),
        mean_weight=float(weight.mean()),
        provenance={"digest": "none", "n_train": N},
    )
    taught = issubclass(CLASSES[name], Taught)
    made = RECIPES[name](**({"teacher": "teacher.ckpt"} if taught else {}))
    made.prepare(prepared)
    if taught:
        teacher = RECIPES["Flow"](hidden=[8], n_bins=3)
        teacher.prepare(copy.deepcopy(prepared))
        made.learn_from(teacher.to(dtype), {"checkpoint": "teacher.ckpt", "checkpoint_sha256": "none"})
    key = keys.make_keys([np.arange(N)])
    made.take_events(Events(x.astype(np.float32), context.astype(np.float32), weight, key, key))
    return made if dtype == torch.float32 else made.to(dtype)


def make_sample(model, seed=6):
    """A full sample in network units, with weights that the model takes."""
    rng = np.random.default_rng(seed)
    weight = weights(type(model), rng)
    return Batch(*(torch.from_numpy(a) for a in (rng.normal(size=(N, D)), rng.normal(size=(N, 2)), weight)))


@pytest.fixture
def untrained():
    """The function `make_untrained`."""
    return make_untrained


@pytest.fixture(params=sorted(RECIPES))
def recipe(request):
    """Name of every recipe."""
    return request.param


@pytest.fixture
def model(recipe):
    """Every recipe, untrained."""
    return make_untrained(recipe)


@pytest.fixture(params=TRAINED)
def trained(request):
    """Every recipe that has an objective, untrained."""
    return make_untrained(request.param)


@pytest.fixture(params=[name for name in TRAINED if name not in OF_BATCHES])
def unbiased(request):
    """Every recipe whose minibatches estimate the full sample: those without statistics of a batch."""
    return make_untrained(request.param)


@pytest.fixture(params=[name for name in TRAINED if make_untrained(name).leading_axis])
def stackable(request):
    """Name of every recipe that can train side by side."""
    return request.param


@pytest.fixture
def sample_of():
    """The function `make_sample`."""
    return make_sample
