r"""Density ratio by small networks, trained on signed weights with a bounded cross entropy.

Each member is a network whose output passes B tanh(f / B), with B the logarithm of the largest ratio: the cross entropy

.. math:: \frac{1}{|B|} \sum_{g \in B} \frac{v_g}{\bar v} \log(1 + e^{f_g})
          + \frac{1}{|B|} \sum_{r \in B} \frac{w_r}{\bar w} \log(1 + e^{-f_r})

is then bounded below for weights w of any sign, and lowest on average where f is the log ratio.  The means of the
weights are over the rows that the member sees, so that both samples have equal shares in its training.  Least squares,
Kullback and Leibler's and the square-root objective have their minimum at the same place; `benchmarks/reweighting.py`
compares them.  Inputs are mapped to normal distributions by weighted quantiles and whitened.  All members train at the
same time on an extra axis of their tensors, each on batches of its own.

References: Nachman and Thaler, arXiv:2007.11586 (signed weights in a classifier's loss); Stoye et al., arXiv:1808.00973
(objectives of the ratio); Smith and Topin, arXiv:1708.07120 (one cycle of the learning rate).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.nn.functional import silu, softplus
from torch.utils.data import DataLoader, IterableDataset

from calorefine import stats
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.knots import Transform
from calorefine.errors import ConfigError, TrainingError
from calorefine.reweighting.ratio import Members, RatioEstimator, Table
from calorefine.stats import FloatArray

EVENTS_PER_UNIT = 20_000
ROWS = 1024  # in a block of `log_ratios`
MOST_FITTED = 100_000  # rows of either sample for the preprocessing
Batch = tuple[torch.Tensor, torch.Tensor]


class Networks(nn.Module, Members):
    """Several networks of one shape, side by side, with their common preprocessing.

    Args:
        inputs: map of the rows to network units.
        widths: number of inputs, of units in each hidden layer, and 1.
        n_members: how many networks.
        bound: largest absolute log ratio.
        generator: source of their random start.
    """

    def __init__(
        self, inputs: ColumnTransforms, widths: list[int], n_members: int, bound: float, generator: torch.Generator
    ) -> None:
        """Draw the weights; those of the last layer start small."""
        super().__init__()
        self.inputs, self.widths, self.n_members, self.bound = inputs, widths, n_members, bound
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for layer, (n_in, n_out) in enumerate(pairwise(widths)):
            size = (0.1 if layer == len(widths) - 2 else math.sqrt(2)) / math.sqrt(n_in)
            self.weights.append(size * torch.randn(n_members, n_in, n_out, generator=generator))
            self.biases.append(torch.zeros(n_members, 1, n_out))

    def forward(self, z: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        """Log ratios (k, b) that these members, or all, give to inputs (k, b, d), a batch for each."""
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            own = (weight, bias) if which is None else (weight[which], bias[which])
            z = torch.baddbmm(own[1], z, own[0])
            z = silu(z) if layer < last else z
        return self.bound * torch.tanh(z[..., 0] / self.bound)

    @torch.inference_mode()
    def log_ratios(self, values: NDArray[np.float32], which: NDArray[np.int64]) -> FloatArray:
        """Log ratios (k, n) that k of the members give to rows (n, d).

        Blocks are of one size, filled up with the last row: a smaller matrix product may be summed in another order,
        and a row's result would depend on the rows beside it.
        """
        out, members = np.empty((len(which), len(values))), torch.from_numpy(which)
        for first in range(0, len(values), ROWS):
            rows = np.minimum(np.arange(first, first + ROWS), len(values) - 1)
            z = self.inputs(torch.from_numpy(values[rows]))
            found = self(z.expand(len(which), -1, -1), members).numpy()
            out[:, first : first + ROWS] = found[:, : len(values) - first]
        return out

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        return {"widths": self.widths, "n_members": self.n_members, "bound": self.bound, "tensors": self.state_dict()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Networks:
        """Inverse of `state`."""
        tensors = state["tensors"]
        inputs = ColumnTransforms().restore({part: tensors[f"inputs.{part}"] for part in ColumnTransforms.parts})
        networks = cls(inputs, state["widths"], state["n_members"], state["bound"], torch.Generator())
        networks.load_state_dict(tensors)
        return networks.eval()


class NetworkRatio(RatioEstimator):
    """Density ratio by networks; takes signed reference weights as they are.

    Args:
        hidden: widths of the hidden layers.
        updates: number of steps with 20 000 events; it grows with the root of the larger sample's size.
        batch_size: of each sample, for each member.
        learning_rate: highest rate of AdamW, in one cycle.
        weight_decay: of AdamW.
        positive: replace signed reference weights by their conditional mean E[w | values], estimated for each fold from
            the events outside of it (`calorefine.weights.positive`): less noise, for a bias that its regression brings.
        n_folds: into how many parts the events are divided; a member leaves out one.
        n_repeats: how many members leave out the same part.
        max_ratio: bound of the density ratio, and of its inverse.

    Raises:
        ConfigError: a number that is not positive.
    """

    members = Networks

    def __init__(
        self,
        *,
        hidden: list[int] | None = None,
        updates: int = 400,
        batch_size: int = 512,
        learning_rate: float = 8e-3,
        weight_decay: float = 0.1,
        positive: bool = False,
        n_folds: int = 4,
        n_repeats: int = 2,
        max_ratio: float = 100.0,
    ) -> None:
        """Check and store the options."""
        super().__init__(n_folds=n_folds, n_repeats=n_repeats, max_ratio=max_ratio)
        self.hidden = [64, 64] if hidden is None else hidden
        sizes = {"updates": updates, "batch_size": batch_size, "learning_rate": learning_rate}
        for name, value in (sizes | {f"hidden, layer {k}": width for k, width in enumerate(self.hidden)}).items():
            if not value > 0:
                raise ConfigError(f"{name}: {value} found, expected a positive number")
        self.updates, self.batch_size = updates, batch_size
        self.learning_rate, self.weight_decay, self.positive = learning_rate, weight_decay, positive

    def fit_members(
        self, generated: Table, reference: Table, folds: tuple[NDArray[np.int64], NDArray[np.int64]], *, seed: int
    ) -> Networks:
        """Train all members at the same time.

        Raises:
            TrainingError: a parameter is NaN or infinite.
        """
        generator = torch.Generator().manual_seed(seed)
        inputs = _preprocessing(generated, reference)
        n_members, bound = self.n_folds * self.n_repeats, math.log(self.max_ratio)
        networks = Networks(inputs, [inputs.n_columns, *self.hidden, 1], n_members, bound, generator)
        steps = round(self.updates * math.sqrt(max(len(generated), len(reference)) / EVENTS_PER_UNIT)) + 1
        rows = [[torch.from_numpy(np.flatnonzero(fold != k)) for k in range(self.n_folds)] for fold in folds]
        batches = _Batches([fold * self.n_repeats for fold in rows], self.batch_size, steps, generator)
        weights = self._member_weights(generated, folds[0]), self._member_weights(reference, folds[1])
        mapped = [inputs(torch.from_numpy(table.values)) for table in (generated, reference)]
        module = _Training(networks, mapped, weights, steps, (self.learning_rate, self.weight_decay))
        _train(module, DataLoader(batches, batch_size=None, generator=generator), steps)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in networks.parameters()):
            raise TrainingError("density ratio: a network's parameters became NaN or infinite; lower learning_rate")
        return networks.eval()

    def _member_weights(self, table: Table, fold: NDArray[np.int64]) -> NDArray[np.float32]:
        """Weights (k, n) for each member, of mean 1 over the rows outside of its fold, from these alone; 0 within."""
        out = np.zeros((self.n_folds, len(table)), np.float32)
        for k in range(self.n_folds):
            rows = fold != k
            own = table.take(rows).with_positive_weights().weight if self.positive else table.weight[rows]
            out[k, rows] = own * (len(own) / stats.sum_w(own))
        return np.tile(out, (self.n_repeats, 1))


class _Batches(IterableDataset[Batch]):
    """Random rows (k, b) of the generated and of the reference events, for each member from those that it may see."""

    def __init__(self, rows: list[list[torch.Tensor]], size: int, steps: int, generator: torch.Generator) -> None:
        self.rows, self.size, self.steps, self.generator = rows, size, steps, generator

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            yield self._draw(self.rows[0]), self._draw(self.rows[1])

    def _draw(self, rows: list[torch.Tensor]) -> torch.Tensor:
        drawn = [own[torch.randint(len(own), (self.size,), generator=self.generator)] for own in rows]
        return torch.stack(drawn)


class _Training(LightningModule):
    """The recipe: bounded cross entropy, AdamW, one cycle of the rate.

    Args:
        networks: what is trained.
        z: (n, d) generated and (m, d) reference inputs.
        weights: (k, n) and (k, m) for each of the k members, of mean 1 over the rows that it may see.
        steps: number of updates.
        rates: highest learning rate and weight decay.
    """

    def __init__(
        self,
        networks: Networks,
        z: list[torch.Tensor],
        weights: tuple[NDArray[np.float32], NDArray[np.float32]],
        steps: int,
        rates: tuple[float, float],
    ) -> None:
        super().__init__()
        self.networks, self.z, self.steps, self.rates = networks, z, steps, rates
        self.weights = [torch.from_numpy(weight) for weight in weights]

    def training_step(self, batch: Batch) -> torch.Tensor:
        """Sum of the members' cross entropies."""
        size = batch[0].shape[1]
        f = self.networks(torch.cat([z[rows] for z, rows in zip(self.z, batch, strict=True)], dim=1))
        v, w = (weight.gather(1, rows) for weight, rows in zip(self.weights, batch, strict=True))
        return (v * softplus(f[:, :size])).mean(1).sum() + (w * softplus(-f[:, size:])).mean(1).sum()

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule."""
        rate, decay = self.rates
        optimizer = torch.optim.AdamW(self.networks.parameters(), rate, betas=(0.9, 0.99), weight_decay=decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=self.steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def _train(module: LightningModule, batches: DataLoader[Batch], steps: int) -> None:
    """Run Lightning without files and without its talk."""
    quiet = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = quiet.level
    quiet.setLevel(logging.WARNING)
    try:
        trainer = Trainer(accelerator="cpu", max_steps=steps, barebones=True)
        trainer.fit(module, batches)
    finally:
        quiet.setLevel(level)


def _preprocessing(generated: Table, reference: Table) -> ColumnTransforms:
    """Quantiles and whitening of both samples with equal shares; columns of two values are left as they are.

    The samples are in the order of their keys, which are hashes: the first rows are a random choice.
    """
    generated, reference = (table.take(np.arange(min(len(table), MOST_FITTED))) for table in (generated, reference))
    values = np.concatenate([generated.values, reference.values])
    weight = np.concatenate([table.weight / stats.sum_w(table.weight) for table in (generated, reference)])
    kinds: list[Transform] = ["quantile" if len(np.unique(column)) > 2 else "identity" for column in values.T]
    names = [f"column {j}" for j in range(len(kinds))]
    fitted = ColumnTransforms().fit_columns(values, weight, kinds, names, whiten=True)
    return ColumnTransforms().restore(fitted.state_dict())  # as it comes back from a file
