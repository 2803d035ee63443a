"""Do impure data train a pure generator?  Trains on the calibration sample, compares with pure electrons.

An independent classifier tries to tell generated events from `electron_reference.root`, at the same contexts.  It sees
features and context; half of the contexts train it and half test it, with both twins of a context on the same side.
AUC 0.5 is perfect; the floor is the reference against itself.  Only this benchmark, and tests, read `true_signal`.

The main trainings are also corrected: a reweighter learns from events generated at the contexts of the calibration
sample against its sWeights, with the estimator of `configs/reweight.yaml`, and weights the events at the contexts of
the reference, which none of it has seen.

Students learn from the training of the same seed that their option names.  `width_spread_...` is the standard deviation
over seeds of the relative error of the half-width of `e_over_p`, averaged over bins of momentum.

    python benchmarks/electron_closure.py --json closure.json                    # hours; all trainings
    python benchmarks/electron_closure.py --workers 2 --work closure --only flow_matching student

With `--work` trainings that are finished are kept, each under the digest of its configuration, options, seed and data.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import yaml
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from calorefine import keys, reweighting, stats
from calorefine.cli import calorefine
from calorefine.events import Columns, Events
from calorefine.fit.command import lightning
from calorefine.io.chunks import Request
from calorefine.io.provenance import digest
from calorefine.io.root import RootFiles
from calorefine.simulator import Simulator

DATA = Path(__file__).parent.parent / "examples" / "data"
CONFIGS = Path(__file__).parent.parent / "configs"
CALIBRATION, REFERENCE = DATA / "electron_calibration.root", DATA / "electron_reference.root"
FEATURES = ["e_over_p", "f_front", "f_back", "width_strip_mm", "f_core", "r_mid", "dx_mm"]
CONTEXT = ["p_gev", "x_in_cell_mm", "n_pv"]
FIVE, THREE = (1, 2, 3, 4, 5), (1, 2, 3)
SEEDS = {
    **dict.fromkeys(["wgan", "wgan_second_critic", "flow"], FIVE),
    **dict.fromkeys(["cramer", "flow_matching", "flow_matching_one_step", "teacher", "student", "vae"], THREE),
}  # the others, for comparison: 1
TEACHERS = {"student": "teacher", "flow_matching_one_step": "flow_matching"}
N_SPLITS = 10
N_BINS = 5
N_BOOTSTRAP = 200
N_COPIES = 10  # generated at each condition for the widths: one has an error of 2 % of its own in each bin
N_EFF = 9600  # of the calibration sample's signed weights, without the held-out tenth
MAIN = ("wgan", "cramer", "flow", "flow_matching")  # are reweighted as well
N_COPIES_REWEIGHTING = 5  # generated at each context of the calibration sample


@dataclass(frozen=True)
class Closure:
    """One training, compared with the reference."""

    label: str
    seed: int
    auc: float
    auc_spread: float
    width_errors: np.ndarray  # of e_over_p, relative, per bin of momentum
    width_pulls: np.ndarray  # the same over its statistical error
    fit_seconds: float
    auc_reweighted: float | None = None
    n_eff_fraction: float | None = None  # of the reweighted events
    reweighting_seconds: float | None = None

    @property
    def max_width_error(self) -> float:
        """Largest width error of any bin, in absolute value."""
        return float(np.abs(self.width_errors).max())


def classifier_auc(signal: np.ndarray, background: np.ndarray, split: int, weight: np.ndarray | None = None) -> float:
    """AUC of a classifier trained on one half of the rows; row i of both samples is on the same side.

    The weights, of mean 1, are those of the background rows.
    """
    order = np.random.default_rng(split).permutation(len(signal))
    train, test = np.array_split(order, 2)
    model = HistGradientBoostingClassifier(max_iter=200, early_stopping=False, random_state=split)
    weights = [None if weight is None else np.append(np.ones(len(half)), weight[half]) for half in (train, test)]
    model.fit(np.concatenate([signal[train], background[train]]), np.repeat([1, 0], len(train)), weights[0])
    scores = model.predict_proba(np.concatenate([signal[test], background[test]]))[:, 1]
    return float(roc_auc_score(np.repeat([1, 0], len(test)), scores, sample_weight=weights[1]))


def auc(signal: np.ndarray, background: np.ndarray, weight: np.ndarray | None = None) -> tuple[float, float]:
    """Mean and spread of the AUC over the splits."""
    values = [classifier_auc(signal, background, split, weight) for split in range(N_SPLITS)]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def floor(reference: np.ndarray) -> tuple[float, float]:
    """AUC of one random half of the reference against the other."""
    values = []
    for split in range(N_SPLITS):
        order = np.random.default_rng(1000 + split).permutation(len(reference))
        first, second = reference[order[: len(order) // 2]], reference[order[len(order) // 2 : len(order) // 2 * 2]]
        values.append(classifier_auc(first, second, split))
    return float(np.mean(values)), float(np.std(values, ddof=1))


def read_reference() -> dict[str, np.ndarray]:
    """All columns of the reference sample."""
    wanted = {name: name for name in FEATURES + CONTEXT}
    chunks = list(RootFiles(str(REFERENCE), "events").chunks(Request(wanted)))
    return {name: np.concatenate([chunk.values[name] for chunk in chunks]) for name in wanted}


def width_errors(generated: np.ndarray, reference: np.ndarray, p_gev: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relative error of the 68 % half-width of e_over_p in bins of momentum with equal numbers of events, and its pull.

    Generated are (n, copies) values, the reference's are (n,).
    The pull's error holds those of three samples: generated and reference by the bootstrap, and the calibration sample
    that trained the generator, whose error is the reference's scaled to its effective number of events.
    """
    edges = np.quantile(p_gev, np.linspace(0, 1, N_BINS + 1))
    index = np.clip(np.searchsorted(edges, p_gev, side="right") - 1, 0, N_BINS - 1)
    rng = np.random.default_rng(0)
    deviations, pulls = [], []
    for k in range(N_BINS):
        (made, made_error), (target, error) = (half_width(x[index == k], rng) for x in (generated, reference))
        deviations.append(made / target - 1)
        variance = made_error**2 + error**2 * (1 + len(p_gev) / N_EFF)
        pulls.append((made - target) / np.sqrt(variance))
    return np.array(deviations), np.array(pulls)


def half_width(x: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Distance of the quantiles at 16 % and 84 %, and its standard deviation by the bootstrap."""
    x = x.ravel()
    copies = [x, *(rng.choice(x, len(x)) for _ in range(N_BOOTSTRAP))]
    widths = [float(np.diff(np.quantile(copy, [0.16, 0.84]))[0]) for copy in copies]
    return widths[0], float(np.std(widths[1:], ddof=1))


def train(config: str, seed: int, runs: Path, *options: str) -> tuple[Simulator, float]:
    """Train a committed configuration; return the best checkpoint's simulator and the wall time of the command."""
    start = time.perf_counter()
    arguments = ["fit", "-c", str(CONFIGS / f"{config}.yaml"), "--runs", str(runs), "--seed_everything", str(seed)]
    arguments += ["--data.files", str(CALIBRATION), "--threads", "1", "--trainer.enable_progress_bar", "false"]
    arguments += options
    finished = lightning(arguments)
    seconds = time.perf_counter() - start
    return Simulator.load(finished.run_dir / "checkpoints" / "best.ckpt"), seconds


def variants(weighted: Path) -> dict[str, tuple[str, list[str]]]:
    """The trainings: name to configuration and options."""
    pure_epochs = str(round(epochs("weighted_wgan") / signal_fraction()))  # as many updates as the others
    clipped = ["--data.files", str(weighted), "--data.weights", "where(sw_signal > 0, sw_signal, 0)"]
    pure = ["--data.weights", "none", "--data.columns.cut", "true_signal", "--trainer.max_epochs", pure_epochs]
    return {
        "wgan": ("weighted_wgan", []),
        "wgan_second_critic": ("two_critics_wgan", []),
        "cramer": ("weighted_cramer_gan", []),
        "flow": ("conditional_flow", []),
        "flow_matching": ("flow_matching", []),
        "teacher": ("conditional_flow", ["--model.init_args.kind", "autoregressive"]),
        "student": ("student", []),
        "flow_matching_one_step": ("student", []),
        "vae": ("vae", []),
        "vae_plain": ("vae", ["--model.init_args.prior", "normal"]),
        "library": ("library", []),
        "library_20": ("library", ["--model.init_args.neighbors", "20"]),
        "wgan_unweighted": ("weighted_wgan", ["--data.weights", "none"]),
        "wgan_pure": ("weighted_wgan", pure),
        "wgan_clipped": ("weighted_wgan", clipped),
    }


def epochs(config: str) -> int:
    """Number of epochs in a configuration."""
    return int(yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())["trainer"]["max_epochs"])


def signal_fraction() -> float:
    """Fraction of true signal in the calibration sample."""
    chunks = RootFiles(str(CALIBRATION), "events").chunks(Request({"true_signal": "true_signal"}))
    return float(np.mean(np.concatenate([chunk.values["true_signal"] for chunk in chunks])))


def table(reference: dict[str, np.ndarray]) -> np.ndarray:
    """Features and context of the reference as the classifier sees them, one row per event."""
    return np.stack([reference[name] for name in FEATURES + CONTEXT], axis=1)


def closure(
    label: str,
    seed: int,
    trained: tuple[Simulator, float],
    reference: dict[str, np.ndarray],
    calibration: Events,
) -> Closure:
    """Compare events generated at the contexts of the reference with the reference."""
    simulator, seconds = trained
    conditions = {column: reference[column] for column in CONTEXT}
    events = simulator.sample(conditions, seed=seed)
    made = np.stack([events[f] for f in FEATURES] + [reference[c] for c in CONTEXT], axis=1)
    mean, spread = auc(table(reference), made)
    many = simulator.sample(conditions, seed=seed, n_per_event=N_COPIES)["e_over_p"].reshape(-1, N_COPIES)
    errors, pulls = width_errors(many, reference["e_over_p"], reference["p_gev"])
    corrected = reweighted(simulator, seed, made, calibration, table(reference)) if label in MAIN else ()
    return Closure(label, seed, mean, spread, errors, pulls, seconds, *corrected)


def reweighted(
    simulator: Simulator, seed: int, made: np.ndarray, calibration: Events, reference: np.ndarray
) -> tuple[float, float, float]:
    """AUC of reweighted events against the reference, their relative n_eff, and the CPU time of the fit."""
    start = time.process_time()
    conditions = {name: calibration.context[:, k] for k, name in enumerate(CONTEXT)}
    drawn = simulator.sample(conditions, seed=seed, key=calibration.key, n_per_event=N_COPIES_REWEIGHTING)
    context, key = (np.repeat(a, N_COPIES_REWEIGHTING, axis=0) for a in (calibration.context, calibration.key))
    x = np.stack([drawn[name] for name in FEATURES], axis=1)
    generated = Events(x, context, np.ones(len(x)), key, key)
    columns = Columns(dict.fromkeys(FEATURES), dict.fromkeys(CONTEXT), ["run", "event"])
    described = yaml.safe_load((CONFIGS / "reweight.yaml").read_text())["estimator"]
    estimator = getattr(reweighting, described["class_path"])(**described["init_args"])
    reweighter = reweighting.Reweighter.fit(generated, calibration, columns, estimator=estimator, seed=seed)
    seconds = time.process_time() - start
    new = keys.stream(keys.make_keys([np.arange(len(made))]), "reference")
    x, context = np.split(made.astype(np.float32), [len(FEATURES)], axis=1)
    weight = reweighter.factors(Events(x, context, np.ones(len(made)), new, new))
    mean, _ = auc(reference, made, weight / weight.mean())
    return mean, stats.n_eff(weight) / len(weight), seconds


def read_calibration(weighted: Path) -> Events:
    """The calibration sample with its sWeights."""
    names = [*FEATURES, *CONTEXT, "sw_signal"]
    chunks = list(RootFiles(str(weighted), "events").chunks(Request({n: n for n in names}, ["run", "event"])))
    values = {name: np.concatenate([chunk.values[name] for chunk in chunks]) for name in names}
    x, context = (np.stack([values[n] for n in group], axis=1).astype(np.float32) for group in (FEATURES, CONTEXT))
    key = np.concatenate([chunk.key for chunk in chunks])
    return Events(x, context, values["sw_signal"].astype(np.float64), key, key)


def finished(label: str, seed: int, work: Path) -> Closure:
    """Train a variant with a seed and compare it with the reference, unless that is done; its teacher before."""
    torch.set_num_threads(1)
    weighted = work / "weighted.root"
    config, options = variants(weighted)[label]
    if label in TEACHERS:
        finished(TEACHERS[label], seed, work)
        options = [*options, "--model.init_args.teacher", str(checkpoint_of(TEACHERS[label], seed, work))]
    record = checkpoint_of(label, seed, work).with_suffix(".json")
    if not record.exists():
        reference = read_reference()
        simulator, seconds = train(config, seed, work / "runs" / label, *options)
        simulator.save(record.with_suffix(".ckpt"))
        result = closure(label, seed, (simulator, seconds), reference, read_calibration(weighted))
        record.write_text(json.dumps(asdict(result), default=np.ndarray.tolist))
    told = json.loads(record.read_text())
    return Closure(**told | {name: np.array(told[name]) for name in ("width_errors", "width_pulls")})


def checkpoint_of(label: str, seed: int, work: Path) -> Path:
    """Where a training is kept, by the digest of all that it depends on but the code."""
    config, options = variants(work / "weighted.root")[label]
    texts = [(CONFIGS / f"{name}.yaml").read_text() for name in (config, "electron_columns")]
    if label in TEACHERS:
        texts.append(checkpoint_of(TEACHERS[label], seed, work).name)
    told = json.dumps([*texts, [one.replace(str(work), "") for one in options], seed, digest(CALIBRATION)])
    return work / f"{label}_{seed}_{sha256(told.encode()).hexdigest()[:12]}.ckpt"


def closures(wanted: list[str], work: Path, workers: int) -> Iterator[Closure]:
    """All trainings of the wanted variants (all if there are none), teachers before students, in worker processes."""
    weighted = work / "weighted.root"
    work.mkdir(parents=True, exist_ok=True)
    if not weighted.exists():
        calorefine(["splot", "-c", str(CONFIGS / "splot.yaml"), "--files", str(CALIBRATION), "--output", str(weighted)])
    labels = [label for label in variants(weighted) if not wanted or label in wanted]
    first = dict.fromkeys([*(TEACHERS[label] for label in labels if label in TEACHERS)])
    taught = [label for label in labels if label in TEACHERS]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for part in ([*first, *(label for label in labels if label not in {*first, *taught})], taught):
            jobs = [pool.submit(finished, label, seed, work) for label in part for seed in SEEDS.get(label, (1,))]
            yield from (job.result() for job in jobs)


def show(result: Closure, auc_floor: float) -> None:
    """Print one training."""
    print(
        f"{result.label}, seed {result.seed}: AUC {result.auc:.4f} +- {result.auc_spread:.4f} (floor {auc_floor:.4f}), "
        f"e_over_p width errors {np.array2string(100 * result.width_errors, precision=1)} %, "
        f"pulls {np.array2string(result.width_pulls, precision=1)}, "
        f"fit {result.fit_seconds:.0f} s",
        flush=True,
    )
    if result.auc_reweighted is not None:
        print(
            f"    reweighted: AUC {result.auc_reweighted:.4f}, n_eff / n {result.n_eff_fraction:.3f}, "
            f"{result.reweighting_seconds:.0f} s of CPU time",
            flush=True,
        )


def summary(auc_floor: float, results: list[Closure]) -> dict[str, float]:
    """The figures: per seed for the main trainings, the worst seed for every label, the worst of all."""
    figures = {"auc_floor": auc_floor}
    for label in dict.fromkeys(result.label for result in results):
        seeds = [result for result in results if result.label == label]
        for result in seeds if label in MAIN else []:
            figures[f"auc_{label}_seed_{result.seed}"] = result.auc
            figures[f"e_over_p_width_error_{label}_seed_{result.seed}"] = result.max_width_error
        figures[f"auc_{label}"] = max(result.auc for result in seeds)
        if len(seeds) > 1:
            figures[f"auc_{label}_sd"] = float(np.std([result.auc for result in seeds], ddof=1))
            spread = np.std([result.width_errors for result in seeds], axis=0, ddof=1)
            figures[f"width_spread_{label}"] = float(spread.mean())
        figures[f"e_over_p_width_error_max_{label}"] = max(result.max_width_error for result in seeds)
        figures[f"e_over_p_width_pull_max_{label}"] = max(float(np.abs(r.width_pulls).max()) for r in seeds)
        figures[f"fit_seconds_max_{label}"] = max(result.fit_seconds for result in seeds)
        if label in MAIN:
            figures[f"auc_{label}_reweighted"] = max(r.auc_reweighted for r in seeds if r.auc_reweighted)
            figures[f"n_eff_fraction_{label}_reweighted"] = min(r.n_eff_fraction for r in seeds if r.n_eff_fraction)
    gans = [result.max_width_error for result in results if result.label in ("wgan", "cramer")]
    figures |= {"e_over_p_width_error_max": max(gans)} if gans else {}
    figures["fit_seconds_max"] = max(result.fit_seconds for result in results)
    return figures


def main() -> None:
    """Train, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", nargs="*", default=[], help="labels of the trainings to run; all if left out")
    parser.add_argument("--work", type=Path, help="folder that keeps finished trainings")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    auc_floor, spread = floor(table(read_reference()))
    print(f"floor (reference against reference): AUC {auc_floor:.4f} +- {spread:.4f}", flush=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for result in closures(options.only, options.work or Path(folder), options.workers):
            show(result, auc_floor)
            results.append(result)
    figures = summary(auc_floor, results)
    for key, value in figures.items():
        print(f"{key:>40} {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
