"""How fast is the coupling flow?  `Simulator.log_prob` and `Simulator.sample` beside nflows' own couplings.

A flow of 10 features and 4 conditions, 8 couplings of 8 bins with networks of 64 x 64, is trained for an epoch.  What a
user calls, preprocessing, checks and noise by keys included, is compared with nflows' plain couplings of the same
masks, networks and parameters on numbers that are ready for them.  CPU time of one thread, interleaved; medians.

    python benchmarks/flow_speed.py --json flow_speed.json

`flow_logprob_over_nflows`, `flow_sample_over_nflows`: events per second over nflows'; `..._spread`: largest less least
round, over the median.  `flow_step_over_nflows`: training steps (value and gradient of the likelihood of 512 events)
of the network alone.  `flow_largest_difference`: of log densities in network units, in double precision.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uproot
import yaml
from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

from calorefine.fit.command import lightning
from calorefine.models.couplings import flow_log_prob, splines
from calorefine.simulator import Simulator

N_FEATURES, N_CONTEXT, N_TRAIN = 10, 4, 20_000
N_LAYERS, N_BINS, HIDDEN = 8, 8, [64, 64]
N_EVENTS, N_STEP, ROUNDS = 50_000, 512, 9
BLOCK = 4096  # events in a call of nflows, for which it is fastest


def table(n: int, seed: int) -> dict[str, np.ndarray]:
    """Correlated features and their conditions (n,), by name."""
    rng = np.random.default_rng(seed)
    context = rng.normal(size=(n, N_CONTEXT))
    mixing = np.random.default_rng(0).normal(size=(N_FEATURES + N_CONTEXT, N_FEATURES)) / 2
    x = np.arcsinh(2 * np.hstack([rng.normal(size=(n, N_FEATURES)), context]) @ mixing)
    columns = {f"x_{k}": x[:, k] for k in range(N_FEATURES)} | {f"c_{k}": context[:, k] for k in range(N_CONTEXT)}
    return {name: values.astype(np.float32) for name, values in columns.items()} | {"event": np.arange(n)}


def trained(folder: Path) -> Simulator:
    """An epoch of the flow on a file."""
    with uproot.recreate(folder / "events.root") as file:
        columns = table(N_TRAIN, 1)
        file.mktree("events", {name: values.dtype for name, values in columns.items()}).extend(columns)
    names = [name for name in columns if name != "event"]
    shape = {"features": {n: {} for n in names[:N_FEATURES]}, "context": {n: {} for n in names[N_FEATURES:]}}
    told = {
        "data": {"files": str(folder / "events.root"), "tree": "events", "columns": shape | {"key": ["event"]}},
        "model": {
            "class_path": "Flow",
            "init_args": {"n_layers": N_LAYERS, "hidden": HIDDEN, "n_bins": N_BINS},
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 1},
    }
    (folder / "flow.yaml").write_text(yaml.safe_dump(told))
    arguments = [
        "fit",
        "-c",
        str(folder / "flow.yaml"),
        "--runs",
        str(folder),
        "--trainer.enable_progress_bar",
        "false",
    ]
    return Simulator.load(lightning(arguments).run_dir / "checkpoints" / "best.ckpt")


def of_nflows(flow: CompositeTransform, tail_bound: float) -> CompositeTransform:
    """The same couplings by nflows alone."""
    layers = []
    for layer in flow._transforms:
        mask = torch.zeros(layer.features)
        mask[layer.transform_features] = 1
        net = copy.deepcopy(layer.transform_net)
        theirs = PiecewiseRationalQuadraticCouplingTransform(
            mask, lambda *_, net=net: net, **splines(N_BINS, tail_bound)
        )
        layers.append(theirs)
    return CompositeTransform(layers)


def interleaved(calls: Mapping[str, Callable[[], Any]]) -> dict[str, np.ndarray]:
    """CPU seconds (rounds,) of each call, in turns, after one that doesn't count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def in_blocks(call: Callable[..., Any], *arrays: torch.Tensor) -> None:
    """Call with a block of rows at a time."""
    for rows in torch.arange(len(arrays[0])).split(BLOCK):
        call(*(array[rows[0] : rows[-1] + 1] for array in arrays))


def ratios(name: str, seconds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How much faster ours is: the ratio of medians, and the spread of the rounds' ratios."""
    rounds = seconds["nflows"] / seconds["ours"]
    ratio = float(np.median(seconds["nflows"]) / np.median(seconds["ours"]))
    return {f"flow_{name}_over_nflows": ratio, f"flow_{name}_spread": float(np.ptp(rounds) / np.median(rounds))}


def measured(folder: Path) -> dict[str, float]:
    """All figures."""
    torch.set_num_threads(1)
    simulator = trained(folder)
    model: Any = simulator.model
    ours = model.average
    theirs = of_nflows(ours, model.tail_bound)
    events = table(N_EVENTS, 2)
    context = {name: values for name, values in events.items() if name.startswith("c_")}
    u, c = torch.randn(N_EVENTS, N_FEATURES), torch.randn(N_EVENTS, N_CONTEXT)
    with torch.no_grad():
        log_prob = interleaved(
            {
                "ours": lambda: simulator.log_prob(events),
                "nflows": lambda: in_blocks(lambda *rows: flow_log_prob(theirs, *rows), u, c),
            }
        )
        sample = interleaved(
            {
                "ours": lambda: simulator.sample(context, seed=1),
                "nflows": lambda: in_blocks(lambda *r: theirs.inverse(torch.randn(len(r[0]), N_FEATURES), *r), c),
            }
        )
        double = [copy.deepcopy(flow).double() for flow in (ours, theirs)]
        densities = [flow_log_prob(flow, u[:5000].double(), c[:5000].double()) for flow in double]
    steps = {"ours": copy.deepcopy(ours), "nflows": of_nflows(ours, model.tail_bound)}
    step = interleaved({name: lambda flow=flow: stepped(flow, u[:N_STEP], c[:N_STEP]) for name, flow in steps.items()})
    found = ratios("logprob", log_prob) | ratios("sample", sample) | ratios("step", step)
    found["flow_logprob_per_s"] = N_EVENTS / float(np.median(log_prob["ours"]))
    found["flow_sample_per_s"] = N_EVENTS / float(np.median(sample["ours"]))
    return found | {"flow_largest_difference": float((densities[0] - densities[1]).abs().max())}


def stepped(flow: CompositeTransform, u: torch.Tensor, context: torch.Tensor) -> None:
    """Value and gradient of the mean log density, twenty times."""
    flow.requires_grad_()
    for _ in range(20):
        flow.zero_grad()
        flow_log_prob(flow, u, context).mean().backward()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measured(Path(name))
    for key, value in found.items():
        print(f"{key:>30} {value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
