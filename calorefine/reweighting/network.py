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

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import silu, softplus

from calorefine import stats
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.knots import Transform
from calorefine.errors import TrainingError
from calorefine.reweighting.ratio import Classifiers, Folded, RatioEstimator, WeightedRows
from calorefine.stats import FloatArray

EVENTS_PER_UNIT = 20_000
BLOCK_ROWS = 1024  # in a block of `log_ratios`
MOST_FITTED = 100_000  # rows of either sample for the preprocessing


class Networks(nn.Module, Classifiers):
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
            z = torch.baddbmm(bias, z, weight) if which is None else torch.baddbmm(bias[which], z, weight[which])
            z = silu(z) if layer < last else z
        return self.bound * torch.tanh(z[..., 0] / self.bound)

    @torch.inference_mode()
    def log_ratios(self, values: NDArray[np.float32], which: NDArray[np.int64]) -> FloatArray:
        """Log ratios (k, n) that k of the members give to rows (n, d).

        Blocks are of one size, filled up with the last row: a smaller matrix product may be summed in another order,
        and a row's result would depend on the rows beside it.
        """
        out, members = np.empty((len(which), len(values))), torch.from_numpy(which)
        for first in range(0, len(values), BLOCK_ROWS):
            rows = np.minimum(np.arange(first, first + BLOCK_ROWS), len(values) - 1)
            z = self.inputs(torch.from_numpy(values[rows]))
            block = self(z.expand(len(which), -1, -1), members).numpy()
            out[:, first : first + BLOCK_ROWS] = block[:, : len(values) - first]
        return out

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        return {"widths": self.widths, "n_members": self.n_members, "bound": self.bound, "tensors": self.state_dict()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Networks:
        """Inverse of `state`."""
        tensors = state["tensors"]
        maps = {name.removeprefix("inputs."): part for name, part in tensors.items() if name.startswith("inputs.")}
        inputs = ColumnTransforms().restore(maps)
        networks = cls(inputs, state["widths"], state["n_members"], state["bound"], torch.Generator())
        networks.load_state_dict(tensors)
        return networks.eval()


@dataclass(kw_only=True)
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
    """

    members = Networks
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    updates: int = 400
    batch_size: int = 512
    learning_rate: float = 8e-3
    weight_decay: float = 0.1
    positive: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        layers = {f"hidden, layer {k}": width for k, width in enumerate(self.hidden)}
        sizes = {"updates": self.updates, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        self.require_positive(**sizes, **layers)

    def fit_members(self, generated: Folded, reference: Folded, *, seed: int) -> Networks:
        """Train all members at the same time.

        Raises:
            TrainingError: a parameter is NaN or infinite.
        """
        generator = torch.Generator().manual_seed(seed)
        inputs = _preprocessing(generated[0], reference[0])
        widths = [inputs.n_columns, *self.hidden, 1]
        networks = Networks(inputs, widths, self.n_folds * self.n_repeats, self.bound, generator)
        steps = round(self.updates * math.sqrt(max(len(generated[0]), len(reference[0])) / EVENTS_PER_UNIT)) + 1
        samples = [self._sample(rows, fold, inputs) for rows, fold in (generated, reference)]
        self._train(networks, samples, steps, generator)
        if not all(bool(torch.isfinite(parameter).all()) for parameter in networks.parameters()):
            raise TrainingError("density ratio: a network's parameters became NaN or infinite; lower learning_rate")
        return networks.eval()

    def _sample(self, rows: WeightedRows, fold: NDArray[np.int64], inputs: ColumnTransforms) -> _Sample:
        """What the members draw from; weights have mean 1 over the rows that a member sees, from these alone."""
        seen = [fold != k for k in range(self.n_folds)]
        weights = np.zeros((self.n_folds, len(rows)), np.float32)
        for k, mask in enumerate(seen):
            part = rows.take(mask)
            weights[k, mask] = (part.with_positive_weights() if self.positive else part).relative_weight
        every = torch.from_numpy(np.tile(weights, (self.n_repeats, 1)))
        indices = [torch.from_numpy(np.flatnonzero(mask)) for mask in seen]
        return _Sample(inputs(torch.from_numpy(rows.values)), every, indices * self.n_repeats)

    def _train(self, networks: Networks, samples: list[_Sample], steps: int, generator: torch.Generator) -> None:
        """Bounded cross entropy, AdamW, one cycle of the rate."""
        rate, size = self.learning_rate, self.batch_size
        optimizer = torch.optim.AdamW(networks.parameters(), rate, betas=(0.9, 0.99), weight_decay=self.weight_decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # so that version 0.1 can be reproduced
        for _ in range(steps):
            (z_generated, v), (z_reference, w) = (sample.draw(size, generator) for sample in samples)
            f = networks(torch.cat([z_generated, z_reference], dim=1))
            loss = (v * softplus(f[:, :size])).mean(1).sum() + (w * softplus(-f[:, size:])).mean(1).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch
            optimizer.step()
            cycle.step()


@dataclass(frozen=True)
class _Sample:
    """Inputs (n, d) and weights (k, n) of one sample, and for each of the k members the rows that it may see."""

    z: torch.Tensor
    weights: torch.Tensor
    rows: list[torch.Tensor]

    def draw(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (k, b, d) and weights (k, b) of a random batch for each member."""
        drawn = [rows[torch.randint(len(rows), (size,), generator=generator)] for rows in self.rows]
        index = torch.stack(drawn)
        return self.z[index], self.weights.gather(1, index)


def _preprocessing(generated: WeightedRows, reference: WeightedRows) -> ColumnTransforms:
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
