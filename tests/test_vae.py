"""The VAE: its bound, atoms with the probability of their mask, annealing, and codes that are those of the prior."""

import copy
import json
from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import uproot
from torch import distributions
from torch.utils.data import DataLoader

from calorefine import VAE, Column, Columns, Events, Simulator, keys
from calorefine.cli import calorefine
from calorefine.data.batches import Batch
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.module import Prepared
from calorefine.ensemble.side_by_side import together
from calorefine.errors import CheckpointError, ConfigError
from calorefine.fit.command import lightning
from calorefine.nets import Noise

SMALL = {"model.hidden": "[32, 32]", "data.batch_size": "128"}
COLUMNS = Columns({"x": Column(), "y": Column(bounds=(0, None))}, {"c": Column()})
PRIORS = ("normal", "flow")
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def table(n, seed):
    """y is exactly zero in 20 % to 80 % of the events, as c grows; x has two peaks, and y is larger in one of them."""
    rng = np.random.default_rng(seed)
    c, peak = rng.random(n), rng.choice([-1, 1], n)
    y = np.where(rng.random(n) < 0.2 + 0.6 * c, 0.0, rng.gamma(3 + peak, 1.0))
    keys = {"run": np.ones(n, np.uint32), "event": np.arange(n, dtype=np.uint64)}
    return {"c": c, "x": rng.normal(2 * peak, 0.3), "y": y, **keys}


def write(path, arrays):
    with uproot.recreate(path) as file:
        file.mktree("events", {name: values.dtype for name, values in arrays.items()}).extend(arrays)
    return path


def fit(path, runs, *options, model="VAE", seed=1, epochs=12, **others):
    """A run of the command on the toy."""
    given = [f"--{name}={value}" for name, value in (others or SMALL).items()]
    data = ["--data.files", str(path), "--data.tree", "events", "--data.columns.key", "[run, event]"]
    data += ["--data.columns.features", "{x: , y: {bounds: [0, null]}}", "--data.columns.context", "{c: }"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", str(epochs), *quiet]
    where = ["--runs", str(runs), "--seed_everything", str(seed)]
    return lightning(["fit", *data, "--model", model, *trainer, *where, *given, *options])


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write(tmp_path_factory.mktemp("vae") / "toy.root", table(4000, 70))


@pytest.fixture(scope="module", params=PRIORS)
def trained(request, sample, tmp_path_factory):
    """Checkpoint of a training with each prior."""
    run = fit(sample, tmp_path_factory.mktemp("runs"), "--model.prior", request.param)
    return run.run_dir / "checkpoints" / "best.ckpt"


def test_zeros_have_their_probability_at_each_context(trained):
    """Seed 70.  Over 4 seeds of the training, with either prior, the share of zeros at c = 0.9 was off by -0.041(3).

    At c = 0.1 it was 0.016(2), at 0.5 -0.004(4): the limit 0.08 is 13 spreads away.
    """
    simulator = Simulator.load(trained)
    for c in (0.1, 0.5, 0.9):
        made = simulator.sample({"c": np.full(10_000, c)}, seed=1)["y"]
        assert np.mean(made == 0) == pytest.approx(0.2 + 0.6 * c, abs=0.08)
        assert made.min() == 0
        assert np.isfinite(made).all()


def prepared(seed, *, zeros=True, **options):
    """A VAE on the toy, untrained, and its events in network units; without zeros there is no atom."""
    arrays = table(600, seed)
    x = np.stack([arrays["x"], arrays["y"] if zeros else np.random.default_rng(seed).gamma(2, 1, 600)], axis=1)
    context, weight = arrays["c"][:, None], np.random.default_rng(seed).random(600)
    maps = (
        ColumnTransforms().fit_described(x, weight, COLUMNS.feature_columns),
        ColumnTransforms().fit_described(context, weight, COLUMNS.context_columns),
    )
    torch.manual_seed(seed)
    model = VAE(hidden=[16, 16], **options)
    model.prepare(Prepared(COLUMNS, *maps, np.array([[0.0, 1.0]]), float(weight.mean()), {"digest": "none"}))
    network = [transform(torch.from_numpy(part)) for transform, part in zip(maps, (x, context), strict=True)]
    return model.double(), Batch(*(part.double() for part in (*network, torch.from_numpy(weight))))


def test_the_objective_is_the_bound():
    """By the distributions of torch, event by event."""
    model, events = prepared(71)
    parts, network = model.parts(events.x), model.autoencoder
    mean, log_width = network.encode(parts, events.context)
    posterior = distributions.Normal(mean, log_width.exp())
    code = mean + log_width.exp() * Noise(3).normal(600, 2).double()
    decoded = network.decode(code, events.context)
    values = distributions.Normal(decoded.mean, decoded.log_width.exp()).log_prob(parts.y)
    bits = distributions.Bernoulli(logits=decoded.logit[:, 1]).log_prob(parts.masked[:, 1].double())
    assert 0.2 < parts.masked[:, 1].double().mean() < 0.8
    divergence = distributions.kl_divergence(posterior, distributions.Normal(0.0, 1.0)).sum(1)
    bound = values[:, 0] + torch.where(parts.masked[:, 1], 0.0, values[:, 1]) + bits - divergence
    expected = -(events.weight * bound).mean() / events.weight.mean()
    torch.testing.assert_close(model.objective(events, Noise(3)), expected)


def test_a_flow_that_is_the_identity_is_the_normal_prior():
    """Its divergence, by one code for each event, is on average the exact one."""
    model, events = prepared(72, prior="flow")
    network, parts = model.autoencoder, model.parts(events.x)
    posterior = network.encode(parts, events.context)
    network.flow.forward = lambda code, context: (code, torch.zeros(len(context)))
    codes = [posterior.at(noise) for noise in Noise(1).normal(2000, *posterior.mean.shape).double()]
    estimates = torch.stack([network.divergence(posterior, code, events.context) for code in codes])
    network.flow = None
    difference = estimates.mean(0) - network.divergence(posterior, codes[0], events.context)
    assert (difference.abs() < 6 * estimates.std(0) / 2000**0.5).all()


class Weights(pl.Callback):
    """Notes the weight of the divergence, after each batch."""

    seen: ClassVar[list] = []

    def on_train_batch_end(self, trainer, model, *_):
        self.seen.append((trainer.current_epoch, trainer.fit_loop.batch_idx, model.divergence_weight))


def test_the_divergence_is_annealed_over_the_first_part_of_a_run(sample, tmp_path):
    """Resumed or not: it is a function of epoch and batch."""
    options = ["--trainer.callbacks+", f"{__name__}.Weights", "--model.annealing", "0.5"]
    Weights.seen.clear()
    run = fit(sample, tmp_path, *options, epochs=4)
    n = run.trainer.num_training_batches
    expected = [(epoch, batch, min((epoch * n + batch) / (2 * n), 1.0)) for epoch in range(4) for batch in range(n)]
    assert Weights.seen == [(epoch, batch, pytest.approx(weight)) for epoch, batch, weight in expected]
    assert run.model.divergence_weight == 1
    assert VAE(annealing=0.5).divergence_weight == VAE(annealing=0).divergence_weight == 1


def parameters(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.network.parameters()])


@pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*")
@pytest.mark.parametrize("prior", PRIORS)
def test_replicas_with_other_atoms_train_side_by_side(prior):
    """One has zeros, the other has none: each becomes what it becomes alone."""
    pairs = [prepared(73, prior=prior), prepared(74, prior=prior, zeros=False)]
    replicas, events = zip(*pairs, strict=True)
    batches = [[Batch(*(a[first : first + 100] for a in sample)) for first in range(0, 600, 100)] for sample in events]
    stacked = [Batch(*map(torch.stack, zip(*pair, strict=True))) for pair in zip(*batches, strict=True)]
    joined = together([copy.deepcopy(replica) for replica in replicas], [])
    pl.Trainer(accelerator="cpu", max_epochs=2, **QUIET).fit(joined, DataLoader(stacked, batch_size=None))
    for index, (replica, own) in enumerate(zip(replicas, batches, strict=True)):
        before = parameters(replica)
        pl.Trainer(accelerator="cpu", max_epochs=2, **QUIET).fit(replica, DataLoader(own, batch_size=None))
        moved = (parameters(replica) - before).abs().max()
        assert moved > 1e-3
        assert (parameters(joined.split_off(index)) - parameters(replica)).abs().max() < 1e-4 * moved


def latent_distance(checkpoint):
    """On events that no training has seen; seed 75."""
    arrays, simulator = table(4000, 75), Simulator.load(checkpoint)
    key = keys.make_keys([arrays["event"]])
    encoded = simulator.columns.encode_features(arrays), simulator.columns.encode_context(arrays)
    return simulator.latent_distance(Events(*encoded, np.ones(4000), key, key))


def test_codes_are_those_of_a_learned_prior(sample, tmp_path):
    """Closer than to a normal one, with a divergence weight that is small for most of the run and leaves codes free.

    Over 5 and 4 seeds of the training the distances were 0.012(6), the smallest 0.0047, and 0.0005(5), the largest
    0.0011: by the spreads of their logarithms a pair is in the wrong order with a chance of 1 %.  With this seed they
    are 0.017 and 0.0007.
    """
    runs = {prior: fit(sample, tmp_path, "--model.prior", prior, "--model.annealing", "1") for prior in PRIORS}
    normal, flow = (latent_distance(runs[prior].run_dir / "checkpoints" / "last.ckpt") for prior in PRIORS)
    assert flow.value < normal.value
    assert flow.value < 0.02
    assert normal.error > 0


def test_validate_tells_the_latent_distance(trained, tmp_path):
    sample = write(tmp_path / "reference.root", table(600, 77))
    generated, output = tmp_path / "generated.root", tmp_path / "validation.json"
    sampled = ["--checkpoint", str(trained), "--conditions", str(sample), "--output", str(generated)]
    calorefine(["sample", *sampled, "--pass-through", "run,event"])
    files = ["--generated", str(generated), "--reference", str(sample), "--repetitions", "1", "--output", str(output)]
    found = calorefine(["validate", *files, "--checkpoint", str(trained)])
    written = json.loads(output.read_text())["latent_distance"]
    assert written == {"value": found.latent_distance.value, "error": found.latent_distance.error}
    assert abs(written["value"]) < 0.2
    assert 0 < written["error"] < 0.05
    assert "latent space: energy distance of reference codes from the prior " in str(found)
    Simulator.load(trained).save(tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other.ckpt \(\w+\) found, expected best.ckpt \(\w+\), with which .*"):
        calorefine(["validate", *files, "--checkpoint", str(tmp_path / "other.ckpt"), "--overwrite", "true"])


def test_a_model_without_codes(sample, tmp_path):
    run = fit(sample, tmp_path, model="Library", epochs=1, **{"data.batch_size": "128"})
    simulator = Simulator.load(run.run_dir / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigError, match="a Library encodes no events, expected one of VAE"):
        simulator.latent_distance(run.datamodule.train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_code": 0}, "n_code: 0 found, expected at least 1"),
        ({"annealing": 1.5}, "annealing: 1.5 found, expected a part of the run, from 0 to 1"),
        ({"prior": "flow", "n_code": 1}, "n_code: 1 found with prior 'flow', expected at least 2"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        prepared(76, **options)
