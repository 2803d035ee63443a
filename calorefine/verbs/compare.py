"""`calorefine compare`: generators, trained on the same data or loaded, against one reference: a table and a page.

With `leave_out` also what enforced statistics are worth (`compare_enforced`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from calorefine.errors import CheckpointError, ConfigError, FileError, TrainingError, nearest
from calorefine.io.chunks import Request
from calorefine.io.provenance import made_by, recorded, write_json
from calorefine.io.reductions import branches
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import Source
from calorefine.io.writer import replacing
from calorefine.pages.page import Picture, Section, Table, write_page
from calorefine.simulator import AnySimulator
from calorefine.simulator_map import load_simulator
from calorefine.text import first_three, number, with_error
from calorefine.twosample.binned import corrected_smallest
from calorefine.twosample.distances import N_REPLICATES
from calorefine.twosample.pair import read_samples
from calorefine.twosample.results import Validation
from calorefine.verbs.compare_enforced import ABOUT_DRIFTS, Drifts, Plan, drifts, plans, require_enforced, table_of
from calorefine.verbs.sample import sample_file
from calorefine.verbs.validate import validate_files

BATCHES = (1, 1000, 100_000)  # events that are sampled in one call, for times
TIMED_FOR = 0.2  # seconds that calls are repeated for


@dataclass(frozen=True)
class Candidate:
    """A generator to compare.

    Args:
        config: configuration to train it with.
        checkpoint: its checkpoint, if it is trained already.
        options: further options of `lightning fit`; `{name}` is the checkpoint of the generator of that name before it
            in the list, such as a student's teacher.
    """

    config: str | None = None
    checkpoint: str | None = None
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What the table says about one generator.

    Attributes:
        name: as in the configuration.
        model: recipe.
        n_parameters: parameters that sampling uses.
        n_eff: effective number of training events, of signed weights where positive ones were made of them.
        train_seconds: wall time of the command that trained it; None if it was loaded.
        microseconds: number of events in one call to time per event, on one core, in memory.
        likelihood: whether it knows how probable an event is.
        auc: of an independent classifier.
        auc_error: standard error.
        sliced: sliced Wasserstein distance of features and context.
        worst_width: largest pull of a half-width in any bin of context, the training sample's statistics in its error.
        smallest_p: probability of a KS distance as improbable as the worst feature's, among as many independent ones.
        nearest: median distance to the nearest training event over the reference's; None without training file.
    """

    name: str
    model: str
    n_parameters: int
    n_eff: float
    train_seconds: float | None
    microseconds: dict[int, float]
    likelihood: bool
    auc: float | None
    auc_error: float | None
    sliced: float
    worst_width: float | None
    smallest_p: float
    nearest: float | None


CELLS: dict[str, Callable[[Row], str]] = {
    "generator": lambda row: row.name,
    "model": lambda row: row.model,
    "AUC": lambda row: with_error(row.auc, row.auc_error),
    "sliced W1": lambda row: number(row.sliced, 3),
    "width pull": lambda row: number(row.worst_width, 2),
    "KS p (of all)": lambda row: number(row.smallest_p, 2),
    "nearest": lambda row: number(row.nearest, 3),
    "n_eff": lambda row: f"{row.n_eff:.0f}",
}
COSTS: dict[str, Callable[[Row], str]] = {
    "generator": lambda row: row.name,
    "trained in": lambda row: "loaded" if row.train_seconds is None else f"{row.train_seconds:.0f} s",
    **{f"us per event of {n}": lambda row, n=n: number(row.microseconds[n], 2) for n in BATCHES},  # type: ignore[misc]
    "parameters": lambda row: f"{row.n_parameters:,}",
    "likelihood": lambda row: "yes" if row.likelihood else "no",
}


@dataclass(frozen=True)
class ModelComparison:
    """The table, and where the page is."""

    output: Path
    floor: str
    rows: list[Row]
    enforced: list[Drifts] = field(default_factory=list)

    @property
    def tables(self) -> list[Table]:
        """The tables of the page."""
        tables = [Table.of("Generators", self.rows, CELLS), Table.of("What they cost", self.rows, COSTS)]
        return [*tables, table_of(self.enforced)] if self.enforced else tables

    def markdown(self) -> str:
        """Return the tables as Markdown."""
        return "\n".join(map(_markdown, self.tables))

    def __str__(self) -> str:
        """Table for the terminal."""
        stem = self.output.stem
        beside = f"{self.output}: the page; the table in {stem}.md and .json, all files in {stem}/"
        return f"{self.markdown()}\n{self.floor}\n{beside}"


def _markdown(table: Table) -> str:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


@recorded("compare")
def compare_models(
    *,
    models: dict[str, Candidate],
    reference: WeightedFiles,
    output: str,
    tree: str = "events",
    training: str | None = None,
    leave_out: bool = False,
    repetitions: int = 10,
    seed: int = 1,
    overwrite: bool = False,
) -> ModelComparison:
    """Train or load generators, sample each at the reference's conditions, validate, and write one table and one page.

    Beside the page are the table as Markdown and JSON, and a folder of the same name with runs, samples, validations.

    Args:
        models: name to configuration or checkpoint, the same data in all of them.
        reference: events with features and context, and a weight of any sign, which what is generated at their
            conditions gets as well.
        output: the page to write, an .html file.
        tree: name of the tree, if the reference doesn't name it.
        training: ROOT file of the training events, to look for memorized ones.
        leave_out: train each configuration that enforces statistics once more without each of them, and tell how far
            they drift from the reference.
        repetitions: how often the classifier is trained for each.
        seed: of training and sampling.
        overwrite: replace existing outputs.

    Returns:
        The table.

    Raises:
        CalorefineError: bad input, or a training that fails.
    """
    target, reference = Path(output), reference.within(tree)
    if target.suffix != ".html":
        raise ConfigError(f"output: {output} found, expected a name that ends in .html")
    if not models:
        raise ConfigError("models: none given, expected a configuration or a checkpoint of each")
    for place, (name, candidate) in enumerate(models.items()):
        _check(name, candidate, list(models)[:place])
    models, planned = _with_left_out(models) if leave_out else (models, {})
    weights = [] if reference.weight == "none" else branches(reference.weight)
    conditions: dict[str, Any] = {"conditions": reference.files, "tree": reference.source.tree, "seed": seed}
    conditions["pass_through"] = list(dict.fromkeys(name.partition("[")[0] for name in weights))
    judged: dict[str, Any] = {"reference": reference, "training": training, "repetitions": repetitions}
    folder = target.with_suffix("")
    folder.mkdir(exist_ok=True)
    rows, enforced, validations = [], [], {}
    checkpoints: dict[str, str] = {}
    with ExitStack() as stack:
        page, markdown, numbers = (
            stack.enter_context(replacing(target.with_suffix(end), overwrite=overwrite))
            for end in (".html", ".md", ".json")
        )
        for name, candidate in models.items():
            checkpoint, seconds = _trained(name, _filled(candidate, checkpoints), folder, seed)
            checkpoints[name] = checkpoint
            generated, validated = (str(folder / f"{name}{end}") for end in (".root", ".json"))
            sample_file(checkpoint=checkpoint, output=generated, overwrite=True, **conditions)
            sample = replace(reference, files=generated)
            found = validate_files(generated=sample, output=validated, overwrite=True, **judged)
            validations[name] = cast("Validation", found)  # not of showers
            rows.append(_row(name, load_simulator(checkpoint), validations[name], seconds, reference.source))
            if name in planned:
                pair = read_samples(sample, reference, columns=None)
                enforced.append(drifts(name, planned[name], pair, rows[-1].n_eff))
        result = ModelComparison(target, _floor(validations), rows, enforced)
        title = f"Generators against {first_three([path.name for path in reference.source.paths])}"
        write_page(page, title, sections=_sections(result, validations), lead=result.floor, overwrite=True)
        markdown.write_text(result.markdown(), encoding="utf-8")
        told = {"generators": [asdict(row) for row in rows]}
        told |= {"enforced": [asdict(row) for row in enforced]} if leave_out else {}
        write_json(numbers, told | {"provenance": made_by()})
    return result


def _check(name: str, candidate: Candidate, before: list[str]) -> None:
    if (candidate.config is None) == (candidate.checkpoint is None):
        raise ConfigError(f"models: '{name}' has both or neither of `config` and `checkpoint`, expected one of them")
    path = Path(candidate.config or candidate.checkpoint or "")
    if not path.is_file():
        raise FileError(f"models: '{name}': there is no file '{path}'")
    for option in candidate.options:
        named = re.fullmatch(r"\{([\w.-]+)\}", option)
        if named and named[1] not in before:
            msg = f"models: '{name}': option '{option}' found, expected a generator before it"
            raise ConfigError(f"{msg}{nearest(named[1], before)}; before it are {', '.join(before) or 'none'}")


def _with_left_out(models: Mapping[str, Candidate]) -> tuple[dict[str, Candidate], dict[str, Plan]]:
    """These generators and those without one of their statistics; the plans of those that enforce something.

    Raises:
        ConfigError: none enforces anything.
    """
    candidates: dict[str, Candidate] = {}
    planned: dict[str, Plan] = {}
    for name, candidate in models.items():
        own = plans(name, candidate.config, candidate.options)
        candidates[name] = candidate
        candidates |= {k: replace(candidate, options=[*candidate.options, *v.options]) for k, v in own.items()}
        planned |= own
    require_enforced(planned)
    return candidates, planned


def _filled(candidate: Candidate, checkpoints: Mapping[str, str]) -> Candidate:
    """Put checkpoints of other generators where their names are in the options."""
    names = {f"{{{name}}}": path for name, path in checkpoints.items()}
    return replace(candidate, options=[names.get(option, option) for option in candidate.options])


def _trained(name: str, candidate: Candidate, folder: Path, seed: int) -> tuple[str, float | None]:
    """Checkpoint of a generator, and the wall time of its training in a process of its own.

    Raises:
        TrainingError: the command failed, with the last line it wrote.
    """
    if candidate.checkpoint is not None:
        return candidate.checkpoint, None
    runs = folder / "runs" / name
    known = set(runs.glob("*/*/checkpoints/best.ckpt"))
    options = ["--runs", str(runs), "--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    command = [sys.executable, "-m", "calorefine", "fit", "-c", str(candidate.config), *options, *candidate.options]
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        message = (done.stderr.strip() or "no message").splitlines()[-1]
        raise TrainingError(f"models: training of '{name}' failed: {message}")
    checkpoints = sorted(set(runs.glob("*/*/checkpoints/best.ckpt")) - known)
    if not checkpoints:
        raise CheckpointError(f"models: training of '{name}' wrote no best.ckpt in {runs}")
    return str(checkpoints[-1]), time.perf_counter() - start


def _row(name: str, simulator: AnySimulator, validation: Validation, seconds: float | None, reference: Source) -> Row:
    test, worst = validation.classifier.separation, validation.worst("half_width")
    provenance = simulator.spec["provenance"]
    return Row(
        name=name,
        model=str(simulator.spec["model"]),
        n_parameters=n_parameters_of(simulator),
        n_eff=float(provenance.get("n_eff_signed") or provenance["n_eff"]),
        train_seconds=seconds,
        microseconds=_microseconds(simulator, reference),
        likelihood=simulator.has_likelihood,
        auc=test.auc if test else None,
        auc_error=test.auc_error if test else None,
        sliced=validation.sliced.value,
        worst_width=worst.comparison.pull if worst else None,
        smallest_p=corrected_smallest([one.ks.p_value for one in validation.distances.values()]),
        nearest=validation.memorization.median.ratio if validation.memorization else None,
    )


def n_parameters_of(simulator: AnySimulator) -> int:
    """Parameters that sampling uses, all of them frozen."""
    return sum(p.numel() for model in simulator.models.values() for p in model.network.parameters())


def _microseconds(simulator: AnySimulator, reference: Source) -> dict[int, float]:
    """Time per event of calls with so many events, in memory, repeated for a while after a first one."""
    request = Request(simulator.columns.expressions("context"))
    chunk = next(reference.chunks(request, rows=max(BATCHES)))
    simulator.sample({name: values[:1] for name, values in chunk.values.items()}, seed=0)
    return {n: 1e6 / n * _seconds(simulator, {k: np.resize(v, n) for k, v in chunk.values.items()}) for n in BATCHES}


def _seconds(simulator: AnySimulator, conditions: Mapping[str, np.ndarray[Any, Any]]) -> float:
    """Time of a call: the median of those that fit in `TIMED_FOR`, at least one."""
    times: list[float] = []
    while sum(times) < TIMED_FOR:
        start = time.perf_counter()
        simulator.sample(conditions, seed=0)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _floor(validations: Mapping[str, Validation]) -> str:
    """What the classifier finds between two halves of the reference."""
    floor = next(iter(validations.values())).classifier.floor
    return "" if floor is None else f"Reference against itself: AUC {with_error(floor.auc, floor.auc_error)}."


def _explained(n_features: int) -> list[str]:
    """What the columns of the table are."""
    least = corrected_smallest([1 / (1 + N_REPLICATES)] * n_features)
    return [
        "AUC: of an independent classifier on features and context, 0.5 if it can't tell generated events from the "
        "reference. Sliced W1: Wasserstein distance of features and context, in half-widths of the reference. Nearest: "
        "median distance to the nearest training event, over that of the reference; well below 1 means memorized "
        "events. Time per event: one core, in memory, with so many events in a call. Likelihood: whether it knows how "
        "probable an event is. n_eff: of the training events' weights, the signed ones where positive ones were made "
        "of them.",
        "Width pull: largest one of any feature's half-width in any bin of context. Its error holds the statistics of "
        "three samples: generated, reference, and training, whose n_eff limits what a generator can know.",
        f"KS p (of all): of the feature with the smallest p-value of its KS distance, corrected for the choice among "
        f"{n_features} features as if these were independent (Šidák). With {N_REPLICATES} replicates it can't be below "
        f"{least:.2g}. It says whether the samples differ; those of a perfect generator, trained on finite data, do so "
        "a little.",
    ]


def _sections(result: ModelComparison, validations: Mapping[str, Validation]) -> list[Section]:
    """The table, and the distributions of each generator."""
    explained = _explained(len(next(iter(validations.values())).distances))
    explained += [ABOUT_DRIFTS] if result.enforced else []
    sections = [Section("Comparison", explained, tables=result.tables)]
    for name, one in validations.items():
        caption = f"{name} against the reference"
        picture = Picture(one.pictures[0].read_bytes(), f"distributions of {name}", caption, wide=True)
        sections.append(Section(name, figures=[picture]))
    return sections
