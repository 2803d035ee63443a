"""Is a likelihood trained on positive weights as good as one trained on as many events of pure signal?

A conditional spline flow p(x, y | c) is trained on `ImpureToy` with 20 % signal: on the positive weights of
`PositiveWeights`, on pure true signal of as many events as the signed weights have effective ones, and on the signed
weights clipped at zero.  The signed weights themselves are refused.  Each flow is judged by its negative log likelihood
on 100 000 other events of true signal.

python benchmarks/positive_likelihood.py --json positive_likelihood.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from nflows.transforms import (
    CompositeTransform,
    MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    ReversePermutation,
)
from scipy.stats import gamma, norm

from calorefine import keys, losses, stats
from calorefine.datasets import GAMMA_SHAPE, ImpureToy
from calorefine.errors import WeightError
from calorefine.events import Events
from calorefine.weights.positive import PositiveWeights

N_EVENTS, N_HELD_OUT, SEEDS = 50_000, 100_000, (1, 2, 3)
BATCH, EPOCHS = 512, 20


def toy_events(n: int, *, seed: int) -> tuple[Events, np.ndarray]:
    """Events of the toy with signal sWeights for the true densities, and which are signal."""
    toy = ImpureToy()
    table = toy.generate(n, seed=seed)
    key = keys.make_keys([table["run"].astype(np.int64), table["event"].astype(np.int64)])
    x = np.stack([table["x"], table["y"]], axis=1).astype(np.float32)
    context = table["c"].astype(np.float32)[:, None]
    return Events(x, context, toy.sweights(table["m"]), key, key), table["true_signal"]


def pure_signal(n: int, *, seed: int) -> Events:
    """Exactly n events of true signal, of unit weight."""
    events, signal = toy_events(6 * n, seed=seed)
    events = events.take(np.flatnonzero(signal)[:n])
    return Events(events.x, events.context, np.ones(len(events)), events.key, events.event_key)


def true_log_prob(events: Events) -> np.ndarray:
    """Log density of the true signal at the events."""
    mean, width = ImpureToy().signal_moments(events.context[:, 0].astype(np.float64))
    return norm.logpdf(events.x[:, 0], mean[:, 0], width[:, 0]) + gamma.logpdf(
        events.x[:, 1], GAMMA_SHAPE, scale=mean[:, 1] / GAMMA_SHAPE
    )


def true_entropy() -> float:
    """Entropy of the signal's (x, y) at given c, averaged over its uniform c, in nats."""
    mean, width = ImpureToy().signal_moments((np.arange(10_000) + 0.5) / 10_000)
    normal = 0.5 * np.log(2 * np.pi * np.e * width[:, 0] ** 2)
    return float(np.mean(normal + gamma.entropy(GAMMA_SHAPE) + np.log(mean[:, 1] / GAMMA_SHAPE)))


class SplineFlow:
    """Density of standardized features at given context: three autoregressive rational-quadratic splines."""

    def __init__(self, events: Events, *, seed: int) -> None:
        """Standardize by the weighted moments of these events."""
        torch.manual_seed(seed)
        self.mean = stats.mean(events.x, events.weight)
        self.width = np.sqrt(np.diag(stats.covariance(events.x, events.weight)))
        layers: list[torch.nn.Module] = []
        for _ in range(3):
            spline = MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                features=2, hidden_features=32, context_features=1, num_bins=8, tails="linear", tail_bound=5.0
            )
            layers += [spline, ReversePermutation(2)]
        self.flow = Flow(CompositeTransform(layers), StandardNormal([2]))

    def tensors(self, events: Events) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Standardized features, context about 0, weights."""
        x = torch.from_numpy(((events.x - self.mean) / self.width).astype(np.float32))
        return x, torch.from_numpy(2 * events.context - 1), torch.from_numpy(events.weight.astype(np.float32))

    @torch.no_grad()
    def nll(self, events: Events) -> float:
        """Weighted mean of the negative log density, in nats per event and the original units."""
        x, context, _ = self.tensors(events)
        parts = [self.flow.log_prob(a, b) for a, b in zip(x.split(10_000), context.split(10_000), strict=True)]
        return float(-stats.mean(torch.cat(parts).numpy(), events.weight) + np.log(self.width).sum())

    def train(self, events: Events, *, seed: int) -> SplineFlow:
        """Minimize the weighted likelihood; keep the epoch that is best on a tenth of the events, held out."""
        held_out = keys.uniform(keys.stream(events.event_key, "benchmark", seed=seed)) < 0.1
        x, context, weight = self.tensors(events.take(~held_out))
        mean_weight, batches = float(weight.mean(dtype=torch.float64)), math.ceil(len(weight) / BATCH)
        epochs = max(EPOCHS, math.ceil(1500 / batches))  # small samples need as many steps
        optimizer = torch.optim.Adam(self.flow.parameters(), lr=5e-3)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
        best, state = math.inf, self.flow.state_dict()
        for _ in range(epochs):
            for rows in torch.randperm(len(weight)).split(BATCH):
                log_prob = self.flow.log_prob(x[rows], context[rows])
                loss = losses.negative_log_likelihood(log_prob, weight[rows], mean_weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
            if (found := self.nll(events.take(held_out))) < best:
                best, state = found, {k: v.clone() for k, v in self.flow.state_dict().items()}
        self.flow.load_state_dict(state)
        return self


def with_weight(events: Events, weight: np.ndarray) -> Events:
    """The events with other weights."""
    return Events(events.x, events.context, weight, events.key, events.event_key)


def compare(seed: int, *, n: int = N_EVENTS, n_held_out: int = N_HELD_OUT) -> dict[str, float]:
    """Likelihoods of one toy; its seeds are `seed`, of pure signal 1000 + `seed`, of held-out signal 2000 + `seed`."""
    torch.set_num_threads(1)
    events, _ = toy_events(n, seed=seed)
    result = PositiveWeights(seed=seed).fit(events)
    n_eff = result.n_eff_before
    samples = {
        "positive": with_weight(events, result.weight),
        "pure": pure_signal(round(n_eff), seed=1000 + seed),
        "clipped": with_weight(events, np.maximum(events.weight, 0)),
    }
    test = pure_signal(n_held_out, seed=2000 + seed)
    found = {f"nll_{k}": SplineFlow(v, seed=seed).train(v, seed=seed).nll(test) for k, v in samples.items()}
    try:
        SplineFlow(events, seed=seed).train(events, seed=seed)
    except WeightError:
        pass
    else:
        raise AssertionError("the likelihood took signed weights")
    truth = float(-np.mean(true_log_prob(test)))  # unweighted: pure signal
    return {**found, "nll_truth": truth, "n_eff_signed": n_eff, "n_eff_positive": result.n_eff_after}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rows, start = {}, time.perf_counter()
    for seed in SEEDS:
        rows[seed] = row = compare(seed)
        print(f"seed {seed}  " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    worst = max(rows.values(), key=lambda row: row["nll_positive"] - row["nll_pure"])
    figures = {"nll_positive_minus_pure": worst["nll_positive"] - worst["nll_pure"], **worst}
    figures |= {"entropy": true_entropy(), "seconds": time.perf_counter() - start}
    for key, value in figures.items():
        print(f"{key:>30} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
